package resolver

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const testID = 0x1234

func header(name string, typ dnsmessage.Type, ttl uint32) dnsmessage.ResourceHeader {
	return dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET, TTL: ttl}
}

// record makes a record: address makes an A or AAAA, anything else a CNAME.
func record(owner, target string, ttl uint32) dnsmessage.Resource {
	a, err := netip.ParseAddr(target)
	switch {
	case err != nil:
		return dnsmessage.Resource{Header: header(owner, dnsmessage.TypeCNAME, ttl), Body: &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(target)}}
	case a.Is4():
		return dnsmessage.Resource{Header: header(owner, dnsmessage.TypeA, ttl), Body: &dnsmessage.AResource{A: a.As4()}}
	}
	return dnsmessage.Resource{Header: header(owner, dnsmessage.TypeAAAA, ttl), Body: &dnsmessage.AAAAResource{AAAA: a.As16()}}
}

// response is an answer to a question about A records of r.example.
func response(change func(m *dnsmessage.Message), records ...dnsmessage.Resource) []byte {
	m := dnsmessage.Message{
		Header: dnsmessage.Header{ID: testID, Response: true, RecursionAvailable: true},
		Questions: []dnsmessage.Question{{
			Name: dnsmessage.MustNewName("r.example."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET,
		}},
		Answers: records,
	}
	if change != nil {
		change(&m)
	}
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

var question = Question{Name: "r.example", Host: "r.example."}

func TestParseAnswer(t *testing.T) {
	code := func(c dnsmessage.RCode) func(*dnsmessage.Message) {
		return func(m *dnsmessage.Message) { m.RCode = c }
	}
	var chain, tooLong []dnsmessage.Resource
	for i := range maxCNAMEs {
		owner := "r.example."
		if i > 0 {
			owner = fmt.Sprintf("c%d.example.", i)
		}
		chain = append(chain, record(owner, fmt.Sprintf("c%d.example.", i+1), 100))
	}
	tooLong = append(slices.Clone(chain), record("c16.example.", "c17.example.", 100))
	slices.Reverse(chain) // their order means nothing
	for name, tt := range map[string]struct {
		msg  []byte
		want string // outcome, addresses, TTL; or the error
	}{
		"addresses":                  {response(nil, record("R.Example.", "10.0.0.2", 30), record("r.example.", "10.0.0.1", 20)), "addresses 10.0.0.2 10.0.0.1 20s"},
		"of others":                  {response(nil, record("x.example.", "10.0.0.2", 5), record("r.example.", "10.0.0.1", 20), record("r.example.", "fd00::1", 5), record("example.", "10.0.0.3", 5)), "addresses 10.0.0.1 20s"},
		"only of others":             {response(nil, record("x.example.", "10.0.0.2", 5)), "nodata"},
		"a CNAME, and its TTL":       {response(nil, record("r.example.", "X.example.", 7), record("x.example.", "10.0.0.1", 20)), "addresses 10.0.0.1 7s"},
		"beside a CNAME":             {response(nil, record("r.example.", "x.example.", 7), record("r.example.", "10.0.0.9", 20), record("x.example.", "10.0.0.1", 20)), "addresses 10.0.0.1 7s"},
		"two CNAMEs":                 {response(nil, record("r.example.", "x.example.", 7), record("r.example.", "y.example.", 7), record("x.example.", "10.0.0.1", 20), record("y.example.", "10.0.0.2", 20)), "addresses 10.0.0.1 7s"},
		"a chain":                    {response(nil, append(slices.Clone(chain), record("c16.example.", "10.0.0.1", 200))...), "addresses 10.0.0.1 1m40s"},
		"a chain that is too long":   {response(nil, tooLong...), "error a broken answer: it has more than 16 CNAMEs"},
		"a circle":                   {response(nil, record("r.example.", "x.example.", 7), record("x.example.", "r.example.", 7), record("r.example.", "10.0.0.1", 7)), "error a broken answer: its CNAMEs go round in a circle"},
		"a circle of one":            {response(nil, record("r.example.", "r.example.", 7)), "error a broken answer: its CNAMEs go round in a circle"},
		"a CNAME that leads nowhere": {response(nil, record("r.example.", "x.example.", 7)), "nodata alias"},
		"a CNAME of another name":    {response(nil, record("x.example.", "y.example.", 7)), "nodata"},
		"TTL 0":                      {response(nil, record("r.example.", "10.0.0.1", 0)), "addresses 10.0.0.1 0s"},
		"TTL below 0":                {response(nil, record("r.example.", "10.0.0.1", 1<<31)), "addresses 10.0.0.1 0s"},
		"the greatest TTL":           {response(nil, record("r.example.", "10.0.0.1", 1<<31-1)), "addresses 10.0.0.1 596523h14m7s"},
		"another class": {response(func(m *dnsmessage.Message) {
			m.Answers[0].Header.Class = dnsmessage.ClassCHAOS
		}, record("r.example.", "10.0.0.1", 20)), "nodata"},
		"NXDOMAIN, whatever it has": {response(code(dnsmessage.RCodeNameError), record("r.example.", "10.0.0.1", 20)), "nxdomain"},
		"SERVFAIL":                  {response(code(dnsmessage.RCodeServerFailure)), "servfail SERVFAIL"},
		"REFUSED":                   {response(code(dnsmessage.RCodeRefused)), "failed REFUSED"},
		"FORMERR":                   {response(code(dnsmessage.RCodeFormatError)), "failed FORMERR"},
		"NOTIMP":                    {response(code(dnsmessage.RCodeNotImplemented)), "failed NOTIMP"},
		"NOTAUTH":                   {response(code(9)), "failed RCODE 9"},
		"truncated":                 {response(func(m *dnsmessage.Message) { m.Truncated = true }, record("r.example.", "10.0.0.1", 20)), "truncated"},
		"a referral":                {response(func(m *dnsmessage.Message) { m.RecursionAvailable = false }), "failed the server does not resolve names for others"},
		"no data, from its owner":   {response(func(m *dnsmessage.Message) { m.RecursionAvailable, m.Authoritative = false, true }), "nodata"},
		"a query":                   {response(func(m *dnsmessage.Message) { m.Response = false }), "other"},
		"another id":                {response(func(m *dnsmessage.Message) { m.ID++ }), "other"},
		"another opcode":            {response(func(m *dnsmessage.Message) { m.OpCode = 4 }), "other"},
		"another name":              {response(func(m *dnsmessage.Message) { m.Questions[0].Name = dnsmessage.MustNewName("x.example.") }), "other"},
		"another type":              {response(func(m *dnsmessage.Message) { m.Questions[0].Type = dnsmessage.TypeAAAA }), "other"},
		"another class asked":       {response(func(m *dnsmessage.Message) { m.Questions[0].Class = dnsmessage.ClassANY }), "other"},
		"no question":               {response(func(m *dnsmessage.Message) { m.Questions = nil }), "other"},
		"two questions":             {response(func(m *dnsmessage.Message) { m.Questions = append(m.Questions, m.Questions[0]) }), "other"},
		"the question in capitals":  {response(func(m *dnsmessage.Message) { m.Questions[0].Name = dnsmessage.MustNewName("R.EXAMPLE.") }), "nodata"},
		"half a header":             {response(nil)[:7], "other"},
		"half a record":             {cut(response(nil, record("r.example.", "10.0.0.1", 20)), 2), "error a broken answer: "},
		"an A of three bytes":       {length(response(nil, record("r.example.", "10.0.0.1", 20)), 3), "error a broken answer: an A record has 3 bytes"},
		"records announced, absent": {cut(response(nil, record("r.example.", "10.0.0.1", 20)), 16), "error a broken answer: "},
	} {
		a, err := parseAnswer(tt.msg, testID, question)
		got := ""
		switch {
		case errors.Is(err, errOther):
			got = "other"
		case err != nil:
			got = "error " + err.Error()
		default:
			got = sayOutcome(a)
		}
		if got != tt.want && !(strings.HasSuffix(tt.want, ": ") && strings.HasPrefix(got, tt.want)) {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

// cut leaves out the end of a message.
func cut(b []byte, n int) []byte { return b[:len(b)-n] }

// length sets the length of the last record, an A.
func length(b []byte, n byte) []byte {
	b[len(b)-5] = n
	return b
}

func sayOutcome(a Answer) string {
	names := map[Outcome]string{Addresses: "addresses", NXDomain: "nxdomain", NoData: "nodata", ServFail: "servfail", Failed: "failed", Truncated: "truncated"}
	words := []string{names[a.Outcome]}
	for _, addr := range a.Addrs {
		words = append(words, addr.String())
	}
	if a.Outcome == Addresses {
		words = append(words, a.TTL.String())
	}
	if a.Alias {
		words = append(words, "alias")
	}
	if a.Err != nil {
		words = append(words, a.Err.Error())
	}
	return strings.Join(words, " ")
}

func TestParseAAAA(t *testing.T) {
	q := question
	q.IPv6 = true
	aaaa := func(m *dnsmessage.Message) { m.Questions[0].Type = dnsmessage.TypeAAAA }
	// A mapped address is the IPv4 address that it leads to.
	a, err := parseAnswer(response(aaaa, record("r.example.", "fd00::1", 20), record("r.example.", "10.0.0.1", 20), record("r.example.", "::ffff:10.0.0.2", 20)), testID, q)
	if got := sayOutcome(a); err != nil || got != "addresses fd00::1 10.0.0.2 20s" {
		t.Errorf("%s, %v", got, err)
	}
	b := response(aaaa, record("r.example.", "fd00::1", 20))
	b[len(b)-17] = 15
	if _, err := parseAnswer(b, testID, q); err == nil || !strings.Contains(err.Error(), "15 bytes") {
		t.Errorf("an AAAA of 15 bytes: %v", err)
	}
}

func FuzzParseAnswer(f *testing.F) {
	f.Add(response(nil, record("r.example.", "10.0.0.1", 20), record("r.example.", "10.0.0.2", 20)), false)
	f.Add(response(nil, record("r.example.", "x.example.", 7), record("x.example.", "10.0.0.1", 20)), false)
	f.Add(response(nil, record("r.example.", "r.example.", 7)), false)
	f.Add(response(func(m *dnsmessage.Message) { m.RCode = dnsmessage.RCodeNameError }), false)
	f.Add(response(func(m *dnsmessage.Message) { m.Truncated = true }), false)
	f.Add(response(func(m *dnsmessage.Message) { m.Questions[0].Type = dnsmessage.TypeAAAA }, record("r.example.", "::ffff:10.0.0.1", 20)), true)
	f.Fuzz(func(t *testing.T, msg []byte, v6 bool) {
		q := question
		q.IPv6 = v6
		a, err := parseAnswer(msg, testID, q)
		if err != nil {
			return
		}
		if (a.Outcome == Addresses) != (len(a.Addrs) > 0) || a.Outcome == 0 || (a.Outcome == ServFail || a.Outcome == Failed) != (a.Err != nil) {
			t.Errorf("%+v", a)
		}
		if a.TTL < 0 || a.TTL > (1<<31)*time.Second {
			t.Errorf("TTL %v", a.TTL)
		}
		if len(a.Addrs) > len(msg)/11 {
			t.Errorf("%d addresses in %d bytes", len(a.Addrs), len(msg))
		}
		for _, addr := range a.Addrs {
			if !addr.IsValid() || addr.Is4In6() || !v6 && addr.Is6() {
				t.Errorf("address %v", addr)
			}
		}
	})
}
