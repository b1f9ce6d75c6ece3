package decode

import (
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// Route reads an envoy.config.route.v3.RouteConfiguration.
func Route(a *anypb.Any) (*plan.RouteConfig, error) {
	m := &routev3.RouteConfiguration{}
	if err := resource(a, m); err != nil {
		return nil, err
	}
	r := &reader{}
	if m.GetName() == "" {
		r.fail("name", "is empty")
	}
	c := r.routeConfig("", m)
	if err := r.done("route", m.GetName()); err != nil {
		return nil, err
	}
	return c, nil
}

func (r *reader) routeConfig(path string, m *routev3.RouteConfiguration) *plan.RouteConfig {
	r.only(path, m, "name", "virtual_hosts", "ignore_port_in_host_matching",
		// Clusters are never checked here, and bodies have the proxy's own limit.
		"validate_clusters", "max_direct_response_body_size_bytes", "metadata")
	c := &plan.RouteConfig{Name: m.GetName(), IgnorePort: m.GetIgnorePortInHostMatching()}
	domains := map[string]string{}
	for i, h := range m.GetVirtualHosts() {
		at := index(path, "virtual_hosts", i)
		c.Hosts = append(c.Hosts, r.virtualHost(at, h))
		for _, d := range h.GetDomains() {
			// Which of two would win is chance; Envoy refuses them.
			d = strings.ToLower(d)
			if other, ok := domains[d]; ok {
				r.fail(join(at, "domains"), "%q is also in %q", d, other)
			}
			domains[d] = h.GetName()
		}
	}
	return c
}

func (r *reader) virtualHost(path string, m *routev3.VirtualHost) *plan.VirtualHost {
	r.only(path, m, "name", "domains", "routes",
		// The proxy always counts attempts, as Istio does.
		"include_request_attempt_count", "include_attempt_count_in_response", "include_is_timeout_retry_header", "metadata")
	h := &plan.VirtualHost{Name: m.GetName(), Domains: m.GetDomains()}
	if h.Name == "" {
		r.fail(join(path, "name"), "is empty")
	}
	if len(h.Domains) == 0 {
		r.fail(join(path, "domains"), "are missing")
	}
	for i, d := range h.Domains {
		if d == "" || strings.Contains(strings.TrimSuffix(strings.TrimPrefix(d, "*"), "*"), "*") || (len(d) > 1 && d[0] == '*' && d[len(d)-1] == '*') {
			r.fail(index(path, "domains", i), "%q is neither a name nor a name with a star at one end", d)
		}
	}
	for i, rule := range m.GetRoutes() {
		h.Routes = append(h.Routes, r.route(index(path, "routes", i), rule))
	}
	return h
}

func (r *reader) route(path string, m *routev3.Route) *plan.Route {
	r.only(path, m, "name", "match", "route", "redirect", "direct_response", "non_forwarding_action", "metadata", "decorator",
		"stat_prefix", "request_headers_to_add", "request_headers_to_remove", "response_headers_to_add", "response_headers_to_remove",
		"typed_per_filter_config",
		"tracing") // traces
	out := &plan.Route{
		Name: m.GetName(),
		Headers: r.headers(path, m.GetRequestHeadersToAdd(), m.GetRequestHeadersToRemove(),
			m.GetResponseHeadersToAdd(), m.GetResponseHeadersToRemove()),
		StatPrefix: m.GetStatPrefix(),
		Match:      r.routeMatch(join(path, "match"), m.GetMatch()),
		Origin:     istioString(m.GetMetadata(), "config"),
		Decorator:  m.GetDecorator().GetOperation(),
	}
	r.filterConfigs(join(path, "typed_per_filter_config"), m.GetTypedPerFilterConfig(), out)
	switch a := m.GetAction().(type) {
	case *routev3.Route_Route:
		r.routeAction(join(path, "route"), a.Route, out)
	case *routev3.Route_Redirect:
		out.Redirect = r.redirect(join(path, "redirect"), a.Redirect)
	case *routev3.Route_DirectResponse:
		out.Direct = r.direct(join(path, "direct_response"), a.DirectResponse)
	case *routev3.Route_NonForwardingAction:
	default:
		r.fail(path, "has no action")
	}
	return out
}

func (r *reader) routeMatch(path string, m *routev3.RouteMatch) plan.RouteMatch {
	r.only(path, m, "prefix", "path", "safe_regex", "path_separated_prefix", "case_sensitive", "headers", "query_parameters", "dynamic_metadata")
	var out plan.RouteMatch
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		out.Path = plan.PathMatch{Kind: plan.PathPrefix, Value: p.Prefix}
	case *routev3.RouteMatch_Path:
		out.Path = plan.PathMatch{Kind: plan.PathExact, Value: p.Path}
	case *routev3.RouteMatch_SafeRegex:
		out.Path = plan.PathMatch{Kind: plan.PathRegex, Value: r.regex(join(path, "safe_regex"), p.SafeRegex.GetRegex())}
	case *routev3.RouteMatch_PathSeparatedPrefix:
		v := p.PathSeparatedPrefix
		if len(v) < 2 || v[0] != '/' || strings.HasSuffix(v, "/") || strings.ContainsAny(v, "?#") {
			r.fail(join(path, "path_separated_prefix"), "%q is not a path without slash at its end", v)
		}
		out.Path = plan.PathMatch{Kind: plan.PathSegmentPrefix, Value: v}
	default:
		r.fail(path, "has no path, or one of a kind that is not supported")
	}
	out.IgnoreCase = m.GetCaseSensitive() != nil && !m.GetCaseSensitive().GetValue()
	for i, h := range m.GetHeaders() {
		out.Headers = append(out.Headers, r.headerMatch(index(path, "headers", i), h))
	}
	for i, q := range m.GetQueryParameters() {
		at := index(path, "query_parameters", i)
		match := plan.QueryMatch{Name: q.GetName()}
		if match.Name == "" {
			r.fail(join(at, "name"), "is empty")
		}
		switch s := q.GetQueryParameterMatchSpecifier().(type) {
		case *routev3.QueryParameterMatcher_StringMatch:
			match.Kind, match.Value = r.stringMatch(join(at, "string_match"), s.StringMatch)
		case *routev3.QueryParameterMatcher_PresentMatch:
			if !s.PresentMatch {
				r.fail(join(at, "present_match"), "false is not supported")
			}
		}
		out.Query = append(out.Query, match)
	}
	for i, m := range m.GetDynamicMetadata() {
		out.Claims = append(out.Claims, r.claimMatch(index(path, "dynamic_metadata", i), m))
	}
	return out
}

