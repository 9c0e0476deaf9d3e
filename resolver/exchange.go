package resolver

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

const (
	// maxDatagram is above what a server may send without EDNS0: 512 bytes.
	maxDatagram = 4096
	// maxIgnored is how many messages that are no answer are read before a server is given
	// up: a flood of them must not keep us busy until the timeout.
	maxIgnored = 64
)

// exchange sends a query to its server and waits for the answer. What fails is an
// Answer as well.
func exchange(ctx context.Context, q Question) Answer {
	a, err := attempt(ctx, q)
	a.Question = q
	if err != nil {
		a.Outcome, a.Addrs, a.Err = Failed, nil, err
	}
	if a.Err != nil {
		if late, ok := errors.AsType[net.Error](a.Err); ok && late.Timeout() {
			a.Err = fmt.Errorf("no answer within %v", q.Timeout)
		}
		a.Err = fmt.Errorf("%v: %w", q.Server, a.Err)
	}
	return a
}

func attempt(ctx context.Context, q Question) (a Answer, err error) {
	var random [2]byte
	if _, err := rand.Read(random[:]); err != nil {
		return a, err
	}
	id := binary.BigEndian.Uint16(random[:])
	query, err := packQuery(id, q)
	if err != nil {
		return a, err
	}
	network := "udp"
	if q.TCP {
		network = "tcp"
		query = append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)
	}
	deadline := time.Now().Add(q.Timeout)
	dialer := net.Dialer{Deadline: deadline}
	// A socket for one query has a random port. Connected, it takes messages of its
	// server only, and learns at once that nobody listens there.
	conn, err := dialer.DialContext(ctx, network, q.Server.String())
	if err != nil {
		return a, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return a, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if _, err := conn.Write(query); err != nil {
		return a, err
	}
	receive := receiveDatagram
	if q.TCP {
		receive = receiveStream
	}
	for ignored := 0; ignored < maxIgnored; ignored++ {
		msg, err := receive(conn)
		if err != nil {
			return Answer{Ignored: ignored}, err
		}
		a, err = parseAnswer(msg, id, q)
		a.Ignored = ignored
		if !errors.Is(err, errOther) {
			return a, err
		}
	}
	return Answer{Ignored: maxIgnored}, fmt.Errorf("%d messages that are no answers", maxIgnored)
}

func receiveDatagram(conn net.Conn) ([]byte, error) {
	msg := make([]byte, maxDatagram)
	n, err := conn.Read(msg)
	return msg[:n], err
}

// receiveStream reads one message, which has its length before it (RFC 1035, 4.2.2).
func receiveStream(conn net.Conn) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(conn, msg)
	return msg, err
}
