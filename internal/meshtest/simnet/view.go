package simnet

import (
	"context"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/heddle-mesh/heddle/internal/redirect"
)

// View is the network as one user of a host sees it. It is a socket.Network.
type View struct {
	host           *Host
	uid, gid, mark uint32
}

// firstEphemeral is where Linux begins to give out ports.
const firstEphemeral = 32768

// synTimeout is how long Linux tries to connect: tcp_syn_retries is 6, the first
// after 1 s, and each wait is twice the one before.
const synTimeout = 127 * time.Second

// Kill ends the processes that use this view; see [Host.Kill].
func (v *View) Kill() {
	n := v.host.net
	n.mu.Lock()
	var close []interface{ Close() error }
	for _, l := range v.host.listeners {
		if l.view == v {
			close = append(close, l)
		}
	}
	for _, p := range v.host.packets {
		if p.view == v {
			close = append(close, p)
		}
	}
	for c := range v.host.conns {
		if c.view == v {
			close = append(close, c)
		}
	}
	n.mu.Unlock()
	for _, c := range close {
		c.Close()
	}
}

// Listen accepts TCP connections at addr; port 0 picks one.
func (v *View) Listen(_ context.Context, addr netip.AddrPort) (net.Listener, error) {
	h := v.host
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	fail := func(errno syscall.Errno) (net.Listener, error) {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Addr: net.TCPAddrFromAddrPort(addr), Err: os.NewSyscallError("bind", errno)}
	}
	if !addr.Addr().IsUnspecified() && !h.owns(addr.Addr()) {
		return fail(syscall.EADDRNOTAVAIL)
	}
	if addr.Port() == 0 {
		addr = netip.AddrPortFrom(addr.Addr(), h.freePort())
	}
	if slices.ContainsFunc(h.listeners, func(l *Listener) bool { return overlap(l.addr, addr) }) {
		return fail(syscall.EADDRINUSE)
	}
	l := &Listener{view: v, addr: addr, changed: make(chan struct{})}
	h.listeners = append(h.listeners, l)
	return l, nil
}

// Dial opens a TCP connection from source, or from any address if it is zero.
func (v *View) Dial(ctx context.Context, source netip.Addr, addr netip.AddrPort) (net.Conn, error) {
	c, err := v.dial(ctx, source, addr)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(addr), Err: err}
	}
	return c, nil
}

// DialContext is net.Dialer's, for "tcp" and "udp" and an address without names.
func (v *View) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	addr, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: &net.AddrError{Err: "not an IP address with port", Addr: address}}
	}
	switch network {
	case "tcp", "tcp4", "tcp6":
		return v.Dial(ctx, netip.Addr{}, addr)
	case "udp", "udp4", "udp6":
		return v.dialPacket(addr)
	}
	return nil, &net.OpError{Op: "dial", Net: network, Err: net.UnknownNetworkError(network)}
}

// OriginalDst returns the address that a captured connection was dialled to.
func (v *View) OriginalDst(c net.Conn) (netip.AddrPort, bool) {
	conn, ok := c.(*Conn)
	if !ok || !conn.original.IsValid() {
		return netip.AddrPort{}, false
	}
	return conn.original, true
}

// way is how a connection or a datagram gets from a socket to another.
type way struct {
	host     *Host // where it ends
	link     *link
	source   netip.Addr
	addr     netip.AddrPort // where it ends: after redirection
	original netip.AddrPort // zero if not redirected
}

