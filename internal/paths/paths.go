// Package paths holds the places on a node that more than one part of redisguard, its
// documents or its packages must agree on.
package paths

import "path/filepath"

const (
	// Config is the config file that the daemon reads where it is given none.
	Config = "/etc/redisguard/redisguard.toml"
	// OffSwitch: while a file is there, every job is off.
	OffSwitch = "/run/redisguard-admin/disable"
	// ReadSocket and AdminSocket lie in two directories, since pods mount the
	// directory of the former.
	ReadSocket  = "/run/redisguard/redisguard.sock"
	AdminSocket = "/run/redisguard-admin/admin.sock"
	// State is the directory for what a restart of the daemon must not lose. It is on
	// a file system that a reboot empties, like everything that its files speak of, and
	// it belongs to nothing else: not the directory of a socket.
	State = "/run/redisguard-state"
)

// The files of a state directory.
func Tuned(state string) string     { return filepath.Join(state, "tuned.json") }  // original sysctls
func Mode(state string) string      { return filepath.Join(state, "mode") }        // the override of the mode
func Baselines(state string) string { return filepath.Join(state, "probes.json") } // which namespace has reached which endpoint
