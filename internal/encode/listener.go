package encode

import (
	"net/netip"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	httpinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	originaldstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	proxyprotocolv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/heddle-mesh/heddle/internal/plan"
)

func listener(l *plan.Listener, forGRPC bool) *listenerv3.Listener {
	out := &listenerv3.Listener{Name: l.Name}
	if l.API != nil {
		out.ApiListener = &listenerv3.ApiListener{ApiListener: pack(httpManager(l.API, l.Direction, forGRPC))}
		return out
	}
	out.Address = address(l.Address)
	out.TrafficDirection = directions[l.Direction]
	if !l.Bound {
		out.BindToPort = wrapperspb.Bool(false)
	}
	if l.ProxyProtocol {
		// First, for what it takes away no other may see.
		out.ListenerFilters = append(out.ListenerFilters, listenerFilter("envoy.filters.listener.proxy_protocol", &proxyprotocolv3.ProxyProtocol{}, nil))
	}
	if l.UseOriginalDst {
		out.UseOriginalDst = wrapperspb.Bool(true)
		out.ListenerFilters = append(out.ListenerFilters, listenerFilter("envoy.filters.listener.original_dst", &originaldstv3.OriginalDst{}, nil))
	}
	if l.Inspect.TLS {
		out.ListenerFilters = append(out.ListenerFilters, listenerFilter("envoy.filters.listener.tls_inspector", &tlsinspectorv3.TlsInspector{}, l.Inspect.SkipPorts))
	}
	if l.Inspect.HTTP {
		skip := append(append([]uint16(nil), l.Inspect.SkipPorts...), l.Inspect.SkipHTTPPorts...)
		out.ListenerFilters = append(out.ListenerFilters, listenerFilter("envoy.filters.listener.http_inspector", &httpinspectorv3.HttpInspector{}, skip))
	}
	if l.Inspect.TLS || l.Inspect.HTTP {
		// Envoy reads an absent timeout as 15 s, and 0 as none.
		out.ListenerFiltersTimeout = durationpb.New(l.Inspect.Timeout)
		out.ContinueOnListenerFiltersTimeout = l.Inspect.Timeout > 0
	}
	for _, c := range l.Chains {
		out.FilterChains = append(out.FilterChains, filterChain(c, l.Direction, forGRPC))
	}
	if l.Default != nil {
		out.DefaultFilterChain = filterChain(l.Default, l.Direction, forGRPC)
	}
	return out
}

var directions = map[plan.Direction]corev3.TrafficDirection{
	plan.Outbound: corev3.TrafficDirection_OUTBOUND,
	plan.Inbound:  corev3.TrafficDirection_INBOUND,
	// Istio leaves the direction of a gateway's listeners open, too.
	plan.Edge: corev3.TrafficDirection_UNSPECIFIED,
}

func listenerFilter(name string, config proto.Message, skip []uint16) *listenerv3.ListenerFilter {
	f := &listenerv3.ListenerFilter{
		Name:       name,
		ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: pack(config)},
	}
	var rules []*listenerv3.ListenerFilterChainMatchPredicate
	for _, port := range skip {
		rules = append(rules, &listenerv3.ListenerFilterChainMatchPredicate{
			Rule: &listenerv3.ListenerFilterChainMatchPredicate_DestinationPortRange{
				DestinationPortRange: &typev3.Int32Range{Start: int32(port), End: int32(port) + 1}, // End is exclusive
			},
		})
	}
	switch len(rules) {
	case 0:
	case 1:
		f.FilterDisabled = rules[0]
	default:
		f.FilterDisabled = &listenerv3.ListenerFilterChainMatchPredicate{
			Rule: &listenerv3.ListenerFilterChainMatchPredicate_OrMatch{
				OrMatch: &listenerv3.ListenerFilterChainMatchPredicate_MatchSet{Rules: rules},
			},
		}
	}
	return f
}

func filterChain(c *plan.FilterChain, direction plan.Direction, forGRPC bool) *listenerv3.FilterChain {
	out := &listenerv3.FilterChain{Name: c.Name, FilterChainMatch: chainMatch(c.Match)}
	if c.TLS != nil {
		out.TransportSocket = downstreamTLS(c.TLS, forGRPC)
	}
	switch {
	case c.HTTP != nil:
		out.Filters = append(out.Filters, networkFilter("envoy.filters.network.http_connection_manager", httpManager(c.HTTP, direction, forGRPC)))
	case c.TCP != nil:
		for _, r := range c.TCP.RBAC {
			out.Filters = append(out.Filters, networkFilter("envoy.filters.network.rbac", networkRBAC(r)))
		}
		if c.TCP.PeerExchange {
			out.Filters = append(out.Filters, networkFilter("istio.metadata_exchange",
				typedStruct("type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange", fields{
					"protocol": "istio-peer-exchange",
				})))
		}
		if c.TCP.Metrics {
			out.Filters = append(out.Filters, networkFilter("istio.stats", typedStruct("type.googleapis.com/stats.PluginConfig", fields{})))
		}
		out.Filters = append(out.Filters, networkFilter("envoy.filters.network.tcp_proxy", tcpProxy(c.TCP)))
	}
	return out
}

