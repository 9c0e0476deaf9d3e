package resolver

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// server is a DNS server on port 53 of a loopback address of its own, over UDP and TCP,
// so that a resolv.conf can name it.
type server struct {
	addr netip.AddrPort
	udp  *net.UDPConn
	tcp  *net.TCPListener
	busy sync.WaitGroup

	mu     sync.Mutex
	handle handler
	asked  []string // host, type and protocol of each query
}

// handler answers a query. Nothing is silence.
type handler func(q dnsmessage.Question, reply dnsmessage.Message, tcp bool) []message

// message is something that a server sends.
type message struct {
	dnsmessage.Message
	elsewhere bool // from another port than it was asked on
}

// serve starts a server, which ends with the test.
func serve(t testing.TB, h handler) *server {
	t.Helper()
	s := &server{handle: h}
	for try := 0; s.tcp == nil; try++ {
		// Random, since tests of other checkouts may run beside this one.
		ip := netip.AddrFrom4([4]byte{127, byte(1 + rand.IntN(254)), byte(rand.IntN(256)), byte(1 + rand.IntN(254))})
		s.addr = netip.AddrPortFrom(ip, dnsPort)
		udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(s.addr))
		if err == nil {
			tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(s.addr))
			if err == nil {
				s.udp, s.tcp = udp, tcp
				break
			}
			udp.Close()
		}
		if try == 20 {
			t.Fatalf("cannot listen on port 53: %v", err)
		}
	}
	s.busy.Go(s.serveUDP)
	s.busy.Go(s.serveTCP)
	t.Cleanup(func() {
		s.udp.Close()
		s.tcp.Close()
		s.busy.Wait()
	})
	return s
}

// set changes how it answers.
func (s *server) set(h handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handle = h
}

// queries is what was asked since the last call.
func (s *server) queries() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := s.asked
	s.asked = nil
	return asked
}

// conf is a resolv.conf file that names servers.
func resolvConf(t testing.TB, servers []*server, lines ...string) (file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "resolv.conf")
	writeConf(t, file, servers, lines...)
	return file
}

func writeConf(t testing.TB, file string, servers []*server, lines ...string) {
	t.Helper()
	text := ""
	for _, s := range servers {
		text += fmt.Sprintf("nameserver %s\n", s.addr.Addr())
	}
	for _, l := range lines {
		text += l + "\n"
	}
	if err := os.WriteFile(file+".new", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

func (s *server) serveUDP() {
	buf := make([]byte, 4096)
	for {
		n, from, err := s.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		for _, m := range s.answers(buf[:n], false) {
			b, err := m.Pack()
			if err != nil || len(b) > 512 {
				m.Answers, m.Truncated = nil, true
				if b, err = m.Pack(); err != nil {
					panic(err)
				}
			}
			if !m.elsewhere {
				s.udp.WriteToUDPAddrPort(b, from)
				continue
			}
			other, err := net.ListenUDP("udp", &net.UDPAddr{IP: s.addr.Addr().AsSlice()})
			if err != nil {
				panic(err)
			}
			other.WriteToUDPAddrPort(b, from)
			other.Close()
		}
	}
}

func (s *server) serveTCP() {
	for {
		conn, err := s.tcp.Accept()
		if err != nil {
			return
		}
		s.busy.Go(func() {
			defer conn.Close()
			for {
				var length [2]byte
				if _, err := io.ReadFull(conn, length[:]); err != nil {
					return
				}
				query := make([]byte, binary.BigEndian.Uint16(length[:]))
				if _, err := io.ReadFull(conn, query); err != nil {
					return
				}
				for _, m := range s.answers(query, true) {
					b, err := m.Pack()
					if err != nil || len(b) > 65535 {
						panic(fmt.Sprintf("%d bytes do not fit: %v", len(b), err))
					}
					conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
				}
			}
		})
	}
}

func (s *server) answers(query []byte, tcp bool) []message {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil {
		panic(err)
	}
	q, err := p.Question()
	if err != nil {
		panic(err)
	}
	reply := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: h.ID, Response: true, RecursionDesired: h.RecursionDesired, RecursionAvailable: true},
		Questions: []dnsmessage.Question{q},
	}
	proto := "udp"
	if tcp {
		proto = "tcp"
	}
	s.mu.Lock()
	s.asked = append(s.asked, fmt.Sprintf("%s %s %s", q.Name, q.Type.String()[len("Type"):], proto))
	handle := s.handle
	s.mu.Unlock()
	return handle(q, reply, tcp)
}

// zone answers from records, following CNAMEs.
func zone(records ...dnsmessage.Resource) handler {
	return func(q dnsmessage.Question, reply dnsmessage.Message, _ bool) []message {
		owner := Fold(q.Name.String())
		exists := false
		for i := 0; i < len(records); i++ {
			r := records[i]
			if r.Header.Name.String() != owner {
				continue
			}
			exists = true
			if c, ok := r.Body.(*dnsmessage.CNAMEResource); ok && len(reply.Answers) <= len(records) {
				reply.Answers = append(reply.Answers, r)
				owner, i = c.CNAME.String(), -1 // from the first record on
				continue
			}
			if r.Header.Type == q.Type {
				reply.Answers = append(reply.Answers, r)
			}
		}
		if !exists {
			reply.RCode = dnsmessage.RCodeNameError
		}
		return []message{{Message: reply}}
	}
}

func silence(dnsmessage.Question, dnsmessage.Message, bool) []message { return nil }

func rcode(c dnsmessage.RCode) handler {
	return func(_ dnsmessage.Question, reply dnsmessage.Message, _ bool) []message {
		reply.RCode = c
		return []message{{Message: reply}}
	}
}

// forged sends what others might send before the answer itself.
func forged(honest handler) handler {
	return func(q dnsmessage.Question, reply dnsmessage.Message, tcp bool) []message {
		wrong := func(change func(m *message)) message {
			m := message{Message: reply}
			m.Questions = []dnsmessage.Question{q}
			r := record(q.Name.String(), "192.0.2.66", 60)
			if q.Type == dnsmessage.TypeAAAA {
				r = record(q.Name.String(), "fd00::66", 60)
			}
			m.Answers = []dnsmessage.Resource{r}
			change(&m)
			return m
		}
		list := []message{
			wrong(func(m *message) { m.ID++ }),
			wrong(func(m *message) { m.Questions[0].Name = dnsmessage.MustNewName("other.example.") }),
			wrong(func(m *message) { m.Response = false }),
		}
		if !tcp {
			list = append(list, wrong(func(m *message) { m.elsewhere = true }))
		}
		return append(list, honest(q, reply, tcp)...)
	}
}
