package upstream

import (
	"net"
	"net/netip"
	"syscall"
	"time"
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

	cluster   *Cluster
	secured   uint64 // the cluster's TLS generation it was made under
	requests  uint32
	idleSince time.Time
	waiting   bool // counted as request in flight
	closed    bool
	quieter   quieter
	probe     probe
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

// stale reports whether an idle connection can not be used: because the other
// side closed it, or sent something nobody asked for.
func (c *Conn) stale() bool {
	if c.quieter != nil {
		return !c.quieter.Quiet()
	}
	return c.probe.raw != nil && !c.probe.quiet()
}

// quieter is what connections that are not sockets may offer in the place of a
// look at the socket.
type quieter interface {
	// Quiet reports, without blocking, that neither bytes nor the end of the
	// stream wait to be read.
	Quiet() bool
}

// netConner is what TLS connections have.
type netConner interface{ NetConn() net.Conn }

// setProbe finds the socket below, through TLS.
func (c *Conn) setProbe() {
	inner := c.Conn
	for {
		n, ok := inner.(netConner)
		if !ok {
			break
		}
		inner = n.NetConn()
	}
	if q, ok := inner.(quieter); ok {
		c.quieter = q
	} else if s, ok := inner.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			c.probe.init(raw)
		}
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		p := t.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return netip.AddrPort{}
}
