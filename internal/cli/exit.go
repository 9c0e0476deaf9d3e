package cli

import "errors"

// exitError is an error with the exit code that it leads to and, where there is
// one, what the user can do about it. A plain error leads to ExitFailed.
type exitError struct {
	code   int
	err    error  // nil: all has been said already
	remedy string // a sentence, or ""
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func usageError(err error) error { return &exitError{code: ExitUsage, err: err} }

// exitCode ends the command with a code after it has said everything itself.
func exitCode(code int) error { return &exitError{code: code} }

// asExit gives every error its code.
func asExit(err error) *exitError {
	if e, ok := errors.AsType[*exitError](err); ok {
		return e
	}
	return &exitError{code: ExitFailed, err: err}
}
