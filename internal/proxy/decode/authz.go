package decode

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httprbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	netrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	uritemplatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/heddle-mesh/heddle/internal/plan"
)

func (r *reader) httpRBAC(path string, m *httprbacv3.RBAC) *plan.RBAC {
	r.only(path, m, "rules", "shadow_rules",
		"rules_stat_prefix", "shadow_rules_stat_prefix", "track_per_rule_stats") // names of counters
	return r.rbac(path, m.GetRules(), m.GetShadowRules())
}

func (r *reader) networkRBAC(path string, m *netrbacv3.RBAC) *plan.RBAC {
	r.only(path, m, "rules", "shadow_rules", "stat_prefix", "shadow_rules_stat_prefix",
		"enforcement_type") // the proxy decides once, before the first byte
	return r.rbac(path, m.GetRules(), m.GetShadowRules())
}

// rbac reads both lists of rules, which have the same action.
func (r *reader) rbac(path string, rules, shadow *rbacv3.RBAC) *plan.RBAC {
	out := &plan.RBAC{Enforced: rules != nil, DryRun: shadow != nil}
	if rules != nil && shadow != nil && rules.GetAction() != shadow.GetAction() {
		r.fail(join(path, "shadow_rules.action"), "differs from that of rules")
	}
	for _, m := range []*rbacv3.RBAC{rules, shadow} {
		if m == nil {
			continue
		}
		switch m.GetAction() {
		case rbacv3.RBAC_ALLOW:
			out.Action = plan.Allow
		case rbacv3.RBAC_DENY:
			out.Action = plan.Deny
		case rbacv3.RBAC_LOG:
			out.Action = plan.Audit
		default:
			r.fail(join(path, "rules.action"), "%v is not known", m.GetAction())
		}
	}
	out.Rules = r.rbacRules(join(path, "rules"), rules)
	out.Shadow = r.rbacRules(join(path, "shadow_rules"), shadow)
	return out
}

func (r *reader) rbacRules(path string, m *rbacv3.RBAC) []*plan.RBACRule {
	if m == nil {
		return nil
	}
	r.only(path, m, "action", "policies")
	var out []*plan.RBACRule
	for _, name := range slices.Sorted(maps.Keys(m.GetPolicies())) {
		p, at := m.GetPolicies()[name], path+".policies["+name+"]"
		r.only(at, p, "permissions", "principals")
		rule := &plan.RBACRule{Name: name}
		if len(p.GetPermissions()) == 0 || len(p.GetPrincipals()) == 0 {
			r.fail(at, "has no permissions or no principals")
		}
		for i, permission := range p.GetPermissions() {
			rule.To = append(rule.To, r.permission(index(at, "permissions", i), permission))
		}
		for i, principal := range p.GetPrincipals() {
			rule.From = append(rule.From, r.principal(index(at, "principals", i), principal))
		}
		rule.To, rule.From = unlessAny(rule.To), unlessAny(rule.From)
		out = append(out, rule)
	}
	return out
}

// unlessAny returns nil if one of the alternatives always holds.
func unlessAny(list []plan.Conditions) []plan.Conditions {
	if slices.ContainsFunc(list, func(c plan.Conditions) bool { return len(c) == 0 }) {
		return nil
	}
	return list
}

// leaf is a condition with one value, before those of a list are joined.
type leaf = plan.Condition

// joined makes one condition of the alternatives, which must look at the same
// attribute.
func (r *reader) joined(path string, leaves []leaf) plan.Condition {
	if len(leaves) == 0 {
		r.fail(path, "has no alternatives")
		return plan.Condition{}
	}
	out := plan.Condition{Attr: leaves[0].Attr, Key: leaves[0].Key}
	for _, l := range leaves {
		if l.Attr != out.Attr || l.Key != out.Key {
			r.fail(path, "mixes conditions on %s and %s", out.Attr, l.Attr)
		}
		out.Texts, out.Nets, out.Ports = append(out.Texts, l.Texts...), append(out.Nets, l.Nets...), append(out.Ports, l.Ports...)
	}
	return out
}

