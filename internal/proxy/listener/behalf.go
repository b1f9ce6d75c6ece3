package listener

import (
	"context"
	"net"
	"time"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/proxyproto"
)

// behalf reads the PROXY protocol's header with which c begins, and notes whose
// connection it is. It returns what comes behind the header.
func (m *Manager) behalf(life context.Context, c net.Conn, info *exchange.Conn) (net.Conn, error) {
	defer context.AfterFunc(life, func() { c.Close() })()
	if err := c.SetReadDeadline(time.Now().Add(m.cfg.HandshakeTimeout)); err != nil {
		return nil, err
	}
	r := &Replay{Conn: c, pooled: peekBuffers.Get().(*[peekSize]byte)}
	buf := r.pooled[:0]
	for need := 1; ; {
		n, err := c.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if len(buf) < need {
			if err != nil {
				r.Release()
				return nil, err
			}
			continue
		}
		h, length, more, perr := proxyproto.Parse(buf)
		if perr == nil && more > 0 {
			// What is missing may still come with the next Read; if that was the
			// last one, it says so again.
			need = more
			if err != nil {
				r.Release()
				return nil, err
			}
			continue
		}
		if perr != nil {
			r.Release()
			return nil, perr
		}
		if h.Source.IsValid() {
			info.Remote, info.Local = h.Source, h.Destination
		}
		r.peeked = buf[length:]
		break
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		r.Release()
		return nil, err
	}
	if len(r.peeked) == 0 {
		r.Release()
		return c, nil
	}
	return r, nil
}
