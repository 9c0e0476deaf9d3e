package reply

import (
	"errors"
	"fmt"
	"strings"

	"github.com/redisguard/redisguard/resp"
)

// SentinelFlags are those of an Instance.
type SentinelFlags uint8

// The flags that matter here.
const (
	SDown SentinelFlags = 1 << iota // the Sentinel that says so gets no answer
	ODown                           // a quorum of Sentinels says so
	Disconnected
	FailoverInProgress
	Promoted
)

var sentinelFlagNames = map[string]SentinelFlags{
	"s_down": SDown, "o_down": ODown, "disconnected": Disconnected, "failover_in_progress": FailoverInProgress, "promoted": Promoted,
}

// Has reports whether all of g are set.
func (f SentinelFlags) Has(g SentinelFlags) bool { return f&g == g }

// Instance is what a Sentinel says about a primary, a replica or another Sentinel.
type Instance struct {
	Name     string // of a primary: the master name
	Kind     Role   // by its flags
	Address  Address
	RunID    string // empty: it was never reached
	Flags    SentinelFlags
	Reported Role // by its own INFO
	// Of a primary.
	Quorum, Replicas, Sentinels int
	Epoch                       uint64
	// Of a replica.
	Primary Address
	LinkUp  bool
}

// Instances is a list of them. Dropped is how many beyond MaxNodes there were.
type Instances struct {
	Instances []Instance
	Dropped   int
}

// ParseInstances reads SENTINEL MASTERS, REPLICAS and SENTINELS.
func ParseInstances(v resp.Value) (Instances, error) {
	const what = "a list of Sentinel"
	var all Instances
	elems, err := list(v)
	if err != nil {
		return all, cannot(what, err)
	}
	for i, e := range elems {
		if len(all.Instances) == MaxNodes {
			all.Dropped = len(elems) - i
			break
		}
		x, err := parseInstance(e)
		if err != nil {
			return Instances{}, cannot(what, fmt.Errorf("entry %d: %w", i+1, err))
		}
		all.Instances = append(all.Instances, x)
	}
	return all, nil
}

// ParseInstance reads SENTINEL MASTER.
func ParseInstance(v resp.Value) (Instance, error) {
	x, err := parseInstance(v)
	if err != nil {
		return Instance{}, cannot("SENTINEL MASTER", err)
	}
	return x, nil
}

func parseInstance(v resp.Value) (x Instance, err error) {
	if err := refused(v); err != nil {
		return x, err
	}
	fields, err := pairs(v)
	if err != nil {
		return x, err
	}
	var ip, primary string
	var p, primaryPort uint16
	for i := 0; i < len(fields); i += 2 {
		key, _ := fields[i].Text()
		value := fields[i+1]
		s, ok := value.Text()
		if !ok {
			continue
		}
		switch key {
		case "name":
			x.Name = word(s)
		case "ip":
			ip = s
		case "port":
			p, err = port(s)
		case "runid":
			x.RunID = id(s)
		case "flags":
			for f := range strings.SplitSeq(s, ",") {
				x.Flags |= sentinelFlagNames[f]
				if r := role(f); r != "" {
					x.Kind = r
				}
			}
		case "role-reported":
			x.Reported = role(s)
		case "quorum":
			x.Quorum, err = count(s)
		case "num-slaves":
			x.Replicas, err = count(s)
		case "num-other-sentinels":
			x.Sentinels, err = count(s)
		case "config-epoch":
			x.Epoch, err = epoch(s)
		case "master-host":
			primary = s
		case "master-port":
			primaryPort, err = port(s)
		case "master-link-status":
			x.LinkUp = s == "ok"
		}
		if err != nil {
			return x, fmt.Errorf("%s: %w", key, err)
		}
	}
	if x.Name == "" || ip == "" {
		return x, errors.New("it has no name or no ip")
	}
	if x.Address, err = host(ip, p); err != nil {
		return x, err
	}
	if primary != "" && primary != "?" {
		x.Primary, err = host(primary, primaryPort)
	}
	return x, err
}

// ParsePrimaryAddress reads SENTINEL GET-MASTER-ADDR-BY-NAME; known is false if the Sentinel
// does not know the name.
func ParsePrimaryAddress(v resp.Value) (a Address, known bool, err error) {
	if v.Kind == resp.Null {
		return Address{}, false, nil
	}
	if a, err = hostPort(v); err != nil {
		return Address{}, false, cannot("SENTINEL GET-MASTER-ADDR-BY-NAME", err)
	}
	return a, true, nil
}

