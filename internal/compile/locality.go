package compile

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/plan"
)

// preference orders the endpoints of a cluster by how near they are to its
// callers. Its text is part of the name by which the endpoints are asked for, so
// that the short road needs to know nothing of the callers.
type preference struct {
	at model.Locality // where the callers are
	// One of these is set: the shares of localities, the labels that bring an
	// endpoint nearer, or byDistance.
	shares     []localityShare
	labels     []labelValue
	byDistance bool
	// failover names, with byDistance, the region to which calls go before all
	// others if the callers' own has nothing left.
	failover string
}

type localityShare struct {
	locality string // "region/zone/*"
	weight   uint32
}

type labelValue struct{ key, value string }

func (p *preference) weighted() bool { return p != nil && len(p.shares) > 0 }

// The labels that stand for an endpoint's locality.
const (
	regionLabel  = "topology.kubernetes.io/region"
	zoneLabel    = "topology.kubernetes.io/zone"
	subZoneLabel = "topology.istio.io/subzone"
)

// nearness is what the preferences of a World depend on: whether any rule cares
// for where callers are, and which of their labels count.
type nearness struct {
	used   bool
	labels []string
}

// nearnessKey is its memo key.
type nearnessKey struct{}

func nearnessOf(w *model.World) nearness {
	var use nearness
	labels := map[string]bool{}
	setting := func(in *networking.LocalityLoadBalancerSetting) {
		for _, l := range in.GetFailoverPriority() {
			if key, _, fixed := strings.Cut(l, "="); !fixed {
				labels[key] = true
			}
		}
	}
	setting(w.Mesh().Locality)
	use.used = len(w.Mesh().Locality.GetDistribute()) > 0
	policy := func(lb *networking.LoadBalancerSettings, out *networking.OutlierDetection) {
		use.used = use.used || out != nil || lb.GetLocalityLbSetting() != nil
		setting(lb.GetLocalityLbSetting())
	}
	whole := func(p *networking.TrafficPolicy) {
		policy(p.GetLoadBalancer(), p.GetOutlierDetection())
		for _, port := range p.GetPortLevelSettings() {
			policy(port.LoadBalancer, port.OutlierDetection)
		}
	}
	for _, r := range w.Rules() {
		whole(r.Policy)
		for _, s := range r.Subsets {
			whole(s.TrafficPolicy)
		}
	}
	use.labels = sortedKeys(labels)
	return use
}

// preference returns the order of endpoints under a policy; nil is none. Without
// outlier detection nothing would ever fail over, so then only fixed shares count.
// Source: Istio, applyLocalityLoadBalancer.
func (s *scope) preference(policy *networking.TrafficPolicy) *preference {
	in := cmp.Or(policy.GetLoadBalancer().GetLocalityLbSetting(), s.mesh.Locality)
	if in.GetEnabled() != nil && !in.Enabled.Value {
		return nil
	}
	p := &preference{at: s.at}
	if d := in.GetDistribute(); len(d) > 0 {
		i := slices.IndexFunc(d, func(d *networking.LocalityLoadBalancerSetting_Distribute) bool { return localityMatches(d.From, s.at) })
		if i < 0 {
			return nil
		}
		for _, to := range sortedKeys(d[i].To) {
			p.shares = append(p.shares, localityShare{to, d[i].To[to]})
		}
		return p
	}
	if policy.GetOutlierDetection() == nil {
		return nil
	}
	if list := in.GetFailoverPriority(); len(list) > 0 {
		for _, l := range list {
			key, value, fixed := strings.Cut(l, "=")
			if !fixed {
				value = labelOf(key, s.labels, s.at)
			}
			p.labels = append(p.labels, labelValue{key, value})
		}
		return p
	}
	if s.at == (model.Locality{}) {
		return nil // nothing is near to nowhere
	}
	p.byDistance = true
	for _, f := range in.GetFailover() {
		if f.From == s.at.Region {
			p.failover = f.To
			break
		}
	}
	return p
}

func labelOf(key string, labels map[string]string, at model.Locality) string {
	switch key {
	case regionLabel:
		return at.Region
	case zoneLabel:
		return at.Zone
	case subZoneLabel:
		return at.SubZone
	}
	return labels[key]
}

// localityMatches compares with "region", "region/zone/*" or "*".
func localityMatches(pattern string, l model.Locality) bool {
	parts := strings.SplitN(pattern, "/", 3)
	for i, have := range [...]string{l.Region, l.Zone, l.SubZone} {
		if i < len(parts) && parts[i] != "*" && parts[i] != have && !(i > 0 && parts[i] == "") {
			return false
		}
	}
	return true
}

// arrange gives the localities of an assignment their priorities or weights.
// labels returns those of an endpoint.
func (p *preference) arrange(la *plan.LoadAssignment, labels func(*plan.Endpoint) map[string]string) *plan.LoadAssignment {
	switch {
	case p == nil:
		return la
	case len(p.shares) > 0:
		la.Localities = p.share(la.Localities)
	default:
		la.Localities = p.rank(la.Localities, labels)
	}
	return la
}

