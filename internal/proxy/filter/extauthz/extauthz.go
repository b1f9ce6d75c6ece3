// Package extauthz asks a server of the operator's whether requests may pass, by
// HTTP. It asks about those that a rule matches, and believes an answer of 200 alone.
//
// What fails on the way to the answer fails the request, unless the provider is to
// fail open: an unreachable server, a timeout, an answer that breaks off, and a status
// from 500. The request goes on only after the whole answer was read.
package extauthz

import (
	"bytes"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/rbac"
)

// maxAnswer bounds the body of an answer, which a client may be shown.
const maxAnswer = 256 << 10

// Config is what the filter needs. Both are required.
type Config struct {
	// Rules returns whom to ask about what, nil for nobody. It is called for each
	// request.
	Rules func() *Rules
	// Send sends x.Request to a cluster and returns the answer's body; x.Response is
	// its head. It reports false if no whole answer came.
	Send func(x *exchange.Exchange, cluster string, timeout time.Duration, limit int) (body []byte, ok bool)
}

// New returns the filter.
func New(cfg Config) exchange.Filter {
	f := &filter{cfg}
	return exchange.Filter{Request: f.request, Response: f.response, Waits: func() bool { return cfg.Rules() != nil }}
}

// Rules are the providers of one chain. It is immutable.
type Rules struct{ providers []provider }

type provider struct {
	plan *plan.ExtAuthz
	ask  *rbac.Set
}

// NewRules compiles what chains say; nil is returned for nothing.
func NewRules(list []*plan.ExtAuthz) *Rules {
	if len(list) == 0 {
		return nil
	}
	r := &Rules{}
	for _, e := range list {
		r.providers = append(r.providers, provider{e, rbac.NewSet(e.Rules)})
	}
	return r
}

type filter struct{ cfg Config }

func (f *filter) request(x *exchange.Exchange) {
	rules := f.cfg.Rules()
	if rules == nil {
		return
	}
	for i := range rules.providers {
		p := &rules.providers[i]
		q := rbac.Query{Conn: x.Conn, Exchange: x, Remote: x.Remote}
		if p.ask.Match(&q) == nil {
			continue
		}
		if f.check(x, p.plan); x.Response.Status != 0 {
			return
		}
	}
}

// check asks about one request, and answers it if it may not pass.
func (f *filter) check(x *exchange.Exchange, p *plan.ExtAuthz) {
	y := exchange.Get()
	defer exchange.Put(y)
	question(x, y, p)
	body, ok := f.cfg.Send(y, p.Cluster, p.Timeout, maxAnswer)
	defer func() { y.Finish(ok) }()
	a := &y.Response
	switch {
	case !ok || a.Status >= 500 || a.Status < 200:
		if !p.FailOpen {
			x.Fail(exchange.Unauthorized, int(p.StatusOnError), "", "ext_authz_error")
		}
	case a.Status == 200:
		consent(x, a, p)
	default:
		refuse(x, a, string(body), p)
	}
}

// question makes the request to the provider: the method and the path of the one in
// question, and of its headers those that are wanted. It has no body.
func question(x, y *exchange.Exchange, p *plan.ExtAuthz) {
	q, r := &x.Request, &y.Request
	y.Context = x.Context
	y.Conn = &exchange.Conn{ID: x.Conn.ID, Remote: x.Conn.Remote, Local: x.Conn.Local, Direction: x.Conn.Direction}
	r.Method, r.Authority, r.Scheme = bytes.Clone(q.Method), bytes.Clone(q.Authority), "http"
	r.Path = append([]byte(p.PathPrefix), q.Path...)
	r.Query, r.HasQuery = bytes.Clone(q.Query), q.HasQuery
	r.Target = bytes.Clone(r.Path)
	if r.HasQuery {
		r.Target = append(append(r.Target, '?'), r.Query...)
	}
	r.Minor, r.Head, r.Framing = 1, q.Head, exchange.NoBody
	r.Header.Add(exchange.Host, "host", r.Authority)
	for i := range q.Header.Len() {
		h := q.Header.At(i)
		if h == nil || !passes(h) || !exchange.EqualFold(h.Name, "authorization") && !wanted(p.RequestHeaders, h.Name) || replaced(p.Added, h.Name) {
			continue
		}
		r.Header.Add(h.ID, string(h.Name), bytes.Clone(h.Value))
	}
	for _, a := range p.Added {
		r.Header.AddString(exchange.Identify([]byte(a.Name)), a.Name, a.Value)
	}
}

