package kube

import (
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/kubeapi"
)

// uninteresting are the types of Secrets that hold nothing for a mesh, and there
// can be many of them.
var uninteresting = []corev1.SecretType{
	corev1.SecretTypeServiceAccountToken, corev1.SecretTypeDockercfg, corev1.SecretTypeDockerConfigJson,
	corev1.SecretTypeBootstrapToken, "helm.sh/release.v1",
}

// coreFeeds are the feeds of the kinds that every cluster has.
func (s *Source) coreFeeds() []*feed {
	core := s.cfg.Clients.Core.CoreV1()
	all := metav1.NamespaceAll
	make := func(kind config.Kind, name, apiVersion string, example runtime.Object, trim func(runtime.Object)) *feed {
		return &feed{view: s.view, kind: kind, name: name, example: example, read: s.typed(kind, apiVersion), trim: trim}
	}
	namespaces := make(config.Namespace, "namespaces", "v1", &corev1.Namespace{}, trimNamespace)
	namespaces.objects = kubeapi.Objects(core.Namespaces(), "")
	nodes := make(config.Node, "nodes", "v1", &corev1.Node{}, trimNode)
	nodes.objects = kubeapi.Objects(core.Nodes(), "")
	services := make(config.Service, "services", "v1", &corev1.Service{}, trimService)
	services.objects = kubeapi.Objects(core.Services(all), "")
	pods := make(config.Pod, "pods", "v1", &corev1.Pod{}, trimPod)
	// A pod that has ended has no address any more.
	pods.objects = kubeapi.Objects(core.Pods(all), "status.phase!=Succeeded,status.phase!=Failed")
	slices := make(config.EndpointSlice, "endpointslices", "discovery.k8s.io/v1", &discoveryv1.EndpointSlice{}, trimSlice)
	slices.objects = kubeapi.Objects(s.cfg.Clients.Core.DiscoveryV1().EndpointSlices(all), "")
	mesh := make(config.ConfigMap, "configmaps", "v1", &corev1.ConfigMap{}, trimMeta)
	mesh.objects = kubeapi.Objects(core.ConfigMaps(s.view.root), fields.OneTermEqualSelector(metav1.ObjectNameField, s.view.mesh).String())
	secrets := make(config.Secret, "secrets", "v1", &corev1.Secret{}, trimSecret)
	var types []string
	for _, t := range uninteresting {
		types = append(types, "type!="+string(t))
	}
	secrets.objects = kubeapi.Objects(core.Secrets(all), strings.Join(types, ","))
	typed := secrets.read
	secrets.read = func(o runtime.Object) (reading, bool) {
		if len(o.(*corev1.Secret).Data) == 0 {
			return reading{}, false
		}
		return typed(o)
	}
	return []*feed{namespaces, nodes, services, pods, slices, mesh, secrets}
}

// The trims drop what nobody reads. They may be called twice for one object.

// lastApplied holds a copy of the whole object.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

func trimMeta(o runtime.Object) {
	m := o.(metav1.Object)
	m.SetManagedFields(nil)
	m.SetSelfLink("")
	m.SetUID("")
	m.SetGeneration(0)
	m.SetFinalizers(nil)
	if a := m.GetAnnotations(); a[lastApplied] != "" {
		delete(a, lastApplied)
		m.SetAnnotations(a)
	}
}

// trimAnnotations leaves only those that are of a mesh.
func trimAnnotations(o metav1.Object) {
	a := o.GetAnnotations()
	maps.DeleteFunc(a, func(k, _ string) bool {
		domain, _, _ := strings.Cut(k, "/")
		return !strings.HasSuffix(domain, "istio.io")
	})
	if len(a) == 0 {
		a = nil
	}
	o.SetAnnotations(a)
}

func trimNamespace(o runtime.Object) {
	trimMeta(o)
	n := o.(*corev1.Namespace)
	trimAnnotations(n)
	n.Spec, n.Status = corev1.NamespaceSpec{}, corev1.NamespaceStatus{}
}

