package model

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
)

// Endpoint is one place that answers for a service port: an address of a
// workload, or a DNS name.
type Endpoint struct {
	*Workload
	Address netip.Addr // the zero Addr if Name is set
	Name    string
	Port    uint16
	Weight  uint32
	// Draining endpoints finish what they have and get nothing new.
	Draining bool
}

// ServiceEndpoints is what answers for one service.
type ServiceEndpoints struct {
	// ByPort lists the endpoints of each service port, by address and name.
	ByPort map[uint16][]*Endpoint
	// Accounts are the identities that endpoints may present, ready or not, so
	// that they change less often than readiness does; sorted.
	Accounts []string
}

var noEndpoints = &ServiceEndpoints{}

// endpoints is the index of the endpoints of all services.
type endpoints struct {
	byService map[ServiceKey]*ServiceEndpoints
}

// gather collects the endpoints of a service: ready workloads that it selects,
// those that drain, and the addresses it lists.
func gather(s *Service, workloads []*Workload, trustDomain string) *ServiceEndpoints {
	out := &ServiceEndpoints{ByPort: map[uint16][]*Endpoint{}}
	accounts := map[string]bool{}
	add := func(wl *Workload, p *Port, e Endpoint) {
		if id := wl.Identity(trustDomain); id != "" {
			accounts[id] = true
		}
		if e.Port != 0 && (wl.Ready || s.NotReady) {
			e.Workload, e.Draining = wl, wl.Draining
			out.ByPort[p.Number] = append(out.ByPort[p.Number], &e)
		}
	}
	for _, wl := range workloads {
		if !s.Selects(wl) {
			continue
		}
		for _, p := range s.Ports {
			add(wl, p, Endpoint{Address: wl.IPs[0], Port: p.targetOn(wl)})
		}
	}
	for _, f := range s.Fixed {
		e := Endpoint{Name: f.Name, Weight: f.Weight}
		if f.Name == "" {
			e.Address = f.Workload.IPs[0]
		}
		for _, p := range s.Ports {
			e.Port = f.Ports[p.Number]
			add(f.Workload, p, e)
		}
	}
	out.seal(accounts)
	return out
}

// seal puts everything in order.
func (out *ServiceEndpoints) seal(accounts map[string]bool) {
	for _, list := range out.ByPort {
		slices.SortStableFunc(list, func(a, b *Endpoint) int {
			if c := a.Address.Compare(b.Address); c != 0 {
				return c
			}
			if c := strings.Compare(a.Name, b.Name); c != 0 {
				return c
			}
			return int(a.Port) - int(b.Port)
		})
	}
	out.Accounts = slices.Sorted(maps.Keys(accounts))
}

// changedPorts returns the ports whose endpoints differ.
func changedPorts(a, b *ServiceEndpoints) []uint16 {
	var out []uint16
	for p := range a.ByPort {
		if !slices.EqualFunc(a.ByPort[p], b.ByPort[p], sameEndpoint) {
			out = append(out, p)
		}
	}
	for p := range b.ByPort {
		if len(a.ByPort[p]) == 0 && len(b.ByPort[p]) > 0 {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func sameEndpoint(a, b *Endpoint) bool {
	return (a.Workload == b.Workload || a.Workload.fixed && b.Workload.fixed && reflect.DeepEqual(a.Workload, b.Workload)) && a.Address == b.Address && a.Name == b.Name && a.Port == b.Port && a.Weight == b.Weight &&
		a.Draining == b.Draining
}
