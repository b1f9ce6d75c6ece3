package compile

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	security "istio.io/api/security/v1beta1"

	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/plan"
)

// access is what policy says of the callers of one workload.
type access struct {
	mesh     *model.Mesh
	policies []*model.AuthorizationPolicy
	requests []*model.RequestAuthentication
	// keys are the key sets that requests refer to by address.
	keys map[string]string
	// providers are what CUSTOM policies can ask.
	providers map[string]*plan.ExtAuthz
}

func accessOf(w *model.World, wl *model.Workload) access {
	a := access{mesh: w.Mesh(), policies: w.AuthorizationPolicies(wl), requests: w.RequestAuthentications(wl), keys: map[string]string{}}
	a.providers = providersOf(w, a.policies)
	for _, r := range a.requests {
		for _, j := range r.Spec.JwtRules {
			if s := model.KeySource(j); s != "" {
				a.keys[s] = w.KeySet(s)
			}
		}
	}
	return a
}

func (a access) seal(p *model.Printer) {
	p.Number(uint64(len(a.policies)))
	for _, policy := range a.policies {
		p.Print(policy.Print)
	}
	p.Number(uint64(len(a.providers)))
	for _, name := range sortedKeys(a.providers) {
		p.Text(a.providers[name].String())
	}
	p.Number(uint64(len(a.requests)))
	for _, r := range a.requests {
		p.Print(r.Print)
	}
	for _, k := range sortedKeys(a.keys) {
		p.Text(k, a.keys[k])
	}
}

// guard puts the rules in force on chains to the workload. All chains share them.
func (a access) guard(chains []*plan.FilterChain) {
	requests, tokens, asks := a.rbac(), a.tokens(), a.asks()
	bytes := append(unasked(asks), plan.ForBytes(requests)...)
	for _, c := range chains {
		if c.HTTP != nil {
			c.HTTP.RBAC, c.HTTP.JWT, c.HTTP.Ask = requests, tokens, asks
		} else {
			c.TCP.RBAC = bytes
		}
	}
}

// rbac returns the rules in the order of their evaluation: AUDIT refuses nothing, so
// it may come first; then DENY, and ALLOW last.
//
// A CUSTOM policy refuses if nobody can be asked; see providerOf.
func (a access) rbac() []*plan.RBAC {
	var out []*plan.RBAC
	for _, step := range []struct {
		of security.AuthorizationPolicy_Action
		as plan.RBACAction
	}{
		{security.AuthorizationPolicy_CUSTOM, plan.Deny},
		{security.AuthorizationPolicy_AUDIT, plan.Audit},
		{security.AuthorizationPolicy_DENY, plan.Deny},
		{security.AuthorizationPolicy_ALLOW, plan.Allow},
	} {
		r := &plan.RBAC{Action: step.as}
		for _, p := range a.policies {
			if p.Spec.Action != step.of {
				continue
			}
			if step.of == security.AuthorizationPolicy_CUSTOM && a.providers[p.Spec.GetProvider().GetName()] != nil {
				continue
			}
			rules := a.rules(p, step.as)
			if p.DryRun {
				r.DryRun = true
				r.Shadow = append(r.Shadow, rules...)
			} else {
				r.Enforced = true
				r.Rules = append(r.Rules, rules...)
			}
		}
		if r.Enforced || r.DryRun {
			byName := func(a, b *plan.RBACRule) int { return strings.Compare(a.Name, b.Name) }
			slices.SortFunc(r.Rules, byName)
			slices.SortFunc(r.Shadow, byName)
			out = append(out, r)
		}
	}
	return out
}

