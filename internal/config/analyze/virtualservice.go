package analyze

import (
	"fmt"
	"slices"
	"strings"

	networkingv1alpha3 "istio.io/api/networking/v1alpha3"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/host"
)

// eachDestination calls f for every destination of a VirtualService, which is
// nil where one is missing.
func eachDestination(vs *networkingv1alpha3.VirtualService, f func(path string, d *networkingv1alpha3.Destination)) {
	for i, r := range vs.Http {
		path := fmt.Sprintf("spec.http[%d]", i)
		for j, d := range r.Route {
			f(fmt.Sprintf("%s.route[%d].destination", path, j), d.Destination)
		}
		if r.Mirror != nil {
			f(path+".mirror", r.Mirror)
		}
		for j, m := range r.Mirrors {
			f(fmt.Sprintf("%s.mirrors[%d].destination", path, j), m.Destination)
		}
	}
	for i, r := range vs.Tls {
		for j, d := range r.Route {
			f(fmt.Sprintf("spec.tls[%d].route[%d].destination", i, j), d.Destination)
		}
	}
	for i, r := range vs.Tcp {
		for j, d := range r.Route {
			f(fmt.Sprintf("spec.tcp[%d].route[%d].destination", i, j), d.Destination)
		}
	}
}

// destinations checks that routes lead to services and ports that exist. A rule
// that is exported acts in other namespaces, which must see the service too.
func (a *analysis) destinations() {
	for _, v := range a.virtuals {
		from := []string{v.object.Namespace}
		if named := slices.DeleteFunc(slices.Clone(v.spec.ExportTo), func(e string) bool { return e == "." || e == "*" || e == "~" }); len(named) > 0 {
			from = named
		}
		eachDestination(v.spec, func(path string, d *networkingv1alpha3.Destination) {
			for _, ns := range from {
				a.destination(v.object, path, d, ns)
			}
		})
	}
}

func (a *analysis) destination(o *config.Object, path string, d *networkingv1alpha3.Destination, from string) {
	name := host.FQDN(d.GetHost(), o.Namespace, clusterDomain)
	s := a.find(name, from)
	if s == nil {
		problem := fmt.Sprintf("there is no service %s", name)
		switch {
		case d.GetHost() == "":
			problem = "the destination names no host"
		case len(a.byHost[name]) > 0:
			problem = fmt.Sprintf("service %s is not visible in namespace %s", name, from)
		}
		a.warn(o, codeMissing, path+".host", problem, names("services there", a.hostsNear(o.Namespace)))
		return
	}
	var ports []string
	for _, p := range s.ports {
		ports = append(ports, fmt.Sprint(p))
	}
	switch number := d.GetPort().GetNumber(); {
	case len(s.ports) == 0:
	case number != 0 && !slices.Contains(s.ports, number):
		a.warn(o, codeMissing, path+".port.number", fmt.Sprintf("service %s has no port %d", name, number), names("its ports", ports))
	case number == 0 && len(s.ports) > 1:
		a.warn(o, codeNoPort, path, fmt.Sprintf("service %s has several ports, and none is named", name), names("its ports", ports))
	}
}

// subsets checks that the subsets of routes are defined.
func (a *analysis) subsets() {
	for _, v := range a.virtuals {
		eachDestination(v.spec, func(path string, d *networkingv1alpha3.Destination) {
			if d.GetSubset() == "" {
				return
			}
			name := host.FQDN(d.Host, v.object.Namespace, clusterDomain)
			var have []string
			for _, r := range a.rules {
				if !host.Matches(r.host, name) || !visible(r.spec.ExportTo, r.object.Namespace, v.object.Namespace) {
					continue
				}
				for _, s := range r.spec.Subsets {
					have = append(have, s.Name)
				}
			}
			if !slices.Contains(have, d.Subset) {
				hint := names("its subsets", have)
				if len(have) == 0 {
					hint = "a DestinationRule for the host defines subsets"
				}
				a.warn(v.object, codeMissing, path+".subset", fmt.Sprintf("%s has no subset %s", name, d.Subset), hint)
			}
		})
	}
}

// gatewayReferences checks that a VirtualService's gateways exist and serve a
// host of its.
func (a *analysis) gatewayReferences() {
	for _, v := range a.virtuals {
		for i, ref := range v.spec.Gateways {
			path := fmt.Sprintf("spec.gateways[%d]", i)
			if a.gatewayExists(v.object, path, ref) && a.serves(v, ref) {
				continue
			}
			if ref == meshGateway {
				continue
			}
			g := a.gateways[gatewayKey(ref, v.object.Namespace)]
			a.warn(v.object, codeNoHost, path, fmt.Sprintf("gateway %s serves none of the hosts", ref), names("its hosts", serverHosts(g.spec)))
		}
		for i, r := range v.spec.Http {
			for j, m := range r.Match {
				for k, ref := range m.Gateways {
					a.gatewayExists(v.object, fmt.Sprintf("spec.http[%d].match[%d].gateways[%d]", i, j, k), ref)
				}
			}
		}
	}
}

