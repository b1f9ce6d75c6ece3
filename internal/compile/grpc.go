package compile

import (
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/heddle-mesh/heddle/internal/host"
	"github.com/heddle-mesh/heddle/internal/plan"
)

// grpcPlan answers a gRPC client that speaks xDS itself: a listener under each
// name that it asked for, with the routes and clusters behind it and no others.
// Source: gRPC A27, "xDS-Based Global Load Balancing", and A28.
func (v *View) grpcPlan() *plan.Plan {
	s := v.scope
	p := &plan.Plan{}
	routes := map[string]*plan.RouteConfig{}
	clusters := map[string]bool{}
	for _, asked := range v.asked {
		d, port, ok := s.askedFor(asked)
		if !ok {
			continue
		}
		name := clusterName(port, "", d.Host)
		p.Listeners = append(p.Listeners, &plan.Listener{
			Name: asked,
			API:  &plan.HTTPChain{StatPrefix: name, RouteName: name},
		})
		rc := routes[name]
		if rc == nil {
			vh := &plan.VirtualHost{
				Name:    hostPort(d.Host, port),
				Routes:  s.serviceRoutes(d, port),
				Domains: s.grpcDomains(d, port),
			}
			rc = &plan.RouteConfig{Name: name, Hosts: []*plan.VirtualHost{vh}}
			routes[name] = rc
			for _, r := range vh.Routes {
				for _, c := range r.Clusters {
					clusters[c.Cluster] = true
				}
			}
		}
		// The client looks for the name that it dialled.
		if vh := rc.Hosts[0]; !slices.Contains(vh.Domains, asked) {
			vh.Domains = append(vh.Domains, asked)
		}
	}
	for _, name := range sortedKeys(routes) {
		p.Routes = append(p.Routes, routes[name])
	}
	for _, d := range s.services {
		for _, port := range d.Ports {
			for _, c := range s.clustersOf(d, port) {
				if clusters[c.Name] {
					p.Clusters = append(p.Clusters, grpcCluster(c))
				}
			}
		}
	}
	slices.SortFunc(p.Clusters, func(a, b *plan.Cluster) int { return strings.Compare(a.Name, b.Name) })
	return p
}

// askedFor finds the service that a client dials as "host:port", by its full
// name or a short form.
func (s *scope) askedFor(name string) (*destination, uint16, bool) {
	h, text, err := net.SplitHostPort(name)
	if err != nil {
		return nil, 0, false
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return nil, 0, false
	}
	h = strings.ToLower(strings.TrimSuffix(h, "."))
	for _, full := range []string{h, h + "." + s.namespace + ".svc." + s.domain, h + ".svc." + s.domain, h + "." + s.domain} {
		if d := s.byHost[host.Name(full)]; d != nil && d.Port(uint16(n)) != nil {
			return d, uint16(n), true
		}
	}
	return nil, 0, false
}

// grpcDomains are the forms of a service's name with and without the port:
// clients compare the whole target, port included.
func (s *scope) grpcDomains(d *destination, port uint16) []string {
	var out []string
	for _, n := range s.domains(d) {
		out = append(out, n, n+":"+strconv.Itoa(int(port)))
	}
	return out
}

// grpcCluster keeps what such a client understands of the ways to choose an
// endpoint, and gives it the nearest to the others.
func grpcCluster(c *plan.Cluster) *plan.Cluster {
	switch c.Balancing {
	case plan.Random:
		c.Balancing = plan.RoundRobin
	case plan.Maglev:
		c.Balancing, c.TableSize = plan.RingHash, 0
	case plan.PeakEWMA:
		c.Balancing = plan.LeastRequest
	}
	c.Warmup = nil
	return c
}
