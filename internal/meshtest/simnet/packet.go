package simnet

import (
	"context"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"
)

// PacketConn is a UDP socket. A connected one, from DialContext, hears only its
// peer, and an error if nobody is there.
type PacketConn struct {
	view   *View
	addr   netip.AddrPort
	remote netip.AddrPort // zero if not connected

	// Guarded by net.mu.
	queue         []datagram
	closed        bool
	readDeadline  time.Time
	writeDeadline time.Time
	changed       chan struct{} // closed when anything above changes
}

type datagram struct {
	at   time.Time // of arrival
	from netip.AddrPort
	data []byte
	err  error // instead of data: what ICMP says
}

const (
	// maxDatagram is what fits into an IPv4 packet.
	maxDatagram = 65507
	// maxQueue is how many datagrams a socket holds; more are lost.
	maxQueue = 512
)

// natKey names a redirected flow by the address that the receiver answers to,
// and its own.
type natKey struct{ client, server netip.AddrPort }

// natEntry is what the flow looks like to the client.
type natEntry struct{ client, original netip.AddrPort }

// ListenPacket opens a UDP socket; port 0 picks one.
func (v *View) ListenPacket(_ context.Context, addr netip.AddrPort) (net.PacketConn, error) {
	return v.openPacket(addr, netip.AddrPort{})
}

func (v *View) dialPacket(addr netip.AddrPort) (net.Conn, error) {
	wildcard := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	if addr.Addr().Unmap().Is6() {
		wildcard = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	}
	c, err := v.openPacket(wildcard, netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()))
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (v *View) openPacket(addr, remote netip.AddrPort) (*PacketConn, error) {
	h := v.host
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	fail := func(errno syscall.Errno) (*PacketConn, error) {
		return nil, &net.OpError{Op: "listen", Net: "udp", Addr: net.UDPAddrFromAddrPort(addr), Err: os.NewSyscallError("bind", errno)}
	}
	if !addr.Addr().IsUnspecified() && !h.owns(addr.Addr()) {
		return fail(syscall.EADDRNOTAVAIL)
	}
	if addr.Port() == 0 {
		addr = netip.AddrPortFrom(addr.Addr(), h.freePort())
	}
	if slices.ContainsFunc(h.packets, func(p *PacketConn) bool { return overlap(p.addr, addr) }) {
		return fail(syscall.EADDRINUSE)
	}
	p := &PacketConn{view: v, addr: addr, remote: remote, changed: make(chan struct{})}
	h.packets = append(h.packets, p)
	return p, nil
}

// change wakes everybody who waits. The caller holds net.mu.
func (p *PacketConn) change() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// ReadFrom implements net.PacketConn.
func (p *PacketConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := p.read(b)
	if err != nil {
		return 0, nil, err
	}
	return n, net.UDPAddrFromAddrPort(from), nil
}

// Read implements net.Conn.
func (p *PacketConn) Read(b []byte) (int, error) {
	n, _, err := p.read(b)
	return n, err
}

func (p *PacketConn) read(b []byte) (int, netip.AddrPort, error) {
	nw := p.view.host.net
	for {
		nw.mu.Lock()
		var next time.Time
		switch {
		case p.closed:
			nw.mu.Unlock()
			return 0, netip.AddrPort{}, p.opError("read", net.ErrClosed)
		case expired(p.readDeadline):
			nw.mu.Unlock()
			return 0, netip.AddrPort{}, p.opError("read", os.ErrDeadlineExceeded)
		case len(p.queue) > 0 && !p.queue[0].at.After(time.Now()):
			d := p.queue[0]
			p.queue = p.queue[1:]
			nw.mu.Unlock()
			if d.err != nil {
				return 0, netip.AddrPort{}, p.opError("read", d.err)
			}
			return copy(b, d.data), d.from, nil
		case len(p.queue) > 0:
			next = p.queue[0].at
		}
		changed, deadline := p.changed, p.readDeadline
		nw.mu.Unlock()
		waitFor(changed, nil, deadline, next)
	}
}

// WriteTo implements net.PacketConn.
func (p *PacketConn) WriteTo(b []byte, to net.Addr) (int, error) {
	addr, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, p.opError("write", &net.AddrError{Err: "not a UDP address", Addr: to.String()})
	}
	if p.remote.IsValid() {
		return 0, p.opError("write", net.ErrWriteToConnected)
	}
	return p.write(b, addr.AddrPort())
}

// Write implements net.Conn.
func (p *PacketConn) Write(b []byte) (int, error) {
	if !p.remote.IsValid() {
		return 0, p.opError("write", syscall.EDESTADDRREQ)
	}
	return p.write(b, p.remote)
}

