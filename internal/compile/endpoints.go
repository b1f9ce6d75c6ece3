package compile

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/heddle-mesh/heddle/internal/host"
	"github.com/heddle-mesh/heddle/internal/match"
	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/plan"
)

// Endpoints answers for one cluster by its EDS name, straight from the World. It
// reports false if there is no such service, port or subset.
//
// A cluster's name says all that is needed as long as its callers agree on which
// service has the host and on what its subsets are: the service of first
// precedence, and the rule that its own namespace goes by. Callers to whom a
// different one is visible ask under a longer name; see edsName.
func Endpoints(w *model.World, edsName string) (*plan.LoadAssignment, bool) {
	name, near, _ := strings.Cut(edsName, nearMark)
	name, extra, extended := strings.Cut(name, edsMark)
	part := strings.Split(name, "|")
	if len(part) != 4 || part[0] != "outbound" {
		return nil, false
	}
	number, err := strconv.ParseUint(part[1], 10, 16)
	if err != nil {
		return nil, false
	}
	s := w.Service(host.Name(part[3]))
	var labels map[string]string
	if extended {
		namespace, text, _ := strings.Cut(extra, edsMark)
		named := w.ServicesNamed(host.Name(part[3]))
		i := slices.IndexFunc(named, func(s *model.Service) bool { return s.Namespace == namespace })
		if i < 0 {
			return nil, false
		}
		s, labels = named[i], parseLabels(text)
	}
	if s == nil || s.Port(uint16(number)) == nil {
		return nil, false
	}
	if subset := part[2]; subset != "" && !extended {
		in := homeRule(w, s).Subset(subset)
		if in == nil {
			return nil, false
		}
		labels = in.Labels
	}
	return assignment(w, s, edsName, uint16(number), labels, parsePreference(near)), true
}

func assignment(w *model.World, s *model.Service, edsName string, port uint16, labels map[string]string, near *preference) *plan.LoadAssignment {
	labelled := map[netip.AddrPort]map[string]string{}
	at := map[plan.Locality][]plan.Endpoint{}
	for _, e := range w.Endpoints(s).ByPort[port] {
		if !e.Address.IsValid() || !match.Labels(labels, e.Labels) {
			continue
		}
		out := plan.Endpoint{
			Address: netip.AddrPortFrom(e.Address, e.Port),
			Weight:  e.Weight,
			MTLS:    !s.External && e.MTLS && w.MTLS(e.Workload.Namespace, e.Labels).Port(e.Port) != model.Disable,
			Workload: plan.Workload{
				Name:              e.App,
				Namespace:         e.Workload.Namespace,
				CanonicalName:     e.CanonicalName,
				CanonicalRevision: e.CanonicalRevision,
				ClusterID:         e.ClusterID,
			},
		}
		if e.Draining {
			out.Health = plan.Draining
		}
		if near != nil {
			labelled[out.Address] = e.Labels
		}
		l := plan.Locality(e.Locality)
		at[l] = append(at[l], out)
	}
	la := &plan.LoadAssignment{Cluster: edsName}
	for _, l := range slices.SortedFunc(maps.Keys(at), compareLocality) {
		group := plan.LocalityEndpoints{Locality: l, Endpoints: at[l]}
		for _, e := range at[l] {
			group.Weight += max(e.Weight, 1)
		}
		la.Localities = append(la.Localities, group)
	}
	return near.arrange(la, func(e *plan.Endpoint) map[string]string { return labelled[e.Address] })
}

func compareLocality(a, b plan.Locality) int {
	return cmp.Or(strings.Compare(a.Region, b.Region), strings.Compare(a.Zone, b.Zone), strings.Compare(a.SubZone, b.SubZone))
}

// edsMark separates what an EDS name says beyond the cluster's. It is in no host
// name, subset or label.
const edsMark = "~"

// edsName returns the name under which a cluster's endpoints are asked for:
// "outbound|80|v1|host", or, if the short road would understand that otherwise
// than these callers do, "outbound|80|v1|host~namespace~label=value,…". The order in
// which these callers prefer endpoints follows at the end.
func edsName(cluster string, d *destination, subset *networking.Subset, near *preference) string {
	same := d.main
	if subset != nil {
		home := d.home.Subset(subset.Name)
		same = same && home != nil && maps.Equal(home.Labels, subset.Labels)
	}
	if same {
		return cluster + near.String()
	}
	var b strings.Builder
	b.WriteString(cluster + edsMark + d.Namespace + edsMark)
	for i, k := range sortedKeys(subset.GetLabels()) {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(k + "=" + subset.Labels[k])
	}
	b.WriteString(near.String())
	return b.String()
}

func parseLabels(text string) map[string]string {
	if text == "" {
		return nil
	}
	out := map[string]string{}
	for _, pair := range strings.Split(text, ",") {
		k, v, _ := strings.Cut(pair, "=")
		out[k] = v
	}
	return out
}

// homeRule returns the rule that a service's own namespace goes by.
func homeRule(w *model.World, s *model.Service) *model.DestinationRule {
	return w.RuleFor(s.Host, s.Namespace, s.Namespace, nil)
}
