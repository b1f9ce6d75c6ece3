package tcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/mtls"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
)

// Ahead is a way to the server that was opened before the client has said a
// word, to find out whether the server is the one who speaks first.
type Ahead struct {
	x      *connection
	server *upstream.Conn
	first  []byte // what the server has said
	half   bool   // reading was interrupted where it can not be taken up again
	hushed atomic.Bool
}

// peekAhead bounds what is read of a server before its client is served.
const peekAhead = 1 << 10

// Open opens a way to the server. The caller ends it with Serve or Close.
func (p *Proxy) Open(info *exchange.Conn) (*Ahead, error) {
	a := &Ahead{x: p.begin(info)}
	err := a.x.refused()
	if err != nil {
		return nil, err // it will be refused when it is served, too
	}
	if a.server, err = a.x.connect(); err != nil {
		return nil, err
	}
	if a.server.ALPN == mtls.PeerExchange {
		if err := mtls.WriteFrame(a.server, p.cfg.OwnMetadata); err != nil {
			a.server.Close()
			return nil, fmt.Errorf("metadata to server: %w", err)
		}
	}
	return a, nil
}

// Spoke waits until the server has said something, and reports whether it has.
// It has not if the server ended the connection first, or Hush was called.
func (a *Ahead) Spoke() bool {
	if a.server.ALPN == mtls.PeerExchange {
		if err := a.x.metadata(a.server); err != nil {
			a.half = true
			return false
		}
	}
	if a.hushed.Load() {
		return false // Hush came while metadata moved the deadline
	}
	b := make([]byte, peekAhead)
	n, err := a.server.Read(b)
	a.first = b[:n]
	a.half = err != nil && !isTimeout(err)
	return n > 0
}

// Hush ends the wait in Spoke, which runs elsewhere.
func (a *Ahead) Hush() {
	a.hushed.Store(true)
	a.server.SetReadDeadline(time.Unix(1, 0))
}

// Serve forwards c over the way that is open, once Spoke has returned.
func (a *Ahead) Serve(ctx context.Context, c net.Conn) error {
	if a.half {
		a.server.Close()
		return a.x.proxy.Serve(ctx, c, a.x.info)
	}
	if err := a.server.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	return a.x.serve(c, a)
}

// Close gives the way up, unused: it does not count as a connection.
func (a *Ahead) Close() { a.server.Close() }

func isTimeout(err error) bool {
	t, ok := errors.AsType[net.Error](err)
	return ok && t.Timeout()
}

// heard is a server's connection of which the first bytes were read.
type heard struct {
	*upstream.Conn
	first []byte
}

// Detach implements what newEnd looks for.
func (h *heard) Detach() (net.Conn, []byte) { return h.Conn.Conn, h.first }
