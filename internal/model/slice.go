package model

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/host"
)

// An EndpointSlice lists what answers for a service. Where a service has slices,
// they alone say who its endpoints are and which are ready: Kubernetes derives
// them from pods, or somebody writes them by hand for a service without a
// selector. Where it has none, as in the mesh on one machine, the selector says.

// slice is one EndpointSlice.
type slice struct {
	service   ServiceKey
	ports     []slicePort
	endpoints []sliceEndpoint
}

type slicePort struct {
	name   string // of the service's port
	number uint16
}

type sliceEndpoint struct {
	addresses []netip.Addr
	pod       config.Key // the zero Key if there is none behind the address
	node      string
	zone      string
	ready     bool
	draining  bool // it is going away, and serves until then
}

// fromEndpointSlice converts a slice. It returns nil for one of no service, and
// for one of names instead of addresses, which no mesh routes to.
func fromEndpointSlice(o *config.Object, opts Options) *slice {
	in := o.Spec.(*discoveryv1.EndpointSlice)
	service := o.Labels[discoveryv1.LabelServiceName]
	if service == "" || in.AddressType == discoveryv1.AddressTypeFQDN {
		return nil
	}
	out := &slice{service: ServiceKey{o.Namespace, host.Service(service, o.Namespace, opts.ClusterDomain)}}
	for _, p := range in.Ports {
		if p.Port == nil || *p.Port <= 0 || *p.Port > 65535 || p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP {
			continue
		}
		q := slicePort{number: uint16(*p.Port)}
		if p.Name != nil {
			q.name = *p.Name
		}
		out.ports = append(out.ports, q)
	}
	for _, e := range in.Endpoints {
		x := sliceEndpoint{
			// "Consumers should interpret a missing value as true."
			ready:    e.Conditions.Ready == nil || *e.Conditions.Ready,
			draining: isTrue(e.Conditions.Terminating) && isTrue(e.Conditions.Serving),
		}
		for _, a := range e.Addresses {
			if ip, err := netip.ParseAddr(a); err == nil {
				x.addresses = append(x.addresses, ip)
			}
		}
		if len(x.addresses) == 0 {
			continue
		}
		if r := e.TargetRef; r != nil && r.Kind == config.Pod.Name {
			x.pod = config.Key{Kind: config.Pod, Namespace: cmp.Or(r.Namespace, o.Namespace), Name: r.Name}
		}
		if e.NodeName != nil {
			x.node = *e.NodeName
		}
		if e.Zone != nil {
			x.zone = *e.Zone
		}
		out.endpoints = append(out.endpoints, x)
	}
	return out
}

func isTrue(b *bool) bool { return b != nil && *b }

// sliced collects the endpoints of a service from its slices.
func (b *Builder) sliced(s *Service, of map[config.Key]*slice, workloads *workloads, trustDomain string) *ServiceEndpoints {
	out := &ServiceEndpoints{ByPort: map[uint16][]*Endpoint{}}
	accounts := map[string]bool{}
	// Two slices may name one pod: while an endpoint moves between them, and for
	// the two families of its addresses.
	type place struct {
		port uint16
		at   netip.AddrPort
	}
	seen := map[place]bool{}
	for _, sl := range of {
		for _, e := range sl.endpoints {
			wl, known := b.behind(e, s.Namespace, workloads)
			if !known {
				continue
			}
			if id := wl.Identity(trustDomain); id != "" {
				accounts[id] = true
			}
			if !e.ready && !e.draining && !s.NotReady {
				continue
			}
			// "All addresses are fungible and clients may choose to only use the
			// first element."
			address := e.addresses[0]
			if s.oneFamily(wl, address) {
				continue
			}
			for _, p := range s.Ports {
				i := slices.IndexFunc(sl.ports, func(q slicePort) bool { return q.name == p.Name })
				if i < 0 {
					continue
				}
				at := place{p.Number, netip.AddrPortFrom(address, sl.ports[i].number)}
				if !seen[at] {
					seen[at] = true
					out.ByPort[p.Number] = append(out.ByPort[p.Number], &Endpoint{
						Workload: wl, Address: address, Port: at.at.Port(), Draining: e.draining && !e.ready,
					})
				}
			}
		}
	}
	out.seal(accounts)
	return out
}

