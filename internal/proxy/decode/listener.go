package decode

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	fileaccesslogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	httpinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	originaldstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	proxyprotocolv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	netrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// Listener reads an envoy.config.listener.v3.Listener.
func Listener(a *anypb.Any) (*plan.Listener, error) {
	m := &listenerv3.Listener{}
	if err := resource(a, m); err != nil {
		return nil, err
	}
	r := &reader{}
	l := r.listener(m)
	if err := r.done("listener", m.GetName()); err != nil {
		return nil, err
	}
	return l, nil
}

func (r *reader) listener(m *listenerv3.Listener) *plan.Listener {
	r.only("", m, "name", "address", "traffic_direction", "bind_to_port", "use_original_dst", "listener_filters",
		"listener_filters_timeout", "continue_on_listener_filters_timeout", "filter_chains", "default_filter_chain", "api_listener",
		// They change counters, logs and the kernel's queue, no bytes.
		"stat_prefix", "access_log", "metadata", "tcp_backlog_size", "enable_reuse_port", "connection_balance_config",
		"max_connections_to_accept_per_socket_event", "per_connection_buffer_limit_bytes", "drain_type")
	l := &plan.Listener{Name: m.GetName()}
	if l.Name == "" {
		r.fail("name", "is empty")
	}
	if api := m.GetApiListener(); api != nil {
		hcm := &hcmv3.HttpConnectionManager{}
		if r.unpack("api_listener.api_listener", api.GetApiListener(), hcm) {
			l.API = r.httpChain("api_listener.api_listener", hcm)
		}
		if len(m.GetFilterChains()) > 0 || m.GetAddress() != nil {
			r.fail("api_listener", "stands beside an address or filter chains")
		}
		return l
	}
	l.Address = r.socketAddress("address", m.GetAddress())
	if len(m.GetFilterChains()) == 0 && m.GetDefaultFilterChain() == nil {
		r.fail("filter_chains", "are missing")
	}
	switch m.GetTrafficDirection() {
	case corev3.TrafficDirection_OUTBOUND:
		l.Direction = plan.Outbound
	case corev3.TrafficDirection_INBOUND:
		l.Direction = plan.Inbound
	default:
		l.Direction = plan.Edge
	}
	l.Bound = m.GetBindToPort() == nil || m.GetBindToPort().GetValue()
	l.UseOriginalDst = m.GetUseOriginalDst().GetValue()
	l.ProxyProtocol = r.proxyProtocol(m)
	l.Inspect = r.inspect(m)

	seen := map[string]string{}
	for i, c := range m.GetFilterChains() {
		path := index("", "filter_chains", i)
		chain := r.filterChain(path, c)
		l.Chains = append(l.Chains, chain)
		// Which of two equal matches wins would be chance; Envoy refuses them.
		key := fmt.Sprintf("%+v", chain.Match)
		if other, ok := seen[key]; ok {
			r.fail(join(path, "filter_chain_match"), "is the same as that of %s", other)
		}
		seen[key] = path
	}
	if c := m.GetDefaultFilterChain(); c != nil {
		l.Default = r.filterChain("default_filter_chain", c)
	}
	return l
}

func (r *reader) socketAddress(path string, a *corev3.Address) netip.AddrPort {
	s := a.GetSocketAddress()
	if s == nil {
		r.fail(path, "is not a socket address")
		return netip.AddrPort{}
	}
	r.only(join(path, "socket_address"), s, "address", "port_value", "protocol", "ipv4_compat")
	if s.GetProtocol() != corev3.SocketAddress_TCP {
		r.fail(join(path, "socket_address.protocol"), "%v is not supported", s.GetProtocol())
	}
	return r.address(join(path, "socket_address"), s.GetAddress(), s.GetPortValue())
}

// defaultInspectTimeout is Envoy's for a listener that names none.
const defaultInspectTimeout = 15 * time.Second

