package config

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/internal/config/schema"
)

// meshKey is the key of Istio's ConfigMap "istio" that holds the mesh's
// configuration, as YAML.
const meshKey = "mesh"

// MeshConfig decodes the mesh's configuration from the ConfigMap that holds it.
// Only what is written is set: defaults are for the reader. Without the key, or
// with an Error among the faults, it returns nil.
func MeshConfig(cm *Object) (*meshv1alpha1.MeshConfig, []Fault) {
	spec, ok := cm.Spec.(*corev1.ConfigMap)
	if !ok {
		return nil, []Fault{{Pos: cm.Pos, Object: cm.Key, Problem: fmt.Sprintf("holds a %T, not a ConfigMap", cm.Spec)}}
	}
	text, ok := spec.Data[meshKey]
	if !ok {
		return nil, nil
	}
	at := keyed("data", meshKey)
	// The text is a block below its key, as people write it; should it stand on
	// the line of the key, faults point one line too low.
	first := 0
	if line := cm.At(at).Line; line > 0 {
		first = line + 1
	}
	w := &walker{file: cm.Pos.File, object: cm.Key, kind: schema.MeshConfig(), types: &goTypes{}, lines: Lines{}}
	t, errs := parse(document{line: first, data: []byte(text)})
	for _, e := range errs {
		w.error(e.line, at, e.problem, e.hint)
	}
	if t == nil {
		return nil, w.faults
	}
	mesh := &meshv1alpha1.MeshConfig{}
	if t.form == nullForm {
		return mesh, nil
	}
	// Istio reads it in protobuf's way, which knows both spellings of a field.
	w.bothNames = true
	w.message(mesh.ProtoReflect().Descriptor(), t, "", w.kind.Fields())
	if !w.bad {
		w.decoded(first, protojson.Unmarshal(w.out, mesh))
	}
	for i, f := range w.faults {
		if f.Field == "" {
			w.faults[i].Field = at
		} else {
			w.faults[i].Field = at + ": " + f.Field
		}
		if first == 0 {
			w.faults[i].Pos = cm.Pos
		}
	}
	if w.bad {
		return nil, w.faults
	}
	return mesh, w.faults
}
