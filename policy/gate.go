package policy

import (
	"net/netip"
	"slices"

	"github.com/redisguard/redisguard/config"
)

// Job is one of the things that redisguard does to others.
type Job uint8

// The jobs. Watch only looks; the others build on it.
const (
	Watch Job = iota
	Tune
	Arm
	Reap
	Fence
	Detour
)

// job is what there is to know about a Job.
type job struct {
	word string
	// own is the mode of its own section of the config, nil if it has none; of one that is
	// not built it is off.
	own   func(*config.Config) config.Mode
	built bool

	// What it makes of what cannot be told: redis says that it acts in a namespace in which
	// Redis may listen; unowned that it acts where of no process it is known that it lives
	// there, as long as [exclude] is empty.
	redis, unowned bool
}

// jobs has a row for each job. To add a job is to add a row.
var jobs = [...]job{
	Watch: {word: "watch", built: true, redis: true, unowned: true},
	// Sane TCP limits harm no Redis, and without CAP_SYS_PTRACE no listener is known: tuning
	// must work there too.
	Tune: {word: "tune", built: true, own: func(c *config.Config) config.Mode { return c.Tune.Mode }, redis: true, unowned: true},
	// A connection without a known process may be Redis' own where Redis may listen.
	// Options are set through its process, without which they cannot be.
	Arm:  {word: "arm", built: true, own: func(c *config.Config) config.Mode { return c.Arm.Mode }, unowned: true},
	Reap: {word: "reap", built: true, own: func(c *config.Config) config.Mode { return c.Reap.Mode }, unowned: true},
	// What a fence or a detour may do to a Sentinel is worse than all that they mend.
	Fence:  {word: "fence", own: notBuilt},
	Detour: {word: "detour", own: notBuilt},
}

func notBuilt(*config.Config) config.Mode { return config.Off }

// Jobs are all of them that are built.
func Jobs() (list []Job) {
	for j := range jobs {
		if jobs[j].built {
			list = append(list, Job(j))
		}
	}
	return list
}

func (j Job) String() string { return jobs[j].word }

// Limit is what keeps a job from going further.
type Limit uint8

// The limits, by weight: of two that are equally strict the one that stands first is
// named, since lifting the other changes nothing.
const (
	NoLimit    Limit = iota
	BySwitch         // the off switch
	ByRight          // a right of ours is missing
	ByDryRun         // --dry-run
	ByOverride       // `redisguard mode`
	ByMode           // mode of the config
	ByTarget         // the mode of the target, or [watch] mode
	ByJob            // the job's own mode
)

// Reason is why a job does not go further.
type Reason struct {
	Kind Limit
	// Text says it for people, naming the key, switch or right.
	Text string
}

// Inputs are what a Policy follows from.
type Inputs struct {
	Config *config.Config
	// Override is the ceiling that somebody has set beside the config; Enforce is none.
	Override config.Mode
	// Switch says that the off switch is there.
	Switch bool
	// DryRun caps everything at observe.
	DryRun bool
	// Missing names the right without which a job can only observe.
	Missing map[Job]string
	// Members are the endpoints of targets.
	Members []Members
	// Self is our own process id.
	Self int
}

// Policy is what may be done now. It is immutable.
type Policy struct {
	Inputs
	Interest *Interest
}

// New makes a policy. before is the one before, nil if there is none.
func New(in Inputs, before *Policy) *Policy {
	generation := uint64(1)
	var old *Interest
	if before != nil {
		old = before.Interest
		generation = old.Generation
	}
	p := &Policy{Inputs: in, Interest: newInterest(in.Config, in.Members, generation)}
	if !p.Interest.sameAs(old) && old != nil {
		p.Interest.Generation++
	}
	return p
}

// Mode is how far a job may go toward what is watched for its port alone, and why not
// further.
func (p *Policy) Mode(job Job) (config.Mode, Reason) {
	return p.ModeFor(job, &p.Interest.byPort)
}

// ModeFor is how far a job may go toward something that is watched, and why not further.
func (p *Policy) ModeFor(job Job, w *Watched) (config.Mode, Reason) {
	least, why := config.Enforce, Reason{}
	limit := func(m config.Mode, kind Limit, text string) {
		if m < least {
			least, why = m, Reason{kind, text}
		}
	}
	if p.Switch {
		limit(config.Off, BySwitch, "the off switch is there")
	}
	if right := p.Missing[job]; right != "" {
		limit(config.Observe, ByRight, right+" is missing")
	}
	if p.DryRun {
		limit(config.Observe, ByDryRun, "--dry-run")
	}
	limit(p.Override, ByOverride, "the override is "+p.Override.String())
	limit(p.Config.Mode, ByMode, "mode is "+p.Config.Mode.String())
	key := "watch.mode"
	if w.Target != "" {
		key = "target[" + w.Target + "].mode"
	}
	text := key + " is " + w.Mode.String()
	if w.Under != "" {
		text = "target[" + w.Under + "].mode is " + w.Mode.String() + ", and its allow covers the endpoint"
	}
	limit(w.Mode, ByTarget, text)
	if own := jobs[job].own; own != nil {
		m := own(p.Config)
		limit(m, ByJob, job.String()+".mode is "+m.String())
	}
	return least, why
}

// ModeAt is how far a job may go toward an endpoint, and why not further; off if it is not
// watched.
func (p *Policy) ModeAt(job Job, endpoint netip.AddrPort) (config.Mode, Reason) {
	w, ok := p.Interest.Of(endpoint)
	if !ok {
		return config.Off, Reason{ByTarget, "it is not watched"}
	}
	return p.ModeFor(job, &w)
}

// Most is how far a job may go toward anything that is watched.
func (p *Policy) Most(job Job) config.Mode {
	most, _ := p.Mode(job)
	for i := range p.Config.Targets {
		m, _ := p.ModeFor(job, &Watched{Target: p.Config.Targets[i].Name, Mode: p.Config.Targets[i].Mode})
		most = max(most, m)
	}
	return most
}

// Ceiling is how far any job may go, but for the off switch and what stands in the
// sections of the config.
func (p *Policy) Ceiling() config.Mode {
	m := config.Ceiling(p.Config.Mode, p.Override)
	if p.DryRun {
		m = config.Ceiling(m, config.Observe)
	}
	return m
}

// AttributesAnew says that what was found out about holders under the policy before is not
// enough for this one: other ports are watched, other servers are named, or only now it matters who else has a
// connection.
func (p *Policy) AttributesAnew(before *Policy) bool {
	return !slices.Equal(p.Interest.ports, before.Interest.ports) || !slices.Equal(p.Config.Watch.Servers, before.Config.Watch.Servers) || p.Excludes() && !before.Excludes()
}

// Off says that nothing is watched.
func (p *Policy) Off() bool { return p.Most(Watch) == config.Off }
