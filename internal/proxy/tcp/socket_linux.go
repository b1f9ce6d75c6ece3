package tcp

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of this file are made without telling the scheduler. On sockets
// that do not block, the thread is back in the time of copying a bufferful; and
// between two sockets of one machine the call does the receiver's work as well, so
// that the scheduler would take the processor away from nearly each of them, and
// wake a thread to use it.

// reader reads of a socket.
type reader struct {
	raw syscall.RawConn
	try func(fd uintptr) bool // made once, so that a call allocates nothing

	s   *source
	n   int
	err syscall.Errno
}

func newReader(c *net.TCPConn) *reader {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil // closed: the other way of reading says so
	}
	r := &reader{raw: raw}
	r.try = r.once
	return r
}

func (r *reader) read(s *source) ([]byte, error) {
	r.s = s
	if err := r.raw.Read(r.try); err != nil {
		return nil, err
	}
	switch {
	case r.err != 0:
		return nil, os.NewSyscallError("read", r.err)
	case r.n == 0:
		return nil, io.EOF
	}
	return s.big[:r.n], nil
}

// once has a buffer only while there is something to read.
func (r *reader) once(fd uintptr) bool {
	if r.s.big == nil {
		r.s.big = buffers.Get().(*[bufferSize]byte)
	}
	for {
		n, _, e := syscall.RawSyscall(syscall.SYS_READ, fd, uintptr(unsafe.Pointer(r.s.big)), bufferSize)
		switch e {
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			r.s.release()
			return false
		}
		r.n, r.err = int(n), e
		return true
	}
}

const (
	// pipeSize is how much is asked to move at once: as much as an unprivileged
	// process may have in a pipe. With 64 KiB, the pipe's own size, moving takes
	// half as much time again.
	// Source: Linux, fs.pipe-max-size.
	pipeSize = 1 << 20
	// idlePipes bounds how many pipes are kept for the next connection that needs
	// one. An empty one costs two descriptors and 10 KiB of the kernel's memory.
	idlePipes = 16
)

// pipe is what bytes move through, in the kernel: splice(2) wants one at one end.
type pipe struct{ r, w int }

// pipeList keeps empty pipes.
type pipeList struct {
	mu   sync.Mutex // guards free
	free []pipe
}

var pipes pipeList

func (l *pipeList) get() (pipe, error) {
	l.mu.Lock()
	if n := len(l.free); n > 0 {
		p := l.free[n-1]
		l.free = l.free[:n-1]
		l.mu.Unlock()
		return p, nil
	}
	l.mu.Unlock()
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK); err != nil {
		return pipe{}, os.NewSyscallError("pipe2", err)
	}
	// A user who has many pipes gets only small ones. They do as well, slower.
	// Source: Linux, fs.pipe-user-pages-soft.
	_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize)
	return pipe{fds[0], fds[1]}, nil
}

func (l *pipeList) put(p pipe) {
	l.mu.Lock()
	if len(l.free) < idlePipes {
		l.free = append(l.free, p)
		l.mu.Unlock()
		return
	}
	l.mu.Unlock()
	p.close()
}

func (p pipe) close() {
	syscall.Close(p.r)
	syscall.Close(p.w)
}

// splicer moves bytes of one socket to another one, in the kernel. It has a pipe
// only while bytes move.
type splicer struct {
	src, dst syscall.RawConn
	// Made once, so that a call allocates nothing.
	fill, drain func(fd uintptr) bool

	pipe pipe
	has  bool // pipe is one
	in   int  // bytes in it
	end  bool
	err  error
}

// errNoPipe says that bytes have to take the other way.
var errNoPipe = errors.New("no pipe")

// splice copies from src to dst until src ends.
func (r *relay) splice(src, dst *net.TCPConn, count func(int64)) error {
	s, err := newSplicer(src, dst)
	if err != nil {
		return err
	}
	defer s.close()
	for {
		if err := s.src.Read(s.fill); err != nil {
			return err
		}
		if s.err != nil || s.end {
			return s.err
		}
		r.touch()
		for s.in > 0 {
			before := s.in
			err := s.dst.Write(s.drain)
			r.touch()
			count(int64(before - s.in))
			if err == nil {
				err = s.err
			}
			if err != nil {
				return err
			}
		}
	}
}

func newSplicer(src, dst *net.TCPConn) (*splicer, error) {
	s := &splicer{}
	var err error
	if s.src, err = src.SyscallConn(); err != nil {
		return nil, err
	}
	if s.dst, err = dst.SyscallConn(); err != nil {
		return nil, err
	}
	s.fill, s.drain = s.fillOnce, s.drainAll
	return s, nil
}

// fillOnce moves what there is into the pipe, which is empty.
func (s *splicer) fillOnce(fd uintptr) bool {
	if !s.has {
		if s.pipe, s.err = pipes.get(); s.err != nil {
			s.err = errNoPipe
			return true
		}
		s.has = true
	}
	n, e := sysSplice(int(fd), s.pipe.w, pipeSize)
	switch e {
	case 0:
		s.in, s.end = n, n == 0
	case syscall.EAGAIN:
		s.release()
		return false
	case syscall.EINVAL:
		s.err = errNoPipe // no socket of this kind
	default:
		s.err = os.NewSyscallError("splice", e)
	}
	return true
}

// drainAll empties the pipe.
func (s *splicer) drainAll(fd uintptr) bool {
	for s.in > 0 {
		n, e := sysSplice(s.pipe.r, int(fd), s.in)
		switch {
		case e == syscall.EAGAIN:
			return false
		case e == 0 && n == 0:
			s.err = io.ErrShortWrite // the pipe has what was put in
			return true
		case e != 0:
			s.err = os.NewSyscallError("splice", e)
			return true
		}
		s.in -= n
	}
	return true
}

// release gives an empty pipe back.
func (s *splicer) release() {
	if s.has {
		s.has = false
		pipes.put(s.pipe)
	}
}

// close gives the pipe up. What is in it is lost with its connection.
func (s *splicer) close() {
	if s.in > 0 {
		s.has = false
		s.pipe.close()
	}
	s.release()
}

func sysSplice(from, to, n int) (int, syscall.Errno) {
	const nonblock = unix.SPLICE_F_NONBLOCK
	for {
		n, _, e := syscall.RawSyscall6(syscall.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), nonblock)
		if e == 0 {
			return int(n), 0
		}
		if e != syscall.EINTR {
			return 0, e
		}
	}
}

// broken waits until the connection has an error, or is over, or the read deadline
// has come. It reads nothing.
func broken(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil // closed
	}
	var found error
	_ = raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd)}}
		_, err := unix.Poll(p, 0)
		switch {
		case err == syscall.EINTR, p[0].Revents == 0:
			return false
		case p[0].Revents&unix.POLLERR != 0:
			found = os.NewSyscallError("poll", syscall.ECONNRESET)
		}
		return true
	}) // it ends with the connection or the deadline
	return found
}
