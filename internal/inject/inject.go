// Package inject puts a proxy into a pod as Istio's injector does: a template,
// chosen by the pod, is rendered and merged into it, the pod's own container
// istio-proxy customises the one of the template, and probes, metrics and labels
// are made to fit.
//
// It is pure: a [Request] in, a [Result] out, with the reason for what was done
// and a warning for each annotation without effect. The webhook and
// `heddle kube-inject` call the same function. Injecting twice is injecting once.
package inject

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/yaml"
)

// Names that Istio's users and tools know.
const (
	ProxyContainer = "istio-proxy"
	InitContainer  = "istio-init"

	injectKey           = "sidecar.istio.io/inject" // a label, and an annotation
	revisionLabel       = "istio.io/rev"
	templatesAnnotation = "inject.istio.io/templates"
	statusAnnotation    = "sidecar.istio.io/status"
	overridesAnnotation = "proxy.istio.io/overrides"
	configAnnotation    = "proxy.istio.io/config"
	nativeAnnotation    = "sidecar.istio.io/nativeSidecar"
)

// autoImage in a pod's own container stands for the template's image.
const autoImage = "auto"

// systemNamespaces hold what a cluster can not start without.
var systemNamespaces = []string{"kube-system", "kube-public", "kube-node-lease", "local-path-storage"}

// Settings are the content of ConfigMap istio-sidecar-injector, key "config".
type Settings struct {
	// Policy is what happens to a pod that says nothing: "enabled" or "disabled".
	Policy string `json:"policy"`
	// DefaultTemplates are those of a pod that names none.
	DefaultTemplates []string `json:"defaultTemplates,omitempty"`
	// Templates are Go templates of a patch to the pod, by name.
	Templates map[string]string `json:"templates"`
	// Aliases stand for several templates.
	Aliases              map[string][]string    `json:"aliases,omitempty"`
	NeverInjectSelector  []metav1.LabelSelector `json:"neverInjectSelector,omitempty"`
	AlwaysInjectSelector []metav1.LabelSelector `json:"alwaysInjectSelector,omitempty"`
	// InjectedAnnotations are put on every injected pod.
	InjectedAnnotations map[string]string `json:"injectedAnnotations,omitempty"`
}

// Config is what an [Injector] is made of.
type Config struct {
	Settings Settings
	// Values are those that the control plane was installed with.
	Values map[string]any
	// Mesh is the mesh's configuration as it is written; nil is all defaults.
	Mesh *meshv1alpha1.MeshConfig
	// Revision of the control plane; "" is "default".
	Revision string
	// NativeSidecars makes the proxy an init container that goes on, which
	// Kubernetes starts before all others and ends after them (1.29 and newer).
	NativeSidecars bool
}

// Injector injects by one state of its settings. It is never changed.
type Injector struct {
	cfg    Config
	values values
	parsed parsedTemplates
}

// New checks all settings, so that a template with a fault is found when it is
// written and not when a pod needs it.
func New(cfg Config) (*Injector, error) {
	if cfg.Revision == "" {
		cfg.Revision = "default"
	}
	switch cfg.Settings.Policy {
	case "":
		cfg.Settings.Policy = "enabled"
	case "enabled", "disabled":
	default:
		return nil, fmt.Errorf("policy: %q is neither enabled nor disabled", cfg.Settings.Policy)
	}
	if len(cfg.Settings.DefaultTemplates) == 0 {
		cfg.Settings.DefaultTemplates = []string{"sidecar"}
	}
	i := &Injector{cfg: cfg}
	var err error
	if i.values, err = readValues(cfg.Values); err != nil {
		return nil, err
	}
	if i.parsed, err = parseTemplates(cfg.Settings.Templates); err != nil {
		return nil, err
	}
	for _, s := range slices.Concat(cfg.Settings.NeverInjectSelector, cfg.Settings.AlwaysInjectSelector) {
		if _, err := metav1.LabelSelectorAsSelector(&s); err != nil {
			return nil, fmt.Errorf("neverInjectSelector, alwaysInjectSelector: %w", err)
		}
	}
	return i, nil
}

// ReadConfig makes a Config of the two keys of ConfigMap istio-sidecar-injector,
// "config" and "values", and of key "mesh" of ConfigMap istio.
func ReadConfig(config, values, mesh string) (Config, error) {
	var cfg Config
	var errs []error
	if err := yaml.UnmarshalStrict([]byte(config), &cfg.Settings); err != nil {
		errs = append(errs, fmt.Errorf("injection settings: %w", err))
	}
	if err := yaml.Unmarshal([]byte(values), &cfg.Values); err != nil {
		errs = append(errs, fmt.Errorf("injection values: %w", err))
	}
	var err error
	if cfg.Mesh, err = readMesh(mesh); err != nil {
		errs = append(errs, err)
	}
	cfg.Revision, _ = cfg.Values["revision"].(string)
	return cfg, errors.Join(errs...)
}

