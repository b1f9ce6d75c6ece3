package encode

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// Names by which Envoy's RBAC filter tells ext_authz what to ask about: rules that
// refuse nothing leave the name of the one that matched. Source: Istio, authz builder.
const (
	askPrefix = "istio_ext_authz_"
	askedBy   = askPrefix + "shadow_effective_policy_id"
)

// askRules are the rules that choose what a provider is asked about.
func askRules(e *plan.ExtAuthz) *httprbacv3.RBAC {
	rules := rbacRules(true, plan.Deny, e.Rules)
	rules.Action = rbacv3.RBAC_DENY
	return &httprbacv3.RBAC{ShadowRules: rules, ShadowRulesStatPrefix: askPrefix}
}

func extAuthz(e *plan.ExtAuthz) *extauthzv3.ExtAuthz {
	http := &extauthzv3.HttpService{
		PathPrefix: e.PathPrefix,
		ServerUri: &corev3.HttpUri{
			Uri: "http://" + e.Provider, HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: e.Cluster}, Timeout: durationpb.New(e.Timeout),
		},
		AuthorizationRequest: &extauthzv3.AuthorizationRequest{},
		AuthorizationResponse: &extauthzv3.AuthorizationResponse{
			AllowedUpstreamHeaders: headerNames(e.ToUpstream), AllowedClientHeaders: headerNames(e.ToDenied),
			AllowedClientHeadersOnSuccess: headerNames(e.ToClient),
		},
	}
	for _, h := range e.Added {
		http.AuthorizationRequest.HeadersToAdd = append(http.AuthorizationRequest.HeadersToAdd, &corev3.HeaderValue{Key: h.Name, Value: h.Value})
	}
	return &extauthzv3.ExtAuthz{
		Services: &extauthzv3.ExtAuthz_HttpService{HttpService: http}, TransportApiVersion: corev3.ApiVersion_V3,
		FailureModeAllow: e.FailOpen, StatusOnError: &typev3.HttpStatus{Code: typev3.StatusCode(e.StatusOnError)},
		AllowedHeaders: headerNames(e.RequestHeaders),
		FilterEnabledMetadata: &matcherv3.MetadataMatcher{
			Filter: "envoy.filters.http.rbac", Path: []*matcherv3.MetadataMatcher_PathSegment{{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: askedBy}}},
			Value: &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
				MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: plan.ExtAuthzPrefix + e.Provider + "-"},
			}}},
		},
	}
}

// headerNames returns nil for no names.
func headerNames(list []plan.TextMatch) *matcherv3.ListStringMatcher {
	if len(list) == 0 {
		return nil
	}
	out := &matcherv3.ListStringMatcher{}
	for _, t := range list {
		out.Patterns = append(out.Patterns, textMatcher(t))
	}
	return out
}
