package tcpstate

import (
	"testing"
	"time"
)

func TestStalled(t *testing.T) {
	const ms = time.Millisecond
	heard := func(ago time.Duration, i Info) Info {
		i.LastAckRecv, i.LastDataRecv = ago, ago+time.Second
		return i
	}
	for _, tt := range []struct {
		name       string
		c          Connection
		since      time.Duration
		unanswered int
		ok         bool
	}{
		{name: "idle", c: Connection{State: Established, HasInfo: true, Info: heard(time.Hour, Info{RTO: 200 * ms})}},
		{name: "data on its way, not late yet", c: Connection{State: Established, Timer: TimerRetransmit, Expires: 150 * ms, HasInfo: true,
			Info: heard(time.Hour, Info{RTO: 200 * ms, Unacked: 1, TotalRetrans: 7})}},
		{name: "one timeout, after an hour of idleness", c: Connection{State: Established, Timer: TimerRetransmit, Retrans: 1, Expires: 300 * ms, HasInfo: true,
			Info: heard(time.Hour, Info{RTO: 400 * ms, Backoff: 1, Unacked: 1})}, since: 300 * ms, unanswered: 1, ok: true},
		{name: "three timeouts", c: Connection{State: Established, Timer: TimerRetransmit, Retrans: 3, Expires: 1600 * ms, HasInfo: true,
			Info: heard(time.Hour, Info{RTO: 1600 * ms, Backoff: 3, Unacked: 2})}, since: 1400 * ms, unanswered: 3, ok: true},
		{name: "never longer than the peer was silent", c: Connection{State: Established, Timer: TimerRetransmit, Retrans: 3, Expires: 0, HasInfo: true,
			Info: heard(900*ms, Info{RTO: 1600 * ms, Backoff: 3, Unacked: 2})}, since: 900 * ms, unanswered: 3, ok: true},
		{name: "the backoff at its cap", c: Connection{State: Established, Timer: TimerRetransmit, Retrans: 14, Expires: 120 * time.Second, HasInfo: true,
			Info: heard(time.Hour, Info{RTO: 120 * time.Second, Backoff: 14, Unacked: 2})}, since: 204600*ms + 4*120*time.Second, unanswered: 14, ok: true},
		{name: "everything acknowledged since", c: Connection{State: Established, Timer: TimerRetransmit, Retrans: 2, HasInfo: true,
			Info: heard(1*ms, Info{RTO: 200 * ms})}},
		{name: "a kernel without TCP_INFO", c: Connection{State: Established, Timer: TimerRetransmit, Retrans: 2}, unanswered: 2, ok: true},
		{name: "a closed window that is answered", c: Connection{State: Established, Timer: TimerZeroWindow, HasInfo: true,
			Info: heard(20*time.Second, Info{RTO: 200 * ms})}},
		{name: "a window probe on its way", c: Connection{State: Established, Timer: TimerZeroWindow, Retrans: 1, HasInfo: true,
			Info: heard(20*time.Second, Info{RTO: 200 * ms, Probes: 1})}},
		{name: "window probes unanswered", c: Connection{State: Established, Timer: TimerZeroWindow, Retrans: 4, HasInfo: true,
			Info: heard(20*time.Second, Info{RTO: 200 * ms, Probes: 4})}, since: 20 * time.Second, unanswered: 4, ok: true},
		{name: "keepalive probes unanswered", c: Connection{State: Established, Timer: TimerKeepalive, Retrans: 1, HasInfo: true,
			Info: heard(15*time.Second, Info{RTO: 200 * ms})}, since: 15 * time.Second, unanswered: 1, ok: true},
		{name: "SYN just sent", c: Connection{State: SynSent, Timer: TimerRetransmit, HasInfo: true, Info: Info{RTO: time.Second, Unacked: 1}}},
		{name: "SYNs at an even pace (6.5)", c: Connection{State: SynSent, Timer: TimerRetransmit, Retrans: 3, Expires: 500 * ms, HasInfo: true,
			Info: Info{RTO: time.Second, Unacked: 1}}, since: 3500 * ms, unanswered: 3, ok: true},
		{name: "SYNs with backoff", c: Connection{State: SynSent, Timer: TimerRetransmit, Retrans: 2, Expires: 3 * time.Second, HasInfo: true,
			Info: Info{RTO: 4 * time.Second, Backoff: 2, Unacked: 1}}, since: 4 * time.Second, unanswered: 2, ok: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			since, unanswered, ok := tt.c.Stalled()
			if since != tt.since || unanswered != tt.unanswered || ok != tt.ok {
				t.Errorf("Stalled() = %v, %d, %v; want %v, %d, %v", since, unanswered, ok, tt.since, tt.unanswered, tt.ok)
			}
		})
	}
}