// permission reads Istio's form: and_rules of or_rules and of negated or_rules.
func (r *reader) permission(path string, m *rbacv3.Permission) plan.Conditions {
	if m.GetAny() {
		return nil
	}
	parts := []*rbacv3.Permission{m}
	if and := m.GetAndRules(); and != nil {
		parts, path = and.GetRules(), join(path, "and_rules")
	}
	var out plan.Conditions
	for i, p := range parts {
		at := index(path, "rules", i)
		if p.GetAny() {
			continue
		}
		not := p.GetNotRule() != nil
		if not {
			p = p.GetNotRule()
		}
		alternatives := []*rbacv3.Permission{p}
		if or := p.GetOrRules(); or != nil {
			alternatives = or.GetRules()
		}
		var leaves []leaf
		for _, a := range alternatives {
			leaves = append(leaves, r.permissionLeaf(at, a))
		}
		c := r.joined(at, leaves)
		c.Not = not
		out = append(out, c)
	}
	return out
}

func (r *reader) permissionLeaf(path string, m *rbacv3.Permission) leaf {
	switch rule := m.GetRule().(type) {
	case *rbacv3.Permission_Header:
		name, t := r.headerText(path, rule.Header)
		switch name {
		case ":authority", "host":
			t.Value = strings.ToLower(t.Value)
			return text(plan.AttrHost, "", t)
		case ":method":
			return text(plan.AttrMethod, "", t)
		}
		r.fail(path, "header %q is not for permissions", name)
	case *rbacv3.Permission_UrlPath:
		return text(plan.AttrPath, "", r.text(join(path, "url_path"), rule.UrlPath.GetPath()))
	case *rbacv3.Permission_UriTemplate:
		t := &uritemplatev3.UriTemplateMatchConfig{}
		r.unpack(join(path, "uri_template"), rule.UriTemplate.GetTypedConfig(), t)
		return text(plan.AttrPath, "", plan.TextMatch{Kind: plan.StringTemplate, Value: t.GetPathTemplate()})
	case *rbacv3.Permission_DestinationIp:
		return leaf{Attr: plan.AttrDestinationIP, Nets: r.cidr(path, rule.DestinationIp)}
	case *rbacv3.Permission_DestinationPort:
		return leaf{Attr: plan.AttrDestinationPort, Ports: []uint16{r.port(path, rule.DestinationPort)}}
	case *rbacv3.Permission_RequestedServerName:
		return text(plan.AttrSNI, "", r.text(path, rule.RequestedServerName))
	case *rbacv3.Permission_Metadata:
		path := join(path, "metadata")
		key, ok := segments(rule.Metadata)
		value := rule.Metadata.GetValue()
		if !ok || len(key) != 1 || rule.Metadata.GetInvert() {
			r.fail(path, "is not a match of one key")
		}
		key = append([]string{rule.Metadata.GetFilter()}, key...)
		if list := value.GetListMatch(); list != nil {
			t := r.text(path, list.GetOneOf().GetStringMatch())
			t.Value = "[" + t.Value + "]"
			return text(plan.AttrMetadata, strings.Join(key, "\x00"), t)
		}
		return text(plan.AttrMetadata, strings.Join(key, "\x00"), r.text(path, value.GetStringMatch()))
	default:
		r.fail(path, "%T is not supported", rule)
	}
	return leaf{}
}

func text(attr plan.Attribute, key string, t plan.TextMatch) leaf {
	return leaf{Attr: attr, Key: key, Texts: []plan.TextMatch{t}}
}

func (r *reader) principal(path string, m *rbacv3.Principal) plan.Conditions {
	if m.GetAny() {
		return nil
	}
	parts := []*rbacv3.Principal{m}
	if and := m.GetAndIds(); and != nil {
		parts, path = and.GetIds(), join(path, "and_ids")
	}
	var out plan.Conditions
	for i, p := range parts {
		at := index(path, "ids", i)
		if p.GetAny() {
			continue
		}
		not := p.GetNotId() != nil
		if not {
			p = p.GetNotId()
		}
		alternatives := []*rbacv3.Principal{p}
		if or := p.GetOrIds(); or != nil {
			alternatives = or.GetIds()
		}
		var leaves []leaf
		for _, a := range alternatives {
			leaves = append(leaves, r.principalLeaf(at, a))
		}
		c := r.joined(at, leaves)
		c.Not = not
		out = append(out, c)
	}
	return out
}

// peerPrincipal is the state under which Istio keeps the name in the certificate.
const peerPrincipal = "io.istio.peer_principal"

