package policy

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/redisguard/redisguard/config"
	"github.com/redisguard/redisguard/proc"
)

func process(comm string, pid int) *proc.Owner {
	return &proc.Owner{Process: proc.Process{PID: pid, Comm: comm, Exe: "/bin/" + comm, Cgroup: "/" + comm}}
}

func at(port string, o *proc.Owner, r Reply) Listener {
	return Listener{Addr: ap("0.0.0.0:" + port), Owner: o, Reply: r}
}

var (
	itself   = Reply{Asked: true, Redis: Yes, Why: "answers as Redis itself"}
	relayed  = Reply{Asked: true, Redis: No, Why: "a proxy"}
	password = Reply{Asked: true, Redis: CouldNotTell, Why: "wants a password"}
	waiting  = Reply{Pending: true, Why: "is being asked"}
)

// Who Redis itself is, by name and by answer, and what that makes of its namespace.
func TestWhoIsRedis(t *testing.T) {
	titled := process("main", 1)
	titled.Process.Title = "redis-server *:7777 [cluster]"
	named := process("my-store", 1)
	for _, tt := range []struct {
		name string
		x    *proc.Owner
		ls   []Listener
		is   Answer // the process
		wait bool
		ns   Answer // the namespace, with ls
		why  bool   // something speaks for Redis there
	}{
		{"a client, and nobody listens", process("app", 1), nil, No, false, No, false},
		{"a server by its name, and nobody listens", process("redis-server", 1), nil, Yes, false, No, false},
		{"a server by its name", process("kvrocks", 1), []Listener{at("6666", process("kvrocks", 1), Reply{})}, Yes, false, Yes, true},
		{"a server by its title", titled, []Listener{at("7777", titled, Reply{})}, Yes, false, Yes, true},
		{"a server by the config", named, []Listener{at("7777", named, Reply{})}, Yes, false, Yes, true},
		{"a web server", process("app", 1), []Listener{at("80", process("nginx", 2), Reply{})}, No, false, No, false},
		{"a web server on a port and 10000 more", process("app", 1), []Listener{at("8080", process("app", 1), relayed), at("18080", process("app", 1), relayed)}, No, false, No, false},
		{"a server by its answer", process("store", 1), []Listener{at("6379", process("store", 1), itself)}, Yes, false, Yes, true},
		{"beside a server", process("app", 2), []Listener{at("6379", process("store", 1), itself)}, No, false, Yes, true},
		{"a child of a server", process("store", 2), []Listener{at("6379", process("store", 1), itself)}, Yes, false, Yes, true},
		{"a proxy by its answer", process("python3", 1), []Listener{at("6379", process("python3", 1), relayed)}, No, false, No, false},
		{"a proxy by its name", process("haproxy", 1), []Listener{at("6379", process("haproxy", 1), Reply{})}, No, false, No, false},
		{"one that wants a password", process("x", 1), []Listener{at("6379", process("x", 1), password)}, CouldNotTell, false, CouldNotTell, true},
		{"one that is asked", process("x", 1), []Listener{at("6379", process("x", 1), waiting)}, CouldNotTell, true, CouldNotTell, true},
		{"a listener of nobody we know", process("x", 1), []Listener{at("80", nil, Reply{})}, No, false, CouldNotTell, false},
		{"the same, on a watched port", process("x", 1), []Listener{at("6379", nil, Reply{})}, No, false, CouldNotTell, true},
		{"the same, on Sentinel's", process("x", 1), []Listener{at("26379", nil, Reply{})}, No, false, CouldNotTell, true},
		{"one is known to be, another is not known", process("x", 1), []Listener{at("80", nil, Reply{}), at("6379", process("store", 2), itself), at("81", process("y", 3), password)}, No, false, Yes, true},
	} {
		p := enforcing(func(c *config.Config) { c.Watch.Servers = []string{"my-st*"} })
		is, why, wait := p.IsRedis(&tt.x.Process, tt.ls)
		if is != tt.is || wait != tt.wait || (is == Yes) != (why != "" && is == Yes) {
			t.Errorf("%s: %v (%s), pending %v, want %v, %v", tt.name, is, why, wait, tt.is, tt.wait)
		}
		var o Occupants
		o.Listen(p, tt.ls)
		if o.Redis != tt.ns || (o.RedisWhy != "") != tt.why {
			t.Errorf("%s: the namespace: %v (%s), want %v", tt.name, o.Redis, o.RedisWhy, tt.ns)
		}
	}
}