func (p *PacketConn) write(b []byte, to netip.AddrPort) (int, error) {
	h := p.view.host
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	switch {
	case p.closed:
		return 0, p.opError("write", net.ErrClosed)
	case expired(p.writeDeadline):
		return 0, p.opError("write", os.ErrDeadlineExceeded)
	case len(b) > maxDatagram:
		return 0, p.opError("write", os.NewSyscallError("write", syscall.EMSGSIZE))
	}
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())

	// An answer to a redirected datagram goes back to where that came from, in
	// the name of whom it was sent to; if it leaves from the address that the
	// datagram was redirected to.
	self := p.addr.Addr()
	if self.IsUnspecified() {
		self = h.sourceFor(to.Addr(), h.owns(to.Addr()))
	}
	if e, ok := h.nat[natKey{to, netip.AddrPortFrom(self, p.addr.Port())}]; ok {
		if client := h.packet(e.client, e.original); client != nil {
			client.deliver(datagram{at: time.Now(), from: e.original, data: slices.Clone(b)})
		}
		return len(b), nil
	}

	w, err := p.view.route(true, p.addr.Addr(), p.addr.Port(), to)
	if err != nil {
		return 0, p.opError("write", err)
	}
	from := netip.AddrPortFrom(w.source, p.addr.Port())
	if w.original.IsValid() && w.host == h {
		from = h.translate(from, w)
	}
	if w.link != nil && w.link.down {
		return len(b), nil // and lost
	}
	var delay time.Duration
	if w.link != nil {
		delay = w.link.latency
	}
	if other := w.host.packet(w.addr, from); other != nil {
		other.deliver(datagram{at: time.Now().Add(delay), from: from, data: slices.Clone(b)})
	} else if p.remote.IsValid() {
		p.deliver(datagram{at: time.Now().Add(2 * delay), err: os.NewSyscallError("read", syscall.ECONNREFUSED)})
	}
	return len(b), nil
}

// translate remembers a redirected flow, and returns the address that the
// receiver sees it come from: the sender's, unless that has a flow to another
// original address already.
func (h *Host) translate(client netip.AddrPort, w way) netip.AddrPort {
	seen := client
	for {
		key, want := natKey{seen, w.addr}, natEntry{client, w.original}
		if e, ok := h.nat[key]; !ok || e == want {
			h.nat[key] = want
			return seen
		}
		seen = netip.AddrPortFrom(client.Addr(), h.freePort())
	}
}

// packet finds the socket that hears addr from a sender.
func (h *Host) packet(addr, from netip.AddrPort) *PacketConn {
	var best *PacketConn
	for _, p := range h.packets {
		if p.addr.Port() != addr.Port() || !hears(p.addr.Addr(), addr.Addr()) || p.remote.IsValid() && p.remote != from {
			continue
		}
		if p.addr.Addr() == addr.Addr() {
			return p
		}
		best = p
	}
	return best
}

// deliver queues a datagram in the order of arrival. The caller holds net.mu.
func (p *PacketConn) deliver(d datagram) {
	if len(p.queue) >= maxQueue {
		return
	}
	if p.addr.Addr().Is6() && d.from.IsValid() {
		d.from = in6(d.from)
	}
	i, _ := slices.BinarySearchFunc(p.queue, d.at, func(q datagram, at time.Time) int {
		if q.at.After(at) {
			return 1
		}
		return -1
	})
	p.queue = slices.Insert(p.queue, i, d)
	p.change()
}

// Close implements net.PacketConn.
func (p *PacketConn) Close() error {
	h := p.view.host
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if p.closed {
		return p.opError("close", net.ErrClosed)
	}
	p.closed = true
	h.packets = slices.DeleteFunc(h.packets, func(o *PacketConn) bool { return o == p })
	p.change()
	return nil
}

// LocalAddr implements net.PacketConn. It is a *net.UDPAddr.
func (p *PacketConn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(p.addr) }

// RemoteAddr implements net.Conn. It is a *net.UDPAddr.
func (p *PacketConn) RemoteAddr() net.Addr { return net.UDPAddrFromAddrPort(p.remote) }

// SetDeadline implements net.PacketConn.
func (p *PacketConn) SetDeadline(t time.Time) error { return p.setDeadlines(&t, &t) }

// SetReadDeadline implements net.PacketConn.
func (p *PacketConn) SetReadDeadline(t time.Time) error { return p.setDeadlines(&t, nil) }

// SetWriteDeadline implements net.PacketConn.
func (p *PacketConn) SetWriteDeadline(t time.Time) error { return p.setDeadlines(nil, &t) }

func (p *PacketConn) setDeadlines(read, write *time.Time) error {
	p.view.host.net.mu.Lock()
	defer p.view.host.net.mu.Unlock()
	if p.closed {
		return p.opError("set", net.ErrClosed)
	}
	if read != nil {
		p.readDeadline = *read
	}
	if write != nil {
		p.writeDeadline = *write
	}
	p.change()
	return nil
}

func (p *PacketConn) opError(op string, err error) error {
	e := &net.OpError{Op: op, Net: "udp", Source: p.LocalAddr(), Err: err}
	if p.remote.IsValid() {
		e.Addr = p.RemoteAddr()
	}
	return e
}
