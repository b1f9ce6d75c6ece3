package inject

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// templatePaths are where kinds keep the template of their pods.
var templatePaths = map[string][]string{
	"Deployment":            {"spec", "template"},
	"StatefulSet":           {"spec", "template"},
	"DaemonSet":             {"spec", "template"},
	"ReplicaSet":            {"spec", "template"},
	"ReplicationController": {"spec", "template"},
	"DeploymentConfig":      {"spec", "template"},
	"Job":                   {"spec", "template"},
	"CronJob":               {"spec", "jobTemplate", "spec", "template"},
	"Pod":                   {},
}

// Objects injects all pods, and templates of pods, in YAML documents. Whatever
// else is there stays as it is written. The notes say what was left out and
// why, and what has no effect.
func (i *Injector) Objects(text []byte) (out []byte, notes []string, err error) {
	var errs []error
	var docs [][]byte
	for n, doc := range documents(text) {
		changed, more, err := i.document(doc)
		notes = append(notes, more...)
		if err != nil {
			errs = append(errs, fmt.Errorf("document %d: %w", n+1, err))
			continue
		}
		docs = append(docs, changed)
	}
	return bytes.Join(docs, []byte("---\n")), notes, errors.Join(errs...)
}

// documents parts a file at the lines that begin a new document.
func documents(text []byte) [][]byte {
	var docs [][]byte
	var doc []byte
	for line := range bytes.Lines(text) {
		if bytes.HasPrefix(line, []byte("---")) && strings.TrimSpace(string(line[3:])) == "" {
			docs, doc = append(docs, doc), nil
			continue
		}
		doc = append(doc, line...)
	}
	var full [][]byte
	for _, d := range append(docs, doc) {
		if len(bytes.TrimSpace(d)) > 0 {
			full = append(full, d)
		}
	}
	return full
}

func (i *Injector) document(doc []byte) ([]byte, []string, error) {
	var o map[string]any
	if err := yaml.Unmarshal(doc, &o); err != nil {
		return nil, nil, err
	}
	changed, notes, err := i.object(o)
	if err != nil || !changed {
		return doc, notes, err
	}
	out, err := yaml.Marshal(o)
	return out, notes, err
}

// object injects o in place, and reports whether it did.
func (i *Injector) object(o map[string]any) (changed bool, notes []string, err error) {
	kind, _ := o["kind"].(string)
	if items, ok := o["items"].([]any); ok && strings.HasSuffix(kind, "List") {
		var errs []error
		for n, item := range items {
			m, ok := item.(map[string]any)
			if !ok {
				continue
			}
			c, more, err := i.object(m)
			changed, notes = changed || c, append(notes, more...)
			if err != nil {
				errs = append(errs, fmt.Errorf("items[%d]: %w", n, err))
			}
		}
		return changed, notes, errors.Join(errs...)
	}
	path, ok := templatePaths[kind]
	if !ok {
		return false, nil, nil
	}
	u := unstructured.Unstructured{Object: o}
	what := kind + " " + strings.TrimPrefix(u.GetNamespace()+"/"+u.GetName(), "/")
	template := o
	if len(path) > 0 {
		if template, ok, err = unstructured.NestedMap(o, path...); err != nil || !ok {
			return false, nil, fmt.Errorf("%s: %s: there is no pod template", what, strings.Join(path, "."))
		}
	}
	pod := new(corev1.Pod)
	b, err := json.Marshal(template)
	if err == nil {
		err = json.Unmarshal(b, pod)
	}
	if err != nil {
		return false, nil, fmt.Errorf("%s: %w", what, err)
	}
	pod.TypeMeta = metav1.TypeMeta{}
	res, err := i.Pod(Request{Pod: pod, Namespace: u.GetNamespace(), Workload: Workload{APIVersion: u.GetAPIVersion(), Kind: kind, Name: u.GetName()}})
	if err != nil {
		return false, nil, fmt.Errorf("%s: %w", what, err)
	}
	for _, w := range res.Warnings {
		notes = append(notes, what+": "+w)
	}
	if !res.Injected {
		return false, append(notes, what+": not injected: "+res.Reason), nil
	}
	res.Pod.Namespace = pod.Namespace
	if b, err = json.Marshal(res.Pod); err != nil {
		return false, notes, err
	}
	injected := make(map[string]any)
	if err := json.Unmarshal(b, &injected); err != nil {
		return false, notes, err
	}
	if status, _ := injected["status"].(map[string]any); len(status) == 0 {
		delete(injected, "status")
	}
	dropCreated(injected)
	for _, k := range []string{"metadata", "spec"} {
		template[k] = injected[k]
	}
	if len(path) > 0 {
		return true, notes, unstructured.SetNestedMap(o, template, path...)
	}
	return true, notes, nil
}

// dropCreated removes the time that the types write where nobody said one.
func dropCreated(o map[string]any) {
	if m, ok := o["metadata"].(map[string]any); ok && m["creationTimestamp"] == nil {
		delete(m, "creationTimestamp")
	}
}
