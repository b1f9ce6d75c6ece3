package inject

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/internal/identity"
)

// Data is what a template sees. The names are those of Istio's templates.
type Data struct {
	TypeMeta       metav1.TypeMeta   // of the workload
	DeploymentMeta metav1.ObjectMeta // of the workload: its name and namespace
	ObjectMeta     metav1.ObjectMeta // of the pod
	Spec           corev1.PodSpec    // of the pod
	ProxyConfig    *meshv1alpha1.ProxyConfig
	MeshConfig     *meshv1alpha1.MeshConfig
	Values         map[string]any
	Revision       string
	ProxyImage     string
	ProxyUID       int64
	ProxyGID       int64
	NativeSidecars bool
	// NativeNftables and CompliancePolicy are for templates that ask: our own
	// redirection is always nftables.
	NativeNftables           bool
	CompliancePolicy         string
	InboundTrafficPolicyMode string
}

// proxyID is the user and the group that redirection leaves alone.
const proxyID = 1337

type parsedTemplates map[string]*template.Template

func parseTemplates(texts map[string]string) (parsedTemplates, error) {
	out := make(parsedTemplates, len(texts))
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		t := template.New(name).Option("missingkey=default")
		if _, err := t.Funcs(functions(t)).Parse(texts[name]); err != nil {
			errs = append(errs, fmt.Errorf("injection template %s: %w", name, err))
			continue
		}
		out[name] = t
	}
	return out, errors.Join(errs...)
}

// render executes the templates, each laid over those before, and returns one
// patch as JSON.
func (i *Injector) render(names []string, data *Data) ([]byte, error) {
	patch := []byte("{}")
	for _, name := range names {
		var text bytes.Buffer
		if err := i.parsed[name].Execute(&text, data); err != nil {
			return nil, fmt.Errorf("injection template %s: %w", name, err)
		}
		one, err := yaml.YAMLToJSON(text.Bytes())
		if err != nil {
			return nil, fmt.Errorf("injection template %s: the result is not YAML: %w", name, err)
		}
		if string(one) == "null" {
			continue
		}
		if patch, err = strategicpatch.StrategicMergePatch(patch, one, corev1.Pod{}); err != nil {
			return nil, fmt.Errorf("injection template %s: %w", name, err)
		}
	}
	return patch, nil
}

// data gathers what the templates see. The warnings are for what the pod asks
// for and does not get.
func (i *Injector) data(pod *corev1.Pod, req Request) (*Data, []string, error) {
	pc, err := i.proxyConfig(pod)
	if err != nil {
		return nil, nil, err
	}
	native := i.cfg.NativeSidecars
	var warnings []string
	if v, ok := pod.Annotations[nativeAnnotation]; ok {
		want, _ := strconv.ParseBool(v) // checked before
		if want && !native {
			warnings = append(warnings, "annotation "+nativeAnnotation+": the cluster may not know native sidecars, which came with Kubernetes 1.29; the pod gets one because it asks")
		}
		native = want
	}
	mesh := defaultMesh()
	mergeFields(mesh, i.cfg.Mesh)
	mesh.DefaultConfig = i.defaultProxyConfig()
	values := i.cfg.Values
	if req.ClusterID != "" || req.Network != "" {
		values = withCluster(values, req.ClusterID, req.Network)
	}
	return &Data{
		TypeMeta:       metav1.TypeMeta{APIVersion: req.Workload.APIVersion, Kind: req.Workload.Kind},
		DeploymentMeta: metav1.ObjectMeta{Name: req.Workload.Name, Namespace: pod.Namespace},
		ObjectMeta:     pod.ObjectMeta, Spec: pod.Spec,
		ProxyConfig: pc, MeshConfig: mesh, Values: values, Revision: i.cfg.Revision,
		ProxyImage: i.values.proxyImage(pod), ProxyUID: proxyID, ProxyGID: proxyID,
		NativeSidecars: native, NativeNftables: true,
		InboundTrafficPolicyMode: mesh.GetInboundTrafficPolicy().GetMode().String(),
	}, warnings, nil
}