// Only where something suggests Redis, and no name has told already, a socket is asked.
func TestAsks(t *testing.T) {
	p := enforcing(func(c *config.Config) { c.Watch.Servers = []string{"my-st*"} })
	titled := process("main", 1)
	titled.Process.Title = "/opt/store *:7777"
	both := []Listener{at("8080", process("a", 1), Reply{}), at("18080", process("b", 2), Reply{})}
	same := []Listener{at("8080", process("a", 1), Reply{}), at("18080", process("a", 1), Reply{})}
	for _, tt := range []struct {
		name string
		ls   []Listener
		want bool // the first is asked
	}{
		{"a web server", []Listener{at("80", process("app", 1), Reply{})}, false},
		{"a watched port", []Listener{at("6379", process("app", 1), Reply{})}, true},
		{"Sentinel's port", []Listener{at("26379", process("app", 1), Reply{})}, true},
		{"a title that names the port", []Listener{at("7777", titled, Reply{})}, true},
		{"a title that names another port", []Listener{at("7778", titled, Reply{})}, false},
		{"a port and its cluster bus", same, true},
		{"the same of two processes", both, false},
		{"a server by name", []Listener{at("6379", process("redis-server", 1), Reply{})}, false},
		{"a server by the config", []Listener{at("6379", process("my-store", 1), Reply{})}, false},
		{"a proxy by name", []Listener{at("6379", process("envoy", 1), Reply{})}, false},
		{"of nobody we know", []Listener{at("6379", nil, Reply{})}, false},
	} {
		if got := p.Asks(&tt.ls[0], tt.ls); (got != "") != tt.want {
			t.Errorf("%s: %q", tt.name, got)
		}
	}
}

// What [exclude] names is not asked, and so may be Redis; others are.
func TestTheExcludedAreNotAsked(t *testing.T) {
	p := enforcing(func(c *config.Config) { c.Exclude.Commands, c.Exclude.Users = []string{"kept"}, []string{"70"} })
	kept, user := process("kept", 1), process("x", 1)
	user.Process.UID = 70
	for _, x := range []*proc.Owner{kept, user} {
		l := at("6379", x, Reply{})
		if r, leave := p.LeaveUnasked(&l); !leave || r.Redis != CouldNotTell || r.Pending || r.Why == "" {
			t.Errorf("%+v: %+v", x, r)
		}
	}
	l := at("6379", process("app", 1), Reply{})
	if r, leave := p.LeaveUnasked(&l); leave {
		t.Errorf("%+v", r)
	}
}

func TestIdentify(t *testing.T) {
	x := proc.Process{PID: 4711, Inner: 1, Exe: "/opt/my-store", Title: "/opt/link *:6379"}
	for _, tt := range []struct {
		name string
		said Said
		want Answer
	}{
		{"itself", Said{"/data/my-store", 1, time.Minute}, Yes},
		{"itself, started by a link", Said{"/opt/link", 1, time.Minute}, Yes},
		{"itself, and the clock was set", Said{"/opt/my-store", 1, time.Hour}, Yes},
		{"itself, whose pid we see otherwise", Said{"/opt/my-store", 9, time.Minute}, Yes},
		{"one of another name, relayed", Said{"/usr/bin/redis-server", 17, time.Hour}, No},
		{"one that is pid 1, too", Said{"/usr/bin/redis-server", 1, time.Hour}, No},
		{"one that is as old, too", Said{"/usr/bin/redis-server", 17, time.Minute}, No},
		{"one that is pid 1 and as old, too", Said{"/usr/bin/redis-server", 1, time.Minute}, CouldNotTell},
		{"one of the same name elsewhere", Said{"/opt/my-store", 9, time.Hour}, CouldNotTell},
		{"without its program", Said{"", 1, time.Minute}, Yes},
		{"without its program, another", Said{"", 9, time.Hour}, No},
		{"without its program, half", Said{"", 1, time.Hour}, CouldNotTell},
		{"nothing", Said{}, CouldNotTell},
	} {
		if got, why := Identify(&tt.said, &x, time.Minute+2*time.Second); got != tt.want || why == "" {
			t.Errorf("%s: %v (%s), want %v", tt.name, got, why, tt.want)
		}
	}
}

// Whatever the answers are: a process whose name says that it is a server is one, a known
// proxy never is, and no other is without an answer that says so; and a namespace in which
// one listens that is, is never said to have none.
func TestNoPortMakesRedis(t *testing.T) {
	owners := []*proc.Owner{process("redis-server", 1), process("haproxy", 2), process("app", 3), process("app", 4), process("store", 5), nil}
	rapid.Check(t, func(t *rapid.T) {
		p := enforcing(nil)
		ls := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Listener {
			return at(rapid.SampledFrom([]string{"80", "6379", "8080", "18080", "26379"}).Draw(t, "port"), rapid.SampledFrom(owners).Draw(t, "owner"),
				rapid.SampledFrom([]Reply{{}, itself, relayed, password, waiting}).Draw(t, "reply"))
		}), 0, 5).Draw(t, "listeners")
		var o Occupants
		o.Listen(p, ls)
		for _, x := range owners {
			if x == nil {
				continue
			}
			is, _, _ := p.IsRedis(&x.Process, ls)
			said, listens := false, false
			for _, l := range ls {
				if l.Owner != nil && l.Owner.Process.Comm == x.Process.Comm {
					said = said || l.Reply.Redis == Yes
					listens = listens || l.Owner == x
				}
			}
			switch {
			case x.Process.Comm == "redis-server" && is != Yes, x.Process.Comm == "haproxy" && is != No:
				t.Fatalf("%s: %v", x.Process.Comm, is)
			case x.Process.Comm != "redis-server" && is == Yes && !said:
				t.Fatalf("%s is Redis, though nobody said so: %+v", x.Process.Comm, ls)
			case listens && is == Yes && o.Redis != Yes, listens && is == CouldNotTell && o.Redis == No:
				t.Fatalf("%s is %v, and its namespace %v", x.Process.Comm, is, o.Redis)
			}
		}
	})
}