// claimMatch reads a condition on a claim of a verified token.
func (r *reader) claimMatch(path string, m *matcherv3.MetadataMatcher) plan.ClaimMatch {
	key, ok := r.claimPath(path, m)
	out := plan.ClaimMatch{Path: key, Invert: m.GetInvert()}
	v := m.GetValue()
	if !ok || v.GetPresentMatch() {
		return out
	}
	if or := v.GetOrMatch().GetValueMatchers(); len(or) == 2 {
		a, b := or[0].GetStringMatch(), or[1].GetListMatch().GetOneOf().GetStringMatch()
		if a == nil || !proto.Equal(a, b) {
			r.fail(join(path, "value"), "is not one text, alone or in a list")
			return out
		}
		out.Kind, out.Value = r.stringMatch(join(path, "value"), a)
		return out
	}
	r.fail(join(path, "value"), "is neither of presence nor one text, alone or in a list")
	return out
}

func (r *reader) headerMatch(path string, m *routev3.HeaderMatcher) plan.HeaderMatch {
	r.only(path, m, "name", "invert_match", "treat_missing_header_as_empty", "string_match", "present_match",
		"exact_match", "prefix_match", "suffix_match", "contains_match", "safe_regex_match") // the forms before string_match
	out := plan.HeaderMatch{
		Name:           strings.ToLower(m.GetName()),
		Invert:         m.GetInvertMatch(),
		MissingIsEmpty: m.GetTreatMissingHeaderAsEmpty(),
	}
	if out.Name == "" {
		r.fail(join(path, "name"), "is empty")
	}
	switch s := m.GetHeaderMatchSpecifier().(type) {
	case *routev3.HeaderMatcher_StringMatch:
		out.Kind, out.Value = r.stringMatch(join(path, "string_match"), s.StringMatch)
	case *routev3.HeaderMatcher_PresentMatch:
		if !s.PresentMatch {
			out.Invert = !out.Invert // "present: false" holds for a missing header
		}
	case *routev3.HeaderMatcher_ExactMatch:
		out.Kind, out.Value = plan.StringExact, s.ExactMatch
	case *routev3.HeaderMatcher_PrefixMatch:
		out.Kind, out.Value = plan.StringPrefix, s.PrefixMatch
	case *routev3.HeaderMatcher_SuffixMatch:
		out.Kind, out.Value = plan.StringSuffix, s.SuffixMatch
	case *routev3.HeaderMatcher_ContainsMatch:
		out.Kind, out.Value = plan.StringContains, s.ContainsMatch
	case *routev3.HeaderMatcher_SafeRegexMatch:
		out.Kind, out.Value = plan.StringRegex, r.regex(join(path, "safe_regex_match"), s.SafeRegexMatch.GetRegex())
	}
	return out
}

