package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/mtls"
	"github.com/heddle-mesh/heddle/internal/proxy/proxyproto"
)

// What a sidecar offers another one. The first that the server knows is agreed
// on; "istio" alone says that the client is a sidecar.
var (
	http1ALPN = []string{"istio-http/1.1", "istio", "http/1.1"}
	http2ALPN = []string{"istio-h2", "istio", "h2"}
	tcpALPN   = []string{"istio-peer-exchange", "istio"}
)

// carries says what a connection is for.
type carries uint8

const (
	aStream  carries = iota // of bytes
	requests                // of HTTP/1, one after the other
	streams                 // of HTTP/2, many at a time
	carriesEnd
)

// tlsConfigs makes the configurations for each kind of connection.
func (c *Cluster) tlsConfigs(t *plan.ClientTLS) (configs [carriesEnd]*tls.Config) {
	if t == nil || c.set.cfg.TLS == nil {
		return configs
	}
	if !t.Auto && !slices.Contains(t.ALPN, "istio") {
		// An external server: it gets what the configuration says.
		config := c.set.cfg.TLS(t)
		return [...]*tls.Config{config, config, config}
	}
	with := func(alpn []string) *tls.Config {
		own := *t
		own.ALPN = alpn
		return c.set.cfg.TLS(&own)
	}
	return [...]*tls.Config{aStream: with(tcpALPN), requests: with(http1ALPN), streams: with(http2ALPN)}
}

// open returns a new connection to e, or one that another request handed over.
func (c *Cluster) open(ctx context.Context, s *state, e *Endpoint, w *Want, pooled bool) (*Conn, error) {
	// A request that waits for its connection being made is pending as well as
	// one that waits for the permission to make it.
	if n := c.pending.Add(1); pooled && s.plan.MaxPending > 0 && n > int64(s.plan.MaxPending) {
		c.pending.Add(-1)
		return nil, ErrOverflow
	}
	defer c.pending.Add(-1)

	var only *Endpoint
	if s.plan.Discovery == plan.OriginalDst {
		only = e // others are somewhere else
	}
	if waiter := newWaiter(only, !pooled || w.Fresh); !c.slots.take(waiter) {
		conn, err := c.queue(ctx, s, e, w, waiter, pooled)
		if conn != nil || err != nil {
			return conn, err
		}
	}
	what := aStream
	if pooled {
		what = requests
	}
	conn, err := c.dial(ctx, s, e, w, what)
	if err != nil {
		c.slots.free()
		return nil, err
	}
	c.opened(e)
	return conn, nil
}

// opened counts a connection.
func (c *Cluster) opened(e *Endpoint) {
	c.Stats.CxActive.Add(1)
	c.Stats.CxTotal.Add(1)
	e.Stats.CxActive.Add(1)
	e.Stats.CxTotal.Add(1)
}

// queue waits for a slot. It returns a connection, an error, or neither: then the
// caller has a slot and dials.
func (c *Cluster) queue(ctx context.Context, s *state, e *Endpoint, w *Want, waiter *waiter, pooled bool) (*Conn, error) {
	if !pooled && s.plan.MaxPending > 0 && c.pending.Load() > int64(s.plan.MaxPending) {
		if conn, ok := c.slots.leave(waiter); ok {
			c.giveBack(conn)
		}
		return nil, ErrOverflow
	}
	// Between the look at the pool and the queueing a connection may have become
	// idle; and those to other endpoints must not keep this one from its turn.
	if pooled && !w.Fresh {
		if conn := c.reuse(e, w); conn != nil {
			if other, ok := c.slots.leave(waiter); ok {
				c.giveBack(other)
			}
			return conn, nil
		}
	}
	c.evictIdle()

	if !w.Deadline.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, w.Deadline)
		defer cancel()
	}
	for {
		conn, ok := c.slots.wait(ctx, waiter)
		switch {
		case !ok:
			if !w.Deadline.IsZero() && !c.set.cfg.Now().Before(w.Deadline) {
				return nil, ErrDeadline
			}
			return nil, ctx.Err()
		case conn != nil && conn.stale():
			conn.discard() // frees a slot for someone, perhaps for us
			if !c.slots.take(waiter) {
				continue
			}
			return nil, nil
		}
		return conn, nil
	}
}

// giveBack passes on what was granted to a request that needs it no more.
func (c *Cluster) giveBack(conn *Conn) {
	if conn == nil {
		c.slots.free()
	} else if !c.slots.offer(conn) && !conn.Endpoint.putIdle(conn, c.state.Load().idleTimeout) {
		conn.discard()
	}
}

// evictIdle closes one idle connection of the cluster.
func (c *Cluster) evictIdle() {
	c.mu.Lock()
	var all []*Endpoint
	all = append(all, c.state.Load().endpoints...)
	for _, e := range c.byDst {
		all = append(all, e)
	}
	c.mu.Unlock()
	for _, e := range all {
		if conn := e.takeIdle(); conn != nil {
			conn.discard()
			return
		}
		if e.shutIdle() {
			return
		}
	}
}

