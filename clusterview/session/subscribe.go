package session

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redisguard/redisguard/resp"
)

// Subscription is a connection that is subscribed.
type Subscription struct {
	conn *Conn
	held []message // that came before all channels were confirmed
}

// message is something that was published, or another word of a subscription.
type message struct{ kind, channel, payload string }

// Subscribe subscribes to channels, by name, and returns when the server has confirmed all
// of them: whoever wants to have missed nothing asks for the state after it, and
// receives then. The connection belongs to the subscription from then on. The error wraps
// a *Refusal where the server refuses; the connection is closed then, as after any error.
func (c *Conn) Subscribe(ctx context.Context, channels []string) (*Subscription, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(ctx); err != nil {
		return nil, err
	}
	if len(channels) == 0 {
		return nil, fmt.Errorf("cannot subscribe at %v: no channel is named", c.addr)
	}
	end := c.stream.during(ctx)
	defer end()
	c.subscribed = true
	s := &Subscription{conn: c}
	if err := s.subscribe(channels); err != nil {
		return nil, c.fail(ctx, "subscribe at", err)
	}
	return s, nil
}

func (s *Subscription) subscribe(channels []string) error {
	command := append([]string{"SUBSCRIBE"}, channels...)
	if err := s.conn.send(command); err != nil {
		return err
	}
	missing := slices.Clone(channels)
	deadline := time.Now().Add(s.conn.cfg.Timeout)
	for len(missing) > 0 {
		v, err := s.conn.next(deadline)
		if err != nil {
			return err
		}
		if err := Check(command, v); err != nil {
			return err
		}
		m, err := s.message(v)
		switch {
		case err != nil:
			return err
		case m.kind == "message":
			s.held = append(s.held, m)
		case m.kind == "subscribe":
			i := slices.Index(missing, m.channel)
			if i < 0 {
				return fmt.Errorf("%w: it confirms a channel that was not asked for, %q", ErrNotRedis, clean(m.channel, maxWords))
			}
			missing = slices.Delete(missing, i, i+1)
			deadline = time.Now().Add(s.conn.cfg.Timeout)
		}
	}
	return nil
}

// Receive calls fn for each message until ctx ends, and returns nil then; it may be called
// again. Else it returns why the connection ended. After Config.Ping of silence the server
// is asked whether it is there. A server that sends more messages than any has to
// (20,000, and 1,000 a second) is not listened to: ErrFlood.
func (s *Subscription) Receive(ctx context.Context, fn func(channel, payload string)) error {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed != nil {
		return c.failed
	}
	end := c.stream.during(ctx)
	defer end()
	for asked := false; ctx.Err() == nil; {
		if len(s.held) > 0 {
			fn(s.held[0].channel, s.held[0].payload)
			s.held = s.held[1:]
			continue
		}
		patience := c.cfg.Ping
		if asked {
			patience = c.cfg.Timeout
		}
		v, err := c.next(time.Now().Add(patience))
		if errors.Is(err, errSilent) && !asked && ctx.Err() == nil {
			// The answer is a message like others, see message.
			asked, err = true, c.send([]string{"PING"})
			if err == nil {
				continue
			}
		}
		if errors.Is(err, errSilent) && ctx.Err() != nil {
			return nil
		}
		var m message
		if err == nil {
			asked = false
			m, err = s.message(v)
		}
		if err != nil {
			return c.fail(ctx, "listen to", err)
		}
		if m.kind == "message" {
			fn(m.channel, m.payload)
		}
	}
	return nil
}

// Close closes the connection. A Receive that waits ends with ErrClosed.
func (s *Subscription) Close() { s.conn.Close() }

// message tells what a value of a subscribed connection is, and counts it.
func (s *Subscription) message(v resp.Value) (message, error) {
	if !s.conn.flood.take(time.Now(), size(v)) {
		return message{}, ErrFlood
	}
	if err := Check([]string{"PING"}, v); err != nil {
		return message{}, err // to the only command that is sent
	}
	m, ok := parseMessage(v)
	switch {
	case !ok && v.Kind == resp.Push, m.kind == "pong":
		return message{}, nil // of a kind that came after RESP3 did, or the answer to a PING
	case !ok:
		return message{}, fmt.Errorf("%w: to a subscriber it sends an unexpected %v", ErrNotRedis, v.Kind)
	case m.kind == "unsubscribe":
		return message{}, fmt.Errorf("the server ended the subscription to %q", clean(m.channel, maxWords))
	}
	return m, nil
}

// parseMessage reads what is sent to a subscriber: arrays in RESP2, pushes in RESP3, where
// the answer to a PING is a string as ever. Kinds are "message", "subscribe",
// "unsubscribe" and "pong"; ok is false for all else.
func parseMessage(v resp.Value) (m message, ok bool) {
	if text, _ := v.Text(); v.Kind == resp.Simple && text == "PONG" {
		return message{kind: "pong"}, true
	}
	if v.Kind != resp.Array && v.Kind != resp.Push || len(v.Elems) < 2 {
		return message{}, false
	}
	kind, ok1 := v.Elems[0].Text()
	channel, ok2 := v.Elems[1].Text()
	switch {
	case !ok1 || !ok2:
		return message{}, false
	case kind == "pong" && len(v.Elems) == 2:
		return message{kind: kind}, true
	case len(v.Elems) != 3:
		return message{}, false
	}
	payload, ok := v.Elems[2].Text()
	switch {
	case kind == "message" && ok:
		return message{kind, channel, payload}, true
	case (kind == "subscribe" || kind == "unsubscribe") && v.Elems[2].Kind == resp.Integer:
		return message{kind: kind, channel: channel}, true
	}
	return message{}, false
}
