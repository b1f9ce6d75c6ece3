package analyze

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
	securityv1beta1 "istio.io/api/security/v1beta1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/host"
)

const (
	clusterDomain = "cluster.local"
	exportToKey   = "networking.istio.io/exportTo"
	meshGateway   = "mesh"
)

// service is anything that a route can lead to.
type service struct {
	object   *config.Object
	host     host.Name
	ports    []uint32
	exportTo []string
	selector map[string]string // of a Kubernetes Service
	service  *corev1.Service   // nil for a ServiceEntry
}

// workload is a pod, or the template of pods to come.
type workload struct {
	namespace string
	labels    map[string]string
	spec      *corev1.PodSpec
}

type virtualService struct {
	object *config.Object
	spec   *networkingv1alpha3.VirtualService
}

type destinationRule struct {
	object *config.Object
	spec   *networkingv1alpha3.DestinationRule
	host   host.Name
}

type gateway struct {
	object *config.Object
	spec   *networkingv1alpha3.Gateway
}

type peerAuthentication struct {
	object *config.Object
	spec   *securityv1beta1.PeerAuthentication
}

// analysis is the objects by what they are, each list by age as the mesh ranks
// equals, and what was found.
type analysis struct {
	services  []service
	byHost    map[host.Name][]int // of services whose host is no pattern
	patterns  []int
	workloads map[string][]workload // by namespace
	virtuals  []virtualService
	rules     []destinationRule
	gateways  map[string]gateway // by namespace/name
	peers     []peerAuthentication
	faults    []config.Fault
}

func newAnalysis(objects []*config.Object) *analysis {
	objects = slices.Clone(objects)
	slices.SortStableFunc(objects, func(a, b *config.Object) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.Name, b.Name), strings.Compare(a.Namespace, b.Namespace))
	})
	a := &analysis{byHost: map[host.Name][]int{}, workloads: map[string][]workload{}, gateways: map[string]gateway{}}
	for _, o := range objects {
		switch spec := o.Spec.(type) {
		case *corev1.Service:
			a.addService(o, spec)
		case *networkingv1alpha3.ServiceEntry:
			a.addEntry(o, spec)
		case *corev1.Pod:
			a.workloads[o.Namespace] = append(a.workloads[o.Namespace], workload{o.Namespace, o.Labels, &spec.Spec})
		case *appsv1.Deployment:
			t := &spec.Spec.Template
			a.workloads[o.Namespace] = append(a.workloads[o.Namespace], workload{o.Namespace, t.Labels, &t.Spec})
		case *networkingv1alpha3.VirtualService:
			a.virtuals = append(a.virtuals, virtualService{o, spec})
		case *networkingv1alpha3.DestinationRule:
			a.rules = append(a.rules, destinationRule{o, spec, host.FQDN(spec.Host, o.Namespace, clusterDomain)})
		case *networkingv1alpha3.Gateway:
			a.gateways[o.Namespace+"/"+o.Name] = gateway{o, spec}
		case *securityv1beta1.PeerAuthentication:
			a.peers = append(a.peers, peerAuthentication{o, spec})
		}
	}
	// In the order in which they win: the oldest first.
	slices.SortStableFunc(a.virtuals, func(x, y virtualService) int {
		return cmp.Or(x.object.Created.Compare(y.object.Created), strings.Compare(x.object.Name, y.object.Name), strings.Compare(x.object.Namespace, y.object.Namespace))
	})
	return a
}

func (a *analysis) addService(o *config.Object, s *corev1.Service) {
	svc := service{object: o, host: host.Service(o.Name, o.Namespace, clusterDomain), selector: s.Spec.Selector, service: s}
	for _, p := range s.Spec.Ports {
		svc.ports = append(svc.ports, uint32(p.Port))
	}
	if v := o.Annotations[exportToKey]; v != "" {
		for ns := range strings.SplitSeq(v, ",") {
			svc.exportTo = append(svc.exportTo, strings.TrimSpace(ns))
		}
	}
	a.add(svc)
}

func (a *analysis) addEntry(o *config.Object, e *networkingv1alpha3.ServiceEntry) {
	for _, h := range e.Hosts {
		svc := service{object: o, host: host.Name(strings.ToLower(h)), exportTo: e.ExportTo}
		for _, p := range e.Ports {
			svc.ports = append(svc.ports, p.Number)
		}
		a.add(svc)
	}
}

func (a *analysis) add(s service) {
	i := len(a.services)
	a.services = append(a.services, s)
	if s.host.IsWildcard() {
		a.patterns = append(a.patterns, i)
	} else {
		a.byHost[s.host] = append(a.byHost[s.host], i)
	}
}

// find returns the service of a host that is visible from a namespace.
func (a *analysis) find(name host.Name, from string) *service {
	for _, i := range a.byHost[name] {
		if s := &a.services[i]; visible(s.exportTo, s.object.Namespace, from) {
			return s
		}
	}
	for _, i := range a.patterns {
		if s := &a.services[i]; host.Matches(s.host, name) && visible(s.exportTo, s.object.Namespace, from) {
			return s
		}
	}
	return nil
}

// visible reports whether an object of one namespace is exported to another.
func visible(exportTo []string, of, from string) bool {
	if len(exportTo) == 0 {
		return true
	}
	return slices.ContainsFunc(exportTo, func(e string) bool {
		return e == "*" || e == from || e == "." && of == from
	})
}

// hostsNear lists the hosts that a mistaken one may have meant: those of its
// namespace, by the names that may be used there.
func (a *analysis) hostsNear(namespace string) []string {
	var out []string
	for i := range a.services {
		s := &a.services[i]
		switch {
		case s.service != nil && s.object.Namespace == namespace:
			out = append(out, s.object.Name)
		case s.service == nil && visible(s.exportTo, s.object.Namespace, namespace):
			out = append(out, string(s.host))
		}
	}
	return out
}

// selected returns the workloads of a Service.
func (a *analysis) selected(s *service) []workload {
	if len(s.selector) == 0 {
		return nil
	}
	return matching(a.workloads[s.object.Namespace], s.selector)
}

func matching(list []workload, selector map[string]string) []workload {
	var out []workload
	for _, w := range list {
		if subset(selector, w.labels) {
			out = append(out, w)
		}
	}
	return out
}

func subset(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// text writes labels as kubectl does.
func text(labels map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		out = append(out, k+"="+labels[k])
	}
	return strings.Join(out, ",")
}
