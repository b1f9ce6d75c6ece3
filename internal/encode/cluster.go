package encode

import (
	"math"
	"strconv"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	matchv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	upstreamproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/proxy_protocol/v3"
	httpoptionsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/heddle-mesh/heddle/internal/plan"
)

func cluster(c *plan.Cluster, forGRPC bool) *clusterv3.Cluster {
	out := &clusterv3.Cluster{
		Name:                 c.Name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: discoveries[c.Discovery]},
		LbPolicy:             balancings[c.Balancing],
		CircuitBreakers:      circuitBreakers(c),
		Metadata:             clusterMetadata(c),
	}
	switch c.Discovery {
	case plan.EDS:
		out.EdsClusterConfig = &clusterv3.Cluster_EdsClusterConfig{EdsConfig: overADS(), ServiceName: c.EDSName()}
	case plan.Static, plan.StrictDNS, plan.LogicalDNS:
		out.LoadAssignment = staticAssignment(c.Name, c.Static)
	}
	balanced(out, c)
	if c.Outlier != nil {
		out.OutlierDetection = outlier(c.Outlier)
	}
	if k := c.Keepalive; k != nil {
		out.UpstreamConnectionOptions = &clusterv3.UpstreamConnectionOptions{TcpKeepalive: keepalive(k)}
	}
	if c.ConnectTimeout > 0 {
		out.ConnectTimeout = durationpb.New(c.ConnectTimeout)
	}
	if c.MaxPerConn > 0 || c.IdleTimeout > 0 || c.MaxConnAge > 0 || c.Protocol != plan.HTTP1 || c.Outlier != nil && len(c.Outlier.Codes) > 0 {
		out.TypedExtensionProtocolOptions = httpOptions(c)
	}
	if c.BindAddress.IsValid() {
		out.UpstreamBindConfig = &corev3.BindConfig{SourceAddress: socketAddress(c.BindAddress.String(), 0).GetSocketAddress()}
	}
	switch {
	case c.TLS == nil:
	case c.TLS.Auto && !forGRPC:
		// The first match wins; an endpoint without sidecar meets the second.
		out.TransportSocketMatches = []*clusterv3.Cluster_TransportSocketMatch{{
			Name:            "tlsMode-istio",
			Match:           structOf(fields{"tlsMode": "istio"}),
			TransportSocket: upstreamTLS(c.TLS, forGRPC),
		}, {
			Name:            "tlsMode-disabled",
			Match:           &structpb.Struct{},
			TransportSocket: rawSocket(),
		}}
	case c.TLS.Auto:
		// gRPC cannot choose by endpoint; Istio gives it plain text then.
	default:
		out.TransportSocket = upstreamTLS(c.TLS, forGRPC)
	}
	if c.ProxyProtocol > 0 && !forGRPC {
		for _, m := range out.TransportSocketMatches {
			m.TransportSocket = behindHeader(c.ProxyProtocol, m.TransportSocket)
		}
		if out.TransportSocketMatches == nil {
			out.TransportSocket = behindHeader(c.ProxyProtocol, out.TransportSocket)
		}
	}
	return out
}

// behindHeader sends the PROXY protocol's header before what a socket sends.
func behindHeader(version uint8, inner *corev3.TransportSocket) *corev3.TransportSocket {
	if inner == nil {
		inner = rawSocket()
	}
	v := corev3.ProxyProtocolConfig_V1
	if version == 2 {
		v = corev3.ProxyProtocolConfig_V2
	}
	return &corev3.TransportSocket{
		Name: "envoy.transport_sockets.upstream_proxy_protocol",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(&upstreamproxyv3.ProxyProtocolUpstreamTransport{
			Config:          &corev3.ProxyProtocolConfig{Version: v},
			TransportSocket: inner,
		})},
	}
}

var discoveries = map[plan.Discovery]clusterv3.Cluster_DiscoveryType{
	plan.EDS:         clusterv3.Cluster_EDS,
	plan.OriginalDst: clusterv3.Cluster_ORIGINAL_DST,
	plan.Static:      clusterv3.Cluster_STATIC,
	plan.StrictDNS:   clusterv3.Cluster_STRICT_DNS,
	plan.LogicalDNS:  clusterv3.Cluster_LOGICAL_DNS,
}

var balancings = map[plan.Balancing]clusterv3.Cluster_LbPolicy{
	plan.LeastRequest:    clusterv3.Cluster_LEAST_REQUEST,
	plan.RoundRobin:      clusterv3.Cluster_ROUND_ROBIN,
	plan.Random:          clusterv3.Cluster_RANDOM,
	plan.ClusterProvided: clusterv3.Cluster_CLUSTER_PROVIDED,
	plan.RingHash:        clusterv3.Cluster_RING_HASH,
	plan.Maglev:          clusterv3.Cluster_MAGLEV,
	// To others than Heddle's proxy, the nearest to it; see balancerKey.
	plan.PeakEWMA: clusterv3.Cluster_LEAST_REQUEST,
}

// balancerKey is where a cluster's metadata names a way of balancing that Envoy
// does not have.
const balancerKey = "dev.heddle"

