// Package install puts Heddle into a Kubernetes cluster, and takes it out.
//
// A [Plan] says what to install: a profile, files of kind IstioOperator and
// settings, each laid over those before. [Plan.Components] renders the charts of
// package manifests with it, as `helm template` does. [Cluster] applies the
// objects, removes those that a former installation had and this one has not,
// and waits until all of it runs.
package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/manifests"
)

// DefaultNamespace is where the control plane lives.
const DefaultNamespace = "istio-system"

// Labels by which an installation's objects are found again.
const (
	managedLabel   = "operator.istio.io/managed"
	componentLabel = "operator.istio.io/component"
	versionLabel   = "operator.istio.io/version"
	ownerLabel     = "install.operator.istio.io/owning-resource"
	revisionLabel  = "istio.io/rev"
	tagLabel       = "istio.io/tag"
)

// Operator is the part of Istio's kind IstioOperator that acts here.
type Operator struct {
	Profile           string         `json:"profile,omitempty"`
	Hub               string         `json:"hub,omitempty"`
	Tag               any            `json:"tag,omitempty"`
	Namespace         string         `json:"namespace,omitempty"`
	Revision          string         `json:"revision,omitempty"`
	MeshConfig        map[string]any `json:"meshConfig,omitempty"`
	Components        Components     `json:"components,omitempty"`
	Values            map[string]any `json:"values,omitempty"`
	UnvalidatedValues map[string]any `json:"unvalidatedValues,omitempty"`
}

// Components are the parts of an installation.
type Components struct {
	Base            *Part  `json:"base,omitempty"`
	Pilot           *Part  `json:"pilot,omitempty"`
	IngressGateways []Part `json:"ingressGateways,omitempty"`
	EgressGateways  []Part `json:"egressGateways,omitempty"`
}

// Part is one component.
type Part struct {
	Name      string            `json:"name,omitempty"`
	Namespace string            `json:"namespace,omitempty"`
	Enabled   *bool             `json:"enabled,omitempty"`
	Hub       string            `json:"hub,omitempty"`
	Tag       any               `json:"tag,omitempty"`
	Label     map[string]string `json:"label,omitempty"`
	K8s       *K8s              `json:"k8s,omitempty"`
}

// K8s are settings of a component's Kubernetes objects.
type K8s struct {
	Affinity            map[string]any    `json:"affinity,omitempty"`
	Env                 []Variable        `json:"env,omitempty"`
	HPASpec             *HPA              `json:"hpaSpec,omitempty"`
	ImagePullPolicy     string            `json:"imagePullPolicy,omitempty"`
	NodeSelector        map[string]any    `json:"nodeSelector,omitempty"`
	PodAnnotations      map[string]string `json:"podAnnotations,omitempty"`
	PodDisruptionBudget map[string]any    `json:"podDisruptionBudget,omitempty"`
	PriorityClassName   string            `json:"priorityClassName,omitempty"`
	ReplicaCount        *int              `json:"replicaCount,omitempty"`
	Resources           map[string]any    `json:"resources,omitempty"`
	Service             map[string]any    `json:"service,omitempty"`
	ServiceAnnotations  map[string]string `json:"serviceAnnotations,omitempty"`
	Strategy            map[string]any    `json:"strategy,omitempty"`
	Tolerations         []any             `json:"tolerations,omitempty"`
}

// Variable is one of a component's environment.
type Variable struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// HPA bounds the number of replicas.
type HPA struct {
	MinReplicas *int `json:"minReplicas,omitempty"`
	MaxReplicas *int `json:"maxReplicas,omitempty"`
}

// Plan is what to install.
type Plan struct {
	op Operator
	// Version is the build's: images have it as their tag.
	version     string
	kubeVersion string
}

// Source is one file of kind IstioOperator, or what it holds.
type Source struct {
	Name string
	Text []byte
}

