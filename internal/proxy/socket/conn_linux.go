package socket

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Conn is a TCP connection of the kernel with less between the caller and the
// kernel than net.TCPConn has. What it adds:
//
//   - Read and Write enter the kernel without telling the scheduler. Its sockets
//     never block, and a write to a peer on the same machine, which does the
//     receiver's work as well, would else often cost the goroutine its processor.
//   - Await waits for input with no read that only finds out that there is none.
//   - Quiet looks without reading.
//
// One goroutine at a time reads, and one writes. Deadlines, Close from elsewhere and
// everything else are the net.TCPConn's.
type Conn struct {
	*net.TCPConn
	raw syscall.RawConn

	// Made once, so that a call allocates nothing.
	tryRead, tryWrite, tryAwait, tryWait func(fd uintptr) bool
	look                                 func(fd uintptr)

	// What a try was given, and left. Reader and writer have their own.
	in   []byte
	inN  int
	inE  syscall.Errno
	out  []byte
	outN int
	outE syscall.Errno

	await func() bool
	fd    uintptr // inside Await; ^0 outside
	// sure is set once a read inside Await found nothing: what comes from then on
	// wakes the wait. empty says that nothing has come since.
	sure, empty bool

	quiet bool
	byte  [1]byte

	hangUp func(fd uintptr)
	hungUp bool
}

const outside = ^uintptr(0)

// Wrap makes a Conn of c, or returns c itself if it is no TCP socket.
func Wrap(c net.Conn) net.Conn {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return c
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return c
	}
	w := &Conn{TCPConn: t, raw: raw, fd: outside}
	w.tryRead, w.tryWrite, w.tryAwait, w.look = w.readOnce, w.writeAll, w.step, w.peek
	w.hangUp, w.tryWait = w.poll, w.heard
	return w
}

// Plain returns the connection below, for what the net package does with two of its
// own.
func (c *Conn) Plain() *net.TCPConn { return c.TCPConn }

// Receive and Send are the system calls. A descriptor in non-blocking mode can not
// keep the thread, so the scheduler need not hear of them. Those of sockets pass less
// of the kernel than read and write do.
func Receive(fd uintptr, p []byte) (int, syscall.Errno) {
	for {
		n, _, e := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), syscall.MSG_DONTWAIT, 0, 0)
		if e == 0 {
			return int(n), 0
		}
		if e != syscall.EINTR {
			return 0, e
		}
	}
}

// Send is the other one: see Receive.
func Send(fd uintptr, p []byte) (int, syscall.Errno) {
	for {
		n, _, e := syscall.RawSyscall6(syscall.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), syscall.MSG_DONTWAIT|syscall.MSG_NOSIGNAL, 0, 0)
		if e == 0 {
			return int(n), 0
		}
		if e != syscall.EINTR {
			return 0, e
		}
	}
}

// Read implements net.Conn. Inside Await it does not wait: see ErrAgain.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if c.fd != outside {
		return c.readInside(p)
	}
	c.in = p
	err := c.raw.Read(c.tryRead)
	c.in = nil
	if err != nil {
		return 0, err
	}
	return c.result(c.inN, c.inE)
}

func (c *Conn) readOnce(fd uintptr) bool {
	c.inN, c.inE = Receive(fd, c.in)
	return c.inE != syscall.EAGAIN
}

func (c *Conn) readInside(p []byte) (int, error) {
	if c.empty {
		return 0, ErrAgain
	}
	n, e := Receive(c.fd, p)
	if e == syscall.EAGAIN {
		c.empty, c.sure = true, true
		return 0, ErrAgain
	}
	// A stream that gave less than it was asked for has no more.
	c.empty = c.sure && n > 0 && n < len(p)
	return c.result(n, e)
}

func (c *Conn) result(n int, e syscall.Errno) (int, error) {
	if e != 0 {
		return 0, c.fault("read", e)
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// fault makes the error that a net.TCPConn returns.
func (c *Conn) fault(op string, e syscall.Errno) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.NewSyscallError(op, e)}
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c.out, c.outN, c.outE = p, 0, 0
	// Inside Await the descriptor can not be closed, and what need not wait needs
	// nothing of the poller.
	if c.fd == outside || !c.writeAll(c.fd) {
		if err := c.raw.Write(c.tryWrite); err != nil {
			c.out = nil
			return c.outN, err
		}
	}
	c.out = nil
	if c.outE != 0 {
		return c.outN, c.fault("write", c.outE)
	}
	return c.outN, nil
}

func (c *Conn) writeAll(fd uintptr) bool {
	for {
		n, e := Send(fd, c.out[c.outN:])
		if e != 0 {
			c.outE = e
			return e != syscall.EAGAIN
		}
		if c.outN += n; c.outN == len(c.out) {
			c.outE = 0
			return true
		}
	}
}

// Await calls try, and again whenever the socket may have something to read, until
// try returns true. The first call comes at once. Inside try, reads of c return
// ErrAgain and do not wait; try returns false only after one did, or where it knows
// that an answer to what it just wrote is all that can come.
//
// Reads by anyone but try, and Close by try itself, would wait for Await to return.
// Only try writes.
//
// A runtime poller's note that a socket is readable is cleared when a wait begins, so
// a net.Conn has to try a read first, which costs a system call whose answer is
// known. Await begins one wait for all calls of try: what comes in between is noted.
// The one thing that this can miss is the end of a stream that came together with
// bytes, for which there is one note only. The deadline of the wait bounds for how
// long; set one.
func (c *Conn) Await(try func() bool) error {
	c.await, c.sure = try, false
	defer c.leave()
	return c.raw.Read(c.tryAwait)
}

func (c *Conn) leave() { c.await, c.fd = nil, outside }

func (c *Conn) step(fd uintptr) bool {
	c.fd, c.empty = fd, false
	return c.await()
}

// Wait returns when there is something to read, or the stream has ended.
func (c *Conn) Wait() error { return c.raw.Read(c.tryWait) }

func (c *Conn) heard(fd uintptr) bool {
	c.peek(fd)
	return !c.quiet
}

// Quiet reports, without blocking, that the socket is open and has nothing to read.
func (c *Conn) Quiet() bool {
	c.quiet = false
	return c.raw.Control(c.look) == nil && c.quiet
}

func (c *Conn) peek(fd uintptr) {
	for {
		_, _, e := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&c.byte)), 1,
			syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
		if e != syscall.EINTR {
			// Anything but "nothing there": bytes, the end, or an error.
			c.quiet = e == syscall.EAGAIN
			return
		}
	}
}

// HungUp reports, without blocking, whether the other side sends no more. It may be
// called from any one goroutine, at any time.
func (c *Conn) HungUp() bool {
	c.hungUp = true
	return c.raw.Control(c.hangUp) != nil || c.hungUp
}

func (c *Conn) poll(fd uintptr) {
	// Unlike a read this sees the end behind what is still to be read.
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(p, 0)
	c.hungUp = n > 0 || err != nil && err != unix.EINTR
}
