package decode

import (
	"math"
	"net/netip"
	"strconv"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	matchv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
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
		"outlier_detection", "common_lb_config", "least_request_lb_config", "round_robin_lb_config", "ring_hash_lb_config",
		"maglev_lb_config", "upstream_connection_options",
		// Names and counters.
		"alt_stat_name", "track_cluster_stats", "track_timeout_budgets",
		// The proxy has its own.
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
	r.outlier(m.GetOutlierDetection(), c)
	r.keepalive(m.GetUpstreamConnectionOptions(), c)
	r.circuitBreakers(m, c)
	r.httpOptions(m, c)
	c.ProxyProtocol = r.behindHeader(m)
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
		if m.GetMetadata().GetFilterMetadata()[balancerKey].GetFields()["balancing"].GetStringValue() == "peak-ewma" {
			c.Balancing = plan.PeakEWMA
		}
		// How many hosts are compared, and by what, is the proxy's own affair.
		c.Warmup = r.warmup("least_request_lb_config.slow_start_config", m.GetLeastRequestLbConfig().GetSlowStartConfig())
	case clusterv3.Cluster_ROUND_ROBIN:
		c.Balancing = plan.RoundRobin
		c.Warmup = r.warmup("round_robin_lb_config.slow_start_config", m.GetRoundRobinLbConfig().GetSlowStartConfig())
	case clusterv3.Cluster_RING_HASH:
		c.Balancing = plan.RingHash
		if h := m.GetRingHashLbConfig(); h != nil {
			r.only("ring_hash_lb_config", h, "minimum_ring_size", "hash_function", "maximum_ring_size")
			c.MinRing = h.GetMinimumRingSize().GetValue()
			if f := h.GetHashFunction(); f != clusterv3.Cluster_RingHashLbConfig_XX_HASH {
				r.fail("ring_hash_lb_config.hash_function", "%v is not supported", f)
			}
			if c.MinRing > maxRing {
				r.fail("ring_hash_lb_config.minimum_ring_size", "%d is over %d", c.MinRing, maxRing)
			}
		}
	case clusterv3.Cluster_MAGLEV:
		c.Balancing = plan.Maglev
		c.TableSize = m.GetMaglevLbConfig().GetTableSize().GetValue()
		if c.TableSize > maxTable || c.TableSize > 0 && !prime(c.TableSize) {
			r.fail("maglev_lb_config.table_size", "%d is not a prime number up to %d", c.TableSize, maxTable)
		}
	case clusterv3.Cluster_RANDOM:
		c.Balancing = plan.Random
	case clusterv3.Cluster_CLUSTER_PROVIDED:
		c.Balancing = plan.ClusterProvided
	default:
		r.fail("lb_policy", "%v is not supported", m.GetLbPolicy())
	}
	r.commonBalancing(m.GetCommonLbConfig(), c)
	if (c.Discovery == plan.OriginalDst) != (c.Balancing == plan.ClusterProvided) {
		r.fail("lb_policy", "%v does not go with %v", m.GetLbPolicy(), m.GetType())
	}
}

// balancerKey is where Heddle's control plane names a way of balancing that Envoy
// does not have.
const balancerKey = "dev.heddle"

// Envoy's limits of the two tables.
const (
	maxRing  = 8 << 20
	maxTable = 5_000_011
)

func prime(n uint64) bool {
	for d := uint64(2); d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return n > 1
}

// defaultPanic is Envoy's part of healthy hosts below which all are used.
const defaultPanic = 50

func (r *reader) commonBalancing(m *clusterv3.Cluster_CommonLbConfig, c *plan.Cluster) {
	if c.Balancing == plan.ClusterProvided {
		return
	}
	const at = "common_lb_config"
	r.only(at, m, "healthy_panic_threshold", "locality_weighted_lb_config", "zone_aware_lb_config",
		// Connections follow their endpoints at once, and changes are not held up.
		"update_merge_window", "ignore_new_hosts_until_first_hc", "close_connections_on_host_set_change")
	c.PanicPercent = defaultPanic
	if t := m.GetHealthyPanicThreshold(); t != nil {
		c.PanicPercent = uint32(min(max(t.GetValue(), 0), 100))
	}
	c.LocalityWeighted = m.GetLocalityWeightedLbConfig() != nil
}

