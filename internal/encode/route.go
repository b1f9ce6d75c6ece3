package encode

import (
	"math"
	"regexp"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	previousprioritiesv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/heddle-mesh/heddle/internal/plan"
)

func routeConfig(r *plan.RouteConfig, forGRPC bool) *routev3.RouteConfiguration {
	out := &routev3.RouteConfiguration{
		Name:                     r.Name,
		IgnorePortInHostMatching: r.IgnorePort,
		// A route may name a cluster that is gone: that answers 503 for this
		// route, and must not refuse all others.
		ValidateClusters: wrapperspb.Bool(false),
	}
	for _, h := range r.Hosts {
		host := &routev3.VirtualHost{Name: h.Name, Domains: h.Domains, IncludeRequestAttemptCount: !forGRPC}
		for _, rule := range h.Routes {
			host.Routes = append(host.Routes, route(rule, forGRPC))
		}
		out.VirtualHosts = append(out.VirtualHosts, host)
	}
	return out
}

func route(r *plan.Route, forGRPC bool) *routev3.Route {
	out := &routev3.Route{Name: r.Name, Match: routeMatch(r.Match, forGRPC), StatPrefix: r.StatPrefix}
	if r.Origin != "" {
		out.Metadata = istioMetadata(fields{"config": r.Origin})
	}
	if r.Decorator != "" {
		out.Decorator = &routev3.Decorator{Operation: r.Decorator}
	}
	if r.Headers != nil {
		out.RequestHeadersToAdd, out.RequestHeadersToRemove = headerEdit(r.Headers.Request)
		out.ResponseHeadersToAdd, out.ResponseHeadersToRemove = headerEdit(r.Headers.Response)
	}
	out.TypedPerFilterConfig = filterConfigs(r, forGRPC)
	switch {
	case len(r.Clusters) > 0:
		out.Action = &routev3.Route_Route{Route: routeAction(r, forGRPC)}
	case r.Redirect != nil:
		out.Action = &routev3.Route_Redirect{Redirect: redirect(r.Redirect)}
	case r.Direct != nil:
		d := &routev3.DirectResponseAction{Status: r.Direct.Status}
		if r.Direct.Body != "" {
			d.Body = &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: r.Direct.Body}}
		}
		out.Action = &routev3.Route_DirectResponse{DirectResponse: d}
	default:
		out.Action = &routev3.Route_NonForwardingAction{NonForwardingAction: &routev3.NonForwardingAction{}}
	}
	return out
}

func routeMatch(m plan.RouteMatch, forGRPC bool) *routev3.RouteMatch {
	out := &routev3.RouteMatch{}
	regex := func(pattern string) *routev3.RouteMatch_SafeRegex {
		return &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: pattern}}
	}
	switch {
	case m.Path.Kind == plan.PathExact:
		out.PathSpecifier = &routev3.RouteMatch_Path{Path: m.Path.Value}
	case m.Path.Kind == plan.PathRegex:
		out.PathSpecifier = regex(m.Path.Value)
	case m.Path.Kind == plan.PathSegmentPrefix && forGRPC:
		// gRPC does not know the segment prefix and would refuse the resource.
		out.PathSpecifier = regex(regexp.QuoteMeta(m.Path.Value) + "(/.*)?")
	case m.Path.Kind == plan.PathSegmentPrefix:
		out.PathSpecifier = &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: m.Path.Value}
	default:
		out.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: m.Path.Value}
	}
	if m.IgnoreCase {
		out.CaseSensitive = wrapperspb.Bool(false)
	}
	for _, h := range m.Headers {
		match := &routev3.HeaderMatcher{Name: h.Name, InvertMatch: h.Invert, TreatMissingHeaderAsEmpty: h.MissingIsEmpty}
		if s := stringMatch(h.Kind, h.Value); s != nil {
			match.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: s}
		} else {
			match.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}
		}
		out.Headers = append(out.Headers, match)
	}
	for _, q := range m.Query {
		match := &routev3.QueryParameterMatcher{Name: q.Name}
		if s := stringMatch(q.Kind, q.Value); s != nil {
			match.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_StringMatch{StringMatch: s}
		} else {
			match.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_PresentMatch{PresentMatch: true}
		}
		out.QueryParameters = append(out.QueryParameters, match)
	}
	for _, c := range m.Claims {
		value := &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_PresentMatch{PresentMatch: true}}
		if s := stringMatch(c.Kind, c.Value); s != nil {
			value = textOrList(s)
		}
		m := metadata(jwtMetadata, value, append([]string{"payload"}, strings.Split(c.Path, "\x00")...)...)
		m.Invert = c.Invert
		out.DynamicMetadata = append(out.DynamicMetadata, m)
	}
	return out
}

// stringMatch returns nil for StringPresent, which is no string match to Envoy.
func stringMatch(kind plan.StringKind, value string) *matcherv3.StringMatcher {
	switch kind {
	case plan.StringExact:
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: value}}
	case plan.StringPrefix:
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: value}}
	case plan.StringSuffix:
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: value}}
	case plan.StringContains:
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Contains{Contains: value}}
	case plan.StringRegex:
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{
			SafeRegex: &matcherv3.RegexMatcher{Regex: value},
		}}
	default:
		return nil
	}
}