// route decides where something sent by this view goes. The caller holds net.mu.
func (v *View) route(udp bool, source netip.Addr, port uint16, addr netip.AddrPort) (way, error) {
	h := v.host
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	if addr.Addr().IsUnspecified() { // which Linux takes for loopback
		addr = netip.AddrPortFrom(loopback(addr.Addr()), addr.Port())
	}
	local := h.owns(addr.Addr())
	if !source.IsValid() || source.IsUnspecified() {
		source = h.sourceFor(addr.Addr(), local)
		if !source.IsValid() {
			return way{}, os.NewSyscallError("connect", syscall.ENETUNREACH)
		}
	} else if source = source.Unmap(); !h.owns(source) {
		return way{}, os.NewSyscallError("bind", syscall.EADDRNOTAVAIL)
	}

	p := redirect.Packet{UDP: udp, Src: netip.AddrPortFrom(source, port), Dst: addr, Out: "eth0", UID: v.uid, GID: v.gid, Mark: v.mark}
	if local {
		p.Out = "lo"
	}
	if to := h.decide(p); to != 0 {
		return way{host: h, source: source, addr: netip.AddrPortFrom(loopback(addr.Addr()), to), original: addr}, nil
	}
	if local {
		return way{host: h, source: source, addr: addr}, nil
	}
	if isLocal(source) {
		return way{}, os.NewSyscallError("connect", syscall.EINVAL)
	}
	other := h.net.hosts[addr.Addr()]
	if other == nil {
		return way{}, os.NewSyscallError("connect", syscall.EHOSTUNREACH)
	}
	w := way{host: other, link: h.net.between(h, other), source: source, addr: addr}
	p.In, p.Out, p.UID, p.GID, p.Mark = "eth0", "", 0, 0, 0
	if to := other.decide(p); to != 0 {
		w.addr, w.original = netip.AddrPortFrom(addr.Addr(), to), addr
	}
	return w, nil
}

func (h *Host) decide(p redirect.Packet) uint16 {
	if h.rules == nil {
		return 0
	}
	return h.rules.Decide(p)
}

// owns says whether a is an address of this host: its own, or a local one.
func (h *Host) owns(a netip.Addr) bool { return isLocal(a) || slices.Contains(h.addrs, a.Unmap()) }

// isLocal holds for addresses that every host has: loopback, and the one that
// redirection adds to it.
func isLocal(a netip.Addr) bool {
	_, pass6 := redirect.PassthroughSources()
	return a.IsLoopback() || a == pass6
}

func loopback(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

// sourceFor is the address that a socket without one gets.
func (h *Host) sourceFor(dst netip.Addr, local bool) netip.Addr {
	switch {
	case local && isLocal(dst):
		return loopback(dst)
	case local:
		return dst
	}
	i := slices.IndexFunc(h.addrs, func(a netip.Addr) bool { return a.Is4() == dst.Is4() })
	if i < 0 {
		return netip.Addr{}
	}
	return h.addrs[i]
}

// freePort picks a port that nobody listens on. The caller holds net.mu.
func (h *Host) freePort() uint16 {
	for {
		h.lastPort++
		if h.lastPort < firstEphemeral {
			h.lastPort = firstEphemeral
		}
		port := h.lastPort
		if !slices.ContainsFunc(h.listeners, func(l *Listener) bool { return l.addr.Port() == port }) &&
			!slices.ContainsFunc(h.packets, func(p *PacketConn) bool { return p.addr.Port() == port }) {
			return port
		}
	}
}

// overlap says whether two sockets would hear the same.
func overlap(a, b netip.AddrPort) bool {
	return a.Port() == b.Port() && (a.Addr() == b.Addr() || hears(a.Addr(), b.Addr()) || hears(b.Addr(), a.Addr()))
}

// hears says whether a socket bound to an address gets what is for dst. The IPv6
// wildcard hears IPv4 as well, as Go's sockets do.
func hears(bound, dst netip.Addr) bool {
	switch {
	case bound == dst, bound == netip.IPv6Unspecified():
		return true
	}
	return bound == netip.IPv4Unspecified() && dst.Is4()
}

func (v *View) dial(ctx context.Context, source netip.Addr, addr netip.AddrPort) (*Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, synTimeout, os.NewSyscallError("connect", syscall.ETIMEDOUT))
	defer cancel()

	h := v.host
	h.net.mu.Lock()
	port := h.freePort()
	w, err := v.route(false, source, port, addr)
	h.net.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if err := w.link.cross(ctx); err != nil {
		return nil, err
	}

	s := newStream(w.link, h.net.config.Buffer)
	client := &Conn{view: v, stream: s, side: 0, local: netip.AddrPortFrom(w.source, port), remote: addr}
	server := &Conn{stream: s, side: 1, remote: client.local, local: w.addr, original: w.original}
	if err := h.net.connect(ctx, w, client, server); err != nil {
		if err := w.link.cross(ctx); err != nil {
			return nil, err
		}
		return nil, err
	}
	if err := w.link.cross(ctx); err != nil {
		client.SetLinger(0)
		client.Close()
		return nil, err
	}
	return client, nil
}

