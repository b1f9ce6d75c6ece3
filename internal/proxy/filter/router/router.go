// Package router is the last handler of every chain: it decides where a request
// goes, sends it there, and brings the response back as far as its head. The
// response's body follows when the chain has returned.
//
// The order of its work: the route table's decision; the faults and the CORS policy
// of the route; an answer of the proxy's own if the route is one, or a cluster; then one or more attempts, each with its
// endpoint and connection. What goes wrong ends in a local reply with Envoy's
// status, text, flag and details.
package router

import (
	"log/slog"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/filter/cors"
	"github.com/heddle-mesh/heddle/internal/proxy/filter/fault"
	"github.com/heddle-mesh/heddle/internal/proxy/route"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
)

// Config is what the router needs.
type Config struct {
	// Routes returns the current table, or nil if there is none yet.
	Routes   func() *route.Table
	Clusters *upstream.Set
	// Metadata and MetadataID describe this workload to upstreams in the mesh.
	Metadata, MetadataID string
	// CountAttempts tells upstreams which attempt a request is.
	CountAttempts bool
	Now           func() time.Time // nil: time.Now
	Random        func() uint64    // nil: math/rand
	Log           *slog.Logger     // nil: slog.Default
}

// Router is the handler of a chain.
type Router struct {
	cfg    Config
	copies atomic.Int64 // mirrored requests that are on their way
}

// Target is where a request goes, and how often.
type Target struct {
	Cluster *upstream.Cluster
	Rule    *plan.Route
	Retry   *route.Retry
}