func (r *reader) principalLeaf(path string, m *rbacv3.Principal) leaf {
	switch id := m.GetIdentifier().(type) {
	case *rbacv3.Principal_Authenticated_:
		if id.Authenticated.GetPrincipalName() == nil {
			return text(plan.AttrPrincipal, "", plan.TextMatch{Kind: plan.StringPresent})
		}
		return text(plan.AttrPrincipal, "", r.text(path, id.Authenticated.GetPrincipalName()))
	case *rbacv3.Principal_FilterState:
		if id.FilterState.GetKey() != peerPrincipal || id.FilterState.GetStringMatch() == nil {
			r.fail(path, "filter state %q is not supported", id.FilterState.GetKey())
			return leaf{}
		}
		return text(plan.AttrPrincipal, "", r.text(path, id.FilterState.GetStringMatch()))
	case *rbacv3.Principal_DirectRemoteIp:
		return leaf{Attr: plan.AttrSourceIP, Nets: r.cidr(path, id.DirectRemoteIp)}
	case *rbacv3.Principal_RemoteIp:
		return leaf{Attr: plan.AttrRemoteIP, Nets: r.cidr(path, id.RemoteIp)}
	case *rbacv3.Principal_Header:
		name, t := r.headerText(path, id.Header)
		return text(plan.AttrHeader, strings.ToLower(name), t)
	case *rbacv3.Principal_Metadata:
		path, t := r.claim(path, id.Metadata)
		return text(plan.AttrClaim, path, t)
	case *rbacv3.Principal_AndIds:
		if ids := id.AndIds.GetIds(); len(ids) == 2 && ids[0].GetMetadata() != nil && ids[1].GetMetadata() != nil {
			one, issuer := r.claim(path, ids[0].GetMetadata())
			two, subject := r.claim(path, ids[1].GetMetadata())
			if t, ok := joinPrincipal(issuer, subject); ok && one == "iss" && two == "sub" {
				return text(plan.AttrRequestPrincipal, "", t)
			}
		}
		r.fail(path, "is not a match of issuer and subject")
	default:
		r.fail(path, "%T is not supported", id)
	}
	return leaf{}
}

// joinPrincipal puts together what encode divides: matches of issuer and subject.
func joinPrincipal(issuer, subject plan.TextMatch) (plan.TextMatch, bool) {
	i, s := issuer.Kind, subject.Kind
	both := issuer.Value + "/" + subject.Value
	switch {
	case i == plan.StringPresent && s == plan.StringPresent:
		return plan.TextMatch{Kind: plan.StringPresent}, true
	case i == plan.StringExact && s == plan.StringExact:
		return plan.TextMatch{Kind: plan.StringExact, Value: both}, true
	case i == plan.StringExact && (s == plan.StringPrefix || s == plan.StringPresent):
		return plan.TextMatch{Kind: plan.StringPrefix, Value: both}, true
	case i == plan.StringPrefix && s == plan.StringPresent:
		return issuer, true
	case (i == plan.StringSuffix || i == plan.StringPresent) && s == plan.StringExact:
		return plan.TextMatch{Kind: plan.StringSuffix, Value: both}, true
	case i == plan.StringPresent && s == plan.StringSuffix:
		return subject, true
	}
	return plan.TextMatch{}, false
}

// claim reads a match of a verified token: its path and its text, which may stand in
// a list.
func (r *reader) claim(path string, m *matcherv3.MetadataMatcher) (string, plan.TextMatch) {
	key, ok := r.claimPath(join(path, "metadata"), m)
	if !ok {
		return "", plan.TextMatch{}
	}
	if m.GetInvert() {
		r.fail(join(path, "metadata"), "is negated")
	}
	v := m.GetValue()
	if or := v.GetOrMatch().GetValueMatchers(); len(or) > 0 {
		v = or[0]
		for _, other := range or[1:] {
			if t := other.GetListMatch().GetOneOf().GetStringMatch(); t == nil || r.text(path, t) != r.text(path, v.GetStringMatch()) {
				r.fail(join(path, "metadata.value"), "is not one text, alone or in a list")
			}
		}
	}
	t := v.GetStringMatch()
	if list := v.GetListMatch(); list != nil {
		t = list.GetOneOf().GetStringMatch()
	}
	return key, r.text(join(path, "metadata.value"), t)
}

// claimPath reads which claim of a verified token a match is about.
func (r *reader) claimPath(path string, m *matcherv3.MetadataMatcher) (string, bool) {
	key, ok := segments(m)
	if !ok || m.GetFilter() != "envoy.filters.http.jwt_authn" || len(key) < 2 || key[0] != "payload" {
		r.fail(path, "is not a claim of jwt_authn's payload")
		return "", false
	}
	return strings.Join(key[1:], "\x00"), true
}

