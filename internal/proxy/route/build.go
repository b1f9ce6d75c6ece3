package route

import (
	"errors"
	"fmt"
	"regexp"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// maxRegex bounds the length of a regular expression, and so the memory of the
// machine that is made of it.
const maxRegex = 8 << 10

func (t *Table) build(c *plan.RouteConfig) error {
	var faults []error
	t.index = newIndex()
	for _, v := range c.Hosts {
		h := &host{plan: v, routes: make([]rule, 0, len(v.Routes))}
		for i, p := range v.Routes {
			r, err := newRule(p)
			if err != nil {
				faults = append(faults, fmt.Errorf("route %q: virtual host %q: route %d: %w", c.Name, v.Name, i, err))
			}
			h.routes = append(h.routes, r)
		}
		h.paths = newPaths(h.routes)
		for _, domain := range v.Domains {
			if err := t.index.add(domain, h); err != nil {
				faults = append(faults, fmt.Errorf("route %q: virtual host %q: %w", c.Name, v.Name, err))
			}
		}
		t.hosts = append(t.hosts, h)
	}
	return errors.Join(faults...)
}

// compile makes a regular expression that matches the whole of a text only.
func compile(expr string) (*regexp.Regexp, error) {
	if len(expr) > maxRegex {
		return nil, fmt.Errorf("regular expression has %d bytes, more than %d", len(expr), maxRegex)
	}
	// Compiled alone first: an expression such as "a)(b" must not become valid by
	// what is put around it.
	if _, err := regexp.Compile(expr); err != nil {
		return nil, err
	}
	return regexp.Compile(`\A(?:` + expr + `)\z`)
}

func newRule(p *plan.Route) (rule, error) {
	r := rule{plan: p, retry: newRetry(p.Retry)}
	var faults []error
	action, err := newAction(p)
	if err != nil {
		faults = append(faults, err)
	}
	r.action = action
	if p.Match.Path.Kind == plan.PathRegex {
		re, err := compile(p.Match.Path.Value)
		if err != nil {
			faults = append(faults, fmt.Errorf("path: %w", err))
		}
		r.path = re
	}
	for i := range p.Match.Headers {
		h := &p.Match.Headers[i]
		c := header{plan: h, id: exchange.Identify([]byte(h.Name))}
		if h.Kind == plan.StringRegex {
			re, err := compile(h.Value)
			if err != nil {
				faults = append(faults, fmt.Errorf("header %q: %w", h.Name, err))
			}
			c.regex = re
		}
		r.headers = append(r.headers, c)
	}
	for i := range p.Match.Query {
		q := &p.Match.Query[i]
		c := query{plan: q}
		if q.Kind == plan.StringRegex {
			re, err := compile(q.Value)
			if err != nil {
				faults = append(faults, fmt.Errorf("query parameter %q: %w", q.Name, err))
			}
			c.regex = re
		}
		r.query = append(r.query, c)
	}
	for i := range p.Match.Claims {
		m := &p.Match.Claims[i]
		c := claim{plan: m}
		if m.Kind == plan.StringRegex {
			re, err := compile(m.Value)
			if err != nil {
				faults = append(faults, fmt.Errorf("claim %q: %w", m.Path, err))
			}
			c.regex = re
		}
		r.claims = append(r.claims, c)
	}
	return r, errors.Join(faults...)
}
