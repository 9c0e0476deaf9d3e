package session

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
)

// TLS says how connections are encrypted: TLS 1.2 at least, 1.3 where the server knows it,
// and the server's name always verified. The files are read with the first connection, and
// again when one of them has changed. A TLS is safe for use by several connections at once;
// it must not be copied.
type TLS struct {
	// CAFile holds the certificates of the authorities that are believed, in PEM. If empty,
	// those of the system are.
	CAFile string
	// CertFile and KeyFile are the certificate that the server is shown, with its chain,
	// and its key, in PEM. If empty it is shown none.
	CertFile, KeyFile string

	mu      sync.Mutex
	read    *tls.Config // nil before the first time
	ca, crt version     // of what was read
	key     version
}

const (
	// maxCA is the most bytes of a file with authorities. Those of a Linux system have
	// 220 KB.
	maxCA = 4 << 20
	// maxCert is the most bytes of a file with a certificate or a key.
	maxCert = 256 << 10
)

// config is for a connection to the server of that name or address.
func (t *TLS) config(name string) (*tls.Config, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.read == nil || !t.holds() {
		if err := t.load(); err != nil {
			return nil, err
		}
	}
	c := t.read.Clone()
	c.ServerName = name
	return c, nil
}

// holds says whether the files are those that were read.
func (t *TLS) holds() bool {
	return (t.CAFile == "" || t.ca.holds(t.CAFile)) &&
		(t.CertFile == "" && t.KeyFile == "" || t.crt.holds(t.CertFile) && t.key.holds(t.KeyFile))
}

func (t *TLS) load() error {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	var ca, crt, key version
	if t.CAFile != "" {
		b, v, err := readFile(t.CAFile, maxCA, trusted)
		if err != nil {
			return fmt.Errorf("cannot read certificate authorities %s: %w", t.CAFile, err)
		}
		c.RootCAs, ca = x509.NewCertPool(), v
		if !c.RootCAs.AppendCertsFromPEM(b) {
			return fmt.Errorf("cannot read certificate authorities %s: there is no certificate in it: it must be PEM", t.CAFile)
		}
	}
	if t.CertFile != "" || t.KeyFile != "" {
		cb, cv, err := readFile(t.CertFile, maxCert, trusted)
		if err != nil {
			return fmt.Errorf("cannot read client certificate %q: %w", t.CertFile, err)
		}
		kb, kv, err := readFile(t.KeyFile, maxCert, private)
		if err != nil {
			return fmt.Errorf("cannot read the client certificate's key %q: %w", t.KeyFile, err)
		}
		pair, err := tls.X509KeyPair(cb, kb)
		if err != nil {
			return fmt.Errorf("cannot use client certificate %s with key %s (if they are being replaced, try again): %w", t.CertFile, t.KeyFile, err)
		}
		c.Certificates, crt, key = []tls.Certificate{pair}, cv, kv
	}
	t.read, t.ca, t.crt, t.key = c, ca, crt, key
	return nil
}

// handshake encrypts s. It returns no connection whose server is not verified.
func (t *TLS) handshake(s *stream, name string) (*tls.Conn, error) {
	c, err := t.config(name)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(s, c)
	if err := conn.Handshake(); err != nil {
		return nil, err
	}
	if len(conn.ConnectionState().VerifiedChains) == 0 {
		return nil, fmt.Errorf("%w: the certificate was not verified", ErrTLS)
	}
	return conn, nil
}

// tlsError explains an error of crypto/tls, for a server of that name. ok is false if err
// is of something else.
func tlsError(err error, name string) (_ error, ok bool) {
	if e, ok := errors.AsType[x509.HostnameError](err); ok {
		return fmt.Errorf("%w: its certificate is not for %q, but for %s: set the server name to one of these, or have the certificate name it",
			ErrTLS, name, namesOf(e.Certificate)), true
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return fmt.Errorf("%w: its certificate, which should be for %q, is signed by an authority that is not known: name that authority's certificate as the CA file", ErrTLS, name), true
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		why := "its certificate is not valid"
		if e.Reason == x509.Expired {
			why = fmt.Sprintf("its certificate is valid from %s to %s only: renew it, or set this node's clock",
				e.Cert.NotBefore.UTC().Format("2006-01-02 15:04 MST"), e.Cert.NotAfter.UTC().Format("2006-01-02 15:04 MST"))
		}
		return fmt.Errorf("%w: %s (%s)", ErrTLS, why, clean(e.Error(), maxWords)), true
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return fmt.Errorf("%w: it does not speak TLS: use its TLS port, or do without", ErrTLS), true
	}
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fmt.Errorf("%w: its certificate, which should be for %q, cannot be verified: %s", ErrTLS, name, clean(e.Err.Error(), maxWords)), true
	}
	// What crypto/tls says in the form of package net is an alert: of the server, or ours.
	if e, ok := errors.AsType[*net.OpError](err); ok && e.Op == "remote error" {
		return fmt.Errorf("%w: the server broke it off: %s (if it wants a certificate of ours, name a client certificate and its key)", ErrTLS, clean(e.Err.Error(), maxWords)), true
	}
	return err, false
}

// namesOf lists what a certificate is for. The words are the server's.
func namesOf(c *x509.Certificate) string {
	const most = 8
	var names []string
	add := func(name string) {
		if len(names) < most {
			names = append(names, clean(name, 253)) // the longest name of DNS
		}
	}
	for _, n := range c.DNSNames {
		add(n)
	}
	for _, ip := range c.IPAddresses {
		add(ip.String())
	}
	all := len(c.DNSNames) + len(c.IPAddresses)
	switch {
	case all == 0:
		return "no name (a common name alone is not one)"
	case all > most:
		return fmt.Sprintf("%s and %d more", strings.Join(names, ", "), all-most)
	}
	return strings.Join(names, ", ")
}