func trimNode(o runtime.Object) {
	trimMeta(o)
	n := o.(*corev1.Node)
	n.Annotations = nil
	n.Spec, n.Status = corev1.NodeSpec{}, corev1.NodeStatus{}
	// Its heartbeat changes nothing else.
	maps.DeleteFunc(n.Labels, func(k, _ string) bool {
		return !strings.HasPrefix(k, "topology.") && !strings.HasSuffix(strings.SplitN(k, "/", 2)[0], "istio.io")
	})
}

func trimService(o runtime.Object) {
	trimMeta(o)
	s := o.(*corev1.Service)
	s.Status.Conditions = nil
}

func trimPod(o runtime.Object) {
	trimMeta(o)
	p := o.(*corev1.Pod)
	trimAnnotations(p)
	for i := range p.OwnerReferences {
		r := &p.OwnerReferences[i]
		*r = metav1.OwnerReference{APIVersion: r.APIVersion, Kind: r.Kind, Name: r.Name, Controller: r.Controller}
	}
	p.Spec = corev1.PodSpec{
		Containers: trimContainers(p.Spec.Containers), InitContainers: trimContainers(p.Spec.InitContainers),
		ServiceAccountName: p.Spec.ServiceAccountName, NodeName: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork,
		Hostname: p.Spec.Hostname, Subdomain: p.Spec.Subdomain,
	}
	status := corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			status.Conditions = []corev1.PodCondition{{Type: c.Type, Status: c.Status}}
		}
	}
	p.Status = status
}

// trimContainers leaves names and ports. An init container without ports counts
// for nothing, unless it is a sidecar.
func trimContainers(in []corev1.Container) []corev1.Container {
	var out []corev1.Container
	for _, c := range in {
		out = append(out, corev1.Container{Name: c.Name, Ports: c.Ports, RestartPolicy: c.RestartPolicy})
	}
	return out
}

func trimSlice(o runtime.Object) {
	trimMeta(o)
	s := o.(*discoveryv1.EndpointSlice)
	s.Annotations, s.OwnerReferences, s.GenerateName = nil, nil, ""
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		e.Hostname, e.Hints, e.DeprecatedTopology = nil, nil, nil
		if r := e.TargetRef; r != nil {
			e.TargetRef = &corev1.ObjectReference{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name}
		}
	}
}

// secretKeys are the entries of a Secret that a gateway may be given: those of
// type kubernetes.io/tls, and those of Istio's older form.
var secretKeys = map[string]bool{
	"tls.crt": true, "tls.key": true, "ca.crt": true, "ca.crl": true, "tls.ocsp-staple": true,
	"cert": true, "key": true, "cacert": true, "crl": true,
}

func trimSecret(o runtime.Object) {
	trimMeta(o)
	s := o.(*corev1.Secret)
	trimAnnotations(s)
	maps.DeleteFunc(s.Data, func(k string, _ []byte) bool { return !secretKeys[k] })
}

// trimCustom drops what is not the author's own, but for the generation, which
// a status answers to.
func trimCustom(o runtime.Object) {
	u := o.(*unstructured.Unstructured)
	u.SetManagedFields(nil)
	if a := u.GetAnnotations(); a[lastApplied] != "" {
		delete(a, lastApplied)
		u.SetAnnotations(a)
	}
}

// trimDefinition leaves the names and versions of a CustomResourceDefinition.
func trimDefinition(u *unstructured.Unstructured) {
	trimCustom(u)
	versions, _, _ := unstructured.NestedSlice(u.Object, "spec", "versions")
	for i, v := range versions {
		if m, ok := v.(map[string]any); ok {
			versions[i] = map[string]any{"name": m["name"], "served": m["served"]}
		}
	}
	if spec, ok := u.Object["spec"].(map[string]any); ok {
		spec["versions"] = versions
	}
}
