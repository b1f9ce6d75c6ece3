package encode

import (
	"math"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	httpoptionsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
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
	if c.ConnectTimeout > 0 {
		out.ConnectTimeout = durationpb.New(c.ConnectTimeout)
	}
	if c.MaxPerConn > 0 || c.IdleTimeout > 0 {
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
	return out
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
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
		MaxConnections:     limit(c.MaxConnections),
		MaxPendingRequests: limit(c.MaxPending),
		MaxRequests:        limit(c.MaxRequests),
		MaxRetries:         limit(0),
		TrackRemaining:     true,
	}}}
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
	return map[string]*anypb.Any{httpOptionsName: pack(&httpoptionsv3.HttpProtocolOptions{
		CommonHttpProtocolOptions: common,
		UpstreamProtocolOptions: &httpoptionsv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httpoptionsv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpoptionsv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{},
			},
		},
	})}
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