func replaced(list []plan.AddedHeader, name []byte) bool {
	for _, a := range list {
		if exchange.EqualFold(name, a.Name) {
			return true
		}
	}
	return false
}

// passes reports whether a header may be carried between two messages: what frames
// one of them, or is about its connection, stays where it is.
func passes(h *exchange.Field) bool {
	switch h.ID {
	case exchange.Connection, exchange.ContentLength, exchange.Expect, exchange.Host, exchange.KeepAlive, exchange.ProxyConnection,
		exchange.TE, exchange.Trailer, exchange.TransferEncoding, exchange.Upgrade, exchange.HTTP2Settings,
		// The proxy writes its own.
		exchange.Date, exchange.Server, exchange.ServiceTime, exchange.PeerMetadata, exchange.PeerMetadataID, exchange.GRPCStatus, exchange.GRPCMessage:
		return false
	}
	return len(h.Name) > 0 && h.Name[0] != ':'
}

// wanted reports whether a name is in a list.
func wanted(list []plan.TextMatch, name []byte) bool {
	if len(list) == 0 {
		return false
	}
	n := strings.ToLower(string(name))
	for _, t := range list {
		switch {
		case t.Kind == plan.StringPresent,
			t.Kind == plan.StringExact && n == t.Value,
			t.Kind == plan.StringPrefix && strings.HasPrefix(n, t.Value),
			t.Kind == plan.StringSuffix && strings.HasSuffix(n, t.Value),
			t.Kind == plan.StringContains && strings.Contains(n, t.Value):
			return true
		}
	}
	return false
}

// consent gives the request, and later its response, what the provider says. Where a
// header has several lines there, all of them take the place of the client's.
func consent(x *exchange.Exchange, a *exchange.Response, p *plan.ExtAuthz) {
	for i := range a.Header.Len() {
		h := a.Header.At(i)
		if h == nil || !passes(h) {
			continue
		}
		if wanted(p.ToUpstream, h.Name) {
			if first(&a.Header, i) {
				x.Request.Header.DelName(h.Name)
			}
			x.Request.Header.Add(h.ID, string(h.Name), bytes.Clone(h.Value))
		}
		if wanted(p.ToClient, h.Name) {
			x.ToClient = append(x.ToClient, exchange.Pair{Name: string(h.Name), Value: string(h.Value)})
		}
	}
}

// first reports whether no line before i has its name.
func first(h *exchange.Header, i int) bool {
	_, at := h.Find(strings.ToLower(string(h.At(i).Name)), 0)
	return at == i
}

// refuse answers with the provider's status and body.
func refuse(x *exchange.Exchange, a *exchange.Response, body string, p *plan.ExtAuthz) {
	x.Fail(exchange.Unauthorized, a.Status, body, "ext_authz_denied")
	for i := range a.Header.Len() {
		h := a.Header.At(i)
		if h == nil || !passes(h) || len(p.ToDenied) > 0 && !wanted(p.ToDenied, h.Name) && !exchange.EqualFold(h.Name, "location") && !exchange.EqualFold(h.Name, "www-authenticate") {
			continue
		}
		if exchange.EqualFold(h.Name, "content-type") {
			if x.Request.IsGRPC() {
				continue // the answer is in gRPC's terms
			}
			x.Response.Header.Del(exchange.ContentType)
		}
		x.Response.Header.Add(h.ID, string(h.Name), bytes.Clone(h.Value))
	}
}

// response adds what the provider had for the client.
func (f *filter) response(x *exchange.Exchange) {
	for _, p := range x.ToClient {
		x.Response.Header.DelName([]byte(p.Name))
	}
	for _, p := range x.ToClient {
		x.Response.Header.AddString(exchange.Identify([]byte(p.Name)), p.Name, p.Value)
	}
}
