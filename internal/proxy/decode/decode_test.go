package decode

import (
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/heddle-mesh/heddle/internal/plan"

	// Types that the documents below name.
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_stats/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/local_ratelimit/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
)

// fromJSON reads a resource as Envoy's documents and admin pages write it.
func fromJSON(t testing.TB, typeURL, text string) *anypb.Any {
	t.Helper()
	mt, err := protoregistry.GlobalTypes.FindMessageByURL(typeURL)
	if err != nil {
		t.Fatal(err)
	}
	m := mt.New().Interface()
	if err := protojson.Unmarshal([]byte(text), m); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return &anypb.Any{TypeUrl: typeURL, Value: b}
}

const (
	hcmType    = `"@type":"type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"`
	routerJSON = `{"name":"router","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}`
	tcpJSON    = `{"name":"tcp","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy","cluster":"c"}}`
	addrJSON   = `"address":{"socket_address":{"address":"0.0.0.0","port_value":80}}`
	rawJSON    = `{"name":"raw","typed_config":{"@type":"type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"}}`
)

func listenerWith(filters string) string {
	return `{"name":"l",` + addrJSON + `,"filter_chains":[{"filters":[` + filters + `]}]}`
}

func hcmWith(fields string) string {
	return listenerWith(`{"name":"hcm","typed_config":{` + hcmType + `,"rds":{"route_config_name":"r","config_source":{"ads":{}}},` + fields + `}}`)
}

func routeWith(route string) string {
	return `{"name":"r","virtual_hosts":[{"name":"h","domains":["*"],"routes":[` + route + `]}]}`
}

// TestWhatIsRefused holds that nothing which would change traffic is passed
// over, and that the error says which resource and field.
// rbacJSON is a network filter with one policy.
func rbacJSON(permission, principal string) string {
	return `{"name":"rbac","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC","rules":{"action":"DENY","policies":{"p":{"permissions":[` +
		permission + `],"principals":[` + principal + `]}}}}}`
}

