package resolver

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ResolvConf is what resolv.conf(5) says, as glibc 2.36 reads it.
type ResolvConf struct {
	Servers    []netip.AddrPort // one to three; 127.0.0.1 if the file names none
	Search     []string         // folded, without the last dot; "." is the root
	Ndots      int              // from how many dots on a name is tried as it is first
	Timeout    time.Duration    // for the first server
	Attempts   int              // how often each server is asked
	Rotate     bool             // begin with a random server
	UseTCP     bool             // use-vc
	NoAAAA     bool             // no-aaaa, glibc 2.36
	NoTLDQuery bool             // no-tld-query: a name without a dot is not tried as it is
}

func (c ResolvConf) equal(d ResolvConf) bool {
	return slices.Equal(c.Servers, d.Servers) && slices.Equal(c.Search, d.Search) && c.Ndots == d.Ndots &&
		c.Timeout == d.Timeout && c.Attempts == d.Attempts && c.Rotate == d.Rotate &&
		c.UseTCP == d.UseTCP && c.NoAAAA == d.NoAAAA && c.NoTLDQuery == d.NoTLDQuery
}

// Limits of resolv.h: MAXNS, RES_MAXNDOTS, RES_MAXRETRANS, RES_MAXRETRY, and its
// defaults RES_TIMEOUT and RES_DFLRETRY. glibc takes any number of search domains since
// 2.26; more than 32, or lines of more than 64 KiB, no administrator writes.
const (
	maxServers  = 3
	maxNdots    = 15
	maxTimeout  = 30 * time.Second
	maxAttempts = 5
	maxSearch   = 32
	maxConf     = 64 << 10 // bytes of the file

	defaultTimeout  = 5 * time.Second
	defaultAttempts = 2
	dnsPort         = 53
)

// readResolvConf reads a resolv.conf. hostname is the node's, whose domain is searched
// if the file says nothing of it. A file that is not there is an empty one, as for glibc.
func readResolvConf(file, hostname string) (ResolvConf, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return parseResolvConf(strings.NewReader(""), hostname)
	}
	if err != nil {
		return ResolvConf{}, fmt.Errorf("cannot read the name servers: %w", err)
	}
	defer f.Close()
	c, err := parseResolvConf(f, hostname)
	if err != nil {
		return ResolvConf{}, fmt.Errorf("cannot read the name servers from %s: %w", file, err)
	}
	return c, nil
}

// parseResolvConf parses a resolv.conf. What glibc ignores is ignored: unknown
// words, and values that are none. Errors are those of r, and more than 64 KiB.
func parseResolvConf(r io.Reader, hostname string) (ResolvConf, error) {
	c := ResolvConf{Ndots: 1, Timeout: defaultTimeout, Attempts: defaultAttempts}
	searched := false
	limited := &io.LimitedReader{R: r, N: maxConf + 1}
	lines := bufio.NewScanner(limited)
	lines.Buffer(nil, maxConf+2)
	for lines.Scan() {
		// A keyword begins in the first column. That makes a line with # or ; a comment.
		keyword, rest, ok := cutBlank(lines.Text())
		if !ok {
			continue
		}
		words := strings.FieldsFunc(rest, isBlank)
		switch keyword {
		case "nameserver":
			if len(words) > 0 && len(c.Servers) < maxServers {
				if a, err := netip.ParseAddr(words[0]); err == nil {
					c.Servers = append(c.Servers, netip.AddrPortFrom(a, dnsPort))
				}
			}
		case "domain":
			if len(words) > 0 {
				c.Search, searched = searchList(words[:1]), true
			}
		case "search":
			if len(words) > 0 {
				c.Search, searched = searchList(words), true
			}
		case "options":
			for _, w := range words {
				c.option(w)
			}
		}
	}
	if err := lines.Err(); err != nil {
		return ResolvConf{}, err
	}
	if limited.N <= 0 {
		return ResolvConf{}, fmt.Errorf("it has more than %d bytes", maxConf)
	}
	if len(c.Servers) == 0 {
		c.Servers = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), dnsPort)}
	}
	if _, domain, ok := strings.Cut(hostname, "."); ok && !searched {
		c.Search = searchList([]string{domain})
	}
	return c, nil
}

func isBlank(c rune) bool { return c == ' ' || c == '\t' }

// cutBlank cuts a line at its first blank.
func cutBlank(line string) (before, after string, ok bool) {
	i := strings.IndexFunc(line, isBlank)
	if i <= 0 {
		return "", "", false
	}
	return line[:i], line[i+1:], true
}

func searchList(words []string) (list []string) {
	for _, w := range words {
		domain := strings.Trim(Fold(w), ".")
		if domain == "" && w == "." {
			domain = "."
		} else if checkName(domain) != nil {
			continue // no name could be made with it
		}
		if len(list) < maxSearch {
			list = append(list, domain)
		}
	}
	return list
}

func (c *ResolvConf) option(word string) {
	number := func(name string, most int) (int, bool) {
		text, ok := strings.CutPrefix(word, name+":")
		if !ok {
			return 0, false
		}
		n, err := strconv.Atoi(text)
		if err != nil && !errors.Is(err, strconv.ErrRange) || n < 0 {
			return 0, false
		}
		return min(n, most), true
	}
	if n, ok := number("ndots", maxNdots); ok {
		c.Ndots = n
	}
	if n, ok := number("timeout", int(maxTimeout/time.Second)); ok {
		c.Timeout = time.Duration(max(n, 1)) * time.Second
	}
	if n, ok := number("attempts", maxAttempts); ok {
		c.Attempts = max(n, 1)
	}
	switch word {
	case "rotate":
		c.Rotate = true
	case "use-vc":
		c.UseTCP = true
	case "no-aaaa":
		c.NoAAAA = true
	case "no-tld-query":
		c.NoTLDQuery = true
	}
}

// timeout is how long glibc waits for the server that is number n of those asked
// (send_dg): timeout times 2^n, for all but the first divided by the number of servers.
func (c ResolvConf) timeout(n int) time.Duration {
	t := c.Timeout << n
	if n > 0 {
		t /= time.Duration(len(c.Servers))
	}
	return max(t.Truncate(time.Second), time.Second)
}
