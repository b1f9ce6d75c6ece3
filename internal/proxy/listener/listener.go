// Package listener accepts connections and finds out what they are: where the
// client wanted to go, what it speaks, and which filter chain of the snapshot
// that makes. The chain's handler gets the rest.
//
// A connection's first bytes are looked at only where the look can change the
// choice, so that a protocol in which the server speaks first waits for nothing
// unless the configuration can not do without. Where it must wait, it waits for
// [plan.Inspect].Timeout; Istio's default of 0 waits until the client speaks,
// because guessing after a pause sends TLS to a plain-text port.
package listener

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/life"
	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/mtls"
	"github.com/heddle-mesh/heddle/internal/proxy/snapshot"
	"github.com/heddle-mesh/heddle/internal/proxy/socket"
	"github.com/heddle-mesh/heddle/internal/telemetry"
)

const (
	// DefaultMaxConnections holds two sockets per connection under a limit of
	// 65,536 descriptors, with room left for health checks and the control plane.
	DefaultMaxConnections = 32_000
	// DefaultDrainTime is how long connections of a chain that is gone may go on.
	// Source: Istio's drainDuration.
	DefaultDrainTime = 45 * time.Second
	// DefaultHandshakeTimeout is Envoy's transport socket connect timeout as
	// Istio's users meet it.
	DefaultHandshakeTimeout = 15 * time.Second
	minRetry                = 50 * time.Millisecond // of accept and listen
	maxRetry                = 5 * time.Second
)

// Config is what a Manager needs. Network, Live, Metrics and Log are required.
type Config struct {
	Network socket.Network
	// Live is asked for the listener without socket that a captured connection
	// belongs to.
	Live     *snapshot.Live
	Identity identity.Source // for the name that was presented; may be nil
	Metrics  *telemetry.Registry
	Log      *slog.Logger

	MaxConnections int
	// Refuse reports that a new connection is to be closed because the process is
	// short of memory; nil: none ever is.
	Refuse           func() bool
	HandshakeTimeout time.Duration
	DrainTime        time.Duration
}

// Manager owns the sockets that a snapshot's bound listeners need, and all
// connections accepted on them.
type Manager struct {
	cfg        Config
	handshakes handshakes
	turns      mtls.Turns
	changed    chan struct{} // cap 1
	lastID     atomic.Uint64
	active     atomic.Int64
	ownID      atomic.Pointer[ownID]

	opened, overflow, noChain, handshakeErrors, handshakeOverflow, refused, panics, noHeader *telemetry.Counter

	conns sync.WaitGroup

	mu sync.Mutex
	// mu guards
	newest   *snapshot.Snapshot
	retired  []*snapshot.Chain
	draining map[plan.Direction]bool
	bound    map[netip.AddrPort]*boundListener
}

// ownID is the printed name of one material.
type ownID struct {
	material *identity.Material
	name     string
}

// boundListener is one socket, or the attempt to open it.
type boundListener struct {
	addr netip.AddrPort
	// life ends with the manager; the socket may go earlier, and leaves the
	// connections that were accepted on it to their chains.
	life    context.Context
	current atomic.Pointer[snapshot.Listener]
	open    atomic.Bool
	stop    context.CancelFunc
}

// New checks cfg and returns a manager without sockets.
func New(cfg Config) (*Manager, error) {
	switch {
	case cfg.Network == nil:
		return nil, errors.New("listener: Config.Network is missing")
	case cfg.Live == nil:
		return nil, errors.New("listener: Config.Live is missing")
	case cfg.Metrics == nil:
		return nil, errors.New("listener: Config.Metrics is missing")
	case cfg.Log == nil:
		return nil, errors.New("listener: Config.Log is missing")
	}
	cfg.MaxConnections = cmp.Or(cfg.MaxConnections, DefaultMaxConnections)
	cfg.HandshakeTimeout = cmp.Or(cfg.HandshakeTimeout, DefaultHandshakeTimeout)
	cfg.DrainTime = cmp.Or(cfg.DrainTime, DefaultDrainTime)
	m := &Manager{
		cfg:      cfg,
		turns:    make(mtls.Turns, runtime.GOMAXPROCS(0)),
		changed:  make(chan struct{}, 1),
		draining: make(map[plan.Direction]bool),
		bound:    make(map[netip.AddrPort]*boundListener),

		opened:            cfg.Metrics.Counter("envoy_listener_downstream_cx_total", "Connections accepted."),
		overflow:          cfg.Metrics.Counter("envoy_listener_downstream_cx_overflow", "Connections refused because there were too many."),
		noChain:           cfg.Metrics.Counter("envoy_listener_no_filter_chain_match", "Connections closed because no filter chain matched."),
		handshakeErrors:   cfg.Metrics.Counter("envoy_listener_ssl_connection_error", "TLS handshakes with clients that failed."),
		handshakeOverflow: cfg.Metrics.Counter("heddle_listener_ssl_handshake_overflow", "Connections closed because too many others waited for their TLS handshakes."),
		noHeader:          cfg.Metrics.Counter("envoy_proxy_proto_error", "Connections closed because they did not begin with a right PROXY protocol header."),
		refused:           cfg.Metrics.Counter("envoy_listener_loop_refused", "Connections refused because they were addressed to the proxy itself."),
		panics:            cfg.Metrics.Counter("envoy_server_connection_panics", "Connections that were ended by a fault of the proxy."),
	}
	m.handshakes = handshakes{
		places: maxHandshakes, queue: maxWaiting,
		evicted: cfg.Metrics.Counter("heddle_listener_ssl_handshake_evicted", "TLS handshakes given up for others because their clients took too long."),
	}
	cfg.Metrics.GaugeFunc("envoy_listener_downstream_cx_active", "Connections open.", func() float64 { return float64(m.Active()) })
	return m, nil
}

