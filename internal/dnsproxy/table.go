package dnsproxy

import (
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// table is an index of the names, in lower case and without the final dot.
type table struct {
	exact map[string]*record
	// wild are the hosts "*.x" by "x".
	wild map[string]*record
	// suffix is what the workload's resolver appends first: ".default.svc.cluster.local".
	suffix string
}

// record is the addresses of a host.
type record struct{ v4, v6 addresses }

// addresses are those of one family. The families take turns on their own, as
// clients ask for one of each.
type addresses struct {
	ips  []netip.Addr
	turn atomic.Uint32 // how often they were asked for
}

// newTable indexes t for a workload whose first search domain is domain. A host
// beats the short form of another. Hosts without addresses are left to the
// upstreams, which may know them.
func newTable(t *plan.NameTable, domain string) *table {
	domain = strings.ToLower(strings.TrimSuffix(domain, "."))
	x := &table{exact: map[string]*record{}, wild: map[string]*record{}}
	if domain != "" {
		x.suffix = "." + domain
	}
	if t == nil {
		return x
	}
	type short struct {
		name string
		r    *record
	}
	var shorts []short
	for _, e := range t.Names {
		r := newRecord(e.IPs)
		if r == nil {
			continue
		}
		host := strings.ToLower(strings.TrimSuffix(e.Host, "."))
		if parent, ok := strings.CutPrefix(host, "*."); ok {
			x.wild[parent] = r
			continue
		}
		x.exact[host] = r
		for _, name := range shortForms(e, host, domain) {
			shorts = append(shorts, short{name, r})
		}
	}
	for _, s := range shorts {
		if _, taken := x.exact[s.name]; !taken {
			x.exact[s.name] = s.r
		}
	}
	return x
}

func newRecord(ips []netip.Addr) *record {
	r := &record{}
	for _, ip := range ips {
		switch ip = ip.Unmap().WithZone(""); {
		case ip.Is4():
			r.v4.ips = append(r.v4.ips, ip)
		case ip.Is6():
			r.v6.ips = append(r.v6.ips, ip)
		}
	}
	if len(r.v4.ips)+len(r.v6.ips) == 0 {
		return nil
	}
	return r
}

// shortForms are the names under which Kubernetes knows a service besides its
// full one: "reviews.default" and "reviews.default.svc", and "reviews" within
// its namespace. A service of another cluster domain has none.
func shortForms(e plan.NameEntry, host, domain string) []string {
	own, clusterDomain, ok := strings.Cut(domain, ".") // "default", "svc.cluster.local"
	if !ok || e.Short == "" || e.Namespace == "" || !strings.HasSuffix(host, "."+clusterDomain) {
		return nil
	}
	name, namespace := strings.ToLower(e.Short), strings.ToLower(e.Namespace)
	svc, _, _ := strings.Cut(clusterDomain, ".")
	names := []string{name + "." + namespace, name + "." + namespace + "." + svc}
	if namespace == own {
		names = append(names, name)
	}
	return names
}

// find returns the addresses of a name, or nil if it is none of the mesh. name
// is as it stands in a query.
func (x *table) find(name string) *record {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if r := x.exact[name]; r != nil {
		return r
	}
	// A resolver's first try is often a full name with a search domain after it.
	stripped, searched := strings.CutSuffix(name, x.suffix)
	searched = searched && x.suffix != "" && stripped != ""
	if searched {
		if r := x.exact[stripped]; r != nil {
			return r
		}
		if r := x.findWild(stripped); r != nil {
			return r
		}
	}
	return x.findWild(name)
}

// findWild looks for the longest "*.x" that name is under.
func (x *table) findWild(name string) *record {
	for {
		_, parent, ok := strings.Cut(name, ".")
		if !ok {
			return nil
		}
		if r := x.wild[parent]; r != nil {
			return r
		}
		name = parent
	}
}

// rotated returns the addresses, beginning with another one each time, so that
// clients that take the first spread over the endpoints of a headless service.
func (a *addresses) rotated() []netip.Addr {
	if len(a.ips) < 2 {
		return a.ips
	}
	i := int((a.turn.Add(1) - 1) % uint32(len(a.ips)))
	return slices.Concat(a.ips[i:], a.ips[:i])
}