func (r *reader) stringMatch(path string, m *matcherv3.StringMatcher) (plan.StringKind, string) {
	if m.GetIgnoreCase() {
		r.fail(join(path, "ignore_case"), "is not supported")
	}
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return plan.StringExact, p.Exact
	case *matcherv3.StringMatcher_Prefix:
		return plan.StringPrefix, p.Prefix
	case *matcherv3.StringMatcher_Suffix:
		return plan.StringSuffix, p.Suffix
	case *matcherv3.StringMatcher_Contains:
		return plan.StringContains, p.Contains
	case *matcherv3.StringMatcher_SafeRegex:
		return plan.StringRegex, r.regex(join(path, "safe_regex"), p.SafeRegex.GetRegex())
	default:
		r.fail(path, "has no pattern, or one of a kind that is not supported")
		return plan.StringPresent, ""
	}
}

func (r *reader) routeAction(path string, m *routev3.RouteAction, out *plan.Route) {
	r.only(path, m, "cluster", "weighted_clusters", "timeout", "retry_policy", "prefix_rewrite", "host_rewrite_literal",
		"regex_rewrite", "hash_policy", "request_mirror_policies",
		// Limits on streams, beside the timeout that Istio always sets with them.
		"max_stream_duration", "max_grpc_timeout", "idle_timeout",
		// Without effect: upgrades are let through, and one code is sent for a
		// cluster that is gone.
		"upgrade_configs", "cluster_not_found_response_code")
	if t := m.GetTimeout(); t != nil {
		out.Timeout = r.positive(join(path, "timeout"), t)
	} else {
		out.Timeout = defaultRouteTimeout
	}
	out.PrefixRewrite = m.GetPrefixRewrite()
	out.HostRewrite = m.GetHostRewriteLiteral()
	if m.GetRegexRewrite() != nil {
		out.RegexRewrite = r.regexRewrite(join(path, "regex_rewrite"), m.GetRegexRewrite())
		if out.PrefixRewrite != "" {
			r.fail(join(path, "regex_rewrite"), "stands beside prefix_rewrite")
		}
	}
	for i, h := range m.GetHashPolicy() {
		out.Hash = append(out.Hash, r.hashPolicy(index(path, "hash_policy", i), h))
	}
	for i, p := range m.GetRequestMirrorPolicies() {
		if c := r.mirror(index(path, "request_mirror_policies", i), p); c.Fraction > 0 {
			out.Mirrors = append(out.Mirrors, c)
		}
	}
	if p := m.GetRetryPolicy(); p != nil {
		out.Retry = r.retryPolicy(join(path, "retry_policy"), p)
	}
	switch s := m.GetClusterSpecifier().(type) {
	case *routev3.RouteAction_Cluster:
		if s.Cluster == "" {
			r.fail(join(path, "cluster"), "is empty")
		}
		out.Clusters = []plan.WeightedCluster{{Cluster: s.Cluster}}
	case *routev3.RouteAction_WeightedClusters:
		var sum uint64
		for i, w := range s.WeightedClusters.GetClusters() {
			at := index(path, "weighted_clusters.clusters", i)
			r.only(at, w, "name", "weight", "host_rewrite_literal", "request_headers_to_add", "request_headers_to_remove",
				"response_headers_to_add", "response_headers_to_remove")
			if w.GetName() == "" {
				r.fail(join(at, "name"), "is empty")
			}
			sum += uint64(w.GetWeight().GetValue())
			out.Clusters = append(out.Clusters, plan.WeightedCluster{
				Cluster: w.GetName(), Weight: w.GetWeight().GetValue(), HostRewrite: w.GetHostRewriteLiteral(),
				Headers: r.headers(at, w.GetRequestHeadersToAdd(), w.GetRequestHeadersToRemove(),
					w.GetResponseHeadersToAdd(), w.GetResponseHeadersToRemove()),
			})
		}
		// "The sum of weights across all entries in the clusters array must be
		// greater than 0, and must not exceed uint32_t maximal value." – RouteAction
		if sum == 0 || sum > 1<<32-1 {
			r.fail(join(path, "weighted_clusters"), "have a total weight of %d", sum)
		}
	default:
		r.fail(path, "names no cluster")
	}
}

// defaultRouteTimeout is Envoy's for a route that names none.
const defaultRouteTimeout = 15 * time.Second

