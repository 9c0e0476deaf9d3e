// Package client asks a running redisguard over its Unix sockets, and follows its
// events.
//
//	c := client.New(client.Config{})
//	defer c.Close()
//	status, err := c.Status(ctx)
//
// What comes back is described in package api/v1. Which connections, findings and
// events are shown depends on who asks: a process in a pod sees its own pod's.
// Acts need the admin socket, and with it root on the host or the configured group.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	v1 "github.com/redisguard/redisguard/api/v1"
)

// Config of a client. The zero value is for the default sockets.
type Config struct {
	// Socket is the path of the read socket; "" is v1.DefaultSocket.
	Socket string
	// AdminSocket is the path of the socket for acts; "" is
	// v1.DefaultAdminSocket.
	AdminSocket string
	// Timeout bounds each request but Events; 0 is 10 s.
	Timeout time.Duration
}

// Client asks one daemon. Make one with New; it is safe for concurrent use.
type Client struct {
	timeout     time.Duration
	read, admin socket
}

// socket is one of the daemon's.
type socket struct {
	path string
	http *http.Client
}

// New returns a client. It connects when it is first used.
func New(c Config) *Client {
	return &Client{
		timeout: or(c.Timeout, 10*time.Second),
		read:    newSocket(or(c.Socket, v1.DefaultSocket)),
		admin:   newSocket(or(c.AdminSocket, v1.DefaultAdminSocket)),
	}
}

func newSocket(path string) socket {
	var d net.Dialer
	return socket{path: path, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			for {
				c, err := d.DialContext(ctx, "unix", path)
				// The daemon lives, but others come faster than it can take them.
				if !errors.Is(err, syscall.EAGAIN) {
					return c, err
				}
				select {
				case <-ctx.Done():
					return nil, err
				case <-time.After(10 * time.Millisecond):
				}
			}
		},
		MaxIdleConns:    2,
		IdleConnTimeout: 30 * time.Second,
		// The daemon compresses nothing.
		DisableCompression: true,
	}}}
}

// Close lets go of idle connections to the daemon.
func (c *Client) Close() {
	c.read.http.CloseIdleConnections()
	c.admin.http.CloseIdleConnections()
}

// ErrUnreachable is wrapped by errors that say that no daemon answers at the
// socket. If it is there but this user may not open it, the error wraps
// fs.ErrPermission instead.
var ErrUnreachable = errors.New("redisguard is not reachable")

// Error is an answer of the daemon that is no success.
type Error struct {
	Status  int // of HTTP
	Kind    v1.ErrorKind
	Message string
}

func (e *Error) Error() string { return e.Message }

// maxAnswer bounds what is read of one answer: 100,000 connections are some 80 MB.
const maxAnswer = 256 << 20

// do makes one request and decodes the answer into out.
func (c *Client) do(ctx context.Context, s *socket, method, path string, query url.Values, body, out any) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	res, err := s.request(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(out); err != nil {
		return fmt.Errorf("cannot read the answer to %s %s: %w", method, path, err)
	}
	return nil
}

// request makes a request and returns a successful answer.
func (s *socket) request(ctx context.Context, method, path string, query url.Values, body any) (*http.Response, error) {
	// The host is not looked at; the socket's path is what counts.
	u := url.URL{Scheme: "http", Host: "redisguard", Path: path, RawQuery: query.Encode()}
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("cannot encode request: %w", err)
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), r)
	if err != nil {
		return nil, fmt.Errorf("cannot make request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := s.http.Do(req)
	if err != nil {
		// What is worth knowing is inside: the URL is ours and means nothing.
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err
		}
		if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" && !errors.Is(err, errPermission) {
			return nil, fmt.Errorf("%w at %s: %w", ErrUnreachable, s.path, op.Err)
		}
		return nil, fmt.Errorf("cannot ask redisguard at %s: %w", s.path, err)
	}
	if res.StatusCode/100 == 2 {
		return res, nil
	}
	defer res.Body.Close()
	e := &Error{Status: res.StatusCode}
	var b v1.ErrorBody
	if err := json.NewDecoder(io.LimitReader(res.Body, 64<<10)).Decode(&b); err == nil && b.Error.Message != "" {
		e.Kind, e.Message = b.Error.Kind, b.Error.Message
	} else {
		e.Message = "the daemon answered " + res.Status
	}
	return nil, e
}

// Status tells how the daemon is and how far it may go.
func (c *Client) Status(ctx context.Context) (v1.Status, error) {
	var out v1.Status
	return out, c.do(ctx, &c.read, http.MethodGet, "/v1/status", nil, nil, &out)
}

