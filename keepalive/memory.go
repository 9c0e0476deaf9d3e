package keepalive

// Memory is what is remembered of a socket between two changes of its options, so that
// what we have set can be told from what its application has chosen: a later change
// follows from the latter, and can take back the former. The zero value is a socket that
// we have never changed.
type Memory struct {
	// Left is what we have left there, and Original what its application had before; both
	// nil if we have changed nothing.
	Left, Original *Options
	// TurnedOff says that the application has turned off what we had turned on.
	TurnedOff bool
}

// Plan is what a socket with the options have is to get: what follows from what its
// application has chosen.
func (m *Memory) Plan(have, want Options) Options {
	if m.Refused(have) {
		return have // so be it
	}
	plan := Plan(m.Own(have), want)
	if !plan.Keepalive { // then its times mean nothing, and stay
		plan.Idle, plan.Interval, plan.Count = have.Idle, have.Interval, have.Count
	}
	return plan
}

// Own is what the application has chosen: what is there, but for what we have put there.
// It is not known what an earlier run of the daemon has set.
func (m *Memory) Own(have Options) Options {
	own := have
	if m.Left == nil {
		return own
	}
	if have.SameTimes(*m.Left) {
		own.SetTimes(*m.Original)
	}
	if have.UserTimeout == m.Left.UserTimeout {
		own.UserTimeout = m.Original.UserTimeout
	}
	if have.RTOMax == m.Left.RTOMax {
		own.RTOMax = m.Original.RTOMax
	}
	return own
}

// Refused says that the application has turned off what we had turned on.
func (m *Memory) Refused(have Options) bool {
	return m.TurnedOff || m.Left != nil && m.Left.Keepalive && !have.Keepalive
}
