package router

import (
	"net/netip"
	"strconv"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/http1"
	"github.com/heddle-mesh/heddle/internal/proxy/mtls"
	"github.com/heddle-mesh/heddle/internal/proxy/route"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
)

// call is one request on its way to a cluster. A connection has one call, used
// again for each of its requests.
type call struct {
	guard guard
	rd    http1.Reader

	r       *router
	x       *exchange.Exchange
	cluster *upstream.Cluster
	rule    *plan.Route
	retry   *route.Retry

	out    *http1.Out
	common int    // how much of out is the same for all attempts
	body   []byte // the request's body, if all of it was here at once
	stream bool   // the body has to be read while it is sent
	spent  bool   // some of it was read, and can not be sent again
	tried  []*upstream.Endpoint

	conn     *upstream.Conn // of the current attempt
	upload   upload
	retries  int  // attempts that the route's policy granted
	fresh    bool // the next attempt shall not use a pooled connection
	answered bool // the response's head is there
}

func newCall() *call {
	c := &call{}
	c.guard.watch = func() { c.x.Client.Watch(c.clientLeft) }
	c.upload.call = c
	return c
}

func (c *call) clientLeft() { c.guard.interrupt(clientGone) }

func (c *call) begin(r *router, x *exchange.Exchange, cluster *upstream.Cluster, rule *plan.Route, retry *route.Retry) {
	c.r, c.x, c.cluster, c.rule, c.retry = r, x, cluster, rule, retry
	c.retries, c.fresh, c.answered, c.stream, c.spent, c.body = 0, false, false, false, false, nil
	c.guard.now = r.cfg.Now
	c.guard.begin()
	c.out = http1.GetOut()
}

// run makes attempts until there is an answer.
func (c *call) run() {
	c.prepare()
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
	if t := timeout(c.rule, c.retry); t > 0 {
		ms := strconv.AppendInt(x.Scratch(), t.Milliseconds(), 10)
		q.Header.Set(exchange.ExpectedTimeout, x.Keep(ms))
	}
	if c.r.cfg.CountAttempts {
		q.Header.Del(exchange.AttemptCount)
	}
	if c.r.cfg.Metadata != "" {
		q.Header.Del(exchange.PeerMetadata)
		q.Header.Del(exchange.PeerMetadataID)
	}
	c.out.B = http1.AppendRequest(c.out.B[:0], x)
	c.common = len(c.out.B)

	if q.Body == nil {
		c.uploaded(x.Start)
		return
	}
	x.Claimed = true
	q.Body.Raw()
	p, whole := q.Body.Buffered()
	if !whole {
		c.stream = true
		return
	}
	q.Body.Take()
	c.body = p
	x.Uploading.Store(false)
	c.uploaded(x.Start)
}

