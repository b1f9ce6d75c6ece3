package router

import (
	"errors"
	"strconv"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/http1"
	"github.com/heddle-mesh/heddle/internal/proxy/mtls"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
)

// hop1 is HTTP/1, on a connection that the request has for itself.
type hop1 struct {
	call *call
	out  *http1.Out
	// common is how much of out is the same for all attempts.
	common int

	*upstream.Conn // of the current attempt
	rd             http1.Reader
	reading        bool
	ended          error // what came in the place of the answer to Ask
}

func (h *hop1) prepare() {
	h.out = http1.GetOut()
	h.out.B = http1.AppendRequest(h.out.B[:0], h.call.x)
	h.common = len(h.out.B)
	// A body of HTTP/2 has no framing of its own, and would be given one under a
	// length, too: what is behind the length would be the upstream's next request.
	if q := &h.call.x.Request; q.Framing == exchange.Chunked {
		q.Body.Raw()
	}
}

func (h *hop1) finish() {
	h.out.Put()
	h.out = nil
}

func (h *hop1) connect(w upstream.Want) (*upstream.Endpoint, error) {
	conn, err := h.call.cluster.Acquire(h.call.x.Context, w)
	if err != nil {
		return nil, err
	}
	h.Conn = conn
	u := &h.call.x.Upstream
	h.call.meet(conn.Endpoint)
	u.Local, u.PeerID, u.MTLS = conn.Local, conn.PeerID, conn.MTLS
	return conn.Endpoint, nil
}

func (h *hop1) send(body []byte, more bool) (unsent bool, err error) {
	c := h.call
	b := h.out.B[:h.common]
	if c.r.cfg.CountAttempts {
		b = append(b, "x-envoy-attempt-count: "...)
		b = strconv.AppendInt(b, int64(c.retries+1), 10)
		b = append(b, "\r\n"...)
	}
	if c.r.introduces(c.endpoint) {
		b = http1.AppendField(b, mtls.HeaderMetadata, c.r.cfg.Metadata)
		if c.r.cfg.MetadataID != "" {
			b = http1.AppendField(b, mtls.HeaderMetadataID, c.r.cfg.MetadataID)
		}
	}
	b = http1.EndHead(b)
	b = append(b, body...)
	h.out.B = b
	h.rd.ResetActive(h.Conn)
	if more {
		n, err := h.Conn.Write(b)
		return n == 0, err
	}
	a := h.Conn.Ask(b, h.rd.Room()) // what follows is the answer
	if a.Lost != nil {
		return a.Sent == 0, a.Lost
	}
	h.rd.Fill(a.Got)
	h.ended = a.Ended
	return false, nil
}

func (h *hop1) write(p []byte) error {
	_, err := h.Conn.Write(p)
	return err
}

func (h *hop1) end() error { return nil } // the framing says so

var errNoResponse = &http1.Error{Details: "http1.bad_start_line"}

func (h *hop1) receive() error {
	if !h.reading {
		h.reading = true
		if h.ended != nil && h.rd.Buffered() == 0 {
			return h.ended
		}
		if err := h.rd.Wait(); err != nil {
			return err
		}
		if !http1.BeginsResponse(h.rd.Peek()) {
			// Not after the end of a head that may never come.
			return errNoResponse
		}
	} else {
		h.rd.Finish()
	}
	head, err := h.rd.ReadHead()
	if err != nil {
		return err
	}
	x := h.call.x
	return http1.ParseResponse(&x.Response, &x.Request, head)
}

func (h *hop1) body() exchange.Body {
	r := &h.call.x.Response
	if b := h.rd.Body(r.Framing, r.Length); b != nil {
		return b
	}
	return nil
}

func (h *hop1) tunnel() *exchange.Tunnel {
	return &exchange.Tunnel{Conn: h.Conn, Early: h.rd.TakeBuffered()}
}

func (h *hop1) skip() bool {
	b := h.body()
	if b != nil {
		if _, whole := b.Buffered(); !whole {
			return false
		}
		b.Take()
	}
	return h.spent()
}

func (h *hop1) spent() bool { return !h.call.x.Response.Close && h.rd.Buffered() == 0 }

func (h *hop1) failure(err error, unsent bool) failure {
	f := failure{kind: terminated, unsent: unsent, reason: "connection termination", transport: mtls.Reason(err)}
	if _, ok := errors.AsType[*http1.Error](err); ok {
		return failure{kind: protocol}
	}
	if f.transport != "" && !h.Reused {
		// In TLS 1.3 a client learns from its first read that the server did not
		// accept its certificate: there never was a connection.
		f.kind, f.unsent, f.reason = refused, true, "remote connection failure"
	}
	// A reused connection that ends without a word was closed while the request
	// was on its way: the upstream has not acted on it, or may be asked again.
	f.stale = h.Reused && f.kind == terminated && h.rd.Buffered() == 0
	return f
}

func (h *hop1) cut() kind { return terminated }

func (h *hop1) release(reusable bool) {
	h.rd.Release()
	h.Conn.Ended = h.call.x.End
	h.call.cluster.Release(h.Conn, reusable)
	h.Conn, h.reading, h.ended = nil, false, nil
}
