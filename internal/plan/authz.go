package plan

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// RBAC decides about requests, or about connections, by rules of one action. A
// chain has a list of them, taken in order: the first that refuses ends it.
type RBAC struct {
	Action RBACAction
	// Enforced says that Rules are in force. An Allow in force without rules
	// refuses everything, so that having none is not the same as being empty.
	Enforced bool
	Rules    []*RBACRule // sorted by name, which is the order of precedence in logs
	// DryRun says that Shadow is evaluated too: its outcome is counted and logged,
	// and changes nothing.
	DryRun bool
	Shadow []*RBACRule
}

// RBACAction is what becomes of a request that a rule matches.
type RBACAction uint8

const (
	// Allow refuses what no rule matches.
	Allow RBACAction = iota
	// Deny refuses what a rule matches.
	Deny
	// Audit refuses nothing.
	Audit
)

// RBACRule matches if one of To and one of From does; an empty list does always.
type RBACRule struct {
	// Name is "ns[NAMESPACE]-policy[NAME]-rule[INDEX]"; details of refusals show it.
	Name string
	To   []Conditions
	From []Conditions
}

// Conditions must all hold; without any they do.
type Conditions []Condition

// Condition compares one attribute with values: one of them must match, or, with
// Not, none may. Which of the lists is used follows from the attribute. An
// attribute that is missing matches no value.
type Condition struct {
	Attr Attribute
	// Key is a header's name in lower case, the path of a claim joined by "\x00", or
	// for foreign metadata the name of a filter, "\x00" and a key.
	Key   string
	Not   bool
	Texts []TextMatch
	Nets  []netip.Prefix
	Ports []uint16
}

// Attribute is what a Condition looks at.
type Attribute uint8

const (
	// AttrPrincipal is the name in the client's certificate,
	// "spiffe://TD/ns/NS/sa/SA". Parts of it are compared as parts of the text: a
	// namespace as Contains "/ns/NS/", an account as Suffix "/ns/NS/sa/SA".
	AttrPrincipal       Attribute = iota
	AttrSourceIP                  // Nets: the connection's other end
	AttrRemoteIP                  // Nets: the client behind trusted proxies
	AttrDestinationIP             // Nets: where the client wanted to go
	AttrDestinationPort           // Ports: likewise
	AttrSNI
	// From here on they are known for requests only.
	AttrHost // in lower case, with the port if one was sent
	AttrMethod
	AttrPath // without query, in canonical form
	AttrHeader
	AttrRequestPrincipal // "ISSUER/SUBJECT" of a verified token
	AttrClaim            // of the token: a text, or any text of a list
	// AttrMetadata is what Envoy filters that this proxy does not have would set.
	AttrMetadata
	attrEnd
)

// OfRequest reports whether bytes alone do not have the attribute.
func (a Attribute) OfRequest() bool { return a >= AttrHost }

// OfSource reports whether conditions on the attribute stand in From.
func (a Attribute) OfSource() bool {
	switch a {
	case AttrPrincipal, AttrSourceIP, AttrRemoteIP, AttrHeader, AttrRequestPrincipal, AttrClaim:
		return true
	}
	return false
}

// TextMatch is one value of a Condition. Kind is one of Exact, Prefix, Suffix,
// Contains, Present, which is anything but "", and Template.
type TextMatch struct {
	Kind  StringKind
	Value string
}

// StringTemplate is for paths: "*" stands for one segment, "**" for any number of
// characters.
const StringTemplate StringKind = 100

// ForBytes returns what the rules mean for a connection that is not HTTP, as Istio
// does: an Allow rule with a condition on a request never matches, and the others
// keep what is left without such conditions, which makes them match more. Nil
// stays nil.
func ForBytes(in []*RBAC) []*RBAC {
	var out []*RBAC
	for _, r := range in {
		b := *r
		b.Rules, b.Shadow = rulesForBytes(r.Rules, r.Action), rulesForBytes(r.Shadow, r.Action)
		out = append(out, &b)
	}
	return out
}

func rulesForBytes(in []*RBACRule, action RBACAction) []*RBACRule {
	var out []*RBACRule
	for _, r := range in {
		if !r.ofRequest() {
			out = append(out, r)
		} else if action != Allow {
			out = append(out, &RBACRule{Name: r.Name, To: withoutRequest(r.To), From: withoutRequest(r.From)})
		}
	}
	return out
}