// dial opens and secures a connection.
func (c *Cluster) dial(parent context.Context, s *state, e *Endpoint, w *Want, what carries) (*Conn, error) {
	deadline := c.set.cfg.Now().Add(s.connectTimeout)
	if !w.Deadline.IsZero() && w.Deadline.Before(deadline) {
		deadline = w.Deadline
	}
	ctx, cancel := context.WithDeadline(parent, deadline)
	defer cancel()

	conn, err := c.establish(ctx, s, e, w, what)
	if err != nil {
		c.Stats.CxConnectFail.Add(1)
		e.Stats.CxConnectFail.Add(1)
		err = connectError(parent, w.Deadline, c.set.cfg.Now(), e, err)
		if failed, ok := errors.AsType[*ConnectError](err); ok {
			outcome := Unreachable
			if failed.Timeout {
				outcome = TimedOut
			}
			e.Observe(outcome, 0, s.connectTimeout)
		}
		return nil, err
	}
	conn.cluster, conn.Endpoint, conn.secured = c, e, s.secured
	conn.look()
	if s.plan.MaxConnAge > 0 {
		conn.born = c.set.cfg.Now()
	}
	return conn, nil
}

func (c *Cluster) establish(ctx context.Context, s *state, e *Endpoint, w *Want, what carries) (*Conn, error) {
	source := sourceFor(s.plan.BindAddress, e.Address.Addr())
	t := s.plan.TLS
	secure := t != nil && (!t.Auto || e.MTLS)
	if secure && t.Certificate != "" && c.set.cfg.Identity != nil && c.set.cfg.Identity.Current() == nil {
		return nil, mtls.ErrNoIdentity // before bothering the other side
	}
	nc, err := c.set.cfg.Network.Dial(ctx, source, e.Address)
	if err != nil {
		return nil, err
	}
	if k := s.plan.Keepalive; k != nil {
		keepAlive(nc, k)
	}
	conn := &Conn{Conn: nc, Local: addrPort(nc.LocalAddr()), Remote: e.Address}
	if v := s.plan.ProxyProtocol; v > 0 {
		conn.personal = true
		if err := introduce(ctx, nc, proxyproto.Version(v), w); err != nil {
			nc.Close()
			return nil, err
		}
	}
	if !secure {
		return conn, nil
	}
	config := s.tls[what]
	if config == nil { // never in plain text what should be secret
		nc.Close()
		return nil, mtls.ErrUnknownSecret
	}
	if w.ALPN != nil {
		config = config.Clone()
		config.NextProtos = w.ALPN
	}
	secured := mtls.Client(nc, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		nc.Close()
		return nil, err
	}
	cs := secured.ConnectionState()
	conn.Conn = secured
	conn.PeerID = mtls.PeerID(cs)
	conn.MTLS = t.Certificate != ""
	conn.ALPN = cs.NegotiatedProtocol
	return conn, nil
}

// introduce tells the server whose connection this is. The header is shorter than
// any socket's buffer is, so that writing it does not wait.
func introduce(ctx context.Context, c net.Conn, v proxyproto.Version, w *Want) error {
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetWriteDeadline(deadline); err != nil {
			return err
		}
		defer c.SetWriteDeadline(time.Time{})
	}
	_, err := c.Write(proxyproto.Append(nil, v, w.Client, w.OriginalDst))
	return err
}

// keepAlive lets the system probe a connection as the cluster says. What it leaves
// open stays as it is; connections that are not the system's have no probes.
func keepAlive(c net.Conn, k *plan.Keepalive) {
	s, ok := c.(interface {
		SetKeepAliveConfig(net.KeepAliveConfig) error
	})
	if !ok {
		return
	}
	config := net.KeepAliveConfig{Enable: true, Idle: -1, Interval: -1, Count: -1}
	if k.Time > 0 {
		config.Idle = k.Time
	}
	if k.Interval > 0 {
		config.Interval = k.Interval
	}
	if k.Probes > 0 {
		config.Count = int(k.Probes)
	}
	s.SetKeepAliveConfig(config)
}

// The addresses from which a proxy calls its own workload, so that redirection
// lets the connection pass. Source: Istio; ::6 is its counterpart for IPv6.
var (
	passthrough4 = netip.AddrFrom4([4]byte{127, 0, 0, 6})
	passthrough6 = netip.AddrFrom16([16]byte{15: 6})
)

// sourceFor returns the address to call to from. A cluster names one; where the
// client chose the destination, it may be of the other family, and called from
// any address the call would come back to this proxy.
func sourceFor(bind, to netip.Addr) netip.Addr {
	to = to.Unmap()
	switch {
	case !bind.IsValid() || bind.Is4() == to.Is4():
		return bind
	case to.Is4():
		return passthrough4
	}
	return passthrough6
}
