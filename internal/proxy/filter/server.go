package filter

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/internal/life"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/http1"
	"github.com/heddle-mesh/heddle/internal/proxy/socket"
)

// Serve handles c until the connection ends, and closes it. When ctx ends, the
// next response, or the one in progress, announces the end of the connection. An
// idle connection is left open for that: closing it could meet a request that is
// on its way. Who ends it for good closes c.
//
// The error is nil if the connection ended in an orderly way. It is an
// *http1.NotHTTPError if the first bytes are no HTTP; then nothing was written,
// and c is still open, without the bytes that the error holds.
func (s *Server) Serve(ctx context.Context, c net.Conn, info *exchange.Conn) error {
	if info.ALPN == "h2" || info.ALPN == "istio-h2" {
		var first []byte
		if r, ok := c.(detacher); ok {
			c, first = r.Detach()
		}
		return s.serveHTTP2(ctx, c, first, info)
	}
	// The goroutine that waits does nothing else: see serveSocket.
	var d *downstream
	life.Apart(func() { d = s.open(ctx, c, info) })
	var err error
	if d.busy.sock != nil {
		err = d.serveSocket()
	} else {
		err = d.serve()
	}
	return d.close(ctx, err)
}

// open makes what is kept of a connection.
func (s *Server) open(ctx context.Context, c net.Conn, info *exchange.Conn) *downstream {
	whole := c
	var first []byte
	if r, ok := c.(detacher); ok {
		c, first = r.Detach()
	}
	d := &downstream{s: s, c: c, info: info, stopping: ctx.Done()}
	d.context, d.cancel = connContext(ctx)
	d.rd.Reset(c, first)
	if r, ok := whole.(interface{ Release() }); ok {
		r.Release() // the first bytes have been copied
	}
	d.busy.init(d, socket.Of(c))
	return d
}

// close ends what open made, after err.
func (d *downstream) close(ctx context.Context, err error) error {
	if d.lingers {
		discard(d.c, d.s.cfg.Now())
	}
	d.cancel()
	d.rd.Release()
	if other, ok := errors.AsType[*http1.NotHTTPError](err); ok {
		d.readUntil(time.Time{})
		if other.HTTP2 {
			return d.s.serveHTTP2(ctx, d.c, other.Read, d.info)
		}
		return err
	}
	return errors.Join(err, closed(d.c.Close()))
}

// detacher is a connection of which someone read the first bytes. Taking it apart
// leaves the socket itself to the reader, which can wait on it without memory.
type detacher interface {
	Detach() (net.Conn, []byte)
}

func closed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// downstream is a client's connection while it is served. It is also the
// exchange.Client of its requests.
type downstream struct {
	s       *Server
	c       net.Conn
	info    *exchange.Conn
	context context.Context
	cancel  context.CancelFunc
	// stopping is closed when the server wants to stop; nil if it never will.
	stopping <-chan struct{}

	rd       http1.Reader
	until    time.Time // the read deadline, zero for none
	takes    time.Time // the write deadline, zero for none
	served   bool      // a request was read
	begun    bool      // its response was begun
	now      time.Time // for the next Write; zero: it has to look
	watching chan struct{}
	terminal any  // see exchange.Exchange
	lingers  bool // the client is to be listened to for a while before Close
	busy     busy

	mu sync.Mutex
	// mu guards
	aborted bool      // AbortRead was called for this request
	sends   time.Time // the read deadline while a body comes
}

// serve handles one request after the other.
func (d *downstream) serve() error {
	for {
		d.park()
		err := d.rd.Wait()
		if err != nil {
			return d.ended(err)
		}
		if more, err := d.one(); !more {
			return err
		}
	}
}

// park makes the connection wait for a request.
func (d *downstream) park() {
	if d.rd.Buffered() > 0 {
		return // the client sent more than one request at once
	}
	// The deadline is moved only when it matters: that is a call into the runtime's
	// timers for each request otherwise.
	want := d.s.cfg.Now().Add(d.s.cfg.IdleTimeout)
	if off := want.Sub(d.until); d.until.IsZero() || off > d.s.cfg.IdleTimeout/8 || off < 0 {
		d.readUntil(want)
	}
}

