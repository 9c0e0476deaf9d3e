package doctor

import (
	"context"
	"fmt"

	"github.com/redisguard/redisguard/keepalive"
	"github.com/redisguard/redisguard/view"
)

// Arming is how the watched connections of the node stand.
type Arming struct {
	// States counts them, and Never those of which it is known that they would never
	// notice, idle, that their peer is gone.
	States map[view.ArmState]int
	Never  int
}

// checkArm tells how the connections of this node would notice, idle, that their
// peer is gone, and whether that can be changed.
func checkArm(ctx context.Context, n *node) Finding {
	if n.arming == nil {
		return Finding{Evidence: "not looked at"}
	}
	a, err := n.arming(ctx, n.config(), n.procFS(), n.finder().MountDirs)
	if err != nil {
		return cannotTell(err) // what cannot be seen, the check of namespaces says
	}
	return armFinding(&a)
}

func armFinding(a *Arming) Finding {
	n, all := a.States, 0
	for _, k := range n {
		all += k
	}
	if all == 0 {
		return Finding{Status: OK, Evidence: "no connection to a watched port"}
	}
	text := fmt.Sprintf("%d connections to watched ports: %d armed, %d would be, %d are left as their applications have them, %d exempt, %d not known yet",
		all, n[view.ArmDone], n[view.ArmPlanned], n[view.ArmLeft], n[view.ArmExempt], n[view.ArmWaiting])
	if a.Never > 0 {
		text += fmt.Sprintf("; %d would never notice, idle, that their peer is gone", a.Never)
	}
	if failed := n[view.ArmFailed]; failed > 0 {
		return Finding{Status: Warn, Evidence: fmt.Sprintf("%s; %d cannot be reached", text, failed), Remedy: "see what stands in the way: " + keepalive.Obstacle()}
	}
	return Finding{Status: OK, Evidence: text}
}
