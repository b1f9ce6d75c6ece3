package validate

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	securityv1beta1 "istio.io/api/security/v1beta1"
)

func (c *checker) authorizationPolicy(p *securityv1beta1.AuthorizationPolicy) {
	c.targets(p.Selector, p.TargetRef, p.TargetRefs)
	custom := p.Action == securityv1beta1.AuthorizationPolicy_CUSTOM
	deny := p.Action == securityv1beta1.AuthorizationPolicy_DENY
	provider := p.GetProvider()
	switch {
	case (custom || deny) && len(p.Rules) == 0:
		c.err("spec.rules", "a policy with action "+p.Action.String()+" and no rules never acts", "write rules: [{}] to match every request")
	case custom && provider.GetName() == "":
		c.err("spec.provider.name", "missing", "action CUSTOM asks a provider of the mesh's configuration")
	}
	if provider != nil && !custom {
		c.err("spec.provider", "action "+p.Action.String()+" asks no provider", "remove it, or use action CUSTOM")
	}
	for i, r := range p.Rules {
		c.rule(at("spec.rules", i), r, custom, deny)
	}
}

func (c *checker) rule(path string, r *securityv1beta1.Rule, custom, deny bool) {
	for field, n := range map[string]int{"from": len(r.From), "to": len(r.To)} {
		if n == 0 && c.written(path+"."+field) {
			c.err(path+"."+field, "empty", "leave it out to match all")
		}
	}
	hasFrom, hasTo, tcpFrom, tcpTo := false, false, false, false
	for i, f := range r.From {
		field := at(path+".from", i) + ".source"
		if f.Source == nil {
			c.err(field, "missing", "")
			continue
		}
		hasFrom = true
		if c.source(field, f.Source, custom) {
			tcpFrom = true
		}
	}
	for i, t := range r.To {
		field := at(path+".to", i) + ".operation"
		if t.Operation == nil {
			c.err(field, "missing", "")
			continue
		}
		hasTo = true
		if c.operation(field, t.Operation) {
			tcpTo = true
		}
	}
	for i, w := range r.When {
		c.condition(at(path+".when", i), w, custom)
	}
	if deny && (hasFrom && !hasTo && !tcpFrom || hasTo && !tcpTo) {
		c.warn(path, "a DENY rule on what only HTTP has denies all connections that are not HTTP", "name the ports that it is for in to.operation.ports")
	}
}

// named is a list of values under the name of its field.
type named struct {
	name   string
	values []string
}

func (c *checker) noEmpty(path string, lists []named) (any bool) {
	for _, l := range lists {
		any = any || len(l.values) > 0
		for i, v := range l.values {
			if v == "" {
				c.err(at(path+"."+l.name, i), "empty", "")
			}
		}
	}
	return any
}

// source checks where a request comes from, and reports whether a condition
// also holds for TCP.
func (c *checker) source(path string, s *securityv1beta1.Source, custom bool) (tcp bool) {
	identity := []named{{"principals", s.Principals}, {"notPrincipals", s.NotPrincipals},
		{"namespaces", s.Namespaces}, {"notNamespaces", s.NotNamespaces}}
	domains := []named{{"trustDomains", s.TrustDomains}, {"notTrustDomains", s.NotTrustDomains}}
	accounts := []named{{"serviceAccounts", s.ServiceAccounts}, {"notServiceAccounts", s.NotServiceAccounts}}
	requests := []named{{"requestPrincipals", s.RequestPrincipals}, {"notRequestPrincipals", s.NotRequestPrincipals}}
	addresses := []named{{"ipBlocks", s.IpBlocks}, {"notIpBlocks", s.NotIpBlocks},
		{"remoteIpBlocks", s.RemoteIpBlocks}, {"notRemoteIpBlocks", s.NotRemoteIpBlocks}}
	if !c.noEmpty(path, slices.Concat(identity, domains, accounts, requests, addresses)) {
		c.err(path, "empty", "leave from out to match every source")
	}
	for _, l := range addresses {
		for i, a := range l.values {
			c.address(at(path+"."+l.name, i), a)
		}
	}
	if custom {
		for _, l := range slices.Concat(identity, domains, requests, accounts) {
			if len(l.values) > 0 {
				c.err(path+"."+l.name, "action CUSTOM cannot match it", "the provider is to check it")
			}
		}
	}
	if len(s.ServiceAccounts)+len(s.NotServiceAccounts) > 0 {
		for _, l := range identity {
			if len(l.values) > 0 {
				c.err(path+"."+l.name, "serviceAccounts excludes principals and namespaces", "keep one kind of identity")
			}
		}
	}
	c.accounts(path, accounts)
	return slices.ContainsFunc(slices.Concat(identity, domains, accounts, addresses), func(l named) bool { return len(l.values) > 0 })
}

// accounts checks names of service accounts, "name" or "namespace/name".
func (c *checker) accounts(path string, lists []named) {
	const longest = 320
	for _, l := range lists {
		for i, v := range l.values {
			if strings.Count(v, "/") > 1 || strings.Contains(v, "*") || len(v) > longest {
				c.err(at(path+"."+l.name, i), fmt.Sprintf("%q is no service account", v), "write NAME or NAMESPACE/NAME; there are no wildcards")
			}
		}
	}
}

