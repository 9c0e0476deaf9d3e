package sysctl

import (
	"fmt"
	"math/bits"
	"time"
)

// The constants of include/net/tcp.h.
const (
	rtoMin     = 200 * time.Millisecond // TCP_RTO_MIN
	rtoInitial = time.Second            // TCP_TIMEOUT_INIT
)

// LAN is the retransmission timeout of a connection within a data centre: the
// least one, TCP_RTO_MIN, rounded up to the next tick of the usual 250 Hz. Its
// round trip is too short to count.
const LAN = 204 * time.Millisecond

// Meaning is what the values of a namespace amount to for its connections.
type Meaning struct {
	// Busy is how long after its write into the void a connection fails.
	Busy time.Duration
	// Idle is how long after the last sign of its peer an idle connection fails
	// that has SO_KEEPALIVE and leaves the times to the system. One without
	// SO_KEEPALIVE never does.
	Idle time.Duration
	// Connect is how long a connect to an address that does not answer takes.
	Connect time.Duration
	// Orphan is Busy for a connection that its application has closed, FinWait
	// how long an orphan waits for the peer's FIN.
	Orphan, FinWait time.Duration
}

// Mean computes what values amount to. rto is a connection's retransmission
// timeout (tcpi_rto) while all is well, LAN if 0. Values that are missing are the
// kernel's defaults, but for SynLinear and RTOMax, which a kernel may lack.
//
// The kernel's timers go off late by up to an eighth (kernel/time/timer.c). Busy
// counts the mean of that, since it decides which timeout is the last one; the
// others leave it out.
func Mean(v Values, rto time.Duration) Meaning {
	get := func(k Key) int {
		if n, ok := v[k]; ok {
			return n
		}
		return defs[k].Default
	}
	// The kernel takes no less for the cap than a second.
	most := max(time.Second, time.Duration(get(RTOMax))*time.Millisecond)
	if rto <= 0 {
		rto = LAN
		if n, ok := v[RTOMin]; ok {
			rto += time.Duration(n)*time.Microsecond - rtoMin
		}
	}
	rto = min(rto, most)
	orphan := get(OrphanRetries)
	if orphan <= 0 {
		orphan = 8 // tcp_orphan_retries, as long as the timeout is below its cap
	}
	m := Meaning{
		Busy:    busy(max(0, get(Retries2)), rto, most),
		Orphan:  busy(orphan, rto, most),
		Connect: connect(max(0, get(SynRetries)), v[SynLinear], most),
		FinWait: time.Duration(get(FinTimeout)) * time.Second,
	}
	// tcp_keepalive_timer: after so many probes, and one interval more.
	m.Idle = time.Duration(get(KeepaliveTime)+get(KeepaliveProbes)*get(KeepaliveIntvl)) * time.Second
	return m
}

// busy follows tcp_write_timeout and retransmits_timed_out: the connection fails
// when its timer goes off and, since its first retransmission, as much time has
// passed as tcp_model_timeout allows. The model doubles from TCP_RTO_MIN,
// whatever the connection's own timeout is.
func busy(retries int, rto, most time.Duration) time.Duration {
	allowed := model(retries, rtoMin, most)
	// The tail loss probe takes the place of the first timeout, and puts it off
	// by a full one (tcp_schedule_loss_probe).
	first := fires(rto) + fires(rto)
	var since time.Duration
	for since < allowed {
		rto = min(2*rto, most)
		since += fires(rto)
	}
	return first + since
}

// model is tcp_model_timeout. boundary counts from 0: of 5, six timeouts are
// allowed for, 63 times the base.
func model(boundary int, base, most time.Duration) time.Duration {
	doublings := bits.Len64(uint64(most/base)) - 1 // ilog2
	if boundary <= doublings {
		return time.Duration(2<<boundary-1) * base
	}
	return time.Duration(2<<doublings-1)*base + time.Duration(boundary-doublings)*most
}

// connect follows a socket in SYN_SENT: its timeout stays as it is for the first
// linear retransmissions, which come on top of the retries, and then doubles. The
// model holds here too, counted from the start, and for few retries ends it first.
func connect(retries, linear int, most time.Duration) time.Duration {
	rto := rtoInitial
	allowed := model(retries, rtoInitial, most)
	var at time.Duration
	for n := 1; ; n++ {
		at += rto
		if n > retries+linear || at >= allowed {
			return at
		}
		if n > linear {
			rto = min(2*rto, most)
		}
	}
}

// fires is when a timer goes off on average. The timer wheel's steps are an eighth
// of the range that a timeout lies in, 64 to 512 ticks and so on; a timer goes off
// at the end of its step.
func fires(d time.Duration) time.Duration {
	const tick = 4 * time.Millisecond // 250 Hz
	step := time.Duration(0)
	for reach := 64 * tick; d >= reach; reach *= 8 {
		step = reach / 8
	}
	return d + step/2
}

// String is the sentence that is shown with a namespace's values.
func (m Meaning) String() string {
	return fmt.Sprintf("a busy connection here fails after %s, an idle one with keepalive after %s, a connect after %s", Words(m.Busy), Words(m.Idle), Words(m.Connect))
}

// Words writes a duration for people, not exactly.
func Words(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%.3g s", d.Seconds())
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0f min", d.Minutes())
	}
	return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
}
