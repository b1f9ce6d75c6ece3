package route

import (
	"fmt"
	"strings"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// Trace is how a decision was found.
type Trace struct {
	Steps []Step
}

// Step is one virtual host or route that was looked at.
type Step struct {
	Host    string // name of the virtual host
	Route   string // name of the route, or "route 3"; "" for a step about the host
	Matched bool
	Why     string
}

// String returns the steps as lines.
func (t *Trace) String() string {
	var b strings.Builder
	for _, s := range t.Steps {
		mark := "-"
		if s.Matched {
			mark = "+"
		}
		fmt.Fprintf(&b, "%s %s", mark, s.Host)
		if s.Route != "" {
			fmt.Fprintf(&b, " %s", s.Route)
		}
		fmt.Fprintf(&b, ": %s\n", s.Why)
	}
	return b.String()
}

// Explain returns the same decision as Match, and how it was found.
func (t *Table) Explain(r Request) (Decision, *Trace) {
	trace := &Trace{}
	return t.match(&r, trace), trace
}

func (tr *Trace) host(t *Table, authority []byte, found *host) {
	a := string(authority)
	if t.ignore {
		a = string(withoutPort(authority))
	}
	for _, h := range t.hosts {
		s := Step{Host: h.plan.Name, Matched: h == found}
		best := ""
		for _, d := range h.plan.Domains {
			if domainMatches(d, a) && (best == "" || rank(d) > rank(best)) {
				best = d
			}
		}
		switch {
		case s.Matched:
			s.Why = fmt.Sprintf("domain %q matches authority %q best", best, a)
		case best != "":
			s.Why = fmt.Sprintf("domain %q matches authority %q, but another virtual host's is more specific", best, a)
		default:
			s.Why = fmt.Sprintf("no domain matches authority %q", a)
		}
		tr.Steps = append(tr.Steps, s)
	}
	if found == nil {
		tr.Steps = append(tr.Steps, Step{Host: t.Config.Name, Why: "no virtual host: 404"})
	}
}

// domainMatches is the plain meaning of a domain, without index.
func domainMatches(domain, authority string) bool {
	d, a := strings.ToLower(domain), strings.ToLower(authority)
	switch {
	case d == "":
		return false
	case d == "*":
		return true
	case d[0] == '*':
		return len(a) > len(d)-1 && strings.HasSuffix(a, d[1:])
	case d[len(d)-1] == '*':
		return len(a) > len(d)-1 && strings.HasPrefix(a, d[:len(d)-1])
	}
	return d == a
}

// rank orders domains that match: exact, suffix, prefix, any; longer first.
func rank(domain string) int {
	const step = 1 << 20
	switch {
	case domain == "*":
		return 0
	case domain[0] == '*':
		return 2*step + len(domain)
	case domain[len(domain)-1] == '*':
		return step + len(domain)
	}
	return 3 * step
}

func (tr *Trace) route(r *rule, q Request, matched bool) {
	last := &tr.Steps[len(tr.Steps)-1]
	for i := range tr.Steps { // the host that was found is the one that matched
		if tr.Steps[i].Matched && tr.Steps[i].Route == "" {
			last = &tr.Steps[i]
			break
		}
	}
	name := r.plan.Name
	if name == "" || name == "default" {
		name = fmt.Sprintf("route %d", tr.count(last.Host))
	}
	s := Step{Host: last.Host, Route: name, Matched: matched, Why: "all conditions hold"}
	if !matched {
		s.Why = r.miss(&q)
	}
	tr.Steps = append(tr.Steps, s)
}

func (tr *Trace) count(host string) int {
	n := 0
	for _, s := range tr.Steps {
		if s.Host == host && s.Route != "" {
			n++
		}
	}
	return n
}

// miss names the first condition that does not hold.
func (r *rule) miss(q *Request) string {
	if !r.matchesPath(q.Path) {
		m := &r.plan.Match
		return fmt.Sprintf("path %q does not match %s %q", q.Path, pathKinds[m.Path.Kind], m.Path.Value)
	}
	for i := range r.headers {
		h := &r.headers[i]
		if h.matches(q) {
			continue
		}
		value, present := h.value(q)
		not := "does not match"
		if h.plan.Invert {
			not = "must not match"
		}
		if !present {
			return fmt.Sprintf("header %q is missing and %s %s %q", h.plan.Name, not, stringKinds[h.plan.Kind], h.plan.Value)
		}
		return fmt.Sprintf("header %q with value %q %s %s %q", h.plan.Name, value, not, stringKinds[h.plan.Kind], h.plan.Value)
	}
	for i := range r.query {
		if p := r.query[i].plan; !r.query[i].matches(q.Query) {
			return fmt.Sprintf("query %q has no parameter %q that matches %s %q", q.Query, p.Name, stringKinds[p.Kind], p.Value)
		}
	}
	for i := range r.claims {
		if c := r.claims[i].plan; !r.claims[i].matches(q.Token) {
			return fmt.Sprintf("the token's claim %q does not match %s %q, or must not", strings.ReplaceAll(c.Path, "\x00", "."), stringKinds[c.Kind], c.Value)
		}
	}
	return "all conditions hold"
}

var pathKinds = map[plan.PathKind]string{
	plan.PathPrefix:        "prefix",
	plan.PathExact:         "exact",
	plan.PathRegex:         "regex",
	plan.PathSegmentPrefix: "path prefix",
}

var stringKinds = map[plan.StringKind]string{
	plan.StringPresent:  "present",
	plan.StringExact:    "exact",
	plan.StringPrefix:   "prefix",
	plan.StringRegex:    "regex",
	plan.StringSuffix:   "suffix",
	plan.StringContains: "contains",
}
