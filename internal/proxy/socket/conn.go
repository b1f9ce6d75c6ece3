package socket

import "net"

// ErrAgain is what a Read inside Await returns when there is nothing to read. It
// says that it is temporary, so that crypto/tls lets it pass and can be asked again.
var ErrAgain error = again{}

type again struct{}

func (again) Error() string   { return "socket: nothing to read yet" }
func (again) Timeout() bool   { return false }
func (again) Temporary() bool { return true }

// Of returns the socket below c, through TLS and whatever else says what is below
// it, or nil if there is none.
func Of(c net.Conn) *Conn {
	for {
		switch v := c.(type) {
		case *Conn:
			return v
		case interface{ NetConn() net.Conn }:
			c = v.NetConn()
		case interface{ Unwrap() net.Conn }:
			c = v.Unwrap()
		default:
			return nil
		}
	}
}
