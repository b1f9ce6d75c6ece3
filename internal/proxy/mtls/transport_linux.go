package mtls

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Bulk makes ready for Eager and More, which have no effect before. c is the socket
// below, of which nobody holds bytes that were read and not yet handed on. It is
// called once, while no Read or Write is under way.
func (t *Transport) Bulk(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	t.tryRead, t.tryWrite = t.readOnce, t.writeAll
	t.raw = raw
	return nil
}

// Read implements net.Conn.
func (t *Transport) Read(b []byte) (int, error) {
	if t.raw == nil {
		return t.readBelow(b)
	}
	if len(b) == 0 {
		return 0, nil
	}
	t.in = b
	err := t.raw.Read(t.tryRead)
	t.in = nil
	switch {
	case err != nil:
		return 0, err
	case t.inErr == syscall.EAGAIN:
		return 0, ErrAgain
	case t.inErr != 0:
		return 0, os.NewSyscallError("read", t.inErr)
	case t.inN == 0:
		return 0, io.EOF
	}
	return t.inN, nil
}

func (t *Transport) readOnce(fd uintptr) bool {
	t.inN, t.inErr = sysRead(fd, t.in)
	return t.inErr != syscall.EAGAIN || t.eager
}

// Write implements net.Conn.
func (t *Transport) Write(b []byte) (int, error) {
	if t.raw == nil {
		return t.writeBelow(b)
	}
	t.out, t.outN = b, 0
	err := t.raw.Write(t.tryWrite)
	t.out = nil
	if err == nil && t.outErr != 0 {
		err = os.NewSyscallError("write", t.outErr)
	}
	return t.outN, err
}

func (t *Transport) writeAll(fd uintptr) bool {
	flags := unix.MSG_NOSIGNAL | unix.MSG_DONTWAIT
	if t.more.Load() {
		flags |= unix.MSG_MORE
	}
	for t.outN < len(t.out) {
		var n int
		if n, t.outErr = sysSend(fd, t.out[t.outN:], flags); t.outErr != 0 {
			return t.outErr != syscall.EAGAIN
		}
		t.outN += n
	}
	t.outErr = 0
	return true
}

// The calls are made without telling the scheduler: on a socket that does not
// block, the thread is soon back, and telling costs more than a small read.

func sysRead(fd uintptr, b []byte) (int, syscall.Errno) {
	for {
		n, _, e := syscall.RawSyscall(syscall.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if e == 0 {
			return int(n), 0
		}
		if e != syscall.EINTR {
			return 0, e
		}
	}
}

func sysSend(fd uintptr, b []byte, flags int) (int, syscall.Errno) {
	for {
		n, _, e := syscall.RawSyscall6(syscall.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), uintptr(flags), 0, 0)
		if e == 0 {
			return int(n), 0
		}
		if e != syscall.EINTR {
			return 0, e
		}
	}
}
