package http2

import (
	"crypto/tls"
	"io"
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/proxy/socket"
)

// sock reads and writes a connection the way its kind allows.
type sock struct {
	conn net.Conn
	raw  syscall.RawConn // nil: no socket
	tls  bool

	// Made once, so that a call allocates nothing.
	tryRead, tryWrite func(fd uintptr) bool
	tryPoll           func(fd uintptr)

	// What a try was given and left.
	in       *input
	rn       int
	rerr     error
	p        []byte
	wn       int
	werr     error
	writable bool
	fits     int // of TLS: bytes that the socket takes without waiting
	pfd      [1]unix.PollFd
}

func (s *sock) init(c net.Conn) {
	s.conn = c
	inner := c
	if t, ok := c.(*tls.Conn); ok {
		s.tls = true
		// Below may be one that replays the first bytes, which are read by now.
		for inner = t.NetConn(); ; {
			u, ok := inner.(interface{ Unwrap() net.Conn })
			if !ok {
				break
			}
			inner = u.Unwrap()
		}
	}
	if below := socket.Of(inner); below != nil {
		inner = below
	}
	switch inner.(type) {
	case *socket.Conn, *net.TCPConn, *net.UnixConn:
		s.raw, _ = inner.(syscall.Conn).SyscallConn()
	}
	s.tryRead, s.tryWrite, s.tryPoll = s.readOnce, s.writeSome, s.poll
}

// read reads behind what in holds. On an empty socket an empty in gives its memory
// back until there is something: many connections are idle at any time.
func (s *sock) read(in *input) (int, error) {
	if s.raw == nil || s.tls {
		return s.conn.Read(in.room())
	}
	s.in = in
	err := s.raw.Read(s.tryRead)
	s.in = nil
	if err == nil {
		err = s.rerr
	}
	if err != nil {
		return 0, err
	}
	if s.rn == 0 {
		return 0, io.EOF
	}
	return s.rn, nil
}

func (s *sock) readOnce(fd uintptr) bool {
	n, e := socket.Receive(fd, s.in.room())
	if e == syscall.EAGAIN {
		s.in.park()
		return false
	}
	if s.rn, s.rerr = n, nil; e != 0 {
		s.rerr = e
	}
	return true
}

// tlsRecord is what is written to TLS at once: a record, which the socket takes
// without waiting if it is writable at all, for it is that with a third of its
// buffer free.
const tlsRecord = 16 << 10

// perWrite is what the kernel may charge for a write beside its bytes.
const perWrite = 2 << 10

// write writes what can be written without waiting.
func (s *sock) write(p []byte) (int, error) {
	if s.raw == nil {
		return 0, nil
	}
	if !s.tls {
		s.p, s.wn, s.werr = p, 0, nil
		err := s.raw.Write(s.tryWrite)
		s.p = nil
		if err == nil {
			err = s.werr
		}
		return s.wn, err
	}
	n := 0
	for n < len(p) {
		record := p[n:min(n+tlsRecord, len(p))]
		if s.fits < len(record) {
			// Small writes share a look at the socket.
			s.writable = false
			if err := s.raw.Control(s.tryPoll); err != nil {
				return n, err
			}
			if !s.writable {
				break
			}
			s.fits = tlsRecord
		}
		s.fits -= len(record) + perWrite
		k, err := s.conn.Write(record)
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (s *sock) writeSome(fd uintptr) bool {
	for len(s.p) > 0 {
		n, e := socket.Send(fd, s.p)
		switch e {
		case 0:
			s.wn += n
			s.p = s.p[n:]
		case syscall.EAGAIN:
			return true
		default:
			s.werr = e
			return true
		}
	}
	return true
}

// noTime makes a poll a look.
var noTime unix.Timespec

func (s *sock) poll(fd uintptr) {
	s.pfd[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT}
	for {
		n, _, e := syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&s.pfd)), 1, uintptr(unsafe.Pointer(&noTime)), 0, 0, 0)
		if e == syscall.EINTR {
			continue
		}
		// An error is for the write to find.
		s.writable = e != 0 || n > 0
		return
	}
}