func TestWhatIsRefused(t *testing.T) {
	for name, c := range map[string]struct{ typ, json, want string }{
		"listener without name": {ListenerType, `{` + addrJSON + `,"filter_chains":[{"filters":[` + tcpJSON + `]}]}`,
			`listener "": name: is empty`},
		"listener without chains": {ListenerType, `{"name":"l",` + addrJSON + `}`,
			`listener "l": filter_chains: are missing`},
		"listener with an unknown field of effect": {ListenerType, `{"name":"l",` + addrJSON + `,"transparent":true,"filter_chains":[{"filters":[` + tcpJSON + `]}]}`,
			`listener "l": transparent: is not supported`},
		"listener on a pipe": {ListenerType, `{"name":"l","address":{"pipe":{"path":"/x"}},"filter_chains":[{"filters":[` + tcpJSON + `]}]}`,
			`listener "l": address: is not a socket address`},
		"listener on UDP": {ListenerType, `{"name":"l","address":{"socket_address":{"address":"0.0.0.0","port_value":80,"protocol":"UDP"}},"filter_chains":[{"filters":[` + tcpJSON + `]}]}`,
			`address.socket_address.protocol: UDP is not supported`},
		"listener on a name": {ListenerType, `{"name":"l","address":{"socket_address":{"address":"localhost","port_value":80}},"filter_chains":[{"filters":[` + tcpJSON + `]}]}`,
			`"localhost" is not an IP address`},
		"listener on no port": {ListenerType, `{"name":"l","address":{"socket_address":{"address":"::","port_value":65536}},"filter_chains":[{"filters":[` + tcpJSON + `]}]}`,
			`65536 is not a port`},
		"unknown listener filter": {ListenerType, `{"name":"l",` + addrJSON + `,"listener_filters":[{"name":"pp","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"}}],"filter_chains":[{"filters":[` + tcpJSON + `]}]}`,
			`listener_filters[0]: filter "pp" (type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy) is not supported`},
		"PROXY protocol that may be left out": {ListenerType, `{"name":"l",` + addrJSON + `,"listener_filters":[{"name":"pp","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol","allow_requests_without_proxy_protocol":true}}],"filter_chains":[{"filters":[` + tcpJSON + `]}]}`,
			`listener_filters[0].allow_requests_without_proxy_protocol: is not supported`},
		"two chains with one match": {ListenerType, `{"name":"l",` + addrJSON + `,"filter_chains":[{"filters":[` + tcpJSON + `]},{"filters":[` + tcpJSON + `]}]}`,
			`filter_chains[1].filter_chain_match: is the same as that of filter_chains[0]`},
		"chain by source": {ListenerType, `{"name":"l",` + addrJSON + `,"filter_chains":[{"filter_chain_match":{"source_ports":[1]},"filters":[` + tcpJSON + `]}]}`,
			`filter_chains[0].filter_chain_match.source_ports: is not supported`},
		"chain for QUIC": {ListenerType, `{"name":"l",` + addrJSON + `,"filter_chains":[{"filter_chain_match":{"transport_protocol":"quic"},"filters":[` + tcpJSON + `]}]}`,
			`transport_protocol: "quic" is not supported`},
		"network filter that denies": {ListenerType, listenerWith(`{"name":"limit","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit","stat_prefix":"x"}},` + tcpJSON),
			`filter_chains[0].filters[0]: filter "limit"`},
		"rule by a matcher": {ListenerType, listenerWith(rbacJSON(`{"url_path":{"path":{"safe_regex":{"regex":"/a|/b"}}}}`, `{"any":true}`) + `,` + tcpJSON),
			`policies[p].permissions[0].rules[0].url_path: the regular expression "/a|/b" is not supported here`},
		"rule on several attributes at once": {ListenerType, listenerWith(rbacJSON(`{"or_rules":{"rules":[{"destination_port":1},{"destination_ip":{"address_prefix":"1.1.1.1","prefix_len":32}}]}}`, `{"any":true}`) + `,` + tcpJSON),
			`mixes conditions on port and to-ip`},
		"rule for foreign state": {ListenerType, listenerWith(rbacJSON(`{"any":true}`, `{"filter_state":{"key":"x","string_match":{"exact":"a"}}}`) + `,` + tcpJSON),
			`filter state "x" is not supported`},
		"rule without principals": {ListenerType, listenerWith(rbacJSON(`{"any":true}`, ``) + `,` + tcpJSON),
			`has no permissions or no principals`},
		"chain without end": {ListenerType, listenerWith(``), `end in neither http_connection_manager nor tcp_proxy`},
		"filter behind the end": {ListenerType, listenerWith(tcpJSON + `,` + tcpJSON),
			`filters[1]: stands behind the filter that ends the chain`},
		"tcp_proxy without cluster": {ListenerType, listenerWith(`{"name":"t","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"}}`),
			`names no cluster`},
		"tcp_proxy with a tunnel": {ListenerType, listenerWith(`{"name":"t","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy","cluster":"c","tunneling_config":{"hostname":"x"}}}`),
			`tunneling_config: is not supported`},
		"HTTP filter that decides": {ListenerType, hcmWith(`"http_filters":[{"name":"lua","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua"}},` + routerJSON + `]`),
			`http_filters[0]: filter "lua" (type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua) is not supported`},
		"TypedStruct of something unknown": {ListenerType, hcmWith(`"http_filters":[{"name":"x","typed_config":{"@type":"type.googleapis.com/udpa.type.v1.TypedStruct","type_url":"type.googleapis.com/evil.Config"}},` + routerJSON + `]`),
			`http_filters[0]: filter "x" (type.googleapis.com/evil.Config) is not supported`},
		"fault for all requests": {ListenerType, hcmWith(`"http_filters":[{"name":"f","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault","abort":{"http_status":503,"percentage":{"numerator":100}}}},` + routerJSON + `]`),
			`http_filters[0].abort: is not supported`},
		"no router": {ListenerType, hcmWith(`"http_filters":[]`), `http_filters: do not end in the router`},
		"path rewriting before the match": {ListenerType, hcmWith(`"merge_slashes":true,"http_filters":[` + routerJSON + `]`),
			`merge_slashes: is not supported`},
		"HTTP/2 only": {ListenerType, hcmWith(`"codec_type":"HTTP2","http_filters":[` + routerJSON + `]`),
			`codec_type: HTTP2 is not supported`},
		"routes by another way than ADS": {ListenerType, listenerWith(`{"name":"hcm","typed_config":{` + hcmType + `,"rds":{"route_config_name":"r","config_source":{"path":"/x"}},"http_filters":[` + routerJSON + `]}}`),
			`rds.config_source: is not ADS`},
		"client certificate checked against nothing": {ListenerType, `{"name":"l",` + addrJSON + `,"filter_chains":[{"filters":[` + tcpJSON + `],"transport_socket":{"name":"tls","typed_config":{"@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext","require_client_certificate":true,"common_tls_context":{"tls_certificate_sds_secret_configs":[{"name":"default"}]}}}}]}`,
			`requires a client certificate but names no roots`},
		"client names by regex": {ListenerType, `{"name":"l",` + addrJSON + `,"filter_chains":[{"filters":[` + tcpJSON + `],"transport_socket":{"name":"tls","typed_config":{"@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext","common_tls_context":{"tls_certificate_sds_secret_configs":[{"name":"default"}],"combined_validation_context":{"default_validation_context":{"match_typed_subject_alt_names":[{"san_type":"URI","matcher":{"safe_regex":{"regex":".*"}}}]},"validation_context_sds_secret_config":{"name":"ROOTCA"}}}}}}]}`,
			`match_typed_subject_alt_names[0]: is not a URI with prefix`},
		"revocation list": {ListenerType, `{"name":"l",` + addrJSON + `,"filter_chains":[{"filters":[` + tcpJSON + `],"transport_socket":{"name":"tls","typed_config":{"@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext","common_tls_context":{"tls_certificate_sds_secret_configs":[{"name":"default"}],"combined_validation_context":{"default_validation_context":{"crl":{"filename":"x"}},"validation_context_sds_secret_config":{"name":"ROOTCA"}}}}}}]}`,
			`default_validation_context.crl: is not supported`},

		"route without action": {RouteType, routeWith(`{"match":{"prefix":"/"}}`), `route "r": virtual_hosts[0].routes[0]: has no action`},
		"route to no cluster":  {RouteType, routeWith(`{"match":{"prefix":"/"},"route":{}}`), `route: names no cluster`},
		"route to a cluster by header": {RouteType, routeWith(`{"match":{"prefix":"/"},"route":{"cluster_header":"x"}}`),
			`route.cluster_header: is not supported`},
		"mirror by header": {RouteType, routeWith(`{"match":{"prefix":"/"},"route":{"cluster":"c","request_mirror_policies":[{"cluster_header":"d"}]}}`),
			`request_mirror_policies[0].cluster_header: is not supported`},
		"removal of the authority": {RouteType, routeWith(`{"match":{"prefix":"/"},"request_headers_to_remove":["Host"],"route":{"cluster":"c"}}`),
			`request_headers_to_remove[0]: "Host" is no header`},
		"header value of two lines": {RouteType, routeWith(`{"match":{"prefix":"/"},"request_headers_to_add":[{"header":{"key":"x","value":"a\r\nb"}}],"route":{"cluster":"c"}}`),
			`request_headers_to_add[0]: the value has characters`},
		"header only if it is there": {RouteType, routeWith(`{"match":{"prefix":"/"},"request_headers_to_add":[{"header":{"key":"x","value":"a"},"append_action":"OVERWRITE_IF_EXISTS"}],"route":{"cluster":"c"}}`),
			`append_action: OVERWRITE_IF_EXISTS is not supported`},
		"route with a filter that is not there": {RouteType, routeWith(`{"match":{"prefix":"/"},"typed_per_filter_config":{"f":{"@type":"type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}},"route":{"cluster":"c"}}`),
			`typed_per_filter_config[f]: is for a filter`},
		"fault by header": {RouteType, routeWith(`{"match":{"prefix":"/"},"typed_per_filter_config":{"f":{"@type":"type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault","delay":{"header_delay":{}}}},"route":{"cluster":"c"}}`),
			`delay.header_delay: is not supported`},
		"rewrite by a group that is not there": {RouteType, routeWith(`{"match":{"prefix":"/"},"route":{"cluster":"c","regex_rewrite":{"pattern":{"regex":"/(a)"},"substitution":"/\\2"}}}`),
			`names a group that the pattern does not have`},
		"hash of filter state": {RouteType, routeWith(`{"match":{"prefix":"/"},"route":{"cluster":"c","hash_policy":[{"filter_state":{"key":"k"}}]}}`),
			`hash_policy[0]: is of a kind that is not supported`},
		"weights of nothing": {RouteType, routeWith(`{"match":{"prefix":"/"},"route":{"weighted_clusters":{"clusters":[{"name":"a","weight":0}]}}}`),
			`weighted_clusters: have a total weight of 0`},
		"weights beyond 32 bits": {RouteType, routeWith(`{"match":{"prefix":"/"},"route":{"weighted_clusters":{"clusters":[{"name":"a","weight":4294967295},{"name":"b","weight":1}]}}}`),
			`have a total weight of 4294967296`},
		"regex that does not compile": {RouteType, routeWith(`{"match":{"safe_regex":{"regex":"("}},"route":{"cluster":"c"}}`),
			`match.safe_regex: error parsing regexp`},
		"header regex that does not compile": {RouteType, routeWith(`{"match":{"prefix":"/","headers":[{"name":"x","string_match":{"safe_regex":{"regex":"["}}}]},"route":{"cluster":"c"}}`),
			`match.headers[0].string_match.safe_regex: error parsing regexp`},
		"header without regard to case": {RouteType, routeWith(`{"match":{"prefix":"/","headers":[{"name":"x","string_match":{"exact":"a","ignore_case":true}}]},"route":{"cluster":"c"}}`),
			`ignore_case: is not supported`},
		"header by range": {RouteType, routeWith(`{"match":{"prefix":"/","headers":[{"name":"x","range_match":{"start":1}}]},"route":{"cluster":"c"}}`),
			`range_match: is not supported`},
		"route for a share of requests": {RouteType, routeWith(`{"match":{"prefix":"/","runtime_fraction":{"default_value":{"numerator":1}}},"route":{"cluster":"c"}}`),
			`runtime_fraction: is not supported`},
		"segment prefix with slash": {RouteType, routeWith(`{"match":{"path_separated_prefix":"/a/"},"route":{"cluster":"c"}}`),
			`path_separated_prefix: "/a/" is not a path`},
		"one domain twice": {RouteType, `{"name":"r","virtual_hosts":[{"name":"a","domains":["x.y"]},{"name":"b","domains":["X.Y"]}]}`,
			`virtual_hosts[1].domains: "x.y" is also in "a"`},
		"star in the middle": {RouteType, `{"name":"r","virtual_hosts":[{"name":"a","domains":["x.*.y"]}]}`,
			`domains[0]: "x.*.y" is neither`},
		"host without domains": {RouteType, `{"name":"r","virtual_hosts":[{"name":"a"}]}`, `domains: are missing`},
		"redirect by regex": {RouteType, routeWith(`{"match":{"prefix":"/"},"redirect":{"regex_rewrite":{"pattern":{"regex":"x"}}}}`),
			`regex_rewrite: is not supported`},
		"answer with a file": {RouteType, routeWith(`{"match":{"prefix":"/"},"direct_response":{"status":200,"body":{"filename":"/etc/passwd"}}}`),
			`direct_response.body: is not inline`},
		"answer with status 99": {RouteType, routeWith(`{"match":{"prefix":"/"},"direct_response":{"status":99}}`), `99 is not a status`},
		"negative timeout":      {RouteType, routeWith(`{"match":{"prefix":"/"},"route":{"cluster":"c","timeout":"-1s"}}`), `timeout: is not a duration`},
		"retry on other headers": {RouteType, routeWith(`{"match":{"prefix":"/"},"route":{"cluster":"c","retry_policy":{"retry_on":"5xx","retriable_headers":[{"name":"x"}]}}}`),
			`retriable_headers: is not supported`},

		"cluster without name": {ClusterType, `{"type":"STATIC"}`, `cluster "": name: is empty`},
		"cluster from a file": {ClusterType, `{"name":"c","type":"EDS","eds_cluster_config":{"eds_config":{"path":"/x"}}}`,
			`cluster "c": eds_cluster_config.eds_config: is not ADS`},
		"aggregate cluster": {ClusterType, `{"name":"c","cluster_type":{"name":"envoy.clusters.aggregate"}}`,
			`"envoy.clusters.aggregate" is not supported`},
		"balancing by another hash": {ClusterType, `{"name":"c","type":"STATIC","lb_policy":"RING_HASH","ring_hash_lb_config":{"hash_function":"MURMUR_HASH_2"}}`,
			`hash_function: MURMUR_HASH_2 is not supported`},
		"table of no prime size": {ClusterType, `{"name":"c","type":"STATIC","lb_policy":"MAGLEV","maglev_lb_config":{"table_size":"1000"}}`,
			`table_size: 1000 is not a prime number`},
		"original destination with balancing": {ClusterType, `{"name":"c","type":"ORIGINAL_DST"}`,
			`lb_policy: ROUND_ROBIN does not go with ORIGINAL_DST`},
		"ejection by success rate": {ClusterType, `{"name":"c","type":"STATIC","outlier_detection":{"enforcing_success_rate":100}}`,
			`outlier_detection: ejects by success rate`},
		"health checks": {ClusterType, `{"name":"c","type":"STATIC","health_checks":[{}]}`, `health_checks: is not supported`},
		"no requests at all": {ClusterType, `{"name":"c","type":"STATIC","circuit_breakers":{"thresholds":[{"max_requests":0}]}}`,
			`circuit_breakers.thresholds[0].max_requests: 0 would let nothing through`},
		"HTTP/3 upstream": {ClusterType, `{"name":"c","type":"STATIC","typed_extension_protocol_options":{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions":{"@type":"type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions","explicit_http_config":{"http3_protocol_options":{}}}}}`,
			`asks for another protocol than HTTP/1.1 and HTTP/2`},
		"static name": {ClusterType, `{"name":"c","type":"STATIC","load_assignment":{"cluster_name":"c","endpoints":[{"lb_endpoints":[{"endpoint":{"address":{"socket_address":{"address":"x","port_value":1}}}}]}]}}`,
			`load_assignment.endpoints[0].lb_endpoints[0]: "x" is not an IP address`},
		"two logical names": {ClusterType, `{"name":"c","type":"LOGICAL_DNS"}`, `has 0 hosts, LOGICAL_DNS takes one`},
		"PROXY protocol upstream": {ClusterType, `{"name":"c","type":"STATIC","transport_socket":{"name":"x","typed_config":{"@type":"type.googleapis.com/udpa.type.v1.TypedStruct"}}}`,
			`transport_socket: is a "type.googleapis.com/udpa.type.v1.TypedStruct"`},
		"TLS only, without a choice for the others": {ClusterType, `{"name":"c","type":"STATIC","transport_socket_matches":[{"name":"m","match":{"tlsMode":"istio"},"transport_socket":{"name":"x","typed_config":{"@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext","common_tls_context":{}}}}]}`,
			`are not TLS for tlsMode=istio and plain text for all others`},
		"plain text where TLS is meant": {ClusterType, `{"name":"c","type":"STATIC","transport_socket_matches":[{"name":"m","match":{"tlsMode":"istio"},"transport_socket":` + rawJSON + `},{"name":"n","match":{},"transport_socket":` + rawJSON + `}]}`,
			`transport_socket_matches[0]: is not TLS`},
		"server names without roots": {ClusterType, `{"name":"c","type":"STATIC","transport_socket":{"name":"x","typed_config":{"@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext","common_tls_context":{"combined_validation_context":{"default_validation_context":{"match_subject_alt_names":[{"exact":"spiffe://x"}]}}}}}}`,
			`names no roots`},
		"server name by prefix": {ClusterType, `{"name":"c","type":"STATIC","transport_socket":{"name":"x","typed_config":{"@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext","common_tls_context":{"combined_validation_context":{"default_validation_context":{"match_subject_alt_names":[{"prefix":"spiffe://x"}]},"validation_context_sds_secret_config":{"name":"ROOTCA"}}}}}}`,
			`match_subject_alt_names[0]: is not an exact name`},
		"source port": {ClusterType, `{"name":"c","type":"STATIC","upstream_bind_config":{"source_address":{"address":"127.0.0.6","port_value":5}}}`,
			`upstream_bind_config.source_address: is not an IP address with port 0`},

		"endpoints without name": {EndpointType, `{}`, `endpoints "": cluster_name: is empty`},
		"endpoint with a name": {EndpointType, `{"cluster_name":"e","endpoints":[{"lb_endpoints":[{"endpoint":{"address":{"socket_address":{"address":"x","port_value":1}}}}]}]}`,
			`endpoints "e": endpoints[0].lb_endpoints[0].endpoint.address.socket_address: "x" is not an IP address`},
		"endpoint without address": {EndpointType, `{"cluster_name":"e","endpoints":[{"lb_endpoints":[{}]}]}`, `is not a socket address`},
		"drops": {EndpointType, `{"cluster_name":"e","policy":{"drop_overloads":[{"category":"x"}]}}`,
			`policy.drop_overloads: is not supported`},
		"priority 129":  {EndpointType, `{"cluster_name":"e","endpoints":[{"priority":129}]}`, `endpoints[0].priority: 129 is over 128`},
		"nothing wrong": {EndpointType, `{"cluster_name":"e","endpoints":[{"priority":128}]}`, ``},
	} {
		t.Run(name, func(t *testing.T) {
			err := readAny(fromJSON(t, c.typ, c.json))
			switch {
			case c.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.want != "" && err == nil:
				t.Error("accepted")
			case c.want != "" && !strings.Contains(err.Error(), c.want):
				t.Errorf("error %q does not say %q", err, c.want)
			}
		})
	}
}

