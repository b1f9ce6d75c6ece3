package encode

import (
	"net/netip"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	netrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	uritemplatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// jwtMetadata is where Envoy's filter for tokens leaves what they say.
const jwtMetadata = "envoy.filters.http.jwt_authn"

// shadowPrefix names the counters of dry runs. Source: Istio, authz builder.
func shadowPrefix(r *plan.RBAC) string {
	switch {
	case !r.DryRun:
		return ""
	case r.Action == plan.Allow:
		return "istio_dry_run_allow_"
	default:
		return "istio_dry_run_deny_"
	}
}

func httpRBAC(r *plan.RBAC) *httprbacv3.RBAC {
	return &httprbacv3.RBAC{
		Rules:                 rbacRules(r.Enforced, r.Action, r.Rules),
		ShadowRules:           rbacRules(r.DryRun, r.Action, r.Shadow),
		ShadowRulesStatPrefix: shadowPrefix(r),
	}
}

func networkRBAC(r *plan.RBAC) *netrbacv3.RBAC {
	return &netrbacv3.RBAC{
		Rules:                 rbacRules(r.Enforced, r.Action, r.Rules),
		ShadowRules:           rbacRules(r.DryRun, r.Action, r.Shadow),
		ShadowRulesStatPrefix: shadowPrefix(r),
		StatPrefix:            "tcp.",
	}
}

var rbacActions = map[plan.RBACAction]rbacv3.RBAC_Action{
	plan.Allow: rbacv3.RBAC_ALLOW, plan.Deny: rbacv3.RBAC_DENY, plan.Audit: rbacv3.RBAC_LOG,
}

// rbacRules returns nil for rules that are not evaluated, which differs from none.
func rbacRules(evaluated bool, action plan.RBACAction, rules []*plan.RBACRule) *rbacv3.RBAC {
	if !evaluated {
		return nil
	}
	out := &rbacv3.RBAC{Action: rbacActions[action]}
	for _, r := range rules {
		if out.Policies == nil {
			out.Policies = make(map[string]*rbacv3.Policy, len(rules))
		}
		p := &rbacv3.Policy{}
		for _, c := range r.To {
			p.Permissions = append(p.Permissions, permission(c))
		}
		if len(r.To) == 0 {
			p.Permissions = []*rbacv3.Permission{permission(nil)}
		}
		for _, c := range r.From {
			p.Principals = append(p.Principals, principal(c))
		}
		if len(r.From) == 0 {
			p.Principals = []*rbacv3.Principal{principal(nil)}
		}
		out.Policies[r.Name] = p
	}
	return out
}

// permission is Istio's form: all of the conditions, each one of its values, or
// none of them.
func permission(cs plan.Conditions) *rbacv3.Permission {
	all := &rbacv3.Permission_Set{}
	for _, c := range cs {
		any := &rbacv3.Permission_Set{}
		for _, t := range c.Texts {
			any.Rules = append(any.Rules, permissionText(c, t))
		}
		for _, n := range c.Nets {
			any.Rules = append(any.Rules, &rbacv3.Permission{Rule: &rbacv3.Permission_DestinationIp{DestinationIp: cidr(n)}})
		}
		for _, p := range c.Ports {
			any.Rules = append(any.Rules, &rbacv3.Permission{Rule: &rbacv3.Permission_DestinationPort{DestinationPort: uint32(p)}})
		}
		one := &rbacv3.Permission{Rule: &rbacv3.Permission_OrRules{OrRules: any}}
		if c.Not {
			one = &rbacv3.Permission{Rule: &rbacv3.Permission_NotRule{NotRule: one}}
		}
		all.Rules = append(all.Rules, one)
	}
	if len(cs) == 0 {
		all.Rules = []*rbacv3.Permission{{Rule: &rbacv3.Permission_Any{Any: true}}}
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_AndRules{AndRules: all}}
}

func permissionText(c plan.Condition, t plan.TextMatch) *rbacv3.Permission {
	switch c.Attr {
	case plan.AttrHost:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_Header{Header: headerText(":authority", t, true)}}
	case plan.AttrMethod:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_Header{Header: headerText(":method", t, false)}}
	case plan.AttrPath:
		if t.Kind == plan.StringTemplate {
			return &rbacv3.Permission{Rule: &rbacv3.Permission_UriTemplate{UriTemplate: &corev3.TypedExtensionConfig{
				Name: "uri-template", TypedConfig: pack(&uritemplatev3.UriTemplateMatchConfig{PathTemplate: t.Value}),
			}}}
		}
		return &rbacv3.Permission{Rule: &rbacv3.Permission_UrlPath{UrlPath: &matcherv3.PathMatcher{
			Rule: &matcherv3.PathMatcher_Path{Path: textMatcher(t)},
		}}}
	case plan.AttrSNI:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_RequestedServerName{RequestedServerName: textMatcher(t)}}
	case plan.AttrMetadata:
		filter, key, _ := strings.Cut(c.Key, "\x00")
		value := &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{StringMatch: textMatcher(t)}}
		if list, ok := strings.CutPrefix(t.Value, "["); ok && t.Kind == plan.StringExact {
			value = listValue(textMatcher(plan.TextMatch{Kind: plan.StringExact, Value: strings.TrimSuffix(list, "]")}))
		}
		return &rbacv3.Permission{Rule: &rbacv3.Permission_Metadata{Metadata: metadata(filter, value, key)}}
	}
	panic("encode: a condition on " + c.Attr.String() + " is no operation's")
}

