package lab

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/internal/identity"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestWhichPodsGetASidecar(t *testing.T) {
	m := func(kv ...string) map[string]string {
		out := make(map[string]string)
		for i := 0; i < len(kv); i += 2 {
			out[kv[i]] = kv[i+1]
		}
		return out
	}
	for _, c := range []struct {
		name        string
		namespace   string
		ns          map[string]string
		labels      map[string]string
		annotations map[string]string
		hostNetwork bool
		want        bool
	}{
		{name: "nothing asks for it"},
		{name: "namespace asks", ns: m(injectionLabel, "enabled"), want: true},
		{name: "namespace asks by revision", ns: m(revisionLabel, "canary"), want: true},
		{name: "namespace refuses", ns: m(injectionLabel, "disabled")},
		{name: "refusal beats revision", ns: m(injectionLabel, "disabled", revisionLabel, "default")},
		{name: "refusal beats the pod's label", ns: m(injectionLabel, "disabled"), labels: m(injectLabel, "true")},
		{name: "pod's label refuses", ns: m(injectionLabel, "enabled"), labels: m(injectLabel, "false")},
		{name: "pod's annotation refuses", ns: m(injectionLabel, "enabled"), annotations: m(injectLabel, "false")},
		{name: "label beats annotation", ns: m(injectionLabel, "enabled"), labels: m(injectLabel, "true"), annotations: m(injectLabel, "false"), want: true},
		{name: "pod's label asks alone", labels: m(injectLabel, "true"), want: true},
		{name: "pod's revision asks alone", labels: m(revisionLabel, "default"), want: true},
		{name: "pod's annotation alone is not seen", annotations: m(injectLabel, "true")},
		{name: "host network", ns: m(injectionLabel, "enabled"), labels: m(injectLabel, "true"), hostNetwork: true},
		{name: "system namespace", namespace: "kube-system", ns: m(injectionLabel, "enabled"), labels: m(injectLabel, "true")},
		{name: "gateway in the control plane's namespace", namespace: "istio-system", labels: m(injectLabel, "true"), want: true},
		{name: "done already", ns: m(injectionLabel, "enabled"), annotations: m(statusAnnotation, "{}")},
	} {
		t.Run(c.name, func(t *testing.T) {
			pod := &corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: c.labels, Annotations: c.annotations}}
			pod.Spec.HostNetwork = c.hostNetwork
			if c.namespace == "" {
				c.namespace = "shop"
			}
			if got := injected(c.namespace, c.ns, pod); got != c.want {
				t.Errorf("injected = %v, want %v", got, c.want)
			}
		})
	}
}

func TestInjectAddsProxyFirstAndItsLabels(t *testing.T) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "reviews-v1-0", Namespace: "shop", Labels: map[string]string{"app": "reviews", "version": "v1"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Ports: []corev1.ContainerPort{{ContainerPort: 9080}}}}},
	}
	before := pod.DeepCopy()
	labels := pod.Labels
	inject(pod, "reviews-v1", false, nil)
	if len(pod.Spec.Containers) != 2 || pod.Spec.Containers[0].Name != proxyContainer || pod.Spec.Containers[1].Name != "app" {
		t.Fatalf("containers = %v", pod.Spec.Containers)
	}
	if got := pod.Spec.Containers[0].Args; !slices.Equal(got, []string{"sidecar"}) {
		t.Errorf("args = %v", got)
	}
	for k, want := range map[string]string{tlsModeLabel: "istio", identity.CanonicalNameLabel: "reviews", identity.CanonicalRevisionLabel: "v1"} {
		if pod.Labels[k] != want {
			t.Errorf("label %s = %q, want %q", k, pod.Labels[k], want)
		}
	}
	if len(labels) != len(before.Labels) {
		t.Error("the template's labels were changed")
	}
	env, err := environment(pod, &pod.Spec.Containers[0], nil, &snapshot{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"POD_NAME=reviews-v1-0", "POD_NAMESPACE=shop", "ISTIO_META_WORKLOAD_NAME=reviews-v1",
		`ISTIO_META_POD_PORTS=[{"containerPort":9080}]`, "ISTIO_META_APP_CONTAINERS=app"} {
		if !slices.Contains(env, want) {
			t.Errorf("the proxy's environment has no %s: %v", want, env)
		}
	}
}

func TestInjectTurnsGatewayContainerIntoProxy(t *testing.T) {
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{
		Name: proxyContainer, Image: "auto", Env: []corev1.EnvVar{{Name: "POD_NAME", Value: "mine"}},
	}}}}
	inject(pod, "ingress", true, nil)
	c := pod.Spec.Containers[0]
	if len(pod.Spec.Containers) != 1 || !slices.Equal(c.Command, []string{"heddle-proxy"}) || !slices.Equal(c.Args, []string{"gateway"}) {
		t.Fatalf("container = %+v", c)
	}
	env, err := environment(pod, &c, nil, &snapshot{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(env, "POD_NAME=mine") {
		t.Errorf("what the manifest says does not win: %v", env)
	}
}

func TestGatewayTemplate(t *testing.T) {
	for value, want := range map[string]bool{"": false, "sidecar": false, "gateway": true, "sidecar, gateway": true} {
		pod := &corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{templatesAnnotation: value}}}
		if got := isGateway(pod); got != want {
			t.Errorf("isGateway(%q) = %v", value, got)
		}
	}
}

// A proxy's settings are those of the mesh, and then those of its pod.
func TestProxyConfigOfAPod(t *testing.T) {
	mesh := &corev1.ConfigMap{Data: map[string]string{"mesh": `
accessLogFile: /dev/stdout
defaultConfig:
  discoveryAddress: elsewhere:15012
  drainDuration: 10s
  proxyMetadata: {ISTIO_META_DNS_CAPTURE: "true", A: mesh}
`}}
	for _, c := range []struct {
		name, annotation string
		dns, hold        bool
		drain            string
	}{
		{"of the mesh", "", true, false, "10s"},
		{"of the pod", "drainDuration: 20s\nholdApplicationUntilProxyStarts: true\nproxyMetadata: {ISTIO_META_DNS_CAPTURE: \"false\"}", false, true, "20s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, err := proxyConfig(mesh, c.annotation)
			if err != nil {
				t.Fatal(err)
			}
			pod := &corev1.Pod{}
			inject(pod, "web", false, cfg)
			if got := capturesDNS(pod); got != c.dns {
				t.Errorf("captures DNS = %v", got)
			}
			if got := holdsApplication(pod); got != c.hold {
				t.Errorf("holds the application = %v", got)
			}
			if cfg["drainDuration"] != c.drain || cfg["discoveryAddress"] != istiodAddress {
				t.Errorf("configuration = %v", cfg)
			}
			if m := cfg["proxyMetadata"].(map[string]any); m["A"] != "mesh" {
				t.Errorf("metadata of the mesh got lost: %v", m)
			}
		})
	}
	if _, err := proxyConfig(nil, "a: [b"); err == nil {
		t.Error("no word on an annotation that can not be read")
	}
}
