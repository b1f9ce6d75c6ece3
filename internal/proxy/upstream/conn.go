package upstream

import (
	"net"
	"net/netip"
	"time"

	"github.com/heddle-mesh/heddle/internal/proxy/socket"
)

// Conn is a connection to an endpoint. One goroutine at a time owns it, until it
// hands it to Cluster.Release or closes it; one of the two has to happen.
type Conn struct {
	net.Conn
	Endpoint *Endpoint
	Reused   bool   // it carried a request before
	PeerID   string // SPIFFE id the server proved, or ""
	MTLS     bool
	ALPN     string
	// Local and Remote are the addresses of the socket.
	Local, Remote netip.AddrPort
	// Ended is when its request ended, if who releases it knows.
	Ended time.Time

	cluster   *Cluster
	personal  bool   // the server was told whose it is: not for other clients
	secured   uint64 // the cluster's TLS generation it was made under
	requests  uint32
	born      time.Time // set only where its age matters
	idleSince time.Time
	waiting   bool // counted as request in flight
	closed    bool
	quieter   quieter
	ask       ask
}

// Close closes the connection and gives back what it holds.
func (c *Conn) Close() error {
	c.cluster.finish(c)
	return c.discard()
}

// discard closes a connection that carries no request.
func (c *Conn) discard() error {
	if c.closed {
		return nil
	}
	c.closed = true
	err := c.Conn.Close()
	c.Endpoint.Stats.CxActive.Add(-1)
	c.cluster.freeSlot()
	return err
}

// trust is for how long an idle connection is taken to be good without a look at
// it, if the request can be sent again should it turn out not to be. Most are used
// again before that.
const trust = time.Second

// usable reports whether an idle connection can be used for what is wanted.
func (c *Conn) usable(w *Want) bool {
	if !w.Since.IsZero() && w.Since.Sub(c.idleSince) < trust {
		return true
	}
	return !c.stale()
}

// stale reports whether an idle connection can not be used: because the other
// side closed it, or sent something nobody asked for.
func (c *Conn) stale() bool {
	return c.quieter != nil && !c.quieter.Quiet()
}

// quieter is what connections offer that can be looked at.
type quieter interface {
	// Quiet reports, without blocking, that neither bytes nor the end of the
	// stream wait to be read.
	Quiet() bool
}

// look finds what is below, through TLS.
func (c *Conn) look() {
	inner := c.Conn
	for {
		n, ok := inner.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		inner = n.NetConn()
	}
	c.quieter, _ = inner.(quieter)
	c.ask.sock = socket.Of(inner)
	c.ask.try = c.ask.step
	c.ask.conn = c.Conn
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		p := t.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return netip.AddrPort{}
}
