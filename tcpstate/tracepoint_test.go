package tcpstate

import (
	"strings"
	"testing"

	"github.com/redisguard/redisguard/internal/sys"
)

func TestParseTraceFormat(t *testing.T) {
	fs, err := sys.OpenTracefs()
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Close()
	for event, state := range map[string]string{"sock/inet_sock_set_state": "newstate", "tcp/tcp_retransmit_skb": "state"} {
		b, err := sys.ReadAt(fs, "events/"+event+"/format")
		if err != nil {
			t.Fatal(err)
		}
		text := string(b)
		f, err := parseTraceFormat(text, state)
		if err != nil || f.skaddr == 0 || f.daddr6 == 0 {
			t.Fatalf("%+v, %v of\n%s", f, err, text)
		}
		for _, bad := range []string{"", strings.Replace(text, "daddr_v6", "other", 1), strings.Replace(text, "size:16", "size:8", 1), strings.Replace(text, "offset:", "offset:-", 9)} {
			if f, err := parseTraceFormat(bad, state); err == nil {
				t.Errorf("%+v was read from\n%s", f, bad)
			}
		}
		if _, ok := f.parse(make([]byte, 16)); ok {
			t.Error("a short record was read")
		}
	}
}

func FuzzTrace(f *testing.F) {
	f.Add("field:const void * skaddr;	offset:8;	size:8;	signed:0;", make([]byte, 80))
	f.Fuzz(func(t *testing.T, text string, raw []byte) {
		format, err := parseTraceFormat(text, "state")
		if err == nil {
			format.parse(raw)
		}
	})
}