// Active returns the number of open connections.
func (m *Manager) Active() int64 { return m.active.Load() }

// Update makes the sockets follow s, and begins to drain the chains that s does
// not have any more. It does not wait for either.
func (m *Manager) Update(s *snapshot.Snapshot) {
	m.mu.Lock()
	m.retired = append(m.retired, snapshot.Retired(m.newest, s)...)
	m.newest = s
	for d := range m.draining {
		m.drain(d)
	}
	m.mu.Unlock()
	m.signal()
}

func (m *Manager) signal() {
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// Drain asks the connections of one direction to end soon: HTTP responses carry
// Connection: close. New connections are still accepted, and treated alike, for
// clients need time to learn that they should go elsewhere.
func (m *Manager) Drain(d plan.Direction) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.draining[d] = true
	m.drain(d)
}

func (m *Manager) drain(d plan.Direction) {
	if m.newest == nil {
		return
	}
	for _, l := range m.newest.Listeners {
		if l.Plan.Direction != d {
			continue
		}
		for chain := range l.All() {
			chain.Drain().Begin()
		}
	}
}

// Open reports whether every socket of the newest snapshot is listening.
func (m *Manager) Open() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.newest == nil {
		return false
	}
	for _, l := range m.newest.Listeners {
		if b := m.bound[bindAddress(l)]; l.Plan.Bound && (b == nil || !b.open.Load()) {
			return false
		}
	}
	return true
}