// rules makes the rules of one policy.
func (a access) rules(p *model.AuthorizationPolicy, action plan.RBACAction) []*plan.RBACRule {
	var out []*plan.RBACRule
	for i, in := range p.Spec.Rules {
		if in == nil {
			continue
		}
		r := &plan.RBACRule{Name: fmt.Sprintf("ns[%s]-policy[%s]-rule[%d]", p.Namespace, p.Name, i)}
		m := &ruleMaker{access: a, namespace: p.Namespace}
		var whenTo, whenFrom plan.Conditions
		for _, w := range in.When {
			m.when(w, &whenTo, &whenFrom)
		}
		for _, t := range in.To {
			r.To = append(r.To, append(m.operation(t.GetOperation()), whenTo...))
		}
		if len(in.To) == 0 {
			r.To = []plan.Conditions{whenTo}
		}
		for _, f := range in.From {
			r.From = append(r.From, append(m.source(f.GetSource()), whenFrom...))
		}
		if len(in.From) == 0 {
			r.From = []plan.Conditions{whenFrom}
		}
		if m.broken && action == plan.Allow {
			continue // it never matches; the other actions match more without what is broken
		}
		r.To, r.From = unlessAny(r.To), unlessAny(r.From)
		out = append(out, r)
	}
	return out
}

// unlessAny returns nil if one of the alternatives always holds.
func unlessAny(list []plan.Conditions) []plan.Conditions {
	for _, c := range list {
		if len(c) == 0 {
			return nil
		}
	}
	return list
}

// ruleMaker turns the fields of one rule into conditions.
type ruleMaker struct {
	access
	namespace string
	// broken is set when a value can not be understood. Validation has refused such
	// policies; whoever gets around it gets less access and not more.
	broken bool
}

// texts adds conditions for a list of values and one of negated values.
func (m *ruleMaker) texts(out *plan.Conditions, attr plan.Attribute, key string, values, not []string, match func(string) []plan.TextMatch) {
	for i, list := range [...][]string{values, not} {
		if len(list) == 0 {
			continue
		}
		c := plan.Condition{Attr: attr, Key: key, Not: i == 1}
		for _, v := range list {
			c.Texts = append(c.Texts, match(v)...)
		}
		*out = append(*out, c)
	}
}

func (m *ruleMaker) nets(out *plan.Conditions, attr plan.Attribute, values, not []string) {
	for i, list := range [...][]string{values, not} {
		if len(list) == 0 {
			continue
		}
		c := plan.Condition{Attr: attr, Not: i == 1}
		for _, v := range list {
			if p, err := netip.ParsePrefix(v); err == nil {
				c.Nets = append(c.Nets, p.Masked())
			} else if ip, err := netip.ParseAddr(v); err == nil {
				c.Nets = append(c.Nets, netip.PrefixFrom(ip, ip.BitLen()))
			} else {
				m.broken = true
			}
		}
		if len(c.Nets) > 0 {
			*out = append(*out, c)
		}
	}
}

func (m *ruleMaker) ports(out *plan.Conditions, values, not []string) {
	for i, list := range [...][]string{values, not} {
		if len(list) == 0 {
			continue
		}
		c := plan.Condition{Attr: plan.AttrDestinationPort, Not: i == 1}
		for _, v := range list {
			n, err := strconv.ParseUint(v, 10, 16)
			if err != nil {
				m.broken = true
				continue
			}
			c.Ports = append(c.Ports, uint16(n))
		}
		if len(c.Ports) > 0 {
			*out = append(*out, c)
		}
	}
}

// source reads who may call.
func (m *ruleMaker) source(s *security.Source) plan.Conditions {
	var out plan.Conditions
	if s == nil {
		return nil
	}
	m.texts(&out, plan.AttrPrincipal, "", s.Principals, s.NotPrincipals, m.principal)
	m.texts(&out, plan.AttrPrincipal, "", s.Namespaces, s.NotNamespaces, namespaceMatch)
	m.texts(&out, plan.AttrPrincipal, "", s.ServiceAccounts, s.NotServiceAccounts, m.account)
	m.texts(&out, plan.AttrPrincipal, "", s.TrustDomains, s.NotTrustDomains, trustDomainMatch)
	m.texts(&out, plan.AttrRequestPrincipal, "", s.RequestPrincipals, s.NotRequestPrincipals, oneMatch)
	m.nets(&out, plan.AttrSourceIP, s.IpBlocks, s.NotIpBlocks)
	m.nets(&out, plan.AttrRemoteIP, s.RemoteIpBlocks, s.NotRemoteIpBlocks)
	return out
}