// ConnectionQuery narrows down Connections. The zero value asks for all.
type ConnectionQuery struct {
	Endpoint  string // ip:port
	Namespace string // id or name of a network namespace
	Pod       string // uid, name, or Kubernetes namespace/name
	Stalled   bool   // only those that are stalled or half-dead
}

// Connections lists connections, those that are worst first.
func (c *Client) Connections(ctx context.Context, q ConnectionQuery) ([]v1.Connection, error) {
	v := url.Values{}
	set(v, "endpoint", q.Endpoint)
	set(v, "namespace", q.Namespace)
	set(v, "pod", q.Pod)
	if q.Stalled {
		v.Set("state", "stalled")
	}
	var out []v1.Connection
	return out, c.do(ctx, &c.read, http.MethodGet, "/v1/connections", v, nil, &out)
}

// Endpoints lists the endpoints with connections.
func (c *Client) Endpoints(ctx context.Context) ([]v1.Endpoint, error) {
	var out []v1.Endpoint
	return out, c.do(ctx, &c.read, http.MethodGet, "/v1/endpoints", nil, nil, &out)
}

// Targets lists the Redis deployments that the config names, in its order.
func (c *Client) Targets(ctx context.Context) ([]v1.Target, error) {
	var out []v1.Target
	return out, c.do(ctx, &c.read, http.MethodGet, "/v1/targets", nil, nil, &out)
}

// Target is one of them. If there is none of that name, or not for this process, the error is
// an *Error of kind v1.KindNotFound.
func (c *Client) Target(ctx context.Context, name string) (v1.Target, error) {
	var out v1.Target
	return out, c.do(ctx, &c.read, http.MethodGet, "/v1/targets/"+url.PathEscape(name), nil, nil, &out)
}

// SlotOwner says which node of a target owns the slot of a key.
func (c *Client) SlotOwner(ctx context.Context, target, key string) (v1.SlotOwner, error) {
	var out v1.SlotOwner
	return out, c.do(ctx, &c.read, http.MethodGet, "/v1/targets/"+url.PathEscape(target)+"/slots", url.Values{"key": {key}}, nil, &out)
}

// Primary is one line with the address of the primary of a target, and what there is to know
// before it is used; see GET /v1/targets/{id}/primary. If none is known the error is an *Error
// of kind v1.KindUnavailable.
func (c *Client) Primary(ctx context.Context, target string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	res, err := c.read.request(ctx, http.MethodGet, "/v1/targets/"+url.PathEscape(target)+"/primary", nil, nil)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 4096))
	if err != nil {
		return "", fmt.Errorf("cannot read the primary of %s: %w", target, err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Namespaces lists network namespaces with connections, and the host's.
func (c *Client) Namespaces(ctx context.Context) ([]v1.Namespace, error) {
	var out []v1.Namespace
	return out, c.do(ctx, &c.read, http.MethodGet, "/v1/namespaces", nil, nil, &out)
}

// Findings lists open findings, with all those that have ended and are still
// remembered, too.
func (c *Client) Findings(ctx context.Context, all bool) ([]v1.Finding, error) {
	v := url.Values{}
	if all {
		v.Set("all", "true")
	}
	var out []v1.Finding
	return out, c.do(ctx, &c.read, http.MethodGet, "/v1/findings", v, nil, &out)
}

// Explain tells the story of a finding, a connection or an event (by its cursor or
// number).
func (c *Client) Explain(ctx context.Context, id string) (v1.Explanation, error) {
	var out v1.Explanation
	return out, c.do(ctx, &c.read, http.MethodGet, "/v1/explain/"+id, nil, nil, &out)
}

// Reap ends a connection, or all to an endpoint, on the admin socket. What became
// of each stands in the answer.
func (c *Client) Reap(ctx context.Context, r v1.ReapRequest) (v1.ReapResponse, error) {
	var out v1.ReapResponse
	return out, c.do(ctx, &c.admin, http.MethodPost, "/v1/reap", nil, r, &out)
}

// SetMode sets the ceiling that holds beside that of the config; enforce takes it
// away.
func (c *Client) SetMode(ctx context.Context, m v1.Mode) (v1.ModeStatus, error) {
	var out v1.ModeStatus
	return out, c.do(ctx, &c.admin, http.MethodPut, "/v1/mode", nil, v1.ModeRequest{Mode: m}, &out)
}

// Reload has the daemon read its config file now. A bad one is refused with an
// *Error, and the one before stays in force.
func (c *Client) Reload(ctx context.Context) (v1.ReloadResponse, error) {
	var out v1.ReloadResponse
	return out, c.do(ctx, &c.admin, http.MethodPost, "/v1/reload", nil, struct{}{}, &out)
}

func set(v url.Values, key, value string) {
	if value != "" {
		v.Set(key, value)
	}
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}
