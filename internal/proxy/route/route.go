// Package route decides where a request goes: Table answers, for an authority, a
// path and headers, which virtual host and which of its routes match.
//
// A decision is a pure function of the table and the request. Match computes it
// without allocating; Explain computes the same one and tells of every virtual
// host and route it looked at and why it passed them by.
package route

import (
	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// Request is what a decision depends on.
type Request struct {
	Method    []byte
	Scheme    string
	Authority []byte // with or without port
	Path      []byte // canonical, without query
	Query     []byte
	Header    *exchange.Header
	Token     *exchange.Token // nil without a verified one
}

// Of returns what a decision about x depends on.
func Of(x *exchange.Exchange) Request {
	r := &x.Request
	return Request{
		Method:    r.Method,
		Scheme:    r.Scheme,
		Authority: r.Authority,
		Path:      r.Path,
		Query:     r.Query,
		Header:    &r.Header,
		Token:     x.Token,
	}
}

// Decision is the answer. Host is nil if no virtual host has the authority, Route
// is nil if none of the host's routes matches.
type Decision struct {
	Host  *plan.VirtualHost
	Route *plan.Route
	Retry *Retry // nil: none
	// Action is what of the route is compiled, nil if nothing is.
	Action *Action
}

// Table is an indexed plan.RouteConfig. It is immutable.
type Table struct {
	Config *plan.RouteConfig

	hosts  []*host
	index  index
	ignore bool // the authority's port
}

// host is a virtual host with its compiled routes.
type host struct {
	plan   *plan.VirtualHost
	routes []rule
	paths  *paths // nil: the routes are few
}

// NewTable indexes a route configuration. It fails, naming every fault, if a
// regular expression does not compile or a domain occurs twice.
func NewTable(c *plan.RouteConfig) (*Table, error) {
	t := &Table{Config: c, ignore: c.IgnorePort}
	return t, t.build(c)
}

// Match returns the decision for r.
func (t *Table) Match(r Request) Decision { return t.match(&r, nil) }

func (t *Table) match(r *Request, trace *Trace) Decision {
	h := t.index.find(r.Authority, t.ignore)
	if trace != nil {
		trace.host(t, r.Authority, h)
	}
	if h == nil {
		return Decision{}
	}
	if h.paths != nil && trace == nil {
		if d, ok := h.lookUp(r); ok {
			return d
		}
	}
	for i := range h.routes {
		ok := h.routes[i].matches(r)
		if trace != nil {
			trace.route(&h.routes[i], *r, ok)
		}
		if ok {
			return h.decision(i)
		}
	}
	return Decision{Host: h.plan}
}

// lookUp answers as a look at all routes would, if it can.
func (h *host) lookUp(r *Request) (d Decision, ok bool) {
	found := candidates{paths: h.paths}
	found.find(r.Path)
	if found.full {
		return d, false
	}
	for {
		i := found.next()
		if i < 0 {
			return Decision{Host: h.plan}, true
		}
		if h.routes[i].matches(r) {
			return h.decision(i), true
		}
	}
}

func (h *host) decision(i int) Decision {
	r := &h.routes[i]
	return Decision{Host: h.plan, Route: r.plan, Retry: r.retry, Action: r.action}
}

// Pick chooses one share of a split and returns its cluster, or "" if there is
// nothing to choose. random is uniform over all its values.
func Pick(shares []plan.WeightedCluster, random uint64) string {
	if i := Share(shares, random); i >= 0 {
		return shares[i].Cluster
	}
	return ""
}

// Share is Pick by index; -1 is nothing.
func Share(shares []plan.WeightedCluster, random uint64) int {
	if len(shares) == 1 {
		return 0
	}
	total := uint64(0)
	for i := range shares {
		total += uint64(shares[i].Weight)
	}
	if total == 0 {
		return -1
	}
	at := (random >> 32) * total >> 32
	for i := range shares {
		w := uint64(shares[i].Weight)
		if at < w {
			return i
		}
		at -= w
	}
	return -1
}