func (r *reader) warmup(path string, m *clusterv3.Cluster_SlowStartConfig) *plan.Warmup {
	if m.GetSlowStartWindow().AsDuration() <= 0 {
		return nil
	}
	r.only(path, m, "slow_start_window", "aggression", "min_weight_percent")
	out := &plan.Warmup{Duration: m.GetSlowStartWindow().AsDuration(), MinPercent: 10, Aggression: 1} // Envoy's defaults
	if p := m.GetMinWeightPercent(); p != nil {
		out.MinPercent = p.GetValue()
	}
	if a := m.GetAggression(); a != nil {
		out.Aggression = a.GetDefaultValue()
	}
	if out.Aggression <= 0 || out.MinPercent < 0 || out.MinPercent > 100 {
		r.fail(path, "an aggression of %g from %g %% on is none", out.Aggression, out.MinPercent)
	}
	return out
}

// outlier reads when hosts are ejected.
func (r *reader) outlier(m *clusterv3.OutlierDetection, c *plan.Cluster) {
	if m == nil {
		return
	}
	const at = "outlier_detection"
	r.only(at, m, "consecutive_5xx", "interval", "base_ejection_time", "max_ejection_percent", "enforcing_consecutive_5xx",
		"consecutive_gateway_failure", "enforcing_consecutive_gateway_failure", "split_external_local_origin_errors",
		"consecutive_local_origin_failure", "enforcing_consecutive_local_origin_failure",
		"enforcing_success_rate", "enforcing_local_origin_success_rate", // which have to be off
		"always_eject_one_host", "success_rate_minimum_hosts", "success_rate_request_volume", "success_rate_stdev_factor")
	count := func(v, enforced *wrapperspb.UInt32Value, usual, enforcing uint32) uint32 {
		if enforced != nil {
			enforcing = enforced.GetValue()
		}
		if enforcing == 0 {
			return 0
		}
		if v != nil {
			return v.GetValue()
		}
		return usual
	}
	o := &plan.Outlier{
		Consecutive5xx:     count(m.GetConsecutive_5Xx(), m.GetEnforcingConsecutive_5Xx(), 5, 100),
		ConsecutiveGateway: count(m.GetConsecutiveGatewayFailure(), m.GetEnforcingConsecutiveGatewayFailure(), 5, 0),
		SplitLocal:         m.GetSplitExternalLocalOriginErrors(),
		Interval:           10 * time.Second,
		BaseEjection:       30 * time.Second,
		MaxPercent:         10,
		AtLeastOne:         m.GetAlwaysEjectOneHost().GetValue(),
	}
	if o.SplitLocal {
		o.ConsecutiveLocal = count(m.GetConsecutiveLocalOriginFailure(), m.GetEnforcingConsecutiveLocalOriginFailure(), 5, 100)
	}
	if m.GetInterval() != nil {
		o.Interval = r.positive(at+".interval", m.GetInterval())
	}
	if m.GetBaseEjectionTime() != nil {
		o.BaseEjection = r.positive(at+".base_ejection_time", m.GetBaseEjectionTime())
	}
	if m.GetMaxEjectionPercent() != nil {
		o.MaxPercent = m.GetMaxEjectionPercent().GetValue()
	}
	for _, rate := range []*wrapperspb.UInt32Value{m.GetEnforcingSuccessRate(), m.GetEnforcingLocalOriginSuccessRate()} {
		if rate.GetValue() != 0 {
			r.fail(at, "ejects by success rate, which is not supported")
		}
	}
	c.Outlier = o
}

func (r *reader) keepalive(m *clusterv3.UpstreamConnectionOptions, c *plan.Cluster) {
	r.only("upstream_connection_options", m, "tcp_keepalive", "set_local_interface_name_on_upstream_connections")
	if k := m.GetTcpKeepalive(); k != nil {
		c.Keepalive = &plan.Keepalive{
			Time:     time.Duration(k.GetKeepaliveTime().GetValue()) * time.Second,
			Interval: time.Duration(k.GetKeepaliveInterval().GetValue()) * time.Second,
			Probes:   k.GetKeepaliveProbes().GetValue(),
		}
	}
}

