package tcp

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// reportEvery is how often bytes are counted while they pass through the
	// kernel alone. Metrics lag by at most this much.
	reportEvery = 5 * time.Second
	// bigBuffer is what a busy direction reads into.
	bigBuffer = 64 << 10
	// smallBuffer is what a quiet direction waits with: most connections are
	// quiet most of the time, and a big buffer each would cost more memory than
	// everything else of a connection together.
	smallBuffer = 512
	// quietAfter is how long a busy direction waits for more before it gives its
	// big buffer back.
	quietAfter = time.Second
)

var bigBuffers = sync.Pool{New: func() any { return new([bigBuffer]byte) }}

// errIdle ends a relay on which nothing moved for the idle timeout.
var errIdle = errors.New("idle timeout")

// end is one side of a relay.
type end struct {
	conn net.Conn
	// raw is the connection below TLS and replay: what a reset is sent on.
	raw net.Conn
	// first are bytes that were read already.
	first []byte
}

// newEnd finds out what is below c.
func newEnd(c net.Conn) end {
	e := end{conn: c, raw: c}
	for {
		switch c := e.raw.(type) {
		case interface{ Detach() (net.Conn, []byte) }:
			if e.conn == e.raw {
				// Nothing is between the bytes and the relay: it can have the
				// socket itself.
				below, first := c.Detach()
				e.conn, e.raw, e.first = below, below, append(e.first[:len(e.first):len(e.first)], first...)
				continue
			}
			// Below TLS, which goes on reading through it.
			u, ok := e.raw.(interface{ Unwrap() net.Conn })
			if !ok {
				return e
			}
			e.raw = u.Unwrap()
		case interface{ Plain() *net.TCPConn }:
			if e.conn != e.raw {
				return e // below TLS
			}
			// Two sockets of the net package are spliced.
			e.conn, e.raw = c.Plain(), c.Plain()
			return e
		case interface{ NetConn() net.Conn }: // tls.Conn
			e.raw = c.NetConn()
		default:
			return e
		}
	}
}

// closeWrite sends the end of this direction's bytes.
func (e *end) closeWrite() error {
	if c, ok := e.conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return e.conn.Close()
}

// reset tells the other side of an error; close ends in order.
func (e *end) reset() {
	if c, ok := e.raw.(interface{ SetLinger(int) error }); ok {
		c.SetLinger(0)
	}
	e.raw.Close()
}

// relay copies between a client and a server until both directions have ended,
// one fails, or nothing moves any more.
type relay struct {
	client, server end
	// fromServer runs before the first byte is read from the server, if set.
	fromServer func() error
	idle       time.Duration
	// count is told of bytes that passed, at least every reportEvery while some do.
	// It is called from two goroutines.
	count func(up, down int64)

	moved atomic.Int64 // when bytes moved last, in Unix nanoseconds

	mu sync.Mutex
	// mu guards
	err  error // why it ended early
	over bool
}

// run returns nil if both sides ended in order. Both connections are closed then.
func (r *relay) run() error {
	r.touch()
	watch := time.NewTimer(r.idle)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-watch.C:
			}
			left := r.idle - time.Duration(time.Now().UnixNano()-r.moved.Load())
			if left <= 0 {
				r.end(errIdle)
				return
			}
			watch.Reset(left)
		}
	})
	var both sync.WaitGroup
	both.Go(func() {
		if r.fromServer != nil {
			if err := r.fromServer(); err != nil {
				r.end(err)
				return
			}
		}
		r.direction(&r.server, &r.client, func(n int64) { r.count(0, n) })
	})
	r.direction(&r.client, &r.server, func(n int64) { r.count(n, 0) })
	both.Wait()
	close(done)
	watch.Stop()
	wg.Wait()
	r.client.conn.Close()
	r.server.conn.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

func (r *relay) touch() { r.moved.Store(time.Now().UnixNano()) }

// end closes both connections early, which also ends the other direction. Only
// the first call has an effect: what follows is its consequence.
func (r *relay) end(err error) {
	r.mu.Lock()
	if r.over {
		r.mu.Unlock()
		return
	}
	r.over, r.err = true, err
	r.mu.Unlock()
	if errors.Is(err, errIdle) {
		r.client.conn.Close()
		r.server.conn.Close()
		return
	}
	// One side broke off. The other has to hear that too: an orderly end would
	// tell it that it has got everything.
	r.client.reset()
	r.server.reset()
}

// direction copies from src to dst until src ends, and passes the end on.
func (r *relay) direction(src, dst *end, count func(int64)) {
	err := r.copy(src, dst, count)
	if err == nil {
		err = dst.closeWrite()
	}
	if err != nil {
		r.end(err)
	}
}

func (r *relay) copy(src, dst *end, count func(int64)) error {
	if len(src.first) > 0 {
		n, err := dst.conn.Write(src.first)
		src.first = nil
		count(int64(n))
		if err != nil {
			return err
		}
	}
	if s, ok := src.conn.(*net.TCPConn); ok {
		if d, ok := dst.conn.(*net.TCPConn); ok {
			return r.splice(s, d, count)
		}
	}
	return r.buffered(src.conn, dst.conn, count)
}

// splice lets the kernel move the bytes. While they move, it comes back every
// now and then to count them; while none do, it sleeps on the socket and holds
// neither a pipe nor a buffer.
func (r *relay) splice(src, dst *net.TCPConn, count func(int64)) error {
	every := min(reportEvery, r.idle/2)
	raw, err := src.SyscallConn()
	if err != nil {
		return err
	}
	var b [1]byte
	var broken error
	readable := func(fd uintptr) bool {
		for {
			_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			switch err {
			case syscall.EINTR:
			case syscall.EAGAIN:
				return false
			default:
				// The kernel tells of an error once: the next look sees an end.
				broken = err
				return true
			}
		}
	}
	for {
		if err := src.SetReadDeadline(time.Time{}); err != nil {
			return err
		}
		if err := raw.Read(readable); err != nil {
			return err
		}
		if broken != nil {
			return os.NewSyscallError("recvfrom", broken)
		}
		for n := int64(1); n > 0; {
			if err := src.SetReadDeadline(time.Now().Add(every)); err != nil {
				return err
			}
			n, err = dst.ReadFrom(src)
			if n > 0 {
				r.touch()
				count(n)
			}
			if err == nil {
				return nil
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				return err
			}
		}
	}
}

// buffered copies through the process. It waits with a small buffer, and takes a
// big one while the small one gets full.
func (r *relay) buffered(src, dst net.Conn, count func(int64)) error {
	var small [smallBuffer]byte
	buf := small[:]
	var big *[bigBuffer]byte
	release := func() {
		if big != nil {
			bigBuffers.Put(big)
			big = nil
		}
	}
	defer release()
	for {
		if big != nil {
			if err := src.SetReadDeadline(time.Now().Add(quietAfter)); err != nil {
				return err
			}
		}
		n, err := src.Read(buf)
		if n > 0 {
			r.touch()
			w, werr := dst.Write(buf[:n])
			r.touch()
			count(int64(w))
			if werr != nil {
				return werr
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case big != nil && errors.Is(err, os.ErrDeadlineExceeded):
			release()
			buf = small[:]
			if err := src.SetReadDeadline(time.Time{}); err != nil {
				return err
			}
		case err != nil:
			return err
		case big == nil && n == len(buf):
			big = bigBuffers.Get().(*[bigBuffer]byte)
			buf = big[:]
		}
	}
}