// operation reads what they may do.
func (m *ruleMaker) operation(o *security.Operation) plan.Conditions {
	var out plan.Conditions
	if o == nil {
		return nil
	}
	m.texts(&out, plan.AttrHost, "", o.Hosts, o.NotHosts, hostMatch)
	m.ports(&out, o.Ports, o.NotPorts)
	m.texts(&out, plan.AttrMethod, "", o.Methods, o.NotMethods, oneMatch)
	m.texts(&out, plan.AttrPath, "", o.Paths, o.NotPaths, pathMatch)
	return out
}

// when reads a condition into the half that knows its attribute.
func (m *ruleMaker) when(w *security.Condition, to, from *plan.Conditions) {
	values, not := w.GetValues(), w.GetNotValues()
	if len(values)+len(not) == 0 {
		return
	}
	switch key := w.GetKey(); key {
	case "source.ip":
		m.nets(from, plan.AttrSourceIP, values, not)
	case "remote.ip":
		m.nets(from, plan.AttrRemoteIP, values, not)
	case "source.namespace":
		m.texts(from, plan.AttrPrincipal, "", values, not, namespaceMatch)
	case "source.principal":
		m.texts(from, plan.AttrPrincipal, "", values, not, m.principal)
	case "source.serviceAccount":
		m.texts(from, plan.AttrPrincipal, "", values, not, m.account)
	case "source.trustDomain":
		m.texts(from, plan.AttrPrincipal, "", values, not, trustDomainMatch)
	case "request.auth.principal":
		m.texts(from, plan.AttrRequestPrincipal, "", values, not, oneMatch)
	case "request.auth.audiences":
		m.texts(from, plan.AttrClaim, "aud", values, not, oneMatch)
	case "request.auth.presenter":
		m.texts(from, plan.AttrClaim, "azp", values, not, oneMatch)
	case "destination.ip":
		m.nets(to, plan.AttrDestinationIP, values, not)
	case "destination.port":
		m.ports(to, values, not)
	case "connection.sni":
		m.texts(to, plan.AttrSNI, "", values, not, oneMatch)
	default:
		if name, ok := bracketed(key, "request.headers"); ok && len(name) == 1 {
			m.texts(from, plan.AttrHeader, strings.ToLower(name[0]), values, not, oneMatch)
		} else if path, ok := bracketed(key, "request.auth.claims"); ok {
			m.texts(from, plan.AttrClaim, strings.Join(path, "\x00"), values, not, oneMatch)
		} else if filter, ok := strings.CutPrefix(key, "experimental."); ok && strings.HasSuffix(filter, "]") && strings.Contains(filter, "[") {
			name, field, _ := strings.Cut(strings.TrimSuffix(filter, "]"), "[")
			m.texts(to, plan.AttrMetadata, name+"\x00"+field, values, not, oneMatch)
		} else {
			m.broken = true
		}
	}
}

// bracketed splits "attribute[a][b]" into a and b.
func bracketed(key, attribute string) ([]string, bool) {
	rest, ok := strings.CutPrefix(key, attribute+"[")
	if !ok || !strings.HasSuffix(rest, "]") || len(rest) == 1 {
		return nil, false
	}
	return strings.Split(strings.TrimSuffix(rest, "]"), "]["), true
}

// textMatch reads the one form of wildcard that policies have.
func textMatch(v string) plan.TextMatch {
	switch {
	case v == "*":
		return plan.TextMatch{Kind: plan.StringPresent}
	case strings.HasPrefix(v, "*"):
		return plan.TextMatch{Kind: plan.StringSuffix, Value: v[1:]}
	case strings.HasSuffix(v, "*"):
		return plan.TextMatch{Kind: plan.StringPrefix, Value: v[:len(v)-1]}
	}
	return plan.TextMatch{Kind: plan.StringExact, Value: v}
}