// isDraining reports whether the server wants to stop.
func (d *downstream) isDraining() bool {
	select {
	case <-d.stopping:
		return true
	default:
		return false
	}
}

// past is a deadline that makes a blocked read return.
var past = time.Unix(1, 0)

// readUntil sets the read deadline.
func (d *downstream) readUntil(t time.Time) {
	d.until = t
	d.c.SetReadDeadline(t)
}

// ended says how a connection ended while it was idle.
func (d *downstream) ended(err error) error {
	if errors.Is(err, io.EOF) || isTimeout(err) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// scheme says how a client reached the mesh.
func scheme(c *exchange.Conn) string {
	if c.TLS || c.MTLS {
		return "https"
	}
	return "http"
}

// begin makes the exchange of the next request.
func (d *downstream) begin() *exchange.Exchange {
	x := exchange.Get()
	x.Conn, x.Client, x.Context, x.Terminal = d.info, d, d.context, &d.terminal
	x.Start = d.s.cfg.Now()
	x.Request.Scheme = scheme(d.info)
	return x
}

// end gives back what begin got, after the last look at x's views.
func (d *downstream) end(x *exchange.Exchange) {
	d.rd.Finish()
	exchange.Put(x)
}

// one handles one request and reports whether there may be another.
func (d *downstream) one() (more bool, err error) {
	x := d.begin()
	if err := d.read(x); err != nil {
		defer d.end(x)
		return false, d.refuse(x, err)
	}
	return d.respond(x), nil
}

// respond handles a request that was read and reports whether there may be another.
func (d *downstream) respond(x *exchange.Exchange) (more bool) {
	defer d.end(x)
	d.served = true
	x.Close = x.Close || d.isDraining()

	// 1st: the answer, and the way back.
	complete := d.answer(x)
	x.Close = x.Close || x.Uploading.Load() // what follows is the rest of a body
	complete = d.s.finish(x, complete) && complete
	d.stopWatching()

	// 2nd: the account.
	d.s.observe(x)
	if !complete || x.Close || x.Tunnel != nil {
		d.linger(x, complete)
		return false
	}
	return true
}

// read reads the request's head.
func (d *downstream) read(x *exchange.Exchange) error {
	if !d.served && !d.looksLikeHTTP() {
		return d.notHTTP()
	}
	slow := !d.rd.Complete()
	if slow {
		d.readUntil(x.Start.Add(d.s.cfg.HeaderTimeout))
	}
	head, err := d.rd.ReadHead()
	if err != nil {
		return err
	}
	if slow {
		d.readUntil(time.Time{})
	}
	if err := http1.ParseRequest(x, head); err != nil {
		if !d.served && isPreface(head) {
			return d.notHTTP()
		}
		return err
	}
	q := &x.Request
	if q.Authority == nil {
		// HTTP/1.0 knows no Host. The upstream speaks 1.1, which does.
		q.Authority = x.Keep(d.info.Local.AppendTo(x.Scratch()))
		q.Header.Set(exchange.Host, q.Authority)
	}
	if b := d.rd.Body(q.Framing, q.Length); b != nil {
		q.Body = b
		x.Uploading.Store(true)
		d.expectBody()
	}
	return nil
}

// answer runs the chain and sends the response, and reports whether all of it was
// sent. A panic ends this connection, and no other.
func (d *downstream) answer(x *exchange.Exchange) (complete bool) {
	d.begun = false
	defer func() {
		if p := recover(); p != nil {
			complete = false
			d.s.panicked("handling", x, p)
			x.Close = true
			if !d.begun {
				x.Reply(500, "", "panic")
				http1.Send(d, x)
			}
		}
	}()
	d.s.chain.run(x)
	d.settle(x)
	d.begun = true
	return d.send(x)
}

func (s *Server) panicked(doing string, x *exchange.Exchange, p any) {
	s.panics.Inc()
	s.cfg.Logger.Error("panic while "+doing+" a request", "panic", p, "method", string(x.Request.Method),
		"authority", string(x.Request.Authority), "path", string(x.Request.Path), "stack", string(debug.Stack()))
}

// settle decides whether the connection can be used again, as far as the response
// does not say.
func (d *downstream) settle(x *exchange.Exchange) {
	if b := x.Request.Body; b != nil && !x.Claimed {
		// Nobody wanted the body. A short one that is here is skipped.
		if x.Request.Framing == exchange.Chunked {
			b.Raw()
		}
		if _, whole := b.Buffered(); whole {
			b.Take()
			x.Uploading.Store(false)
		}
	}
	refused := x.Tunnel == nil && (x.Request.Connect || x.Request.Upgrade != nil)
	if x.Uploading.Load() && !converses(x) || refused || d.isDraining() {
		// What follows is the rest of a body, or may be meant for a tunnel: never
		// to be read as a request.
		x.Close = true
	}
}

// converses reports whether the response is of a kind that may be made from the
// request's body while that comes. Such a one mostly ends after it, and what is to
// become of the connection is known then.
func converses(x *exchange.Exchange) bool {
	r := &x.Response
	return r.Body != nil && r.Framing == exchange.Chunked && x.Request.Minor == 1
}

// send writes the response, and reports whether all of it was written.
func (d *downstream) send(x *exchange.Exchange) bool {
	if x.ClientGone || x.Response.Status == 0 {
		return false
	}
	d.now = x.Upstream.FirstByte // a moment ago, if an upstream answered
	err := http1.Send(d, x)
	if _, body := errors.AsType[*http1.ErrBody](err); err != nil && !body {
		left(x, isTimeout(err))
	}
	if err == nil && x.Tunnel != nil {
		d.stopWatching()
		d.readUntil(noDeadline)
		tunnel(x, d.c, d.rd.TakeBuffered())
	}
	return err == nil
}

// left notes that the client took no more of its response, because it left or,
// stalled, because it took nothing for too long.
func left(x *exchange.Exchange, stalled bool) {
	x.ClientGone = true
	if stalled {
		x.Flags |= exchange.StreamIdle
		x.Details = "stream_idle_timeout"
		return
	}
	x.Flags |= exchange.ClientLeft
	x.Details = "downstream_remote_disconnect"
}

// finish releases the upstream.
func (s *Server) finish(x *exchange.Exchange, complete bool) (ok bool) {
	defer func() {
		if p := recover(); p != nil {
			ok = false
			s.panicked("finishing", x, p)
		}
	}()
	x.End = s.cfg.Now()
	x.Finish(complete)
	if b := x.Request.Body; b != nil {
		x.RequestBytes = b.Size()
	}
	return true
}

func (s *Server) observe(x *exchange.Exchange) {
	defer func() {
		if p := recover(); p != nil {
			x.Close = true
			s.panicked("accounting for", x, p)
		}
	}()
	if x.ClientGone && x.Termination == "" {
		x.Termination = x.Details
	}
	for _, o := range s.observers {
		o(x)
	}
}

// refuse ends a connection whose bytes are not a request.
func (d *downstream) refuse(x *exchange.Exchange, err error) error {
	if _, other := errors.AsType[*http1.NotHTTPError](err); other {
		return err
	}
	x.Close = true
	switch e, bad := errors.AsType[*http1.Error](err); {
	case bad:
		x.Fail(exchange.ClientProtocolError, e.Status, "", e.Details)
	case isTimeout(err):
		x.Fail(exchange.StreamIdle, 408, "request header timeout", "request_header_timeout")
	default:
		return nil // gone in the middle of a head: there is no request to account for
	}
	x.Request.Head, x.Request.Minor = false, 1
	http1.Send(d, x)
	d.s.observe(x)
	d.linger(x, true)
	return nil
}

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}

var noDeadline time.Time

// looksLikeHTTP looks at the first byte of a connection: a method begins with a
// letter, or whatever else a token may.
func (d *downstream) looksLikeHTTP() bool {
	return http1.IsToken(d.rd.Peek()[0]) || d.rd.Peek()[0] == '\r'
}

// notHTTP hands back what was read.
func (d *downstream) notHTTP() error {
	d.rd.Unread()
	read := append([]byte(nil), d.rd.Peek()...)
	return &http1.NotHTTPError{HTTP2: isPreface(read), Read: read}
}

// isPreface reports whether b begins as HTTP/2 does. Source: RFC 9113 section 3.4.
func isPreface(b []byte) bool {
	const preface = "PRI * HTTP/2.0\r\n\r\n"
	return len(b) >= len(preface) && string(b[:len(preface)]) == preface
}
