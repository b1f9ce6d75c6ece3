package filter

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/filter/router"
	"github.com/heddle-mesh/heddle/internal/proxy/http2"
)

// session is a client's connection that speaks HTTP/2. It is the http2.StreamHandler of
// streams that begin, and the owner of their relays.
type session struct {
	s       *Server
	info    *exchange.Conn
	context context.Context
}

// serveHTTP2 is Serve for a connection of HTTP/2. first are bytes that were read
// from it already.
func (s *Server) serveHTTP2(ctx context.Context, c net.Conn, first []byte, info *exchange.Conn) error {
	k := &session{s: s, info: info}
	var cancel context.CancelFunc
	k.context, cancel = connContext(ctx)
	defer cancel()
	conn := http2.NewServer(http2.Config{
		Conn:            c,
		First:           first,
		Handler:         k,
		ExtendedConnect: true,
		Budget:          s.cfg.Budget,
		FrameTimeout:    s.cfg.HeaderTimeout,
		StallTimeout:    s.cfg.StallTimeout,
		IdleTimeout:     s.cfg.IdleTimeout,
		OnPanic: func(v any, stack []byte) {
			s.panics.Inc()
			s.cfg.Logger.Error("panic while a stream was handled", "panic", v, "stack", string(stack))
		},
	})
	return conn.Run(ctx)
}

// OnHeaders implements http2.StreamHandler. While filters may wait, each stream has a
// goroutine; else the router forwards it without, as long as nothing has to be waited
// for.
func (k *session) OnHeaders(b *http2.Batch, s *http2.Stream, h *http2.Head, end bool) {
	if k.s.chain.mayWait() {
		http2.Blocking(k.serve).OnHeaders(b, s, h, end)
		return
	}
	h.Keep()
	f, _ := k.s.relays.Get().(*router.Relay)
	if f == nil {
		f = k.s.chain.router.NewRelay()
	}
	f.Start(b, k, k.exchange(h, end, b.Now()), s, h, end, k.s.chain.request)
}

// OnData implements http2.StreamHandler: relays hear what follows the head.
func (k *session) OnData(*http2.Batch, *http2.Stream, []byte, bool) {}

// OnTrailers implements http2.StreamHandler.
func (k *session) OnTrailers(*http2.Batch, *http2.Stream, *http2.Head) {}

// OnReset implements http2.StreamHandler.
func (k *session) OnReset(*http2.Batch, *http2.Stream, http2.Reset) {}

// OnWindow implements http2.StreamHandler.
func (k *session) OnWindow(*http2.Batch, *http2.Stream, int) {}

// Respond implements router.Owner.
func (k *session) Respond(x *exchange.Exchange, seen int) { k.s.chain.response(x, seen) }

// Observe implements router.Owner.
func (k *session) Observe(x *exchange.Exchange) { k.s.observe(x) }

// Panicked implements router.Owner.
func (k *session) Panicked(x *exchange.Exchange, v any) { k.s.panicked("forwarding", x, v) }

// Free implements router.Owner.
func (k *session) Free(f *router.Relay) { k.s.relays.Put(f) }

// Wait implements router.Owner.
func (k *session) Wait(f *router.Relay, x *exchange.Exchange, seen int, p *http2.Pipe) {
	p.Go(func(p *http2.Pipe) {
		defer f.Drop()
		k.stream(p, x, func() {
			f.Resume(x)
			k.s.chain.response(x, seen)
		})
	})
}

// exchange begins an exchange with a request's head. What is wrong with it is
// answered.
func (k *session) exchange(h *http2.Head, end bool, start time.Time) *exchange.Exchange {
	x := exchange.Get()
	x.Conn, x.Context = k.info, k.context
	x.Start = start
	x.Request.Scheme = scheme(k.info)
	if details := http2.ReadRequest(x, h, end); details != "" {
		x.Fail(exchange.ClientProtocolError, 400, "", details)
	}
	return x
}