// readAny decodes a resource of any type.
func readAny(a *anypb.Any) (err error) {
	switch a.GetTypeUrl() {
	case ListenerType:
		_, err = Listener(a)
	case RouteType:
		_, err = Route(a)
	case ClusterType:
		_, err = Cluster(a)
	case EndpointType:
		_, err = LoadAssignment(a)
	case NameTableType:
		_, err = NameTable(a)
	}
	return err
}

func TestAllFaultsAreToldTogether(t *testing.T) {
	_, err := Cluster(fromJSON(t, ClusterType, `{"name":"c","type":"STATIC","lb_policy":"LOAD_BALANCING_POLICY_CONFIG","outlier_detection":{"enforcing_success_rate":1},"health_checks":[{}]}`))
	for _, want := range []string{"lb_policy", "outlier_detection", "health_checks"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not mention %s", err, want)
		}
	}
}

func TestFieldsOfANewerFormAreRefused(t *testing.T) {
	a := fromJSON(t, ClusterType, `{"name":"c","type":"STATIC"}`)
	a.Value = protowire.AppendTag(a.Value, 9999, protowire.VarintType)
	a.Value = protowire.AppendVarint(a.Value, 1)
	if _, err := Cluster(a); err == nil || !strings.Contains(err.Error(), "not known") {
		t.Errorf("got %v, want a refusal of the unknown field", err)
	}
}