func principal(cs plan.Conditions) *rbacv3.Principal {
	all := &rbacv3.Principal_Set{}
	for _, c := range cs {
		any := &rbacv3.Principal_Set{}
		for _, t := range c.Texts {
			any.Ids = append(any.Ids, principalText(c, t))
		}
		for _, n := range c.Nets {
			id := &rbacv3.Principal{Identifier: &rbacv3.Principal_DirectRemoteIp{DirectRemoteIp: cidr(n)}}
			if c.Attr == plan.AttrRemoteIP {
				id = &rbacv3.Principal{Identifier: &rbacv3.Principal_RemoteIp{RemoteIp: cidr(n)}}
			}
			any.Ids = append(any.Ids, id)
		}
		one := &rbacv3.Principal{Identifier: &rbacv3.Principal_OrIds{OrIds: any}}
		if c.Not {
			one = &rbacv3.Principal{Identifier: &rbacv3.Principal_NotId{NotId: one}}
		}
		all.Ids = append(all.Ids, one)
	}
	if len(cs) == 0 {
		all.Ids = []*rbacv3.Principal{{Identifier: &rbacv3.Principal_Any{Any: true}}}
	}
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_AndIds{AndIds: all}}
}

func principalText(c plan.Condition, t plan.TextMatch) *rbacv3.Principal {
	claim := func(value *matcherv3.ValueMatcher, path ...string) *rbacv3.Principal {
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_Metadata{
			Metadata: metadata(jwtMetadata, value, append([]string{"payload"}, path...)...),
		}}
	}
	one := func(t plan.TextMatch) *matcherv3.ValueMatcher {
		return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{StringMatch: textMatcher(t)}}
	}
	switch c.Attr {
	case plan.AttrPrincipal:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_Authenticated_{
			Authenticated: &rbacv3.Principal_Authenticated{PrincipalName: textMatcher(t)},
		}}
	case plan.AttrHeader:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_Header{Header: headerText(c.Key, t, false)}}
	case plan.AttrRequestPrincipal:
		issuer, subject := splitPrincipal(t)
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_AndIds{AndIds: &rbacv3.Principal_Set{
			Ids: []*rbacv3.Principal{claim(one(issuer), "iss"), claim(one(subject), "sub")},
		}}}
	case plan.AttrClaim:
		return claim(textOrList(textMatcher(t)), strings.Split(c.Key, "\x00")...)
	}
	panic("encode: a condition on " + c.Attr.String() + " is no source's")
}

// splitPrincipal divides a match of "ISSUER/SUBJECT" at its last slash, which is not
// one of the two that begin an issuer's URL.
func splitPrincipal(t plan.TextMatch) (issuer, subject plan.TextMatch) {
	present := plan.TextMatch{Kind: plan.StringPresent}
	i := strings.LastIndexByte(t.Value, '/')
	if i > 0 && t.Value[i-1] == '/' || i > 0 && t.Value[i-1] == ':' {
		i = -1
	}
	whole := func(kind plan.StringKind, v string) plan.TextMatch {
		if v == "" && kind != plan.StringExact {
			return present
		}
		return plan.TextMatch{Kind: kind, Value: v}
	}
	switch {
	case t.Kind == plan.StringPrefix && i < 0:
		return t, present
	case t.Kind == plan.StringSuffix && i < 0:
		return present, t
	case i < 0:
		return present, present
	case t.Kind == plan.StringPrefix:
		return whole(plan.StringExact, t.Value[:i]), whole(plan.StringPrefix, t.Value[i+1:])
	case t.Kind == plan.StringSuffix:
		return whole(plan.StringSuffix, t.Value[:i]), whole(plan.StringExact, t.Value[i+1:])
	}
	return whole(plan.StringExact, t.Value[:i]), whole(plan.StringExact, t.Value[i+1:])
}

func listValue(m *matcherv3.StringMatcher) *matcherv3.ValueMatcher {
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_ListMatch{ListMatch: &matcherv3.ListMatcher{
		MatchPattern: &matcherv3.ListMatcher_OneOf{OneOf: &matcherv3.ValueMatcher{
			MatchPattern: &matcherv3.ValueMatcher_StringMatch{StringMatch: m},
		}},
	}}}
}

// textOrList matches a claim that is a text, or a list with such a text in it.
func textOrList(m *matcherv3.StringMatcher) *matcherv3.ValueMatcher {
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_OrMatch{OrMatch: &matcherv3.OrMatcher{
		ValueMatchers: []*matcherv3.ValueMatcher{
			{MatchPattern: &matcherv3.ValueMatcher_StringMatch{StringMatch: m}}, listValue(m),
		},
	}}}
}

func metadata(filter string, value *matcherv3.ValueMatcher, path ...string) *matcherv3.MetadataMatcher {
	out := &matcherv3.MetadataMatcher{Filter: filter, Value: value}
	for _, p := range path {
		out.Path = append(out.Path, &matcherv3.MetadataMatcher_PathSegment{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: p}})
	}
	return out
}

func headerText(name string, t plan.TextMatch, ignoreCase bool) *routev3.HeaderMatcher {
	if t.Kind == plan.StringPresent {
		return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}
	}
	m := textMatcher(t)
	m.IgnoreCase = ignoreCase
	return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: m}}
}

// textMatcher encodes one value; the one regular expression is a constant.
func textMatcher(t plan.TextMatch) *matcherv3.StringMatcher {
	switch t.Kind {
	case plan.StringPresent:
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: ".+"}}}
	case plan.StringPrefix:
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: t.Value}}
	case plan.StringSuffix:
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: t.Value}}
	case plan.StringContains:
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Contains{Contains: t.Value}}
	}
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: t.Value}}
}

func cidr(p netip.Prefix) *corev3.CidrRange {
	return &corev3.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(p.Bits()))}
}