// serve handles a stream where filters may wait.
func (k *session) serve(p *http2.Pipe) {
	x := k.exchange(p.Request, p.Bare, k.s.cfg.Now())
	k.stream(p, x, func() {
		if x.Response.Status == 0 {
			k.s.chain.run(x)
		}
	})
}

// stream is a request of such a connection while it is served by a goroutine. It is
// also its exchange.Client.
type stream struct {
	*session
	pipe     *http2.Pipe
	cancel   context.CancelFunc
	begun    bool // the response was
	terminal any  // see exchange.Exchange

	mu sync.Mutex
	// mu guards
	aborted bool      // AbortRead was called
	sends   time.Time // the read deadline while a body comes
}

// stream serves x as a Pipe; handle answers it.
func (k *session) stream(p *http2.Pipe, x *exchange.Exchange, handle func()) {
	st, _ := k.s.streams.Get().(*stream)
	if st == nil {
		st = &stream{}
	}
	st.session, st.pipe, st.begun, st.aborted, st.sends = k, p, false, false, time.Time{}
	st.one(x, handle)
	st.session, st.pipe, st.cancel = nil, nil, nil
	k.s.streams.Put(st)
}

func (st *stream) one(x *exchange.Exchange, handle func()) {
	defer exchange.Put(x)
	ctx, cancel := context.WithCancel(st.context)
	defer cancel()
	st.cancel = cancel
	x.Client, x.Context, x.Terminal = st, ctx, &st.terminal

	// 1st: the body, if there is one.
	if q := &x.Request; q.Framing != exchange.NoBody {
		b := st.pipe.Body()
		if q.IsGRPC() {
			b.Messages = &q.Messages
		}
		q.Body = b
		x.Uploading.Store(true)
	}

	// 2nd: the answer, and the way back.
	complete := st.answer(x, handle)
	st.s.finish(x, complete)
	st.pipe.Unwatch()

	// 3rd: the account.
	st.s.observe(x)
}

// answer has the request handled and sends the response, and reports whether all of
// it was sent. A panic ends this stream, and no other.
func (st *stream) answer(x *exchange.Exchange, handle func()) (complete bool) {
	defer func() {
		if p := recover(); p != nil {
			complete = false
			st.s.panicked("handling", x, p)
			if !st.begun {
				x.Reply(500, "", "panic")
				st.pipe.Send(x)
			}
		}
	}()
	handle()
	st.begun = true
	return st.send(x)
}

// send writes the response, and reports whether all of it was written. What is not
// complete is reset, by the Pipe.
func (st *stream) send(x *exchange.Exchange) bool {
	if x.ClientGone || x.Response.Status == 0 {
		return false
	}
	err := st.pipe.Send(x)
	if _, body := errors.AsType[*http2.BodyError](err); err != nil && !body {
		r, reset := errors.AsType[http2.Reset](err)
		left(x, reset && !r.Remote && r.Code == http2.Cancel)
	}
	if err == nil && x.Tunnel != nil {
		st.pipe.Unwatch()
		tunnel(x, st.pipe, nil)
	}
	return err == nil
}

// Interim implements exchange.Client.
func (st *stream) Interim(x *exchange.Exchange) error { return st.pipe.Interim(x) }

// Watch implements exchange.Client.
func (st *stream) Watch(gone func()) {
	cancel := st.cancel
	st.pipe.Watch(func() {
		cancel()
		gone()
	})
}

// AbortRead implements exchange.Client.
func (st *stream) AbortRead() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.aborted = true
	st.pipe.SetReadDeadline(past)
}

// Progress implements exchange.Client. The deadline is moved when half of the time
// is over, not for each piece.
func (st *stream) Progress() {
	now := st.s.cfg.Now()
	st.mu.Lock()
	defer st.mu.Unlock()
	if !st.aborted && st.sends.Sub(now) < st.s.cfg.StallTimeout/2 {
		st.sends = now.Add(st.s.cfg.StallTimeout)
		st.pipe.SetReadDeadline(st.sends)
	}
}
