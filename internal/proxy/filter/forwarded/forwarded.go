// Package forwarded keeps the headers that say where a request came from:
// x-forwarded-for, x-forwarded-proto and x-envoy-external-address. At the edge it
// trusts the connection and nothing the client says; between sidecars it leaves
// what is there.
package forwarded

import (
	"bytes"
	"net/netip"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// Config is what the filter needs.
type Config struct {
	// UseRemoteAddress is for the edge: the client's address is the connection's.
	UseRemoteAddress bool
	// TrustedHops is how many proxies in front are believed: that many addresses at
	// the end of x-forwarded-for, the last of which is the connection's, are theirs.
	TrustedHops int
}

// New returns the filter.
func New(cfg Config) exchange.Filter {
	if cfg.UseRemoteAddress {
		return exchange.Filter{Request: cfg.edge}
	}
	return exchange.Filter{Request: cfg.inside}
}

// inside says how the client reached the mesh, unless that was said before, and
// takes the client's address from whoever is in front: the edge has seen to it that
// the last one named is true.
func (cfg Config) inside(x *exchange.Exchange) {
	h := &x.Request.Header
	if !h.Has(exchange.ForwardedProto) {
		h.SetString(exchange.ForwardedProto, x.Request.Scheme)
	}
	if h.Has(exchange.ForwardedFor) {
		x.Remote = fromEnd(h, cfg.TrustedHops+1)
	}
}

// edge removes what a stranger must not say and adds what is true.
func (cfg Config) edge(x *exchange.Exchange) {
	h := &x.Request.Header
	for i := range h.Len() {
		// The families that the mesh itself speaks in.
		if f := h.At(i); f != nil &&
			(exchange.HasPrefixFold(f.Name, "x-envoy-") || exchange.HasPrefixFold(f.Name, "x-istio-")) {
			h.DelAt(i)
		}
	}
	if cfg.TrustedHops > 0 {
		x.Remote = fromEnd(h, cfg.TrustedHops)
	}
	if cfg.TrustedHops == 0 || !h.Has(exchange.ForwardedProto) {
		h.SetString(exchange.ForwardedProto, x.Request.Scheme)
	}
	from := x.Conn.Remote.Addr().Unmap()
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
	client := from
	if x.Remote.IsValid() {
		client = x.Remote
	}
	h.Set(exchange.ExternalAddress, x.Keep(client.AppendTo(x.Scratch())))
}

// fromEnd returns the n-th address from the end of x-forwarded-for, invalid if there
// is none in that place. Source: Envoy, Utility::getLastAddressFromXFF.
func fromEnd(h *exchange.Header, n int) netip.Addr {
	for i := h.Len() - 1; i >= 0; i-- {
		f := h.At(i)
		if f == nil || f.ID != exchange.ForwardedFor {
			continue
		}
		for rest := f.Value; rest != nil; n-- {
			item := rest
			if comma := bytes.LastIndexByte(rest, ','); comma >= 0 {
				rest, item = rest[:comma], rest[comma+1:]
			} else {
				rest = nil
			}
			if n > 1 {
				continue
			}
			a, err := netip.ParseAddr(exchange.View(bytes.TrimSpace(item)))
			if err != nil || a.Zone() != "" {
				return netip.Addr{}
			}
			return a.Unmap()
		}
	}
	return netip.Addr{}
}