func routeAction(r *plan.Route, forGRPC bool) *routev3.RouteAction {
	// Envoy reads an absent timeout as 15 s, and 0 as none.
	out := &routev3.RouteAction{Timeout: durationpb.New(r.Timeout), PrefixRewrite: r.PrefixRewrite}
	if forGRPC && r.Timeout > 0 {
		// gRPC reads its deadline here; in Envoy this would end long streams.
		out.MaxStreamDuration = &routev3.RouteAction_MaxStreamDuration{MaxStreamDuration: durationpb.New(r.Timeout)}
	}
	if re := r.RegexRewrite; re != nil {
		out.RegexRewrite = &matcherv3.RegexMatchAndSubstitute{
			Pattern: &matcherv3.RegexMatcher{Regex: re.Pattern}, Substitution: re.Substitution,
		}
	}
	for _, h := range r.Hash {
		out.HashPolicy = append(out.HashPolicy, hashPolicy(h))
	}
	for _, m := range r.Mirrors {
		out.RequestMirrorPolicies = append(out.RequestMirrorPolicies, &routev3.RouteAction_RequestMirrorPolicy{
			Cluster:                       m.Cluster,
			RuntimeFraction:               &corev3.RuntimeFractionalPercent{DefaultValue: fraction(m.Fraction)},
			DisableShadowHostSuffixAppend: !m.Shadow,
		})
	}
	if r.HostRewrite != "" {
		out.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: r.HostRewrite}
	}
	if r.Retry != nil && !(forGRPC && r.Retry.Attempts == 0) { // gRPC refuses 0 attempts
		out.RetryPolicy = retryPolicy(r.Retry)
	}
	if w := r.Clusters[0]; len(r.Clusters) == 1 && w.Weight == 0 && w.Headers == nil && w.HostRewrite == "" {
		out.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: r.Clusters[0].Cluster}
		return out
	}
	split := &routev3.WeightedCluster{}
	for _, w := range r.Clusters {
		part := &routev3.WeightedCluster_ClusterWeight{Name: w.Cluster, Weight: wrapperspb.UInt32(w.Weight)}
		if w.Headers != nil {
			part.RequestHeadersToAdd, part.RequestHeadersToRemove = headerEdit(w.Headers.Request)
			part.ResponseHeadersToAdd, part.ResponseHeadersToRemove = headerEdit(w.Headers.Response)
		}
		if w.HostRewrite != "" {
			part.HostRewriteSpecifier = &routev3.WeightedCluster_ClusterWeight_HostRewriteLiteral{HostRewriteLiteral: w.HostRewrite}
		}
		split.Clusters = append(split.Clusters, part)
	}
	out.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: split}
	return out
}

func retryPolicy(r *plan.Retry) *routev3.RetryPolicy {
	out := &routev3.RetryPolicy{
		RetryOn:              strings.Join(r.On, ","),
		RetriableStatusCodes: r.Codes,
		NumRetries:           wrapperspb.UInt32(r.Attempts),
	}
	if r.PerTry > 0 {
		out.PerTryTimeout = durationpb.New(r.PerTry)
	}
	if r.Backoff > 0 {
		out.RetryBackOff = &routev3.RetryPolicy_RetryBackOff{BaseInterval: durationpb.New(r.Backoff)}
	}
	if r.Remote {
		out.RetryPriority = &routev3.RetryPolicy_RetryPriority{
			Name: "envoy.retry_priorities.previous_priorities",
			ConfigType: &routev3.RetryPolicy_RetryPriority_TypedConfig{
				TypedConfig: pack(&previousprioritiesv3.PreviousPrioritiesConfig{UpdateFrequency: 2}),
			},
		}
	}
	if r.HostReopen > 0 {
		out.RetryHostPredicate = []*routev3.RetryPolicy_RetryHostPredicate{{
			Name: "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{
				TypedConfig: pack(&previoushostsv3.PreviousHostsPredicate{}),
			},
		}}
		out.HostSelectionRetryMaxAttempts = int64(min(r.HostReopen, math.MaxInt32))
	}
	return out
}

func redirect(r *plan.Redirect) *routev3.RedirectAction {
	out := &routev3.RedirectAction{
		HostRedirect: r.Host,
		PortRedirect: r.Port,
		ResponseCode: redirectCodes[r.Status],
	}
	if r.Scheme != "" {
		out.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: r.Scheme}
	}
	switch {
	case r.Path != "":
		out.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: r.Path}
	case r.PrefixRewrite != "":
		out.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: r.PrefixRewrite}
	}
	return out
}

// redirectCodes are the statuses that Envoy can redirect with. Any other, 0 too,
// becomes the zero value, 301.
var redirectCodes = map[uint32]routev3.RedirectAction_RedirectResponseCode{
	301: routev3.RedirectAction_MOVED_PERMANENTLY,
	302: routev3.RedirectAction_FOUND,
	303: routev3.RedirectAction_SEE_OTHER,
	307: routev3.RedirectAction_TEMPORARY_REDIRECT,
	308: routev3.RedirectAction_PERMANENT_REDIRECT,
}
