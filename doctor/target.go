package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redisguard/redisguard/clusterview"
	"github.com/redisguard/redisguard/clusterview/session"
	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/resolver"
)

// maxNamed is how many servers or addresses the evidence of one check names.
const maxNamed = 5

// targetChecks are the checks of each target that is followed. What several of them need is
// looked up once, by whichever comes first.
func targetChecks(n *node) (all []check) {
	c := n.config()
	p := policy.New(policy.Inputs{Config: &c, Override: config.Enforce}, nil)
	for i := range c.Targets {
		t := &target{conf: &c.Targets[i], probe: &c.Probe, node: n}
		name := "target/" + t.conf.Name + "/"
		if mode, _ := p.ModeFor(policy.Watch, &policy.Watched{Target: t.conf.Name, Mode: t.conf.Mode}); mode == config.Off {
			all = append(all, check{name: name + "mode", run: func(context.Context, *node) Finding {
				return Finding{Status: OK, Evidence: "the mode is off: its servers are not asked"}
			}})
			continue
		}
		all = append(all,
			check{name: name + "passwords", run: t.checkPasswords},
			check{name: name + "names", run: t.checkNames, remote: true},
			check{name: name + "servers", run: t.checkServers, remote: true},
			check{name: name + "rights", run: t.checkRights, remote: true},
			check{name: name + "allow", run: t.checkAllow, remote: true},
			check{name: name + "view", run: t.checkView, remote: true},
		)
	}
	return all
}

// target is one that is checked.
type target struct {
	conf  *config.TargetSection
	probe *config.ProbeSection
	node  *node

	resolve sync.Once
	states  []resolver.State // of the seeds that are names
	ask     sync.Once
	answers answers
}

// answers are what its servers said.
type answers struct {
	seeds   []netip.AddrPort
	failed  map[netip.AddrPort]error // why a server could not be asked
	refused map[string]error         // commands that a server does not let us run, with its address
	top     *clusterview.Topology
}

func (t *target) checkPasswords(context.Context, *node) Finding {
	var files []string
	for _, file := range []string{t.conf.PasswordFile, t.conf.SentinelPasswordFile} {
		if file == "" {
			continue
		}
		if _, err := session.LoadPassword(file); err != nil {
			return Finding{Status: Fail, Evidence: oneLine(err), Remedy: "one line with the password, in a file that only root can read: chmod 600 " + file}
		}
		files = append(files, file)
	}
	if len(files) == 0 {
		return Finding{Status: OK, Evidence: "no password is configured"}
	}
	return Finding{Status: OK, Evidence: strings.Join(files, ", ") + " can be read, and not by others"}
}

// lookUp asks the DNS once for the names among the seeds, as the daemon does, but without its
// patience. A name has neither addresses nor an error where no answer came in time.
func (t *target) lookUp(ctx context.Context) []resolver.State {
	t.resolve.Do(func() {
		names := t.conf.SeedNames()
		if len(names) == 0 {
			return
		}
		ctx, cancel := early(ctx, 0.5) // the rest is for asking
		defer cancel()
		// A fleet does not run doctor at the same time: no need to save queries.
		r := resolver.New(resolver.Config{
			ResolvConf: t.node.path("/etc/resolv.conf"), Limits: resolver.Limits{Rate: 100, Burst: 100, Asking: 16},
		})
		if err := r.Want(names); err != nil {
			t.states = []resolver.State{{Name: names[0], Err: err}}
			return
		}
		var wg sync.WaitGroup
		wg.Go(func() { r.Run(ctx) })
		for known := false; !known && ctx.Err() == nil; {
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
			known = !slices.ContainsFunc(r.Snapshot(), func(s resolver.State) bool { return len(s.Addrs) == 0 && s.Err == nil })
		}
		t.states = r.Snapshot()
		cancel()
		wg.Wait()
	})
	return t.states
}

// early leaves time of ctx for what is to be done after: it ends after a part of what is left.
func early(ctx context.Context, part float64) (context.Context, context.CancelFunc) {
	if end, ok := ctx.Deadline(); ok {
		return context.WithTimeout(ctx, time.Duration(float64(time.Until(end))*part))
	}
	return context.WithCancel(ctx)
}

func (t *target) checkNames(ctx context.Context, _ *node) Finding {
	states := t.lookUp(ctx)
	var good, outside []string
	for _, s := range states {
		ports := []uint16{}
		for _, seed := range t.conf.Seeds {
			if resolver.Fold(seed.Host) == s.Name {
				ports = append(ports, seed.Port)
			}
		}
		switch {
		case len(s.Addrs) > 0:
			good = append(good, s.Name+" is "+list(s.Addrs))
			for _, a := range s.Addrs {
				for _, p := range ports {
					if at := netip.AddrPortFrom(a, p); !t.conf.Allows(at) {
						outside = append(outside, at.String())
					}
				}
			}
		case errors.Is(s.Err, resolver.ErrNoAddress):
			return Finding{Status: Fail, Evidence: fmt.Sprintf("%s: %s", s.Name, oneLine(s.Err)), Remedy: "correct seeds, or the name's records; /etc/hosts is not read"}
		case s.Err != nil:
			return cannotTell(fmt.Errorf("%s: %w", s.Name, s.Err))
		default:
			return cannotTell(fmt.Errorf("%s: no answer in time from the name servers of /etc/resolv.conf", s.Name))
		}
	}
	switch {
	case len(states) == 0:
		return Finding{Status: OK, Evidence: "no seed is a name"}
	case len(outside) > 0:
		return Finding{Status: Warn, Evidence: fmt.Sprintf("%s; of these %s are not in allow and allow_ports, and are never dialled", strings.Join(good, "; "), list(outside)),
			Remedy: "add them to allow and allow_ports if they are right"}
	}
	return Finding{Status: OK, Evidence: strings.Join(good, "; ")}
}

