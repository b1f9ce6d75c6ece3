package model

import (
	"maps"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/host"
	"github.com/heddle-mesh/heddle/internal/match"
)

// DestinationRule is what the rules of one namespace say together about calls to
// a host. Rules merge if they agree on host, on who may see them and on the
// callers they are for: the oldest one's policy counts, and subsets add up.
type DestinationRule struct {
	Meta // of the oldest
	Host host.Name
	// Selector restricts the rule to callers in its own namespace.
	Selector map[string]string
	ExportTo Visibility
	Policy   *networking.TrafficPolicy
	Subsets  []*networking.Subset
	// Balancer is Heddle's own annotation: a way of balancing for which the policy
	// has no field.
	Balancer string
}

// BalancerAnnotation on a DestinationRule chooses it.
const BalancerAnnotation = "heddle.dev/load-balancer"

// Subset returns a subset by name, or nil.
func (r *DestinationRule) Subset(name string) *networking.Subset {
	if r != nil {
		for _, s := range r.Subsets {
			if s.Name == name {
				return s
			}
		}
	}
	return nil
}

func fromDestinationRule(o *config.Object, opts Options, mesh *Mesh) *DestinationRule {
	in := o.Spec.(*networking.DestinationRule)
	r := &DestinationRule{
		Meta:     meta(o, in),
		Host:     host.FQDN(in.Host, o.Namespace, opts.ClusterDomain),
		Selector: in.WorkloadSelector.GetMatchLabels(),
		ExportTo: visibility(in.ExportTo, mesh.DestinationRuleExportTo, o.Namespace),
		Policy:   in.TrafficPolicy,
		Subsets:  in.Subsets,
		Balancer: o.Annotations[BalancerAnnotation],
	}
	if r.Balancer != "" {
		p := NewPrinter()
		p.Print(r.Print)
		p.Text(r.Balancer)
		r.Print = p.Sum()
	}
	return r
}

// destinationRules is the index of merged rules by namespace.
type destinationRules struct {
	root        string
	byNamespace map[string]*rulesOf
}

type rulesOf struct {
	exact map[host.Name][]*DestinationRule
	wild  []*DestinationRule // most specific first
}

// newDestinationRules indexes rules that stand in the order of precedence.
func newDestinationRules(rules []*DestinationRule, root string) *destinationRules {
	type group struct {
		namespace, selector, exportTo string
		host                          host.Name
	}
	merged := map[group]*DestinationRule{}
	var order []group
	for _, r := range rules {
		g := group{r.Namespace, selectorText(r.Selector), r.ExportTo.String(), r.Host}
		first, ok := merged[g]
		if !ok {
			merged[g] = r
			order = append(order, g)
			continue
		}
		sum := *first
		sum.Subsets = slices.Clone(first.Subsets)
		for _, s := range r.Subsets {
			if sum.Subset(s.Name) == nil {
				sum.Subsets = append(sum.Subsets, s)
			}
		}
		if sum.Policy == nil {
			sum.Policy = r.Policy
		}
		p := NewPrinter()
		p.Print(first.Print)
		p.Print(r.Print)
		sum.Print = p.Sum()
		merged[g] = &sum
	}
	x := &destinationRules{root: root, byNamespace: map[string]*rulesOf{}}
	for _, g := range order {
		r := merged[g]
		n := x.byNamespace[g.namespace]
		if n == nil {
			n = &rulesOf{exact: map[host.Name][]*DestinationRule{}}
			x.byNamespace[g.namespace] = n
		}
		if r.Host.IsWildcard() {
			n.wild = append(n.wild, r)
		} else {
			n.exact[r.Host] = append(n.exact[r.Host], r)
		}
	}
	for _, n := range x.byNamespace {
		slices.SortStableFunc(n.wild, func(a, b *DestinationRule) int { return host.Compare(a.Host, b.Host) })
	}
	return x
}

func selectorText(m map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(m)) {
		b.WriteString(k + "=" + m[k] + ",")
	}
	return b.String()
}

// RuleFor returns the rule for calls to a host from a workload in namespace
// from, or nil. The caller's own namespace is asked first, then the one of the
// service, then the root namespace; the first that has a rule decides alone.
func (w *World) RuleFor(name host.Name, service, from string, labels map[string]string) *DestinationRule {
	asked := [3]string{from, service, w.rules.root}
	for i, ns := range asked {
		if slices.Contains(asked[:i], ns) {
			continue
		}
		if n := w.rules.byNamespace[ns]; n != nil {
			if r := n.find(name, from, labels); r != nil {
				return r
			}
		}
	}
	return nil
}

// find returns the rule for a host: an exact one before a pattern, the longer
// pattern before the shorter, and among equals one that selects the caller.
func (n *rulesOf) find(name host.Name, from string, labels map[string]string) *DestinationRule {
	choose := func(best, r *DestinationRule) *DestinationRule {
		switch {
		case r.Namespace != from && (len(r.Selector) > 0 || !r.ExportTo.VisibleTo(from)):
		case len(r.Selector) > 0 && !match.Labels(r.Selector, labels):
		case best == nil, len(best.Selector) == 0 && len(r.Selector) > 0:
			return r
		}
		return best
	}
	var best *DestinationRule
	for _, r := range n.exact[name] {
		best = choose(best, r)
	}
	if best != nil {
		return best
	}
	for _, r := range n.wild {
		if best != nil && r.Host != best.Host {
			break
		}
		if host.Matches(r.Host, name) {
			best = choose(best, r)
		}
	}
	return best
}

// Rules returns all merged rules, in no order.
func (w *World) Rules() []*DestinationRule {
	var out []*DestinationRule
	for _, n := range w.rules.byNamespace {
		for _, rules := range n.exact {
			out = append(out, rules...)
		}
		out = append(out, n.wild...)
	}
	return out
}

// SelectorLabels returns the keys of the labels by which rules choose callers in
// a namespace, sorted.
func (w *World) SelectorLabels(namespace string) []string {
	keys := map[string]bool{}
	if n := w.rules.byNamespace[namespace]; n != nil {
		add := func(r *DestinationRule) {
			for k := range r.Selector {
				keys[k] = true
			}
		}
		for _, rules := range n.exact {
			for _, r := range rules {
				add(r)
			}
		}
		for _, r := range n.wild {
			add(r)
		}
	}
	return sortedKeys(keys)
}
