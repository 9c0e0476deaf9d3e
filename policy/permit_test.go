package policy

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/proc"
	"github.com/redisguard/redisguard/tcpstate"
)

// enforcing is a policy in which no mode stands in the way.
func enforcing(change func(*config.Config)) *Policy {
	c := config.Default()
	c.Watch.Mode = config.Enforce
	if change != nil {
		change(&c)
	}
	return New(Inputs{Config: &c, Override: config.Enforce, Self: 42}, nil)
}

func app() *proc.Owner {
	return &proc.Owner{Process: proc.Process{PID: 1 << 22, Comm: "app", UID: 33}, Complete: true}
}

// shared is an app whose connection another process has, too.
func shared(comm string, uid uint32) *proc.Owner {
	o := app()
	o.Others = []*proc.Owner{{Process: proc.Process{PID: 1<<22 + 1, Comm: comm, UID: uid}}}
	return o
}

// unfinished is an app of whose connection not every process was asked.
func unfinished() *proc.Owner {
	o := app()
	o.Complete = false
	return o
}

func pod() *proc.Owner {
	return &proc.Owner{Process: proc.Process{PID: 1 << 22, Comm: "app", UID: 33}, Workload: proc.Workload{Kind: proc.KindPod, PodUID: "u"}, Complete: true}
}

