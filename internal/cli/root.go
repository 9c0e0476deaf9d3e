// Package cli is redisguard's command line: it reads flags, calls the packages
// that do the work, and writes for eyes or, with --json, for programs.
//
// Output goes to stdout, everything about how it went to stderr. The exit code
// says which kind of end it was; see the Exit constants.
package cli

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// Exit codes, the same for every command.
const (
	ExitOK           = 0
	ExitFailed       = 1 // it could not be done
	ExitUsage        = 2 // the command line is wrong
	ExitFindings     = 3 // it was done, and found what it was asked to look for
	ExitNoDaemon     = 4 // the daemon cannot be reached
	ExitNotPermitted = 5 // a privilege is missing
)

// Main runs the command line args, without the program's name, and returns the
// exit code. Call it on the main goroutine, locked to the main thread.
func Main(args []string) int { return execute(args, os.Stdin, os.Stdout, os.Stderr) }

// Root is the whole command tree.
func Root() *cobra.Command {
	root := &cobra.Command{
		Use:   "redisguard",
		Short: "Ends connections to Redis whose other end is gone",
		Long: `redisguard watches the TCP connections of this node's processes to Redis, and
ends those whose other end is gone, so that clients reconnect within about a
second instead of waiting for the kernel's timers, which take 15 minutes.

Commands that ask the daemon do so on its Unix socket, those that act on its admin
socket. $` + envSocket + ` and $` + envAdminSocket + ` name others than the usual ones.

Exit codes: 0 fine, 1 failed, 2 wrong usage, 3 findings, 4 the daemon cannot be
reached, 5 not permitted.`,
		// Main prints errors itself, without the usage text: the reason
		// should be the last thing on the screen.
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(
		newRunCommand(),
		newStatusCommand(),
		newTargetsCommand(),
		newSlotsCommand(),
		newWaitCommand(),
		newEndpointsCommand(),
		newConnectionsCommand(),
		newNamespacesCommand(),
		newFindingsCommand(),
		newEventsCommand(),
		newTopCommand(),
		newExplainCommand(),
		newTuneCommand(),
		newArmCommand(),
		newReapCommand(),
		newModeCommand(),
		newRestoreCommand(),
		newReplayCommand(),
		newDoctorCommand(),
		newConfigCommand(),
		newVersionCommand(),
		newManCommand(),
	)
	return root
}

// execute runs the command line on the given streams.
func execute(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := Root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError(err) })
	// What fails before a command starts is the command line's fault.
	started := false
	root.PersistentPreRun = func(*cobra.Command, []string) { started = true }
	cmd, err := root.ExecuteC()
	if err == nil {
		return ExitOK
	}
	if !started {
		err = usageError(err)
	}
	return report(stderr, cmd, err)
}

// report writes err and returns its exit code.
func report(w io.Writer, cmd *cobra.Command, err error) int {
	e := asExit(err)
	if e.err != nil {
		for line := range strings.Lines(strings.TrimRight(e.err.Error(), "\n")) {
			if line = strings.TrimRight(line, "\n"); line == "" {
				continue
			}
			fmt.Fprintf(w, "redisguard: %s\n", line)
		}
	}
	switch {
	case e.remedy != "":
		fmt.Fprintf(w, "redisguard: %s\n", e.remedy)
	case e.code == ExitUsage:
		fmt.Fprintf(w, "redisguard: see %s --help\n", cmd.CommandPath())
	}
	return e.code
}

// group makes a command that only holds others. Cobra by itself would answer a
// misspelt one with the help text and success.
func group(cmd *cobra.Command, commands ...*cobra.Command) *cobra.Command {
	cmd.AddCommand(commands...)
	cmd.SuggestionsMinimumDistance = 2
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return fmt.Errorf("cannot run %q: it needs a command", cmd.CommandPath())
		}
		msg := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			msg += "\nDid you mean this?\n\t" + strings.Join(near, "\n\t")
		}
		return fmt.Errorf("%s", msg)
	}
	cmd.RunE = func(*cobra.Command, []string) error { return nil } // not reached: Args always fails
	return cmd
}
