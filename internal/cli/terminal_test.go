package cli

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	v1 "github.com/redisguard/redisguard/api/v1"
	"github.com/redisguard/redisguard/lab/labtest"
)

// onTerminal is what a terminal of that width is sent by write.
func onTerminal(t *testing.T, width uint16, write func(*os.File)) string {
	t.Helper()
	master := labtest.Must2(os.OpenFile("/dev/ptmx", os.O_RDWR, 0))(t)
	defer master.Close()
	labtest.Must(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n := labtest.Must2(unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN))(t)
	slave := labtest.Must2(os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0))(t)
	labtest.Must(t, unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: 24}))
	var got bytes.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = got.ReadFrom(master) // ends with EIO when the other end is closed
	}()
	write(slave)
	slave.Close()
	<-done
	return strings.ReplaceAll(got.String(), "\r\n", "\n")
}

// TestOnTerminal: colours and widths are for terminals, and the words are there
// without them.
func TestOnTerminal(t *testing.T) {
	t.Setenv("NO_COLOR", "")
	now := time.Now()
	list := []v1.Finding{{
		ID: "f1", Open: true, Code: v1.CodeEndpointDown, Severity: v1.Critical, Since: now, Endpoint: "10.0.0.1:6379",
		Namespace: "cni-3f2a8c1e-1111-2222-3333-444455556666", Text: strings.Repeat("the endpoint is down: ", 10),
	}}
	write := func(f *os.File) { writeFindingsTable(f, list, now) }
	colour := regexp.MustCompile(`\x1b\[[0-9]+m`)

	got := onTerminal(t, 100, write)
	if !strings.Contains(got, "\x1b[31mcritical\x1b[0m") {
		t.Errorf("no colour on a terminal: %q", got)
	}
	for line := range strings.Lines(colour.ReplaceAllString(got, "")) {
		if n := utf8.RuneCountInString(strings.TrimSpace(line)); n > 100 {
			t.Errorf("%d columns of 100: %s", n, line)
		}
	}
	t.Setenv("NO_COLOR", "1")
	plain := onTerminal(t, 100, write)
	if strings.Contains(plain, "\x1b") || plain != colour.ReplaceAllString(got, "") {
		t.Errorf("with NO_COLOR: %q", plain)
	}
	var file bytes.Buffer
	writeFindingsTable(&file, list, now)
	if strings.Contains(file.String(), "\x1b") || !strings.Contains(file.String(), list[0].Text) {
		t.Errorf("in a file: %q", file.String())
	}
}
