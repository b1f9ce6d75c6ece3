package install

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Object is one Kubernetes object as JSON has it.
type Object map[string]any

func (o Object) text(keys ...string) string {
	s, _ := at(o, keys...).(string)
	return s
}

// APIVersion, Kind, Name and Namespace identify an object.
func (o Object) APIVersion() string { return o.text("apiVersion") }

// Kind is the object's kind.
func (o Object) Kind() string { return o.text("kind") }

// Name is the object's name.
func (o Object) Name() string { return o.text("metadata", "name") }

// Namespace is "" for what is cluster-wide.
func (o Object) Namespace() string { return o.text("metadata", "namespace") }

// Labels are the object's labels. They are not to be changed.
func (o Object) Labels() map[string]string {
	out := make(map[string]string)
	m, _ := at(o, "metadata", "labels").(map[string]any)
	for k, v := range m {
		if s, ok := v.(string); ok {
			out[k] = s
		}
	}
	return out
}

// SetLabel sets one label.
func (o Object) SetLabel(key, value string) {
	meta, _ := o["metadata"].(map[string]any)
	if meta == nil {
		meta = make(map[string]any)
		o["metadata"] = meta
	}
	labels, _ := meta["labels"].(map[string]any)
	if labels == nil {
		labels = make(map[string]any)
		meta["labels"] = labels
	}
	labels[key] = value
}

// String names the object, as "Deployment istio-system/istiod".
func (o Object) String() string {
	return o.Kind() + " " + strings.TrimPrefix(o.Namespace()+"/"+o.Name(), "/")
}

// key is what makes two objects the same one.
func (o Object) key() string {
	group, _, ok := strings.Cut(o.APIVersion(), "/")
	if !ok {
		group = ""
	}
	return group + "/" + o.Kind() + "/" + o.Namespace() + "/" + o.Name()
}

// ReadObjects reads the objects of YAML documents.
func ReadObjects(text []byte) ([]Object, error) {
	var out []Object
	var errs []error
	for n, doc := range bytes.Split(append([]byte("\n"), text...), []byte("\n---")) {
		var o Object
		if err := yaml.Unmarshal(doc, &o); err != nil {
			errs = append(errs, fmt.Errorf("document %d: %w", n, err))
			continue
		}
		if len(o) == 0 {
			continue
		}
		if o.Kind() == "" || o.Name() == "" {
			errs = append(errs, fmt.Errorf("document %d: an object without kind or name", n))
			continue
		}
		out = append(out, o)
	}
	return out, errors.Join(errs...)
}

// kindOrder is the order in which objects are made: what others need comes
// first. Other kinds come after these. Webhooks are last, so that none is
// asked before somebody can answer.
var kindOrder = []string{
	"Namespace", "CustomResourceDefinition", "NetworkPolicy", "PodDisruptionBudget", "ServiceAccount", "Secret", "ConfigMap",
	"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "Service", "DaemonSet", "Deployment", "HorizontalPodAutoscaler",
}

// sortObjects puts objects into the order in which they are made.
func sortObjects(objects []Object) []Object {
	out := slices.Clone(objects)
	rank := func(o Object) int {
		if strings.HasSuffix(o.Kind(), "WebhookConfiguration") {
			return len(kindOrder) + 1
		}
		if i := slices.Index(kindOrder, o.Kind()); i >= 0 {
			return i
		}
		return len(kindOrder)
	}
	slices.SortStableFunc(out, func(a, b Object) int { return cmp.Compare(rank(a), rank(b)) })
	return out
}

// Manifest writes objects as YAML documents.
func Manifest(objects []Object) ([]byte, error) {
	var out bytes.Buffer
	for _, o := range objects {
		b, err := yaml.Marshal(o)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", o, err)
		}
		out.WriteString("---\n")
		out.Write(b)
	}
	return out.Bytes(), nil
}

// Data is one entry of a ConfigMap.
func (o Object) Data(key string) string { return o.text("data", key) }
