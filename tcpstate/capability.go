package tcpstate

import (
	"errors"
	"fmt"
	"net/netip"
)

// Support is what a probe of the kernel found out. The zero value is "could not
// tell", on which nothing may be built.
type Support uint8

// The three answers of a probe.
const (
	CouldNotTell Support = iota
	Supported
	NotSupported
)

func (s Support) String() string {
	switch s {
	case Supported:
		return "supported"
	case NotSupported:
		return "not supported"
	}
	return "could not tell"
}

// Capability is one thing that the kernel may or may not be able to do for us.
type Capability struct {
	Support Support
	// Err is why it is not Supported.
	Err error
}

// Capabilities is what this kernel lets this process do in one namespace.
type Capabilities struct {
	// Dump: list connections and look at one (CONFIG_INET_DIAG).
	Dump Capability
	// Destroy: abort a connection (CONFIG_INET_DIAG_DESTROY). The kernel looks
	// for the connection before it looks at the privilege, so this does not say
	// whether CAP_NET_ADMIN is there.
	Destroy Capability
}

// ProbeCapabilities asks the kernel what it can do, in the namespace of the
// calling thread, without touching any connection: the requests name a 4-tuple
// (port 0) that no socket can have, so the kernel's best answer is ErrGone.
func ProbeCapabilities() Capabilities {
	var s Socket
	if err := s.Open(); err != nil {
		c := Capability{Support: CouldNotTell, Err: err}
		return Capabilities{Dump: c, Destroy: c}
	}
	defer s.Close()
	return s.probe()
}

func (s *Socket) probe() Capabilities {
	absent := []ID{{
		Local:  netip.AddrPortFrom(netip.IPv4Unspecified(), 0),
		Remote: netip.AddrPortFrom(netip.IPv4Unspecified(), 0),
		Cookie: 1,
	}}
	var caps Capabilities
	out := make([]Result, 1)
	err := s.Get(absent, out)
	caps.Dump = judge(errors.Join(err, out[0].Err))
	if err != nil && s.Open() != nil {
		caps.Destroy = Capability{Err: err}
		return caps
	}
	errs := make([]error, 1)
	err = s.Destroy(absent, errs)
	caps.Destroy = judge(errors.Join(err, errs[0]))
	return caps
}

// judge reads the answer to a request about a connection that does not exist.
func judge(err error) Capability {
	switch {
	case errors.Is(err, ErrNotSupported), errors.Is(err, ErrNotPermitted):
		return Capability{Support: NotSupported, Err: err}
	case errors.Is(err, ErrGone):
		return Capability{Support: Supported}
	case err == nil:
		return Capability{Err: errors.New("the kernel claims to know a connection with port 0")}
	}
	return Capability{Err: fmt.Errorf("unexpected answer: %w", err)}
}