// SentinelHello is what each Sentinel publishes on __sentinel__:hello of the nodes that it
// watches, every 2 s: who it is, and whom it takes for the primary.
type SentinelHello struct {
	Sentinel     Address
	RunID        string
	CurrentEpoch uint64
	Name         string
	Primary      Address
	Epoch        uint64 // the config epoch: a higher one is newer
}

// ParseSentinelHello reads a message on __sentinel__:hello.
func ParseSentinelHello(payload string) (h SentinelHello, err error) {
	f := strings.Split(payload, ",")
	if len(f) != 8 {
		return h, cannot("a hello of Sentinel", fmt.Errorf("%d fields, not 8", len(f)))
	}
	h.Sentinel, err = hostText(f[0], f[1])
	if err == nil {
		h.Primary, err = hostText(f[5], f[6])
	}
	if err == nil {
		h.CurrentEpoch, err = epoch(f[3])
	}
	if err == nil {
		h.Epoch, err = epoch(f[7])
	}
	if h.RunID, h.Name = id(f[2]), f[4]; err == nil && (h.RunID == "" || !isWord(h.Name)) {
		err = errors.New("no run id or no name")
	}
	if err != nil {
		return SentinelHello{}, cannot("a hello of Sentinel", err)
	}
	return h, nil
}

func hostText(h, p string) (Address, error) {
	n, err := port(p)
	if err != nil {
		return Address{}, err
	}
	if h == "" {
		return Address{}, errors.New("an empty host")
	}
	return host(h, n)
}

// Events are the channels of a Sentinel to subscribe to. A list of SUBSCRIBE needs less
// rights than a pattern.
func Events() []string {
	return []string{"+switch-master", "+promoted-slave", "+config-update-from", "+sdown", "-sdown", "+odown", "-odown", "+tilt", "-tilt", "+reboot"}
}

// HelloChannel is the channel of SentinelHello, on the nodes and not on the Sentinels.
const HelloChannel = "__sentinel__:hello"

// Event is a message on one of Events. It is a hint: whoever subscribes late has missed it.
type Event struct {
	Channel string
	// Name is the master name; empty with tilt, which is about all.
	Name string
	// Kind and Address are of whom it is about. With +switch-master that is the new primary,
	// and From is the old one.
	Kind    Role
	Address Address
	From    Address
}

// ParseEvent reads a message on one of Events.
func ParseEvent(channel, payload string) (e Event, err error) {
	if e.Channel = channel; len(payload) > 8*maxName {
		return Event{}, cannot("a message of Sentinel", errors.New("too long"))
	}
	f := strings.Fields(payload)
	switch {
	case channel == "+tilt" || channel == "-tilt":
		return e, nil
	case channel == "+switch-master" && len(f) == 5:
		e.Name, e.Kind = f[0], RolePrimary
		if e.From, err = hostText(f[1], f[2]); err == nil {
			e.Address, err = hostText(f[3], f[4])
		}
	case channel != "+switch-master" && len(f) >= 4:
		// <kind> <name> <ip> <port>, and unless it is a primary, @ <primary> <ip> <port>.
		e.Kind, e.Name = role(f[0]), f[1]
		if e.Address, err = hostText(f[2], f[3]); err == nil && e.Kind != RolePrimary {
			if len(f) < 6 || f[4] != "@" {
				err = errors.New("it names no primary")
			} else {
				e.Name = f[5]
			}
		}
	default:
		err = fmt.Errorf("%q", clip(payload))
	}
	if err == nil && (!isWord(e.Name) || e.Kind == "") {
		err = errors.New("it is about nobody")
	}
	if err != nil {
		return Event{}, cannot("a message on "+clip(channel), err)
	}
	return e, nil
}

// ParseMessage takes apart what a subscription brings; ok is false for what is no message,
// such as the confirmation of the subscription.
func ParseMessage(v resp.Value) (channel, payload string, ok bool) {
	if v.Kind != resp.Push && v.Kind != resp.Array || len(v.Elems) != 3 {
		return "", "", false
	}
	kind, _ := v.Elems[0].Text()
	channel, ok1 := v.Elems[1].Text()
	payload, ok2 := v.Elems[2].Text()
	return channel, payload, kind == "message" && ok1 && ok2
}
