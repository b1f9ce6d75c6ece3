package model

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	networking "istio.io/api/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/host"
	"github.com/heddle-mesh/heddle/internal/match"
)

// Service is a host name with ports that workloads or addresses answer for. It
// comes from a Kubernetes Service or from the ServiceEntries of one namespace
// that name the host.
type Service struct {
	Host            host.Name
	Name, Namespace string
	Created         time.Time
	// Kubernetes is true for a Kubernetes Service, false for a ServiceEntry.
	Kubernetes bool
	Resolution Resolution
	// External services are outside the mesh: their endpoints have no sidecar.
	External bool
	// Headless services have no virtual address; names resolve to endpoints.
	Headless bool
	// Addresses are the virtual addresses. Automatic says that Heddle chose them
	// for a ServiceEntry: they can be known only by name, from captured DNS.
	Addresses []netip.Addr
	Automatic bool
	// Prefixes are address ranges, which a ServiceEntry may claim.
	Prefixes []netip.Prefix
	Ports    []*Port
	ExportTo Visibility
	// SubjectAltNames are what the endpoints may present beside the names of
	// their service accounts.
	SubjectAltNames []string
	Labels          map[string]string
	// Selector chooses workloads of the namespace; nil chooses none.
	Selector map[string]string
	// NotReady publishes endpoints that are not ready.
	NotReady bool
	// Fixed are the endpoints that a ServiceEntry lists.
	Fixed []FixedEndpoint

	Print Print

	// wantsAddress asks for a virtual address if none is written.
	wantsAddress bool
}

// Key identifies a service: a host may have one in each namespace.
func (s *Service) Key() ServiceKey { return ServiceKey{s.Namespace, s.Host} }

// ServiceKey identifies a service.
type ServiceKey struct {
	Namespace string
	Host      host.Name
}

// Port returns the port with a number, or nil.
func (s *Service) Port(number uint16) *Port {
	for _, p := range s.Ports {
		if p.Number == number {
			return p
		}
	}
	return nil
}

// Selects reports whether the service chooses a workload by its labels.
func (s *Service) Selects(wl *Workload) bool {
	return len(s.Selector) > 0 && s.Namespace == wl.Namespace && !wl.fixed && match.Labels(s.Selector, wl.Labels)
}

// Resolution says how the endpoints of a service are found.
type Resolution uint8

const (
	ByEndpoints Resolution = iota // from workloads and listed addresses
	ByClient                      // by the client: whatever address it dialled
	ByDNS                         // by name, all addresses
	ByDNSOnce                     // by name, the first address
)

// Port is one port of a service.
type Port struct {
	Number   uint16
	Name     string
	Protocol Protocol
	// Target is the port of the endpoints; if it is 0, TargetName names a
	// container port of each.
	Target     uint16
	TargetName string
}

// targetOn returns the port of a workload, or 0 if it has none by that name.
func (p *Port) targetOn(wl *Workload) uint16 {
	if p.Target != 0 {
		return p.Target
	}
	return wl.Ports[p.TargetName]
}

// FixedEndpoint is an address, or a DNS name, listed in a ServiceEntry.
type FixedEndpoint struct {
	Workload *Workload
	Name     string // DNS name, if the workload has no address
	Weight   uint32
	// Ports maps the numbers of the service's ports to the endpoint's.
	Ports map[uint16]uint16
}

const (
	exportToAnnotation = "networking.istio.io/exportTo"
	autoAllocateLabel  = "networking.istio.io/enable-autoallocate-ip"
)

// fromKubernetes converts a Kubernetes Service; addresses may be added later.
func fromKubernetes(o *config.Object, opts Options, mesh *Mesh) *Service {
	in := o.Spec.(*corev1.Service)
	var exportTo []string
	if e := o.Annotations[exportToAnnotation]; e != "" {
		exportTo = strings.Split(e, ",")
	}
	s := &Service{
		Host: host.Service(o.Name, o.Namespace, opts.ClusterDomain),
		Name: o.Name, Namespace: o.Namespace, Created: o.Created,
		Kubernetes: true,
		Headless:   in.Spec.ClusterIP == corev1.ClusterIPNone,
		ExportTo:   visibility(exportTo, mesh.ServiceExportTo, o.Namespace),
		Labels:     o.Labels,
		Selector:   in.Spec.Selector,
		NotReady:   in.Spec.PublishNotReadyAddresses,
	}
	if s.Headless {
		s.Resolution = ByClient
	}
	s.wantsAddress = !s.Headless && in.Spec.Type != corev1.ServiceTypeExternalName
	for _, ip := range append([]string{in.Spec.ClusterIP}, in.Spec.ClusterIPs...) {
		if a, err := netip.ParseAddr(ip); err == nil && !slices.Contains(s.Addresses, a) {
			s.Addresses = append(s.Addresses, a)
		}
	}
	for _, p := range in.Spec.Ports {
		if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP {
			continue
		}
		port := &Port{
			Number:   uint16(p.Port),
			Name:     p.Name,
			Protocol: servicePortProtocol(uint16(p.Port), p.Name, p.AppProtocol),
			Target:   uint16(p.TargetPort.IntValue()),
		}
		if name := p.TargetPort.StrVal; name != "" && port.Target == 0 {
			port.TargetName = name
		} else if port.Target == 0 {
			port.Target = port.Number
		}
		if port.Protocol != UDP && s.Port(port.Number) == nil {
			s.Ports = append(s.Ports, port)
		}
	}
	if in.Spec.Type == corev1.ServiceTypeExternalName {
		s.Resolution, s.External, s.Headless = ByDNS, true, true
		s.Addresses, s.Selector = nil, nil
		ports := map[uint16]uint16{}
		for _, p := range s.Ports {
			ports[p.Number] = p.Number
		}
		s.Fixed = []FixedEndpoint{{
			Name: in.Spec.ExternalName, Ports: ports,
			Workload: &Workload{Namespace: o.Namespace, Ready: true, fixed: true},
		}}
	}
	s.seal()
	return s
}