// New returns a router.
func New(cfg Config) *Router {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Random == nil {
		cfg.Random = rand.Uint64
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Router{cfg: cfg}
}

// Handle answers x. It is an exchange.Handler.
func (r *Router) Handle(x *exchange.Exchange) {
	var d route.Decision
	if t := r.cfg.Routes(); t != nil {
		d = t.Match(route.Of(x))
	}
	x.Host, x.Rule = d.Host, d.Route
	if d.Route == nil || x.Request.Connect {
		// No route here asks for CONNECT. Taken for an ordinary request it would
		// become a tunnel, and what is sent through that passes every filter by.
		x.Fail(exchange.NoRoute, 404, "", "route_not_found")
		return
	}
	delayed := false
	if f := d.Route.Fault; f != nil {
		var answered bool
		if delayed, answered = r.spoil(x, f); answered {
			return
		}
	}
	p := d.Route.CORS
	if p == nil {
		r.act(x, d, delayed)
		return
	}
	allowed := d.Action.Origin(cors.Origin(x))
	if cors.Preflight(x, p, allowed) {
		return
	}
	r.act(x, d, delayed)
	cors.Response(x, p, allowed)
}

// quick decides for a request whose route does nothing but send it to a cluster. For
// all others it reports false, and has changed nothing.
func (r *Router) quick(x *exchange.Exchange) (t Target, ok bool) {
	var d route.Decision
	if t := r.cfg.Routes(); t != nil {
		d = t.Match(route.Of(x))
	}
	p := d.Route
	if p == nil || d.Action != nil || p.Fault != nil || p.CORS != nil || p.Direct != nil || p.Redirect != nil || x.Request.Connect {
		return t, false
	}
	i := route.Share(p.Clusters, r.cfg.Random())
	if i < 0 {
		return t, false
	}
	share := &p.Clusters[i]
	c := r.cfg.Clusters.Cluster(share.Cluster)
	if c == nil {
		return t, false
	}
	x.Host, x.Rule, x.Cluster = d.Host, p, share.Cluster
	x.Upstream.Service = c.Plan().Service
	rewrite(x, d, share)
	return Target{c, p, d.Retry}, true
}

// begin makes a call of x, which was decided about.
func (r *Router) begin(x *exchange.Exchange, t Target) *call {
	c := callOf(x)
	c.begin(r, x, t.Cluster, t.Rule, t.Retry)
	x.OnFinish(c)
	return c
}

// act does what the route says. delayed says that the request was held up before.
func (r *Router) act(x *exchange.Exchange, d route.Decision, delayed bool) {
	switch {
	case d.Route.Direct != nil:
		x.Reply(int(d.Route.Direct.Status), d.Route.Direct.Body, "direct_response")
	case d.Route.Redirect != nil:
		redirect(x, d.Route)
	default:
		r.forward(x, d, delayed)
		return
	}
	if a := d.Action; a != nil && a.Edits != nil {
		a.Edits.Response.Apply(x, &x.Response.Header)
	}
}

// spoil delays and aborts a request as far as the dice say so.
func (r *Router) spoil(x *exchange.Exchange, f *plan.Fault) (delayed, answered bool) {
	if f.DelayFraction > 0 && fault.Delays(f, r.cfg.Random()) {
		delayed = true
		x.Flags |= exchange.DelayInjected
		if !callOf(x).wait(r, x, f.Delay) {
			return true, true
		}
	}
	if f.AbortFraction > 0 && fault.Aborts(f, r.cfg.Random()) {
		fault.Abort(x, f)
		return delayed, true
	}
	return delayed, false
}

// forward sends x to one of the route's clusters.
func (r *Router) forward(x *exchange.Exchange, d route.Decision, delayed bool) {
	var share *plan.WeightedCluster
	i := route.Share(d.Route.Clusters, r.cfg.Random())
	if i >= 0 {
		share = &d.Route.Clusters[i]
		x.Cluster = share.Cluster
	}
	c := r.cfg.Clusters.Cluster(x.Cluster)
	if c == nil {
		x.Fail(exchange.NoCluster, 503, "", "cluster_not_found")
		return
	}
	x.Upstream.Service = c.Plan().Service
	rewrite(x, d, share)

	call := callOf(x)
	call.begin(r, x, c, d.Route, d.Retry)
	if delayed {
		call.start = r.cfg.Now()
	}
	x.OnFinish(call)
	if d.Action == nil {
		call.run(nil)
		return
	}
	edits, parts := d.Action.Edits, d.Action.Shares
	if parts != nil && parts[i] != nil {
		parts[i].Request.Apply(x, &x.Request.Header)
	}
	if edits != nil {
		edits.Request.Apply(x, &x.Request.Header)
	}
	random := r.cfg.Random()
	var cookie *plan.HashPolicy
	call.hash, call.hashed, cookie = d.Action.Hash(x, random)
	call.run(nil)
	if x.Response.Local {
		return
	}
	if parts != nil && parts[i] != nil {
		parts[i].Response.Apply(x, &x.Response.Header)
	}
	if edits != nil {
		edits.Response.Apply(x, &x.Response.Header)
	}
	if cookie != nil {
		setCookie(x, cookie, random)
	}
}

// setCookie gives the client the cookie by which it comes back to the same
// endpoint.
func setCookie(x *exchange.Exchange, p *plan.HashPolicy, random uint64) {
	b := append(x.Scratch(), p.Name...)
	b = append(b, `="`...)
	b = route.Cookie(b, random)
	b = append(b, '"')
	if p.TTL > 0 {
		b = append(b, "; Max-Age="...)
		b = strconv.AppendInt(b, int64(p.TTL.Seconds()), 10)
	}
	if p.Path != "" {
		b = append(append(b, "; Path="...), p.Path...)
	}
	for _, a := range p.Attributes {
		b = append(append(b, "; "...), a.Name...)
		if a.Value != "" {
			b = append(append(b, '='), a.Value...)
		}
	}
	b = append(b, "; HttpOnly"...)
	x.Response.Header.Add(exchange.Other, "set-cookie", x.Keep(b))
}

// callOf returns the client's call.
func callOf(x *exchange.Exchange) *call {
	if c, ok := (*x.Terminal).(*call); ok {
		return c
	}
	c := newCall()
	*x.Terminal = c
	return c
}

// timeoutOf returns how long a request may take, 0 for ever. A gRPC client says
// itself how long it will wait, and gets no more than the route grants. Source:
// Istio, which sets max_grpc_timeout to the route's timeout.
func timeoutOf(q *exchange.Request, p *plan.Route) time.Duration {
	if q.Header.Has(exchange.GRPCTimeout) && q.IsGRPC() {
		if ms, ok := q.GRPCTimeout(); ok && (p.Timeout == 0 || ms < p.Timeout.Milliseconds()) {
			return time.Duration(ms) * time.Millisecond
		}
	}
	return p.Timeout
}

// expect tells the upstream how long it has.
func expect(x *exchange.Exchange, timeout time.Duration, retry *route.Retry) {
	if retry != nil && retry.PerTry > 0 && (timeout == 0 || retry.PerTry < timeout) {
		timeout = retry.PerTry
	}
	if timeout > 0 {
		ms := strconv.AppendInt(x.Scratch(), timeout.Milliseconds(), 10)
		x.Request.Header.Set(exchange.ExpectedTimeout, x.Keep(ms))
	}
}
