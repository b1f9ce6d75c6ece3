package tcp

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/internal/proxy/mtls"
)

// errIdle ends a relay on which nothing moved for the idle timeout.
var errIdle = errors.New("idle timeout")

// end is one side of a relay.
type end struct {
	conn net.Conn
	// raw is the connection below TLS and replay: what a reset is sent on.
	raw net.Conn
	// socket is raw if it is the kernel's, and nothing on the way to it holds bytes.
	socket *net.TCPConn
	// records is what is between TLS and socket; nil without TLS.
	records *mtls.Transport
	// first are bytes that were read already.
	first []byte
}

// newEnd finds out what is below c.
func newEnd(c net.Conn) end {
	e := end{conn: c, raw: c}
	var records *mtls.Transport
	held := false
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
			if p, ok := c.(interface{ Pending() int }); !ok || p.Pending() > 0 {
				held = true
			}
			e.raw = u.Unwrap()
		case interface{ NetConn() net.Conn }: // tls.Conn, mtls.Transport
			if t, ok := c.(*mtls.Transport); ok {
				records = t
			}
			e.raw = c.NetConn()
		case interface{ Plain() *net.TCPConn }:
			if e.conn == e.raw {
				e.conn = c.Plain()
			}
			e.raw = c.Plain()
		default:
			e.socket, _ = e.raw.(*net.TCPConn)
			if held || e.conn != e.raw && (records == nil || e.socket == nil || records.Bulk(e.socket) != nil) {
				e.socket = nil
			}
			if e.socket != nil {
				e.records = records
			}
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
	// count is told of bytes that passed. It is called from two goroutines.
	count func(up, down int64)

	moved atomic.Int64 // when bytes moved last, in Unix nanoseconds
	ended atomic.Int32 // directions that have

	mu sync.Mutex
	// mu guards
	watch *time.Timer
	err   error // why it ended early
	over  bool
}

// run returns nil if both sides ended in order. Both connections are closed then.
func (r *relay) run() error {
	r.touch()
	r.mu.Lock()
	r.watch = time.AfterFunc(r.idle, r.look)
	r.mu.Unlock()
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
	r.client.conn.Close()
	r.server.conn.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	r.watch.Stop()
	return r.err
}

// look ends the relay if nothing has moved for the idle timeout, and else comes
// back when that may be.
func (r *relay) look() {
	left := r.idle - time.Duration(time.Now().UnixNano()-r.moved.Load())
	if left <= 0 {
		r.end(errIdle)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.over {
		r.watch.Reset(left)
	}
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
	if err == nil {
		err = r.await(src, dst)
	}
	if err != nil {
		r.end(err)
	}
}

// await waits, once src has ended, until the other direction has, too. Until then
// nobody reads src, and if it broke off nobody would hear of it.
func (r *relay) await(src, dst *end) error {
	if r.ended.Add(1) == 2 {
		if dst.socket != nil {
			dst.socket.SetReadDeadline(time.Unix(1, 0))
		}
		return nil
	}
	if src.socket == nil {
		return nil
	}
	return broken(src.socket)
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
	if src.socket != nil && src.records == nil && dst.socket != nil && dst.records == nil {
		if err := r.splice(src.socket, dst.socket, count); !errors.Is(err, errNoPipe) {
			return err
		}
	}
	return r.through(src, dst, count)
}

// through copies by way of the process's memory.
func (r *relay) through(src, dst *end, count func(int64)) error {
	in := newSource(src)
	defer in.release()
	for {
		b, err := in.read()
		if len(b) > 0 {
			r.touch()
			n, werr := dst.write(b)
			r.touch()
			count(int64(n))
			if werr != nil {
				return werr
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}
