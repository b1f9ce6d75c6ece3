// Package stats counts finished exchanges in Istio's standard metrics.
//
// A handle is looked up by its two dozen labels once and then remembered where
// they come from: with the endpoint for calls going out, with the client's
// connection for calls coming in.
package stats

import (
	"cmp"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/telemetry"
)

// Config is what the observer needs.
type Config struct {
	Registry  *telemetry.Registry
	Direction plan.Direction
	Own       telemetry.Workload
	Now       func() time.Time // nil: time.Now
}

// New returns the observer.
func New(cfg Config) func(*exchange.Exchange) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	o := &observer{cfg: cfg}
	return o.observe
}

type observer struct{ cfg Config }

func (o *observer) observe(x *exchange.Exchange) {
	k := exchange.HandleKey{
		Cluster:  x.Cluster,
		Code:     x.Response.Status,
		Flags:    x.Flags,
		Reporter: uint8(o.cfg.Direction),
		Own:      &o.cfg.Own,
	}
	if o.cfg.Direction == plan.Outbound && x.Upstream.Service.Host == "" {
		// At the edge strangers choose the authority, and inbound it says nothing.
		k.Authority = exchange.View(clip(x.Request.Authority))
	}
	if x.Request.IsGRPC() {
		k.IsGRPC = true
		k.GRPC = x.Response.GRPCStatus
	}
	memo := x.Upstream.Handles
	if o.cfg.Direction == plan.Inbound || memo == nil {
		// The client's connection says who called, and, together with the cluster,
		// what was called.
		memo = &x.Conn.Handles
		k.Peer = x.Peer
	} else {
		k.Principal = x.Upstream.PeerID
		k.Peer = x.Upstream.Workload
	}
	m := memo.Get(&k)
	if m == nil {
		m = o.cfg.Registry.HTTP(o.labels(x, &k))
		memo.Put(k, m)
	}
	m.Observe(x.Duration(o.cfg.Now), x.RequestBytes, x.ResponseBytes)
	if k.IsGRPC {
		m.Messages(x.Request.Messages.N, x.Response.Messages.N)
	}
}

// labels resolves all labels.
func (o *observer) labels(x *exchange.Exchange, k *exchange.HandleKey) telemetry.Labels {
	l := telemetry.Labels{
		Code:     k.Code,
		Flags:    k.Flags.String(),
		Protocol: telemetry.ProtocolHTTP,
	}
	if k.IsGRPC {
		l.Protocol, l.GRPCStatus = telemetry.ProtocolGRPC, k.GRPC
	}
	o.service(&l, x)
	if l.Service == "" {
		l.Service = strings.ToValidUTF8(strings.Clone(k.Authority), "") // the key's is a view
	}
	own := o.cfg.Own
	if own.Principal == "" {
		own.Principal = x.Conn.OwnID
	}
	if o.cfg.Direction == plan.Inbound {
		l.Reporter = telemetry.ReporterDestination
		l.Destination = own
		if peer := cmp.Or(x.Peer, x.Conn.Peer); peer != nil {
			l.Source = *peer
		}
		l.Source.Principal = x.Conn.PeerID
		l.Security = telemetry.NoSecurity
		if x.Conn.MTLS {
			l.Security = telemetry.MutualTLS
		} else {
			l.Destination.Principal = "" // nobody asked for it
		}
		return l
	}
	l.Reporter = telemetry.ReporterSource
	l.Source = own
	if x.Upstream.Workload != nil {
		l.Destination = *x.Upstream.Workload
	}
	l.Destination.Principal = x.Upstream.PeerID
	if x.Upstream.PeerID == "" {
		l.Source.Principal = "" // no certificate was shown
	}
	l.Security = telemetry.UnknownSecurity
	if x.Upstream.MTLS {
		l.Security = telemetry.MutualTLS
	}
	return l
}

// service names what was called. Traffic that no service claims has the name of
// the cluster that took it.
func (o *observer) service(l *telemetry.Labels, x *exchange.Exchange) {
	s := x.Upstream.Service
	l.Service, l.ServiceName, l.ServiceNamespace = s.Host, s.Name, s.Namespace
	if l.Service != "" {
		return
	}
	switch x.Cluster {
	case "PassthroughCluster", "BlackHoleCluster", "InboundPassthroughCluster":
		l.ServiceName = x.Cluster
	case "":
		// Answered without a cluster: a virtual host of the same name tells.
		if x.Host != nil {
			switch x.Host.Name {
			case "allow_any":
				l.ServiceName = "PassthroughCluster"
			case "block_all":
				l.ServiceName = "BlackHoleCluster"
			}
		}
	}
}

// clip bounds what a client can put into a label.
func clip(b []byte) []byte { return b[:min(len(b), 253)] }