// withCluster is values with the cluster and network of a remote cluster's pod.
func withCluster(values map[string]any, cluster, network string) map[string]any {
	values = maps.Clone(values)
	global, _ := values["global"].(map[string]any)
	global = maps.Clone(global)
	if global == nil {
		global = make(map[string]any)
	}
	if cluster != "" {
		global["multiCluster"] = map[string]any{"enabled": true, "clusterName": cluster}
	}
	if network != "" {
		global["network"] = network
	}
	values["global"] = global
	return values
}

// values are those of the installation that code acts on.
type values struct {
	Global struct {
		Hub   string `json:"hub"`
		Tag   any    `json:"tag"` // people write 1.2 without quotes
		Proxy struct {
			Image      string `json:"image"`
			StatusPort *int32 `json:"statusPort"`
		} `json:"proxy"`
	} `json:"global"`
	SidecarInjectorWebhook struct {
		RewriteAppHTTPProbe *bool `json:"rewriteAppHTTPProbe"`
	} `json:"sidecarInjectorWebhook"`
}

func readValues(m map[string]any) (v values, err error) {
	b, err := json.Marshal(m)
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	if err != nil {
		return v, fmt.Errorf("injection values: %w", err)
	}
	return v, nil
}

// proxyImage is the image that the pod names, or that of the installation.
func (v *values) proxyImage(pod *corev1.Pod) string {
	if image := pod.Annotations["sidecar.istio.io/proxyImage"]; image != "" {
		return image
	}
	image := v.Global.Proxy.Image
	if strings.Contains(image, "/") { // a whole reference
		return image
	}
	image = strings.TrimSuffix(v.Global.Hub, "/") + "/" + image
	if v.Global.Tag != nil && fmt.Sprint(v.Global.Tag) != "" {
		image += ":" + fmt.Sprint(v.Global.Tag)
	}
	return image
}

// functions are sprig's, without those that look at the injector's own machine,
// and Istio's.
func functions(t *template.Template) template.FuncMap {
	f := sprig.TxtFuncMap()
	for _, name := range []string{"env", "expandenv", "getHostByName"} {
		delete(f, name)
	}
	maps.Copy(f, template.FuncMap{
		"annotation":     annotationOr,
		"isset":          func(m map[string]string, key string) bool { _, ok := m[key]; return ok },
		"valueOrDefault": valueOr,
		"env":            func(key, otherwise string) string { return otherwise },
		"directory":      func(file string) string { d, _ := path.Split(file); return d },
		"formatDuration": func(d *durationpb.Duration) string { return d.AsDuration().String() },
		"toJSON":         toJSON,
		"toJsonMap":      func(m map[string]any) string { return toJSON(m) },
		"structToJSON":   toJSON,
		"protoToJSON":    protoToJSON,
		"fromJSON":       fromJSON,
		"toYaml":         toYAML,
		"indent":         indent,
		"strdict":        strdict,
		"mergeMaps":      mergeMaps,
		"omit":           omit,
		"omitNil":        omitNil,

		"excludeInboundPort":  excludeInboundPort,
		"includeInboundPorts": applicationPorts,
		"applicationPorts":    applicationPorts,
		"excludeInterfaces": func(m metav1.ObjectMeta, otherwise string) string {
			return annotationOr(m, "traffic.sidecar.istio.io/excludeInterfaces", otherwise)
		},
		"kubevirtInterfaces": func(s string) string { return s },
		"toLower":            strings.ToLower,
		"podPorts":           podPorts,
		"canonicalName": func(labels map[string]string, workload string) string {
			name, _ := identity.Canonical(labels, workload)
			return name
		},
		"canonicalRevision": func(labels map[string]string) string {
			_, revision := identity.Canonical(labels, "")
			return revision
		},
		"include": func(name string, data any) (string, error) {
			var out strings.Builder
			err := t.ExecuteTemplate(&out, name, data)
			return strings.TrimSpace(out.String()), err
		},
		"appendMultusNetwork": appendMultus,
		"render": func(text string, data any) (string, error) {
			c, err := t.Clone()
			if err != nil {
				return "", err
			}
			if c, err = c.New("render").Parse(text); err != nil {
				return "", err
			}
			var out strings.Builder
			err = c.Execute(&out, data)
			return out.String(), err
		},
	})
	return f
}

