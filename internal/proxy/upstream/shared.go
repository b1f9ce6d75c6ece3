package upstream

import (
	"cmp"
	"context"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/heddle-mesh/heddle/internal/proxy/http2"
)

const (
	// pingInterval is after how long of silence an upstream that owes an answer is
	// asked whether it is there. A pooled connection of HTTP/1 that died costs one
	// request; a shared one would take all of them.
	pingInterval = 30 * time.Second
	// goneIdle ends a connection to an endpoint that left while it was being made.
	goneIdle = time.Second
)

// Shared is a connection of HTTP/2, on which many requests are streams.
type Shared struct {
	*http2.Conn
	Endpoint *Endpoint
	PeerID   string // SPIFFE id the server proved, or ""
	MTLS     bool
	ALPN     string
	// Local and Remote are the addresses of the socket.
	Local, Remote netip.AddrPort

	secured uint64
	limited bool // it may have so many streams and no more

	// Endpoint.mu guards
	left     uint32 // of them
	reserved uint32 // handed out, and not opened yet
	first    bool   // a stream was opened before the server said how many it takes
}

// sharing is an endpoint's connections of HTTP/2. Endpoint.mu guards it.
type sharing struct {
	list    []*Shared
	dialing bool          // one connection is being made
	changed chan struct{} // closed by the next change; nil if nobody waits
	// fails counts the connections that could not be made, and err says why the last
	// one could not.
	fails uint64
	err   error
}

// wake lets those who wait look again. Endpoint.mu is held.
func (s *sharing) wake() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// pick returns a connection with room for a stream, the fullest first: the more
// streams share one, the more of them share a system call. Without counted it takes
// none whose streams are. Endpoint.mu is held.
func (s *sharing) pick(secured uint64, counted bool) *Shared {
	for i := 0; i < len(s.list); i++ {
		c := s.list[i]
		switch {
		case c.secured != secured, c.limited && (!counted || c.left == 0):
		case c.Room() > 0:
			if !c.settled() {
				// One stream costs no round trip, and tells why there is no second. More
				// might be more than the server takes.
				if c.first {
					continue
				}
				c.first = true
			}
			if c.limited {
				c.left--
				c.reserved++
			}
			return c
		case c.Err() != nil:
			s.list = slices.Delete(s.list, i, i+1)
			i--
		}
	}
	return nil
}

// settling reports whether a connection is there of which the server has not said how
// many streams it takes. Endpoint.mu is held.
func (s *sharing) settling() bool {
	return slices.ContainsFunc(s.list, func(c *Shared) bool { return !c.settled() && c.Err() == nil })
}

// settled reports whether the server has said how many streams it takes.
func (c *Shared) settled() bool {
	select {
	case <-c.Ready():
		return true
	default:
		return false
	}
}

// Share returns a connection of HTTP/2 that has room for a stream. The caller opens
// it, says Opened whether that worked or not, and Leave when the request has ended.
// If the stream can not be opened, because others were faster or the connection is
// going away, it may try again.
func (c *Cluster) Share(ctx context.Context, w Want) (*Shared, error) {
	s, e, err := c.admit(ctx, &w, true)
	if err != nil {
		return nil, err
	}
	conn, err := c.share(ctx, s, e, &w)
	if err != nil {
		c.end(e)
		c.forgetUnused(e)
		return nil, err
	}
	c.Stats.RqTotal.Add(1)
	e.Stats.RqTotal.Add(1)
	return conn, nil
}

// TryShare is Share for callers that can not wait: it returns nil if there is no
// connection with room right now. Neither does it return one whose streams are
// counted: there is no Opened to say, for that may end the connection.
func (c *Cluster) TryShare(w *Want) (*Shared, error) {
	s := c.state.Load()
	if s.plan.MaxPerConn > 0 || s.picker == nil && isDNS(s.plan.Discovery) {
		return nil, nil
	}
	s, e, err := c.admit(context.Background(), w, true)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	conn := e.shared.pick(s.secured, false)
	e.mu.Unlock()
	if conn == nil {
		c.end(e)
		return nil, nil
	}
	c.Stats.RqTotal.Add(1)
	e.Stats.RqTotal.Add(1)
	return conn, nil
}

