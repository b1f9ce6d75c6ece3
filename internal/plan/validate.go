package plan

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
)

// Validate reports everything that a proxy would refuse, or that cannot have
// been meant: the invariants that a compile step must keep whatever it is given.
// A route to a cluster that does not exist is none of these: requests on it fail
// one by one.
func (p *Plan) Validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	routes := map[string]bool{}
	for _, r := range p.Routes {
		if r.Name == "" {
			fail("a route configuration has no name")
		}
		if routes[r.Name] {
			fail("routes %s: the name is taken", r.Name)
		}
		routes[r.Name] = true
		errs = append(errs, r.Validate())
	}
	names, bound := map[string]bool{}, map[netip.AddrPort]string{}
	for _, l := range p.Listeners {
		if names[l.Name] {
			fail("listener %s: the name is taken", l.Name)
		}
		names[l.Name] = true
		if other, ok := bound[l.Address]; ok && l.API == nil {
			fail("listener %s: %s has the same address", l.Name, other)
		}
		if l.API == nil {
			bound[l.Address] = l.Name
		}
		errs = append(errs, l.Validate())
		for _, h := range l.httpChains() {
			if h.RouteName != "" && !routes[h.RouteName] {
				fail("listener %s: there are no routes %s", l.Name, h.RouteName)
			}
		}
	}
	clusters := map[string]bool{}
	for _, c := range p.Clusters {
		if clusters[c.Name] {
			fail("cluster %s: the name is taken", c.Name)
		}
		clusters[c.Name] = true
		errs = append(errs, c.Validate())
	}
	if p.Names != nil {
		for i, n := range p.Names.Names {
			if i > 0 && p.Names.Names[i-1].Host >= n.Host {
				fail("names are not sorted, or one is there twice")
			}
		}
	}
	return errors.Join(errs...)
}

func (l *Listener) httpChains() []*HTTPChain {
	var out []*HTTPChain
	for _, c := range l.Chains {
		if c.HTTP != nil {
			out = append(out, c.HTTP)
		}
	}
	if l.Default != nil && l.Default.HTTP != nil {
		out = append(out, l.Default.HTTP)
	}
	if l.API != nil {
		out = append(out, l.API)
	}
	return out
}

// Validate checks one listener.
func (l *Listener) Validate() error {
	var errs []error
	fail := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("listener %s: "+format, append([]any{l.Name}, args...)...))
	}
	if l.API != nil {
		if len(l.Chains) > 0 || l.Default != nil || l.Bound {
			fail("an API listener accepts no connections")
		}
		return errors.Join(errs...)
	}
	if len(l.Chains) == 0 && l.Default == nil {
		fail("it has no chains")
	}
	chains := slices.Clone(l.Chains)
	if l.Default != nil {
		chains = append(chains, l.Default)
	}
	for i, c := range chains {
		if (c.HTTP == nil) == (c.TCP == nil) {
			fail("chain %d needs one of HTTP and TCP", i)
		}
		if c.TCP != nil {
			if err := validShares(c.TCP.Clusters); err != nil {
				fail("chain %d: %w", i, err)
			}
			for _, rbac := range c.TCP.RBAC {
				if err := rbac.Validate(); err != nil {
					fail("chain %d: %w", i, err)
				}
			}
		}
		if h := c.HTTP; h != nil {
			if (h.RouteName == "") == (h.Inline == nil) {
				fail("chain %d needs one of a route name and inline routes", i)
			}
			if h.Inline != nil {
				errs = append(errs, h.Inline.Validate())
			}
			for _, e := range h.Ask {
				if err := e.Validate(); err != nil {
					fail("chain %d: %w", i, err)
				}
			}
			for _, rbac := range h.RBAC {
				if err := rbac.Validate(); err != nil {
					fail("chain %d: %w", i, err)
				}
			}
		}
		if !l.Inspect.TLS && (len(c.Match.ServerNames) > 0 || c.Match.Transport != AnyTransport) {
			fail("chain %d depends on the TLS look, which is not taken", i)
		}
		if !l.Inspect.HTTP && c.Match.Transport == RawBuffer && len(c.Match.ALPN) > 0 {
			fail("chain %d depends on the HTTP look, which is not taken", i)
		}
	}
	for i, a := range l.Chains {
		for j, b := range l.Chains[:i] {
			if a.Match.meets(&b.Match) {
				fail("chains %d and %d match the same connections", j, i)
			}
		}
	}
	return errors.Join(errs...)
}

// meets reports whether two matches are equally specific for some connection, so
// that nothing decides between them. Source: Envoy, which refuses filter chains
// "with overlapping matching rules".
func (m *ChainMatch) meets(o *ChainMatch) bool {
	return m.DestinationPort == o.DestinationPort && m.Transport == o.Transport &&
		overlap(m.Prefixes, o.Prefixes) && overlap(m.ServerNames, o.ServerNames) && overlap(m.ALPN, o.ALPN)
}

// overlap compares lists of alternatives; an empty one is an alternative itself.
func overlap[T comparable](a, b []T) bool {
	if len(a) == 0 || len(b) == 0 {
		return len(a) == len(b)
	}
	return slices.ContainsFunc(a, func(v T) bool { return slices.Contains(b, v) })
}

