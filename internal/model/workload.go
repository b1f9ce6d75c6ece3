package model

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/identity"
)

// Workload is a running program with an address: a pod, or an address listed in
// a ServiceEntry.
type Workload struct {
	Name, Namespace string
	IPs             []netip.Addr // the primary one first
	Labels          map[string]string
	ServiceAccount  string
	// Ports are the named container ports.
	Ports map[string]uint16
	// Hostname and Subdomain give a pod a name below a headless service.
	Hostname, Subdomain string
	Ready               bool
	// Draining workloads finish what they have and get nothing new.
	Draining bool
	// MTLS says that a sidecar stands before the workload.
	MTLS     bool
	Locality Locality
	// Node is what the pod runs on.
	Node string

	// App is the name that metrics show: of the Deployment, not of the pod.
	App               string
	CanonicalName     string
	CanonicalRevision string
	ClusterID         string

	// fixed workloads are listed by a ServiceEntry, and selected by none.
	fixed bool
}

// Locality places a workload.
type Locality struct{ Region, Zone, SubZone string }

// Identity returns the workload's SPIFFE id, or "" if it has no account.
func (wl *Workload) Identity(trustDomain string) string {
	if wl.ServiceAccount == "" {
		return ""
	}
	return identity.ID{TrustDomain: trustDomain, Namespace: wl.Namespace, ServiceAccount: wl.ServiceAccount}.String()
}

func (wl *Workload) print(p *Printer) {
	p.Text(wl.Name, wl.Namespace, wl.Node, wl.ServiceAccount, wl.Hostname, wl.Subdomain, wl.App, wl.CanonicalName, wl.CanonicalRevision, wl.ClusterID)
	p.Text(wl.Locality.Region, wl.Locality.Zone, wl.Locality.SubZone)
	p.Number(uint64(len(wl.IPs)))
	for _, ip := range wl.IPs {
		p.Text(ip.String())
	}
	p.labels(wl.Labels)
	for _, b := range []bool{wl.Ready, wl.Draining, wl.MTLS} {
		p.Flag(b)
	}
	p.Number(uint64(len(wl.Ports)))
	for _, name := range slices.Sorted(maps.Keys(wl.Ports)) {
		p.Text(name)
		p.Number(uint64(wl.Ports[name]))
	}
}

// samePlace reports whether two states of a workload differ in nothing that
// configuration depends on: only readiness may differ.
func samePlace(a, b *Workload) bool {
	x, y := *a, *b
	x.Ready, x.Draining = y.Ready, y.Draining
	return reflect.DeepEqual(x, y)
}

const (
	tlsModeLabel  = "security.istio.io/tlsMode"
	localityLabel = "istio-locality"
)

// fromPod converts a pod. Pods that have no address yet, or that have ended, are
// no workloads, and give nil.
func fromPod(o *config.Object, opts Options) *Workload {
	in := o.Spec.(*corev1.Pod)
	if in.Status.Phase == corev1.PodSucceeded || in.Status.Phase == corev1.PodFailed {
		return nil
	}
	wl := &Workload{
		Name: o.Name, Namespace: o.Namespace,
		Labels:         o.Labels,
		ServiceAccount: or(in.Spec.ServiceAccountName, "default"),
		Hostname:       in.Spec.Hostname,
		Subdomain:      in.Spec.Subdomain,
		Node:           in.Spec.NodeName,
		Draining:       in.DeletionTimestamp != nil,
		ClusterID:      opts.ClusterID,
		App:            controller(o.Name, o.Labels, in),
	}
	for _, ip := range append([]corev1.PodIP{{IP: in.Status.PodIP}}, in.Status.PodIPs...) {
		if a, err := netip.ParseAddr(ip.IP); err == nil && !slices.Contains(wl.IPs, a) {
			wl.IPs = append(wl.IPs, a)
		}
	}
	if len(wl.IPs) == 0 {
		return nil
	}
	for _, c := range in.Status.Conditions {
		if c.Type == corev1.PodReady {
			wl.Ready = c.Status == corev1.ConditionTrue
		}
	}
	// The label alone, as in Istio: a gateway has a proxy too, but one that takes
	// what comes on its ports as it comes.
	wl.MTLS = o.Labels[tlsModeLabel] == "istio"
	for _, c := range slices.Concat(in.Spec.Containers, in.Spec.InitContainers) {
		for _, p := range c.Ports {
			if p.Name != "" && (p.Protocol == "" || p.Protocol == corev1.ProtocolTCP) {
				if wl.Ports == nil {
					wl.Ports = map[string]uint16{}
				}
				wl.Ports[p.Name] = uint16(p.ContainerPort)
			}
		}
	}
	wl.CanonicalName, wl.CanonicalRevision = identity.Canonical(o.Labels, wl.App)
	return wl
}