// uploaded starts the clock: a route's timeout is for what comes after the
// request. Source: Envoy, config.route.v3.RouteAction.timeout.
func (c *call) uploaded(now time.Time) {
	var all time.Time
	if c.rule.Timeout > 0 {
		all = now.Add(c.rule.Timeout)
	}
	c.guard.limit(now.Add(watchAfter), all)
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

// connect gets a connection to an endpoint.
func (c *call) connect() failure {
	x := c.x
	w := upstream.Want{OriginalDst: x.Conn.Local, Tried: c.tried, Fresh: c.fresh}
	if c.rule.Timeout > 0 && !c.stream {
		w.Deadline = x.Start.Add(c.rule.Timeout)
	}
	conn, err := c.cluster.Acquire(x.Context, w)
	if err != nil {
		return c.connectFailure(err)
	}
	c.conn = conn
	c.meet(conn.Endpoint)
	u := &x.Upstream
	u.Local, u.PeerID, u.MTLS = conn.Local, conn.PeerID, conn.MTLS
	var tryAt time.Time
	if c.retry != nil && c.retry.PerTry > 0 {
		tryAt = c.r.cfg.Now().Add(c.retry.PerTry)
	}
	c.guard.attach(conn, tryAt)
	return failure{}
}

// meet notes which endpoint was chosen.
func (c *call) meet(e *upstream.Endpoint) {
	u := &c.x.Upstream
	u.Remote, u.Local, u.PeerID, u.MTLS = e.Address, netip.AddrPort{}, "", false
	u.Workload, u.Handles, u.Peer = &e.Workload, &e.Handles, &e.Peer
}

// send writes the request: its head with as much of its body as is here, in one
// piece. What is missing of the body follows from a goroutine of its own, because
// the response may begin before it ends.
func (c *call) send() failure {
	x, e := c.x, c.conn.Endpoint
	b := c.out.B[:c.common]
	if c.r.cfg.CountAttempts {
		b = append(b, "x-envoy-attempt-count: "...)
		b = strconv.AppendInt(b, int64(c.retries+1), 10)
		b = append(b, "\r\n"...)
	}
	// Only workloads of the mesh are told who calls them.
	if c.r.cfg.Metadata != "" && (e.MTLS || e.Workload.Name != "") {
		b = http1.AppendField(b, mtls.HeaderMetadata, c.r.cfg.Metadata)
		if c.r.cfg.MetadataID != "" {
			b = http1.AppendField(b, mtls.HeaderMetadataID, c.r.cfg.MetadataID)
		}
	}
	b = http1.EndHead(b)
	if c.stream {
		p, _ := x.Request.Body.Buffered()
		b = append(b, p...)
		x.Request.Body.Take()
		c.spent = len(p) > 0
	} else {
		b = append(b, c.body...)
	}
	c.out.B = b
	if n, err := c.conn.Write(b); err != nil {
		return c.broken(err, n == 0)
	}
	if c.stream {
		c.spent = true
		c.upload.start(c.conn, x.Request.Body)
	}
	return failure{}
}

// maxInterim bounds the 1xx responses before the final one.
const maxInterim = 32

// receive reads the response's head, and passes on those that announce it.
func (c *call) receive() failure {
	x := c.x
	c.rd.ResetActive(c.conn)
	if err := c.rd.Wait(); err != nil {
		return c.broken(err, false)
	}
	if !http1.BeginsResponse(c.rd.Peek()) {
		// Not after the end of a head that may never come.
		return failure{kind: protocol}
	}
	for range maxInterim {
		head, err := c.rd.ReadHead()
		if err != nil {
			return c.broken(err, false)
		}
		if err := http1.ParseResponse(&x.Response, &x.Request, head); err != nil {
			return c.broken(err, false)
		}
		if s := x.Response.Status; s >= 200 || s == 101 {
			return failure{}
		}
		c.answered = true // the client has seen something: no way back
		if err := x.Client.Interim(x); err != nil {
			c.guard.interrupt(clientGone)
		}
		c.rd.Finish()
	}
	return failure{kind: protocol}
}

// accept makes the response that was received the answer.
func (c *call) accept() {
	x, r := c.x, &c.x.Response
	c.answered = true
	if c.retry != nil && c.retry.PerTry > 0 {
		c.guard.attach(c.conn, time.Time{}) // an attempt's time ends with its head
	}
	x.Details = "via_upstream"
	x.Upstream.FirstByte = c.r.cfg.Now()
	ms := strconv.AppendInt(x.Scratch(), x.Upstream.FirstByte.Sub(x.Start).Milliseconds(), 10)
	r.Header.Set(exchange.ServiceTime, x.Keep(ms))
	if r.Status == 101 || x.Request.Connect && r.Status < 300 {
		c.guard.limit(time.Time{}, time.Time{})
		x.Tunnel = &exchange.Tunnel{Conn: c.conn, Early: c.rd.TakeBuffered()}
		return
	}
	if b := c.rd.Body(r.Framing, r.Length); b != nil {
		r.Body = b
	} else {
		r.Body = nil
	}
}

// release ends the use of the attempt's connection.
func (c *call) release(reusable bool) {
	if c.conn == nil {
		return
	}
	c.guard.detach()
	c.upload.stop()
	c.rd.Release()
	c.cluster.Release(c.conn, reusable)
	c.conn = nil
}

// Finish implements exchange.Finisher.
func (c *call) Finish(x *exchange.Exchange, complete bool) {
	why := c.guard.end()
	if c.conn != nil {
		r := &x.Response
		if !complete && !x.ClientGone {
			c.cutShort(why)
		}
		reusable := complete && why == none && c.answered && x.Tunnel == nil && !r.Close && !x.Uploading.Load() &&
			(r.Body == nil || r.Body.Done()) && c.rd.Buffered() == 0
		c.conn.Report(complete && r.Status < 500)
		c.release(reusable)
	}
	r := &x.Response
	r.Body = nil // it lived in the reader
	c.out.Put()
	clear(c.tried)
	c.tried = c.tried[:0]
	c.r, c.x, c.cluster, c.rule, c.retry, c.out, c.body = nil, nil, nil, nil, nil, nil, nil
}