// balanced adds what the way of balancing needs.
func balanced(out *clusterv3.Cluster, c *plan.Cluster) {
	size := func(n uint64) *wrapperspb.UInt64Value {
		if n == 0 {
			return nil
		}
		return wrapperspb.UInt64(n)
	}
	switch c.Balancing {
	case plan.RingHash:
		out.LbConfig = &clusterv3.Cluster_RingHashLbConfig_{RingHashLbConfig: &clusterv3.Cluster_RingHashLbConfig{
			MinimumRingSize: size(c.MinRing),
		}}
	case plan.Maglev:
		out.LbConfig = &clusterv3.Cluster_MaglevLbConfig_{MaglevLbConfig: &clusterv3.Cluster_MaglevLbConfig{
			TableSize: size(c.TableSize),
		}}
	case plan.LeastRequest:
		if c.Warmup != nil {
			out.LbConfig = &clusterv3.Cluster_LeastRequestLbConfig_{LeastRequestLbConfig: &clusterv3.Cluster_LeastRequestLbConfig{
				SlowStartConfig: slowStart(c.Warmup),
			}}
		}
	case plan.RoundRobin:
		if c.Warmup != nil {
			out.LbConfig = &clusterv3.Cluster_RoundRobinLbConfig_{RoundRobinLbConfig: &clusterv3.Cluster_RoundRobinLbConfig{
				SlowStartConfig: slowStart(c.Warmup),
			}}
		}
	case plan.PeakEWMA:
		if out.Metadata == nil {
			out.Metadata = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{}}
		}
		out.Metadata.FilterMetadata[balancerKey] = structOf(fields{"balancing": "peak-ewma"})
	case plan.ClusterProvided:
		return // nothing is chosen
	}
	common := &clusterv3.Cluster_CommonLbConfig{
		// Absent, it would be 50. Source: Istio leaves panic to operators.
		HealthyPanicThreshold: &typev3.Percent{Value: float64(c.PanicPercent)},
	}
	if c.LocalityWeighted {
		common.LocalityConfigSpecifier = &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig_{
			LocalityWeightedLbConfig: &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig{},
		}
	}
	out.CommonLbConfig = common
}

func slowStart(w *plan.Warmup) *clusterv3.Cluster_SlowStartConfig {
	return &clusterv3.Cluster_SlowStartConfig{
		SlowStartWindow:  durationpb.New(w.Duration),
		MinWeightPercent: &typev3.Percent{Value: w.MinPercent},
		Aggression:       &corev3.RuntimeDouble{DefaultValue: w.Aggression, RuntimeKey: "dr.warmup.aggression"},
	}
}

// outlier states every field, because what Envoy takes for an absent one ejects.
func outlier(o *plan.Outlier) *clusterv3.OutlierDetection {
	count := func(n uint32) *wrapperspb.UInt32Value { return wrapperspb.UInt32(n) }
	enforce := func(n uint32) *wrapperspb.UInt32Value {
		if n == 0 {
			return wrapperspb.UInt32(0)
		}
		return wrapperspb.UInt32(100)
	}
	out := &clusterv3.OutlierDetection{
		Consecutive_5Xx:                    count(o.Consecutive5xx),
		EnforcingConsecutive_5Xx:           enforce(o.Consecutive5xx),
		ConsecutiveGatewayFailure:          count(o.ConsecutiveGateway),
		EnforcingConsecutiveGatewayFailure: enforce(o.ConsecutiveGateway),
		EnforcingSuccessRate:               wrapperspb.UInt32(0),
		Interval:                           durationpb.New(o.Interval),
		BaseEjectionTime:                   durationpb.New(o.BaseEjection),
		MaxEjectionPercent:                 count(o.MaxPercent),
	}
	if o.AtLeastOne {
		out.AlwaysEjectOneHost = wrapperspb.Bool(true)
	}
	if o.SplitLocal {
		out.SplitExternalLocalOriginErrors = true
		out.ConsecutiveLocalOriginFailure = count(o.ConsecutiveLocal)
		out.EnforcingConsecutiveLocalOriginFailure = enforce(o.ConsecutiveLocal)
		out.EnforcingLocalOriginSuccessRate = wrapperspb.UInt32(0)
	}
	return out
}

// errorCodes says which answers count as failures, where that is not 5xx.
func errorCodes(o *plan.Outlier) *httpoptionsv3.HttpProtocolOptions_OutlierDetection {
	if o == nil || len(o.Codes) == 0 {
		return nil
	}
	var rules []*matchv3.MatchPredicate
	for _, code := range o.Codes {
		rules = append(rules, &matchv3.MatchPredicate{Rule: &matchv3.MatchPredicate_HttpResponseHeadersMatch{
			HttpResponseHeadersMatch: &matchv3.HttpHeadersMatch{Headers: []*routev3.HeaderMatcher{{
				Name:                 ":status",
				HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: stringMatch(plan.StringExact, strconv.Itoa(int(code)))},
			}}},
		}})
	}
	if len(rules) > 1 {
		rules = []*matchv3.MatchPredicate{{Rule: &matchv3.MatchPredicate_OrMatch{OrMatch: &matchv3.MatchPredicate_MatchSet{Rules: rules}}}}
	}
	return &httpoptionsv3.HttpProtocolOptions_OutlierDetection{ErrorMatcher: rules[0]}
}

