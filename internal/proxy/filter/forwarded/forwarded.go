// Package forwarded keeps the headers that say where a request came from:
// x-forwarded-for, x-forwarded-proto and x-envoy-external-address. At the edge it
// trusts the connection and nothing the client says; between sidecars it leaves
// what is there.
package forwarded

import (
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// Config is what the filter needs.
type Config struct {
	// UseRemoteAddress is for the edge: the client's address is the connection's.
	UseRemoteAddress bool
}

// New returns the filter.
func New(cfg Config) exchange.Filter {
	if cfg.UseRemoteAddress {
		return exchange.Filter{Request: edge}
	}
	return exchange.Filter{Request: inside}
}

// inside says how the client reached the mesh, unless that was said before.
func inside(x *exchange.Exchange) {
	if !x.Request.Header.Has(exchange.ForwardedProto) {
		x.Request.Header.SetString(exchange.ForwardedProto, x.Request.Scheme)
	}
}

// edge removes what a stranger must not say and adds what is true.
func edge(x *exchange.Exchange) {
	h := &x.Request.Header
	for i := range h.Len() {
		// The families that the mesh itself speaks in.
		if f := h.At(i); f != nil &&
			(exchange.HasPrefixFold(f.Name, "x-envoy-") || exchange.HasPrefixFold(f.Name, "x-istio-")) {
			h.DelAt(i)
		}
	}
	from := x.Conn.Remote.Addr().Unmap()
	h.SetString(exchange.ForwardedProto, x.Request.Scheme)
	if !from.IsValid() {
		return
	}
	b := x.Scratch()
	for i := range h.Len() {
		if f := h.At(i); f != nil && f.ID == exchange.ForwardedFor && len(f.Value) > 0 {
			b = append(append(b, f.Value...), ", "...)
		}
	}
	chain := x.Keep(from.AppendTo(b))
	h.Set(exchange.ForwardedFor, chain)
	h.Set(exchange.ExternalAddress, x.Keep(from.AppendTo(x.Scratch())))
}