// Request asks for a pod to be injected.
type Request struct {
	Pod *corev1.Pod
	// Namespace is where the pod will be, should it not say so.
	Namespace string
	// Workload is what the pod is made by; the zero value is found by the pod's
	// owner.
	Workload Workload
	// ClusterID and Network take the place of the control plane's own: they come
	// with the path that a remote cluster's webhook is called by.
	ClusterID, Network string
	// Environment is added to the proxy's: the path may carry variables.
	Environment map[string]string
}

// Result is a pod that was injected, or was not.
type Result struct {
	Pod      *corev1.Pod
	Injected bool
	Reason   string
	Warnings []string
}

// Pod decides whether a pod gets a proxy, and puts it in. The pod of the request
// is not changed. An error says what in the pod, or in the templates, is wrong.
func (i *Injector) Pod(req Request) (Result, error) {
	pod := req.Pod.DeepCopy()
	if pod.Namespace == "" {
		pod.Namespace = req.Namespace
	}
	if ok, why := i.required(pod); !ok {
		return Result{Pod: req.Pod, Reason: why}, nil
	}
	notes, err := checkAnnotations(pod.Annotations)
	if err != nil {
		return Result{}, err
	}
	if req.Workload == (Workload{}) {
		req.Workload = workloadOf(pod)
	}
	names, err := i.templates(pod)
	if err != nil {
		return Result{}, err
	}
	data, warnings, err := i.data(pod, req)
	notes = append(notes, warnings...)
	if err != nil {
		return Result{}, err
	}

	// The containers that the pod and the templates both have are taken out, to be
	// laid over the templates' afterwards: what the user wrote wins.
	template, err := i.render(names, data)
	if err != nil {
		return Result{}, err
	}
	own, err := takeOverrides(pod, template)
	if err != nil {
		return Result{}, err
	}
	before := pod
	if pod, err = overlay(pod, template); err != nil {
		return Result{}, fmt.Errorf("templates %s: %w", strings.Join(names, ","), err)
	}
	if err := own.restore(pod); err != nil {
		return Result{}, err
	}
	for k, v := range i.cfg.Settings.InjectedAnnotations {
		setAnnotation(pod, k, v)
	}
	if err := i.finish(pod, before, data, req); err != nil {
		return Result{}, err
	}
	if err := own.note(pod); err != nil {
		return Result{}, err
	}
	pod.Namespace = req.Pod.Namespace // a template of pods has none
	return Result{Pod: pod, Injected: true, Reason: "templates " + strings.Join(names, ","), Warnings: notes}, nil
}

// required says whether the pod is to be injected, and why. The label beats the
// annotation, both beat the selectors, and these beat the policy.
func (i *Injector) required(pod *corev1.Pod) (bool, string) {
	switch {
	case pod.Spec.HostNetwork:
		return false, "the pod uses its node's network"
	case slices.Contains(systemNamespaces, pod.Namespace):
		return false, "namespace " + pod.Namespace + " is never injected"
	case pod.Annotations[statusAnnotation] != "" && findContainer(pod, ProxyContainer) != nil:
		return false, "the pod has its proxy already"
	}
	asked, from := pod.Annotations[injectKey], "annotation"
	if v, ok := pod.Labels[injectKey]; ok {
		asked, from = v, "label"
	}
	switch strings.ToLower(asked) {
	case "y", "yes", "true", "on":
		return true, from + " " + injectKey
	case "":
	default:
		// Any other word is no: nobody who writes one wants a surprise.
		return false, fmt.Sprintf("%s %s is %q", from, injectKey, asked)
	}
	matches := func(list []metav1.LabelSelector) bool {
		return slices.ContainsFunc(list, func(s metav1.LabelSelector) bool {
			sel, err := metav1.LabelSelectorAsSelector(&s)
			return err == nil && !sel.Empty() && sel.Matches(labels.Set(pod.Labels))
		})
	}
	switch {
	case matches(i.cfg.Settings.NeverInjectSelector):
		return false, "neverInjectSelector matches the pod's labels"
	case matches(i.cfg.Settings.AlwaysInjectSelector):
		return true, "alwaysInjectSelector matches the pod's labels"
	case i.cfg.Settings.Policy == "enabled":
		return true, "policy enabled"
	}
	return false, "policy disabled, and the pod does not ask"
}

