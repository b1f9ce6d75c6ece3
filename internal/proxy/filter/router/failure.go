package router

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
)

// kind is how an attempt failed.
type kind uint8

const (
	nothing       kind = iota // it did not
	noHost                    // no endpoint to choose
	overflow                  // a limit of the cluster
	refused                   // no connection
	terminated                // the upstream closed before it answered
	refusedStream             // it did not take the stream, and has not acted on it
	remoteReset               // it reset the stream
	localReset                // the proxy did
	unwanted                  // it answered with a status that the route tries again
	protocol                  // it answered something that is not HTTP
	interrupted               // by the guard
)

// failure is a failed attempt.
type failure struct {
	kind      kind
	unsent    bool   // nothing of the request was written
	stale     bool   // the pool's fault, not the endpoint's: it may be sent again
	why       cause  // with interrupted
	reason    string // Envoy's reset reason
	transport string // what failed below HTTP
}

// connectFailure says why there is no connection.
func (c *call) connectFailure(err error) failure {
	switch {
	case errors.Is(err, upstream.ErrNoHealthy):
		return failure{kind: noHost}
	case errors.Is(err, upstream.ErrOverflow):
		return failure{kind: overflow}
	case errors.Is(err, upstream.ErrDeadline):
		return failure{kind: interrupted, why: allTimeout}
	}
	if why := c.guard.reason(); why != none {
		return failure{kind: interrupted, why: why}
	}
	if ce, ok := errors.AsType[*upstream.ConnectError](err); ok {
		c.meet(ce.Endpoint)
		if !contains(c.tried, ce.Endpoint) {
			c.tried = append(c.tried, ce.Endpoint)
		}
		return failure{kind: refused, unsent: true, reason: ce.Reason(), transport: ce.TransportFailure()}
	}
	if errors.Is(err, context.Canceled) {
		return failure{kind: interrupted, why: clientGone}
	}
	return failure{kind: refused, unsent: true, reason: "local connection failure", transport: err.Error()}
}

// broken says why an attempt failed before the response's head was there, and
// gives its way up.
func (c *call) broken(err error, unsent bool) failure {
	f := c.hop.failure(err, unsent)
	f.stale = f.stale && c.replayable(unsent)
	if !contains(c.tried, c.endpoint) && !f.stale {
		c.tried = append(c.tried, c.endpoint)
	}
	if why := c.guard.detach(); why != none {
		f = failure{kind: interrupted, why: why, unsent: unsent}
	}
	c.blame(&f)
	c.endpoint.Report(false)
	c.release(false)
	return f
}

// blame tells the endpoint's health of a failure that is the endpoint's.
func (c *call) blame(f *failure) {
	blame(c.endpoint, f, c.r.cfg.Now().Sub(c.began))
}

func blame(e *upstream.Endpoint, f *failure, took time.Duration) {
	outcome := upstream.Unreachable
	switch {
	case f.stale:
		return
	case f.kind == interrupted:
		if f.why != tryTimeout && f.why != allTimeout {
			return
		}
		outcome = upstream.TimedOut
	}
	e.Observe(outcome, 0, took)
}

// health is the status by which an answer counts for its endpoint: a call of gRPC
// that fails in its header is in order for HTTP.
func health(r *exchange.Response) int {
	code := exchange.GRPCCode(r.Header.Get(exchange.GRPCStatus))
	switch {
	case r.Status != 200 || !exchange.GRPCFault(code):
		return r.Status
	case code == "14":
		return 503
	case code == "4":
		return 504
	}
	return 500
}

// replayable reports whether the request can be sent again without asking the
// route's policy: if nothing of it was sent, or if doing it twice is the same as
// once.
func (c *call) replayable(unsent bool) bool {
	if c.spent || c.answered {
		return false
	}
	return unsent || idempotent(&c.x.Request)
}

// idempotent reports whether doing it twice is the same as once. Source: RFC 9110
// section 9.2.2.
func idempotent(q *exchange.Request) bool {
	switch string(q.Method) {
	case "GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE":
		return q.Upgrade == nil
	}
	return false
}

// maxStales bounds the attempts that cost nothing, for an upstream may be so that
// every connection to it is going away.
const maxStales = 100

// retryFailure decides whether to try again after a failure.
func (c *call) retryFailure(f *failure) bool {
	if f.stale && c.stales < maxStales {
		c.stales++
		// One such connection is no reason to trust the others in the pool.
		c.fresh = true
		c.x.Upstream.Attempts--
		return true
	}
	if c.answered || c.spent {
		return false
	}
	want := false
	switch f.kind {
	case refused:
		want = c.retry.Connect()
	case terminated, protocol, remoteReset, localReset:
		want = c.retry.Reset(f.unsent)
	case refusedStream:
		want = c.retry.Refused()
	case unwanted:
		want = true
	case interrupted:
		want = f.why == tryTimeout && c.retry.Reset(false)
	}
	if !want || !c.permit() {
		return false
	}
	c.pause(f.kind == refused)
	return true
}

// retryAnswer decides whether to try again instead of passing on the response
// that was received, and gives its connection up if so.
func (c *call) retryAnswer() bool {
	r := &c.x.Response
	if c.retry == nil || c.answered || c.stream || !c.retry.Status(r.Status, r.Header.Get(exchange.GRPCStatus)) {
		return false
	}
	if !c.permit() {
		return false
	}
	if !contains(c.tried, c.endpoint) {
		c.tried = append(c.tried, c.endpoint)
	}
	c.endpoint.Report(r.Status < 500)
	c.endpoint.Observe(upstream.Answered, health(r), c.r.cfg.Now().Sub(c.began))
	c.release(c.hop.skip())
	c.pause(false)
	return true
}

