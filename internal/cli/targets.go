package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/client"
	"github.com/redisguard/redisguard/internal/show"
)

func newTargetsCommand() *cobra.Command {
	var (
		d               daemonAt
		primary, asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "targets [NAME]",
		Short: "Show the Redis deployments that the config names, with their nodes",
		Long: `Targets shows each target of the config as a tree: its shards, their primary and
replicas with role, slots and health, how many connections of this node lead to each,
and what has changed last. With NAME only that one.

With --primary it prints one line for scripts: the address of the primary, name= if the
node announces a host name (which its certificate has), epoch= of the config and age= in
seconds since the last change. It fails if no primary is known.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if primary && len(args) == 0 {
				return usageError(errors.New("--primary wants the name of a target"))
			}
			c := d.client()
			defer c.Close()
			out := cmd.OutOrStdout()
			if primary {
				line, err := c.Primary(cmd.Context(), args[0])
				if err != nil {
					return d.failed("show the primary of "+show.Plain(args[0]), err)
				}
				_, err = fmt.Fprintln(out, show.Plain(line))
				return err
			}
			var list []v1.Target
			var err error
			if len(args) == 0 {
				list, err = c.Targets(cmd.Context())
			} else {
				var t v1.Target
				t, err = c.Target(cmd.Context(), args[0])
				list = append(list, t)
			}
			if err != nil {
				return d.failed("show targets", err)
			}
			if asJSON && len(args) == 1 {
				return writeJSON(out, list[0])
			}
			if asJSON {
				return writeJSON(out, list)
			}
			writeTargets(out, list, time.Now())
			return nil
		},
	}
	cmd.Flags().BoolVar(&primary, "primary", false, "print the address of the primary, for scripts")
	jsonFlag(cmd, &asJSON)
	d.socketFlag(cmd)
	return cmd
}

// writeTargets writes trees.
func writeTargets(w io.Writer, list []v1.Target, now time.Time) {
	t := table{cut: []int{5}}
	t.add("TARGET", "ROLE", "HEALTH", "CONNECTIONS", "SLOTS", "REMARKS")
	for i := range list {
		x := &list[i]
		t.add(show.Plain(x.Name), string(x.Type), string(x.State), fmt.Sprint(x.Connections), coverage(x), remarks(x, now))
		nodes := map[string]*v1.Node{}
		for j := range x.Nodes {
			nodes[x.Nodes[j].ID] = &x.Nodes[j]
		}
		shown := map[string]bool{}
		for _, s := range x.Shards {
			if n := nodes[s.Primary]; n != nil {
				shown[n.ID] = true
				addNode(&t, "  ", n)
			}
			for _, id := range s.Replicas {
				if n := nodes[id]; n != nil {
					shown[id] = true
					addNode(&t, "    ", n)
				}
			}
		}
		for j := range x.Nodes {
			if n := &x.Nodes[j]; !shown[n.ID] {
				addNode(&t, "  ", n)
			}
		}
		for _, s := range x.Sentinels {
			t.add("  "+show.Plain(s), string(v1.RoleSentinel), "", "", "", "")
		}
		for _, p := range x.Problems {
			t.add("  !", "", "problem", "", "", show.Plain(p))
		}
	}
	t.write(w)
}

func coverage(t *v1.Target) string {
	if t.Type != v1.TargetCluster || t.State == v1.TargetUnknown {
		return ""
	}
	return fmt.Sprintf("%d of 16384", t.Covered)
}

// remarks are why a target is as it is, and what has changed.
func remarks(t *v1.Target, now time.Time) string {
	var parts []string
	if t.Why != "" {
		parts = append(parts, show.Plain(t.Why))
	}
	if t.Mode != v1.ModeEnforce {
		parts = append(parts, "mode "+string(t.Mode))
	}
	if t.Changed != nil {
		parts = append(parts, show.Age(now.Sub(*t.Changed))+" ago: "+show.Plain(t.Change))
	}
	return strings.Join(parts, "; ")
}

func addNode(t *table, indent string, n *v1.Node) {
	at := show.Plain(n.ID)
	if len(n.Endpoints) > 0 {
		at = show.Plain(n.Endpoints[0])
	}
	var parts []string
	if n.Name != "" {
		parts = append(parts, show.Plain(n.Name))
	}
	if len(n.Endpoints) > 1 {
		parts = append(parts, "also "+show.Plain(strings.Join(n.Endpoints[1:], ", ")))
	}
	if n.Loading {
		parts = append(parts, "loading")
	}
	if n.Moving != "" {
		parts = append(parts, "moving "+show.Plain(n.Moving))
	}
	if n.Detail != "" {
		parts = append(parts, show.Plain(n.Detail))
	}
	t.add(indent+at, string(n.Role), string(n.State), fmt.Sprint(n.Connections), show.Plain(n.Slots), strings.Join(parts, "; "))
}

func newSlotsCommand() *cobra.Command {
	var (
		d      daemonAt
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "slots TARGET KEY...",
		Short: "Show which node owns the slot of a key",
		Long: `Slots shows for each KEY its slot (that of the hash tag, if the key has one), the node
that owns it and its replicas. In a deployment that is no Redis Cluster the primary owns
all of them.`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c := d.client()
			defer c.Close()
			var list []v1.SlotOwner
			for _, key := range args[1:] {
				s, err := c.SlotOwner(cmd.Context(), args[0], key)
				if err != nil {
					return d.failed("show the slot of "+show.Plain(key), err)
				}
				list = append(list, s)
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), list)
			}
			t := table{}
			t.add("KEY", "SLOT", "NODE", "HEALTH", "REPLICAS")
			for _, s := range list {
				node, health := "-", "nobody owns it"
				if s.Node != nil {
					node, health = show.Plain(first(s.Node)), string(s.Node.State)
				}
				var replicas []string
				for i := range s.Replicas {
					replicas = append(replicas, show.Plain(first(&s.Replicas[i])))
				}
				t.add(show.Plain(s.Key), fmt.Sprint(s.Slot), node, health, strings.Join(replicas, " "))
			}
			t.write(cmd.OutOrStdout())
			return nil
		},
	}
	jsonFlag(cmd, &asJSON)
	d.socketFlag(cmd)
	return cmd
}

func first(n *v1.Node) string {
	if len(n.Endpoints) == 0 {
		return n.ID
	}
	return n.Endpoints[0]
}

// The words of wait --for.
const (
	forPrimary   = "primary"
	forClusterOK = "cluster-ok"
)

// waitPause is how often wait asks: what it is told is up to half a second old.
const waitPause = 250 * time.Millisecond

func newWaitCommand() *cobra.Command {
	var (
		d                daemonAt
		target, whatever string
		timeout          time.Duration
	)
	cmd := &cobra.Command{
		Use:   "wait",
		Short: "Wait until a target has a primary, or is whole",
		Long: `Wait ends when a target is as it should be: with --for primary when its primary is
known and answers, with --for cluster-ok when all of its slots are served (of what is no
Redis Cluster: when it is up). It fails when that is not so within the timeout, and waits
for a daemon that is not there yet as well.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if target == "" {
				return usageError(errors.New("--target is missing"))
			}
			if whatever != forPrimary && whatever != forClusterOK {
				return usageError(fmt.Errorf("--for %.40q is none of %s, %s", whatever, forPrimary, forClusterOK))
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			c := d.client()
			defer c.Close()
			last := errors.New("nothing was heard of it")
			for {
				t, err := c.Target(ctx, target)
				answer, answered := errors.AsType[*client.Error](err)
				switch {
				case err == nil && as(&t, whatever):
					return nil
				case err == nil:
					last = errors.New("it is " + string(t.State))
					if t.Why != "" {
						last = fmt.Errorf("it is %s: %s", t.State, show.Plain(t.Why))
					}
				case answered && answer.Status/100 == 4 && answer.Status != http.StatusTooManyRequests:
					return d.failed("wait for "+show.Plain(target), err)
				case ctx.Err() == nil:
					last = err
				}
				select {
				case <-ctx.Done():
					return fmt.Errorf("target %s is not %s within %v: %w", show.Plain(target), whatever, timeout, last)
				case <-time.After(waitPause):
				}
			}
		},
	}
	f := cmd.Flags()
	f.StringVar(&target, "target", "", "the `NAME` of a target")
	f.StringVar(&whatever, "for", forPrimary, "what to wait for: primary or `cluster-ok`")
	completeWords(cmd, "for", []string{forPrimary, forClusterOK})
	f.DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait at most")
	d.socketFlag(cmd)
	return cmd
}

// as says whether a target is as it is waited for.
func as(t *v1.Target, whatever string) bool {
	switch {
	case t.State != v1.TargetUp:
		return false
	case whatever == forClusterOK:
		return t.Type != v1.TargetCluster || t.Covered == 16384
	}
	for i := range t.Nodes {
		if n := &t.Nodes[i]; n.Role == v1.RolePrimary && n.State == v1.NodeOK {
			return true
		}
	}
	return false
}