func keepalive(k *plan.Keepalive) *corev3.TcpKeepalive {
	out := &corev3.TcpKeepalive{}
	if k.Probes > 0 {
		out.KeepaliveProbes = wrapperspb.UInt32(k.Probes)
	}
	if k.Time > 0 {
		out.KeepaliveTime = wrapperspb.UInt32(uint32(k.Time.Seconds()))
	}
	if k.Interval > 0 {
		out.KeepaliveInterval = wrapperspb.UInt32(uint32(k.Interval.Seconds()))
	}
	return out
}

// circuitBreakers states every limit, because Envoy's default for an absent one
// is 1024 and Istio's is none.
func circuitBreakers(c *plan.Cluster) *clusterv3.CircuitBreakers {
	limit := func(n uint32) *wrapperspb.UInt32Value {
		if n == 0 {
			n = math.MaxUint32
		}
		return wrapperspb.UInt32(n)
	}
	t := &clusterv3.CircuitBreakers_Thresholds{
		MaxConnections:     limit(c.MaxConnections),
		MaxPendingRequests: limit(c.MaxPending),
		MaxRequests:        limit(c.MaxRequests),
		MaxRetries:         limit(c.MaxRetries),
		TrackRemaining:     true,
	}
	if b := c.RetryBudget; b != nil {
		t.RetryBudget = &clusterv3.CircuitBreakers_Thresholds_RetryBudget{
			BudgetPercent:       &typev3.Percent{Value: b.Percent},
			MinRetryConcurrency: wrapperspb.UInt32(b.MinRetries),
		}
	}
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{t}}
}

const httpOptionsName = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

func httpOptions(c *plan.Cluster) map[string]*anypb.Any {
	common := &corev3.HttpProtocolOptions{}
	if c.MaxPerConn > 0 {
		common.MaxRequestsPerConnection = wrapperspb.UInt32(c.MaxPerConn)
	}
	if c.IdleTimeout > 0 {
		common.IdleTimeout = durationpb.New(c.IdleTimeout)
	}
	if c.MaxConnAge > 0 {
		common.MaxConnectionDuration = durationpb.New(c.MaxConnAge)
	}
	out := &httpoptionsv3.HttpProtocolOptions{CommonHttpProtocolOptions: common, OutlierDetection: errorCodes(c.Outlier)}
	explicit := func(config *httpoptionsv3.HttpProtocolOptions_ExplicitHttpConfig) {
		out.UpstreamProtocolOptions = &httpoptionsv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: config}
	}
	// Extended CONNECT, by which WebSocket goes over HTTP/2.
	http2 := &corev3.Http2ProtocolOptions{AllowConnect: true}
	switch c.Protocol {
	case plan.HTTP1:
		explicit(&httpoptionsv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpoptionsv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{},
		})
	case plan.HTTP2:
		explicit(&httpoptionsv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpoptionsv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: http2},
		})
	case plan.ClientProtocol:
		out.UpstreamProtocolOptions = &httpoptionsv3.HttpProtocolOptions_UseDownstreamProtocolConfig{
			UseDownstreamProtocolConfig: &httpoptionsv3.HttpProtocolOptions_UseDownstreamHttpConfig{
				HttpProtocolOptions: &corev3.Http1ProtocolOptions{}, Http2ProtocolOptions: http2,
			},
		}
	}
	return map[string]*anypb.Any{httpOptionsName: pack(out)}
}

// clusterMetadata is where Istio puts the rule behind a cluster and the services
// it stands for: its tools and its metrics read them there.
func clusterMetadata(c *plan.Cluster) *corev3.Metadata {
	f := fields{}
	if c.Origin != "" {
		f["config"] = c.Origin
	}
	if c.Service != (plan.ServiceRef{}) {
		f["services"] = []any{fields{"host": c.Service.Host, "name": c.Service.Name, "namespace": c.Service.Namespace}}
	}
	return istioMetadata(f)
}

// istioMetadata puts fields under Istio's key, and returns nil for none.
func istioMetadata(f fields) *corev3.Metadata {
	if len(f) == 0 {
		return nil
	}
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"istio": structOf(f)}}
}

func staticAssignment(name string, hosts []plan.StaticEndpoint) *endpointv3.ClusterLoadAssignment {
	out := &endpointv3.ClusterLoadAssignment{ClusterName: name}
	if len(hosts) == 0 {
		return out
	}
	group := &endpointv3.LocalityLbEndpoints{}
	for _, h := range hosts {
		group.LbEndpoints = append(group.LbEndpoints, &endpointv3.LbEndpoint{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: socketAddress(h.Host, h.Port)}},
		})
	}
	out.Endpoints = []*endpointv3.LocalityLbEndpoints{group}
	return out
}
