package doctor

import (
	"context"
	"fmt"

	"github.com/redisguard/redisguard/keepalive"
	"github.com/redisguard/redisguard/supervisor"
	"github.com/redisguard/redisguard/view"
)

// checkArm tells how the connections of this node would notice, idle, that their
// peer is gone, and whether that can be changed.
func checkArm(ctx context.Context, n *node) Finding {
	plans, _, err := supervisor.PlanArming(ctx, supervisor.Options{Config: n.config(), Proc: n.procFS(), MountDirs: n.finder().MountDirs})
	if err != nil {
		return cannotTell(err) // what cannot be seen, the check of namespaces says
	}
	return armFinding(plans)
}

func armFinding(plans []supervisor.ArmPlan) Finding {
	if len(plans) == 0 {
		return Finding{Status: OK, Evidence: "no connection to a watched port"}
	}
	n := map[view.ArmState]int{}
	never := 0
	for i := range plans {
		p := &plans[i]
		n[p.State]++
		if p.Then.Idle != 0 && !p.Now.Keepalive {
			never++
		}
	}
	text := fmt.Sprintf("%d connections to watched ports: %d armed, %d would be, %d are left as their applications have them, %d exempt, %d not known yet",
		len(plans), n[view.ArmDone], n[view.ArmPlanned], n[view.ArmLeft], n[view.ArmExempt], n[view.ArmWaiting])
	if never > 0 {
		text += fmt.Sprintf("; %d would never notice, idle, that their peer is gone", never)
	}
	if failed := n[view.ArmFailed]; failed > 0 {
		return Finding{Status: Warn, Evidence: fmt.Sprintf("%s; %d cannot be reached", text, failed), Remedy: "see what stands in the way: " + keepalive.Obstacle()}
	}
	return Finding{Status: OK, Evidence: text}
}