func (r *reader) retryPolicy(path string, m *routev3.RetryPolicy) *plan.Retry {
	r.only(path, m, "retry_on", "num_retries", "per_try_timeout", "retriable_status_codes", "retry_host_predicate",
		"host_selection_retry_max_attempts", "retry_back_off", "retry_priority")
	out := &plan.Retry{Codes: m.GetRetriableStatusCodes(), Attempts: 1} // Envoy's default
	if m.GetRetryOn() != "" {
		out.On = strings.Split(m.GetRetryOn(), ",")
		for i, word := range out.On {
			out.On[i] = strings.TrimSpace(word)
		}
	}
	if n := m.GetNumRetries(); n != nil {
		out.Attempts = n.GetValue()
	}
	if t := m.GetPerTryTimeout(); t != nil {
		out.PerTry = r.positive(join(path, "per_try_timeout"), t)
	}
	if b := m.GetRetryBackOff(); b != nil {
		at := join(path, "retry_back_off")
		r.only(at, b, "base_interval", "max_interval")
		out.Backoff = r.positive(join(at, "base_interval"), b.GetBaseInterval())
		if longest := b.GetMaxInterval(); longest != nil && longest.AsDuration() != 10*out.Backoff {
			r.fail(join(at, "max_interval"), "is not ten times the base")
		}
	}
	if p := m.GetRetryPriority(); p != nil {
		const previous = "type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig"
		if t := p.GetTypedConfig().GetTypeUrl(); t != previous {
			r.fail(join(path, "retry_priority"), "%q (%s) is not supported", p.GetName(), t)
		}
		out.Remote = true
	}
	for i, p := range m.GetRetryHostPredicate() {
		at := index(path, "retry_host_predicate", i)
		const previous = "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
		if t := p.GetTypedConfig().GetTypeUrl(); t != previous {
			r.fail(at, "predicate %q (%s) is not supported", p.GetName(), t)
		}
	}
	if len(m.GetRetryHostPredicate()) > 0 {
		n := m.GetHostSelectionRetryMaxAttempts()
		if n == 0 {
			n = 1 // Envoy's default
		}
		if n < 0 || n > 1<<31-1 {
			r.fail(join(path, "host_selection_retry_max_attempts"), "%d is not a number of attempts", n)
			n = 0
		}
		out.HostReopen = uint32(n)
	}
	return out
}

func (r *reader) redirect(path string, m *routev3.RedirectAction) *plan.Redirect {
	r.only(path, m, "https_redirect", "scheme_redirect", "host_redirect", "port_redirect", "path_redirect", "prefix_rewrite", "response_code")
	out := &plan.Redirect{
		Scheme:        m.GetSchemeRedirect(),
		Host:          m.GetHostRedirect(),
		Port:          uint32(r.port(join(path, "port_redirect"), m.GetPortRedirect())),
		Path:          m.GetPathRedirect(),
		PrefixRewrite: m.GetPrefixRewrite(),
	}
	if m.GetHttpsRedirect() {
		out.Scheme = "https"
	}
	switch m.GetResponseCode() {
	case routev3.RedirectAction_MOVED_PERMANENTLY:
		out.Status = 301
	case routev3.RedirectAction_FOUND:
		out.Status = 302
	case routev3.RedirectAction_SEE_OTHER:
		out.Status = 303
	case routev3.RedirectAction_TEMPORARY_REDIRECT:
		out.Status = 307
	case routev3.RedirectAction_PERMANENT_REDIRECT:
		out.Status = 308
	default:
		r.fail(join(path, "response_code"), "%d is not known", m.GetResponseCode())
	}
	return out
}

func (r *reader) direct(path string, m *routev3.DirectResponseAction) *plan.DirectResponse {
	r.only(path, m, "status", "body")
	if m.GetStatus() < 200 || m.GetStatus() > 599 {
		r.fail(join(path, "status"), "%d is not a status of 200 to 599", m.GetStatus())
	}
	out := &plan.DirectResponse{Status: m.GetStatus()}
	switch b := m.GetBody().GetSpecifier().(type) {
	case nil:
	case *corev3.DataSource_InlineString:
		out.Body = b.InlineString
	case *corev3.DataSource_InlineBytes:
		out.Body = string(b.InlineBytes)
	default:
		r.fail(join(path, "body"), "is not inline")
	}
	return out
}

// istioString returns a text from the metadata that Istio adds for its tools.
func istioString(m *corev3.Metadata, field string) string {
	return m.GetFilterMetadata()["istio"].GetFields()[field].GetStringValue()
}