// fromWorkloadEntry converts an endpoint of a ServiceEntry.
func fromWorkloadEntry(o *config.Object, in *networking.WorkloadEntry, opts Options) *Workload {
	wl := &Workload{
		Name: o.Name, Namespace: o.Namespace,
		Labels:         in.Labels,
		ServiceAccount: in.ServiceAccount,
		Ready:          true,
		MTLS:           in.Labels[tlsModeLabel] == "istio",
		Locality:       parseLocality(in.Locality),
		App:            o.Name,
		ClusterID:      opts.ClusterID,
		fixed:          true,
	}
	wl.CanonicalName, wl.CanonicalRevision = identity.Canonical(in.Labels, o.Name)
	return wl
}

func parseLocality(s string) Locality {
	p := append(strings.SplitN(s, "/", 3), "", "", "")
	return Locality{p[0], p[1], p[2]}
}

// controller names what the pod was made by, as a user knows it: for a
// Deployment's pod the Deployment, not the ReplicaSet between them.
func controller(pod string, labels map[string]string, in *corev1.Pod) string {
	for _, ref := range in.OwnerReferences {
		if ref.Controller == nil || !*ref.Controller {
			continue
		}
		if hash := labels["pod-template-hash"]; ref.Kind == "ReplicaSet" && hash != "" {
			return strings.TrimSuffix(ref.Name, "-"+hash)
		}
		return ref.Name
	}
	if name := strings.TrimSuffix(in.GenerateName, "-"); name != "" {
		if hash := labels["pod-template-hash"]; hash != "" {
			return strings.TrimSuffix(name, "-"+hash)
		}
		return name
	}
	return pod
}

// workloads is the index of all pods with an address.
type workloads struct {
	byKey       map[config.Key]*Workload
	byIP        map[netip.Addr]*Workload
	byNamespace map[string][]*Workload // by name
}

func (x *workloads) sorted() []*Workload {
	var out []*Workload
	for _, ns := range slices.Sorted(maps.Keys(x.byNamespace)) {
		out = append(out, x.byNamespace[ns]...)
	}
	return out
}

// with returns the index after changes to some workloads; nil stands for one
// that is gone. Lists of other namespaces are shared.
func (x *workloads) with(changes map[config.Key]*Workload) *workloads {
	next := &workloads{map[config.Key]*Workload{}, map[netip.Addr]*Workload{}, map[string][]*Workload{}}
	maps.Copy(next.byKey, x.byKey)
	maps.Copy(next.byIP, x.byIP)
	maps.Copy(next.byNamespace, x.byNamespace)
	ips := map[netip.Addr]bool{}
	for k, wl := range changes {
		for _, w := range []*Workload{x.byKey[k], wl} {
			if w != nil {
				for _, ip := range w.IPs {
					ips[ip] = true
					delete(next.byIP, ip)
				}
			}
		}
		if wl == nil {
			delete(next.byKey, k)
		} else {
			next.byKey[k] = wl
		}
	}
	touched := map[string][]*Workload{}
	for k := range changes {
		touched[k.Namespace] = nil
	}
	for k, wl := range next.byKey {
		if list, ok := touched[k.Namespace]; ok {
			touched[k.Namespace] = append(list, wl)
		}
		for _, ip := range wl.IPs {
			// Two pods have one address while its old owner is going away.
			if ips[ip] && (next.byIP[ip] == nil || precedes(wl, next.byIP[ip])) {
				next.byIP[ip] = wl
			}
		}
	}
	for ns, list := range touched {
		slices.SortFunc(list, func(a, b *Workload) int { return strings.Compare(a.Name, b.Name) })
		if len(list) == 0 {
			delete(next.byNamespace, ns)
		} else {
			next.byNamespace[ns] = list
		}
	}
	return next
}

// ownsSame reports whether two states of a workload own the same of their
// addresses, which they have in common.
func ownsSame(prev, next *workloads, was, is *Workload) bool {
	for _, ip := range was.IPs {
		if (prev.byIP[ip] == was) != (next.byIP[ip] == is) {
			return false
		}
	}
	return true
}

// precedes tells which of two workloads an address belongs to.
func precedes(a, b *Workload) bool {
	if a.Draining != b.Draining {
		return b.Draining
	}
	if a.Namespace != b.Namespace {
		return a.Namespace < b.Namespace
	}
	return a.Name < b.Name
}
