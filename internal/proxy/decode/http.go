package decode

import (
	udpatypev1 "github.com/cncf/xds/go/udpa/type/v1"
	xdstypev3 "github.com/cncf/xds/go/xds/type/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// typeOf returns the type of a configuration, looking into a TypedStruct: that
// is how Istio sends messages that Envoy's API does not have.
func (r *reader) typeOf(path string, a *anypb.Any) string {
	switch a.GetTypeUrl() {
	case "type.googleapis.com/udpa.type.v1.TypedStruct":
		m := &udpatypev1.TypedStruct{}
		r.unpack(path, a, m)
		return m.GetTypeUrl()
	case "type.googleapis.com/xds.type.v3.TypedStruct":
		m := &xdstypev3.TypedStruct{}
		r.unpack(path, a, m)
		return m.GetTypeUrl()
	default:
		return a.GetTypeUrl()
	}
}

func (r *reader) httpChain(path string, m *hcmv3.HttpConnectionManager) *plan.HTTPChain {
	r.only(path, m, "stat_prefix", "rds", "route_config", "http_filters", "access_log",
		"forward_client_cert_details", "use_remote_address", "xff_num_trusted_hops", "codec_type", "request_timeout",
		// What the proxy does in its own fixed way, which is Istio's default:
		// request ids, the server header, which parts of a certificate go into
		// x-forwarded-client-cert, plain normalization of paths.
		"generate_request_id", "preserve_external_request_id", "always_set_request_id_in_response", "request_id_extension",
		"server_name", "server_header_transformation", "set_current_client_cert_details", "normalize_path",
		// Limits and times of a connection, for which the proxy has its own.
		"common_http_protocol_options", "http_protocol_options", "http2_protocol_options", "stream_idle_timeout",
		"request_headers_timeout", "drain_timeout", "delayed_close_timeout", "max_request_headers_kb", "internal_address_config",
		// Nobody but a reader of logs and traces sees them.
		"tracing", "access_log_options", "access_log_flush_interval", "flush_access_log_on_new_request",
		// Upgrades are always let through.
		"upgrade_configs")
	c := &plan.HTTPChain{
		StatPrefix:       m.GetStatPrefix(),
		UseRemoteAddress: m.GetUseRemoteAddress().GetValue(),
		TrustedHops:      m.GetXffNumTrustedHops(),
		AccessLog:        r.accessLog(join(path, "access_log"), m.GetAccessLog()),
	}
	if m.GetRequestTimeout().AsDuration() != 0 {
		r.fail(join(path, "request_timeout"), "is not supported")
	}
	switch m.GetCodecType() {
	case hcmv3.HttpConnectionManager_AUTO, hcmv3.HttpConnectionManager_HTTP1:
	default:
		r.fail(join(path, "codec_type"), "%v is not supported", m.GetCodecType())
	}
	mode := m.GetForwardClientCertDetails()
	if mode < 0 || mode > hcmv3.HttpConnectionManager_ALWAYS_FORWARD_ONLY {
		r.fail(join(path, "forward_client_cert_details"), "%d is not known", mode)
	} else {
		c.ForwardClientCert = plan.ClientCertMode(mode) // same order
	}
	switch {
	case m.GetRds() != nil:
		c.RouteName = m.GetRds().GetRouteConfigName()
		if c.RouteName == "" {
			r.fail(join(path, "rds.route_config_name"), "is empty")
		}
		if s := m.GetRds().GetConfigSource(); s.GetAds() == nil && s.GetSelf() == nil {
			r.fail(join(path, "rds.config_source"), "is not ADS")
		}
	case m.GetRouteConfig() != nil:
		c.Inline = r.routeConfig(join(path, "route_config"), m.GetRouteConfig())
	default:
		r.fail(path, "has neither rds nor route_config")
	}
	r.httpFilters(path, m.GetHttpFilters(), c)
	return c
}

// httpFilters reads the filters. Their order is the proxy's own affair; that one
// is there is what counts.
func (r *reader) httpFilters(path string, filters []*hcmv3.HttpFilter, c *plan.HTTPChain) {
	ended := false
	var asked []*plan.RBACRule
	for i, f := range filters {
		at := index(path, "http_filters", i)
		if ended {
			r.fail(at, "stands behind the router")
			break
		}
		if f.GetDisabled() {
			continue // until a route enables it, which needs a field that is refused
		}
		switch typ := r.typeOf(at, f.GetTypedConfig()); typ {
		case "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router":
			ended = true
		case "type.googleapis.com/stats.PluginConfig":
			c.Metrics = true
		case "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication":
			m := &jwtv3.JwtAuthentication{}
			if r.unpack(at, f.GetTypedConfig(), m) {
				c.JWT = append(c.JWT, r.jwtAuthn(at, m)...)
			}
		case "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz":
			m := &extauthzv3.ExtAuthz{}
			if r.unpack(at, f.GetTypedConfig(), m) {
				if e := r.extAuthz(at, m, asked); e != nil {
					c.Ask = append(c.Ask, e)
				}
			}
		case "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC":
			m := &httprbacv3.RBAC{}
			switch {
			case !r.unpack(at, f.GetTypedConfig(), m):
			case choosesAsked(m):
				asked = append(asked, r.httpRBAC(at, m).Shadow...)
			default:
				c.RBAC = append(c.RBAC, r.httpRBAC(at, m))
			}
		case "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault":
			m := &faultv3.HTTPFault{}
			if r.unpack(at, f.GetTypedConfig(), m) {
				r.only(at, m) // without fields it waits for routes to say something
			}
		case "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors",
			// Acts on what routes say, and they are refused if they do.
			"type.googleapis.com/io.istio.http.peer_metadata.Config",
			// The proxy exchanges metadata and chooses ALPN by itself.
			"type.googleapis.com/istio.envoy.config.filter.http.alpn_filter.v2alpha1.FilterConfig",
			"type.googleapis.com/envoy.extensions.filters.http.grpc_stats.v3.FilterConfig":
		default:
			if !f.GetIsOptional() {
				r.fail(at, "filter %q (%s) is not supported", f.GetName(), typ)
			}
		}
	}
	if !ended {
		r.fail(join(path, "http_filters"), "do not end in the router")
	}
}