// NewPlan lays sources and settings over the profile that they name, "default"
// if they name none. A setting is "path=value", as in "values.global.tag=1".
// kubeVersion is the cluster's, "" if there is none.
func NewPlan(version, kubeVersion string, sources []Source, settings []string) (*Plan, error) {
	over := make(map[string]any)
	var errs []error
	for _, s := range sources {
		spec, err := readOperator(s)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		over = merge(over, spec)
	}
	for _, s := range settings {
		if err := set(over, s); err != nil {
			errs = append(errs, fmt.Errorf("--set %s: %w", s, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	profile, _ := over["profile"].(string)
	if profile == "" {
		profile = "default"
	}
	text, err := fs.ReadFile(manifests.Files, "profiles/"+profile+".yaml")
	if err != nil {
		return nil, fmt.Errorf("profile %q: there are %s", profile, strings.Join(Profiles(), ", "))
	}
	base := make(map[string]any)
	if err := yaml.Unmarshal(text, &base); err != nil {
		return nil, fmt.Errorf("profile %s: %w", profile, err)
	}
	p := &Plan{version: version, kubeVersion: kubeVersion}
	b, err := json.Marshal(merge(base, over))
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&p.op); err != nil {
		return nil, fmt.Errorf("IstioOperator: spec: %s, and has no effect here", strings.TrimPrefix(err.Error(), "json: "))
	}
	if p.op.Namespace == "" {
		p.op.Namespace = DefaultNamespace
		if ns, ok := at(p.op.Values, "global", "istioNamespace").(string); ok && ns != "" {
			p.op.Namespace = ns
		}
	}
	if rev, ok := p.op.Values["revision"].(string); ok && p.op.Revision == "" {
		p.op.Revision = rev
	}
	if p.op.Revision == "default" {
		p.op.Revision = ""
	}
	return p, nil
}

// Profiles are the names of the profiles.
func Profiles() []string {
	entries, err := fs.ReadDir(manifests.Files, "profiles")
	if err != nil {
		return nil // they are part of the program
	}
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".yaml"))
	}
	return names
}

// readOperator returns the spec of the one object in a source.
func readOperator(s Source) (map[string]any, error) {
	var o struct {
		Kind string         `json:"kind"`
		Spec map[string]any `json:"spec"`
	}
	if err := yaml.Unmarshal(s.Text, &o); err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name, err)
	}
	if o.Kind != "IstioOperator" {
		return nil, fmt.Errorf("%s: kind is %q, not IstioOperator", s.Name, o.Kind)
	}
	return o.Spec, nil
}

// merge lays b over a: maps are joined, null removes, all else is replaced.
// Lists of named things, gateways, are joined by name.
func merge(a, b map[string]any) map[string]any {
	out := maps.Clone(a)
	if out == nil {
		out = make(map[string]any)
	}
	for k, v := range b {
		switch v := v.(type) {
		case nil:
			delete(out, k)
		case map[string]any:
			under, _ := out[k].(map[string]any)
			out[k] = merge(under, v)
		case []any:
			under, _ := out[k].([]any)
			out[k] = mergeList(k, under, v)
		default:
			out[k] = v
		}
	}
	return out
}

func mergeList(key string, a, b []any) []any {
	if key != "ingressGateways" && key != "egressGateways" {
		return b
	}
	out := slices.Clone(a)
	for _, v := range b {
		m, _ := v.(map[string]any)
		i := slices.IndexFunc(out, func(e any) bool {
			o, _ := e.(map[string]any)
			return o["name"] == m["name"]
		})
		if i >= 0 && m != nil {
			under, _ := out[i].(map[string]any)
			out[i] = merge(under, m)
			continue
		}
		out = append(out, v)
	}
	return out
}

func at(m map[string]any, keys ...string) any {
	var v any = m
	for _, k := range keys {
		o, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = o[k]
	}
	return v
}

// shared are the first words of settings that stand beside "values": a setting
// that begins with another one is a value, as in "global.tag".
var shared = []string{"profile", "hub", "tag", "namespace", "revision", "meshConfig", "components", "values", "unvalidatedValues"}

// set puts "a.b[0].c=value" into m. In a key, "\." stands for a dot.
func set(m map[string]any, setting string) error {
	name, text, ok := strings.Cut(setting, "=")
	if !ok || name == "" {
		return errors.New("a setting is path=value")
	}
	keys := splitPath(name)
	if !slices.Contains(shared, keys[0]) {
		keys = append([]string{"values"}, keys...)
	}
	var value any = text
	switch {
	case text == "null":
		value = nil
	case text == "true" || text == "false":
		value = text == "true"
	default:
		if n, err := strconv.ParseInt(text, 10, 64); err == nil && (text == "0" || text[0] != '0') {
			value = n
		} else if strings.HasPrefix(text, "{") && strings.HasSuffix(text, "}") { // Helm's form of a list
			list := []any{}
			for e := range strings.SplitSeq(text[1:len(text)-1], ",") {
				list = append(list, e)
			}
			value = list
		}
	}
	var into any = m
	return put(&into, keys, value)
}

// splitPath parts a path at its dots and brackets: an index is a part "[0]".
func splitPath(name string) []string {
	var keys []string
	var key strings.Builder
	flush := func() {
		if key.Len() > 0 {
			keys = append(keys, key.String())
			key.Reset()
		}
	}
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case c == '\\' && i+1 < len(name):
			i++
			key.WriteByte(name[i])
		case c == '.':
			flush()
		case c == '[':
			flush()
			key.WriteByte(c)
		case c == ']':
			key.WriteByte(c)
			flush()
		default:
			key.WriteByte(c)
		}
	}
	flush()
	return keys
}

