package decode

import (
	"strings"

	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// askPrefix marks rules that refuse nothing and choose what ext_authz asks about.
const askPrefix = "istio_ext_authz_"

// choosesAsked reports whether a filter is only there for one of ext_authz behind it.
func choosesAsked(m *httprbacv3.RBAC) bool {
	return m.GetShadowRulesStatPrefix() == askPrefix && m.GetRules() == nil && m.GetShadowRules() != nil
}

// extAuthz reads Istio's use of the filter: it asks by HTTP about what the rules of
// the filter before it chose. rules are all such rules of the chain.
func (r *reader) extAuthz(path string, m *extauthzv3.ExtAuthz, rules []*plan.RBACRule) *plan.ExtAuthz {
	r.only(path, m, "http_service", "transport_api_version", "failure_mode_allow", "status_on_error", "allowed_headers", "filter_enabled_metadata",
		"stat_prefix", "clear_route_cache") // the route is chosen afterwards
	s := m.GetHttpService()
	if s == nil {
		r.fail(path, "is not asked by HTTP")
		return nil
	}
	at := join(path, "http_service")
	r.only(at, s, "server_uri", "path_prefix", "authorization_request", "authorization_response")
	r.only(join(at, "authorization_request"), s.GetAuthorizationRequest(), "allowed_headers", "headers_to_add")
	r.only(join(at, "authorization_response"), s.GetAuthorizationResponse(), "allowed_upstream_headers", "allowed_client_headers", "allowed_client_headers_on_success")
	enabled := m.GetFilterEnabledMetadata()
	prefix := enabled.GetValue().GetStringMatch().GetPrefix()
	key, ok := segments(enabled)
	provider, marked := strings.CutPrefix(prefix, plan.ExtAuthzPrefix)
	provider, ended := strings.CutSuffix(provider, "-")
	if !ok || len(key) != 1 || key[0] != askPrefix+"shadow_effective_policy_id" || enabled.GetInvert() || !marked || !ended {
		r.fail(join(path, "filter_enabled_metadata"), "does not name the rules of a provider")
	}
	out := &plan.ExtAuthz{
		Provider: provider, Cluster: s.GetServerUri().GetCluster(), PathPrefix: s.GetPathPrefix(), Timeout: s.GetServerUri().GetTimeout().AsDuration(),
		FailOpen: m.GetFailureModeAllow(), StatusOnError: uint32(m.GetStatusOnError().GetCode()),
		RequestHeaders: append(r.headerNames(join(path, "allowed_headers"), m.GetAllowedHeaders()),
			r.headerNames(join(at, "authorization_request.allowed_headers"), s.GetAuthorizationRequest().GetAllowedHeaders())...), //nolint:staticcheck // the older place
		ToUpstream: r.headerNames(join(at, "authorization_response.allowed_upstream_headers"), s.GetAuthorizationResponse().GetAllowedUpstreamHeaders()),
		ToDenied:   r.headerNames(join(at, "authorization_response.allowed_client_headers"), s.GetAuthorizationResponse().GetAllowedClientHeaders()),
		ToClient:   r.headerNames(join(at, "authorization_response.allowed_client_headers_on_success"), s.GetAuthorizationResponse().GetAllowedClientHeadersOnSuccess()),
	}
	if out.StatusOnError == 0 {
		out.StatusOnError = 403
	}
	for _, h := range s.GetAuthorizationRequest().GetHeadersToAdd() {
		out.Added = append(out.Added, plan.AddedHeader{Name: strings.ToLower(h.GetKey()), Value: h.GetValue()})
	}
	for _, rule := range rules {
		if strings.HasPrefix(rule.Name, prefix) {
			out.Rules = append(out.Rules, rule)
		}
	}
	return out
}

func (r *reader) headerNames(path string, m *matcherv3.ListStringMatcher) []plan.TextMatch {
	var out []plan.TextMatch
	for i, p := range m.GetPatterns() {
		t := r.text(index(path, "patterns", i), p)
		t.Value = strings.ToLower(t.Value)
		out = append(out, t)
	}
	return out
}
