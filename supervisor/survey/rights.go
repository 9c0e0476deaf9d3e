package survey

import (
	"log/slog"

	"github.com/redisguard/redisguard/internal/rights"
	"github.com/redisguard/redisguard/policy"
	"github.com/redisguard/redisguard/tcpstate"
)

// Missing says what the jobs of a daemon lack for want of rights, and logs it.
func Missing(log *slog.Logger, caps tcpstate.Capabilities) map[policy.Job]string {
	lack := map[policy.Job]string{}
	for _, r := range rights.List() {
		if r.Until != "" {
			continue // doctor knows whether this kernel still asks for it
		}
		has, err := r.Held()
		switch {
		case err != nil:
			log.Warn("could not tell what is permitted", "error", err)
		case !has:
			log.Warn("a privilege is missing: "+r.Lost, "missing", r.Name, "remedy", "give redisguard "+r.Name)
			// Where the kernel cannot destroy, shutting down takes another one.
			if r.Job == rights.Reap && caps.Destroy.Support != tcpstate.NotSupported {
				lack[policy.Reap] = r.Name
			}
		}
	}
	return lack
}