// templates are the names of the templates that the pod is made with.
func (i *Injector) templates(pod *corev1.Pod) ([]string, error) {
	names := i.cfg.Settings.DefaultTemplates
	if v, ok := pod.Annotations[templatesAnnotation]; ok {
		names = nil
		for n := range strings.SplitSeq(v, ",") {
			if n = strings.TrimSpace(n); n != "" {
				names = append(names, n)
			}
		}
	}
	var out []string
	for _, n := range names {
		if several, ok := i.cfg.Settings.Aliases[n]; ok {
			out = append(out, several...)
		} else {
			out = append(out, n)
		}
	}
	for _, n := range out {
		if i.parsed[n] == nil {
			return nil, fmt.Errorf("annotation %s: there is no template %q; there are %s", templatesAnnotation, n,
				strings.Join(slices.Sorted(maps.Keys(i.parsed)), ", "))
		}
	}
	return out, nil
}

// overlay merges a patch into a pod by Kubernetes' strategic rules: containers,
// variables and volumes by name, mounts by path.
func overlay(pod *corev1.Pod, patch []byte) (*corev1.Pod, error) {
	out := new(corev1.Pod)
	return out, mergeInto(out, pod, patch)
}

// mergeInto decodes base with the patch merged in into out.
func mergeInto[T any](out *T, base any, patch []byte) error {
	from, err := json.Marshal(base)
	if err != nil {
		return err
	}
	merged, err := strategicpatch.StrategicMergePatch(from, patch, *out)
	if err != nil {
		return err
	}
	return json.Unmarshal(merged, out)
}

// overrides are the containers that the user wrote and a template has too.
type overrides struct {
	Containers     []corev1.Container `json:"containers,omitempty"`
	InitContainers []corev1.Container `json:"initContainers,omitempty"`
}

// takeOverrides removes them from the pod.
func takeOverrides(pod *corev1.Pod, template []byte) (overrides, error) {
	var t corev1.Pod
	if err := json.Unmarshal(template, &t); err != nil {
		return overrides{}, fmt.Errorf("template: %w", err)
	}
	inTemplate := func(c corev1.Container) bool { return containerOf(&t.Spec, c.Name) != nil }
	var o overrides
	take := func(from []corev1.Container, to *[]corev1.Container) []corev1.Container {
		var rest []corev1.Container
		for _, c := range from {
			if inTemplate(c) {
				*to = append(*to, c)
			} else {
				rest = append(rest, c)
			}
		}
		return rest
	}
	pod.Spec.Containers = take(pod.Spec.Containers, &o.Containers)
	pod.Spec.InitContainers = take(pod.Spec.InitContainers, &o.InitContainers)
	return o, nil
}

// restore lays the user's containers over those of the template, wherever these
// are: a sidecar may have become an init container.
func (o overrides) restore(pod *corev1.Pod) error {
	for _, own := range slices.Concat(o.InitContainers, o.Containers) {
		c := containerOf(&pod.Spec, own.Name)
		if c == nil {
			return fmt.Errorf("container %s: the templates remove it", own.Name)
		}
		if own.Image == autoImage {
			// The API server has set the pull policy by this image, which has no tag.
			own.Image, own.ImagePullPolicy = "", ""
		}
		patch, err := containerPatch(own)
		if err != nil {
			return fmt.Errorf("container %s: %w", own.Name, err)
		}
		var merged corev1.Container
		if err := mergeInto(&merged, c, patch); err != nil {
			return fmt.Errorf("container %s: %w", own.Name, err)
		}
		*c = merged
	}
	return nil
}

// containerPatch is a container as a patch: what it does not say is left alone.
func containerPatch(c corev1.Container) ([]byte, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	// The type writes an empty object where nothing was said.
	if r, ok := m["resources"].(map[string]any); ok && len(r) == 0 {
		delete(m, "resources")
	}
	return json.Marshal(m)
}

// note leaves the user's containers in an annotation, where tools find them.
func (o overrides) note(pod *corev1.Pod) error {
	if len(o.Containers)+len(o.InitContainers) == 0 {
		return nil
	}
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	setAnnotation(pod, overridesAnnotation, string(b))
	return nil
}

// containerOf finds a container of either kind.
func containerOf(spec *corev1.PodSpec, name string) *corev1.Container {
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

func findContainer(pod *corev1.Pod, name string) *corev1.Container {
	return containerOf(&pod.Spec, name)
}

func setAnnotation(pod *corev1.Pod, key, value string) {
	if pod.Annotations == nil {
		pod.Annotations = make(map[string]string)
	}
	pod.Annotations[key] = value
}
