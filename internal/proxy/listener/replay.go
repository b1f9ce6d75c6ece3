package listener

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

const (
	// firstSize is what a connection's first byte is waited for with.
	firstSize = 64
	// speakTimeout is how long a client that has begun to speak may take until it
	// has said what it speaks, where silence is not limited. It is closed then, and
	// not taken for what it might be: another chain may have other policies.
	// Source: nginx, client_header_timeout.
	speakTimeout = time.Minute
)

// peekSize holds a request head or a ClientHello in nearly all cases.
const peekSize = 4 << 10

var peekBuffers = sync.Pool{New: func() any { return new([peekSize]byte) }}

// Replay is a connection whose first bytes were looked at and are to be read
// again. Once they are read it adds nothing to the connection, and Detach takes
// it out of the way altogether.
type Replay struct {
	net.Conn
	peeked []byte // still to be read
	pooled *[peekSize]byte
}

// Detach returns the connection below and the bytes that have to be read before
// it. The bytes are valid until Release; the Replay is not used as a connection
// after Detach.
func (r *Replay) Detach() (net.Conn, []byte) {
	p := r.peeked
	r.peeked = nil
	return r.Conn, p
}

// Pending is how many bytes have to be read before those of the connection below.
func (r *Replay) Pending() int { return len(r.peeked) }

// Unwrap returns the connection below, for socket options.
func (r *Replay) Unwrap() net.Conn { return r.Conn }

// Release gives up the memory of the peeked bytes.
func (r *Replay) Release() {
	r.peeked = nil
	if r.pooled != nil {
		peekBuffers.Put(r.pooled)
		r.pooled = nil
	}
}

// Read implements net.Conn.
func (r *Replay) Read(b []byte) (int, error) {
	if len(r.peeked) == 0 {
		return r.Conn.Read(b)
	}
	n := copy(b, r.peeked)
	r.peeked = r.peeked[n:]
	if len(r.peeked) == 0 {
		r.Release()
	}
	return n, nil
}

// WriteTo lets io.Copy read from the connection below, which may have a way that
// does not lead through the process's memory.
func (r *Replay) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for len(r.peeked) > 0 {
		n, err := w.Write(r.peeked)
		total += int64(n)
		r.peeked = r.peeked[n:]
		if err != nil {
			return total, err
		}
	}
	r.Release()
	n, err := io.Copy(w, r.Conn)
	return total + n, err
}

// ReadFrom does the same for writing.
func (r *Replay) ReadFrom(src io.Reader) (int64, error) { return io.Copy(r.Conn, src) }

// CloseWrite closes the writing side.
func (r *Replay) CloseWrite() error {
	if c, ok := r.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return r.Conn.Close()
}

// SetLinger is as net.TCPConn's.
func (r *Replay) SetLinger(sec int) error {
	if c, ok := r.Conn.(interface{ SetLinger(int) error }); ok {
		return c.SetLinger(sec)
	}
	return nil
}

// found is what an inspection learned.
type found struct {
	tls   bool
	hello hello
	http  string // protocol, "" if it is not HTTP or was not looked for
}

// errSilent is returned for a connection that ended before its first byte.
var errSilent = errors.New("closed before the first byte")

// inspect reads as much of c as the looks need, at most until the timeout, 0 for
// none before the first byte, and returns a connection that replays it. Running out of time or bytes is
// no error: the connection then is what is known by then.
func inspect(c net.Conn, wantTLS, wantHTTP bool, timeout time.Duration) (found, *Replay, error) {
	var f found
	r := &Replay{Conn: c}
	// Many connections may be open on which nobody says anything. They do with
	// little memory, and what begins to speak has to come to the point.
	buf := make([]byte, 0, firstSize)
	if timeout > 0 {
		if err := c.SetReadDeadline(time.Now().Add(timeout)); err != nil {
			r.Release()
			return f, nil, err
		}
	}
	need := 1
	var limit time.Time // of a client that has begun
	for wantTLS || wantHTTP {
		if len(buf) > 0 && r.pooled == nil {
			r.pooled = peekBuffers.Get().(*[peekSize]byte)
			buf = append(r.pooled[:0], buf...)
			if timeout == 0 {
				limit = time.Now().Add(speakTimeout)
				if err := c.SetReadDeadline(limit); err != nil {
					r.Release()
					return f, nil, err
				}
			}
		}
		if len(buf) == cap(buf) {
			grown := make([]byte, len(buf), 2*cap(buf))
			copy(grown, buf)
			buf = grown
		}
		n, err := c.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if wantTLS && len(buf) >= need {
			var v verdict
			f.hello, need, v = parseHello(buf)
			f.tls = v == present
			wantTLS = v == needMore
			wantHTTP = wantHTTP && !f.tls
		}
		if !wantTLS && wantHTTP {
			var v verdict
			f.http, v = sniffHTTP(buf)
			wantHTTP = v == needMore
		}
		if err == nil {
			continue
		}
		slow := !limit.IsZero() && !time.Now().Before(limit)
		if errors.Is(err, os.ErrDeadlineExceeded) && !slow || errors.Is(err, io.EOF) && len(buf) > 0 {
			break
		}
		r.Release()
		if errors.Is(err, io.EOF) {
			err = errSilent
		}
		return f, nil, err
	}
	if timeout > 0 || !limit.IsZero() {
		if err := c.SetReadDeadline(time.Time{}); err != nil {
			r.Release()
			return f, nil, err
		}
	}
	r.peeked = buf
	if r.pooled != nil && cap(buf) != peekSize {
		peekBuffers.Put(r.pooled)
		r.pooled = nil
	}
	return f, r, nil
}