// TestPermits is the table of the promises: whom each job may touch, and what it makes
// of what cannot be told.
func TestPermits(t *testing.T) {
	type world struct {
		config.Config
		k tcpstate.Connection
		h Holder
		o Occupants
		b bool   // the job has acted here before
		a Answer // whether the connection was opened here
	}
	// Which jobs may, by their first letters: reap, arm, tune, fence, detour.
	for _, tc := range []struct {
		name   string
		change func(*world)
		may    string
		exempt Exemption // of those that may not
	}{
		{"all is well", func(*world) {}, "ratfd", NotExempt},
		{"nobody has asked yet", func(w *world) { w.h = Holder{}; w.o.Pending = true }, "t", ExemptUnknown},
		{"nobody has asked yet, and nobody is known", func(w *world) { w.h, w.o = Holder{}, Occupants{Redis: No, Connections: 1, Pending: true} }, "", ExemptUnknown},
		{"the same, tuned before", func(w *world) { w.h, w.o, w.b = Holder{}, Occupants{Redis: No, Connections: 1, Pending: true}, true }, "t", ExemptUnknown},
		{"it was accepted", func(w *world) { w.a = No }, "tfd", ExemptUnknown},
		{"nobody can tell whether it was accepted", func(w *world) { w.a = CouldNotTell }, "tfd", ExemptUnknown},
		{"an orphan", func(w *world) { w.k.Inode = 0 }, "tfd", ExemptOrphan},
		{"MPTCP", func(w *world) { w.k.MPTCP = true }, "tfd", ExemptMPTCP},
		{"our own", func(w *world) { o := app(); o.Process.PID = 42; w.h.Owner = o }, "tfd", ExemptOwn},
		{"Redis itself", func(w *world) {
			w.h.Redis, w.o.Redis, w.o.RedisWhy = "is called redis-server", Yes, "is called redis-server"
		}, "", ExemptRedis},
		{"something here answers as Redis, perhaps for another", func(w *world) { w.o.Redis, w.o.RedisWhy = CouldNotTell, "wants a password" }, "ra", ExemptUnknown},
		{"the same, and tuning is asked for", func(w *world) {
			w.o.Redis, w.o.RedisWhy, w.Tune.RedisServers = CouldNotTell, "wants a password", true
		}, "rat", ExemptUnknown},
		{"a client beside Redis", func(w *world) { w.o.Redis = Yes }, "ra", ExemptRedis},
		{"a client beside Redis, and tuning is asked for", func(w *world) { w.o.Redis = Yes; w.Tune.RedisServers = true }, "rat", ExemptRedis},
		{"a client where Redis may be", func(w *world) { w.o.Redis = CouldNotTell }, "rat", ExemptUnknown},
		{"owner unknown, no Redis there", func(w *world) { w.h.Owner = nil; w.o.Known = false; w.o.Names = nil }, "rat", ExemptUnknown},
		{"owner unknown, Redis may be there", func(w *world) { w.h.Owner = nil; w.o.Redis = CouldNotTell }, "t", ExemptUnknown},
		{"owner unknown, Redis is there", func(w *world) { w.h.Owner = nil; w.o.Redis = Yes; w.Tune.RedisServers = true }, "t", ""},
		{"owner unknown, some are excluded", func(w *world) {
			w.h.Owner, w.o.Known, w.o.Names, w.Exclude.Commands = nil, false, nil, []string{"x"}
		}, "", ExemptUnknown},
		{"its command is excluded", func(w *world) { w.Exclude.Commands = []string{"ap?"}; w.o.Excluded = "excluded: command app" }, "", ExemptExclude},
		{"another command is excluded", func(w *world) { w.Exclude.Commands = []string{"web"} }, "ratfd", NotExempt},
		{"its neighbour in the namespace is excluded", func(w *world) { w.Exclude.Commands = []string{"web"}; w.o.Excluded = "excluded: command web" }, "ra", ExemptExclude},
		{"another holder is excluded", func(w *world) {
			w.Exclude.Commands, w.h.Owner, w.o.Excluded = []string{"kept-*"}, shared("kept-child", 33), "excluded: command kept-child"
		}, "", ExemptExclude},
		{"another holder is of another workload, which nobody excludes", func(w *world) { w.Exclude.Commands, w.h.Owner = []string{"x"}, shared("worker", 33) }, "ratfd", NotExempt},
		{"another holder is of a user that is excluded", func(w *world) {
			w.Exclude.Users, w.h.Owner, w.h.Users = []string{"post*"}, shared("worker", 70), map[uint32]string{70: "postgres"}
		}, "tfd", ExemptExclude},
		{"another holder is of a user without a name, users are excluded", func(w *world) { w.Exclude.Users, w.h.Owner = []string{"postgres"}, shared("worker", 70) }, "tfd", ExemptUnknown},
		{"another holder is in a pod that is excluded", func(w *world) {
			o := shared("worker", 33)
			o.Others[0].PodName, o.Others[0].Workload = "db-0", proc.Workload{Kind: proc.KindPod, PodUID: "u"}
			w.Exclude.Pods, w.h.Owner = []string{"db-*"}, o
		}, "tfd", ExemptExclude},
		{"another holder is in a pod without a name, pods are excluded", func(w *world) {
			o := shared("worker", 33)
			o.Others[0].Workload = proc.Workload{Kind: proc.KindPod, PodUID: "u"}
			w.Exclude.Pods, w.h.Owner = []string{"db-*"}, o
		}, "tfd", ExemptUnknown},
		{"another holder is Redis", func(w *world) { w.h.Owner, w.h.Redis = shared("redis-server", 33), "is called redis-server" }, "tfd", ExemptRedis},
		{"another holder is Redis by its name", func(w *world) { w.h.Owner = shared("redis-server", 33) }, "tfd", ExemptRedis},
		{"another holder is Redis by the config", func(w *world) { w.h.Owner, w.Watch.Servers = shared("my-store", 33), []string{"my-*"} }, "tfd", ExemptRedis},
		{"another holder changes a cluster", func(w *world) {
			w.h.Owner = shared("redis-cli", 33)
			w.h.Owner.Others[0].Process.Title = "redis-cli --cluster"
		}, "tfd", ExemptRedis},
		{"another holder is ourselves", func(w *world) { w.h.Owner = shared("redisguard", 0); w.h.Owner.Others[0].Process.PID = 42 }, "tfd", ExemptOwn},
		{"not all holders are known yet", func(w *world) { w.h.Owner = unfinished() }, "ratfd", NotExempt},
		{"not all holders are known yet, and some are excluded", func(w *world) { w.h.Owner, w.Exclude.Commands = unfinished(), []string{"x"} }, "tfd", ExemptUnknown},
		{"not all holders are known yet, and one is excluded", func(w *world) { w.h.Owner, w.Exclude.Commands = unfinished(), []string{"app"} }, "tfd", ExemptExclude},
		{"not all holders are known yet, and Redis may be there", func(w *world) { w.h.Owner, w.o.Redis = unfinished(), CouldNotTell }, "t", ExemptUnknown},
		{"its user is excluded", func(w *world) { w.Exclude.Users = []string{"ww*"}; w.o.Excluded = "excluded: user 33" }, "", ExemptExclude},
		{"users are excluded, its name is unknown", func(w *world) { w.h.User, w.Exclude.Users = "", []string{"postgres"} }, "tfd", ExemptUnknown},
		{"numbers are excluded, its name is unknown", func(w *world) { w.h.User, w.Exclude.Users = "", []string{"70"} }, "ratfd", NotExempt},
		{"its pod has no name, pods are excluded", func(w *world) { w.h.Owner, w.Exclude.Pods = pod(), []string{"db-*"} }, "tfd", ExemptUnknown},
		{"nobody is connected", func(w *world) { w.o = Occupants{Redis: No} }, "rat", ExemptUnknown},
		{"known by its own process", func(w *world) {
			w.o.Known, w.o.Names, w.Exclude.Pods = false, []string{"cart-0"}, []string{"x"}
		}, "ratfd", NotExempt},
		{"one of many is known", func(w *world) { w.o.Pending = true }, "rat", ExemptUnknown},
	} {
		w := world{Config: config.Default(), k: tcpstate.Connection{Inode: 4711, UID: 33}, h: Holder{Asked: true, Owner: app(), User: "www"}, o: Occupants{Redis: No, Connections: 1, Known: true}, a: Yes}
		w.Watch.Mode = config.Enforce
		tc.change(&w)
		p := New(Inputs{Config: &w.Config, Override: config.Enforce, Self: 42}, nil)
		may := ""
		for _, job := range []Job{Reap, Arm, Tune, Fence, Detour} {
			s := Subject{Occupants: &w.o, Before: w.b}
			if job == Reap || job == Arm {
				s.Connection, s.Holder, s.Opened = &w.k, &w.h, w.a
			}
			r := p.May(job, s)
			if !r.Refused() {
				may += job.String()[:1]
			} else if tc.exempt != "" && r.Exempt != tc.exempt {
				t.Errorf("%s: %v is refused as %q (%s), want %q", tc.name, job, r.Exempt, r.Why, tc.exempt)
			}
			if r.Refused() != (r.Why != "") {
				t.Errorf("%s: %v: %+v", tc.name, job, r)
			}
		}
		if may != tc.may {
			t.Errorf("%s: %q may, want %q", tc.name, may, tc.may)
		}
	}
}