func (c *checker) address(path, a string) {
	if strings.Contains(a, "/") {
		if _, err := netip.ParsePrefix(a); err != nil {
			c.err(path, fmt.Sprintf("%q is no CIDR block", a), `such as "10.1.0.0/16"`)
		}
		return
	}
	if a != "" {
		c.ip(path, a)
	}
}

func (c *checker) operation(path string, o *securityv1beta1.Operation) (tcp bool) {
	ports := []named{{"ports", o.Ports}, {"notPorts", o.NotPorts}}
	paths := []named{{"paths", o.Paths}, {"notPaths", o.NotPaths}}
	rest := []named{{"methods", o.Methods}, {"notMethods", o.NotMethods}, {"hosts", o.Hosts}, {"notHosts", o.NotHosts}}
	if !c.noEmpty(path, slices.Concat(ports, paths, rest)) {
		c.err(path, "empty", "leave to out to match every operation")
	}
	for _, l := range ports {
		for i, p := range l.values {
			c.portText(at(path+"."+l.name, i), p)
		}
	}
	for _, l := range paths {
		for i, p := range l.values {
			if isTemplate(p) && badTemplate.MatchString(p) {
				c.err(at(path+"."+l.name, i), fmt.Sprintf("%q mixes kinds of wildcards", p), "a path template has {*} and {**} only")
			}
		}
	}
	return len(o.Ports)+len(o.NotPorts) > 0
}

func (c *checker) portText(path, p string) {
	if _, err := strconv.ParseUint(p, 10, 16); err != nil && p != "" {
		c.err(path, fmt.Sprintf("%q is no port", p), "")
	}
}

func isTemplate(path string) bool {
	return strings.Contains(path, "{*}") || strings.Contains(path, "{**}")
}

// badTemplate finds what Envoy's URI templates have, and Istio's do not: named
// variables and bare stars.
var badTemplate = regexp.MustCompile(`\{\w+=\*\*?\}|\{\w*\}|/\*\*?|\*\*?/`)

// Attributes of conditions. A bracket means that a key follows.
const (
	attrHeader  = "request.headers["
	attrClaims  = "request.auth.claims["
	attrEnvoy   = "experimental.envoy.filters."
	attrAddress = "source.ip remote.ip destination.ip"
	attrTexts   = "source.namespace source.principal source.trustDomain request.auth.principal request.auth.audiences request.auth.presenter connection.sni"
	attrAll     = "request.headers[], source.ip, remote.ip, source.namespace, source.principal, source.serviceAccount, source.trustDomain, request.auth.principal, request.auth.audiences, request.auth.presenter, request.auth.claims[], destination.ip, destination.port, connection.sni"
)

func (c *checker) condition(path string, w *securityv1beta1.Condition, custom bool) {
	if custom && (w.Key == "source.namespace" || w.Key == "source.principal" || w.Key == "source.serviceAccount" || strings.HasPrefix(w.Key, "request.auth.")) {
		c.err(path+".key", "action CUSTOM cannot match "+w.Key, "the provider is to check it")
	}
	if w.Key == "" {
		c.err(path+".key", "missing", "known are "+attrAll)
		return
	}
	if len(w.Values) == 0 && len(w.NotValues) == 0 {
		c.err(path, "the condition has no values", "give values or notValues")
		return
	}
	lists := []named{{"values", w.Values}, {"notValues", w.NotValues}}
	c.noEmpty(path, lists)
	c.attribute(path, w.Key, lists)
}

func (c *checker) attribute(path, attr string, lists []named) {
	bracket := func(prefix string) bool {
		name, _, _ := strings.Cut(prefix, "[")
		return strings.HasPrefix(attr, name)
	}
	is := func(list string) bool { return slices.Contains(strings.Fields(list), attr) }
	switch {
	case bracket(attrHeader), bracket(attrClaims), strings.HasPrefix(attr, attrEnvoy):
		open := strings.Index(attr, "[")
		if open <= 0 || !strings.HasSuffix(attr, "]") || open >= len(attr)-2 {
			c.err(path+".key", fmt.Sprintf("%q names no key", attr), "write ATTRIBUTE[KEY]")
		}
	case is(attrAddress):
		for _, l := range lists {
			for i, v := range l.values {
				c.address(at(path+"."+l.name, i), v)
			}
		}
	case attr == "destination.port":
		for _, l := range lists {
			for i, v := range l.values {
				c.portText(at(path+"."+l.name, i), v)
			}
		}
	case attr == "source.serviceAccount":
		c.accounts(path, lists)
	case is(attrTexts):
	case attr == "destination.namespace":
		c.err(path+".key", "a policy is for its own namespace", "move the policy")
	case strings.HasPrefix(attr, "destination.labels"):
		c.err(path+".key", "a policy is for the workloads that it selects", "use selector")
	default:
		c.err(path+".key", fmt.Sprintf("attribute %q is unknown", attr), "known are "+attrAll)
	}
}