// permit counts a retry, if the route's policy and the cluster allow one more.
func (c *call) permit() bool {
	if c.retries >= c.retry.Attempts {
		c.x.Flags |= exchange.RetriesExhausted
		return false
	}
	// Of one request only the newest retry is on its way.
	if c.retrying {
		c.cluster.EndRetry()
	}
	if c.retrying = c.cluster.BeginRetry(); !c.retrying {
		c.x.Flags |= exchange.UpstreamOverflow
		return false
	}
	c.retries++
	return true
}

// pause waits before a retry as long as it has to. Another endpoint than one that can
// not be connected to is tried at once. An interruption shows in the next attempt.
func (c *call) pause(elsewhere bool) {
	if !c.retry.Reopen && !c.retry.Remote {
		c.tried = c.tried[:0]
	}
	if !elsewhere || c.retries > 1 {
		c.guard.sleep(backoff(c.retries, c.retry.Backoff, c.r.cfg.Random()))
	}
}

// backoff returns how long to wait before the nth retry: with a base of 25 ms up to
// 25 ms, 75 ms, 175 ms, and never more than 250 ms. Source: Envoy, router filter,
// x-envoy-max-retries.
func backoff(n int, base time.Duration, random uint64) time.Duration {
	longest := min(base*time.Duration(1<<min(n, 10)-1), 10*base)
	return time.Duration(random % uint64(longest))
}

// fail answers for the upstream.
func (c *call) fail(f *failure) {
	c.answered = true
	fail(c.x, f)
}

func fail(x *exchange.Exchange, f *failure) {
	const prefix = "upstream connect error or disconnect/reset before headers. reset reason: "
	switch f.kind {
	case noHost:
		x.Fail(exchange.NoHealthyUpstream, 503, "no healthy upstream", "no_healthy_upstream")
	case overflow, unwanted: // no retry more is allowed, and the answer is gone
		x.Fail(exchange.UpstreamOverflow, 503, prefix+"overflow", "upstream_reset_before_response_started{overflow}")
		x.Response.Header.AddString(exchange.Other, "x-envoy-overloaded", "true")
	case protocol:
		x.Fail(exchange.UpstreamProtocol, 502, prefix+"protocol error", "upstream_reset_before_response_started{protocol_error}")
	case refused, terminated:
		flag := exchange.UpstreamFailure
		if f.kind == terminated {
			flag = exchange.UpstreamTermination
		}
		body, details := prefix+f.reason, strings.ReplaceAll(f.reason, " ", "_")
		if f.transport != "" {
			x.TransportFailure = f.transport
			body += ", transport failure reason: " + f.transport
			details += "|" + strings.ReplaceAll(f.transport, " ", "_")
		}
		x.Fail(flag, 503, body, "upstream_reset_before_response_started{"+details+"}")
	case refusedStream:
		x.Fail(exchange.UpstreamReset, 503, prefix+"remote refused stream reset", "upstream_reset_before_response_started{remote_refused_stream_reset}")
	case remoteReset:
		x.Fail(exchange.UpstreamReset, 503, prefix+"remote reset", "upstream_reset_before_response_started{remote_reset}")
	case localReset:
		x.Fail(exchange.LocalReset, 503, prefix+"local reset", "upstream_reset_before_response_started{local_reset}")
	case interrupted:
		failInterrupted(x, f.why)
	}
}

func failInterrupted(x *exchange.Exchange, why cause) {
	switch why {
	case allTimeout:
		x.Fail(exchange.UpstreamTimeout, 504, "upstream request timeout", "response_timeout")
	case tryTimeout:
		x.Fail(exchange.UpstreamTimeout, 504, "upstream request timeout", "upstream_per_try_timeout")
	case stalled:
		x.Close = true
		x.Fail(exchange.StreamIdle, 408, "stream timeout", "stream_idle_timeout")
	case badUpload:
		x.Close = true
		x.Fail(exchange.ClientProtocolError, 400, "", "http1.codec_error")
	case clientGone:
		x.ClientGone = true
		x.Reply(0, "", "downstream_remote_disconnect")
		x.Flags |= exchange.ClientLeft
	}
}

// cutShort says why the response ended early, after its head was sent: by the guard,
// or else by the upstream.
func cutShort(x *exchange.Exchange, why cause, by kind) {
	switch why {
	case none:
		flag, reason := exchange.UpstreamTermination, "connection_termination"
		switch by {
		case remoteReset, refusedStream:
			flag, reason = exchange.UpstreamReset, "remote_reset"
		case localReset:
			flag, reason = exchange.LocalReset, "local_reset"
		case protocol:
			flag, reason = exchange.UpstreamProtocol, "protocol_error"
		}
		x.Flags |= flag
		x.Details = "upstream_reset_after_response_started{" + reason + "}"
	case allTimeout, tryTimeout:
		x.Flags |= exchange.UpstreamTimeout
		x.Details = "response_timeout"
	case stalled:
		x.Flags |= exchange.StreamIdle
		x.Details = "stream_idle_timeout"
	case badUpload:
		x.Flags |= exchange.ClientProtocolError
		x.Details = "http1.codec_error"
	case clientGone:
		x.ClientGone = true
		x.Flags |= exchange.ClientLeft
		x.Details = "downstream_remote_disconnect"
	}
}

func contains(list []*upstream.Endpoint, e *upstream.Endpoint) bool {
	for _, o := range list {
		if o == e {
			return true
		}
	}
	return false
}