// defaultLimit is Envoy's for a limit that is not named.
const (
	defaultLimit   = 1024
	defaultRetries = 3
)

func (r *reader) circuitBreakers(m *clusterv3.Cluster, c *plan.Cluster) {
	c.MaxConnections, c.MaxPending, c.MaxRequests, c.MaxRetries = defaultLimit, defaultLimit, defaultLimit, defaultRetries
	r.only("circuit_breakers", m.GetCircuitBreakers(), "thresholds")
	for i, t := range m.GetCircuitBreakers().GetThresholds() {
		at := index("circuit_breakers", "thresholds", i)
		if t.GetPriority() != corev3.RoutingPriority_DEFAULT {
			continue // no route asks for another
		}
		r.only(at, t, "max_connections", "max_pending_requests", "max_requests", "max_retries", "retry_budget", "track_remaining")
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
		limit("max_retries", &c.MaxRetries, t.GetMaxRetries())
		if b := t.GetRetryBudget(); b != nil {
			c.RetryBudget = &plan.RetryBudget{Percent: 20, MinRetries: 3} // Envoy's defaults
			if p := b.GetBudgetPercent(); p != nil {
				c.RetryBudget.Percent = p.GetValue()
			}
			if n := b.GetMinRetryConcurrency(); n != nil {
				c.RetryBudget.MinRetries = n.GetValue()
			}
		}
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
		r.only(at, o, "common_http_protocol_options", "explicit_http_config", "use_downstream_protocol_config", "outlier_detection")
		if d := o.GetOutlierDetection(); d != nil && c.Outlier != nil {
			c.Outlier.Codes = r.errorCodes(join(at, "outlier_detection.error_matcher"), d.GetErrorMatcher())
		}
		// The options of each version are limits and times of a connection, for which
		// the proxy has its own.
		switch e := o.GetExplicitHttpConfig(); {
		case o.GetUseDownstreamProtocolConfig() != nil:
			c.Protocol = plan.ClientProtocol
		case e == nil, e.GetHttpProtocolOptions() != nil:
			c.Protocol = plan.HTTP1
		case e.GetHttp2ProtocolOptions() != nil:
			c.Protocol = plan.HTTP2
		default:
			r.fail(join(at, "explicit_http_config"), "asks for another protocol than HTTP/1.1 and HTTP/2")
		}
		common := o.GetCommonHttpProtocolOptions()
		r.only(join(at, "common_http_protocol_options"), common, "max_requests_per_connection", "idle_timeout",
			"max_connection_duration")
		c.MaxConnAge = r.positive(join(at, "common_http_protocol_options.max_connection_duration"), common.GetMaxConnectionDuration())
		c.MaxPerConn = common.GetMaxRequestsPerConnection().GetValue()
		c.IdleTimeout = r.positive(join(at, "common_http_protocol_options.idle_timeout"), common.GetIdleTimeout())
	}
}

// errorCodes reads the statuses that count as failures.
func (r *reader) errorCodes(path string, m *matchv3.MatchPredicate) []uint32 {
	rules := []*matchv3.MatchPredicate{m}
	if set := m.GetOrMatch(); set != nil {
		rules = set.GetRules()
	}
	var out []uint32
	for i, rule := range rules {
		h := rule.GetHttpResponseHeadersMatch().GetHeaders()
		code, err := strconv.ParseUint(h0(h).GetStringMatch().GetExact(), 10, 32)
		if len(h) != 1 || h[0].GetName() != ":status" || h[0].GetInvertMatch() || err != nil {
			r.fail(index(path, "", i), "is not a status")
			continue
		}
		out = append(out, uint32(code))
	}
	return out
}

func h0(list []*routev3.HeaderMatcher) *routev3.HeaderMatcher {
	if len(list) == 0 {
		return nil
	}
	return list[0]
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
