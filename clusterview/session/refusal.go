package session

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/redisguard/redisguard/resp"
)

// What errors are, for errors.Is, where what follows from them differs.
var (
	// ErrWrongPass says that the server knows no such user with such a password: try again
	// when the password has changed, or as Backoff says.
	ErrWrongPass = errors.New("the user name or the password is wrong")
	// ErrNoAuth says that the server wants a password, and none was sent.
	ErrNoAuth = errors.New("it wants a password")
	// ErrNoPerm says that the user may not run a command: see Refusal.Command.
	ErrNoPerm = errors.New("the user may not run it")
	// ErrWithheld says that a password was not sent, as it is not safe there.
	ErrWithheld = errors.New("the password is withheld")
	// ErrNotRedis says that the peer does not speak Redis's protocol.
	ErrNotRedis = errors.New("it does not speak as Redis does")
	// ErrTLS says that there is no TLS with a server of the right name.
	ErrTLS = errors.New("no verified TLS connection")
	// ErrTimeout says that a step took longer than Config.Timeout.
	ErrTimeout = errors.New("no answer in time")
	// ErrFlood says that the peer sent more than is read of what nobody asked for.
	ErrFlood = errors.New("it sends too many messages")
	// ErrClosed says that Close was called.
	ErrClosed = errors.New("the connection is closed")
)

// Refusal is an error reply to a command.
type Refusal struct {
	// Command is its name, with the second word where that is part of it: "CLUSTER NODES".
	Command string
	// Code is the first word of the reply, such as "NOPERM", if it is one in capitals.
	Code string
	// Text is the reply, escaped and cut to some length. For a command with a password
	// it is empty, since servers quote what they do not understand.
	Text string

	kind  error  // ErrWrongPass, ErrNoAuth, ErrNoPerm or nil
	says  string // our own words where Text has none for us
	final bool   // for a handshake: asking in another way does not help
	open  bool   // for AUTH: no password is wanted
}

// Check is the error that a reply to a command is, a *Refusal, or nil.
func Check(command []string, reply resp.Value) error {
	if !reply.IsError() {
		return nil
	}
	return refusal(command, reply.Str)
}

// phrases are errors that have no code of their own, by how they begin.
var phrases = []struct {
	begins string
	r      Refusal
}{
	// Redis before 6.
	{"ERR invalid password", Refusal{kind: ErrWrongPass, final: true}},
	{"ERR Client sent AUTH, but no password is set", Refusal{open: true, says: "it wants no password"}},
	{"ERR wrong number of arguments for 'auth'", Refusal{says: "it knows no users, as Redis before 6: leave the user name empty"}},
	// Since 6.
	{"ERR AUTH <password> called without any password configured", Refusal{open: true, says: "it wants no password"}},
	{"ERR max number of clients", Refusal{final: true, says: "it has as many clients as it accepts (maxclients)"}},
	{"ERR unknown command", Refusal{says: "it does not know the command"}},
	// In capitals, but as good as a phrase.
	{"DENIED Redis is running in protected mode", Refusal{final: true, says: "it is in protected mode, and answers its own host only"}},
}

// codes are those that may be told of a command with a password: whatever else stands in
// the place of a code might be the password.
var codes = []string{"ERR", "WRONGPASS", "NOAUTH", "NOPERM", "NOPROTO", "DENIED", "LOADING", "BUSY", "MASTERDOWN", "MISCONF", "CLUSTERDOWN", "TRYAGAIN", "UNKNOWN"}

// maxWords is how much of a stranger's words is told, in bytes.
const maxWords = 200

// refusal makes an error of the text of an error reply.
func refusal(command []string, text string) *Refusal {
	r := Refusal{}
	for _, p := range phrases {
		if len(text) >= len(p.begins) && strings.EqualFold(text[:len(p.begins)], p.begins) {
			r = p.r
			break
		}
	}
	r.Command = label(command)
	r.Code, _, _ = strings.Cut(text, " ")
	secret := slices.ContainsFunc([]string{"AUTH", "HELLO"}, func(c string) bool { return len(command) > 0 && strings.EqualFold(command[0], c) })
	if secret {
		if !slices.Contains(codes, r.Code) {
			r.Code = ""
		}
	} else {
		r.Text = clean(text, maxWords)
		if r.Code == "" || len(r.Code) > 20 || strings.Trim(r.Code, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
			r.Code = ""
		}
	}
	switch r.Code {
	case "WRONGPASS":
		r.kind, r.final = ErrWrongPass, true
	case "NOAUTH":
		r.kind, r.final = ErrNoAuth, true
	case "NOPERM":
		r.kind = ErrNoPerm
	}
	return &r
}

// label is the name of a command as people say it.
func label(command []string) string {
	switch {
	case len(command) == 0:
		return ""
	case len(command) > 1 && slices.Contains([]string{"ACL", "CLIENT", "CLUSTER", "CONFIG", "PUBSUB", "SENTINEL"}, strings.ToUpper(command[0])):
		return strings.ToUpper(command[0] + " " + command[1])
	}
	return strings.ToUpper(command[0])
}

// Error says what was refused, why, and what to do.
func (r *Refusal) Error() string {
	why := r.Text
	switch {
	case r.says != "":
		why = r.says
	case r.kind == ErrNoPerm:
		why = fmt.Sprintf("%v: allow it (ACL SETUSER name +%s)", r.kind, strings.ReplaceAll(strings.ToLower(r.Command), " ", "|"))
	case r.kind != nil:
		why = r.kind.Error()
	case why == "" && r.Code != "":
		why = "it answered " + r.Code
	case why == "":
		why = "it answered with an error"
	}
	return fmt.Sprintf("cannot run %s: %s", r.Command, why)
}

// Unwrap is ErrWrongPass, ErrNoAuth, ErrNoPerm or nil.
func (r *Refusal) Unwrap() error { return r.kind }