// fromServiceEntry converts a ServiceEntry to a service for each of its hosts.
func fromServiceEntry(o *config.Object, opts Options, mesh *Mesh) []*Service {
	in := o.Spec.(*networking.ServiceEntry)
	proto := Service{
		Name: o.Name, Namespace: o.Namespace, Created: o.Created,
		External:        in.Location == networking.ServiceEntry_MESH_EXTERNAL,
		ExportTo:        visibility(in.ExportTo, mesh.ServiceExportTo, o.Namespace),
		SubjectAltNames: in.SubjectAltNames,
		Labels:          o.Labels,
		Selector:        in.WorkloadSelector.GetLabels(),
	}
	switch in.Resolution {
	case networking.ServiceEntry_STATIC:
		proto.Resolution = ByEndpoints
	case networking.ServiceEntry_DNS:
		proto.Resolution = ByDNS
	case networking.ServiceEntry_DNS_ROUND_ROBIN:
		proto.Resolution = ByDNSOnce
	default:
		// DYNAMIC_DNS is among these: the proxy reaches what the client dialled.
		proto.Resolution = ByClient
	}
	proto.wantsAddress = proto.Resolution != ByClient && o.Labels[autoAllocateLabel] != "false"
	for _, a := range in.Addresses {
		if ip, err := netip.ParseAddr(a); err == nil {
			proto.Addresses = append(proto.Addresses, ip)
		} else if p, err := netip.ParsePrefix(a); err == nil {
			proto.Prefixes = append(proto.Prefixes, p.Masked())
		}
	}
	for _, p := range in.Ports {
		port := &Port{
			Number:   uint16(p.Number),
			Name:     p.Name,
			Protocol: named(uint16(p.Number), p.Protocol),
			Target:   uint16(p.TargetPort),
		}
		if port.Target == 0 {
			port.Target = port.Number
		}
		if port.Protocol != UDP {
			proto.Ports = append(proto.Ports, port)
		}
	}
	for _, e := range in.Endpoints {
		f := FixedEndpoint{Weight: e.Weight, Ports: map[uint16]uint16{}}
		f.Workload = fromWorkloadEntry(o, e, opts)
		if ip, err := netip.ParseAddr(e.Address); err == nil {
			f.Workload.IPs = []netip.Addr{ip.Unmap()}
		} else if !strings.Contains(e.Address, "/") {
			f.Name = e.Address
		} else {
			continue // a Unix domain socket
		}
		for _, p := range proto.Ports {
			f.Ports[p.Number] = p.Target
			if n := e.Ports[p.Name]; n != 0 {
				f.Ports[p.Number] = uint16(n)
			}
		}
		proto.Fixed = append(proto.Fixed, f)
	}
	var out []*Service
	for _, h := range in.Hosts {
		s := proto
		s.Host = host.Name(strings.ToLower(h))
		if dns := s.Resolution == ByDNS || s.Resolution == ByDNSOnce; dns && len(s.Fixed) == 0 && !s.Host.IsWildcard() {
			ports := map[uint16]uint16{}
			for _, p := range s.Ports {
				ports[p.Number] = p.Target
			}
			s.Fixed = []FixedEndpoint{{
				Name: string(s.Host), Ports: ports,
				Workload: &Workload{Namespace: o.Namespace, Ready: true, fixed: true},
			}}
		}
		s.seal()
		out = append(out, &s)
	}
	return out
}

// merged returns a with what another ServiceEntry of its namespace says of the
// same host. Settings of the whole come from the older one, a; ports and
// endpoints add up.
func merged(a, b *Service) *Service {
	s := *a
	s.Ports = slices.Clone(a.Ports)
	for _, p := range b.Ports {
		if s.Port(p.Number) == nil {
			s.Ports = append(s.Ports, p)
		}
	}
	s.Addresses = union(a.Addresses, b.Addresses)
	s.Prefixes = union(a.Prefixes, b.Prefixes)
	s.SubjectAltNames = union(a.SubjectAltNames, b.SubjectAltNames)
	s.Fixed = slices.Concat(a.Fixed, b.Fixed)
	s.seal()
	return &s
}