func oneMatch(v string) []plan.TextMatch { return []plan.TextMatch{textMatch(v)} }

// spiffe begins every name in a certificate; policies leave it out.
const spiffe = "spiffe://"

// principal matches a name in each trust domain that stands for the mesh's own, if
// the policy's does. Source: Istio, trustdomain.Bundle.
func (m *ruleMaker) principal(v string) []plan.TextMatch {
	v = strings.TrimPrefix(v, spiffe)
	t := textMatch(v)
	if t.Kind == plan.StringPresent || t.Kind == plan.StringSuffix {
		return []plan.TextMatch{t}
	}
	domain, rest, whole := strings.Cut(v, "/")
	own := append([]string{m.mesh.TrustDomain}, m.mesh.TrustDomainAliases...)
	if !whole || domain != "cluster.local" && !slices.Contains(own, domain) {
		t.Value = spiffe + t.Value
		return []plan.TextMatch{t}
	}
	var out []plan.TextMatch
	for _, d := range own {
		t := textMatch(d + "/" + rest)
		t.Value = spiffe + t.Value
		if !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	return out
}

// namespaceMatch compares the part of a name that follows "/ns/". No regular
// expression is made of what a policy says: a dot in a name is a dot.
func namespaceMatch(v string) []plan.TextMatch {
	t := textMatch(v)
	switch t.Kind {
	case plan.StringPresent:
		return []plan.TextMatch{t}
	case plan.StringExact:
		t.Value = "/ns/" + t.Value + "/"
	case plan.StringPrefix:
		t.Value = "/ns/" + t.Value
	case plan.StringSuffix:
		t.Value += "/sa/"
	}
	t.Kind = plan.StringContains
	return []plan.TextMatch{t}
}

// account compares the end of a name; one without a namespace is of the policy's.
func (m *ruleMaker) account(v string) []plan.TextMatch {
	namespace, name, ok := strings.Cut(v, "/")
	if !ok {
		namespace, name = m.namespace, v
	}
	return []plan.TextMatch{{Kind: plan.StringSuffix, Value: "/ns/" + namespace + "/sa/" + name}}
}

// trustDomainMatch compares the part before the first slash.
func trustDomainMatch(v string) []plan.TextMatch {
	t := textMatch(v)
	switch t.Kind {
	case plan.StringExact:
		t.Kind, t.Value = plan.StringPrefix, spiffe+t.Value+"/"
	case plan.StringPrefix:
		t.Value = spiffe + t.Value
	case plan.StringSuffix:
		t.Kind, t.Value = plan.StringContains, t.Value+"/ns/"
	}
	return []plan.TextMatch{t}
}

// hostMatch compares hosts without case. A host without a port stands for itself on
// any port: what is forbidden must not become allowed by writing ":80" behind it.
func hostMatch(v string) []plan.TextMatch {
	t := textMatch(strings.ToLower(v))
	out := []plan.TextMatch{t}
	if i := strings.LastIndexByte(t.Value, ':'); i >= 0 && i > strings.LastIndexByte(t.Value, ']') {
		return out
	}
	switch t.Kind {
	case plan.StringExact:
		out = append(out, plan.TextMatch{Kind: plan.StringPrefix, Value: t.Value + ":"})
	case plan.StringSuffix:
		out = append(out, plan.TextMatch{Kind: plan.StringContains, Value: t.Value + ":"})
	}
	return out
}

// pathMatch knows path templates beside wildcards.
func pathMatch(v string) []plan.TextMatch {
	if strings.Contains(v, "{*}") || strings.Contains(v, "{**}") {
		v = strings.ReplaceAll(strings.ReplaceAll(v, "{**}", "**"), "{*}", "*")
		return []plan.TextMatch{{Kind: plan.StringTemplate, Value: v}}
	}
	return oneMatch(v)
}