// Sockets returns the addresses that are being listened on, sorted.
func (m *Manager) Sockets() []netip.AddrPort {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []netip.AddrPort
	for addr, b := range m.bound {
		if b.open.Load() {
			out = append(out, addr)
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return out
}

// Run opens and closes sockets as updates ask, until ctx ends. Then it closes all
// sockets at once, and returns when all connections have ended: those that chains
// serve are ended by the context their snapshots were built with, which ends no
// later than ctx. For a gentle end, call Drain some time before.
func (m *Manager) Run(ctx context.Context) error {
	g := life.NewGroup(ctx)
	for {
		m.reconcile(ctx, g)
		select {
		case <-m.changed:
			continue
		case <-ctx.Done():
		}
		break
	}
	err := g.Wait()
	m.conns.Wait()
	return err
}

func (m *Manager) reconcile(ctx context.Context, g *life.Group) {
	m.mu.Lock()
	defer m.mu.Unlock()
	retired := m.retired
	m.retired = nil
	for _, chain := range retired {
		g.Go("drain", func(context.Context) error {
			if cut := chain.Drain().Shut(m.cfg.DrainTime); cut > 0 {
				m.cfg.Log.Info("connections of a removed chain were closed", "chain", chain.Plan.Name, "connections", cut)
			}
			return nil
		})
	}
	if m.newest == nil {
		return
	}
	want := make(map[netip.AddrPort]*snapshot.Listener)
	for name, l := range m.newest.Listeners {
		if !l.Plan.Bound {
			continue
		}
		addr := bindAddress(l)
		if other := want[addr]; other != nil {
			m.cfg.Log.Error("two listeners want one address", "address", l.Plan.Address, "listener", name, "other", other.Plan.Name)
			if other.Plan.Name < name {
				continue
			}
		}
		want[addr] = l
	}
	for addr, b := range m.bound {
		if want[addr] == nil {
			b.stop()
			delete(m.bound, addr)
		}
	}
	for addr, l := range want {
		b := m.bound[addr]
		if b == nil {
			b = &boundListener{addr: addr, life: ctx}
			var bctx context.Context
			bctx, b.stop = context.WithCancel(ctx)
			m.bound[addr] = b
			b.current.Store(l)
			g.Go("listen "+addr.String(), func(context.Context) error {
				m.listen(bctx, b)
				return nil
			})
		}
		b.current.Store(l)
	}
}

// bindAddress is where a listener's socket is opened. What is captured may be IPv6
// as well, whatever the plan says.
func bindAddress(l *snapshot.Listener) netip.AddrPort {
	addr := l.Plan.Address
	if l.Plan.UseOriginalDst && addr.Addr() == netip.IPv4Unspecified() {
		return netip.AddrPortFrom(netip.IPv6Unspecified(), addr.Port())
	}
	return addr
}

// listen opens b's socket, trying for as long as it takes, and accepts until ctx
// ends. An address may be taken for a moment, by a predecessor that is going.
func (m *Manager) listen(ctx context.Context, b *boundListener) {
	retry := minRetry
	for ctx.Err() == nil {
		l, err := m.cfg.Network.Listen(ctx, b.addr)
		if err == nil {
			b.open.Store(true)
			m.cfg.Log.Debug("listening", "address", b.addr)
			m.accept(ctx, b, l)
			b.open.Store(false)
			return
		}
		if ctx.Err() != nil {
			return
		}
		m.cfg.Log.Error("cannot listen, will try again", "address", b.addr, "error", err, "after", retry)
		pause(ctx, retry)
		retry = min(2*retry, maxRetry)
	}
}

// accept takes connections until ctx ends. No error of Accept ends it: running
// out of descriptors passes.
func (m *Manager) accept(ctx context.Context, b *boundListener, l net.Listener) {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer l.Close()
	defer stop()
	retry := minRetry
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			m.cfg.Log.Warn("cannot accept, will try again", "address", b.addr, "error", err)
			pause(ctx, retry)
			retry = min(2*retry, maxRetry)
			continue
		}
		retry = minRetry
		m.opened.Inc()
		if m.cfg.Refuse != nil && m.cfg.Refuse() {
			c.Close()
			continue
		}
		if m.active.Add(1) > int64(m.cfg.MaxConnections) {
			m.active.Add(-1)
			m.overflow.Inc()
			Reset(c)
			continue
		}
		m.conns.Go(func() {
			defer m.active.Add(-1)
			m.guard(b, c)
		})
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// guard keeps a fault in one connection from ending the others.
func (m *Manager) guard(b *boundListener, c net.Conn) {
	defer c.Close()
	defer func() {
		if r := recover(); r != nil {
			m.panics.Inc()
			m.cfg.Log.Error("connection ended by a fault of the proxy", "fault", fmt.Sprint(r), "stack", string(debug.Stack()))
		}
	}()
	m.serve(b, c)
}

// ready is a connection on which all that comes before its chain's handler is done.
type ready struct {
	conn  net.Conn
	info  *exchange.Conn
	chain *snapshot.Chain
	seen  seen
	// leave and stop are for the end.
	leave func()
	stop  func() bool
}

// serve is the way of one connection. It mostly waits, so what needs a larger stack
// than that, above all a handshake, has one of its own.
func (m *Manager) serve(b *boundListener, c net.Conn) {
	var r *ready
	life.Apart(func() { r = m.prepare(b, c) })
	if r == nil {
		return
	}
	defer r.end()
	if err := r.serve(); err != nil {
		m.ended(r, err)
	}
}

func (r *ready) serve() error {
	if r.seen.ahead != nil {
		return r.seen.take().Serve(r.chain.Drain().Soft(), r.conn)
	}
	return r.chain.Handler.Serve(r.chain.Drain().Soft(), r.conn, r.info)
}

func (r *ready) end() {
	if r.chain.TLS != nil {
		r.conn.Close() // says goodbye before the connection below is closed
	}
	r.stop()
	r.leave()
	r.seen.release()
}

func (m *Manager) ended(r *ready, err error) {
	m.cfg.Log.Debug("connection ended", "listener", r.chain.Plan.Name, "remote", r.info.Remote, "destination", r.info.Local, "error", err)
}

// prepare finds out where to, what it is, and whose, and decrypts. It returns nil if
// that was the end.
func (m *Manager) prepare(b *boundListener, c net.Conn) (ok *ready) {
	l := b.current.Load()
	info := &exchange.Conn{
		ID:        m.lastID.Add(1),
		Remote:    addrPort(c.RemoteAddr()),
		Local:     addrPort(c.LocalAddr()),
		Direction: l.Plan.Direction,
	}
	info.Direct = info.Remote

	// Where to. A captured connection has an original destination; one that has
	// none was addressed to the capturing port itself.
	if l.Plan.UseOriginalDst || l.Plan.Direction == plan.Inbound {
		dst, captured := m.cfg.Network.OriginalDst(c)
		captured = captured && dst != info.Local
		if captured {
			info.Local = dst
		}
		if m.loops(info.Local, captured, b) {
			m.refused.Inc()
			m.cfg.Log.Debug("connection to the proxy itself refused", "remote", info.Remote, "destination", info.Local)
			Reset(c)
			return nil
		}
		if l.Plan.UseOriginalDst {
			if s := m.cfg.Live.Current(); s != nil {
				if u := s.Unbound(l.Plan.Direction, info.Local); u != nil {
					l = u
				}
			}
		}
	}

	if l.Plan.ProxyProtocol {
		behind, err := m.behalf(b.life, c, info)
		if err != nil {
			m.noHeader.Inc()
			m.cfg.Log.Debug("no PROXY protocol header", "listener", l.Plan.Name, "remote", info.Remote, "error", err)
			Reset(c)
			return
		}
		if replay, ok := behind.(*Replay); ok {
			defer replay.Release()
		}
		c = behind
	}

	// What is it, and whose.
	seen, err := m.look(b, l, c, info)
	if err != nil {
		m.cfg.Log.Debug("connection ended while it was inspected", "remote", info.Remote, "destination", info.Local, "error", err)
		return nil
	}
	defer func() {
		if ok == nil {
			seen.release()
		}
	}()
	conn, chain := seen.conn, seen.chain
	if chain == nil {
		m.noChain.Inc()
		m.cfg.Log.Debug("no filter chain matches", "listener", l.Plan.Name, "remote", info.Remote, "destination", info.Local)
		Reset(c)
		return nil
	}
	drain := chain.Drain()
	leave, entered := drain.Enter()
	if !entered {
		return nil
	}
	stop := context.AfterFunc(drain.Hard(), func() { c.Close() })
	defer func() {
		if ok == nil {
			stop()
			leave()
		}
	}()

	if chain.TLS != nil {
		tc, err := m.handshake(drain.Hard(), conn, chain.TLS, info)
		if err != nil {
			m.handshakeErrors.Inc()
			m.cfg.Log.Debug("handshake failed", "listener", l.Plan.Name, "remote", info.Remote, "error", err)
			return nil
		}
		conn = tc
	}
	return &ready{conn: conn, info: info, chain: chain, seen: seen, leave: leave, stop: stop}
}

// loops reports whether a connection would be forwarded to a capturing port of
// this proxy, which would forward it again, and so on.
func (m *Manager) loops(dst netip.AddrPort, captured bool, b *boundListener) bool {
	if dst.Port() == b.addr.Port() && !captured {
		return true
	}
	if !dst.Addr().IsLoopback() && !dst.Addr().IsUnspecified() {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for addr, other := range m.bound {
		if addr.Port() == dst.Port() && other.current.Load().Plan.UseOriginalDst {
			return true
		}
	}
	return false
}

func (m *Manager) handshake(ctx context.Context, c net.Conn, cfg *tls.Config, info *exchange.Conn) (*tls.Conn, error) {
	deadline := time.Now().Add(m.cfg.HandshakeTimeout)
	place, err := m.handshakes.begin(ctx, c, deadline)
	if err != nil {
		m.handshakeOverflow.Inc()
		return nil, err
	}
	defer m.handshakes.end(place)
	if err := c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	tc := mtls.Server(c, cfg)
	if err := m.turns.Handshake(tc); err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	state := tc.ConnectionState()
	info.TLS = true
	info.SNI, info.ALPN = hostName([]byte(state.ServerName)), state.NegotiatedProtocol
	info.OwnID = m.own()
	if len(state.PeerCertificates) > 0 {
		peer := state.PeerCertificates[0]
		sum := sha256.Sum256(peer.Raw)
		info.PeerHash, info.PeerSubject = hex.EncodeToString(sum[:]), peer.Subject.String()
		info.PeerID = mtls.PeerID(state)
		info.MTLS = info.PeerID != ""
	}
	return tc, nil
}

// own returns the SPIFFE id that is presented now. A renewal between handshake
// and here changes the certificate, not the name.
func (m *Manager) own() string {
	if m.cfg.Identity == nil {
		return ""
	}
	material := m.cfg.Identity.Current()
	if material == nil {
		return ""
	}
	own := m.ownID.Load()
	if own == nil || own.material != material {
		own = &ownID{material, material.ID.String()}
		m.ownID.Store(own)
	}
	return own.name
}

// Reset closes c so that the client hears of an error, not of an end.
func Reset(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(int) error }); ok {
		l.SetLinger(0)
	}
	c.Close()
}

// addrPort reads an address of the net package; IPv4 in IPv6 form becomes IPv4.
func addrPort(a net.Addr) netip.AddrPort {
	if a == nil {
		return netip.AddrPort{}
	}
	var p netip.AddrPort
	if t, ok := a.(*net.TCPAddr); ok {
		p = t.AddrPort()
	} else if parsed, err := netip.ParseAddrPort(a.String()); err == nil {
		p = parsed
	}
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}