func networkFilter(name string, config proto.Message) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(config)}}
}

// chainMatch returns nil for a match without conditions, as Envoy's own
// configurations do.
func chainMatch(m plan.ChainMatch) *listenerv3.FilterChainMatch {
	out := &listenerv3.FilterChainMatch{
		ServerNames:          m.ServerNames,
		TransportProtocol:    transports[m.Transport],
		ApplicationProtocols: m.ALPN,
	}
	if m.DestinationPort != 0 {
		out.DestinationPort = wrapperspb.UInt32(uint32(m.DestinationPort))
	}
	for _, p := range m.Prefixes {
		out.PrefixRanges = append(out.PrefixRanges, &corev3.CidrRange{
			AddressPrefix: p.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(p.Bits())),
		})
	}
	if proto.Size(out) == 0 {
		return nil
	}
	return out
}

var transports = map[plan.Transport]string{plan.RawBuffer: "raw_buffer", plan.TLSTransport: "tls"}

func tcpProxy(c *plan.TCPChain) *tcpproxyv3.TcpProxy {
	out := &tcpproxyv3.TcpProxy{StatPrefix: c.StatPrefix, AccessLog: accessLog(c.AccessLog)}
	if c.IdleTimeout > 0 {
		out.IdleTimeout = durationpb.New(c.IdleTimeout)
	}
	if len(c.Clusters) == 1 && c.Clusters[0].Weight == 0 {
		out.ClusterSpecifier = &tcpproxyv3.TcpProxy_Cluster{Cluster: c.Clusters[0].Cluster}
		return out
	}
	split := &tcpproxyv3.TcpProxy_WeightedCluster{}
	for _, w := range c.Clusters {
		if w.Weight == 0 {
			continue // Envoy refuses a weight of 0 here, and it means the same as no entry
		}
		split.Clusters = append(split.Clusters, &tcpproxyv3.TcpProxy_WeightedCluster_ClusterWeight{Name: w.Cluster, Weight: w.Weight})
	}
	out.ClusterSpecifier = &tcpproxyv3.TcpProxy_WeightedClusters{WeightedClusters: split}
	return out
}

// httpManager encodes an HTTP chain. The filters are Istio's, in its order; the
// proxy of this project acts on them by their presence.
func httpManager(c *plan.HTTPChain, direction plan.Direction, forGRPC bool) *hcmv3.HttpConnectionManager {
	out := &hcmv3.HttpConnectionManager{StatPrefix: c.StatPrefix}
	if c.RouteName != "" {
		out.RouteSpecifier = &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{RouteConfigName: c.RouteName, ConfigSource: overADS()}}
	} else if c.Inline != nil {
		out.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: routeConfig(c.Inline, forGRPC)}
	}
	out.HttpFilters = httpFilters(c, direction, forGRPC)
	out.AccessLog = accessLog(c.AccessLog)
	if forGRPC {
		return out // gRPC reads nothing further
	}
	out.NormalizePath = wrapperspb.Bool(true)
	if c.UseRemoteAddress {
		out.UseRemoteAddress = wrapperspb.Bool(true)
	}
	out.XffNumTrustedHops = c.TrustedHops
	out.ForwardClientCertDetails = hcmv3.HttpConnectionManager_ForwardClientCertDetails(c.ForwardClientCert) // same order
	switch c.ForwardClientCert {
	case plan.AppendForwardClientCert, plan.SanitizeSetClientCert:
		out.SetCurrentClientCertDetails = &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{
			Subject: wrapperspb.Bool(true), Uri: true, Dns: true,
		}
	}
	return out
}

func address(a netip.AddrPort) *corev3.Address {
	return socketAddress(a.Addr().String(), a.Port())
}

func socketAddress(host string, port uint16) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}

// overADS says that a reference is resolved on the stream it came on, waiting as
// long as it takes.
func overADS() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		InitialFetchTimeout:   durationpb.New(0 * time.Second),
		ResourceApiVersion:    corev3.ApiVersion_V3,
	}
}
