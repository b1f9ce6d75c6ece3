package inject

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
)

// Annotations by which Prometheus finds what to scrape.
const (
	scrapeAnnotation = "prometheus.io/scrape"
	portAnnotation   = "prometheus.io/port"
	pathAnnotation   = "prometheus.io/path"

	mergeMetricsAnnotation = "prometheus.istio.io/merge-metrics"
	rewriteAnnotation      = "sidecar.istio.io/rewriteAppHTTPProbers"
	scrapeVariable         = "ISTIO_PROMETHEUS_ANNOTATIONS"
)

// finish does what no template can: it depends on what the pod has become.
func (i *Injector) finish(pod, before *corev1.Pod, data *Data, req Request) error {
	proxy := findContainer(pod, ProxyContainer)
	if proxy != nil {
		for _, name := range slices.Sorted(maps.Keys(req.Environment)) {
			setEnv(proxy, name, req.Environment[name])
		}
		i.mergePrometheus(pod, proxy, data)
	}
	rewrite := i.values.SidecarInjectorWebhook.RewriteAppHTTPProbe == nil || *i.values.SidecarInjectorWebhook.RewriteAppHTTPProbe
	if v, ok := pod.Annotations[rewriteAnnotation]; ok {
		rewrite, _ = strconv.ParseBool(v) // checked before
	}
	if rewrite {
		if err := rewriteProbes(pod, data.ProxyConfig.GetStatusPort()); err != nil {
			return err
		}
	}
	reorder(pod, data.ProxyConfig.GetHoldApplicationUntilProxyStarts().GetValue())
	return noteStatus(pod, before, i.cfg.Revision)
}

// mergePrometheus sends scrapers to the proxy, which adds the application's
// metrics to its own; the application's port may want mutual TLS, which scrapers
// do not speak.
func (i *Injector) mergePrometheus(pod *corev1.Pod, proxy *corev1.Container, data *Data) {
	merge := data.MeshConfig.GetEnablePrometheusMerge().GetValue()
	if v, ok := pod.Annotations[mergeMetricsAnnotation]; ok {
		merge, _ = strconv.ParseBool(v) // checked before
	}
	status := data.ProxyConfig.GetStatusPort()
	if !merge || status == 0 || pod.Annotations[scrapeAnnotation] == "false" {
		return
	}
	port := strconv.Itoa(int(status))
	app := struct {
		Scrape string `json:"scrape"`
		Path   string `json:"path"`
		Port   string `json:"port"`
	}{pod.Annotations[scrapeAnnotation], pod.Annotations[pathAnnotation], pod.Annotations[portAnnotation]}
	if app.Scrape != "" && app.Port != port {
		if b, err := json.Marshal(app); err == nil { // three strings
			setEnv(proxy, scrapeVariable, string(b))
		}
	}
	setAnnotation(pod, scrapeAnnotation, "true")
	setAnnotation(pod, portAnnotation, port)
	setAnnotation(pod, pathAnnotation, "/stats/prometheus")
}

// reorder puts the containers where the kubelet, which starts one after the
// other, needs them. A native sidecar comes right after redirection, so that the
// other init containers are in the mesh. A classic one comes last, so that tools
// take the application for the main container, or first, if the application is
// to wait for it; redirection is then the last init container, because nobody
// serves captured traffic before.
func reorder(pod *corev1.Pod, hold bool) {
	isProxy := func(c corev1.Container) bool { return c.Name == ProxyContainer }
	native := slices.ContainsFunc(pod.Spec.InitContainers, isProxy)
	rank := func(c corev1.Container) int {
		switch {
		case c.Name == InitContainer && native:
			return 0
		case c.Name == ProxyContainer && (native || hold):
			return 1
		case c.Name == ProxyContainer:
			return 3
		case c.Name == InitContainer:
			return 4
		}
		return 2
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		slices.SortStableFunc(list, func(a, b corev1.Container) int { return cmp.Compare(rank(a), rank(b)) })
	}
}

// noteStatus says in the pod what injection added to it. The annotation marks
// the pod as injected.
func noteStatus(pod, before *corev1.Pod, revision string) error {
	status := struct {
		InitContainers   []string `json:"initContainers"`
		Containers       []string `json:"containers"`
		Volumes          []string `json:"volumes"`
		ImagePullSecrets []string `json:"imagePullSecrets"`
		Revision         string   `json:"revision"`
	}{
		InitContainers:   added(before.Spec.InitContainers, pod.Spec.InitContainers, func(c corev1.Container) string { return c.Name }),
		Containers:       added(before.Spec.Containers, pod.Spec.Containers, func(c corev1.Container) string { return c.Name }),
		Volumes:          added(before.Spec.Volumes, pod.Spec.Volumes, func(v corev1.Volume) string { return v.Name }),
		ImagePullSecrets: added(before.Spec.ImagePullSecrets, pod.Spec.ImagePullSecrets, func(r corev1.LocalObjectReference) string { return r.Name }),
		Revision:         revision,
	}
	b, err := json.Marshal(status)
	if err != nil {
		return err
	}
	setAnnotation(pod, statusAnnotation, string(b))
	return nil
}

// added are the names in after that before has not.
func added[T any](before, after []T, name func(T) string) []string {
	var out []string
	for _, v := range after {
		if !slices.ContainsFunc(before, func(b T) bool { return name(b) == name(v) }) {
			out = append(out, name(v))
		}
	}
	return out
}
