package router

import (
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/http2"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
)

// Relay forwards a stream of a client as one of an upstream, on the readers of the two
// connections and with no goroutine of its own: what one side sends is handed to the
// other side's connection as it comes, and many streams share a system call. That is
// the first attempt, if nothing has to be waited for. Everything else, and what comes
// after an attempt that failed, is for code that may wait: the stream becomes a Pipe,
// with what of the request came so far, and a call goes on with it.
//
// A Relay is used again. Events that come late find their stream replaced.
type Relay struct {
	router *Router
	down   *downSide
	upward *upSide

	mu sync.Mutex
	// mu guards
	X     *exchange.Exchange
	owner Owner
	seen  int // filters that saw the request

	client *http2.Stream
	server *http2.Stream // nil before and after the attempt
	shared *upstream.Shared
	pipe   *http2.Pipe // once someone waits
	req    *http2.Head
	resp   *http2.Head
	head   http2.Head // to be sent
	want   upstream.Want

	target  Target
	decided bool
	timeout time.Duration
	first   failure // of the attempt, once there was one
	failed  bool

	kept      []byte // the request's body so far, to be sent again
	keeping   bool
	ended     bool // all of the request is here
	trailers  bool // with trailers
	announced bool // the client got a 1xx response
	started   bool // it got the response's head
	answered  bool // all of the response is here
	held      int  // of it, how much waits for the client

	timer        *time.Timer
	tryAt, allAt time.Time
}

type (
	downSide Relay
	upSide   Relay
)

// maxKept is how much of a request's body is kept to be sent again. Most calls have
// less, and streams that have more are not for retrying.
const maxKept = 64 << 10

// Owner is who has the client's connection. It is called with the relay's lock held,
// and does not wait.
type Owner interface {
	// Respond shows the response's head to the filters that saw the request.
	Respond(x *exchange.Exchange, seen int)
	// Observe accounts for an exchange that is over.
	Observe(x *exchange.Exchange)
	// Wait goes on with a relay's exchange as a Pipe: it serves that, with Resume in the
	// place of the handler, and then frees the relay.
	Wait(r *Relay, x *exchange.Exchange, seen int, p *http2.Pipe)
	// Free takes the relay back.
	Free(r *Relay)
	// Panicked tells of a panic.
	Panicked(x *exchange.Exchange, value any)
}

// NewRelay returns a relay for Start.
func (r *Router) NewRelay() *Relay {
	f := &Relay{router: r}
	f.down, f.upward = (*downSide)(f), (*upSide)(f)
	return f
}

// Start handles a client's stream. Its request was read into x from h, which was
// kept, and request shows it to the filters.
func (f *Relay) Start(b *http2.Batch, o Owner, x *exchange.Exchange, s *http2.Stream, h *http2.Head, end bool, request func(*exchange.Exchange) int) {
	f.mu.Lock()
	f.X, f.owner, f.client, f.req, f.ended = x, o, s, h, end
	defer f.leave(b)
	s.Handle(f.down)
	if x.Response.Status == 0 {
		f.seen = request(x)
	}
	if x.Response.Status != 0 {
		f.reply(b)
		return
	}
	if x.Request.Upgrade == nil {
		f.target, f.decided = f.router.quick(x)
	}
	if !f.decided || !f.open(b) {
		f.wait()
	}
}

// open makes the attempt, and reports whether it could without waiting.
func (f *Relay) open(b *http2.Batch) bool {
	x, p := f.X, f.target.Cluster.Plan()
	if p.Protocol == plan.HTTP1 || p.ProxyProtocol > 0 {
		return false
	}
	f.want = upstream.Want{OriginalDst: x.Conn.Local, Client: x.Conn.Remote}
	shared, _ := f.target.Cluster.TryShare(&f.want)
	if shared == nil {
		return false
	}
	meet(x, shared.Endpoint)
	u := &x.Upstream
	u.Local, u.PeerID, u.MTLS = shared.Local, shared.PeerID, shared.MTLS
	f.timeout = timeoutOf(&x.Request, f.target.Rule)
	expect(x, f.timeout, f.target.Retry)
	f.router.introduce(x, shared.Endpoint, 1)
	http2.RequestHead(&f.head, x)
	s, err := shared.Open(b, &f.head, f.ended, f.upward)
	if err != nil {
		shared.Leave()
		return false
	}
	f.shared, f.server = shared, s
	f.keeping = f.target.Retry != nil
	u.Attempts = 1
	if r := f.target.Retry; r != nil && r.PerTry > 0 {
		f.tryAt = f.router.cfg.Now().Add(r.PerTry)
		f.arm()
	}
	if f.ended {
		f.uploaded(x.Start)
	}
	return true
}