func union[T comparable](a, b []T) []T {
	out := slices.Clone(a)
	for _, v := range b {
		if !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

// seal computes the print, after which the service may not change.
func (s *Service) seal() {
	p := NewPrinter()
	p.Text(string(s.Host), s.Name, s.Namespace, s.ExportTo.String())
	p.Number(uint64(s.Created.UnixNano()))
	for _, b := range []bool{s.Kubernetes, s.External, s.Headless, s.Automatic, s.NotReady, s.wantsAddress} {
		p.Flag(b)
	}
	p.Number(uint64(s.Resolution))
	p.Number(uint64(len(s.Addresses)))
	for _, a := range s.Addresses {
		p.Text(a.String())
	}
	p.Number(uint64(len(s.Prefixes)))
	for _, a := range s.Prefixes {
		p.Text(a.String())
	}
	p.Number(uint64(len(s.Ports)))
	for _, q := range s.Ports {
		p.Text(q.Name, q.TargetName)
		p.Number(uint64(q.Number)<<32 | uint64(q.Target)<<8 | uint64(q.Protocol))
	}
	p.Text(s.SubjectAltNames...)
	p.labels(s.Labels)
	p.labels(s.Selector)
	p.Number(uint64(len(s.Fixed)))
	for _, f := range s.Fixed {
		p.Text(f.Name)
		f.Workload.print(p)
		p.Number(uint64(f.Weight))
		for _, n := range slices.Sorted(maps.Keys(f.Ports)) {
			p.Number(uint64(n)<<16 | uint64(f.Ports[n]))
		}
	}
	s.Print = p.Sum()
}

// services is the index of all services.
type services struct {
	all         []*Service
	byKey       map[ServiceKey]*Service
	byNamespace map[string][]*Service
	byHost      map[host.Name][]*Service
	byVIP       map[netip.Addr]*Service
	fixed       map[netip.Addr][]Instance
}

// compareServices orders services: the oldest first, then by name and namespace.
func compareServices(a, b *Service) int {
	if c := a.Created.Compare(b.Created); c != 0 {
		return c
	}
	if c := strings.Compare(a.Name, b.Name); c != 0 {
		return c
	}
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	return strings.Compare(string(a.Host), string(b.Host))
}

// newServices indexes what was converted: it merges ServiceEntries, gives out
// addresses, and keeps the previous index's value of a service that came out
// the same.
func newServices(converted []*Service, opts Options, prev *services) *services {
	x := &services{
		byKey:       make(map[ServiceKey]*Service, len(converted)),
		byNamespace: map[string][]*Service{},
		byHost:      make(map[host.Name][]*Service, len(converted)),
		byVIP:       make(map[netip.Addr]*Service, len(converted)),
		fixed:       map[netip.Addr][]Instance{},
	}
	slices.SortFunc(converted, func(a, b *Service) int {
		if a.Kubernetes != b.Kubernetes { // before its decorators
			if a.Kubernetes {
				return -1
			}
			return 1
		}
		return compareServices(a, b)
	})
	kube := map[host.Name]ServiceKey{}
	for _, s := range converted {
		if s.Kubernetes {
			kube[s.Host] = s.Key()
		} else if k, ok := kube[s.Host]; ok {
			// A ServiceEntry for a Kubernetes Service only decorates it.
			if len(s.SubjectAltNames) > 0 {
				d := *x.byKey[k]
				d.SubjectAltNames = union(d.SubjectAltNames, s.SubjectAltNames)
				d.seal()
				x.byKey[k] = &d
			}
			continue
		}
		if older := x.byKey[s.Key()]; older != nil {
			s = merged(older, s)
		}
		x.byKey[s.Key()] = s
	}
	x.all = slices.SortedFunc(maps.Values(x.byKey), compareServices)
	giveAddresses(x.all, opts)
	for i, s := range x.all {
		if prev != nil {
			if p := prev.byKey[s.Key()]; p != nil && p.Print == s.Print {
				s = p
				x.all[i] = p
			}
		}
		x.byKey[s.Key()] = s
		x.byNamespace[s.Namespace] = append(x.byNamespace[s.Namespace], s)
		x.byHost[s.Host] = append(x.byHost[s.Host], s)
		for _, f := range s.Fixed {
			for _, ip := range f.Workload.IPs {
				for _, p := range s.Ports {
					if t := f.Ports[p.Number]; t != 0 {
						x.fixed[ip] = append(x.fixed[ip], Instance{s, p, t})
					}
				}
			}
		}
	}
	for _, s := range x.byHost {
		slices.SortStableFunc(s, func(a, b *Service) int {
			switch {
			case a.Kubernetes == b.Kubernetes:
				return 0
			case a.Kubernetes:
				return -1
			}
			return 1
		})
	}
	for _, kubernetes := range []bool{true, false} {
		for _, s := range x.all {
			for _, ip := range s.Addresses {
				if s.Kubernetes == kubernetes && x.byVIP[ip] == nil {
					x.byVIP[ip] = s
				}
			}
		}
	}
	return x
}