func segments(m *matcherv3.MetadataMatcher) ([]string, bool) {
	var out []string
	for _, s := range m.GetPath() {
		if s.GetKey() == "" {
			return nil, false
		}
		out = append(out, s.GetKey())
	}
	return out, true
}

func (r *reader) headerText(path string, m *routev3.HeaderMatcher) (string, plan.TextMatch) {
	path = join(path, "header")
	r.only(path, m, "name", "string_match", "present_match")
	if m.GetName() == "" {
		r.fail(path, "has no name")
	}
	switch spec := m.GetHeaderMatchSpecifier().(type) {
	case *routev3.HeaderMatcher_PresentMatch:
		if spec.PresentMatch {
			return m.GetName(), plan.TextMatch{Kind: plan.StringPresent}
		}
	case *routev3.HeaderMatcher_StringMatch:
		return m.GetName(), r.text(path, spec.StringMatch)
	}
	r.fail(path, "is matched by neither presence nor text")
	return m.GetName(), plan.TextMatch{}
}

// text reads one value. Regular expressions are refused, but for those that Istio
// writes for a text with something before or behind it.
func (r *reader) text(path string, m *matcherv3.StringMatcher) plan.TextMatch {
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return plan.TextMatch{Kind: plan.StringExact, Value: p.Exact}
	case *matcherv3.StringMatcher_Prefix:
		return plan.TextMatch{Kind: plan.StringPrefix, Value: p.Prefix}
	case *matcherv3.StringMatcher_Suffix:
		return plan.TextMatch{Kind: plan.StringSuffix, Value: p.Suffix}
	case *matcherv3.StringMatcher_Contains:
		return plan.TextMatch{Kind: plan.StringContains, Value: p.Contains}
	case *matcherv3.StringMatcher_SafeRegex:
		if t, ok := fromRegex(p.SafeRegex.GetRegex()); ok {
			return t
		}
		r.fail(path, "the regular expression %q is not supported here", p.SafeRegex.GetRegex())
	default:
		r.fail(path, "is no match of a text")
	}
	return plan.TextMatch{}
}

// fromRegex understands ".+", and ".*" before or behind a text. A dot in that text
// is taken for a dot, which is what whoever wrote the policy meant.
func fromRegex(s string) (plan.TextMatch, bool) {
	if s == ".+" || s == ".*" {
		return plan.TextMatch{Kind: plan.StringPresent}, true
	}
	// A namespace with a star at its end, or at its beginning.
	if name, ok := strings.CutSuffix(s, ".*/.*"); ok && strings.HasPrefix(name, ".*/ns/") {
		s = name + ".*"
	} else if name, ok := strings.CutPrefix(s, ".*/ns/.*"); ok && strings.HasSuffix(name, "/.*") {
		s = ".*" + strings.TrimSuffix(name, ".*") + "sa/.*"
	}
	rest, front := strings.CutPrefix(s, ".*")
	if after, ok := strings.CutPrefix(rest, "spiffe://.*"); ok && !front {
		rest, front = after, true
	}
	rest, behind := strings.CutSuffix(rest, ".*")
	literal := strings.ReplaceAll(rest, `\.`, ".")
	if literal == "" || strings.ContainsAny(literal, `\+*?()|[]{}^$`) {
		return plan.TextMatch{}, false
	}
	switch {
	case front && behind:
		return plan.TextMatch{Kind: plan.StringContains, Value: literal}, true
	case front:
		return plan.TextMatch{Kind: plan.StringSuffix, Value: literal}, true
	case behind:
		return plan.TextMatch{Kind: plan.StringPrefix, Value: literal}, true
	}
	return plan.TextMatch{Kind: plan.StringExact, Value: literal}, true
}

func (r *reader) cidr(path string, m *corev3.CidrRange) []netip.Prefix {
	ip, err := netip.ParseAddr(m.GetAddressPrefix())
	if err != nil || m.GetPrefixLen().GetValue() > uint32(ip.BitLen()) {
		r.fail(path, "%s/%d is not a range of addresses", m.GetAddressPrefix(), m.GetPrefixLen().GetValue())
		return nil
	}
	return []netip.Prefix{netip.PrefixFrom(ip, int(m.GetPrefixLen().GetValue())).Masked()}
}
