package lab

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/internal/identity"
)

// Names that Istio's users and tools know.
const (
	proxyContainer      = "istio-proxy"
	injectLabel         = "sidecar.istio.io/inject"
	injectionLabel      = "istio-injection"
	revisionLabel       = "istio.io/rev"
	templatesAnnotation = "inject.istio.io/templates"
	statusAnnotation    = "sidecar.istio.io/status"
	tlsModeLabel        = "security.istio.io/tlsMode"
)

// neverInjected are the namespaces that Istio's webhook leaves alone.
var neverInjected = []string{"kube-system", "kube-public", "kube-node-lease", "local-path-storage"}

// injected decides whether a pod gets a sidecar, as Istio's webhooks with their
// default selectors do: the namespace's label istio-injection beats istio.io/rev;
// in a namespace with neither, the pod's own labels ask for it; the pod's label
// beats its annotation. The local mesh is the only control plane there is, so
// any revision means it.
func injected(namespace string, namespaceLabels map[string]string, pod *corev1.PodTemplateSpec) bool {
	if pod.Spec.HostNetwork || slices.Contains(neverInjected, namespace) {
		return false
	}
	if _, done := pod.Annotations[statusAnnotation]; done {
		return false
	}
	label, labelled := pod.Labels[injectLabel]
	if label == "false" {
		return false
	}
	injection, hasInjection := namespaceLabels[injectionLabel]
	switch {
	case hasInjection:
		if injection != "enabled" {
			return false
		}
	case namespaceLabels[revisionLabel] != "":
	case label == "true", pod.Labels[revisionLabel] != "":
	default:
		return false
	}
	if labelled && label == "true" {
		return true
	}
	switch pod.Annotations[injectLabel] {
	case "false", "off", "no", "n":
		return false
	}
	return true
}

// isGateway tells a gateway's pod, whose istio-proxy is its only program and
// captures nothing.
func isGateway(pod *corev1.PodTemplateSpec) bool {
	for t := range strings.SplitSeq(pod.Annotations[templatesAnnotation], ",") {
		if strings.TrimSpace(t) == "gateway" {
			return true
		}
	}
	return false
}

// inject adds what Istio's webhook adds: the container istio-proxy and the
// labels by which the rest of the mesh knows a pod with a proxy. The container
// says what is particular to this pod; the lab knows how to run it.
func inject(pod *corev1.Pod, workload string, gateway bool, config map[string]any) {
	role := "sidecar"
	if gateway {
		role = "gateway"
	}
	labels := maps.Clone(pod.Labels)
	if labels == nil {
		labels = make(map[string]string)
	}
	name, revision := identity.Canonical(labels, workload)
	labels[identity.CanonicalNameLabel], labels[identity.CanonicalRevisionLabel] = name, revision
	if _, set := labels[tlsModeLabel]; !set && !gateway {
		labels[tlsModeLabel] = "istio" // callers may use mutual TLS
	}
	pod.Labels = labels
	annotations := maps.Clone(pod.Annotations)
	if annotations == nil {
		annotations = make(map[string]string)
	}
	annotations[statusAnnotation] = `{"initContainers":null,"containers":["istio-proxy"],"revision":"default"}`
	pod.Annotations = annotations

	at := slices.IndexFunc(pod.Spec.Containers, func(c corev1.Container) bool { return c.Name == proxyContainer })
	if at < 0 {
		// First, so that it is started first.
		pod.Spec.Containers = slices.Insert(slices.Clone(pod.Spec.Containers), 0, corev1.Container{Name: proxyContainer})
		at = 0
	} else {
		pod.Spec.Containers = slices.Clone(pod.Spec.Containers)
	}
	c := &pod.Spec.Containers[at]
	if len(c.Command) == 0 {
		c.Command = []string{"heddle-proxy"}
		if len(c.Args) == 0 {
			c.Args = []string{role}
		}
	}
	c.Env = slices.Concat(proxyEnv(pod, workload, config), c.Env)
	if c.ReadinessProbe == nil {
		c.ReadinessProbe = proxyReadiness()
	}
}
