// Package recording is the form of a recording: a header, and then each input of the
// verdict core, one JSON object per line. The daemon writes them, and
// `redisguard replay` judges them again under other settings.
package recording

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/redisguard/redisguard/verdict"
)

// Version is that of the form which this program writes. It reads all from 1 on.
const Version = 2

// Header is the first line.
type Header struct {
	Version  int              `json:"redisguard_recording"`
	Started  time.Time        `json:"started"`
	Settings verdict.Settings `json:"settings"`
}

// ParseHeader reads the first line.
func ParseHeader(line []byte) (Header, error) {
	var h Header
	if err := json.Unmarshal(line, &h); err != nil || h.Version == 0 {
		return Header{}, errors.Join(errors.New("it does not begin like a recording of redisguard"), err)
	}
	if h.Version < 1 || h.Version > Version {
		return Header{}, fmt.Errorf("it has format %d, this redisguard reads 1 to %d", h.Version, Version)
	}
	return h, nil
}

// ParseInput reads a later line of a recording with this header.
func (h *Header) ParseInput(line []byte) (in verdict.Input, err error) {
	if h.Version > 1 {
		err = json.Unmarshal(line, &in)
		return in, err
	}
	// Version 1 had other names for these, and told only in words that nothing but the
	// mode kept a connection from being reaped.
	var old struct {
		verdict.Input
		Anew   bool                `json:"anew"`
		Held   []verdict.Blocked   `json:"held"`
		Others []verdict.Unrelated `json:"others"`
	}
	if err := json.Unmarshal(line, &old); err != nil {
		return verdict.Input{}, err
	}
	in = old.Input
	in.Reset, in.Blocked, in.Unrelated = old.Anew, old.Held, old.Others
	for i := range in.Appeared {
		switch a := &in.Appeared[i]; a.Why {
		case "CAP_NET_ADMIN is missing", "--dry-run", "mode is off", "mode is observe":
			a.OnlyMode = true
		}
	}
	return in, nil
}