// Validate checks one route configuration.
func (r *RouteConfig) Validate() error {
	var errs []error
	fail := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("routes %s: "+format, append([]any{r.Name}, args...)...))
	}
	hosts, domains := map[string]bool{}, map[string]string{}
	for _, h := range r.Hosts {
		if hosts[h.Name] {
			fail("there are two hosts %s", h.Name)
		}
		hosts[h.Name] = true
		if len(h.Domains) == 0 {
			fail("host %s has no domains", h.Name)
		}
		for _, d := range h.Domains {
			if other, ok := domains[d]; ok {
				fail("hosts %s and %s both have the domain %s", other, h.Name, d)
			}
			domains[d] = h.Name
		}
		for i, route := range h.Routes {
			if err := route.Validate(); err != nil {
				fail("host %s, route %d: %w", h.Name, i, err)
			}
		}
	}
	return errors.Join(errs...)
}

// Validate checks one route.
func (r *Route) Validate() error {
	var errs []error
	actions := 0
	if len(r.Clusters) > 0 {
		actions++
		errs = append(errs, validShares(r.Clusters))
	}
	if r.Direct != nil {
		actions++
		if s := r.Direct.Status; s < 200 || s > 599 {
			errs = append(errs, fmt.Errorf("the status %d is none of an answer", s))
		}
	}
	if r.Redirect != nil {
		actions++
		if r.Redirect.Path != "" && r.Redirect.PrefixRewrite != "" {
			errs = append(errs, errors.New("a redirect replaces the path or its prefix"))
		}
	}
	if actions > 1 {
		errs = append(errs, errors.New("there are several actions"))
	}
	if r.Match.Path.Kind == PathRegex {
		errs = append(errs, validRegex(r.Match.Path.Value))
	}
	if re := r.RegexRewrite; re != nil {
		if r.PrefixRewrite != "" {
			errs = append(errs, errors.New("the path is rewritten in two ways"))
		}
		errs = append(errs, validRegex(re.Pattern))
	}
	for _, m := range r.Mirrors {
		if m.Cluster == "" || m.Fraction == 0 || m.Fraction > Million {
			errs = append(errs, fmt.Errorf("a mirror of %s of the requests to %q is none", m.Fraction, m.Cluster))
		}
	}
	if c := r.CORS; c != nil {
		for _, o := range c.Origins {
			if o.Kind == StringRegex {
				errs = append(errs, validRegex(o.Value))
			}
		}
	}
	if f := r.Fault; f != nil && (f.DelayFraction > Million || f.AbortFraction > Million) {
		errs = append(errs, errors.New("a fault is in more than all requests"))
	}
	for _, h := range r.Match.Headers {
		if h.Name == "" {
			errs = append(errs, errors.New("a header condition has no name"))
		}
		if h.Kind == StringRegex {
			errs = append(errs, validRegex(h.Value))
		}
	}
	for _, c := range r.Match.Claims {
		if c.Path == "" {
			errs = append(errs, errors.New("a claim condition has no name"))
		}
		if c.Kind == StringRegex {
			errs = append(errs, validRegex(c.Value))
		}
	}
	for _, q := range r.Match.Query {
		if q.Kind == StringRegex {
			errs = append(errs, validRegex(q.Value))
		}
	}
	return errors.Join(errs...)
}

func validRegex(s string) error {
	_, err := regexp.Compile(s)
	return err
}

func validShares(cs []WeightedCluster) error {
	if len(cs) == 0 {
		return errors.New("there are no clusters")
	}
	var sum uint64
	for _, c := range cs {
		if c.Cluster == "" {
			return errors.New("a cluster has no name")
		}
		sum += uint64(c.Weight)
	}
	if len(cs) > 1 && (sum == 0 || sum > 1<<32-1) {
		return fmt.Errorf("the weights add up to %d", sum)
	}
	return nil
}

// Validate checks one cluster.
func (c *Cluster) Validate() error {
	var errs []error
	fail := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("cluster %s: "+format, append([]any{c.Name}, args...)...))
	}
	if c.Name == "" {
		fail("it has no name")
	}
	if c.ConnectTimeout <= 0 {
		fail("it has no connect timeout")
	}
	if (c.Discovery == OriginalDst) != (c.Balancing == ClusterProvided) {
		fail("%s does not go with %s", c.Discovery, c.Balancing)
	}
	switch c.Discovery {
	case EDS, OriginalDst:
		if len(c.Static) > 0 {
			fail("%s finds its own endpoints", c.Discovery)
		}
	case LogicalDNS:
		if len(c.Static) > 1 {
			fail("logical-dns is for one name")
		}
	}
	if c.ServiceName != "" && c.Discovery != EDS {
		fail("only eds has a service name")
	}
	for _, e := range c.Static {
		if e.Host == "" || e.Port == 0 {
			fail("the endpoint %s:%d is not complete", e.Host, e.Port)
		}
	}
	return errors.Join(errs...)
}