// uploaded starts the clock: see call.uploaded.
func (f *Relay) uploaded(now time.Time) {
	if f.timeout > 0 {
		f.allAt = now.Add(f.timeout)
		f.arm()
	}
}

// arm lets the timer fire at the next moment that matters.
func (f *Relay) arm() {
	next := f.tryAt
	if next.IsZero() || !f.allAt.IsZero() && f.allAt.Before(next) {
		next = f.allAt
	}
	if next.IsZero() {
		return
	}
	d := next.Sub(f.router.cfg.Now())
	if f.timer == nil {
		f.timer = time.AfterFunc(d, f.fire)
	} else {
		f.timer.Reset(d)
	}
}

// fire does what is due. The exchange that it was meant for may be over.
func (f *Relay) fire() {
	var b http2.Batch
	defer b.Flush() // without the lock
	f.mu.Lock()
	defer f.leave(&b)
	if f.X == nil || f.server == nil {
		return
	}
	now := f.router.cfg.Now()
	due := func(t time.Time) bool { return !t.IsZero() && !now.Before(t) }
	switch {
	case due(f.allAt) && f.started:
		cutShort(f.X, allTimeout, terminated)
		f.cut(&b)
	case due(f.allAt):
		f.fail(&b, failure{kind: interrupted, why: allTimeout})
	case due(f.tryAt):
		f.fail(&b, failure{kind: interrupted, why: tryTimeout})
	default:
		f.arm()
	}
}

// leave ends the handling of an event. A panic ends this exchange, and no other.
func (f *Relay) leave(b *http2.Batch) {
	if v := recover(); v != nil {
		f.panicked(b, v)
	}
	f.mu.Unlock()
}

func (f *Relay) panicked(b *http2.Batch, v any) {
	x := f.X
	if x == nil {
		panic(v)
	}
	f.owner.Panicked(x, v)
	f.release(b)
	if !f.started {
		x.Reply(500, "", "panic")
		f.send(b)
		f.finish(b)
		return
	}
	f.cut(b)
}

// movable reports whether the request can be sent again from the beginning.
func (f *Relay) movable() bool {
	return !f.announced && !f.started && !f.trailers && f.X.RequestBytes == int64(len(f.kept))
}

// wait hands the exchange to code that waits.
func (f *Relay) wait() {
	x := f.X
	x.RequestBytes, x.ResponseBytes = 0, 0
	x.Request.Messages, x.Response.Messages = exchange.Messages{}, exchange.Messages{}
	f.pipe = http2.NewPipe(f.client, f.req, f.kept, f.ended)
	f.req = nil // the Pipe's
	f.owner.Wait(f, x, f.seen, f.pipe)
}

// Resume answers the exchange, where waiting is allowed.
func (f *Relay) Resume(x *exchange.Exchange) {
	f.mu.Lock()
	t, decided, failed, first := f.target, f.decided, f.failed, f.first
	e := f.endpoint()
	f.mu.Unlock()
	switch {
	case !decided:
		f.router.Handle(x)
	case !failed:
		f.router.begin(x, t).run(nil)
	default:
		c := f.router.begin(x, t)
		if !first.stale {
			c.tried = append(c.tried, e)
		}
		c.run(&first)
	}
}

// endpoint returns the endpoint of the attempt.
func (f *Relay) endpoint() *upstream.Endpoint {
	if f.shared == nil {
		return nil
	}
	return f.shared.Endpoint
}

// Drop ends the use of a relay whose exchange was served by a Pipe.
func (f *Relay) Drop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reset()
}

// release ends the attempt.
func (f *Relay) release(b *http2.Batch) {
	if f.server != nil {
		f.server.Release(b)
		f.shared.Leave()
		f.server = nil
	}
}

// fail ends an attempt that brought no response.
func (f *Relay) fail(b *http2.Batch, why failure) {
	x := f.X
	why.stale = why.stale && (why.unsent || idempotent(&x.Request))
	blame(f.shared.Endpoint, &why, f.router.cfg.Now().Sub(x.Start))
	f.shared.Endpoint.Report(false)
	f.release(b)
	if f.movable() && (f.target.Retry != nil || why.stale) {
		f.first, f.failed = why, true
		f.wait()
		return
	}
	fail(x, &why)
	f.reply(b)
}

// reply sends the answer of the proxy's own.
func (f *Relay) reply(b *http2.Batch) {
	f.started = true
	f.owner.Respond(f.X, f.seen)
	f.send(b)
	f.finish(b)
}

