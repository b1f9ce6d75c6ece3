package listener

import (
	"context"
	"net"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/snapshot"
	"github.com/heddle-mesh/heddle/internal/proxy/tcp"
)

// hush is how long a client may be silent on a port that declares no protocol
// before the server is asked whether it is the one who speaks first. Clients of
// HTTP and TLS speak within a round trip of connecting.
const hush = 100 * time.Millisecond

// opener is a handler that can open the way to the server before the client has
// said a word. A tcp.Proxy is one.
type opener interface {
	Open(info *exchange.Conn) (*tcp.Ahead, error)
}

// seen is what a look at a connection's first bytes came to.
type seen struct {
	conn   net.Conn // replays what was looked at
	chain  *snapshot.Chain
	ahead  *tcp.Ahead // the way to the server if it is open already, and chain uses it
	replay *Replay
}

// take hands the open way over.
func (s *seen) take() *tcp.Ahead {
	a := s.ahead
	s.ahead = nil
	return a
}

func (s *seen) release() {
	if s.ahead != nil {
		s.ahead.Close()
	}
	if s.replay != nil {
		s.replay.Release()
	}
}

// look chooses the chain for a connection.
//
// Where a protocol has to be found out, the client's first bytes tell. In some
// protocols it has none before the server has greeted it, and waiting for them
// would be for ever. So after a moment of silence the way to the server is
// opened, and whoever speaks first decides: the server, and it is such a
// protocol; the client, and its bytes say which. Nobody is taken for what he is
// not because he was slow.
func (m *Manager) look(b *boundListener, l *snapshot.Listener, c net.Conn, info *exchange.Conn) (seen, error) {
	facts := snapshot.Facts{Destination: info.Local, Transport: plan.RawBuffer}
	wantTLS, wantHTTP := l.Needs(info.Local)
	if !wantTLS && !wantHTTP {
		return seen{conn: c, chain: l.Match(facts)}, nil
	}
	stop := context.AfterFunc(b.life, func() { c.Close() })
	defer stop()
	silent := l.Match(facts) // who serves a client that never speaks
	var greeter opener
	timeout := l.Plan.Inspect.Timeout
	if silent != nil && silent.TLS == nil && (timeout == 0 || timeout > hush) {
		if greeter, _ = silent.Handler.(opener); greeter != nil {
			timeout = hush
		}
	}
	f, replay, err := inspect(c, wantTLS, wantHTTP, timeout)
	if err != nil {
		return seen{}, err
	}
	var ahead *tcp.Ahead
	if greeter != nil && len(replay.peeked) == 0 {
		replay.Release()
		var spoke bool
		if f, replay, ahead, spoke, err = m.whoFirst(c, greeter, wantTLS, wantHTTP, l.Plan.Inspect.Timeout, info); err != nil {
			return seen{}, err
		}
		if spoke {
			return seen{conn: replay, chain: silent, ahead: ahead, replay: replay}, nil
		}
	}
	if f.tls {
		facts.Transport, facts.ServerName, facts.ALPN = plan.TLSTransport, f.hello.serverName, f.hello.alpn
		info.SNI = f.hello.serverName
	} else if f.http != "" {
		facts.ALPN = []string{f.http}
	}
	s := seen{conn: replay, chain: l.Match(facts), replay: replay}
	if ahead != nil && s.chain == silent {
		s.ahead = ahead
	} else if ahead != nil {
		ahead.Close()
	}
	return s, nil
}

// whoFirst opens the way to the server and waits until one side speaks; it
// reports whether that was the server. ahead is nil if there is no way: then the
// client has the word for as long as it likes.
func (m *Manager) whoFirst(c net.Conn, g opener, wantTLS, wantHTTP bool, timeout time.Duration, info *exchange.Conn) (f found, r *Replay, ahead *tcp.Ahead, spoke bool, err error) {
	ahead, err = g.Open(info)
	if err != nil {
		f, r, err = inspect(c, wantTLS, wantHTTP, timeout)
		return f, r, nil, false, err
	}
	heard := make(chan bool, 1)
	client := &interruptible{Conn: c}
	go func() {
		server := ahead.Spoke()
		if server {
			client.interrupt() // it need not be waited for
		}
		heard <- server
	}()
	f, r, err = inspect(client, wantTLS, wantHTTP, timeout)
	if r != nil {
		r.Conn = c
	}
	ahead.Hush()
	spoke = <-heard
	if err != nil {
		ahead.Close()
		return f, nil, nil, false, err
	}
	if spoke {
		if err = c.SetReadDeadline(time.Time{}); err != nil {
			r.Release()
			ahead.Close()
		}
	}
	return f, r, ahead, spoke, err
}

// interruptible is a connection of which a Read can be ended from elsewhere,
// whatever deadlines its reader sets.
type interruptible struct {
	net.Conn
	ended atomic.Bool
}

func (c *interruptible) interrupt() {
	c.ended.Store(true)
	c.Conn.SetReadDeadline(time.Unix(1, 0))
}

// SetReadDeadline implements net.Conn.
func (c *interruptible) SetReadDeadline(t time.Time) error {
	err := c.Conn.SetReadDeadline(t)
	if c.ended.Load() {
		c.interrupt()
	}
	return err
}