// list is some of a list, in words.
func list[E any](all []E) string {
	var words []string
	for _, e := range all[:min(len(all), maxNamed)] {
		words = append(words, fmt.Sprint(e))
	}
	if more := len(all) - len(words); more > 0 {
		words = append(words, fmt.Sprintf("%d more", more))
	}
	return strings.Join(words, ", ")
}

func (t *target) checkServers(ctx context.Context, _ *node) Finding {
	a := t.look(ctx)
	if len(a.seeds) == 0 {
		return cannotTell(errors.New("no address of a seed is known that is in allow and allow_ports"))
	}
	bad := slices.SortedFunc(maps.Keys(a.failed), netip.AddrPort.Compare)
	good := len(a.top.Nodes) + len(a.top.Sentinels)
	if len(bad) == 0 && a.top.Known {
		text := fmt.Sprintf("type %s, %d nodes", a.top.Type, len(a.top.Nodes))
		if n := len(a.top.Sentinels); n > 0 {
			text += fmt.Sprintf(", %d Sentinels", n)
		}
		if a.top.State == clusterview.Down {
			return Finding{Status: Warn, Evidence: text + "; it is down: " + a.top.Why, Remedy: "see docs/runbooks/cluster.down.md"}
		}
		return Finding{Status: OK, Evidence: text + "; all that were asked answer"}
	}
	if len(bad) == 0 {
		return cannotTell(fmt.Errorf("the servers answer, but not enough to know the target by: %s", cmp.Or(a.top.Why, "no time was left")))
	}
	status, remedy := Warn, "see whether it runs, and whether a firewall or a network policy is in the way from this host"
	seeds := 0
	var texts []string
	for _, addr := range bad {
		err := a.failed[addr]
		if errors.Is(err, errLocal) {
			return cannotTell(err)
		}
		if slices.Contains(a.seeds, addr) {
			seeds++
		}
		texts = append(texts, oneLine(err))
		if r := t.remedyFor(err); r != "" {
			status, remedy = Fail, r
		}
	}
	if good == 0 || seeds == len(a.seeds) {
		status = Fail // nothing is known of it
	}
	more := ""
	if n := len(texts) - maxNamed; n > 0 {
		more = fmt.Sprintf("; and %d more", n)
	}
	return Finding{Status: status, Evidence: strings.Join(texts[:min(len(texts), maxNamed)], "; ") + more, Remedy: remedy}
}

// remedyFor says what to do where a server is there and does not let us in.
func (t *target) remedyFor(err error) string {
	switch {
	case errors.Is(err, session.ErrWrongPass):
		return "correct username and password_file (of Sentinels: sentinel_username and sentinel_password_file)"
	case errors.Is(err, session.ErrWithheld):
		return "extend allow and allow_ports, or set tls.enabled"
	case errors.Is(err, session.ErrNoAuth):
		return "name a password_file (for Sentinels: sentinel_password_file)"
	case errors.Is(err, session.ErrTLS):
		return "correct the section [target.tls]: enabled, ca and server_name"
	case errors.Is(err, session.ErrTimeout) && t.conf.TLS.Enabled:
		return "see whether it speaks TLS at all (tls.enabled, tls.sentinels), or is too busy to answer"
	case errors.Is(err, session.ErrNotRedis):
		return "correct seeds, or tls.enabled"
	case errors.Is(err, session.ErrNoPerm):
		return "give the user the rights that docs/targets.md lists"
	}
	return ""
}

func (t *target) checkRights(ctx context.Context, _ *node) Finding {
	a := t.look(ctx)
	switch {
	case len(a.refused) > 0:
		return Finding{Status: Warn, Evidence: "not permitted: " + list(slices.Sorted(maps.Keys(a.refused))), Remedy: "give the user the rights that docs/targets.md lists"}
	case !a.top.Known:
		return cannotTell(errors.New("not all that is needed could be asked"))
	}
	return Finding{Status: OK, Evidence: "all that the view sends is permitted"}
}

func (t *target) checkAllow(ctx context.Context, _ *node) Finding {
	a := t.look(ctx)
	for _, p := range a.top.Problems {
		if p.Kind == clusterview.ProblemOutside {
			return Finding{Status: Warn, Evidence: fmt.Sprintf("%s (%d in all)", p.Detail, p.Count), Remedy: "add them to allow and allow_ports if they are right: what is outside is neither dialled nor touched"}
		}
	}
	if !a.top.Known {
		return cannotTell(errors.New("what the servers name is not known"))
	}
	return Finding{Status: OK, Evidence: "allow and allow_ports cover all that the servers name"}
}

// checkView passes on what a running daemon finds wrong.
func (t *target) checkView(ctx context.Context, n *node) Finding {
	if n.problems == nil {
		return Finding{Evidence: "no daemon was asked"}
	}
	all, err := n.problems(ctx)
	if err != nil {
		return cannotTell(err)
	}
	problems, known := all[t.conf.Name]
	switch {
	case !known:
		return Finding{Status: Warn, Evidence: "the running daemon does not have it", Remedy: "see whether its config is this one: redisguard config reload says what is wrong with it"}
	case len(problems) > 0:
		return Finding{Status: Warn, Evidence: "the daemon says: " + oneLine(errors.New(list(problems))), Remedy: "see docs/runbooks/target.problem.md"}
	}
	return Finding{Status: OK, Evidence: "the running daemon finds nothing wrong with it"}
}
