package lab

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// proxyEnv is what Istio's injector tells a proxy by its environment.
func proxyEnv(pod *corev1.Pod, workload string) []corev1.EnvVar {
	fromField := func(name, path string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
	}
	value := func(name, v string) corev1.EnvVar {
		// The value is final: no reference in it is meant for Kubernetes.
		return corev1.EnvVar{Name: name, Value: strings.ReplaceAll(v, "$", "$$")}
	}
	type podPort struct {
		Name          string `json:"name,omitempty"`
		ContainerPort int32  `json:"containerPort"`
		Protocol      string `json:"protocol,omitempty"`
	}
	ports := []podPort{}
	var apps []string
	for _, c := range pod.Spec.Containers {
		if c.Name == proxyContainer {
			continue
		}
		apps = append(apps, c.Name)
		for _, p := range c.Ports {
			ports = append(ports, podPort{p.Name, p.ContainerPort, string(p.Protocol)})
		}
	}
	text := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			return "" // plain strings and numbers always have a form
		}
		return string(b)
	}
	env := []corev1.EnvVar{
		fromField("POD_NAME", "metadata.name"),
		fromField("POD_NAMESPACE", "metadata.namespace"),
		fromField("INSTANCE_IP", "status.podIP"),
		fromField("INSTANCE_IPS", "status.podIPs"),
		fromField("HOST_IP", "status.hostIP"),
		fromField("SERVICE_ACCOUNT", "spec.serviceAccountName"),
		value("TRUST_DOMAIN", "cluster.local"),
		value("PILOT_CERT_PROVIDER", "istiod"),
		value("CA_ADDR", istiodAddress),
		value("PROXY_CONFIG", text(map[string]string{"discoveryAddress": istiodAddress})),
		value("ISTIO_META_CLUSTER_ID", "Kubernetes"),
		value("ISTIO_META_NODE_NAME", nodeName),
		value("ISTIO_META_INTERCEPTION_MODE", "REDIRECT"),
		value("ISTIO_META_DNS_CAPTURE", "true"),
		value("ISTIO_META_WORKLOAD_NAME", workload),
		value("ISTIO_META_OWNER", fmt.Sprintf("kubernetes://apis/apps/v1/namespaces/%s/deployments/%s", pod.Namespace, workload)),
		value("ISTIO_META_MESH_ID", "cluster.local"),
		value("ISTIO_META_POD_PORTS", text(ports)),
		value("ISTIO_META_APP_CONTAINERS", strings.Join(apps, ",")),
		value("ISTIO_METAJSON_LABELS", text(maps.Clone(pod.Labels))),
	}
	// Istio's keys in the pod's own annotations reach the proxy's metadata too.
	annotations := make(map[string]string)
	for _, k := range slices.Sorted(maps.Keys(pod.Annotations)) {
		if strings.Contains(k, "istio.io/") {
			annotations[k] = pod.Annotations[k]
		}
	}
	if len(annotations) > 0 {
		env = append(env, value("ISTIO_METAJSON_ANNOTATIONS", text(annotations)))
	}
	return env
}

// proxyReadiness is the check of a proxy: it has its identity and its first
// configuration. Source: Istio's injection template.
func proxyReadiness() *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
			Path: "/healthz/ready", Port: intstr.FromInt32(15021),
		}},
		PeriodSeconds: 15, TimeoutSeconds: 3, FailureThreshold: 4,
	}
}
