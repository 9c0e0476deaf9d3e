package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/client"
	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/internal/daemon"
	"github.com/redisguard/redisguard/netns"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/tcpstate"
)

// attributionBudget bounds the search for the owners of the sockets. On a node
// with 100,000 descriptors it takes some 100 ms.
const attributionBudget = 2 * time.Second

// shownStates are all states but those without an application's interest in
// them: LISTEN, TIME_WAIT, SYN_RECV.
var shownStates = tcpstate.Mask(tcpstate.Established, tcpstate.SynSent, tcpstate.CloseWait,
	tcpstate.FinWait1, tcpstate.FinWait2, tcpstate.LastAck, tcpstate.Closing)

func newConnectionsCommand() *cobra.Command {
	var (
		d          daemonAt
		s          search
		configPath string
		endpoint   string
		pod        string
		alone      bool
		wide       bool
		asJSON     bool
	)
	cmd := &cobra.Command{
		Use:   "connections",
		Short: "List this node's connections to Redis and what they are doing",
		Long: `Connections lists the TCP connections toward the watched ports in every network
namespace of this node: whose they are, when the peer was last heard, and which
are stalled, that is retransmitting or probing without an answer.

It asks the daemon, which also knows which are half-dead and which may be reaped.
Without one, or with --no-daemon, --ports, --loopback or --config, it looks once
by itself.

The exit code is 0, or 3 if --stalled was given and there are such; it is 5 if no
network namespace could be looked at for want of privileges.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ports, _ := cmd.Flags().GetUintSlice("ports")
			if err := s.setPorts(ports); err != nil {
				return usageError(err)
			}
			if err := s.setEndpoint(endpoint); err != nil {
				return usageError(err)
			}
			if _, err := path.Match(s.namespace, ""); err != nil {
				return usageError(fmt.Errorf("cannot use --namespace %q: %w", s.namespace, err))
			}
			own := func(flag string) bool { return cmd.Flags().Changed(flag) }
			alone = alone || own("ports") || own("loopback") || own("config")
			if alone && pod != "" {
				return usageError(errors.New("cannot use --pod without the daemon"))
			}
			if !alone {
				list, err := s.query(cmd.Context(), &d, pod)
				if err == nil {
					return s.show(cmd, list, wide, asJSON)
				}
				// Without a daemon, or the right to ask it, we still have eyes.
				e := asExit(d.failed("list connections", err))
				if e.code != ExitNoDaemon && e.code != ExitNotPermitted || pod != "" {
					return e
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "redisguard: %s; looking by itself, once\n", oneLine(err.Error()))
			}
			if err := s.configure(cmd, configPath); err != nil {
				return err
			}
			found, err := s.inspect(cmd.Context())
			if err != nil {
				return err
			}
			list := make([]listed, 0, len(found.connections)) // [], never null
			for i := range found.connections {
				list = append(list, found.connections[i].listed(time.Now()))
			}
			err = s.show(cmd, list, wide, asJSON)
			found.print(cmd.ErrOrStderr())
			switch {
			case found.seen == 0 && found.denied:
				return exitCode(ExitNotPermitted)
			case found.seen == 0:
				return exitCode(ExitFailed)
			}
			return err
		},
	}
	f := cmd.Flags()
	f.BoolVar(&s.stalled, "stalled", false, "list only stalled connections, and exit with 3 if there are any")
	f.StringVar(&s.namespace, "namespace", "", "list only network namespaces whose name matches `GLOB`, such as cni-* or host")
	f.StringVar(&endpoint, "endpoint", "", "list only connections to `IP[:PORT]`")
	f.StringVar(&pod, "pod", "", "list only connections of the `POD`: its uid, name, or namespace/name")
	f.BoolVar(&alone, "no-daemon", false, "look once, without the daemon")
	f.UintSlice("ports", nil, "remote `PORTS` to look for (default: watch.ports of the config)")
	f.Lookup("ports").DefValue = "" // which the help would show as well, as []
	f.BoolVar(&s.loopback, "loopback", false, "list connections over loopback as well (default: watch.loopback of the config)")
	f.BoolVar(&wide, "wide", false, "show retransmissions, how it stands with keepalive, and why a connection may not be reaped")
	jsonFlag(cmd, &asJSON)
	configFlag(cmd, &configPath)
	d.socketFlag(cmd)
	return cmd
}

// configure fills in from the config what the flags leave open.
func (s *search) configure(cmd *cobra.Command, configPath string) error {
	// An endpoint with a port says which connections are meant.
	if len(s.ports) == 0 && s.endpoint.Port() != 0 {
		s.ports = []uint16{s.endpoint.Port()}
	}
	if len(s.ports) > 0 && cmd.Flags().Changed("loopback") {
		return nil
	}
	c, _, err := loadConfig(configPath)
	if err != nil {
		return err
	}
	if len(s.ports) == 0 {
		s.ports = c.Watch.Ports
	}
	if !cmd.Flags().Changed("loopback") {
		s.loopback = c.Watch.Loopback
	}
	if len(s.ports) == 0 {
		return &exitError{code: ExitFailed, err: errors.New("cannot list connections: watch.ports is empty"), remedy: "name the ports with --ports"}
	}
	return nil
}

// query has the daemon list the connections.
func (s *search) query(ctx context.Context, d *daemonAt, pod string) ([]listed, error) {
	c := d.client()
	defer c.Close()
	q := client.ConnectionQuery{Pod: pod, Stalled: s.stalled}
	if s.endpoint.Port() != 0 {
		q.Endpoint = s.endpoint.String()
	}
	all, err := c.Connections(ctx, q)
	if err != nil {
		return nil, err
	}
	list := make([]listed, 0, len(all))
	for _, k := range all {
		if ok, _ := path.Match(s.namespace, k.Namespace); s.namespace != "" && !ok {
			continue
		}
		if remote, err := netip.ParseAddrPort(k.Endpoint); s.endpoint.IsValid() && (err != nil || remote.Addr() != s.endpoint.Addr()) {
			continue
		}
		one := listed{Connection: k}
		if k.State != v1.StateConnecting {
			heard := min(k.LastAckMs, k.LastReceivedMs)
			one.HeardMs = &heard
		}
		list = append(list, one)
	}
	return list, nil
}

// show writes the list.
func (s *search) show(cmd *cobra.Command, list []listed, wide, asJSON bool) error {
	if asJSON {
		if err := writeJSON(cmd.OutOrStdout(), list); err != nil {
			return err
		}
	} else {
		writeConnections(cmd.OutOrStdout(), list, wide)
	}
	if s.stalled && len(list) > 0 {
		return exitCode(ExitFindings)
	}
	return nil
}

// search is one look at all network namespaces of the node.
type search struct {
	ports     []uint16
	loopback  bool
	stalled   bool
	namespace string         // glob for the name, "" for all
	endpoint  netip.AddrPort // invalid for all; port 0 for any

	interest *policy.Interest // what is watched, made by look from the rest

	finder netns.Finder // its zero value is the running system
	proc   proc.FS
}

func (s *search) setPorts(ports []uint) error {
	if len(ports) > tcpstate.MaxPorts {
		return fmt.Errorf("cannot use --ports: %d ports, at most %d", len(ports), tcpstate.MaxPorts)
	}
	for _, p := range ports {
		if p == 0 || p > 65535 {
			return fmt.Errorf("cannot use --ports: %d is no port", p)
		}
		s.ports = append(s.ports, uint16(p))
	}
	return nil
}

func (s *search) setEndpoint(text string) error {
	if text == "" {
		return nil
	}
	ap, err := netip.ParseAddrPort(text)
	if err == nil && ap.Port() == 0 {
		err = errors.New("0 is no port")
	}
	if err != nil {
		addr, aerr := netip.ParseAddr(text)
		if aerr != nil {
			return fmt.Errorf("cannot use --endpoint %q: it is no IP or IP:PORT (an IPv6 address with a port stands in brackets)", text)
		}
		ap = netip.AddrPortFrom(addr, 0)
	}
	s.endpoint = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	return nil
}

// connection is one connection with what is known about it.
type connection struct {
	tcpstate.Connection
	namespace  netns.Namespace
	owner      *proc.Owner // nil: not found
	stalledFor time.Duration
	unanswered int
	stalled    bool
}

// searched is what a search found.
type searched struct {
	connections []connection
	seen        int  // namespaces looked at
	denied      bool // some may not be
	problems    problems
}

// inspect looks once at the network namespaces that match.
func (s *search) inspect(ctx context.Context) (*searched, error) {
	alone := daemon.Standalone{Proc: s.proc}
	c := config.Default()
	c.Watch.Ports, c.Watch.Loopback = s.ports, s.loopback
	s.interest = policy.New(policy.Inputs{Config: &c}, nil).Interest
	matched := false
	node, err := alone.Survey(ctx, daemon.SurveyConfig{
		Finder: s.finder, Filter: tcpstate.Filter{States: shownStates, RemotePorts: s.ports, Info: true}, Keep: s.wants,
		Match: func(ns netns.Namespace) bool {
			ok, _ := path.Match(s.namespace, ns.String())
			ok = ok || s.namespace == ""
			matched = matched || ok
			return ok
		},
	})
	found := &searched{}
	if err != nil && !errors.Is(err, netns.ErrStranded) {
		return nil, fmt.Errorf("cannot list connections: %w", err)
	}
	if err != nil {
		found.problems.add("", err)
	}
	if node.Unseen != nil {
		found.problems.add(findRemedy, node.Unseen)
	}
	if node.Guessed != nil && len(node.Spaces) > 0 {
		found.problems.add("the namespace called host is this process's own", node.Guessed)
	}
	if !matched && s.namespace != "" {
		return nil, &exitError{code: ExitFailed, err: fmt.Errorf("cannot list connections: no network namespace is called %s", s.namespace),
			remedy: "leave --namespace out to see their names"}
	}
	for i := range node.Spaces {
		sp := &node.Spaces[i]
		switch {
		case errors.Is(sp.Err, netns.ErrGone):
			continue
		case sp.Err != nil:
			found.problems.add(dumpRemedy(sp.Err), sp.Err)
			found.denied = found.denied || notPermitted(sp.Err)
			continue
		}
		found.seen++
		for _, k := range sp.Connections {
			one := connection{Connection: k, namespace: sp.NS}
			one.stalledFor, one.unanswered, one.stalled = k.Stalled()
			if !s.stalled || one.stalled {
				found.connections = append(found.connections, one)
			}
		}
	}
	s.attribute(ctx, found)
	slices.SortFunc(found.connections, func(a, b connection) int {
		return cmp.Or(
			-cmp.Compare(a.rank(), b.rank()),
			cmp.Compare(a.namespace.String(), b.namespace.String()),
			a.Remote.Compare(b.Remote),
			a.Local.Compare(b.Local),
		)
	})
	return found, nil
}

// rank orders stalled connections by how long they are; the others come last.
func (c *connection) rank() time.Duration {
	if !c.stalled {
		return -1
	}
	return c.stalledFor
}

// wants says whether a connection is one that the daemon would watch, and that was asked
// for.
func (s *search) wants(c *tcpstate.Connection) bool {
	if !s.interest.Wants(c.Local, c.Remote, c.Mark) {
		return false
	}
	if !s.endpoint.IsValid() {
		return true
	}
	return c.Remote.Addr() == s.endpoint.Addr() && (s.endpoint.Port() == 0 || c.Remote.Port() == s.endpoint.Port())
}

// attribute looks for the owners, all in one pass over /proc.
func (s *search) attribute(ctx context.Context, found *searched) {
	want := map[netns.Key][]uint64{}
	for _, c := range found.connections {
		if c.Inode != 0 {
			key := c.namespace.ID.Key()
			want[key] = append(want[key], uint64(c.Inode))
		}
	}
	if len(want) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, attributionBudget)
	defer cancel()
	owners, stats := proc.NewAttributor(s.proc).Resolve(ctx, want)
	for i := range found.connections {
		c := &found.connections[i]
		if o, ok := owners[uint64(c.Inode)]; ok && c.Inode != 0 {
			c.owner = &o
		}
	}
	missing := stats.Wanted - stats.Found
	switch {
	case missing <= 0:
	case stats.Err != nil:
		found.problems.add("try again when the node is less busy",
			fmt.Errorf("cannot tell the process of %d connections: %w", missing, stats.Err))
	case stats.Denied > 0:
		found.problems.add("run it as root, or with CAP_SYS_PTRACE (before Linux 5.14 with CAP_DAC_READ_SEARCH, too)",
			fmt.Errorf("cannot tell the process of %d connections: %d processes may not be looked at", missing, stats.Denied))
	}
}

const findRemedy = "to see all network namespaces run it as root, or with CAP_SYS_PTRACE and CAP_SYS_ADMIN"

// dumpRemedy is what helps against an error of a visit.
func dumpRemedy(err error) string {
	switch {
	case notPermitted(err):
		return "to enter network namespaces run it as root, or with CAP_SYS_ADMIN"
	case errors.Is(err, tcpstate.ErrNotSupported):
		return "the kernel needs CONFIG_INET_DIAG and CONFIG_INET_TCP_DIAG; try modprobe tcp_diag"
	}
	return ""
}

func notPermitted(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, tcpstate.ErrNotPermitted)
}
