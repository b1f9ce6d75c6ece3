package mtls

import (
	"crypto/tls"
	"net"
	"sync/atomic"
	"syscall"
)

// Transport is what stands between a tls.Conn and its socket. By itself it does
// nothing. Whoever moves much through the tls.Conn can ask it to help batching,
// which crypto/tls, with a system call for each record, does not do:
//
//   - With Eager, a Read that finds nothing returns ErrAgain, so that what is there
//     can be gathered before it is handed on.
//   - With More, the kernel is told that another record follows, and holds a small
//     packet back for it.
//
// One goroutine at a time reads. Writes come from several, one after the other, as
// crypto/tls sees to.
type Transport struct {
	net.Conn
	raw syscall.RawConn // nil until Bulk, and where there is no socket

	// What the reader owns.
	eager    bool
	in       []byte
	inN      int
	inErr    syscall.Errno
	tryRead  func(fd uintptr) bool
	tryWrite func(fd uintptr) bool

	turns Turns // while the handshake goes on; nil takes none

	more atomic.Bool
	// What a write was given and left.
	out    []byte
	outN   int
	outErr syscall.Errno
}

// ErrAgain is returned by an eager Read that found nothing. It is temporary, so
// that crypto/tls keeps what it has of a record and can be asked again.
var ErrAgain error = again{}

type again struct{}

func (again) Error() string   { return "nothing to read yet" }
func (again) Timeout() bool   { return false }
func (again) Temporary() bool { return true }

// Server is tls.Server over a Transport.
func Server(c net.Conn, cfg *tls.Config) *tls.Conn { return tls.Server(&Transport{Conn: c}, cfg) }

// Client is tls.Client over a Transport.
func Client(c net.Conn, cfg *tls.Config) *tls.Conn { return tls.Client(&Transport{Conn: c}, cfg) }

// Turns bounds how many handshakes use the processor at a time, so that many at once
// do not hold up the connections that are there. A handshake has a turn while it
// calculates and gives it back while it waits for the other side.
type Turns chan struct{}

// Handshake does a server's handshake on c, in turns, which may be nil.
func (t Turns) Handshake(c *tls.Conn) error {
	if t == nil {
		return c.Handshake()
	}
	below, _ := c.NetConn().(*Transport)
	t <- struct{}{}
	if below != nil {
		below.turns = t
		defer func() { below.turns = nil }()
	}
	defer func() { <-t }()
	return c.Handshake()
}

// without gives the turn back while f waits.
func (t Turns) without(f func([]byte) (int, error), b []byte) (int, error) {
	<-t
	defer func() { t <- struct{}{} }()
	return f(b)
}

// NetConn returns the connection below.
func (t *Transport) NetConn() net.Conn { return t.Conn }

// More says whether another Write follows at once.
func (t *Transport) More(more bool) { t.more.Store(more) }

// Eager says whether Read returns ErrAgain instead of waiting.
func (t *Transport) Eager(eager bool) { t.eager = eager }

// SetLinger is as net.TCPConn's.
func (t *Transport) SetLinger(sec int) error {
	if c, ok := t.Conn.(interface{ SetLinger(int) error }); ok {
		return c.SetLinger(sec)
	}
	return nil
}

func (t *Transport) readBelow(b []byte) (int, error) {
	if t.turns != nil {
		return t.turns.without(t.Conn.Read, b)
	}
	return t.Conn.Read(b)
}

func (t *Transport) writeBelow(b []byte) (int, error) {
	if t.turns != nil {
		return t.turns.without(t.Conn.Write, b)
	}
	return t.Conn.Write(b)
}
