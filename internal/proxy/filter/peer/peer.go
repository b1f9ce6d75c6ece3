// Package peer lets workloads tell each other who they are, in the header
// x-envoy-peer-metadata, so that metrics can name both ends of a call. The header
// is for the proxies: applications never see it.
//
// A proxy on the called side reads the client's description from the request and
// puts its own workload's into the response. One on the calling side reads that;
// what it sends itself is the router's matter, which knows the upstream.
package peer

import (
	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/telemetry"
)

// Config is what the filter needs.
type Config struct {
	Direction plan.Direction
	// Metadata and MetadataID describe this workload.
	Metadata, MetadataID string
	// Decode reads a description; false if it is none.
	Decode func(metadata, id string) (telemetry.Workload, bool)
}

// New returns the filter.
func New(cfg Config) exchange.Filter {
	decode := func(header string) (telemetry.Workload, bool) { return cfg.Decode(header, "") }
	if cfg.Direction == plan.Inbound {
		return inbound(cfg, decode)
	}
	return outbound(decode)
}

func inbound(cfg Config, decode func(string) (telemetry.Workload, bool)) exchange.Filter {
	return exchange.Filter{
		Request: func(x *exchange.Exchange) {
			h := &x.Request.Header
			x.AskedPeer, x.AskedPeerID = h.Has(exchange.PeerMetadata), h.Has(exchange.PeerMetadataID)
			if x.AskedPeer {
				x.Peer = x.Conn.PeerMemo.Decode(h.Get(exchange.PeerMetadata), decode)
				h.Del(exchange.PeerMetadata)
			}
			h.Del(exchange.PeerMetadataID)
		},
		Response: func(x *exchange.Exchange) {
			// Whatever the application put there is not ours to pass on.
			r := &x.Response.Header
			r.Del(exchange.PeerMetadata)
			r.Del(exchange.PeerMetadataID)
			if x.AskedPeer && cfg.Metadata != "" {
				r.SetString(exchange.PeerMetadata, cfg.Metadata)
			}
			if x.AskedPeerID && cfg.MetadataID != "" {
				r.SetString(exchange.PeerMetadataID, cfg.MetadataID)
			}
		},
	}
}

func outbound(decode func(string) (telemetry.Workload, bool)) exchange.Filter {
	return exchange.Filter{Response: func(x *exchange.Exchange) {
		r := &x.Response.Header
		if r.Has(exchange.PeerMetadata) {
			if u := &x.Upstream; u.Peer != nil {
				// The workload's own word is more detailed than discovery's.
				if w := u.Peer.Decode(r.Get(exchange.PeerMetadata), decode); w != nil {
					u.Workload = w
				}
			}
			r.Del(exchange.PeerMetadata)
		}
		r.Del(exchange.PeerMetadataID)
	}}
}
