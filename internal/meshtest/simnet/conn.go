package simnet

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Conn is one end of a TCP connection. Besides net.Conn it has the methods of
// *net.TCPConn that a proxy needs.
type Conn struct {
	view     *View
	stream   *stream
	side     int // in stream.ends and stream.pipes: this end's own
	local    netip.AddrPort
	remote   netip.AddrPort
	original netip.AddrPort // where it was dialled to; zero if not redirected
}

// stream is a connection: two ends, and a pipe from each to the other.
type stream struct {
	link   *link // nil within a host
	buffer int

	mu      sync.Mutex
	changed chan struct{} // closed when anything below changes
	ends    [2]end
	pipes   [2]pipe // pipes[i] carries what end i writes
}

// end is what one side did to its socket.
type end struct {
	closed        bool
	readShut      bool
	writeShut     bool
	reset         bool // Close sends RST
	readDeadline  time.Time
	writeDeadline time.Time
}

// pipe is the bytes on their way in one direction.
type pipe struct {
	queue    []segment
	buffered int // bytes in queue
	last     time.Time
	record   *recorder
}

// segment is some bytes, or the end of them.
type segment struct {
	at    time.Time // of arrival, if the link is up
	epoch int       // of the link, when it was sent
	data  []byte
	fin   bool
	rst   bool
}

var (
	errReset      = os.NewSyscallError("read", syscall.ECONNRESET)
	errWriteReset = os.NewSyscallError("write", syscall.ECONNRESET)
	errBroken     = os.NewSyscallError("write", syscall.EPIPE)
)

func newStream(l *link, buffer int) *stream {
	return &stream{link: l, buffer: buffer, changed: make(chan struct{})}
}

// change wakes everybody who waits. The caller holds mu.
func (s *stream) change() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// send puts a segment on its way; order is kept even if the latency shrinks. The
// caller holds mu.
func (s *stream) send(from int, seg segment, l linkState, delay time.Duration) {
	p := &s.pipes[from]
	seg.at, seg.epoch = time.Now().Add(delay), l.epoch
	if seg.at.Before(p.last) {
		seg.at = p.last
	}
	p.last = seg.at
	p.queue = append(p.queue, seg)
	p.buffered += len(seg.data)
	s.change()
}

// Read implements net.Conn.
func (c *Conn) Read(b []byte) (int, error) {
	s := c.stream
	for {
		l := s.link.state()
		s.mu.Lock()
		me, in := &s.ends[c.side], &s.pipes[1-c.side]
		var next time.Time
		n, err := 0, error(nil)
		switch {
		case me.closed:
			err = net.ErrClosed
		case expired(me.readDeadline):
			err = os.ErrDeadlineExceeded
		case me.readShut:
			err = io.EOF
		default:
			n, next, err = in.take(b, l)
			if n > 0 {
				s.change() // there is room again
			}
		}
		changed, deadline := s.changed, me.readDeadline
		s.mu.Unlock()
		if n > 0 || err != nil || len(b) == 0 {
			return n, c.opError("read", err)
		}
		waitFor(changed, l.changed, deadline, next)
	}
}

// take reads what has arrived. Without that it returns when the next segment
// does. Data is read before the end that follows it, however it ended.
func (p *pipe) take(b []byte, l linkState) (n int, next time.Time, err error) {
	for len(p.queue) > 0 && n < len(b) {
		seg := &p.queue[0]
		if !l.through(*seg) {
			return n, l.next(*seg), nil
		}
		if seg.fin || seg.rst {
			if n > 0 {
				return n, time.Time{}, nil
			}
			if seg.rst {
				return 0, time.Time{}, errReset
			}
			return 0, time.Time{}, io.EOF
		}
		m := copy(b[n:], seg.data)
		n += m
		p.buffered -= m
		if seg.data = seg.data[m:]; len(seg.data) == 0 {
			p.queue = p.queue[1:]
		}
	}
	return n, time.Time{}, nil
}

// broken returns the error of a write once the peer's RST is here, or when that
// will be.
func (p *pipe) broken(l linkState) (next time.Time, err error) {
	i := slices.IndexFunc(p.queue, func(s segment) bool { return s.rst })
	switch {
	case i < 0:
		return time.Time{}, nil
	case !l.through(p.queue[i]):
		return l.next(p.queue[i]), nil
	case slices.ContainsFunc(p.queue[:i], func(s segment) bool { return s.fin }):
		return time.Time{}, errBroken
	}
	return time.Time{}, errWriteReset
}

// ends says whether an RST is under way or here.
func (p *pipe) ends() bool {
	return slices.ContainsFunc(p.queue, func(s segment) bool { return s.rst })
}

