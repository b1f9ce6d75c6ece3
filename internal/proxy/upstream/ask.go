package upstream

import (
	"net"

	"github.com/heddle-mesh/heddle/internal/proxy/socket"
)

// ask writes a request and waits for its answer as one operation.
type ask struct {
	conn net.Conn
	sock *socket.Conn // below conn; nil if there is none
	try  func() bool  // made once

	p     []byte // nil: written
	n     int
	err   error
	began bool
}

// Ask writes p and waits until there may be an answer. An error is that of the
// write; what ends the wait early is for the next Read to find.
//
// The wait begins before p is written, so that no answer can be missed and none is
// looked for that can not be there yet: see socket.Conn.Await.
func (c *Conn) Ask(p []byte) (int, error) {
	a := &c.ask
	if a.sock == nil {
		return c.Conn.Write(p)
	}
	a.p, a.n, a.err, a.began = p, 0, nil, false
	err := a.sock.Await(a.try)
	a.p = nil
	if !a.began {
		return 0, err
	}
	return a.n, a.err
}

func (a *ask) step() bool {
	if a.began {
		return true
	}
	a.began = true
	a.n, a.err = a.conn.Write(a.p)
	return a.err != nil
}
