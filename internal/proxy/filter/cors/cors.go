// Package cors answers the preflights of browsers and marks the responses that
// scripts of other origins may read. A route says to which origins; the router asks
// it here once the route is known, before it forwards, and again for the response.
// Source: the Fetch standard, "CORS protocol"; Envoy's CORS filter.
package cors

import (
	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// Origin returns whose script asks, or nil if no other's does.
func Origin(x *exchange.Exchange) []byte {
	value, _ := x.Request.Header.Find("origin", 0)
	return value
}

// Preflight answers x if it is a preflight that goes no further, and reports
// whether it was. allowed says whether the request's origin is one of the policy's.
func Preflight(x *exchange.Exchange, p *plan.CORS, allowed bool) bool {
	q := &x.Request
	origin := Origin(x)
	if string(q.Method) != "OPTIONS" || origin == nil {
		return false
	}
	if _, i := q.Header.Find("access-control-request-method", 0); i < 0 {
		return false
	}
	if !allowed {
		if p.ForwardUnmatched {
			return false
		}
		x.Reply(200, "", "cors_response")
		return true
	}
	x.Reply(200, "", "cors_response")
	h := &x.Response.Header
	h.Add(exchange.Other, "access-control-allow-origin", origin)
	add := func(name, value string) {
		if value != "" {
			h.AddString(exchange.Other, name, value)
		}
	}
	if p.Credentials {
		add("access-control-allow-credentials", "true")
	}
	add("access-control-allow-methods", p.Methods)
	add("access-control-allow-headers", p.Headers)
	add("access-control-max-age", p.MaxAge)
	return true
}

// Response marks a response to an allowed origin.
func Response(x *exchange.Exchange, p *plan.CORS, allowed bool) {
	origin := Origin(x)
	if !allowed || origin == nil || x.Response.Status == 0 || x.Details == "cors_response" {
		return
	}
	h := &x.Response.Header
	set := func(name, value string) {
		h.DelName([]byte(name))
		h.AddString(exchange.Other, name, value)
	}
	h.DelName([]byte("access-control-allow-origin"))
	h.Add(exchange.Other, "access-control-allow-origin", origin)
	if p.Credentials {
		set("access-control-allow-credentials", "true")
	}
	if p.Expose != "" {
		set("access-control-expose-headers", p.Expose)
	}
}
