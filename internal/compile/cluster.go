package compile

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/heddle-mesh/heddle/internal/match"
	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/plan"
)

// serviceClusters makes the clusters of all services in the scope.
func (s *scope) serviceClusters() []*plan.Cluster {
	var out []*plan.Cluster
	for _, d := range s.services {
		for _, p := range d.Ports {
			out = append(out, s.clustersOf(d, p)...)
		}
	}
	slices.SortFunc(out, func(a, b *plan.Cluster) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// clustersOf makes the clusters of one port: the whole, and each subset.
func (s *scope) clustersOf(d *destination, p *model.Port) []*plan.Cluster {
	out := []*plan.Cluster{s.cluster(d, p, nil)}
	if d.rule != nil {
		for _, sub := range d.rule.Subsets {
			out = append(out, s.cluster(d, p, sub))
		}
	}
	return out
}

func (s *scope) cluster(d *destination, p *model.Port, subset *networking.Subset) *plan.Cluster {
	policy := policyFor(d.rule, subset, p)
	c := &plan.Cluster{
		Name:           clusterName(p.Number, subset.GetName(), d.Host),
		Discovery:      s.discovery(d, policy),
		Balancing:      balancing(policy.GetLoadBalancer().GetSimple()),
		ConnectTimeout: s.mesh.ConnectTimeout,
		TLS:            s.clientTLS(d, p, subset.GetName(), policy),
		Service:        plan.ServiceRef{Host: string(d.Host), Name: d.Name, Namespace: d.Namespace},
	}
	if !d.Kubernetes {
		// A ServiceEntry's own name says nothing about the host.
		c.Service.Name = string(d.Host)
	}
	poolOf(policy, s.mesh.ConnectTimeout).apply(c)
	if d.rule != nil {
		c.Origin = origin("destination-rule", d.rule.Meta)
	}
	switch c.Discovery {
	case plan.EDS:
		if n := edsName(c.Name, d, subset); n != c.Name {
			c.ServiceName = n
		}
	case plan.OriginalDst:
		c.Balancing = plan.ClusterProvided
		if c.TLS != nil {
			c.TLS.Auto = false // endpoints are not known one by one
		}
	case plan.StrictDNS, plan.LogicalDNS:
		for _, e := range d.endpoints.ByPort[p.Number] {
			if !match.Labels(subset.GetLabels(), e.Labels) {
				continue
			}
			at := plan.StaticEndpoint{Host: e.Name, Port: e.Port}
			if e.Name == "" {
				at.Host = e.Address.String()
			}
			c.Static = append(c.Static, at)
		}
		if c.Discovery == plan.LogicalDNS && len(c.Static) > 1 {
			// Logical DNS is for one name. Source: Envoy, "Logical DNS".
			c.Discovery = plan.StrictDNS
		}
	}
	return c
}

// discovery tells how a cluster finds its endpoints. At the edge nobody has
// dialled an address of the mesh, so endpoints must be known.
func (s *scope) discovery(d *destination, policy *networking.TrafficPolicy) plan.Discovery {
	switch {
	case d.Resolution == model.ByDNS:
		return plan.StrictDNS
	case d.Resolution == model.ByDNSOnce:
		return plan.LogicalDNS
	case s.class != Sidecar:
		return plan.EDS
	case d.Resolution == model.ByClient, policy.GetLoadBalancer().GetSimple() == networking.LoadBalancerSettings_PASSTHROUGH:
		return plan.OriginalDst
	}
	return plan.EDS
}

func balancing(simple networking.LoadBalancerSettings_SimpleLB) plan.Balancing {
	switch simple {
	case networking.LoadBalancerSettings_ROUND_ROBIN:
		return plan.RoundRobin
	case networking.LoadBalancerSettings_RANDOM:
		return plan.Random
	}
	return plan.LeastRequest
}

func (s *scope) passthroughCluster() *plan.Cluster {
	return &plan.Cluster{
		Name:           passthroughName,
		Discovery:      plan.OriginalDst,
		Balancing:      plan.ClusterProvided,
		ConnectTimeout: s.mesh.ConnectTimeout,
	}
}

// blackHoleCluster has no endpoints and never gets any.
func blackHoleCluster() *plan.Cluster {
	return &plan.Cluster{Name: blackHoleName, Discovery: plan.Static, ConnectTimeout: time.Second}
}

// policyFor returns what a rule says about a port of a host, or of a subset. A
// port's settings replace those of the whole, also where they say nothing; a
// subset inherits what it leaves out.
// Source: Istio, MergeTrafficPolicy.
func policyFor(rule *model.DestinationRule, subset *networking.Subset, p *model.Port) *networking.TrafficPolicy {
	if rule == nil {
		return nil
	}
	out := forPort(rule.Policy, p)
	if in := subset.GetTrafficPolicy(); in != nil {
		if out == nil {
			out = &networking.TrafficPolicy{}
		}
		if port := portSettings(in, p); port != nil {
			return forPort(in, p)
		}
		out = &networking.TrafficPolicy{
			LoadBalancer:   cmp.Or(in.LoadBalancer, out.LoadBalancer),
			ConnectionPool: cmp.Or(in.ConnectionPool, out.ConnectionPool),
			Tls:            cmp.Or(in.Tls, out.Tls),
		}
	}
	return out
}

func forPort(in *networking.TrafficPolicy, p *model.Port) *networking.TrafficPolicy {
	if port := portSettings(in, p); port != nil {
		return &networking.TrafficPolicy{
			LoadBalancer:   port.LoadBalancer,
			ConnectionPool: port.ConnectionPool,
			Tls:            port.Tls,
		}
	}
	return in
}

func portSettings(in *networking.TrafficPolicy, p *model.Port) *networking.TrafficPolicy_PortTrafficPolicy {
	for _, s := range in.GetPortLevelSettings() {
		if s.GetPort().GetNumber() == uint32(p.Number) {
			return s
		}
	}
	return nil
}

// pool limits the connections of a cluster; 0 is no limit.
type pool struct {
	connect                               time.Duration
	connections, pending, requests, reuse uint32
	idle                                  time.Duration
}

func poolOf(policy *networking.TrafficPolicy, connect time.Duration) pool {
	tcp, http := policy.GetConnectionPool().GetTcp(), policy.GetConnectionPool().GetHttp()
	p := pool{
		connect:     connect,
		connections: positive(tcp.GetMaxConnections()),
		pending:     positive(http.GetHttp1MaxPendingRequests()),
		requests:    positive(http.GetHttp2MaxRequests()),
		reuse:       positive(http.GetMaxRequestsPerConnection()),
	}
	if t := tcp.GetConnectTimeout(); t != nil && t.AsDuration() > 0 {
		p.connect = t.AsDuration()
	}
	// The HTTP setting counts; without it the one for TCP holds for HTTP too.
	if t := http.GetIdleTimeout(); t != nil {
		p.idle = t.AsDuration()
	} else if t := tcp.GetIdleTimeout(); t != nil {
		p.idle = t.AsDuration()
	}
	return p
}

func positive(n int32) uint32 { return uint32(max(n, 0)) }

func (p pool) apply(c *plan.Cluster) {
	if p.connect > 0 {
		c.ConnectTimeout = p.connect
	}
	c.MaxConnections, c.MaxPending, c.MaxRequests, c.MaxPerConn = p.connections, p.pending, p.requests, p.reuse
	c.IdleTimeout = p.idle
}

func (p pool) print(to *model.Printer) {
	to.Number(uint64(p.connect))
	to.Number(uint64(p.idle))
	for _, n := range [...]uint32{p.connections, p.pending, p.requests, p.reuse} {
		to.Number(uint64(n))
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func sortedPorts[V any](m map[uint16]V) []uint16 { return slices.Sorted(maps.Keys(m)) }