// oneFamily reports whether an address is another one of a pod that is called at
// its primary address. A headless service has them all: its clients choose.
func (s *Service) oneFamily(wl *Workload, address netip.Addr) bool {
	return !s.Headless && len(s.Selector) > 0 && len(wl.IPs) > 1 && slices.Contains(wl.IPs[1:], address) && s.serves(wl.IPs[0])
}

// serves reports whether the service has addresses of the family of one, so that
// its slices can be expected to.
func (s *Service) serves(ip netip.Addr) bool {
	return slices.ContainsFunc(s.Addresses, func(a netip.Addr) bool { return a.Is4() == ip.Is4() })
}

// behind returns the workload that an address belongs to. It is not known while
// the slice is newer than what is known of its pod: whether a proxy stands before
// it can not be told until then.
func (b *Builder) behind(e sliceEndpoint, namespace string, workloads *workloads) (*Workload, bool) {
	if e.pod != (config.Key{}) {
		if wl := workloads.byKey[e.pod]; wl != nil {
			return wl, true
		}
		wl := b.onHost[e.pod]
		return wl, wl != nil
	}
	if wl := workloads.byIP[e.addresses[0]]; wl != nil && wl.Namespace == namespace {
		return wl, true
	}
	wl := &Workload{Namespace: namespace, IPs: e.addresses, Ready: true, ClusterID: b.opts.ClusterID, fixed: true}
	wl.Locality = b.nodes[e.node]
	if wl.Locality == (Locality{}) {
		wl.Locality.Zone = e.zone
	}
	return wl, true
}

// slice notes the change of an EndpointSlice, and which services it touches.
func (b *Builder) slice(c config.Change, touched map[ServiceKey]bool) {
	if old := b.slices[c.Key]; old != nil {
		touched[old.service] = true
		delete(b.slicesOf[old.service], c.Key)
		if len(b.slicesOf[old.service]) == 0 {
			delete(b.slicesOf, old.service)
		}
		delete(b.slices, c.Key)
	}
	if c.Object == nil {
		return
	}
	next := fromEndpointSlice(c.Object, b.opts)
	if next == nil {
		return
	}
	touched[next.service] = true
	b.slices[c.Key] = next
	if b.slicesOf[next.service] == nil {
		b.slicesOf[next.service] = map[config.Key]*slice{}
	}
	b.slicesOf[next.service][c.Key] = next
}

// gather collects what answers for a service.
func (b *Builder) gather(s *Service, w *World) *ServiceEndpoints {
	if of := b.slicesOf[s.Key()]; s.Kubernetes && len(of) > 0 {
		return b.sliced(s, of, w.workloads, w.mesh.TrustDomain)
	}
	return gather(s, w.workloads.byNamespace[s.Namespace], w.mesh.TrustDomain)
}

// Labels by which a node is placed. The last is Istio's; a cloud sets the others.
const (
	regionLabel  = "topology.kubernetes.io/region"
	zoneLabel    = "topology.kubernetes.io/zone"
	subZoneLabel = "topology.istio.io/subzone"
)

func localityOf(labels map[string]string) Locality {
	return Locality{labels[regionLabel], labels[zoneLabel], labels[subZoneLabel]}
}

// node notes the change of a node, and whether its pods are elsewhere now.
func (b *Builder) node(c config.Change, moved map[string]bool) {
	var at Locality
	if c.Object != nil {
		at = localityOf(c.Object.Labels)
	}
	if b.nodes[c.Key.Name] == at {
		return
	}
	moved[c.Key.Name] = true
	if at == (Locality{}) {
		delete(b.nodes, c.Key.Name)
	} else {
		b.nodes[c.Key.Name] = at
	}
}

// located returns a workload at the place of its node, unless it says itself
// where it is.
func (b *Builder) located(wl *Workload) *Workload {
	at := localityOf(wl.Labels)
	if n, ok := b.nodes[wl.Node]; ok {
		at = n
	}
	if l := wl.Labels[localityLabel]; l != "" {
		at = parseLocality(strings.ReplaceAll(l, ".", "/"))
	}
	if at == wl.Locality {
		return wl
	}
	next := *wl
	next.Locality = at
	return &next
}