func annotationOr(m metav1.ObjectMeta, name string, otherwise any) string {
	if v, ok := m.Annotations[name]; ok {
		return v
	}
	return fmt.Sprint(valueOr(otherwise, ""))
}

// valueOr gives value unless it is nil or "".
func valueOr(value, otherwise any) any {
	if value == nil || value == "" {
		return otherwise
	}
	return value
}

func toJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return "{}"
	}
	return string(b)
}

// protoToJSON writes a message in JSON. Of a ProxyConfig it leaves out what is as
// every proxy has it.
func protoToJSON(m proto.Message) (string, error) {
	if pc, ok := m.(*meshv1alpha1.ProxyConfig); ok {
		m = withoutDefaults(pc)
	}
	b, err := protojson.Marshal(m)
	if err != nil {
		return "", err
	}
	// protojson puts blanks in at random, so that nobody relies on its bytes.
	var out bytes.Buffer
	err = json.Compact(&out, b)
	return out.String(), err
}

func fromJSON(text string) (any, error) {
	if text == "" {
		return nil, nil
	}
	var v any
	err := json.Unmarshal([]byte(text), &v)
	return v, err
}

func toYAML(v any) (string, error) {
	b, err := yaml.Marshal(v)
	return strings.TrimSuffix(string(b), "\n"), err
}

func indent(n int, text string) string {
	pad := strings.Repeat(" ", n)
	return pad + strings.ReplaceAll(text, "\n", "\n"+pad)
}

func strdict(pairs ...string) map[string]string {
	m := make(map[string]string)
	for i := 0; i+1 < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return m
}

// mergeMaps joins maps; the later one wins.
func mergeMaps(ms ...map[string]string) map[string]string {
	out := make(map[string]string)
	for _, m := range ms {
		maps.Copy(out, m)
	}
	return out
}

func omit(m map[string]string, keys ...string) map[string]string {
	m = maps.Clone(m)
	for _, k := range keys {
		delete(m, k)
	}
	return m
}

func omitNil(m map[string]any) map[string]any {
	m = maps.Clone(m)
	maps.DeleteFunc(m, func(_ string, v any) bool { return v == nil })
	return m
}

// excludeInboundPort adds a port to a list of them.
func excludeInboundPort(port any, list string) string {
	p := strings.TrimSpace(fmt.Sprint(port))
	var ports []string
	for q := range strings.SplitSeq(list, ",") {
		if q = strings.TrimSpace(q); q != "" && q != p {
			ports = append(ports, q)
		}
	}
	if p != "" && p != "0" && p != "<nil>" {
		ports = append(ports, p)
	}
	return strings.Join(ports, ",")
}

// applicationPorts are the TCP ports that the containers declare.
func applicationPorts(containers []corev1.Container) string {
	var ports []string
	for _, c := range containers {
		for _, p := range c.Ports {
			if c.Name != ProxyContainer && (p.Protocol == "" || p.Protocol == corev1.ProtocolTCP) {
				ports = append(ports, strconv.Itoa(int(p.ContainerPort)))
			}
		}
	}
	return strings.Join(ports, ",")
}

// podPorts are the ports that the containers declare, as node metadata has them.
func podPorts(containers []corev1.Container) string {
	type port struct {
		Name          string          `json:"name,omitempty"`
		ContainerPort int32           `json:"containerPort"`
		Protocol      corev1.Protocol `json:"protocol,omitempty"`
	}
	ports := []port{}
	for _, c := range containers {
		if c.Name == ProxyContainer {
			continue
		}
		for _, p := range c.Ports {
			ports = append(ports, port{p.Name, p.ContainerPort, p.Protocol})
		}
	}
	return toJSON(ports)
}

// appendMultus adds a network to a list of Multus', in the form that it has.
func appendMultus(existing, network string) string {
	switch {
	case existing == "" || slices.Contains(strings.Split(existing, ","), network):
		return valueOr(existing, network).(string)
	case strings.HasPrefix(strings.TrimSpace(existing), "["):
		var list []map[string]any
		if json.Unmarshal([]byte(existing), &list) == nil {
			if slices.ContainsFunc(list, func(n map[string]any) bool { return n["name"] == network }) {
				return existing
			}
			return toJSON(append(list, map[string]any{"name": network}))
		}
	}
	return existing + ", " + network
}