// maxIndex keeps a misprint from making a list of millions.
const maxIndex = 1000

func put(into *any, keys []string, value any) error {
	if len(keys) == 0 {
		*into = value
		return nil
	}
	key := keys[0]
	if strings.HasPrefix(key, "[") {
		n, err := strconv.Atoi(strings.Trim(key, "[]"))
		if err != nil || n < 0 || n > maxIndex {
			return fmt.Errorf("%s is no index", key)
		}
		list, _ := (*into).([]any)
		for len(list) <= n {
			list = append(list, nil)
		}
		err = put(&list[n], keys[1:], value)
		*into = list
		return err
	}
	m, ok := (*into).(map[string]any)
	if !ok {
		m = make(map[string]any)
	}
	next := m[key]
	if err := put(&next, keys[1:], value); err != nil {
		return err
	}
	m[key] = next
	*into = m
	return nil
}

// Component is one rendered part of an installation.
type Component struct {
	Name    string // "Base", "Pilot", "IngressGateways"
	Chart   string
	Release string
	// Namespace of the release.
	Namespace string
	Values    map[string]any
	Objects   []Object
}

// Names of components, as labels hold them.
const (
	Base    = "Base"
	Pilot   = "Pilot"
	Ingress = "IngressGateways"
	Egress  = "EgressGateways"
)

// Namespace is where the control plane goes.
func (p *Plan) Namespace() string { return p.op.Namespace }

// Revision of the control plane, "" for the default one.
func (p *Plan) Revision() string { return p.op.Revision }

// Components renders everything, in the order in which it is to be applied.
func (p *Plan) Components() ([]Component, error) {
	var out []Component
	var errs []error
	add := func(name, chart, release string, part Part, values map[string]any) {
		if part.Enabled != nil && !*part.Enabled {
			return
		}
		c := Component{Name: name, Chart: chart, Release: release, Namespace: part.Namespace, Values: values}
		if c.Namespace == "" {
			c.Namespace = p.op.Namespace
		}
		objects, err := p.render(c)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", strings.ToLower(name), err))
			return
		}
		c.Objects = objects
		out = append(out, c)
	}
	if part := p.op.Components.Base; part != nil {
		values := p.values()
		if p.op.Revision != "" && at(p.op.Values, "defaultRevision") == nil {
			// Beside a revision there may be a default control plane, which checks.
			values["defaultRevision"] = ""
		}
		add(Base, "base", "istio-base", *part, values)
	}
	if part := p.op.Components.Pilot; part != nil {
		values := merge(p.values(), part.values(true))
		if len(p.op.MeshConfig) > 0 {
			values = merge(values, map[string]any{"meshConfig": p.op.MeshConfig})
		}
		add(Pilot, "istiod", "istiod", *part, values)
	}
	gateways := func(name, fallback string, parts []Part) {
		for _, part := range parts {
			release := part.Name
			if release == "" {
				release = fallback
			}
			values := merge(gatewayValues(p.op.Values, name, release), part.values(false))
			values["global"] = p.values()["global"]
			values["revision"] = p.op.Revision
			add(name, "gateway", release, part, values)
		}
	}
	gateways(Ingress, "istio-ingressgateway", p.op.Components.IngressGateways)
	gateways(Egress, "istio-egressgateway", p.op.Components.EgressGateways)
	return out, errors.Join(errs...)
}

// values are those that all charts get.
func (p *Plan) values() map[string]any {
	global := map[string]any{"istioNamespace": p.op.Namespace, "tag": p.version}
	if p.op.Hub != "" {
		global["hub"] = p.op.Hub
	}
	if p.op.Tag != nil {
		global["tag"] = p.op.Tag
	}
	values := merge(map[string]any{"global": global}, p.op.Values)
	values = merge(values, p.op.UnvalidatedValues)
	// Istio's charts take what is the control plane's under this name as well.
	if pilot, ok := values["pilot"].(map[string]any); ok {
		values = merge(values, pilot)
		delete(values, "pilot")
	}
	values["revision"] = p.op.Revision
	return values
}

// gatewayValues are the values under gateways.NAME of one gateway, which may
// bear Istio's short names.
func gatewayValues(values map[string]any, component, release string) map[string]any {
	out := make(map[string]any)
	if component == Egress {
		out["service"] = map[string]any{"type": "ClusterIP"} // it is called from inside
	}
	short := map[string]string{Ingress: "istio-ingressgateway", Egress: "istio-egressgateway"}[component]
	for _, name := range []string{short, release} {
		if m, ok := at(values, "gateways", name).(map[string]any); ok {
			out = merge(out, m)
		}
	}
	return out
}