// inspect reads the listener filters. Whether a connection on which the timeout
// passes is continued or closed (continue_on_listener_filters_timeout) is
// ignored: it goes on with what is known, and closes where no chain matches.
func (r *reader) inspect(m *listenerv3.Listener) plan.Inspect {
	var in plan.Inspect
	var skipTLS, skipHTTP []uint16
	for i, f := range m.GetListenerFilters() {
		path := index("", "listener_filters", i)
		switch typed := f.GetTypedConfig(); typed.GetTypeUrl() {
		case proxyProtocolFilter: // see proxyProtocol
		case "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst":
			c := &originaldstv3.OriginalDst{}
			if r.unpack(path, typed, c) {
				r.only(path, c)
			}
		case "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector":
			c := &tlsinspectorv3.TlsInspector{}
			if r.unpack(path, typed, c) {
				r.only(path, c, "initial_read_buffer_size", "close_connection_on_client_hello_parsing_errors") // sizes only
			}
			in.TLS = true
			skipTLS = r.skippedPorts(join(path, "filter_disabled"), f.GetFilterDisabled())
		case "type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector":
			c := &httpinspectorv3.HttpInspector{}
			if r.unpack(path, typed, c) {
				r.only(path, c, "initial_read_buffer_size")
			}
			in.HTTP = true
			skipHTTP = r.skippedPorts(join(path, "filter_disabled"), f.GetFilterDisabled())
		default:
			r.fail(path, "filter %q (%s) is not supported", f.GetName(), typed.GetTypeUrl())
		}
	}
	switch {
	case in.TLS && in.HTTP:
		for _, p := range skipHTTP {
			if slices.Contains(skipTLS, p) {
				in.SkipPorts = append(in.SkipPorts, p)
			} else {
				in.SkipHTTPPorts = append(in.SkipHTTPPorts, p)
			}
		}
		// A port without the TLS look but with the HTTP look gets both: they read
		// the same first bytes, so nobody waits longer.
	case in.TLS:
		in.SkipPorts = skipTLS
	case in.HTTP:
		in.SkipPorts = skipHTTP
	}
	if in.TLS || in.HTTP {
		in.Timeout = defaultInspectTimeout
		if t := m.GetListenerFiltersTimeout(); t != nil {
			in.Timeout = r.positive("listener_filters_timeout", t)
		}
	}
	return in
}

const proxyProtocolFilter = "type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol"

// proxyProtocol reads whether the PROXY protocol's header is demanded.
func (r *reader) proxyProtocol(m *listenerv3.Listener) bool {
	found := false
	for i, f := range m.GetListenerFilters() {
		if f.GetTypedConfig().GetTypeUrl() != proxyProtocolFilter {
			continue
		}
		path := index("", "listener_filters", i)
		c := &proxyprotocolv3.ProxyProtocol{}
		if r.unpack(path, f.GetTypedConfig(), c) {
			r.only(path, c, "stat_prefix")
		}
		if f.GetFilterDisabled() != nil {
			r.fail(join(path, "filter_disabled"), "is not supported")
		}
		found = true
	}
	return found
}

// skippedPorts reads a predicate that is a destination port or several of them.
func (r *reader) skippedPorts(path string, p *listenerv3.ListenerFilterChainMatchPredicate) []uint16 {
	switch rule := p.GetRule().(type) {
	case nil:
		return nil
	case *listenerv3.ListenerFilterChainMatchPredicate_DestinationPortRange:
		start, end := rule.DestinationPortRange.GetStart(), rule.DestinationPortRange.GetEnd()
		if start < 1 || end <= start || end > 65536 {
			r.fail(path, "[%d, %d) is not a range of ports", start, end)
			return nil
		}
		var ports []uint16
		for port := start; port < end; port++ {
			ports = append(ports, uint16(port))
		}
		return ports
	case *listenerv3.ListenerFilterChainMatchPredicate_OrMatch:
		var ports []uint16
		for i, sub := range rule.OrMatch.GetRules() {
			at := index(path, "or_match.rules", i)
			if sub.GetDestinationPortRange() == nil {
				// No deeper than one level, so that no resource can nest without end.
				r.fail(at, "is not a destination port range")
				continue
			}
			ports = append(ports, r.skippedPorts(at, sub)...)
		}
		return ports
	default:
		r.fail(path, "is neither a destination port range nor several of them")
		return nil
	}
}

func (r *reader) filterChain(path string, m *listenerv3.FilterChain) *plan.FilterChain {
	r.only(path, m, "name", "filter_chain_match", "transport_socket", "filters",
		"metadata", "transport_socket_connect_timeout") // the proxy has its own limit for handshakes
	c := &plan.FilterChain{Name: m.GetName(), Match: r.chainMatch(join(path, "filter_chain_match"), m.GetFilterChainMatch())}
	if s := m.GetTransportSocket(); s != nil {
		c.TLS = r.downstreamTLS(join(path, "transport_socket"), s)
	}
	for i, f := range m.GetFilters() {
		at := index(path, "filters", i)
		if c.HTTP != nil || (c.TCP != nil && c.TCP.Clusters != nil) {
			r.fail(at, "stands behind the filter that ends the chain")
			break
		}
		r.networkFilter(at, f, c)
	}
	if c.HTTP == nil && (c.TCP == nil || c.TCP.Clusters == nil) {
		r.fail(join(path, "filters"), "end in neither http_connection_manager nor tcp_proxy")
	}
	if c.HTTP != nil {
		if c.TCP != nil && len(c.TCP.RBAC) > 0 {
			r.fail(join(path, "filters"), "have rules for bytes in front of HTTP")
		}
		c.TCP = nil // Istio's filters for bytes do nothing in front of HTTP
	}
	return c
}

