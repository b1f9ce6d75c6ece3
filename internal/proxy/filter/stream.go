package filter

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/http2"
)

// session is a client's connection that speaks HTTP/2.
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
		Handler:         http2.Blocking(k.serve),
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

// stream is a request of such a connection while it is served. It is also its
// exchange.Client.
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

// serve handles a stream.
func (k *session) serve(p *http2.Pipe) {
	st, _ := k.s.streams.Get().(*stream)
	if st == nil {
		st = &stream{}
	}
	st.session, st.pipe, st.begun, st.aborted, st.sends = k, p, false, false, time.Time{}
	st.one()
	st.session, st.pipe, st.cancel = nil, nil, nil
	k.s.streams.Put(st)
}

// one handles the request.
func (st *stream) one() {
	x := exchange.Get()
	defer exchange.Put(x)
	ctx, cancel := context.WithCancel(st.context)
	defer cancel()
	st.cancel = cancel
	x.Conn, x.Client, x.Context, x.Terminal = st.info, st, ctx, &st.terminal
	x.Start = st.s.cfg.Now()
	x.Request.Scheme = scheme(st.info)

	// 1st: the head.
	end := st.pipe.Bare
	if details := http2.ReadRequest(x, st.pipe.Request, end); details != "" {
		x.Fail(exchange.ClientProtocolError, 400, "", details)
		st.pipe.Send(x)
		st.s.observe(x)
		return
	}
	if q := &x.Request; q.Framing != exchange.NoBody {
		b := st.pipe.Body()
		if q.IsGRPC() {
			b.Messages = &q.Messages
		}
		q.Body = b
		x.Uploading.Store(true)
	}

	// 2nd: the answer, and the way back.
	complete := st.answer(x)
	st.s.finish(x, complete)
	st.pipe.Unwatch()

	// 3rd: the account.
	st.s.observe(x)
}

// answer runs the chain and sends the response, and reports whether all of it was
// sent. A panic ends this stream, and no other.
func (st *stream) answer(x *exchange.Exchange) (complete bool) {
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
	st.s.chain.run(x)
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
