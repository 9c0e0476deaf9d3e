package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"

	"github.com/spf13/cobra"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/client"
)

// The variables that name the daemon's sockets where no flag does.
const (
	envSocket      = "REDISGUARD_SOCKET"
	envAdminSocket = "REDISGUARD_ADMIN_SOCKET"
)

// daemonAt is how a command reaches the daemon.
type daemonAt struct {
	socket, admin string
	acts          bool // the command acts: it needs the admin socket
}

// socketFlag adds --socket to a command that asks.
func (d *daemonAt) socketFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&d.socket, "socket", "", "the daemon's `SOCKET` (default "+v1.DefaultSocket+")")
}

// adminFlag adds --admin-socket to a command that acts.
func (d *daemonAt) adminFlag(cmd *cobra.Command) {
	d.acts = true
	cmd.Flags().StringVar(&d.admin, "admin-socket", "", "the daemon's admin `SOCKET` (default "+v1.DefaultAdminSocket+")")
}

func (d *daemonAt) client() *client.Client {
	return client.New(client.Config{
		Socket:      or(d.socket, os.Getenv(envSocket)),
		AdminSocket: or(d.admin, os.Getenv(envAdminSocket)),
	})
}

// failed turns an error of the client into one with exit code and remedy. what is
// what could not be done: "show the status".
func (d *daemonAt) failed(what string, err error) error {
	e := &exitError{code: ExitFailed, err: fmt.Errorf("cannot %s: %w", what, err)}
	answer, answered := errors.AsType[*client.Error](err)
	switch {
	case errors.Is(err, fs.ErrPermission), answered && answer.Status == http.StatusForbidden:
		e.code = ExitNotPermitted
		e.remedy = "ask as root"
		if d.acts {
			e.remedy = "only root on the host may act, and the group that [api] names"
		}
	case errors.Is(err, client.ErrUnreachable):
		e.code = ExitNoDaemon
		flag := "--socket"
		if d.acts {
			flag = "--admin-socket"
		}
		e.remedy = "the daemon is not running: start it with systemctl start redisguard, or by hand with redisguard run (if its socket is elsewhere, name it with " + flag + ")"
	}
	return e
}

// completeWords has the shell offer words for a flag.
func completeWords[T ~string](cmd *cobra.Command, flag string, words []T) {
	list := make([]cobra.Completion, len(words))
	for i, w := range words {
		list[i] = string(w)
	}
	// It fails only for a flag that is not there or has words already; a script
	// tests that the words are offered.
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(list, cobra.ShellCompDirectiveNoFileComp))
}

// jsonFlag adds --json.
func jsonFlag(cmd *cobra.Command, asJSON *bool) {
	cmd.Flags().BoolVar(asJSON, "json", false, "write JSON")
}