// networkFilter adds what a filter says to the chain.
func (r *reader) networkFilter(path string, f *listenerv3.Filter, c *plan.FilterChain) {
	tcp := func() *plan.TCPChain {
		if c.TCP == nil {
			c.TCP = &plan.TCPChain{}
		}
		return c.TCP
	}
	switch typed := f.GetTypedConfig(); r.typeOf(path, typed) {
	case "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager":
		m := &hcmv3.HttpConnectionManager{}
		if r.unpack(path, typed, m) {
			c.HTTP = r.httpChain(path, m)
		}
	case "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy":
		m := &tcpproxyv3.TcpProxy{}
		if r.unpack(path, typed, m) {
			r.tcpChain(path, m, tcp())
		}
	case "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC":
		m := &netrbacv3.RBAC{}
		if r.unpack(path, typed, m) {
			tcp().RBAC = append(tcp().RBAC, r.networkRBAC(path, m))
		}
	case "type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange":
		tcp().PeerExchange = true
	case "type.googleapis.com/stats.PluginConfig":
		tcp().Metrics = true
	default:
		r.fail(path, "filter %q (%s) is not supported", f.GetName(), r.typeOf(path, typed))
	}
}

func (r *reader) chainMatch(path string, m *listenerv3.FilterChainMatch) plan.ChainMatch {
	if m == nil {
		return plan.ChainMatch{}
	}
	r.only(path, m, "destination_port", "prefix_ranges", "server_names", "transport_protocol", "application_protocols")
	out := plan.ChainMatch{
		DestinationPort: r.port(join(path, "destination_port"), m.GetDestinationPort().GetValue()),
		ServerNames:     m.GetServerNames(),
		ALPN:            m.GetApplicationProtocols(),
	}
	for i, p := range m.GetPrefixRanges() {
		at := index(path, "prefix_ranges", i)
		ip, err := netip.ParseAddr(p.GetAddressPrefix())
		if err != nil {
			r.fail(at, "%q is not an IP address", p.GetAddressPrefix())
			continue
		}
		if p.GetPrefixLen().GetValue() > uint32(ip.BitLen()) {
			r.fail(at, "has %d bits of %d", p.GetPrefixLen().GetValue(), ip.BitLen())
			continue
		}
		out.Prefixes = append(out.Prefixes, netip.PrefixFrom(ip, int(p.GetPrefixLen().GetValue())))
	}
	switch m.GetTransportProtocol() {
	case "":
	case "raw_buffer":
		out.Transport = plan.RawBuffer
	case "tls":
		out.Transport = plan.TLSTransport
	default:
		r.fail(join(path, "transport_protocol"), "%q is not supported", m.GetTransportProtocol())
	}
	return out
}

func (r *reader) tcpChain(path string, m *tcpproxyv3.TcpProxy, c *plan.TCPChain) {
	r.only(path, m, "stat_prefix", "cluster", "weighted_clusters", "idle_timeout", "access_log",
		// They tell how and when to log.
		"access_log_options", "access_log_flush_interval", "flush_access_log_on_connected",
		// Without effect: no balancing that hashes is accepted.
		"hash_policy")
	c.StatPrefix = m.GetStatPrefix()
	c.AccessLog = r.accessLog(join(path, "access_log"), m.GetAccessLog())
	if t := m.GetIdleTimeout(); t != nil {
		c.IdleTimeout = r.positive(join(path, "idle_timeout"), t)
		if c.IdleTimeout == 0 {
			c.IdleTimeout = 1<<63 - 1 // Envoy's 0 is never
		}
	}
	c.Clusters = []plan.WeightedCluster{} // even if it stays empty, the chain has ended
	if name := m.GetCluster(); name != "" {
		c.Clusters = append(c.Clusters, plan.WeightedCluster{Cluster: name})
		return
	}
	for i, w := range m.GetWeightedClusters().GetClusters() {
		at := index(path, "weighted_clusters.clusters", i)
		r.only(at, w, "name", "weight")
		if w.GetName() == "" || w.GetWeight() == 0 {
			r.fail(at, "has no name or no weight")
		}
		c.Clusters = append(c.Clusters, plan.WeightedCluster{Cluster: w.GetName(), Weight: w.GetWeight()})
	}
	if len(c.Clusters) == 0 {
		r.fail(path, "names no cluster")
	}
}

// accessLog reads the one kind of log that the proxy writes: a file, in Istio's
// default format. The format is its own, so one that is given is ignored; logs
// of another kind are refused, since somebody would miss them.
func (r *reader) accessLog(path string, logs []*accesslogv3.AccessLog) string {
	if len(logs) == 0 {
		return ""
	}
	if len(logs) > 1 {
		r.fail(path, "names %d logs, one is supported", len(logs))
	}
	r.only(index(path, "", 0), logs[0], "name", "typed_config")
	m := &fileaccesslogv3.FileAccessLog{}
	if !r.unpack(index(path, "", 0), logs[0].GetTypedConfig(), m) {
		return ""
	}
	if m.GetPath() == "" {
		r.fail(path, "names no file")
	}
	return m.GetPath()
}

// positive reads a duration, 0 if there is none, and fails one below 0.
func (r *reader) positive(path string, d *durationpb.Duration) time.Duration {
	if d == nil {
		return 0
	}
	if err := d.CheckValid(); err != nil || d.AsDuration() < 0 {
		r.fail(path, "is not a duration of 0 or more")
		return 0
	}
	return d.AsDuration()
}
