package router

import (
	"net/netip"
	"strconv"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/route"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
)

// call is one request on its way to a cluster. It is used again for the next
// request of the same client.
type call struct {
	guard guard
	one   hop1
	two   hop2

	r       *Router
	x       *exchange.Exchange
	cluster *upstream.Cluster
	rule    *plan.Route
	retry   *route.Retry
	hop     hop
	timeout time.Duration // of the whole request; 0: none

	body   []byte // the request's body, if all of it was here at once
	stream bool   // the body has to be read while it is sent
	spent  bool   // some of it was read, and can not be sent again
	tried  []*upstream.Endpoint

	endpoint *upstream.Endpoint // of the current attempt; nil between two
	upload   upload
	retries  int  // attempts that the route's policy granted
	stales   int  // attempts that were the pool's fault
	fresh    bool // the next attempt shall not use a pooled connection
	answered bool // the response's head is there

	start    time.Time // of the route's timeout
	began    time.Time // of the current attempt
	hash     uint64    // decides the endpoint, if hashed
	hashed   bool
	retrying bool // a retry is counted on the cluster
	copies   []*shadow
}

func newCall() *call {
	c := &call{}
	c.guard.watch = func() { c.x.Client.Watch(c.clientLeft) }
	c.upload.call = c
	c.one.call, c.two.call = c, c
	return c
}

func (c *call) clientLeft() { c.guard.interrupt(clientGone) }

func (c *call) begin(r *Router, x *exchange.Exchange, cluster *upstream.Cluster, rule *plan.Route, retry *route.Retry) {
	c.r, c.x, c.cluster, c.rule, c.retry = r, x, cluster, rule, retry
	c.retries, c.fresh, c.answered, c.stream, c.spent, c.body = 0, false, false, false, false, nil
	c.start, c.began, c.hashed, c.retrying = x.Start, x.Start, false, false
	c.guard.now = r.cfg.Now
	c.guard.begin()
	c.timeout, c.stales = timeoutOf(&x.Request, rule), 0
	if p := cluster.Plan().Protocol; p == plan.HTTP2 || p == plan.ClientProtocol && x.Request.HTTP2 {
		c.hop = &c.two
	} else {
		c.hop = &c.one
	}
}

// wait holds a request up before it is sent anywhere. It reports false if its client
// left meanwhile.
func (c *call) wait(r *Router, x *exchange.Exchange, d time.Duration) bool {
	c.r, c.x = r, x
	c.guard.now = r.cfg.Now
	c.guard.begin()
	if x.Request.Body == nil {
		// Who still sends a body is not looked after yet.
		c.guard.limit(r.cfg.Now().Add(watchAfter), time.Time{})
	}
	c.guard.sleep(d)
	why := c.guard.end()
	if why != none {
		failInterrupted(x, why)
	}
	return why == none
}

// run makes attempts until there is an answer. first is how one attempt failed that
// was made already, or nil.
func (c *call) run(first *failure) {
	c.prepare()
	if first != nil && !c.retryFailure(first) {
		c.fail(first)
		return
	}
	for {
		c.x.Upstream.Attempts++
		f := c.attempt()
		if f.kind == nothing {
			if !c.retryAnswer() {
				c.accept()
				return
			}
			continue
		}
		if !c.retryFailure(&f) {
			c.fail(&f)
			return
		}
	}
}

// prepare makes what all attempts send alike.
func (c *call) prepare() {
	x, q := c.x, &c.x.Request
	expect(x, c.timeout, c.retry)
	if c.r.cfg.CountAttempts {
		q.Header.Del(exchange.AttemptCount)
	}
	if c.r.cfg.Metadata != "" {
		q.Header.Del(exchange.PeerMetadata)
		q.Header.Del(exchange.PeerMetadataID)
	}
	if len(c.rule.Mirrors) > 0 {
		c.mirror()
	}
	c.hop.prepare()

	if q.Body == nil {
		c.sendCopies(nil, true)
		c.uploaded(c.start)
		return
	}
	x.Claimed = true
	p, whole := q.Body.Buffered()
	if !whole {
		c.stream = true
		return
	}
	q.Body.Take()
	c.body = p
	c.sendCopies(p, true)
	x.Uploading.Store(false)
	c.uploaded(c.start)
}

// uploaded starts the clock: a route's timeout is for what comes after the
// request. Source: Envoy, config.route.v3.RouteAction.timeout.
func (c *call) uploaded(now time.Time) {
	var all time.Time
	if c.timeout > 0 {
		all = now.Add(c.timeout)
	}
	c.guard.limit(now.Add(watchAfter), all)
}

// introduces reports whether an endpoint is told who calls: only workloads of the
// mesh are.
func (r *Router) introduces(e *upstream.Endpoint) bool {
	return r.cfg.Metadata != "" && (e.MTLS || e.Workload.Name != "")
}

// attempt sends the request once and reads the response's head.
func (c *call) attempt() failure {
	if f := c.connect(); f.kind != nothing {
		return f
	}
	if f := c.send(); f.kind != nothing {
		return f
	}
	return c.receive()
}

