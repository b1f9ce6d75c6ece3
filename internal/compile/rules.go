package compile

import (
	"net/netip"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/heddle-mesh/heddle/internal/host"
	"github.com/heddle-mesh/heddle/internal/match"
	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/plan"
)

// rules reads VirtualServices for one listener: what of them applies there, and
// what it says.
type rules struct {
	scope *scope
	// port is the listener's as callers know it: of a gateway the server's, not
	// the pod's.
	port    uint16
	gateway string // "mesh" or "namespace/name"
	// labels are those of a gateway, which no scope restricts.
	labels map[string]string
}

// applies reports whether a match block is for this listener and its callers.
// Gateways that a block names count instead of those of the whole.
func (r rules) applies(v *model.VirtualService, gateways []string, port uint32, labels map[string]string, namespace string) bool {
	if port != 0 && port != uint32(r.port) {
		return false
	}
	if len(gateways) > 0 && !slices.ContainsFunc(gateways, func(g string) bool {
		return model.GatewayName(g, v.Namespace) == r.gateway
	}) {
		return false
	}
	if namespace != "" && namespace != r.scope.namespace {
		return false
	}
	own := r.scope.labels
	if r.labels != nil {
		own = r.labels
	}
	return match.Labels(labels, own)
}

// destination resolves where a rule sends to: the name of the cluster, and the
// service with its port if they are known. Without a port in the rule it is the
// service's only one, or the listener's.
func (r rules) destination(v *model.VirtualService, in *networking.Destination) (string, *destination, *model.Port) {
	h := host.FQDN(in.GetHost(), v.Namespace, r.scope.domain)
	d := r.scope.byHost[h]
	port := uint16(in.GetPort().GetNumber())
	if port == 0 {
		port = r.port
		if d != nil && len(d.Ports) == 1 {
			port = d.Ports[0].Number
		}
	}
	name := clusterName(port, in.GetSubset(), h)
	if d == nil {
		return name, nil, nil
	}
	return name, d, d.Port(port)
}

// share is one part of a split as a rule writes it.
type share struct {
	destination *networking.Destination
	weight      int32
}

// split resolves the parts of a split, and returns the first part's service
// too. A single part gets everything; among several, one of weight 0 nothing.
func (r rules) split(v *model.VirtualService, shares []share) ([]plan.WeightedCluster, *destination, *model.Port) {
	var out []plan.WeightedCluster
	var first *destination
	var port *model.Port
	for i, s := range shares {
		name, d, p := r.destination(v, s.destination)
		if i == 0 {
			first, port = d, p
		}
		if len(shares) == 1 {
			return to(name), first, port
		}
		if s.weight <= 0 {
			continue
		}
		// Parts of a split may name the same cluster twice.
		if j := slices.IndexFunc(out, func(w plan.WeightedCluster) bool { return w.Cluster == name }); j >= 0 {
			out[j].Weight += uint32(s.weight)
		} else {
			out = append(out, plan.WeightedCluster{Cluster: name, Weight: uint32(s.weight)})
		}
	}
	return out, first, port
}

func byteShares(in []*networking.RouteDestination) []share {
	out := make([]share, len(in))
	for i, d := range in {
		out[i] = share{d.Destination, d.Weight}
	}
	return out
}

// tcpChains makes the chains of a VirtualService's tcp routes. final says that
// the last of them takes every connection that is left.
func (r rules) tcpChains(v *model.VirtualService, prefixes []netip.Prefix) (chains []*plan.FilterChain, final bool) {
	for _, route := range v.Spec.Tcp {
		clusters, d, p := r.split(v, byteShares(route.Route))
		if len(clusters) == 0 {
			continue
		}
		chain := func(prefixes []netip.Prefix) {
			chains = append(chains, &plan.FilterChain{
				Match: plan.ChainMatch{Prefixes: prefixes},
				TCP:   r.scope.tcpChain(statPrefix(v, clusters), clusters, d, p),
			})
		}
		if len(route.Match) == 0 {
			chain(prefixes)
			return chains, true
		}
		var subnets []netip.Prefix
		for _, m := range route.Match {
			if !r.applies(v, m.Gateways, m.Port, m.SourceLabels, m.SourceNamespace) {
				continue
			}
			if len(m.DestinationSubnets) == 0 {
				chain(prefixes)
				return chains, true
			}
			subnets = append(subnets, parsePrefixes(m.DestinationSubnets)...)
		}
		if len(subnets) > 0 {
			chain(subnets)
		}
	}
	return chains, false
}

// tlsChains makes the chains of a VirtualService's tls routes.
func (r rules) tlsChains(v *model.VirtualService, prefixes []netip.Prefix) []*plan.FilterChain {
	var chains []*plan.FilterChain
	for _, route := range v.Spec.Tls {
		clusters, d, p := r.split(v, byteShares(route.Route))
		if len(clusters) == 0 {
			continue
		}
		for _, m := range route.Match {
			if !r.applies(v, m.Gateways, m.Port, m.SourceLabels, m.SourceNamespace) {
				continue
			}
			at := prefixes
			if len(m.DestinationSubnets) > 0 {
				at = parsePrefixes(m.DestinationSubnets)
			}
			c := &plan.FilterChain{
				Match: plan.ChainMatch{Prefixes: at, ServerNames: serverNames(m.SniHosts)},
				TCP:   r.scope.tcpChain(statPrefix(v, clusters), clusters, d, p),
			}
			chains = append(chains, c)
		}
	}
	return chains
}

// serverNames normalizes SNI patterns; "*" among them matches any.
func serverNames(in []string) []string {
	out := make([]string, 0, len(in))
	for _, n := range in {
		if n == "*" {
			return nil
		}
		out = append(out, strings.ToLower(n))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func parsePrefixes(in []string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range in {
		if p, err := netip.ParsePrefix(s); err == nil {
			out = append(out, p.Masked())
		} else if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out
}

func statPrefix(v *model.VirtualService, clusters []plan.WeightedCluster) string {
	if len(clusters) == 1 {
		return clusters[0].Cluster
	}
	return v.Name + "." + v.Namespace
}

// origin names the object behind a part of a plan as Istio's tools show it.
func origin(kind string, m model.Meta) string {
	return "/apis/networking.istio.io/v1/namespaces/" + m.Namespace + "/" + kind + "/" + m.Name
}