func (f *Relay) send(b *http2.Batch) {
	x, r := f.X, &f.X.Response
	if r.Status == 0 {
		return
	}
	http2.ResponseHead(&f.head, x)
	bare := r.Text == "" || x.Request.Head || r.Status == 204 || r.Status == 304
	if f.client.SendHead(b, &f.head, bare) == nil && !bare {
		if _, err := f.client.SendData(b, []byte(r.Text), true); err == nil {
			x.ResponseBytes = int64(len(r.Text))
		}
	}
}

// cut ends an exchange in the middle of its response.
func (f *Relay) cut(b *http2.Batch) {
	if f.server != nil {
		f.shared.Endpoint.Report(false)
		f.release(b)
	}
	f.client.Reset(b, http2.InternalError)
	f.finish(b)
}

// complete notes that all of the response is here.
func (f *Relay) complete(b *http2.Batch) {
	f.answered = true
	f.shared.Endpoint.Report(succeeded(&f.X.Response))
	f.release(b)
	if f.held == 0 {
		f.finish(b)
	}
}

// finish ends the exchange.
func (f *Relay) finish(b *http2.Batch) {
	f.client.Release(b)
	f.X.End = b.Now()
	f.owner.Observe(f.X)
	exchange.Put(f.X)
	f.reset()
}

// reset makes the relay ready for another stream. mu is held: who waits for it will
// see that the streams are others.
func (f *Relay) reset() {
	if f.timer != nil {
		f.timer.Stop()
	}
	if f.req != nil {
		f.req.Free()
	}
	if f.resp != nil {
		f.resp.Free()
	}
	o := f.owner
	f.X, f.owner, f.client, f.server, f.shared, f.pipe, f.req, f.resp = nil, nil, nil, nil, nil, nil, nil, nil
	f.head, f.target, f.first, f.want = http2.Head{}, Target{}, failure{}, upstream.Want{}
	f.kept = f.kept[:0]
	f.seen, f.timeout, f.held = 0, 0, 0
	f.decided, f.failed, f.keeping, f.ended, f.trailers, f.announced, f.started, f.answered = false, false, false, false, false, false, false, false
	f.tryAt, f.allAt = time.Time{}, time.Time{}
	o.Free(f)
}

// The client's side.

// OnHeaders implements http2.StreamHandler. The head was Start's.
func (d *downSide) OnHeaders(*http2.Batch, *http2.Stream, *http2.Head, bool) {}

// OnData implements http2.StreamHandler.
func (d *downSide) OnData(b *http2.Batch, s *http2.Stream, data []byte, end bool) {
	f := (*Relay)(d)
	f.mu.Lock()
	defer f.leave(b)
	switch {
	case f.client != s:
		return
	case f.pipe != nil:
		f.pipe.OnData(b, s, data, end)
		return
	}
	x := f.X
	x.RequestBytes += int64(len(data))
	if x.Request.IsGRPC() {
		x.Request.Messages.Count(data)
	}
	if f.keeping && !f.started {
		if f.keeping = len(f.kept)+len(data) <= maxKept; f.keeping {
			f.kept = append(f.kept, data...)
		} else {
			f.kept = f.kept[:0]
		}
	}
	f.ended = end
	if f.server == nil { // the response is complete, and on its way
		s.Consume(b, len(data))
		return
	}
	held, err := f.server.SendData(b, data, end)
	switch {
	case err == http2.ErrStreamEnded: // its reset is on its way
		s.Consume(b, len(data))
	case err != nil && f.started:
		cutShort(x, none, localReset)
		f.cut(b)
	case err != nil:
		f.fail(b, failure{kind: localReset})
	default:
		s.Consume(b, len(data)-held)
		if end {
			f.uploaded(b.Now())
		}
	}
}

// OnTrailers implements http2.StreamHandler.
func (d *downSide) OnTrailers(b *http2.Batch, s *http2.Stream, h *http2.Head) {
	f := (*Relay)(d)
	f.mu.Lock()
	defer f.leave(b)
	switch {
	case f.client != s:
	case f.pipe != nil:
		f.pipe.OnTrailers(b, s, h)
	default:
		f.ended, f.trailers = true, true
		if f.server != nil {
			f.server.SendHead(b, h, true)
			f.uploaded(b.Now())
		}
	}
}

// OnReset implements http2.StreamHandler: the client left.
func (d *downSide) OnReset(b *http2.Batch, s *http2.Stream, r http2.Reset) {
	f := (*Relay)(d)
	f.mu.Lock()
	if f.client == s && f.pipe != nil {
		// It may wait for who watches the Pipe, who may wait for this one.
		p := f.pipe
		f.mu.Unlock()
		p.OnReset(b, s, r)
		return
	}
	defer f.leave(b)
	if f.client != s {
		return
	}
	why := clientGone
	if !r.Remote && r.Code == http2.Cancel {
		why = stalled // it gave no window
	}
	if f.server != nil {
		f.shared.Endpoint.Report(false)
		f.release(b)
	}
	f.X.ClientGone = true
	if f.started {
		cutShort(f.X, why, terminated)
	} else {
		fail(f.X, &failure{kind: interrupted, why: clientGone})
	}
	f.finish(b)
}

