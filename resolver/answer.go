package resolver

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Question is one query to one server.
type Question struct {
	Name    string // whose addresses are wanted
	Host    string // the absolute name that is asked for, folded, with its last dot
	IPv6    bool   // AAAA, else A
	Server  netip.AddrPort
	TCP     bool
	Timeout time.Duration
	serial  uint64
}

func (q Question) recordType() dnsmessage.Type {
	if q.IPv6 {
		return dnsmessage.TypeAAAA
	}
	return dnsmessage.TypeA
}

// Outcome is what came of a query.
type Outcome uint8

// Outcomes, those that tell less of a name last. Where the candidates of a search end
// in different ways, the last of these is that of the search.
const (
	Addresses Outcome = iota + 1
	NXDomain          // the name does not exist
	NoData            // it has no address of the family that was asked for
	ServFail          // the server could not find out
	Failed            // no answer, REFUSED or another error, or nonsense
	Truncated         // ask again over TCP
)

// Answer is what came of a Question.
type Answer struct {
	Question Question
	Outcome  Outcome
	Addrs    []netip.Addr  // if Outcome is Addresses: at least one, may repeat
	TTL      time.Duration // of Addresses: the least of all records on the way
	Alias    bool          // of NoData: there is a CNAME, which leads to no address
	Ignored  int           // messages that were no answer to the question
	Err      error         // with ServFail and Failed: the cause
}

// What an answer may be is bounded by 64 KiB, the length of a DNS message. No resolver
// follows more than 16 CNAMEs (BIND's limit), so no answer has more.
const maxCNAMEs = 16

// errOther says that a message is no answer to the question.
var errOther = errors.New("an answer to another question")

// packQuery makes the message of a question.
func packQuery(id uint16, q Question) ([]byte, error) {
	name, err := dnsmessage.NewName(q.Host)
	if err != nil {
		return nil, err
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: name, Type: q.recordType(), Class: dnsmessage.ClassINET}},
	}
	return m.Pack()
}

// parseAnswer reads the answer to a question. Its error is errOther, or says that the
// message is broken though it answers the question.
func parseAnswer(msg []byte, id uint16, q Question) (a Answer, err error) {
	a.Question = q
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || !h.Response || h.ID != id || h.OpCode != 0 {
		return a, errOther
	}
	question, err := p.Question()
	if err != nil || Fold(question.Name.String()) != q.Host || question.Type != q.recordType() || question.Class != dnsmessage.ClassINET {
		return a, errOther
	}
	if _, err := p.Question(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		return a, errOther
	}
	switch {
	case h.RCode == dnsmessage.RCodeNameError:
		a.Outcome = NXDomain
		return a, nil
	case h.RCode == dnsmessage.RCodeServerFailure:
		a.Outcome, a.Err = ServFail, errors.New("SERVFAIL")
		return a, nil
	case h.RCode != dnsmessage.RCodeSuccess:
		a.Outcome, a.Err = Failed, errors.New(rcodeName(h.RCode))
		return a, nil
	case h.Truncated:
		a.Outcome = Truncated
		return a, nil
	}
	records, err := parseRecords(&p, q)
	if err != nil {
		return a, fmt.Errorf("a broken answer: %w", err)
	}
	if len(records.addrs) == 0 && len(records.cnames) == 0 && !h.Authoritative && !h.RecursionAvailable {
		// A referral: it speaks of other servers, not of the name.
		a.Outcome, a.Err = Failed, errors.New("the server does not resolve names for others")
		return a, nil
	}
	return records.follow(a)
}

// rcodeName is the name of RFC 1035 and 6895, which is what other tools print.
func rcodeName(c dnsmessage.RCode) string {
	switch c {
	case dnsmessage.RCodeFormatError:
		return "FORMERR"
	case dnsmessage.RCodeNotImplemented:
		return "NOTIMP"
	case dnsmessage.RCodeRefused:
		return "REFUSED"
	}
	return fmt.Sprintf("RCODE %d", c)
}

// records are those of an answer section that may matter.
type records struct {
	cnames map[string]cname // by owner
	addrs  []addressRecord
}

type cname struct {
	target string
	ttl    uint32
}

type addressRecord struct {
	owner string
	addr  netip.Addr
	ttl   uint32
}

func parseRecords(p *dnsmessage.Parser, q Question) (r records, err error) {
	r.cnames = map[string]cname{}
	last := q.Host // records of one owner stand together: one string for all
	for {
		h, err := p.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return r, nil
		}
		if err != nil {
			return r, err
		}
		if h.Class != dnsmessage.ClassINET || h.Type != dnsmessage.TypeCNAME && h.Type != q.recordType() {
			if err := p.SkipAnswer(); err != nil {
				return r, err
			}
			continue
		}
		if owner := Fold(h.Name.String()); owner != last {
			last = owner
		}
		if h.Type == dnsmessage.TypeCNAME {
			c, err := p.CNAMEResource()
			if err != nil {
				return r, err
			}
			if _, again := r.cnames[last]; again {
				continue // a name has one CNAME
			}
			if len(r.cnames) == maxCNAMEs {
				return r, fmt.Errorf("it has more than %d CNAMEs", maxCNAMEs)
			}
			r.cnames[last] = cname{Fold(c.CNAME.String()), h.TTL}
			continue
		}
		addr, err := parseAddress(p, h)
		if err != nil {
			return r, err
		}
		r.addrs = append(r.addrs, addressRecord{last, addr, h.TTL})
	}
}

func parseAddress(p *dnsmessage.Parser, h dnsmessage.ResourceHeader) (netip.Addr, error) {
	if h.Type == dnsmessage.TypeA {
		if h.Length != 4 { // the parser does not look at it
			return netip.Addr{}, fmt.Errorf("an A record has %d bytes", h.Length)
		}
		r, err := p.AResource()
		return netip.AddrFrom4(r.A), err
	}
	if h.Length != 16 {
		return netip.Addr{}, fmt.Errorf("an AAAA record has %d bytes", h.Length)
	}
	r, err := p.AAAAResource()
	// ::ffff:a.b.c.d is where a.b.c.d is, and must not pass for another address where a
	// caller compares prefixes.
	return netip.AddrFrom16(r.AAAA).Unmap(), err
}

// follow follows the CNAMEs from the question to addresses. Records of other
// names are ignored.
func (r records) follow(a Answer) (Answer, error) {
	owner, ttl := a.Question.Host, uint32(1<<31-1)
	n := 0
	for ; ; n++ {
		c, ok := r.cnames[owner]
		if !ok {
			break
		}
		if n == len(r.cnames) {
			return a, errors.New("a broken answer: its CNAMEs go round in a circle")
		}
		owner, ttl = c.target, min(ttl, sane(c.ttl))
	}
	for _, rec := range r.addrs {
		if rec.owner == owner {
			a.Addrs = append(a.Addrs, rec.addr)
			ttl = min(ttl, sane(rec.ttl))
		}
	}
	if len(a.Addrs) == 0 {
		a.Outcome, a.Alias = NoData, n > 0
		return a, nil
	}
	a.Outcome, a.TTL = Addresses, time.Duration(ttl)*time.Second
	return a, nil
}

// sane takes a TTL with its highest bit set for 0, as RFC 2181, 8, wants.
func sane(ttl uint32) uint32 {
	if ttl >= 1<<31 {
		return 0
	}
	return ttl
}
