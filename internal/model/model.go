// Package model is the world as the control plane knows it: services,
// workloads, endpoints and the configuration that applies to them, converted
// from Kubernetes' and Istio's types and indexed for the questions that the
// compile step asks.
//
// A [World] never changes. A [Builder] makes the next one from batches of
// changes and shares with its predecessor whatever the batch did not touch, so
// that a pointer compared equal means equal content. Whoever holds a World may
// read it from any goroutine and for as long as it likes.
package model

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/heddle-mesh/heddle/internal/host"
	"github.com/heddle-mesh/heddle/internal/match"
)

// World is everything known at one moment.
type World struct {
	opts      Options
	mesh      *Mesh
	services  *services
	workloads *workloads
	endpoints *endpoints
	secrets   map[secretKey]*Secret
	virtuals  []*VirtualService
	rules     *destinationRules
	gateways  []*Gateway
	auth      *authentication
	authz     map[string][]*AuthorizationPolicy   // by namespace, oldest first
	requests  map[string][]*RequestAuthentication // likewise
	keySets   map[string]string                   // by source

	memo sync.Map // of *memo, see Memo
}

// Mesh returns the mesh-wide settings.
func (w *World) Mesh() *Mesh { return w.mesh }

// ClusterDomain returns the suffix of Kubernetes' service names.
func (w *World) ClusterDomain() string { return w.opts.ClusterDomain }

// ClusterID returns the name of the cluster that the workloads run in.
func (w *World) ClusterID() string { return w.opts.ClusterID }

// Services returns all services, oldest first, then by name and namespace.
func (w *World) Services() []*Service { return w.services.all }

// ServicesIn returns the services of one namespace in the order of Services.
func (w *World) ServicesIn(namespace string) []*Service { return w.services.byNamespace[namespace] }

// ServicesNamed returns the services with a host name, in order of precedence:
// one of Kubernetes before any ServiceEntry, then the oldest.
func (w *World) ServicesNamed(name host.Name) []*Service { return w.services.byHost[name] }

// Service returns the service of first precedence with a host name, or nil.
func (w *World) Service(name host.Name) *Service {
	if s := w.services.byHost[name]; len(s) > 0 {
		return s[0]
	}
	return nil
}

// ServiceAt returns the service of first precedence with a virtual address, or
// nil.
func (w *World) ServiceAt(vip netip.Addr) *Service { return w.services.byVIP[vip] }

// Workloads returns all workloads that have an address, by namespace and name.
func (w *World) Workloads() []*Workload { return w.workloads.sorted() }

// Workload returns the workload with an address, or nil.
func (w *World) Workload(ip netip.Addr) *Workload { return w.workloads.byIP[ip] }

// Endpoints returns what answers for a service: never nil.
func (w *World) Endpoints(s *Service) *ServiceEndpoints {
	if e := w.endpoints.byService[s.Key()]; e != nil {
		return e
	}
	return noEndpoints
}

// Instance is a service on a port of a workload.
type Instance struct {
	Service *Service
	Port    *Port
	Target  uint16 // the workload's own port
}

// InstancesOf returns the services that a workload answers for, ready or not,
// in the order of Services and of their ports. The workload need not be known:
// a proxy may arrive before its pod is seen, and then speaks for itself.
func (w *World) InstancesOf(wl *Workload) []Instance {
	var out []Instance
	for _, s := range w.services.byNamespace[wl.Namespace] {
		if !s.Selects(wl) {
			continue
		}
		for _, p := range s.Ports {
			if t := p.targetOn(wl); t != 0 {
				out = append(out, Instance{s, p, t})
			}
		}
	}
	for _, ip := range wl.IPs {
		out = append(out, w.services.fixed[ip]...)
	}
	slices.SortStableFunc(out, func(a, b Instance) int { return compareServices(a.Service, b.Service) })
	return out
}

// VirtualServices returns all of them, oldest first, then by name and namespace.
func (w *World) VirtualServices() []*VirtualService { return w.virtuals }

// VirtualServicesOf returns those bound to a gateway, "mesh" or
// "namespace/name", in the same order.
func (w *World) VirtualServicesOf(gateway string) []*VirtualService {
	type byGateway struct{}
	return w.Memo(byGateway{}, func() any {
		m := map[string][]*VirtualService{}
		for _, v := range w.virtuals {
			for i, g := range v.Gateways {
				if !slices.Contains(v.Gateways[:i], g) {
					m[g] = append(m[g], v)
				}
			}
		}
		return m
	}).(map[string][]*VirtualService)[gateway]
}

