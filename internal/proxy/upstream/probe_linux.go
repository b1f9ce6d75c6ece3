package upstream

import (
	"syscall"
	"unsafe"
)

// probe looks at a socket without reading from it or blocking.
type probe struct {
	raw  syscall.RawConn
	look func(fd uintptr) // made once, so that a look allocates nothing
	ok   bool
	byte [1]byte
}

func (p *probe) init(raw syscall.RawConn) {
	p.raw = raw
	p.look = func(fd uintptr) {
		for {
			_, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&p.byte)), 1,
				syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
			if errno != syscall.EINTR {
				// Anything but "nothing there": bytes, the end, or an error.
				p.ok = errno == syscall.EAGAIN
				return
			}
		}
	}
}

// quiet reports that the socket is open and has nothing to read.
func (p *probe) quiet() bool {
	p.ok = false
	return p.raw.Control(p.look) == nil && p.ok
}
