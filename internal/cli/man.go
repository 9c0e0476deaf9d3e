package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/internal/paths"
)

// newManCommand writes the man pages, from the same texts as --help. It is for
// packaging, so the help does not list it.
func newManCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "Write the man pages into a directory",
		Long:   `Man writes a page for each command into DIR, which is made if it is not there.`,
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fmt.Errorf("cannot write man pages: %w", err)
			}
			return writeMan(cmd.Root(), args[0])
		},
	}
}

// writeMan writes the page of cmd and those of the commands below it.
func writeMan(cmd *cobra.Command, dir string) error {
	file := filepath.Join(dir, manName(cmd)+".1")
	if err := os.WriteFile(file, []byte(manPage(cmd)), 0o644); err != nil {
		return fmt.Errorf("cannot write man page: %w", err)
	}
	for _, sub := range manned(cmd) {
		if err := writeMan(sub, dir); err != nil {
			return err
		}
	}
	return nil
}

// manned are the commands below cmd that have a page. What completion is for each
// shell tells its own help.
func manned(cmd *cobra.Command) (list []*cobra.Command) {
	if cmd.Name() == "completion" {
		return nil
	}
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "help" {
			list = append(list, sub)
		}
	}
	return list
}

func manName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// manPage is the page of cmd in the language of man(7). It has no date, so that the
// same source gives the same page.
func manPage(cmd *cobra.Command) string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p(`.TH %s 1 "" redisguard "redisguard manual"`, strings.ToUpper(roff(manName(cmd))))
	p(".SH NAME\n%s \\- %s", roff(manName(cmd)), roff(lowerFirst(cmd.Short)))
	p(".SH SYNOPSIS")
	use := roff(cmd.UseLine())
	if !cmd.Runnable() || cmd.HasAvailableSubCommands() {
		use = roff(cmd.CommandPath() + " command")
	}
	p(".B %s", use)
	p(".SH DESCRIPTION")
	for i, paragraph := range strings.Split(strings.TrimSpace(or(cmd.Long, cmd.Short+".")), "\n\n") {
		if i > 0 {
			p(".PP")
		}
		for line := range strings.Lines(paragraph) {
			p("%s", roff(strings.TrimSpace(line)))
		}
	}
	if subs := manned(cmd); len(subs) > 0 {
		p(".SH COMMANDS")
		for _, sub := range subs {
			p(".TP\n.BR %s (1)\n%s.", roff(manName(sub)), roff(sub.Short))
		}
	}
	if cmd.HasAvailableLocalFlags() {
		p(".SH OPTIONS")
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Hidden {
				return
			}
			name, usage := pflag.UnquoteUsage(f)
			words := "--" + f.Name
			if f.Shorthand != "" {
				words = "-" + f.Shorthand + ", " + words
			}
			p(".TP\n.B %s", roff(words))
			if name != "" {
				b.WriteString(".I " + roff(name) + "\n")
			}
			p("%s", roff(upperFirst(usage)+"."))
		})
	}
	if !cmd.HasParent() {
		p(".SH ENVIRONMENT")
		p(".TP\n.B %s\nThe socket on which the daemon is asked.", envSocket)
		p(".TP\n.B %s\nThe socket on which the daemon is told to act.", envAdminSocket)
		p(".TP\n.B NO_COLOR\nIf it is set, nothing is coloured.")
		p(".SH FILES")
		for _, f := range [][2]string{
			{paths.Config, "The config; redisguard.toml of the distribution explains every key."},
			{v1.DefaultSocket, "The socket to ask on."},
			{v1.DefaultAdminSocket, "The socket to act on."},
			{paths.OffSwitch, "The off switch: while it is there, every job is off."},
		} {
			p(".TP\n.I %s\n%s", roff(f[0]), roff(f[1]))
		}
	}
	p(".SH EXIT STATUS")
	p("0 fine, 1 failed, 2 wrong usage, 3 findings, 4 the daemon cannot be reached, 5 not permitted.")
	if cmd.HasParent() {
		p(".SH SEE ALSO\n.BR %s (1)", roff(manName(cmd.Parent())))
	}
	return b.String()
}

// roff escapes what means something to roff.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "\n", " ").Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}

func lowerFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}

func upperFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
