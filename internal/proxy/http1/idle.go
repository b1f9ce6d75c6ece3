package http1

import (
	"crypto/tls"
	"errors"
	"io"
	"net"

	"github.com/heddle-mesh/heddle/internal/proxy/socket"
)

// idle waits for the first bytes of a message without holding a buffer: many
// connections are idle at any time, and a buffer each would be most of the
// proxy's memory.
type idle struct {
	sock *socket.Conn // below conn; nil if there is none
	conn net.Conn
	step func() bool // made once per Reader
	// secured is set once the connection is known to be past its TLS handshake, which
	// an interrupted read would end for good.
	secured bool

	// What a step left.
	buf *buffer
	n   int
	err error
}

func (i *idle) reset(c net.Conn) {
	i.sock, i.conn, i.buf, i.err, i.secured = nil, c, nil, nil, false
	if c != nil {
		i.sock = socket.Of(c)
	}
	if i.step == nil {
		i.step = i.try
	}
}

// try reads once. Where there is nothing it gives the buffer back and asks to be
// called again when there is something; that is the same number of system calls
// as a blocking Read makes.
func (i *idle) try() bool {
	i.buf = getSmall()
	i.n, i.err = i.conn.Read(i.buf.b)
	if i.n == 0 {
		i.buf.put()
		i.buf = nil
	}
	return i.n > 0 || !errors.Is(i.err, socket.ErrAgain)
}

// read returns a buffer with at least one byte in it.
func (i *idle) read() (*buffer, int, error) {
	i.buf, i.n, i.err = nil, 0, nil
	if !i.secured {
		if c, ok := i.conn.(*tls.Conn); ok {
			if err := c.Handshake(); err != nil {
				return nil, 0, err
			}
		}
		i.secured = true
	}
	if i.sock == nil {
		i.try()
	} else if err := i.sock.Await(i.step); err != nil {
		return nil, 0, err
	}
	b, n := i.buf, i.n
	i.buf = nil
	if n == 0 {
		return nil, 0, noData(i.err)
	}
	return b, n, nil
}

func noData(err error) error {
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}
