package filter

import (
	"io"
	"net"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
)

// tunnel copies bytes between the client, who sent some of them early, and the
// upstream both ways, until both sides have ended, or one has failed.
func tunnel(x *exchange.Exchange, client net.Conn, early []byte) {
	client.SetWriteDeadline(noDeadline)
	up := x.Tunnel.Conn
	up.SetDeadline(noDeadline)
	done := make(chan int64)
	go func() { done <- relay(up, client, early) }()
	x.ResponseBytes = relay(client, up, x.Tunnel.Early)
	x.RequestBytes = <-done
}

// relay copies what is left in early and then all of src to dst. At src's end it
// ends dst's direction; on an error it closes both, so that the other direction
// ends too.
func relay(dst, src net.Conn, early []byte) (n int64) {
	if len(early) > 0 {
		k, err := dst.Write(early)
		if n = int64(k); err != nil {
			return abort(dst, src, n)
		}
	}
	k, err := io.Copy(bare(dst), bare(src))
	n += k
	if err != nil {
		return abort(dst, src, n)
	}
	if w, ok := bare(dst).(closeWriter); ok && w.CloseWrite() == nil {
		return n
	}
	return abort(dst, src, n)
}

func abort(dst, src net.Conn, n int64) int64 {
	// A deadline, not Close: the connections are someone else's to close.
	dst.SetDeadline(past)
	src.SetDeadline(past)
	return n
}

// bare returns the connection below a wrapper that adds accounting only, so that
// the kernel can move the bytes between two sockets.
func bare(c net.Conn) net.Conn {
	if u, ok := c.(*upstream.Conn); ok {
		c = u.Conn
	}
	if s, ok := c.(interface{ Plain() *net.TCPConn }); ok {
		return s.Plain()
	}
	return c
}
