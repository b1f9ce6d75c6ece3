package http1

import (
	"crypto/tls"
	"io"
	"net"
	"syscall"
)

// idle waits for the first bytes of a message without holding a buffer: many
// connections are idle at any time, and a buffer each would be most of the
// proxy's memory.
type idle struct {
	raw  syscall.RawConn
	tls  bool
	step func(fd uintptr) bool // made once per Reader

	// What a step left.
	buf *buffer
	n   int
	err error
	one [1]byte
}

func (i *idle) reset(c net.Conn) {
	i.raw, i.tls, i.buf, i.err = nil, false, nil, nil
	switch c := c.(type) {
	case *net.TCPConn:
		if raw, err := c.SyscallConn(); err == nil {
			i.raw = raw
		}
	case *tls.Conn:
		i.tls = true
	}
	if i.step == nil {
		i.step = i.try
	}
}

// try reads once. On an empty socket it gives the buffer back and asks to be
// called again when there is something; that is the same number of system calls
// as a blocking Read makes.
func (i *idle) try(fd uintptr) bool {
	i.buf = getSmall()
	for {
		i.n, i.err = syscall.Read(int(fd), i.buf.b)
		if i.err != syscall.EINTR {
			break
		}
	}
	if i.err == syscall.EAGAIN {
		i.drop()
		return false
	}
	return true
}

func (i *idle) drop() {
	i.buf.put()
	i.buf = nil
}

// read returns a buffer with at least one byte in it.
func (i *idle) read(c net.Conn) (*buffer, int, error) {
	switch {
	case i.raw != nil:
		err := i.raw.Read(i.step)
		if err == nil {
			err = i.err
		}
		if err == nil && i.n == 0 {
			err = io.EOF
		}
		b, n := i.buf, i.n
		i.buf = nil
		if err != nil {
			if b != nil {
				b.put()
			}
			return nil, 0, err
		}
		return b, n, nil
	case i.tls:
		// The record that holds the byte is decrypted into memory of the TLS
		// connection; the next read takes the rest of it without a system call.
		if n, err := c.Read(i.one[:]); n == 0 {
			return nil, 0, noData(err)
		}
		b := getSmall()
		b.b[0] = i.one[0]
		return b, 1, nil
	}
	b := getSmall()
	n, err := c.Read(b.b)
	if n == 0 {
		b.put()
		return nil, 0, noData(err)
	}
	return b, n, nil
}

func noData(err error) error {
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}