// connect gets a way to an endpoint.
func (c *call) connect() failure {
	w := upstream.Want{
		OriginalDst: c.x.Conn.Local, Client: c.x.Conn.Remote,
		Tried: c.tried, Fresh: c.fresh, Hash: c.hash, Hashed: c.hashed,
	}
	if c.timeout > 0 && !c.stream {
		w.Deadline = c.start.Add(c.timeout)
	}
	if c.retries > 0 {
		c.began = c.r.cfg.Now()
		w.Remote = c.retry.Remote && c.retries >= remoteAfter
	}
	if c.x.Upstream.Attempts == 1 && c.replayable(false) {
		w.Since = c.x.Start
	}
	e, err := c.hop.connect(w)
	if err != nil {
		return c.connectFailure(err)
	}
	c.endpoint = e
	var tryAt time.Time
	if c.retry != nil && c.retry.PerTry > 0 {
		tryAt = c.r.cfg.Now().Add(c.retry.PerTry)
	}
	c.guard.attach(c.hop, tryAt)
	return failure{}
}

// remoteAfter is how many attempts a priority gets. Source: Istio, the update
// frequency that it gives previous_priorities.
const remoteAfter = 2

// succeeded reports whether a response is no fault of the server's.
func succeeded(r *exchange.Response) bool {
	return r.Status < 500 && !exchange.GRPCFault(r.GRPCStatus)
}

// meet notes which endpoint was chosen.
func (c *call) meet(e *upstream.Endpoint) { meet(c.x, e) }

func meet(x *exchange.Exchange, e *upstream.Endpoint) {
	u := &x.Upstream
	u.Remote, u.Local, u.PeerID, u.MTLS = e.Address, netip.AddrPort{}, "", false
	u.Workload, u.Handles, u.Peer = &e.Workload, &e.Handles, &e.Peer
}

// send sends the request: its head with as much of its body as is here, in one
// piece. What is missing of the body follows from a goroutine of its own, because
// the response may begin before it ends.
func (c *call) send() failure {
	body := c.body
	if c.stream {
		b := c.x.Request.Body
		body, _ = b.Buffered()
		b.Take()
		c.sendCopies(body, false)
		c.spent = len(body) > 0
	}
	if unsent, err := c.hop.send(body, c.stream); err != nil {
		return c.broken(err, unsent)
	}
	if c.stream {
		c.spent = true
		c.upload.start(c.hop, c.x.Request.Body)
	}
	return failure{}
}

// maxInterim bounds the 1xx responses before the final one.
const maxInterim = 32

// receive reads the response's head, and passes on those that announce it.
func (c *call) receive() failure {
	x := c.x
	for range maxInterim {
		if err := c.hop.receive(); err != nil {
			return c.broken(err, false)
		}
		if s := x.Response.Status; s >= 200 || s == 101 {
			return failure{}
		}
		c.answered = true // the client has seen something: no way back
		if err := x.Client.Interim(x); err != nil {
			c.guard.interrupt(clientGone)
		}
	}
	return failure{kind: protocol}
}

// accept makes the response that was received the answer.
func (c *call) accept() {
	x, r := c.x, &c.x.Response
	c.answered = true
	if c.retry != nil && c.retry.PerTry > 0 {
		c.guard.attach(c.hop, time.Time{}) // an attempt's time ends with its head
	}
	accept(x, c.r.cfg.Now())
	c.endpoint.Observe(upstream.Answered, health(r), x.Upstream.FirstByte.Sub(c.began))
	if r.Status == 101 || x.Request.Connect && r.Status < 300 {
		c.guard.limit(time.Time{}, time.Time{})
		x.Tunnel = c.hop.tunnel()
		return
	}
	r.Body = c.hop.body()
}

// accept notes that x's response is the upstream's.
func accept(x *exchange.Exchange, now time.Time) {
	r := &x.Response
	x.Details = "via_upstream"
	r.GRPCStatus = exchange.GRPCCode(r.Header.Get(exchange.GRPCStatus))
	x.Upstream.FirstByte = now
	ms := strconv.AppendInt(x.Scratch(), now.Sub(x.Start).Milliseconds(), 10)
	r.Header.Set(exchange.ServiceTime, x.Keep(ms))
}

// release ends the use of the attempt's way.
func (c *call) release(reusable bool) {
	if c.endpoint == nil {
		return
	}
	c.guard.detach()
	sent := c.upload.stop()
	c.hop.release(sent && reusable)
	c.endpoint = nil
}

// Finish implements exchange.Finisher.
func (c *call) Finish(x *exchange.Exchange, complete bool) {
	why := c.guard.end()
	r := &x.Response
	if c.endpoint != nil {
		if !complete && !x.ClientGone {
			cutShort(x, why, c.hop.cut())
		}
		if r.Body != nil && complete {
			if t := r.Body.Trailers(); t != nil && t.Has(exchange.GRPCStatus) {
				r.GRPCStatus = exchange.GRPCCode(t.Get(exchange.GRPCStatus))
			}
		}
		reusable := complete && why == none && c.answered && x.Tunnel == nil && !x.Uploading.Load() &&
			(r.Body == nil || r.Body.Done()) && c.hop.spent()
		c.endpoint.Report(complete && succeeded(r))
		c.release(reusable)
	}
	if c.retrying {
		c.cluster.EndRetry()
	}
	c.dropCopies()
	r.Body = nil // it lived in the hop
	c.hop.finish()
	clear(c.tried)
	c.tried = c.tried[:0]
	c.r, c.x, c.cluster, c.rule, c.retry, c.body = nil, nil, nil, nil, nil, nil
}
