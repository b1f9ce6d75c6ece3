package router

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/http2"
	"github.com/heddle-mesh/heddle/internal/proxy/mtls"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
)

// hop2 is HTTP/2, as a stream of a connection that is shared with others.
type hop2 struct {
	call   *call
	shared *upstream.Shared
	pipe   *http2.Pipe // nil until the request is sent
	head   http2.Head

	mu sync.Mutex
	// mu guards
	past    time.Time // the deadline
	waiting context.CancelFunc
}

func (h *hop2) prepare() {}

func (h *hop2) finish() { h.head = http2.Head{} }

func (h *hop2) connect(w upstream.Want) (*upstream.Endpoint, error) {
	shared, err := h.call.cluster.Share(h.call.x.Context, w)
	if err != nil {
		return nil, err
	}
	h.shared = shared
	u := &h.call.x.Upstream
	meet(h.call.x, shared.Endpoint)
	u.Local, u.PeerID, u.MTLS = shared.Local, shared.PeerID, shared.MTLS
	return shared.Endpoint, nil
}

// introduce puts into the header what differs between attempts: the number of this
// one, and who calls.
func (r *Router) introduce(x *exchange.Exchange, e *upstream.Endpoint, attempt int) {
	h := &x.Request.Header
	if r.cfg.CountAttempts {
		h.Set(exchange.AttemptCount, x.Keep(strconv.AppendInt(x.Scratch(), int64(attempt), 10)))
	}
	if r.cfg.Metadata == "" {
		return
	}
	h.Del(exchange.PeerMetadata)
	h.Del(exchange.PeerMetadataID)
	if r.introduces(e) {
		h.AddString(exchange.PeerMetadata, mtls.HeaderMetadata, r.cfg.Metadata)
		if r.cfg.MetadataID != "" {
			h.AddString(exchange.PeerMetadataID, mtls.HeaderMetadataID, r.cfg.MetadataID)
		}
	}
}

func (h *hop2) send(body []byte, more bool) (unsent bool, err error) {
	x := h.call.x
	h.call.r.introduce(x, h.call.endpoint, h.call.retries+1)
	http2.RequestHead(&h.head, x)
	end := !more && x.Request.Upgrade == nil && !x.Request.Connect
	b := x.Request.Body
	trailers := end && b != nil && b.Trailers() != nil
	end = end && !trailers
	pipe, err := h.shared.OpenPipe(&h.head, body, end)
	if errors.Is(err, http2.ErrNoExtendedConnect) && h.awaitSettings() {
		pipe, err = h.shared.OpenPipe(&h.head, body, end)
	}
	h.shared.Opened()
	if err != nil {
		return true, err
	}
	if trailers {
		pipe.EndBody(b) // reading tells what is wrong
	}
	if x.Request.IsGRPC() {
		pipe.Body().Messages = &x.Response.Messages
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pipe = pipe
	if !h.past.IsZero() {
		pipe.SetDeadline(h.past)
	}
	return false, nil
}

// awaitSettings waits until the upstream has said what it knows, and reports whether
// it has.
func (h *hop2) awaitSettings() bool {
	ctx, cancel := context.WithTimeout(h.call.x.Context, h.shared.Config().SettingsTimeout)
	defer cancel()
	h.mu.Lock()
	h.waiting = cancel
	if !h.past.IsZero() {
		cancel()
	}
	h.mu.Unlock()
	select {
	case <-h.shared.Ready():
		return true
	case <-ctx.Done():
		return false
	}
}

func (h *hop2) write(p []byte) error {
	_, err := h.pipe.Write(p)
	return err
}

func (h *hop2) end() error { return h.pipe.EndBody(h.call.x.Request.Body) }

func (h *hop2) receive() error {
	head, bare, err := h.pipe.ReadHead()
	if err != nil {
		return err
	}
	http2.ReadResponse(h.call.x, head, bare)
	return nil
}

func (h *hop2) body() exchange.Body {
	if h.call.x.Response.Framing == exchange.NoBody {
		return nil
	}
	return h.pipe.Body()
}

func (h *hop2) tunnel() *exchange.Tunnel { return &exchange.Tunnel{Conn: h.pipe} }

func (h *hop2) skip() bool { return false }

func (h *hop2) spent() bool { return true }

func (h *hop2) failure(err error, unsent bool) failure { return streamFailure(h.shared, err, unsent) }

// streamFailure tells what became of a stream in Envoy's words. Source: Envoy,
// Http::Utility::resetReasonToString and the router's response flags.
func streamFailure(shared *upstream.Shared, err error, unsent bool) failure {
	switch {
	case errors.Is(err, http2.ErrStreams), errors.Is(err, http2.ErrGoingAway):
		return failure{kind: terminated, unsent: true, stale: true, reason: "connection termination"}
	case errors.Is(err, http2.ErrNoExtendedConnect):
		return failure{kind: protocol, unsent: true}
	}
	r, ok := errors.AsType[http2.Reset](err)
	switch {
	case !ok:
		return failure{kind: localReset, unsent: unsent}
	case r.Conn && (r.Remote || r.Code == http2.NoError):
		f := failure{kind: terminated, unsent: unsent || r.Retry, stale: r.Retry, reason: "connection termination", transport: mtls.Reason(r.Cause)}
		select {
		case <-shared.Ready():
		default:
			if f.transport != "" {
				// The server did not accept the certificate; see hop1.
				f.kind, f.unsent, f.stale, f.reason = refused, true, false, "remote connection failure"
			}
		}
		return f
	case r.Remote && r.Code == http2.RefusedStream:
		return failure{kind: refusedStream, unsent: true}
	case r.Remote:
		return failure{kind: remoteReset, unsent: unsent}
	case r.Code == http2.Cancel:
		return failure{kind: localReset, unsent: unsent}
	}
	return failure{kind: protocol}
}

func (h *hop2) cut() kind {
	if err := h.pipe.Err(); err != nil {
		return h.failure(err, false).kind
	}
	return terminated
}

func (h *hop2) release(bool) {
	if h.pipe != nil {
		h.pipe.Close()
	}
	h.shared.Leave()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.shared, h.pipe, h.past, h.waiting = nil, nil, time.Time{}, nil
}

// SetDeadline implements hop. Only one in the past is ever set.
func (h *hop2) SetDeadline(t time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.past = t
	if h.waiting != nil {
		h.waiting()
	}
	if h.pipe != nil {
		return h.pipe.SetDeadline(t)
	}
	return nil
}