// values are a component's settings as values of its chart.
func (p Part) values(pilot bool) map[string]any {
	v := make(map[string]any)
	put := func(key string, value any, set bool) {
		if set {
			v[key] = plain(value)
		}
	}
	if len(p.Label) > 0 {
		put("labels", p.Label, !pilot)
	}
	put("hub", p.Hub, p.Hub != "")
	put("tag", p.Tag, p.Tag != nil)
	k := p.K8s
	if k == nil {
		return v
	}
	put("affinity", k.Affinity, k.Affinity != nil)
	put("nodeSelector", k.NodeSelector, k.NodeSelector != nil)
	put("podAnnotations", k.PodAnnotations, k.PodAnnotations != nil)
	put("resources", k.Resources, k.Resources != nil)
	put("tolerations", k.Tolerations, k.Tolerations != nil)
	put("replicaCount", k.ReplicaCount, k.ReplicaCount != nil)
	if len(k.Env) > 0 {
		env := make(map[string]any)
		for _, e := range k.Env {
			env[e.Name] = e.Value
		}
		v["env"] = env
	}
	if pilot {
		put("serviceAnnotations", k.ServiceAnnotations, k.ServiceAnnotations != nil)
		if k.HPASpec != nil {
			put("autoscaleMin", k.HPASpec.MinReplicas, k.HPASpec.MinReplicas != nil)
			put("autoscaleMax", k.HPASpec.MaxReplicas, k.HPASpec.MaxReplicas != nil)
		}
		global := make(map[string]any)
		if k.PriorityClassName != "" {
			global["priorityClassName"] = k.PriorityClassName
		}
		if k.ImagePullPolicy != "" {
			global["imagePullPolicy"] = k.ImagePullPolicy
		}
		put("global", global, len(global) > 0)
		put("pdb", k.PodDisruptionBudget, k.PodDisruptionBudget != nil)
		return v
	}
	put("priorityClassName", k.PriorityClassName, k.PriorityClassName != "")
	put("imagePullPolicy", k.ImagePullPolicy, k.ImagePullPolicy != "")
	put("strategy", k.Strategy, k.Strategy != nil)
	put("podDisruptionBudget", k.PodDisruptionBudget, k.PodDisruptionBudget != nil)
	if k.Service != nil || k.ServiceAnnotations != nil {
		service := make(map[string]any)
		maps.Copy(service, k.Service)
		if k.ServiceAnnotations != nil {
			service["annotations"] = k.ServiceAnnotations
		}
		put("service", service, true)
	}
	if k.HPASpec != nil {
		scale := make(map[string]any)
		if k.HPASpec.MinReplicas != nil {
			scale["minReplicas"] = *k.HPASpec.MinReplicas
		}
		if k.HPASpec.MaxReplicas != nil {
			scale["maxReplicas"] = *k.HPASpec.MaxReplicas
		}
		put("autoscaling", scale, true)
	}
	return v
}

// plain is v as JSON has it: maps, lists, strings and numbers.
func plain(v any) any {
	b, err := json.Marshal(v)
	if err != nil {
		return v
	}
	var out any
	if yaml.Unmarshal(b, &out) != nil {
		return v
	}
	return out
}

// render makes a component's objects, with the labels that find them again.
func (p *Plan) render(c Component) ([]Object, error) {
	sub, err := fs.Sub(manifests.Files, path.Join("charts", c.Chart))
	if err != nil {
		return nil, err
	}
	chart, err := LoadChart(sub)
	if err != nil {
		return nil, err
	}
	text, err := chart.Render(Release{Name: c.Release, Namespace: c.Namespace, KubeVersion: p.kubeVersion}, c.Values)
	if err != nil {
		return nil, err
	}
	objects, err := ReadObjects(text)
	if err != nil {
		return nil, err
	}
	revision := p.op.Revision
	if revision == "" {
		revision = "default"
	}
	for _, o := range objects {
		o.SetLabel(managedLabel, "Reconcile")
		o.SetLabel(componentLabel, c.Name)
		o.SetLabel(versionLabel, labelValue(p.version))
		o.SetLabel(ownerLabel, "heddle")
		if _, has := o.Labels()[revisionLabel]; !has {
			o.SetLabel(revisionLabel, revision)
		}
	}
	return objects, nil
}

// labelValue makes a build's version fit for a label.
func labelValue(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.", r) {
			return r
		}
		return '-'
	}, s)
	return strings.Trim(s[:min(len(s), 63)], "-_.")
}