// drawn are all that permits depend on, at random.
type drawn struct {
	p *Policy
	k tcpstate.Connection
	h Holder
	o Occupants
	a Answer // whether it was opened here
}

func draw(t *rapid.T) drawn {
	coin := func(what string) bool { return rapid.Bool().Draw(t, what) }
	c := config.Default()
	c.Watch.Mode = config.Enforce
	c.Tune.RedisServers = coin("redis_servers")
	if coin("excludes") {
		c.Exclude.Commands = []string{rapid.SampledFrom([]string{"app", "web"}).Draw(t, "excluded")}
	}
	d := drawn{p: New(Inputs{Config: &c, Override: config.Enforce, Self: 42}, nil)}
	if coin("socket") {
		d.k.Inode = 7
	}
	d.a = rapid.SampledFrom([]Answer{Yes, Yes, CouldNotTell, No}).Draw(t, "opened")
	d.k.MPTCP = coin("mptcp")
	d.h.Asked = coin("asked")
	if d.h.Asked && coin("owner") {
		d.h.Owner = app()
	}
	if d.h.Owner != nil {
		d.h.Owner.Complete = coin("complete")
		for range rapid.IntRange(0, 3).Draw(t, "others") {
			d.h.Owner.Others = append(d.h.Owner.Others, &proc.Owner{Process: proc.Process{
				PID: rapid.SampledFrom([]int{5, 42}).Draw(t, "other pid"), Comm: rapid.SampledFrom([]string{"app", "web", "x"}).Draw(t, "other"), UID: 33,
			}})
		}
		if coin("redis") {
			d.h.Redis = "listens"
		}
	}
	d.o.Redis = rapid.SampledFrom([]Answer{CouldNotTell, No, Yes}).Draw(t, "namespace")
	if d.o.Redis != No && coin("why") {
		d.o.RedisWhy = "speaks"
	}
	d.o.AddConnection(d.p, &d.h, 0)
	if coin("neighbour") {
		d.o.AddConnection(d.p, &Holder{Asked: coin("neighbour asked"), Owner: &proc.Owner{Process: proc.Process{PID: 5, Comm: "web"}}}, 0)
	}
	return d
}

