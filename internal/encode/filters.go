package encode

import (
	udpatypev1 "github.com/cncf/xds/go/udpa/type/v1"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	fileaccesslogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// Names of filters to which routes speak.
const (
	faultFilter = "envoy.filters.http.fault"
	corsFilter  = "envoy.filters.http.cors"
)

// httpFilters returns the filters of a chain in the order in which a request
// passes them.
func httpFilters(c *plan.HTTPChain, direction plan.Direction, forGRPC bool) []*hcmv3.HttpFilter {
	var out []*hcmv3.HttpFilter
	add := func(name string, config proto.Message) {
		out = append(out, &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(config)}})
	}
	if forGRPC {
		// gRPC refuses a filter that it does not know.
		add(faultFilter, &faultv3.HTTPFault{})
		add("envoy.filters.http.router", &routerv3.Router{})
		return out
	}
	// First, so that all later filters know who the peer is.
	add("istio.metadata_exchange", typedStruct("type.googleapis.com/io.istio.http.peer_metadata.Config", peerMetadata(direction)))
	if direction != plan.Inbound {
		// Chooses the ALPN of the connection to the next sidecar, by which that
		// one tells HTTP from bytes.
		add("istio.alpn", typedStruct("type.googleapis.com/istio.envoy.config.filter.http.alpn_filter.v2alpha1.FilterConfig", alpnOverrides()))
	}
	for _, e := range c.Ask {
		add("envoy.filters.http.rbac", askRules(e))
		add("envoy.filters.http.ext_authz", extAuthz(e))
	}
	if len(c.JWT) > 0 {
		add("envoy.filters.http.jwt_authn", jwtAuthn(c.JWT))
	}
	for _, r := range c.RBAC {
		add("envoy.filters.http.rbac", httpRBAC(r))
	}
	add(faultFilter, &faultv3.HTTPFault{})
	add(corsFilter, &corsv3.Cors{})
	if c.Metrics {
		// Late, so that local answers of the filters above are counted as well.
		add("istio.stats", typedStruct("type.googleapis.com/stats.PluginConfig", fields{}))
	}
	add("envoy.filters.http.router", &routerv3.Router{})
	return out
}

// peerMetadata says on which side headers with workload metadata are read, and
// on which they are sent.
func peerMetadata(direction plan.Direction) fields {
	byHeader := []any{fields{"istio_headers": fields{}}}
	if direction == plan.Inbound {
		return fields{"downstream_discovery": byHeader, "downstream_propagation": byHeader}
	}
	return fields{"upstream_discovery": byHeader, "upstream_propagation": byHeader}
}

func alpnOverrides() fields {
	override := func(upstream string, alpn ...any) fields {
		return fields{"upstream_protocol": upstream, "alpn_override": alpn}
	}
	return fields{"alpn_override": []any{
		override("HTTP10", "istio-http/1.0", "istio", "http/1.0"),
		override("HTTP11", "istio-http/1.1", "istio", "http/1.1"),
		override("HTTP2", "istio-h2", "istio", "h2"),
	}}
}

// fields are the fields of a message that has no Go type here.
type fields map[string]any

// typedStruct carries a message of Istio's that Envoy's own API does not have.
func typedStruct(typeURL string, f fields) *udpatypev1.TypedStruct {
	return &udpatypev1.TypedStruct{TypeUrl: typeURL, Value: structOf(f)}
}

func structOf(f fields) *structpb.Struct {
	out := &structpb.Struct{Fields: make(map[string]*structpb.Value, len(f))}
	for k, v := range f {
		out.Fields[k] = valueOf(v)
	}
	return out
}

func valueOf(v any) *structpb.Value {
	switch v := v.(type) {
	case string:
		return structpb.NewStringValue(v)
	case fields:
		return structpb.NewStructValue(structOf(v))
	case []any:
		list := &structpb.ListValue{}
		for _, e := range v {
			list.Values = append(list.Values, valueOf(e))
		}
		return structpb.NewListValue(list)
	default:
		panic("encode: a field of a kind that is not written here")
	}
}

// accessLogFormat is the default of Istio's mesh configuration.
const accessLogFormat = `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% ` +
	`%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" ` +
	`%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" ` +
	`"%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% ` +
	`%UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%` + "\n"

func accessLog(path string) []*accesslogv3.AccessLog {
	if path == "" {
		return nil
	}
	return []*accesslogv3.AccessLog{{
		Name: "envoy.access_loggers.file",
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: pack(&fileaccesslogv3.FileAccessLog{
			Path: path,
			AccessLogFormat: &fileaccesslogv3.FileAccessLog_LogFormat{LogFormat: &corev3.SubstitutionFormatString{
				Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
					Specifier: &corev3.DataSource_InlineString{InlineString: accessLogFormat},
				}},
			}},
		})},
	}}
}
