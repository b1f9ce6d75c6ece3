package compile

import (
	"slices"
	"strconv"
	"strings"

	"github.com/heddle-mesh/heddle/internal/host"
	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/plan"
)

// routesOf makes the route configurations that listeners ask for.
func (s *scope) routesOf(listeners []*plan.Listener) []*plan.RouteConfig {
	names := map[string]bool{}
	for _, l := range listeners {
		for _, c := range l.Chains {
			if c.HTTP != nil && c.HTTP.RouteName != "" {
				names[c.HTTP.RouteName] = true
			}
		}
	}
	onPort := s.routedOn()
	var out []*plan.RouteConfig
	for _, name := range sortedKeys(names) {
		port := portOf(name)
		if h, _, ok := strings.Cut(name, ":"); ok {
			out = append(out, s.routesAt(name, port, s.byHost[host.Name(h)]))
		} else {
			out = append(out, s.routesOn(name, port, onPort[port]))
		}
	}
	return out
}

// routedOn lists, for each port, the services that get requests there.
func (s *scope) routedOn() map[uint16][]*destination {
	out := map[uint16][]*destination{}
	for _, d := range s.services {
		for _, p := range d.Ports {
			if s.handling(p).requests() {
				out[p.Number] = append(out[p.Number], d)
			}
		}
	}
	return out
}

// routesAt makes the routes of a listener that is for one service only, which
// therefore gets the requests for any authority.
func (s *scope) routesAt(name string, port uint16, d *destination) *plan.RouteConfig {
	rc := &plan.RouteConfig{Name: name, IgnorePort: true}
	vh := &plan.VirtualHost{Name: hostPort(d.Host, port), Domains: []string{"*"}, Routes: s.serviceRoutes(d, port)}
	rc.Hosts = []*plan.VirtualHost{vh}
	return rc
}

// routesOn makes the routes that all HTTP services of a port share: a virtual
// host for each, for each other host that a VirtualService names, and for the
// rest of the world.
func (s *scope) routesOn(name string, port uint16, services []*destination) *plan.RouteConfig {
	rc := &plan.RouteConfig{Name: name, IgnorePort: true}
	taken := map[string]bool{}
	add := func(vh *plan.VirtualHost) {
		// Whoever came first keeps a domain; a virtual host without any is none.
		vh.Domains = slices.DeleteFunc(vh.Domains, func(d string) bool { return taken[d] })
		if len(vh.Domains) == 0 {
			return
		}
		for _, d := range vh.Domains {
			taken[d] = true
		}
		rc.Hosts = append(rc.Hosts, vh)
	}
	// Full names first, so that no short form of another service takes them.
	for _, d := range services {
		taken[string(d.Host)] = true
	}
	// known reports whether a host, or any that a pattern stands for, is a service
	// of the port.
	known := func(h host.Name) bool {
		if !h.IsWildcard() {
			return taken[string(h)]
		}
		return slices.ContainsFunc(services, func(d *destination) bool { return host.Matches(h, d.Host) })
	}
	var foreign []*model.VirtualService
	for _, v := range s.virtuals.all {
		// Hosts that are no service belong to the port of a service that the same
		// rule is for, and else to port 80.
		strange := slices.ContainsFunc(v.Hosts, func(h host.Name) bool { return !known(h) })
		if strange && (port == 80 || slices.ContainsFunc(v.Hosts, known)) {
			foreign = append(foreign, v)
		}
	}
	for _, d := range services {
		delete(taken, string(d.Host))
		add(&plan.VirtualHost{
			Name:    hostPort(d.Host, port),
			Domains: s.domains(d),
			Routes:  s.serviceRoutes(d, port),
		})
	}
	for _, v := range foreign {
		routes := rules{scope: s, port: port, gateway: model.MeshGateway}.routes(v)
		if len(routes) == 0 {
			continue
		}
		for _, h := range v.Hosts {
			// A pattern that services match is for those only. What is taken by now
			// may be another service's short form.
			if !h.IsWildcard() || !known(h) {
				add(&plan.VirtualHost{Name: hostPort(h, port), Domains: []string{string(h)}, Routes: routes})
			}
		}
	}
	slices.SortFunc(rc.Hosts, func(a, b *plan.VirtualHost) int { return strings.Compare(a.Name, b.Name) })
	if !taken["*"] {
		rc.Hosts = append(rc.Hosts, s.restOfTheWorld())
	}
	return rc
}

// serviceRoutes returns the routes for requests to a service: those of the
// VirtualService of first precedence that has any for these callers, or one to
// the service itself.
func (s *scope) serviceRoutes(d *destination, port uint16) []*plan.Route {
	r := rules{scope: s, port: port, gateway: model.MeshGateway}
	for _, v := range s.virtuals.forHost(d.Host) {
		if routes := r.routes(v); len(routes) > 0 {
			return routes
		}
	}
	hash := s.hashOf(d, d.Port(port), "")
	return []*plan.Route{{
		Name:      "default",
		Match:     routeMatch(nil),
		Clusters:  to(clusterName(port, "", d.Host)),
		Hash:      hash,
		Retry:     s.retry(nil, len(hash) > 0),
		Decorator: hostPort(d.Host, port) + "/*",
	}}
}

// restOfTheWorld is the virtual host for authorities that nothing else is for.
func (s *scope) restOfTheWorld() *plan.VirtualHost {
	if s.mesh.RegistryOnly {
		return &plan.VirtualHost{Name: "block_all", Domains: []string{"*"}, Routes: []*plan.Route{{
			Name: "block_all", Match: routeMatch(nil), Direct: &plan.DirectResponse{Status: 502},
		}}}
	}
	return &plan.VirtualHost{Name: "allow_any", Domains: []string{"*"}, Routes: []*plan.Route{{
		Name: "allow_any", Match: routeMatch(nil), Clusters: to(passthroughName),
	}}}
}

// domains returns the authorities by which callers of the namespace know a
// service: its name, the short forms that a resolver would complete, and its
// addresses. Pods of a headless service have names below it.
func (s *scope) domains(d *destination) []string {
	names := []string{string(d.Host)}
	if !d.Host.IsWildcard() {
		names = append(names, string(d.Host)+".")
	}
	if suffix := "." + d.Namespace + ".svc." + s.domain; strings.HasSuffix(string(d.Host), suffix) {
		short := strings.TrimSuffix(string(d.Host), suffix)
		if short != "*" && short != "" {
			names = append(names, short+"."+d.Namespace+".svc", short+"."+d.Namespace)
			if d.Namespace == s.namespace {
				names = append(names, short)
			}
		}
	}
	if d.Headless && d.Resolution == model.ByClient {
		for _, n := range slices.Clone(names) {
			names = append(names, "*."+n)
		}
	}
	if !d.Automatic || s.capture {
		for _, a := range d.Addresses {
			if a.Is6() {
				names = append(names, "["+a.String()+"]")
			} else {
				names = append(names, a.String())
			}
		}
	}
	return names
}

func hostPort(h host.Name, port uint16) string { return string(h) + ":" + strconv.Itoa(int(port)) }
