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
		ConnectTimeout: s.mesh.ConnectTimeout,
		Outlier:        outlier(policy.GetOutlierDetection()),
		PanicPercent:   positive(policy.GetOutlierDetection().GetMinHealthPercent()),
		TLS:            s.clientTLS(d, p, subset.GetName(), policy),
		Service:        plan.ServiceRef{Host: string(d.Host), Name: d.Name, Namespace: d.Namespace},
	}
	s.speak(c, p, policy)
	if !d.Kubernetes {
		// A ServiceEntry's own name says nothing about the host.
		c.Service.Name = string(d.Host)
	}
	balance(c, d, policy.GetLoadBalancer())
	c.ProxyProtocol = proxyProtocol(d.rule, subset)
	poolOf(policy, s.mesh.ConnectTimeout).apply(c)
	c.RetryBudget = retryBudget(policy.GetRetryBudget())
	if d.rule != nil {
		c.Origin = origin("destination-rule", d.rule.Meta)
	}
	switch c.Discovery {
	case plan.EDS:
		near := s.preference(policy)
		c.LocalityWeighted = near.weighted()
		if n := edsName(c.Name, d, subset, near); n != c.Name {
			c.ServiceName = n
		}
	case plan.OriginalDst:
		c.Balancing, c.MinRing, c.TableSize, c.Warmup = plan.ClusterProvided, 0, 0, nil
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

// speak decides which version of HTTP a cluster is spoken to in. Where nobody
// declares one, a sidecar speaks as the client did; a gateway has no way to know what
// its clients' choice means to the server.
// Source: Istio, setUpstreamProtocol, applyConnectionPool and shouldH2Upgrade.
func (s *scope) speak(c *plan.Cluster, p *model.Port, policy *networking.TrafficPolicy) {
	http := policy.GetConnectionPool().GetHttp()
	upgrade := s.mesh.UpgradeToHTTP2 && p.Protocol == model.HTTP
	switch http.GetH2UpgradePolicy() {
	case networking.ConnectionPoolSettings_HTTPSettings_UPGRADE:
		upgrade = true
	case networking.ConnectionPoolSettings_HTTPSettings_DO_NOT_UPGRADE:
		upgrade = false
	}
	switch {
	case s.class == GRPC: // it has its own codec
	case http.GetUseClientProtocol(), p.Protocol == model.Auto && s.class == Sidecar:
		c.Protocol = plan.ClientProtocol
	case upgrade, isHTTP2(p.Protocol):
		c.Protocol = plan.HTTP2
	}
	if t := c.TLS; t == nil || c.Protocol != plan.HTTP2 {
		return
	} else if slices.Equal(t.ALPN, meshTCP) {
		t.ALPN = meshTCPWithHTTP2
	} else if len(t.ALPN) == 0 {
		t.ALPN = []string{"h2"}
	}
}

func isHTTP2(p model.Protocol) bool { return p == model.HTTP2 || p == model.GRPC }

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

// balance says how a cluster's endpoints are chosen.
func balance(c *plan.Cluster, d *destination, in *networking.LoadBalancerSettings) {
	switch in.GetSimple() {
	case networking.LoadBalancerSettings_ROUND_ROBIN:
		c.Balancing = plan.RoundRobin
	case networking.LoadBalancerSettings_RANDOM:
		c.Balancing = plan.Random
	default:
		if d.rule != nil && d.rule.Balancer == "peak-ewma" {
			c.Balancing = plan.PeakEWMA
		}
	}
	if h := in.GetConsistentHash(); h != nil {
		c.Balancing, c.MinRing = plan.RingHash, h.MinimumRingSize
		switch a := h.HashAlgorithm.(type) {
		case *networking.LoadBalancerSettings_ConsistentHashLB_RingHash_:
			c.MinRing = a.RingHash.MinimumRingSize
		case *networking.LoadBalancerSettings_ConsistentHashLB_Maglev:
			c.Balancing, c.MinRing, c.TableSize = plan.Maglev, 0, a.Maglev.TableSize
		}
	}
	if c.Balancing != plan.RoundRobin && c.Balancing != plan.LeastRequest {
		return // the others give a new host its place at once
	}
	w := &plan.Warmup{MinPercent: 10, Aggression: 1}
	switch {
	case in.GetWarmup() != nil:
		w.Duration = in.Warmup.Duration.AsDuration()
		if p := in.Warmup.MinimumPercent; p != nil {
			w.MinPercent = p.Value
		}
		if a := in.Warmup.Aggression; a != nil {
			w.Aggression = a.Value
		}
	case in.GetWarmupDurationSecs() != nil:
		w.Duration = in.WarmupDurationSecs.AsDuration()
	}
	if w.Duration > 0 {
		c.Warmup = w
	}
}

// outlier translates when hosts are ejected; without a block none is.
func outlier(in *networking.OutlierDetection) *plan.Outlier {
	if in == nil {
		return nil
	}
	// Envoy's defaults, of which Istio changes only that gateway errors do not
	// eject by themselves.
	out := &plan.Outlier{
		Consecutive5xx: 5,
		SplitLocal:     in.SplitExternalLocalOriginErrors,
		Interval:       10 * time.Second,
		BaseEjection:   30 * time.Second,
		MaxPercent:     10,
		Codes:          in.OutlierDetectionHttpErrorCodes,
	}
	if n := in.Consecutive_5XxErrors; n != nil {
		out.Consecutive5xx = n.Value
	} else if in.ConsecutiveErrors > 0 {
		out.Consecutive5xx = uint32(in.ConsecutiveErrors)
	}
	out.ConsecutiveGateway = in.ConsecutiveGatewayErrors.GetValue()
	if out.SplitLocal {
		out.ConsecutiveLocal = 5
		if n := in.ConsecutiveLocalOriginFailures; n != nil {
			out.ConsecutiveLocal = n.Value
		}
	}
	if t := in.Interval; t.AsDuration() > 0 {
		out.Interval = t.AsDuration()
	}
	if t := in.BaseEjectionTime; t.AsDuration() > 0 {
		out.BaseEjection = t.AsDuration()
	}
	// Of fewer than ten hosts nobody would ever be ejected by the default alone,
	// and who asks for ejections without a number means some.
	out.AtLeastOne = in.MaxEjectionPercent == 0
	if in.MaxEjectionPercent > 0 {
		out.MaxPercent = uint32(in.MaxEjectionPercent)
	}
	return out
}

// retryBudget is Envoy's where it leaves something out.
func retryBudget(in *networking.TrafficPolicy_RetryBudget) *plan.RetryBudget {
	if in == nil {
		return nil
	}
	out := &plan.RetryBudget{Percent: 20, MinRetries: 3}
	if in.Percent != nil {
		out.Percent = in.Percent.Value
	}
	if in.MinRetryConcurrency > 0 {
		out.MinRetries = in.MinRetryConcurrency
	}
	return out
}

func (s *scope) passthroughCluster() *plan.Cluster {
	return &plan.Cluster{
		Name:           passthroughName,
		Discovery:      plan.OriginalDst,
		Balancing:      plan.ClusterProvided,
		ConnectTimeout: s.mesh.ConnectTimeout,
		Protocol:       plan.ClientProtocol,
	}
}

// blackHoleCluster has no endpoints and never gets any.
func blackHoleCluster() *plan.Cluster {
	return &plan.Cluster{Name: blackHoleName, Discovery: plan.Static, ConnectTimeout: time.Second}
}

// policyFor returns what a rule says about a port of a host, or of a subset. A
// port's settings replace those of the whole, also where they say nothing; a
// subset inherits what it leaves out. What ports cannot say holds for them too.
// Source: Istio, MergeTrafficPolicy.
func policyFor(rule *model.DestinationRule, subset *networking.Subset, p *model.Port) *networking.TrafficPolicy {
	if rule == nil {
		return nil
	}
	out := forPort(rule.Policy, p)
	in := subset.GetTrafficPolicy()
	if in == nil {
		return out
	}
	if out == nil {
		out = &networking.TrafficPolicy{}
	}
	own := forPort(in, p)
	merged := &networking.TrafficPolicy{
		LoadBalancer:     own.LoadBalancer,
		ConnectionPool:   own.ConnectionPool,
		OutlierDetection: own.OutlierDetection,
		Tls:              own.Tls,
		Tunnel:           cmp.Or(in.Tunnel, out.Tunnel),
		ProxyProtocol:    cmp.Or(in.ProxyProtocol, out.ProxyProtocol),
		RetryBudget:      cmp.Or(in.RetryBudget, out.RetryBudget),
	}
	if portSettings(in, p) == nil {
		merged.LoadBalancer = cmp.Or(in.LoadBalancer, out.LoadBalancer)
		merged.ConnectionPool = cmp.Or(in.ConnectionPool, out.ConnectionPool)
		merged.OutlierDetection = cmp.Or(in.OutlierDetection, out.OutlierDetection)
		merged.Tls = cmp.Or(in.Tls, out.Tls)
	}
	return merged
}

func forPort(in *networking.TrafficPolicy, p *model.Port) *networking.TrafficPolicy {
	if port := portSettings(in, p); port != nil {
		return &networking.TrafficPolicy{
			LoadBalancer:     port.LoadBalancer,
			ConnectionPool:   port.ConnectionPool,
			OutlierDetection: port.OutlierDetection,
			Tls:              port.Tls,
			Tunnel:           in.Tunnel,
			ProxyProtocol:    in.ProxyProtocol,
			RetryBudget:      in.RetryBudget,
		}
	}
	return in
}

// proxyProtocol returns the version of the header that a host's servers, or a
// subset's, are sent; 0 is none. Ports have no say in it.
// Source: Istio, MergeTrafficPolicy.
func proxyProtocol(rule *model.DestinationRule, subset *networking.Subset) uint8 {
	if rule == nil {
		return 0
	}
	in := cmp.Or(subset.GetTrafficPolicy().GetProxyProtocol(), rule.Policy.GetProxyProtocol())
	if in == nil {
		return 0
	}
	return uint8(in.Version) + 1
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
	connect, idle, age                             time.Duration
	connections, pending, requests, reuse, retries uint32
	keepalive                                      *plan.Keepalive
}

func poolOf(policy *networking.TrafficPolicy, connect time.Duration) pool {
	tcp, http := policy.GetConnectionPool().GetTcp(), policy.GetConnectionPool().GetHttp()
	p := pool{
		connect:     connect,
		age:         max(tcp.GetMaxConnectionDuration().AsDuration(), 0),
		connections: positive(tcp.GetMaxConnections()),
		pending:     positive(http.GetHttp1MaxPendingRequests()),
		requests:    positive(http.GetHttp2MaxRequests()),
		reuse:       positive(http.GetMaxRequestsPerConnection()),
		retries:     positive(http.GetMaxRetries()),
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
	if k := tcp.GetTcpKeepalive(); k != nil {
		p.keepalive = &plan.Keepalive{Time: k.Time.AsDuration(), Interval: k.Interval.AsDuration(), Probes: k.Probes}
	}
	return p
}

func positive(n int32) uint32 { return uint32(max(n, 0)) }

func (p pool) apply(c *plan.Cluster) {
	if p.connect > 0 {
		c.ConnectTimeout = p.connect
	}
	c.MaxConnections, c.MaxPending, c.MaxRequests, c.MaxPerConn = p.connections, p.pending, p.requests, p.reuse
	c.MaxRetries = p.retries
	c.IdleTimeout, c.MaxConnAge, c.Keepalive = p.idle, p.age, p.keepalive
}

func (p pool) print(to *model.Printer) {
	for _, t := range [...]time.Duration{p.connect, p.idle, p.age} {
		to.Number(uint64(t))
	}
	for _, n := range [...]uint32{p.connections, p.pending, p.requests, p.reuse, p.retries} {
		to.Number(uint64(n))
	}
	to.Flag(p.keepalive != nil)
	if k := p.keepalive; k != nil {
		to.Number(uint64(k.Time))
		to.Number(uint64(k.Interval))
		to.Number(uint64(k.Probes))
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func sortedPorts[V any](m map[uint16]V) []uint16 { return slices.Sorted(maps.Keys(m)) }