// OnWindow implements http2.StreamHandler: the client took data that had waited.
func (d *downSide) OnWindow(b *http2.Batch, s *http2.Stream, n int) {
	f := (*Relay)(d)
	f.mu.Lock()
	defer f.leave(b)
	switch {
	case f.client != s:
	case f.pipe != nil:
		f.pipe.OnWindow(b, s, n)
	default:
		f.held -= n
		if f.server != nil {
			f.server.Consume(b, n)
		} else if f.answered && f.held == 0 {
			f.finish(b)
		}
	}
}

// The upstream's side.

// OnHeaders implements http2.StreamHandler.
func (u *upSide) OnHeaders(b *http2.Batch, s *http2.Stream, h *http2.Head, end bool) {
	f := (*Relay)(u)
	f.mu.Lock()
	defer f.leave(b)
	if f.server != s {
		return
	}
	x, r := f.X, &f.X.Response
	h.Keep()
	if f.resp != nil {
		f.resp.Free()
	}
	f.resp = h
	http2.ReadResponse(x, h, end)
	if r.Status < 200 {
		f.announced = true
		f.head = http2.Head{Status: r.Status, Header: &r.Header}
		f.client.SendHead(b, &f.head, false)
		return
	}
	if retry := f.target.Retry; retry != nil && f.movable() && retry.Status(r.Status, r.Header.Get(exchange.GRPCStatus)) {
		if retry.Attempts > 0 {
			f.shared.Endpoint.Report(r.Status < 500)
			f.shared.Endpoint.Observe(upstream.Answered, health(r), f.router.cfg.Now().Sub(x.Start))
			f.release(b)
			f.first, f.failed = failure{kind: unwanted}, true
			f.wait()
			return
		}
		x.Flags |= exchange.RetriesExhausted
	}
	accept(x, b.Now())
	f.shared.Endpoint.Observe(upstream.Answered, health(r), x.Upstream.FirstByte.Sub(x.Start))
	f.started, f.tryAt = true, time.Time{}
	f.owner.Respond(x, f.seen)
	http2.ResponseHead(&f.head, x)
	f.client.SendHead(b, &f.head, end)
	if end {
		f.complete(b)
	}
}

// OnData implements http2.StreamHandler.
func (u *upSide) OnData(b *http2.Batch, s *http2.Stream, data []byte, end bool) {
	f := (*Relay)(u)
	f.mu.Lock()
	defer f.leave(b)
	if f.server != s {
		return
	}
	x := f.X
	x.ResponseBytes += int64(len(data))
	if x.Request.IsGRPC() {
		x.Response.Messages.Count(data)
	}
	held, err := f.client.SendData(b, data, end)
	if err == http2.ErrStreamEnded { // its reset is on its way
		s.Consume(b, len(data))
		return
	}
	if err != nil {
		cutShort(x, none, localReset)
		f.cut(b)
		return
	}
	s.Consume(b, len(data)-held)
	f.held += held
	if end {
		f.complete(b)
	}
}

// OnTrailers implements http2.StreamHandler.
func (u *upSide) OnTrailers(b *http2.Batch, s *http2.Stream, h *http2.Head) {
	f := (*Relay)(u)
	f.mu.Lock()
	defer f.leave(b)
	if f.server != s {
		return
	}
	if h.Header.Has(exchange.GRPCStatus) {
		f.X.Response.GRPCStatus = exchange.GRPCCode(h.Header.Get(exchange.GRPCStatus))
	}
	f.client.SendHead(b, h, true)
	f.complete(b)
}

// OnReset implements http2.StreamHandler.
func (u *upSide) OnReset(b *http2.Batch, s *http2.Stream, r http2.Reset) {
	f := (*Relay)(u)
	f.mu.Lock()
	defer f.leave(b)
	if f.server != s {
		return
	}
	why := streamFailure(f.shared, r, false)
	if !f.started {
		f.fail(b, why)
		return
	}
	cutShort(f.X, none, why.kind)
	f.cut(b)
}

// OnWindow implements http2.StreamHandler: the upstream took data that had waited.
func (u *upSide) OnWindow(b *http2.Batch, s *http2.Stream, n int) {
	f := (*Relay)(u)
	f.mu.Lock()
	defer f.leave(b)
	if f.server == s {
		f.client.Consume(b, n)
	}
}