// Write implements net.Conn.
func (c *Conn) Write(b []byte) (int, error) {
	s := c.stream
	written := 0
	for {
		l := s.link.state()
		s.mu.Lock()
		me, peer := &s.ends[c.side], &s.ends[1-c.side]
		in, out := &s.pipes[1-c.side], &s.pipes[c.side]
		next, err := in.broken(l)
		switch {
		case me.closed:
			err = net.ErrClosed
		case expired(me.writeDeadline):
			err = os.ErrDeadlineExceeded
		case me.writeShut:
			err = errBroken
		case err != nil:
		case peer.closed && out.buffered >= s.buffer:
			// Nothing is taken any more, until the RST that told so is here.
		case peer.closed:
			// The bytes go out and find nobody; the answer is RST.
			if !in.ends() && len(b) > written {
				s.send(1-c.side, segment{rst: true}, l, 2*l.latency)
			}
			out.keep(b[written:])
			written = len(b)
		case peer.readShut:
			out.keep(b[written:])
			written = len(b)
		default:
			if n := min(s.buffer-out.buffered, len(b)-written); n > 0 {
				data := slices.Clone(b[written : written+n])
				s.send(c.side, segment{data: data}, l, l.latency)
				out.keep(data)
				written += n
			}
		}
		changed, deadline := s.changed, me.writeDeadline
		s.mu.Unlock()
		if err != nil || written == len(b) {
			return written, c.opError("write", err)
		}
		waitFor(changed, l.changed, deadline, next)
	}
}

// keep shows a tap what goes out.
func (p *pipe) keep(b []byte) {
	if p.record != nil {
		p.record.add(b)
	}
}

// waitFor returns when a channel is closed, or at the earlier of two times; zero
// times do not count.
func waitFor(changed, linkChanged <-chan struct{}, times ...time.Time) {
	var earliest time.Time
	for _, t := range times {
		if !t.IsZero() && (earliest.IsZero() || t.Before(earliest)) {
			earliest = t
		}
	}
	var timer <-chan time.Time
	if !earliest.IsZero() {
		t := time.NewTimer(time.Until(earliest))
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-changed:
	case <-linkChanged:
	case <-timer:
	}
}

func expired(deadline time.Time) bool { return !deadline.IsZero() && !time.Now().Before(deadline) }

// Close implements net.Conn. As in the kernel, the peer gets FIN, or RST if
// bytes were left unread or SetLinger(0) was called.
func (c *Conn) Close() error {
	s := c.stream
	l := s.link.state()
	s.mu.Lock()
	me := &s.ends[c.side]
	if me.closed {
		s.mu.Unlock()
		return c.opError("close", net.ErrClosed)
	}
	me.closed = true
	unread, late := false, time.Time{}
	for _, seg := range s.pipes[1-c.side].queue {
		if len(seg.data) == 0 {
			continue
		}
		if l.through(seg) {
			unread = true
		} else {
			late = seg.at
		}
	}
	switch {
	case me.reset || unread && !me.readShut:
		s.send(c.side, segment{rst: true}, l, l.latency)
	case !me.writeShut:
		s.send(c.side, segment{fin: true}, l, l.latency)
	}
	if !late.IsZero() && !me.reset && !unread {
		// Bytes under way will find nobody.
		s.send(c.side, segment{rst: true}, l, time.Until(late)+l.latency)
	}
	s.change()
	s.mu.Unlock()

	n := c.view.host.net
	n.mu.Lock()
	delete(c.view.host.conns, c)
	n.mu.Unlock()
	return nil
}

// CloseWrite sends FIN; reading goes on.
func (c *Conn) CloseWrite() error {
	return c.shut("close", func(s *stream, me *end, l linkState) {
		if !me.writeShut {
			me.writeShut = true
			s.send(c.side, segment{fin: true}, l, l.latency)
		}
	})
}

// CloseRead makes reads return io.EOF and throws away what still comes.
func (c *Conn) CloseRead() error {
	return c.shut("close", func(s *stream, me *end, _ linkState) {
		me.readShut = true
		in := &s.pipes[1-c.side]
		in.queue = slices.DeleteFunc(in.queue, func(seg segment) bool { return len(seg.data) > 0 })
		in.buffered = 0
	})
}

// SetLinger with 0 makes Close send RST. Other values change nothing here: what
// was written arrives.
func (c *Conn) SetLinger(sec int) error {
	return c.shut("set", func(_ *stream, me *end, _ linkState) { me.reset = sec == 0 })
}

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	return c.shut("set", func(_ *stream, me *end, _ linkState) { me.readDeadline, me.writeDeadline = t, t })
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	return c.shut("set", func(_ *stream, me *end, _ linkState) { me.readDeadline = t })
}

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	return c.shut("set", func(_ *stream, me *end, _ linkState) { me.writeDeadline = t })
}

// shut changes this end, unless it is closed, and wakes those who wait.
func (c *Conn) shut(op string, f func(s *stream, me *end, l linkState)) error {
	s := c.stream
	l := s.link.state()
	s.mu.Lock()
	defer s.mu.Unlock()
	me := &s.ends[c.side]
	if me.closed {
		return c.opError(op, net.ErrClosed)
	}
	f(s, me, l)
	s.change()
	return nil
}

// LocalAddr implements net.Conn. It is a *net.TCPAddr.
func (c *Conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local) }

// RemoteAddr implements net.Conn. It is a *net.TCPAddr.
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

func (c *Conn) opError(op string, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}
