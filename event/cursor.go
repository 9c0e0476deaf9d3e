package event

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Cursor is a place in the events: after Seq, in the run of the daemon that Epoch
// names.
type Cursor struct {
	Epoch string
	Seq   uint64
}

func (c Cursor) String() string { return c.Epoch + "-" + strconv.FormatUint(c.Seq, 10) }

// maxCursor bounds the text of a cursor.
const maxCursor = 64

// ParseCursor reads what String has written.
func ParseCursor(s string) (Cursor, error) {
	if len(s) > maxCursor {
		return Cursor{}, errors.New("cannot read cursor: it is too long")
	}
	epoch, seq, ok := strings.Cut(s, "-")
	if !ok || epoch == "" {
		return Cursor{}, fmt.Errorf("cannot read cursor %q: it is not of the form <epoch>-<number>", s)
	}
	for _, c := range []byte(epoch) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return Cursor{}, fmt.Errorf("cannot read cursor %q: its epoch has other characters than digits and small letters", s)
		}
	}
	n, err := strconv.ParseUint(seq, 10, 64)
	if err != nil || seq != strconv.FormatUint(n, 10) {
		return Cursor{}, fmt.Errorf("cannot read cursor %q: what follows the epoch is no number", s)
	}
	return Cursor{epoch, n}, nil
}