func (d *drawn) subject(job Job) Subject {
	s := Subject{Occupants: &d.o}
	if job == Reap || job == Arm {
		s.Connection, s.Holder, s.Opened = &d.k, &d.h, d.a
	}
	return s
}

// TestNobodyIsTouchedForWantOfKnowledge: whatever is not known does not let any job do
// more than it might if it were known, whichever way that would turn out; and what is
// known to be Redis or excluded is never touched.
func TestNobodyIsTouchedForWantOfKnowledge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := draw(t)
		for _, job := range []Job{Reap, Arm, Tune, Fence, Detour} {
			may := !d.p.May(job, d.subject(job)).Refused()
			if !may {
				continue
			}
			connection := job == Reap || job == Arm
			switch {
			case (job == Fence || job == Detour) && d.o.Redis != No:
				t.Fatalf("%v where Redis may be: %+v", job, d.o)
			case job == Tune && (d.o.Redis == Yes || d.o.Redis == CouldNotTell && d.o.RedisWhy != "") && !d.p.Config.Tune.RedisServers:
				t.Fatalf("tune where Redis is: %+v", d.o)
			case connection && d.a != Yes:
				t.Fatalf("%v of one that was not opened here, or nobody knows: %v", job, d.a)
			case connection && (d.h.Redis != "" || d.k.Inode == 0 || d.k.MPTCP || !d.h.Asked):
				t.Fatalf("%v: %+v %+v", job, d.k, d.h)
			case connection && d.h.Owner == nil && (d.o.Redis != No || d.p.Excludes()):
				t.Fatalf("%v without an owner: %+v", job, d.o)
			case connection && d.h.Unknown() != "" && (d.o.Redis != No || d.p.Excludes()):
				t.Fatalf("%v without all owners: %+v", job, d.o)
			case connection && slices.ContainsFunc(slices.Collect(d.h.Processes()), func(o *proc.Owner) bool {
				return o.Process.PID == d.p.Self || slices.Contains(d.p.Config.Exclude.Commands, o.Process.Comm)
			}):
				t.Fatalf("%v of the excluded, or of our own: %+v", job, d.h)
			case !connection && d.o.Excluded != "":
				t.Fatalf("%v beside the excluded: %+v", job, d.o)
			}
			// What is permitted stays so when more is known in its favour, and every
			// mode below enforce takes it away.
			for _, m := range []config.Mode{config.Off, config.Observe} {
				c := *d.p.Config
				c.Mode = m
				in := d.p.Inputs
				in.Config = &c
				q := New(in, nil)
				if r := q.Permit(job, d.subject(job), &Watched{Mode: config.Enforce}); !r.Refused() {
					t.Fatalf("%v acts in mode %v", job, m)
				}
			}
		}
	})
}

func TestOccupants(t *testing.T) {
	p := enforcing(func(c *config.Config) { c.Exclude.Commands = []string{"backup"} })
	cart := Holder{Asked: true, Owner: &proc.Owner{Process: proc.Process{PID: 5, Comm: "app"}, PodNamespace: "shop", PodName: "cart-0", Complete: true}}
	backup := Holder{Asked: true, Owner: &proc.Owner{Process: proc.Process{PID: 6, Comm: "backup"}, Workload: proc.Workload{Unit: "b.service"}, Complete: true}}
	var o Occupants
	o.AddConnection(p, &Holder{}, 0)
	if !o.Pending || o.Known {
		t.Errorf("%+v", o)
	}
	o.AddConnection(p, &cart, 0)
	o.AddConnection(p, &cart, 0)
	if o.Excluded != "" || !o.Known || strings.Join(o.Names, " ") != "shop cart-0" {
		t.Errorf("%+v", o)
	}
	o.AddConnection(p, &backup, 0)
	if o.Connections != 4 || o.Excluded != "excluded: command backup" || len(o.Names) != 3 {
		t.Errorf("%+v", o)
	}
	// A process that is found there is no connection.
	var found Occupants
	found.AddProcess(p, &cart)
	if found.Connections != 0 || found.Known || len(found.Names) != 2 {
		t.Errorf("%+v", found)
	}
	found.Redis = No
	o.Add(&found)
	if o.Redis != No || o.Connections != 4 || len(o.Names) != 3 || o.Equal(&found) || !found.Equal(&found) {
		t.Errorf("%+v", o)
	}
}