func (a *analysis) gatewayExists(o *config.Object, path, ref string) bool {
	if ref == meshGateway {
		return true
	}
	if _, ok := a.gateways[gatewayKey(ref, o.Namespace)]; ok {
		return true
	}
	var have []string
	for k := range a.gateways {
		have = append(have, strings.TrimPrefix(k, o.Namespace+"/"))
	}
	a.warn(o, codeMissing, path, fmt.Sprintf("there is no Gateway %s", ref), names("gateways", have))
	return false
}

// gatewayKey completes a reference: NAME, NAMESPACE/NAME, or the old form
// NAME.NAMESPACE.svc.…
func gatewayKey(ref, namespace string) string {
	if strings.Contains(ref, "/") {
		return ref
	}
	if parts := strings.Split(ref, "."); len(parts) > 1 {
		return parts[1] + "/" + parts[0]
	}
	return namespace + "/" + ref
}

func serverHosts(g *networkingv1alpha3.Gateway) []string {
	var out []string
	for _, s := range g.GetServers() {
		out = append(out, s.Hosts...)
	}
	return out
}

func (a *analysis) serves(v virtualService, ref string) bool {
	if ref == meshGateway {
		return true
	}
	g := a.gateways[gatewayKey(ref, v.object.Namespace)]
	for _, h := range serverHosts(g.spec) {
		ns, name, ok := strings.Cut(h, "/")
		if !ok {
			ns, name = "*", h
		}
		if ns == "." {
			ns = g.object.Namespace
		}
		if ns != "*" && ns != v.object.Namespace {
			continue
		}
		for _, want := range v.spec.Hosts {
			if _, ok := host.Intersect(host.Name(strings.ToLower(name)), host.FQDN(want, v.object.Namespace, clusterDomain)); ok {
				return true
			}
		}
	}
	return false
}

// sameHosts warns of VirtualServices that claim a host for the same sidecars, of
// which only one acts.
func (a *analysis) sameHosts() {
	type claim struct {
		v    virtualService
		host host.Name
		path string
	}
	exact := map[host.Name][]claim{}
	var wild []claim
	for _, v := range a.virtuals {
		if len(v.spec.Gateways) > 0 && !slices.Contains(v.spec.Gateways, meshGateway) {
			continue
		}
		for i, h := range v.spec.Hosts {
			c := claim{v, host.FQDN(h, v.object.Namespace, clusterDomain), fmt.Sprintf("spec.hosts[%d]", i)}
			if c.host.IsWildcard() {
				wild = append(wild, c)
			} else {
				exact[c.host] = append(exact[c.host], c)
			}
		}
	}
	pair := func(winner, loser claim) {
		if winner.v.object == loser.v.object || !meet(winner.v, loser.v) {
			return
		}
		why := "is the older"
		if winner.v.object.Created.Equal(loser.v.object.Created) {
			why = "comes first by name"
		}
		if winner.host != loser.host {
			why = "is the more specific where both match"
		}
		a.warn(loser.v.object, codeConflict, loser.path, fmt.Sprintf("%s also has routes for %s", winner.v.object.Key, winner.host),
			fmt.Sprintf("sidecars follow %s, which %s; merge the two", winner.v.object.Key, why))
		a.warn(winner.v.object, codeConflict, winner.path, fmt.Sprintf("%s also has routes for %s", loser.v.object.Key, loser.host),
			fmt.Sprintf("sidecars follow %s, which %s; merge the two", winner.v.object.Key, why))
	}
	for _, claims := range exact {
		for i, c := range claims {
			for _, later := range claims[i+1:] {
				pair(c, later)
			}
		}
	}
	for i, c := range wild {
		for _, later := range wild[i+1:] {
			switch {
			case host.Matches(later.host, c.host):
				pair(c, later)
			case host.Matches(c.host, later.host):
				pair(later, c)
			}
		}
	}
	a.once()
}

// meet reports whether the sidecars of some namespace see both.
func meet(x, y virtualService) bool {
	everywhere := func(v virtualService) bool {
		return len(v.spec.ExportTo) == 0 || slices.Contains(v.spec.ExportTo, "*")
	}
	switch {
	case everywhere(x) && everywhere(y):
		return true
	case everywhere(x):
		x, y = y, x
	}
	return slices.ContainsFunc(x.spec.ExportTo, func(e string) bool {
		if e == "." {
			e = x.object.Namespace
		}
		return e != "~" && visible(y.spec.ExportTo, y.object.Namespace, e)
	})
}

// once keeps one fault for each field with a conflict: with three claims of a
// host, each would be told twice.
func (a *analysis) once() {
	seen := map[string]bool{}
	a.faults = slices.DeleteFunc(a.faults, func(f config.Fault) bool {
		if f.Code != codeConflict {
			return false
		}
		id := f.Object.String() + f.Field
		twice := seen[id]
		seen[id] = true
		return twice
	})
}
