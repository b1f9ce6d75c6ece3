package compile

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/internal/host"
	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/plan"
)

// NameTable returns what captured DNS queries are answered with: every host that
// the proxy may call and that has addresses.
func NameTable(v *View) *plan.NameTable { return v.scope.nameTable() }

func (s *scope) nameTable() *plan.NameTable {
	entries := map[string]*plan.NameEntry{}
	add := func(name string, d *destination, ips ...netip.Addr) {
		e := entries[name]
		if e == nil {
			e = &plan.NameEntry{Host: name, Registry: "External"}
			if d.Kubernetes {
				e.Registry, e.Namespace = "Kubernetes", d.Namespace
				e.Short = strings.TrimSuffix(name, "."+d.Namespace+".svc."+s.domain)
			}
			entries[name] = e
		}
		for _, ip := range ips {
			if !slices.Contains(e.IPs, ip) {
				e.IPs = append(e.IPs, ip)
			}
		}
	}
	for _, d := range s.services {
		if len(d.Addresses) > 0 {
			add(string(d.Host), d, d.Addresses...)
			continue
		}
		if !d.Headless || d.Resolution != model.ByClient {
			continue
		}
		// A headless service stands for its pods, and each pod with a host name has
		// one below the service.
		for _, p := range d.Ports {
			for _, e := range d.endpoints.ByPort[p.Number] {
				if !e.Address.IsValid() || e.Draining {
					continue
				}
				add(string(d.Host), d, e.Address)
				if w := e.Workload; w.Hostname != "" && w.Subdomain == d.Name {
					add(string(host.Name(w.Hostname)+"."+d.Host), d, e.Address)
				}
			}
		}
	}
	t := &plan.NameTable{}
	for _, name := range sortedKeys(entries) {
		e := entries[name]
		slices.SortFunc(e.IPs, netip.Addr.Compare)
		t.Names = append(t.Names, *e)
	}
	return t
}