// Gateways returns all of them in the same order.
func (w *World) Gateways() []*Gateway { return w.gateways }

// GatewaysFor returns the gateways that a workload serves: those whose selector
// matches its labels, in whatever namespace they are, and those bound to one of
// its services by name.
func (w *World) GatewaysFor(labels map[string]string, instances []Instance) []*Gateway {
	var out []*Gateway
	for _, g := range w.gateways {
		if len(g.Services) > 0 {
			if slices.ContainsFunc(instances, func(i Instance) bool { return slices.Contains(g.Services, i.Service.Host) }) {
				out = append(out, g)
			}
		} else if match.Labels(g.Spec.GetSelector(), labels) {
			out = append(out, g)
		}
	}
	return out
}

// Memo returns the value for key, calling make for the first who asks. It gives
// derived values, such as what one namespace may see, the lifetime of the World
// they derive from. make must depend on the World and the key alone.
func (w *World) Memo(key any, make func() any) any {
	m, ok := w.memo.Load(key)
	if !ok {
		m, _ = w.memo.LoadOrStore(key, &memo{})
	}
	e := m.(*memo)
	e.once.Do(func() { e.value = make() })
	return e.value
}

type memo struct {
	once  sync.Once
	value any
}

// Meta is what all configuration has in common.
type Meta struct {
	Name, Namespace string
	Created         time.Time
	// Print stands for the content.
	Print Print
}

// compareMeta orders equals: the oldest first, then by name, then by namespace.
func compareMeta(a, b Meta) int {
	if c := a.Created.Compare(b.Created); c != 0 {
		return c
	}
	if c := strings.Compare(a.Name, b.Name); c != 0 {
		return c
	}
	return strings.Compare(a.Namespace, b.Namespace)
}

// VirtualService is a set of routes with its names resolved.
type VirtualService struct {
	Meta
	Hosts []host.Name
	// Gateways are "mesh" or "namespace/name".
	Gateways []string
	ExportTo Visibility
	Spec     *networking.VirtualService
}

// MeshGateway is the name that stands for all sidecars in a list of gateways.
const MeshGateway = "mesh"

// GatewayName resolves the name of a gateway as a VirtualService in namespace
// writes it.
func GatewayName(name, namespace string) string {
	if name == MeshGateway || strings.Contains(name, "/") {
		if rest, ok := strings.CutPrefix(name, "./"); ok {
			return namespace + "/" + rest
		}
		return name
	}
	return namespace + "/" + name
}

// Gateway is a set of servers at the edge.
type Gateway struct {
	Meta
	// Services binds the gateway to workloads by the host names of their
	// services instead of by selector.
	Services []host.Name
	Spec     *networking.Gateway
}

// FullName returns the name by which VirtualServices refer to the gateway.
func (g *Gateway) FullName() string { return g.Namespace + "/" + g.Name }

// Visibility says to which namespaces an object is exported.
type Visibility struct {
	all        bool
	namespaces []string // sorted
}

// VisibleTo reports whether namespace may see the object.
func (v Visibility) VisibleTo(namespace string) bool {
	if v.all {
		return true
	}
	_, ok := slices.BinarySearch(v.namespaces, namespace)
	return ok
}

func (v Visibility) String() string {
	if v.all {
		return "*"
	}
	return strings.Join(v.namespaces, ",")
}

// visibility reads an exportTo list; fallback is the mesh's default for an empty
// one.
func visibility(exportTo, fallback []string, namespace string) Visibility {
	if len(exportTo) == 0 {
		exportTo = fallback
	}
	if len(exportTo) == 0 {
		return Visibility{all: true}
	}
	var v Visibility
	for _, e := range exportTo {
		switch e = strings.TrimSpace(e); e {
		case "*":
			return Visibility{all: true}
		case "~", "":
		case ".":
			v.namespaces = append(v.namespaces, namespace)
		default:
			v.namespaces = append(v.namespaces, e)
		}
	}
	slices.Sort(v.namespaces)
	v.namespaces = slices.Compact(v.namespaces)
	return v
}
