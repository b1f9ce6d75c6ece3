// Package rbac decides who may do what, by the rules of a chain.
//
// Rules are compiled once, when a chain is made. [Engine.Decide] then looks only at
// the rules that can match: each rule is filed under values that a request must have
// for it, of the attribute that tells it best from the others, so that ten thousand
// rules cost little more than one. What is found that way is still compared in full.
//
// A decision is pure: it depends on its Query and the rules alone, allocates nothing
// and can not fail. A value that is missing matches nothing, and an attribute that
// does not exist for bytes is missing there; package plan says how rules are meant
// for bytes before they get here.
package rbac

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// Engine holds the compiled rules of one chain. It is immutable.
type Engine struct {
	steps []step
	// NeedsRemote says that a rule asks for Query.Remote.
	NeedsRemote bool
}

// step is one list of rules with its action.
type step struct {
	action        plan.RBACAction
	rules, shadow *Set // nil if not evaluated
}

// Verdict is what was decided, and why.
type Verdict struct {
	Denied bool
	// Details is "rbac_access_denied_matched_policy[…]" if Denied.
	Details string
	// Shadow tells of the last list in dry run, if there was one.
	Shadow Shadow
}

// Shadow is what a list in dry run would have decided.
type Shadow struct {
	Evaluated bool
	Denied    bool
	Action    plan.RBACAction
	Rule      string // that matched, or ""
}

// New compiles lists of rules; nil is returned for none.
func New(lists []*plan.RBAC) *Engine {
	if len(lists) == 0 {
		return nil
	}
	e := &Engine{}
	for _, l := range lists {
		s := step{action: l.Action}
		if l.Enforced {
			s.rules = NewSet(l.Rules)
		}
		if l.DryRun {
			s.shadow = NewSet(l.Shadow)
		}
		e.NeedsRemote = e.NeedsRemote || needsRemote(l.Rules) || needsRemote(l.Shadow)
		e.steps = append(e.steps, s)
	}
	return e
}

func needsRemote(rules []*plan.RBACRule) bool {
	for _, r := range rules {
		for _, cs := range r.From {
			for _, c := range cs {
				if c.Attr == plan.AttrRemoteIP {
					return true
				}
			}
		}
	}
	return false
}

// none stands for a rule where an Allow list matched nothing.
const none = "rbac_access_denied_matched_policy[none]"

// Decide takes the lists in order; the first that refuses is the last one asked.
func (e *Engine) Decide(q *Query) Verdict {
	var v Verdict
	for i := range e.steps {
		s := &e.steps[i]
		if s.shadow != nil {
			r := s.shadow.Match(q)
			v.Shadow = Shadow{Evaluated: true, Action: s.action, Denied: denies(s.action, r != nil)}
			if r != nil {
				v.Shadow.Rule = r.name
			}
		}
		if s.rules == nil || s.action == plan.Audit {
			continue
		}
		r := s.rules.Match(q)
		if !denies(s.action, r != nil) {
			continue
		}
		v.Denied, v.Details = true, none
		if r != nil {
			v.Details = r.details
		}
		break
	}
	return v
}

func denies(a plan.RBACAction, matched bool) bool {
	return a == plan.Allow && !matched || a == plan.Deny && matched
}

// rule is a rule with its conditions compiled. What a decision reads of it lies close
// together: with many rules it is memory that takes the time.
type rule struct {
	to, from      []condition
	name, details string
}

// condition is a plan.Condition that can be asked.
type condition struct {
	attr plan.Attribute
	not  bool
	last bool            // of an alternative
	kind plan.StringKind // of value
	// value is compared with if more is nil.
	value string
	more  *more
}

// more is what a condition has beyond one text.
type more struct {
	key   key
	texts texts
	nets  []netip.Prefix
	ports []uint16
}

func compile(r *plan.RBACRule) *rule {
	n := 0
	var b strings.Builder
	for _, list := range [...][]plan.Conditions{r.To, r.From} {
		for _, cs := range list {
			n += len(cs)
			for _, c := range cs {
				if isSimple(&c) {
					b.WriteString(c.Texts[0].Value)
				}
			}
		}
	}
	arena, all := b.String(), make([]condition, 0, n)
	side := func(list []plan.Conditions) []condition {
		if slices.ContainsFunc(list, func(cs plan.Conditions) bool { return len(cs) == 0 }) {
			return nil // it always holds
		}
		from := len(all)
		for _, cs := range list {
			for i, c := range cs {
				k := condition{attr: c.Attr, not: c.Not, last: i == len(cs)-1}
				if isSimple(&c) {
					k.kind = c.Texts[0].Kind
					k.value, arena = arena[:len(c.Texts[0].Value)], arena[len(c.Texts[0].Value):]
				} else {
					k.more = &more{key: keyOf(c), texts: newTexts(c.Texts), nets: c.Nets, ports: c.Ports}
				}
				all = append(all, k)
			}
		}
		return all[from:len(all):len(all)]
	}
	out := &rule{name: r.Name, details: "rbac_access_denied_matched_policy[" + r.Name + "]"}
	out.to = side(r.To)
	out.from = side(r.From)
	return out
}

// isSimple reports whether a condition compares with one text, and needs no key.
func isSimple(c *plan.Condition) bool { return c.Key == "" && len(c.Texts) == 1 }

func (r *rule) matches(q *Query) bool { return anyOf(r.to, q) && anyOf(r.from, q) }

// anyOf reports whether all conditions of one alternative hold.
func anyOf(cs []condition, q *Query) bool {
	for i := 0; i < len(cs); i++ {
		if cs[i].holds(q) != cs[i].not {
			if cs[i].last {
				return true
			}
			continue
		}
		for !cs[i].last {
			i++
		}
	}
	return len(cs) == 0
}

// holds reports whether one of the values matches.
func (c *condition) holds(q *Query) bool {
	m := c.more
	switch c.attr {
	case plan.AttrSourceIP, plan.AttrRemoteIP, plan.AttrDestinationIP:
		ip := q.ip(c.attr)
		for _, n := range m.nets {
			if n.Contains(ip) {
				return true
			}
		}
		return false
	case plan.AttrDestinationPort:
		port := q.Conn.Local.Port()
		for _, p := range m.ports {
			if p == port {
				return true
			}
		}
		return false
	}
	if m == nil {
		v, ok := q.value(c.attr)
		return ok && matchText(c.kind, c.value, v)
	}
	var buf [valuesInline]string
	for _, v := range q.values(c.attr, &m.key, buf[:0]) {
		if m.texts.match(v) {
			return true
		}
	}
	return false
}
