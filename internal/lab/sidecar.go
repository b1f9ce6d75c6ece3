package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
)

const (
	configAnnotation = "proxy.istio.io/config"
	dnsCapture       = "ISTIO_META_DNS_CAPTURE"
)

// proxyConfig merges Istio's ProxyConfig: defaultConfig of the mesh's settings,
// and what a pod's annotation says. With an error it holds what could be read.
func proxyConfig(mesh *corev1.ConfigMap, annotation string) (map[string]any, error) {
	out := make(map[string]any)
	var errs []error
	merge := func(from map[string]any) {
		for k, v := range from {
			into, isMap := out[k].(map[string]any)
			if more, both := v.(map[string]any); isMap && both {
				maps.Copy(into, more)
				continue
			}
			out[k] = v
		}
	}
	if mesh != nil {
		var settings struct {
			DefaultConfig map[string]any `json:"defaultConfig"`
		}
		if err := yaml.Unmarshal([]byte(mesh.Data["mesh"]), &settings); err != nil {
			errs = append(errs, fmt.Errorf("mesh settings in ConfigMap %s/%s: %w", mesh.Namespace, mesh.Name, err))
		}
		merge(settings.DefaultConfig)
	}
	var own map[string]any
	if err := yaml.Unmarshal([]byte(annotation), &own); err != nil {
		errs = append(errs, fmt.Errorf("annotation %s: %w", configAnnotation, err))
	}
	merge(own)
	// There is one control plane here, wherever the manifests come from.
	out["discoveryAddress"] = istiodAddress
	return out, errors.Join(errs...)
}

// proxyVariable returns the final value of a variable of the pod's proxy, if it
// is written as it is.
func proxyVariable(pod *corev1.Pod, name string) string {
	value := ""
	for _, c := range pod.Spec.Containers {
		if c.Name != proxyContainer {
			continue
		}
		for _, e := range c.Env {
			if e.Name == name {
				value = strings.ReplaceAll(e.Value, "$$", "$")
			}
		}
	}
	return value
}

// capturesDNS says whether the pod's proxy answers its DNS queries. Here it does
// unless it is told not to.
func capturesDNS(pod *corev1.Pod) bool { return proxyVariable(pod, dnsCapture) == "true" }

// holdsApplication says whether the pod's programs wait for its proxy.
func holdsApplication(pod *corev1.Pod) bool {
	var cfg struct {
		Hold bool `json:"holdApplicationUntilProxyStarts"`
	}
	// What can not be read was reported when it was merged.
	_ = json.Unmarshal([]byte(proxyVariable(pod, "PROXY_CONFIG")), &cfg)
	return cfg.Hold
}

// proxyEnv is what Istio's injector tells a proxy by its environment.
func proxyEnv(pod *corev1.Pod, workload string, config map[string]any) []corev1.EnvVar {
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
	capture := "true"
	if metadata, ok := config["proxyMetadata"].(map[string]any); ok && metadata[dnsCapture] != nil {
		capture = fmt.Sprint(metadata[dnsCapture])
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
		value("PROXY_CONFIG", text(config)),
		value("ISTIO_META_CLUSTER_ID", "Kubernetes"),
		value("ISTIO_META_NODE_NAME", nodeName),
		value("ISTIO_META_INTERCEPTION_MODE", "REDIRECT"),
		value(dnsCapture, capture),
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