// cross takes as long as something needs over the link, which it waits for.
func (l *link) cross(ctx context.Context) error {
	s := l.state()
	for s.down {
		select {
		case <-s.changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		s = l.state()
	}
	if s.latency == 0 {
		return nil
	}
	t := time.NewTimer(s.latency)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// backlog is how many connections wait to be accepted before others have to.
const backlog = 128

// connect puts the server's end into the queue of the listener at w.addr.
func (n *Net) connect(ctx context.Context, w way, client, server *Conn) error {
	for {
		n.mu.Lock()
		l := w.host.listener(w.addr)
		if l == nil {
			n.mu.Unlock()
			return os.NewSyscallError("connect", syscall.ECONNREFUSED)
		}
		if len(l.pending) < backlog {
			server.view = l.view
			if l.addr.Addr().Is6() {
				// A socket for both families reports IPv4 in IPv6 form.
				server.local, server.remote = in6(server.local), in6(server.remote)
			}
			client.view.host.conns[client] = struct{}{}
			w.host.conns[server] = struct{}{}
			n.record(w, client)
			l.pending = append(l.pending, server)
			l.change()
			n.mu.Unlock()
			return nil
		}
		changed := l.changed
		n.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func in6(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
}

// listener finds who hears addr; a socket bound to the very address comes first.
func (h *Host) listener(addr netip.AddrPort) *Listener {
	var best *Listener
	for _, l := range h.listeners {
		if l.addr.Port() != addr.Port() || !hears(l.addr.Addr(), addr.Addr()) {
			continue
		}
		if l.addr.Addr() == addr.Addr() {
			return l
		}
		best = l
	}
	return best
}

// Listener accepts TCP connections.
type Listener struct {
	view *View
	addr netip.AddrPort

	// Guarded by net.mu.
	pending []*Conn
	closed  bool
	changed chan struct{} // closed when pending or closed changes
}

// change wakes everybody who waits. The caller holds net.mu.
func (l *Listener) change() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	n := l.view.host.net
	for {
		n.mu.Lock()
		if l.closed {
			n.mu.Unlock()
			return nil, l.opError("accept")
		}
		if len(l.pending) > 0 {
			c := l.pending[0]
			l.pending = l.pending[1:]
			l.change()
			n.mu.Unlock()
			return c, nil
		}
		changed := l.changed
		n.mu.Unlock()
		<-changed
	}
}

// Close implements net.Listener. Connections nobody accepted are reset.
func (l *Listener) Close() error {
	h := l.view.host
	h.net.mu.Lock()
	if l.closed {
		h.net.mu.Unlock()
		return l.opError("close")
	}
	l.closed = true
	pending := l.pending
	l.pending = nil
	h.listeners = slices.DeleteFunc(h.listeners, func(o *Listener) bool { return o == l })
	l.change()
	h.net.mu.Unlock()
	for _, c := range pending {
		c.SetLinger(0)
		c.Close()
	}
	return nil
}

// Addr implements net.Listener. It is a *net.TCPAddr.
func (l *Listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }

func (l *Listener) opError(op string) error {
	return &net.OpError{Op: op, Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
}