func (r *RBACRule) ofRequest() bool {
	return slices.ContainsFunc(slices.Concat(r.To, r.From), func(cs Conditions) bool {
		return slices.ContainsFunc(cs, func(c Condition) bool { return c.Attr.OfRequest() })
	})
}

func withoutRequest(in []Conditions) []Conditions {
	var out []Conditions
	for _, cs := range in {
		var left Conditions
		for _, c := range cs {
			if !c.Attr.OfRequest() {
				left = append(left, c)
			}
		}
		if len(left) == 0 {
			return nil // one alternative that always holds
		}
		out = append(out, left)
	}
	return out
}

// Validate checks one list of rules.
func (r *RBAC) Validate() error {
	var errs []error
	for _, list := range [...][]*RBACRule{r.Rules, r.Shadow} {
		for i, rule := range list {
			if i > 0 && list[i-1].Name >= rule.Name {
				errs = append(errs, fmt.Errorf("rule %s is not in order, or there twice", rule.Name))
			}
			errs = append(errs, rule.validate())
		}
	}
	if !r.Enforced && len(r.Rules) > 0 || !r.DryRun && len(r.Shadow) > 0 {
		errs = append(errs, fmt.Errorf("%s has rules that are not evaluated", r.Action))
	}
	return errors.Join(errs...)
}

func (r *RBACRule) validate() error {
	for _, from := range [...]bool{false, true} {
		list := r.To
		if from {
			list = r.From
		}
		for _, cs := range list {
			for _, c := range cs {
				switch {
				case c.Attr >= attrEnd || c.Attr.OfSource() != from:
					return fmt.Errorf("rule %s: a condition on %s is in the wrong place", r.Name, c.Attr)
				case len(c.Texts)+len(c.Nets)+len(c.Ports) == 0:
					return fmt.Errorf("rule %s: a condition on %s has no values", r.Name, c.Attr)
				}
			}
		}
	}
	return nil
}

func (a RBACAction) String() string { return [...]string{"allow", "deny", "audit"}[a] }

func (a Attribute) String() string {
	return [...]string{"principal", "ip", "remote-ip", "to-ip", "port", "sni",
		"host", "method", "path", "header", "request-principal", "claim", "metadata"}[a]
}

// rbacText writes a block of lines, one for each rule.
func rbacText(b *strings.Builder, indent string, list []*RBAC) {
	for _, r := range list {
		if r.Enforced {
			b.WriteString(indent + r.Action.String() + "\n")
			for _, rule := range r.Rules {
				b.WriteString(indent + "  " + rule.String() + "\n")
			}
		}
		if r.DryRun {
			b.WriteString(indent + r.Action.String() + " dry-run\n")
			for _, rule := range r.Shadow {
				b.WriteString(indent + "  " + rule.String() + "\n")
			}
		}
	}
}

// String returns the rule in one line; alternatives are separated by " | ".
func (r *RBACRule) String() string {
	w := words{r.Name}
	w.addIf(len(r.To) > 0, "to %s", joinedBy(r.To, " | "))
	w.addIf(len(r.From) > 0, "from %s", joinedBy(r.From, " | "))
	return w.String()
}

func joinedBy(list []Conditions, sep string) string {
	var out []string
	for _, c := range list {
		out = append(out, c.String())
	}
	return strings.Join(out, sep)
}

func (cs Conditions) String() string {
	if len(cs) == 0 {
		return "any"
	}
	var w words
	for _, c := range cs {
		w.add("%s", c)
	}
	return w.String()
}

// String returns the condition as "attribute=value,value".
func (c Condition) String() string {
	var values []string
	for _, t := range c.Texts {
		values = append(values, t.String())
	}
	for _, n := range c.Nets {
		values = append(values, n.String())
	}
	for _, p := range c.Ports {
		values = append(values, strconv.Itoa(int(p)))
	}
	op := "="
	if c.Not {
		op = "!="
	}
	name := c.Attr.String()
	if c.Key != "" {
		name += "[" + strings.ReplaceAll(c.Key, "\x00", ".") + "]"
	}
	return name + op + strings.Join(values, ",")
}

func (t TextMatch) String() string {
	switch t.Kind {
	case StringPresent:
		return "*"
	case StringPrefix:
		return t.Value + "*"
	case StringSuffix:
		return "*" + t.Value
	case StringContains:
		return "*" + t.Value + "*"
	case StringTemplate:
		return "template:" + t.Value
	}
	return t.Value
}