func TestAnotherTypeIsRefused(t *testing.T) {
	if _, err := Cluster(fromJSON(t, RouteType, `{"name":"c"}`)); err == nil {
		t.Error("a route was read as a cluster")
	}
	if _, err := NameTable(fromJSON(t, RouteType, `{"name":"c"}`)); err == nil {
		t.Error("a route was read as a name table")
	}
}

// TestDefaultsAreEnvoys holds what an absent field means.
func TestDefaultsAreEnvoys(t *testing.T) {
	r, err := Route(fromJSON(t, RouteType, routeWith(`{"match":{"prefix":"/"},"route":{"cluster":"c","retry_policy":{"retry_on":"5xx , reset"}}}`)))
	if err != nil {
		t.Fatal(err)
	}
	rule := r.Hosts[0].Routes[0]
	if rule.Timeout.Seconds() != 15 {
		t.Errorf("route timeout %v, want 15s", rule.Timeout)
	}
	if want := (&plan.Retry{On: []string{"5xx", "reset"}, Attempts: 1}); !reflect.DeepEqual(rule.Retry, want) {
		t.Errorf("retry %+v, want %+v", rule.Retry, want)
	}
	c, err := Cluster(fromJSON(t, ClusterType, `{"name":"c","type":"STATIC"}`))
	if err != nil {
		t.Fatal(err)
	}
	if c.MaxConnections != 1024 || c.MaxPending != 1024 || c.MaxRequests != 1024 {
		t.Errorf("limits %d %d %d, want 1024", c.MaxConnections, c.MaxPending, c.MaxRequests)
	}
	l, err := Listener(fromJSON(t, ListenerType, `{"name":"l",`+addrJSON+`,"listener_filters":[{"name":"t","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"}}],"filter_chains":[{"filters":[`+tcpJSON+`]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if !l.Bound || l.Inspect.Timeout.Seconds() != 15 {
		t.Errorf("listener bound %v, timeout %v; want bound and 15s", l.Bound, l.Inspect.Timeout)
	}
}

// TestFiltersOfIstio reads the filters that an istiod sends, of which some come
// as TypedStruct of either form.
func TestFiltersOfIstio(t *testing.T) {
	const (
		udpa = `"@type":"type.googleapis.com/udpa.type.v1.TypedStruct"`
		xds  = `"@type":"type.googleapis.com/xds.type.v3.TypedStruct"`
	)
	l, err := Listener(fromJSON(t, ListenerType, hcmWith(`"normalize_path":true,"forward_client_cert_details":"APPEND_FORWARD",
		"server_name":"istio-envoy","stream_idle_timeout":"0s","upgrade_configs":[{"upgrade_type":"websocket"}],
		"http_filters":[
		{"name":"istio.metadata_exchange","typed_config":{`+udpa+`,"type_url":"type.googleapis.com/io.istio.http.peer_metadata.Config","value":{}}},
		{"name":"istio.alpn","typed_config":{`+xds+`,"type_url":"type.googleapis.com/istio.envoy.config.filter.http.alpn_filter.v2alpha1.FilterConfig"}},
		{"name":"grpc","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.http.grpc_stats.v3.FilterConfig"}},
		{"name":"fault","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"}},
		{"name":"cors","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"}},
		{"name":"istio.stats","typed_config":{`+udpa+`,"type_url":"type.googleapis.com/stats.PluginConfig","value":{"a":"b"}}},
		`+routerJSON+`]`)))
	if err != nil {
		t.Fatal(err)
	}
	h := l.Chains[0].HTTP
	if h == nil || !h.Metrics || h.ForwardClientCert != plan.AppendForwardClientCert || h.RouteName != "r" {
		t.Errorf("chain is %+v", h)
	}
	l, err = Listener(fromJSON(t, ListenerType, listenerWith(
		`{"name":"istio.metadata_exchange","typed_config":{`+udpa+`,"type_url":"type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange"}},
		{"name":"istio.stats","typed_config":{`+udpa+`,"type_url":"type.googleapis.com/stats.PluginConfig"}},`+tcpJSON)))
	if err != nil {
		t.Fatal(err)
	}
	if c := l.Chains[0].TCP; c == nil || !c.Metrics || !c.PeerExchange || c.Clusters[0].Cluster != "c" {
		t.Errorf("chain is %+v", c)
	}
}

func TestSkippedPorts(t *testing.T) {
	port := func(a, b int) string {
		return strings.NewReplacer("A", string(rune('0'+a)), "B", string(rune('0'+b))).Replace(`{"destination_port_range":{"start":A,"end":B}}`)
	}
	filter := func(kind, disabled string) string {
		return `{"name":"x","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.listener.` + kind + `"},"filter_disabled":` + disabled + `}`
	}
	l, err := Listener(fromJSON(t, ListenerType, `{"name":"l",`+addrJSON+`,"listener_filters":[`+
		filter("tls_inspector.v3.TlsInspector", port(3, 5))+`,`+
		filter("http_inspector.v3.HttpInspector", `{"or_match":{"rules":[`+port(4, 5)+`,`+port(7, 8)+`]}}`)+
		`],"filter_chains":[{"filters":[`+tcpJSON+`]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	// Port 3 is looked at for HTTP, and so is looked at for TLS as well.
	if !reflect.DeepEqual(l.Inspect.SkipPorts, []uint16{4}) || !reflect.DeepEqual(l.Inspect.SkipHTTPPorts, []uint16{7}) {
		t.Errorf("skips %v and %v", l.Inspect.SkipPorts, l.Inspect.SkipHTTPPorts)
	}
	for _, bad := range []string{`{"destination_port_range":{"start":0,"end":9}}`, `{"destination_port_range":{"start":9,"end":9}}`, `{"any_match":true}`, `{"or_match":{"rules":[{"any_match":true}]}}`} {
		if _, err := Listener(fromJSON(t, ListenerType, `{"name":"l",`+addrJSON+`,"listener_filters":[`+filter("tls_inspector.v3.TlsInspector", bad)+`],"filter_chains":[{"filters":[`+tcpJSON+`]}]}`)); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}

func TestNameTableTakesTheLastOfEqualNames(t *testing.T) {
	entry := func(host, ip string) []byte {
		info := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), ip)
		e := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), host)
		e = protowire.AppendBytes(protowire.AppendTag(e, 2, protowire.BytesType), info)
		return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), e)
	}
	b := append(append(entry("b", "10.0.0.1"), entry("a", "10.0.0.2")...), entry("b", "10.0.0.3")...)
	n, err := NameTable(&anypb.Any{TypeUrl: NameTableType, Value: b})
	if err != nil {
		t.Fatal(err)
	}
	if len(n.Names) != 2 || n.Names[0].Host != "a" || n.Names[1].IPs[0].String() != "10.0.0.3" {
		t.Errorf("got %+v", n.Names)
	}
	for _, bad := range [][]byte{entry("", "10.0.0.1"), entry("a", "x"), {0x0a}, {0x0a, 0x02, 0x0a}} {
		if _, err := NameTable(&anypb.Any{TypeUrl: NameTableType, Value: bad}); err == nil {
			t.Errorf("%x was accepted", bad)
		}
	}
}
