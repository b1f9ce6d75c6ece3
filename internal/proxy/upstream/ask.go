package upstream

import (
	"errors"
	"io"
	"net"

	"github.com/heddle-mesh/heddle/internal/proxy/socket"
)

// ask writes a request and reads the beginning of its answer as one operation.
type ask struct {
	conn net.Conn
	sock *socket.Conn // below conn; nil if there is none
	try  func() bool  // made once

	p, into     []byte
	began       bool
	sent, got   int
	lost, ended error // what ended the writing, and the reading
}

// Answer is what Ask came to.
type Answer struct {
	Sent int
	// Lost is why not all of the request was sent.
	Lost error
	// Got is how much of the answer was read, and Ended why it is nothing.
	Got   int
	Ended error
}

// Ask writes p and reads what comes then.
//
// The wait for it begins before p is written, so that no answer can be missed and
// none is looked for that can not be there yet: see socket.Conn.Await.
func (c *Conn) Ask(p, into []byte) Answer {
	a := &c.ask
	if a.sock == nil {
		n, err := c.Conn.Write(p)
		if err != nil {
			return Answer{Sent: n, Lost: err}
		}
		k, err := c.Conn.Read(into)
		if k == 0 && err == nil {
			err = io.ErrNoProgress
		}
		return Answer{Sent: n, Got: k, Ended: err}
	}
	a.p, a.into, a.began, a.sent, a.got, a.lost, a.ended = p, into, false, 0, 0, nil, nil
	err := a.sock.Await(a.try)
	a.p, a.into = nil, nil
	switch {
	case err == nil:
	case a.began:
		a.ended = err
	default:
		a.lost = err
	}
	return Answer{a.sent, a.lost, a.got, a.ended}
}

func (a *ask) step() bool {
	if !a.began {
		a.began = true
		a.sent, a.lost = a.conn.Write(a.p)
		return a.lost != nil
	}
	a.got, a.ended = a.conn.Read(a.into)
	if a.got == 0 && a.ended == nil {
		a.ended = io.ErrNoProgress
	}
	return !errors.Is(a.ended, socket.ErrAgain)
}
