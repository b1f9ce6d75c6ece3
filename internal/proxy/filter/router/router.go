// Package router is the last handler of every chain: it decides where a request
// goes, sends it there, and brings the response back as far as its head. The
// response's body follows when the chain has returned.
//
// The order of its work: the route table's decision; an answer of the proxy's own
// if the route is one, or a cluster; then one or more attempts, each with its
// endpoint and connection. What goes wrong ends in a local reply with Envoy's
// status, text, flag and details.
package router

import (
	"math/rand/v2"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
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
}

type router struct {
	cfg Config
}

// New returns the handler.
func New(cfg Config) exchange.Handler {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Random == nil {
		cfg.Random = rand.Uint64
	}
	r := &router{cfg: cfg}
	return r.handle
}

// handle answers x.
func (r *router) handle(x *exchange.Exchange) {
	var d route.Decision
	if t := r.cfg.Routes(); t != nil {
		d = t.Match(route.Of(x))
	}
	x.Host, x.Rule = d.Host, d.Route
	switch {
	case d.Route == nil || x.Request.Connect:
		// No route here asks for CONNECT. Taken for an ordinary request it would
		// become a tunnel, and what is sent through that passes every filter by.
		x.Fail(exchange.NoRoute, 404, "", "route_not_found")
	case d.Route.Direct != nil:
		x.Reply(int(d.Route.Direct.Status), d.Route.Direct.Body, "direct_response")
	case d.Route.Redirect != nil:
		redirect(x, d.Route)
	default:
		r.forward(x, d)
	}
}

// forward sends x to one of the route's clusters.
func (r *router) forward(x *exchange.Exchange, d route.Decision) {
	x.Cluster = route.Pick(d.Route.Clusters, r.cfg.Random())
	c := r.cfg.Clusters.Cluster(x.Cluster)
	if c == nil {
		x.Fail(exchange.NoCluster, 503, "", "cluster_not_found")
		return
	}
	x.Upstream.Service = c.Plan().Service
	rewrite(x, d.Route)

	call := callOf(x)
	call.begin(r, x, c, d.Route, d.Retry)
	x.OnFinish(call)
	call.run()
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

// expected returns what x-envoy-expected-rq-timeout-ms tells the upstream.
func (c *call) expected() time.Duration {
	if c.retry != nil && c.retry.PerTry > 0 && (c.timeout == 0 || c.retry.PerTry < c.timeout) {
		return c.retry.PerTry
	}
	return c.timeout
}