// share waits until e has a connection with room. Only one is made at a time,
// however many wait.
func (c *Cluster) share(ctx context.Context, s *state, e *Endpoint, w *Want) (*Shared, error) {
	e.mu.Lock()
	conn := e.shared.pick(s.secured, true)
	fails := e.shared.fails
	e.mu.Unlock()
	if conn != nil {
		return conn, nil
	}
	if n := c.pending.Add(1); s.plan.MaxPending > 0 && n > int64(s.plan.MaxPending) {
		c.pending.Add(-1)
		return nil, ErrOverflow
	}
	defer c.pending.Add(-1)
	var late <-chan time.Time
	if !w.Deadline.IsZero() {
		t := time.NewTimer(w.Deadline.Sub(c.set.cfg.Now()))
		defer t.Stop()
		late = t.C
	}
	for {
		e.mu.Lock()
		if conn := e.shared.pick(s.secured, true); conn != nil {
			e.mu.Unlock()
			return conn, nil
		}
		if e.shared.fails != fails {
			err := e.shared.err
			e.mu.Unlock()
			return nil, err
		}
		// With the cluster's limit reached, a stream may become free; an endpoint
		// without any connection would wait for ever. Source: Envoy, connection pool.
		if !e.shared.dialing && !e.shared.settling() && c.slots.try(len(e.shared.list) == 0) {
			e.shared.dialing = true
			c.set.readers.Go(func() { c.makeShared(s, e) })
		}
		if e.shared.changed == nil {
			e.shared.changed = make(chan struct{})
		}
		changed := e.shared.changed
		e.mu.Unlock()
		select {
		case <-changed:
		case <-late:
			return nil, ErrDeadline
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// makeShared makes a connection for those who wait, with a slot that is taken, and
// is its reader until it ends.
func (c *Cluster) makeShared(s *state, e *Endpoint) {
	raw, err := c.dial(c.set.life, s, e, &Want{}, streams)
	if err != nil {
		c.slots.free()
		if c.set.life.Err() != nil {
			err = ErrNoHealthy
		}
		e.mu.Lock()
		e.shared.dialing = false
		e.shared.fails++
		e.shared.err = err
		e.shared.wake()
		e.mu.Unlock()
		return
	}
	c.opened(e)
	conn := &Shared{
		Endpoint: e, PeerID: raw.PeerID, MTLS: raw.MTLS, ALPN: raw.ALPN, Local: raw.Local, Remote: raw.Remote,
		secured: s.secured, limited: s.plan.MaxPerConn > 0, left: s.plan.MaxPerConn,
	}
	e.mu.Lock()
	idle := s.idleTimeout
	if e.gone {
		idle = goneIdle
	}
	conn.Conn = http2.NewClient(http2.Config{
		Conn:         raw.Conn,
		Budget:       c.set.cfg.Budget,
		IdleTimeout:  idle,
		PingInterval: pingInterval,
		OnState:      func(*http2.Conn) { e.woken() },
		OnPanic: func(v any, stack []byte) {
			c.set.cfg.Log.Error("panic while a response was handled", "panic", v, "cluster", c.Name, "stack", string(stack))
		},
	})
	e.shared.dialing = false
	e.shared.list = append(e.shared.list, conn)
	e.shared.wake()
	e.mu.Unlock()

	err = conn.Run(context.Background())
	if err != nil {
		c.set.cfg.Log.Debug("shared connection ended", "cluster", c.Name, "endpoint", e.Address, "error", err)
	}
	e.mu.Lock()
	if !conn.settled() {
		// It never was one: those who wait need not try it one by one.
		e.shared.fails++
		e.shared.err = &ConnectError{Endpoint: e, Err: cmp.Or(err, io.ErrUnexpectedEOF)}
	}
	if i := slices.Index(e.shared.list, conn); i >= 0 {
		e.shared.list = slices.Delete(e.shared.list, i, i+1)
	}
	e.shared.wake()
	e.mu.Unlock()
	e.Stats.CxActive.Add(-1)
	c.freeSlot()
	c.forgetUnused(e)
}

// woken lets those who wait look again.
func (e *Endpoint) woken() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.shared.wake()
}

// Opened tells that the stream for which Share returned the connection was opened,
// or could not be.
func (c *Shared) Opened() {
	if !c.limited {
		return
	}
	c.Endpoint.mu.Lock()
	c.reserved--
	last := c.left == 0 && c.reserved == 0
	c.Endpoint.mu.Unlock()
	if last {
		c.Shutdown() // when its streams have ended
	}
}

// Leave ends the request.
func (c *Shared) Leave() {
	c.Endpoint.cluster.end(c.Endpoint)
}

// shutIdle ends a connection that has no streams, and reports whether there was one.
func (e *Endpoint) shutIdle() bool {
	e.mu.Lock()
	var idle *Shared
	for _, c := range e.shared.list {
		if c.reserved == 0 && c.Streams() == 0 {
			idle = c
			break
		}
	}
	e.mu.Unlock()
	if idle != nil {
		idle.Shutdown()
	}
	return idle != nil
}
