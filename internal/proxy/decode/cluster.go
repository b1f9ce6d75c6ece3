package decode

import (
	"math"
	"net/netip"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	httpoptionsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// Cluster reads an envoy.config.cluster.v3.Cluster.
func Cluster(a *anypb.Any) (*plan.Cluster, error) {
	m := &clusterv3.Cluster{}
	if err := resource(a, m); err != nil {
		return nil, err
	}
	r := &reader{}
	c := r.cluster(m)
	if err := r.done("cluster", m.GetName()); err != nil {
		return nil, err
	}
	return c, nil
}

func (r *reader) cluster(m *clusterv3.Cluster) *plan.Cluster {
	r.only("", m, "name", "type", "eds_cluster_config", "load_assignment", "lb_policy", "connect_timeout", "circuit_breakers",
		"typed_extension_protocol_options", "transport_socket", "transport_socket_matches", "upstream_bind_config", "metadata",
		// Names and counters.
		"alt_stat_name", "track_cluster_stats", "track_timeout_budgets",
		// Fine adjustment of choices that are made the usual way.
		"common_lb_config", "least_request_lb_config", "round_robin_lb_config", "upstream_connection_options",
		"per_connection_buffer_limit_bytes", "cleanup_interval",
		// Names are resolved again when their answer ends, for both families.
		"dns_refresh_rate", "dns_jitter", "dns_failure_refresh_rate", "respect_dns_ttl", "dns_lookup_family", "typed_dns_resolver_config",
		// Endpoints are only chosen by metadata for TLS.
		"lb_subset_config")
	c := &plan.Cluster{
		Name:           m.GetName(),
		ConnectTimeout: r.positive("connect_timeout", m.GetConnectTimeout()),
		Origin:         istioString(m.GetMetadata(), "config"),
		Service:        serviceRef(m.GetMetadata()),
	}
	if c.Name == "" {
		r.fail("name", "is empty")
	}
	r.discovery(m, c)
	r.balancing(m, c)
	r.circuitBreakers(m, c)
	r.httpOptions(m, c)
	c.TLS = r.clusterTLS(m)
	if b := m.GetUpstreamBindConfig(); b != nil {
		r.only("upstream_bind_config", b, "source_address")
		ip, err := netip.ParseAddr(b.GetSourceAddress().GetAddress())
		if err != nil || b.GetSourceAddress().GetPortValue() != 0 {
			r.fail("upstream_bind_config.source_address", "is not an IP address with port 0")
		}
		c.BindAddress = ip
	}
	return c
}

// serviceRef reads the first service that Istio names for a cluster: its metrics
// take the same.
func serviceRef(m *corev3.Metadata) plan.ServiceRef {
	list := m.GetFilterMetadata()["istio"].GetFields()["services"].GetListValue().GetValues()
	if len(list) == 0 {
		return plan.ServiceRef{}
	}
	f := list[0].GetStructValue().GetFields()
	return plan.ServiceRef{
		Host: f["host"].GetStringValue(), Name: f["name"].GetStringValue(), Namespace: f["namespace"].GetStringValue(),
	}
}

func (r *reader) discovery(m *clusterv3.Cluster, c *plan.Cluster) {
	if m.GetClusterType() != nil {
		r.fail("cluster_type", "%q is not supported", m.GetClusterType().GetName())
		return
	}
	switch m.GetType() {
	case clusterv3.Cluster_EDS:
		c.Discovery = plan.EDS
		if s := m.GetEdsClusterConfig().GetEdsConfig(); s.GetAds() == nil && s.GetSelf() == nil {
			r.fail("eds_cluster_config.eds_config", "is not ADS")
		}
		if n := m.GetEdsClusterConfig().GetServiceName(); n != c.Name {
			c.ServiceName = n
		}
	case clusterv3.Cluster_ORIGINAL_DST:
		c.Discovery = plan.OriginalDst
	case clusterv3.Cluster_STATIC:
		c.Discovery = plan.Static
		c.Static = r.staticHosts(m.GetLoadAssignment(), true)
	case clusterv3.Cluster_STRICT_DNS:
		c.Discovery = plan.StrictDNS
		c.Static = r.staticHosts(m.GetLoadAssignment(), false)
	case clusterv3.Cluster_LOGICAL_DNS:
		c.Discovery = plan.LogicalDNS
		c.Static = r.staticHosts(m.GetLoadAssignment(), false)
		if len(c.Static) != 1 {
			r.fail("load_assignment", "has %d hosts, LOGICAL_DNS takes one", len(c.Static))
		}
	default:
		r.fail("type", "%v is not supported", m.GetType())
	}
}

// staticHosts reads the hosts that a cluster carries itself. All are equal: what
// sets some apart in EDS is refused here.
func (r *reader) staticHosts(m *endpointv3.ClusterLoadAssignment, onlyIP bool) []plan.StaticEndpoint {
	var out []plan.StaticEndpoint
	for i, group := range m.GetEndpoints() {
		at := index("load_assignment", "endpoints", i)
		r.only(at, group, "lb_endpoints", "locality", "load_balancing_weight")
		for j, e := range group.GetLbEndpoints() {
			at := index(at, "lb_endpoints", j)
			r.only(at, e, "endpoint", "load_balancing_weight", "health_status", "metadata")
			s := e.GetEndpoint().GetAddress().GetSocketAddress()
			if s.GetAddress() == "" {
				r.fail(at, "has no address")
			}
			if _, err := netip.ParseAddr(s.GetAddress()); err != nil && onlyIP {
				r.fail(at, "%q is not an IP address", s.GetAddress())
			}
			out = append(out, plan.StaticEndpoint{Host: s.GetAddress(), Port: r.port(at, s.GetPortValue())})
		}
	}
	return out
}

func (r *reader) balancing(m *clusterv3.Cluster, c *plan.Cluster) {
	switch m.GetLbPolicy() {
	case clusterv3.Cluster_LEAST_REQUEST:
		c.Balancing = plan.LeastRequest
	case clusterv3.Cluster_ROUND_ROBIN:
		c.Balancing = plan.RoundRobin
	case clusterv3.Cluster_RANDOM:
		c.Balancing = plan.Random
	case clusterv3.Cluster_CLUSTER_PROVIDED:
		c.Balancing = plan.ClusterProvided
	default:
		r.fail("lb_policy", "%v is not supported", m.GetLbPolicy())
	}
	if (c.Discovery == plan.OriginalDst) != (c.Balancing == plan.ClusterProvided) {
		r.fail("lb_policy", "%v does not go with %v", m.GetLbPolicy(), m.GetType())
	}
}

// defaultLimit is Envoy's for a limit that is not named.
const defaultLimit = 1024

func (r *reader) circuitBreakers(m *clusterv3.Cluster, c *plan.Cluster) {
	c.MaxConnections, c.MaxPending, c.MaxRequests = defaultLimit, defaultLimit, defaultLimit
	r.only("circuit_breakers", m.GetCircuitBreakers(), "thresholds")
	for i, t := range m.GetCircuitBreakers().GetThresholds() {
		at := index("circuit_breakers", "thresholds", i)
		if t.GetPriority() != corev3.RoutingPriority_DEFAULT {
			continue // no route asks for another
		}
		r.only(at, t, "max_connections", "max_pending_requests", "max_requests", "max_retries", "track_remaining")
		limit := func(field string, to *uint32, v *wrapperspb.UInt32Value) {
			switch {
			case v == nil:
			case v.GetValue() == 0:
				r.fail(join(at, field), "0 would let nothing through")
			case v.GetValue() == math.MaxUint32:
				*to = 0 // no limit
			default:
				*to = v.GetValue()
			}
		}
		limit("max_connections", &c.MaxConnections, t.GetMaxConnections())
		limit("max_pending_requests", &c.MaxPending, t.GetMaxPendingRequests())
		limit("max_requests", &c.MaxRequests, t.GetMaxRequests())
	}
}

const httpOptionsName = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

func (r *reader) httpOptions(m *clusterv3.Cluster, c *plan.Cluster) {
	for name, typed := range m.GetTypedExtensionProtocolOptions() {
		at := "typed_extension_protocol_options." + name
		if name != httpOptionsName {
			r.fail(at, "is not supported")
			continue
		}
		o := &httpoptionsv3.HttpProtocolOptions{}
		if !r.unpack(at, typed, o) {
			continue
		}
		r.only(at, o, "common_http_protocol_options", "explicit_http_config", "use_downstream_protocol_config")
		if e := o.GetExplicitHttpConfig(); e != nil && e.GetHttpProtocolOptions() == nil {
			r.fail(join(at, "explicit_http_config"), "asks for another protocol than HTTP/1.1")
		}
		common := o.GetCommonHttpProtocolOptions()
		r.only(join(at, "common_http_protocol_options"), common, "max_requests_per_connection", "idle_timeout",
			"max_connection_duration") // connections end earlier than that
		c.MaxPerConn = common.GetMaxRequestsPerConnection().GetValue()
		c.IdleTimeout = r.positive(join(at, "common_http_protocol_options.idle_timeout"), common.GetIdleTimeout())
	}
}

// LoadAssignment reads an envoy.config.endpoint.v3.ClusterLoadAssignment.
func LoadAssignment(a *anypb.Any) (*plan.LoadAssignment, error) {
	m := &endpointv3.ClusterLoadAssignment{}
	if err := resource(a, m); err != nil {
		return nil, err
	}
	r := &reader{}
	l := r.loadAssignment(m)
	if err := r.done("endpoints", m.GetClusterName()); err != nil {
		return nil, err
	}
	return l, nil
}

func (r *reader) loadAssignment(m *endpointv3.ClusterLoadAssignment) *plan.LoadAssignment {
	r.only("", m, "cluster_name", "endpoints",
		"policy") // how far priorities may be overfilled; drops are refused below
	if len(m.GetPolicy().GetDropOverloads()) > 0 {
		r.fail("policy.drop_overloads", "is not supported")
	}
	l := &plan.LoadAssignment{Cluster: m.GetClusterName()}
	if l.Cluster == "" {
		r.fail("cluster_name", "is empty")
	}
	for i, g := range m.GetEndpoints() {
		at := index("", "endpoints", i)
		r.only(at, g, "locality", "lb_endpoints", "load_balancing_weight", "priority", "proximity", "metadata")
		group := plan.LocalityEndpoints{
			Locality: plan.Locality{
				Region: g.GetLocality().GetRegion(), Zone: g.GetLocality().GetZone(), SubZone: g.GetLocality().GetSubZone(),
			},
			Priority: g.GetPriority(),
			Weight:   g.GetLoadBalancingWeight().GetValue(),
		}
		if group.Priority > 128 { // Envoy's limit
			r.fail(join(at, "priority"), "%d is over 128", group.Priority)
		}
		for j, e := range g.GetLbEndpoints() {
			group.Endpoints = append(group.Endpoints, r.endpoint(index(at, "lb_endpoints", j), e))
		}
		l.Localities = append(l.Localities, group)
	}
	return l
}

func (r *reader) endpoint(path string, m *endpointv3.LbEndpoint) plan.Endpoint {
	r.only(path, m, "endpoint", "health_status", "metadata", "load_balancing_weight")
	r.only(join(path, "endpoint"), m.GetEndpoint(), "address", "hostname", // a name for active health checks
		"health_check_config")
	out := plan.Endpoint{
		Address:  r.socketAddress(join(path, "endpoint.address"), m.GetEndpoint().GetAddress()),
		Weight:   m.GetLoadBalancingWeight().GetValue(),
		MTLS:     m.GetMetadata().GetFilterMetadata()["envoy.transport_socket_match"].GetFields()["tlsMode"].GetStringValue() == "istio",
		Workload: workload(istioString(m.GetMetadata(), "workload")),
	}
	switch m.GetHealthStatus() {
	case corev3.HealthStatus_UNKNOWN, corev3.HealthStatus_HEALTHY, corev3.HealthStatus_DEGRADED:
		out.Health = plan.Healthy
	case corev3.HealthStatus_DRAINING:
		out.Health = plan.Draining
	default:
		out.Health = plan.Unhealthy
	}
	return out
}