// share gives localities their parts of the traffic, and leaves those out that
// have none. A part for several localities is divided evenly.
func (p *preference) share(in []plan.LocalityEndpoints) []plan.LocalityEndpoints {
	shares := slices.Clone(p.shares)
	// What is named in full counts before what a pattern stands for.
	slices.SortStableFunc(shares, func(a, b localityShare) int { return len(b.locality) - len(a.locality) })
	taken := make([]bool, len(in))
	var out []plan.LocalityEndpoints
	for _, s := range shares {
		var mine []int
		for i := range in {
			if !taken[i] && localityMatches(s.locality, model.Locality(in[i].Locality)) {
				taken[i] = true
				mine = append(mine, i)
			}
		}
		for _, i := range mine {
			group := in[i]
			n := uint32(len(mine))
			group.Weight = (s.weight + n - 1) / n
			if group.Weight > 0 {
				out = append(out, group)
			}
		}
	}
	slices.SortFunc(out, func(a, b plan.LocalityEndpoints) int { return compareLocality(a.Locality, b.Locality) })
	return out
}

// rank gives endpoints their priorities, of which there are as many as differ,
// without gaps.
func (p *preference) rank(in []plan.LocalityEndpoints, labels func(*plan.Endpoint) map[string]string) []plan.LocalityEndpoints {
	var out []plan.LocalityEndpoints
	used := map[uint32]bool{}
	for _, group := range in {
		at := map[uint32][]plan.Endpoint{}
		for _, e := range group.Endpoints {
			n := p.distance(model.Locality(group.Locality), labels(&e))
			at[n] = append(at[n], e)
		}
		for _, n := range slices.Sorted(maps.Keys(at)) {
			used[n] = true
			part := plan.LocalityEndpoints{Locality: group.Locality, Priority: n, Endpoints: at[n]}
			for _, e := range at[n] {
				part.Weight += max(e.Weight, 1)
			}
			out = append(out, part)
		}
	}
	order := slices.Sorted(maps.Keys(used))
	for i := range out {
		out[i].Priority = uint32(slices.Index(order, out[i].Priority))
	}
	slices.SortStableFunc(out, func(a, b plan.LocalityEndpoints) int { return cmp.Compare(a.Priority, b.Priority) })
	return out
}

// distance is how far an endpoint is, 0 the nearest.
func (p *preference) distance(at model.Locality, labels map[string]string) uint32 {
	if len(p.labels) > 0 {
		for i, l := range p.labels {
			if labelOf(l.key, labels, at) != l.value {
				return uint32(len(p.labels) - i)
			}
		}
		return 0
	}
	switch {
	case at.Region != p.at.Region:
		if p.failover != "" && at.Region != p.failover {
			return 4
		}
		return 3
	case at.Zone != p.at.Zone:
		return 2
	case at.SubZone != p.at.SubZone:
		return 1
	}
	return 0
}

// nearMark stands before a preference in an EDS name. It is in no host name,
// subset, label or locality.
const nearMark = "@"

// String returns the preference as a part of an EDS name: "region/zone/subzone"
// with ">region" behind it, "key=value,…", or "locality:weight,…".
func (p *preference) String() string {
	switch {
	case p == nil:
		return ""
	case len(p.shares) > 0:
		parts := make([]string, len(p.shares))
		for i, s := range p.shares {
			parts[i] = s.locality + ":" + strconv.Itoa(int(s.weight))
		}
		return nearMark + "share=" + strings.Join(parts, ",")
	case len(p.labels) > 0:
		parts := make([]string, len(p.labels))
		for i, l := range p.labels {
			parts[i] = l.key + ":" + l.value
		}
		return nearMark + "label=" + strings.Join(parts, ",")
	}
	text := nearMark + "near=" + p.at.Region + "/" + p.at.Zone + "/" + p.at.SubZone
	if p.failover != "" {
		text += ">" + p.failover
	}
	return text
}

// parsePreference reads the text behind the mark. What cannot be read is no
// preference: all endpoints are better than none.
func parsePreference(text string) *preference {
	kind, value, ok := strings.Cut(text, "=")
	if !ok {
		return nil
	}
	p := &preference{}
	switch kind {
	case "near":
		p.byDistance = true
		value, p.failover, _ = strings.Cut(value, ">")
		parts := strings.SplitN(value+"//", "/", 4)
		p.at = model.Locality{Region: parts[0], Zone: parts[1], SubZone: parts[2]}
		return p
	case "share", "label":
		for _, part := range strings.Split(value, ",") {
			i := strings.LastIndexByte(part, ':')
			if kind == "label" {
				i = strings.IndexByte(part, ':')
			}
			if i < 0 {
				return nil
			}
			if kind == "label" {
				p.labels = append(p.labels, labelValue{part[:i], part[i+1:]})
				continue
			}
			n, err := strconv.ParseUint(part[i+1:], 10, 32)
			if err != nil {
				return nil
			}
			p.shares = append(p.shares, localityShare{part[:i], uint32(n)})
		}
		return p
	}
	return nil
}
