package daemon

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
)

func TestLogWriterKeepsOrderAndWritesAll(t *testing.T) {
	var out bytes.Buffer
	l := newLogWriter(&out)
	var want strings.Builder
	for i := range 1000 {
		fmt.Fprintf(l, "line %d\n", i)
		fmt.Fprintf(&want, "line %d\n", i)
	}
	l.close()
	if out.String() != want.String() {
		t.Errorf("%d bytes were written, want %d", out.Len(), want.Len())
	}
}

func TestLogWriterNeverWaits(t *testing.T) {
	r, w := io.Pipe() // nobody reads
	l := newLogWriter(w)
	const lines = logRoom + 100
	for range lines {
		fmt.Fprintln(l, "x")
	}
	if l.lost.Load() < 90 {
		t.Errorf("%d lines were lost, want what did not fit", l.lost.Load())
	}
	read := make(chan string)
	go func() {
		b, _ := io.ReadAll(r)
		read <- string(b)
	}()
	l.close()
	<-l.done
	w.Close()
	if got := <-read; !strings.Contains(got, "log lines were lost") {
		t.Error("nothing was said about the loss")
	}
}
