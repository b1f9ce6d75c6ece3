package inject

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/internal/meshtest/golden"
	"github.com/heddle-mesh/heddle/manifests"
)

// TestInject runs the cases of testdata. Inputs are pod.yaml or objects.yaml and,
// where a case needs them, values.yaml, mesh.yaml and settings.yaml, which are laid over those of
// the charts. A question is the path of a field of the injected pod, or one of
// "reason", "warnings", "error", "order", "pod", "objects" and "owners". That injecting
// twice is injecting once is asked of every case.
func TestInject(t *testing.T) {
	golden.Run(t, "testdata/*.txtar", []string{".yaml"}, func(t *testing.T, files map[string][]byte, question string) string {
		i, err := New(testConfig(t, files))
		if err != nil {
			if question == "error" {
				return err.Error()
			}
			t.Fatal(err)
		}
		if objects, ok := files["objects.yaml"]; ok {
			out, notes, err := i.Objects(objects)
			switch {
			case question == "error" && err != nil:
				return err.Error()
			case err != nil:
				t.Fatal(err)
			case question == "warnings":
				return strings.Join(notes, "\n")
			}
			again, _, err := i.Objects(out)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(out), string(again)); diff != "" {
				t.Errorf("injected twice:\n%s", diff)
			}
			switch question {
			case "objects":
				return string(out)
			case "owners":
				return owners(out)
			}
			return field(t, out, question)
		}
		req := Request{Pod: new(corev1.Pod), Namespace: "shop"}
		if err := yaml.UnmarshalStrict(files["pod.yaml"], req.Pod); err != nil {
			t.Fatal(err)
		}
		if text, ok := files["request.yaml"]; ok {
			var more struct {
				ClusterID, Network string
				Environment        map[string]string
			}
			if err := yaml.UnmarshalStrict(text, &more); err != nil {
				t.Fatal(err)
			}
			req.ClusterID, req.Network, req.Environment = more.ClusterID, more.Network, more.Environment
		}
		was := req.Pod.DeepCopy()
		res, err := i.Pod(req)
		if diff := cmp.Diff(was, req.Pod); diff != "" {
			t.Errorf("the pod of the request was changed:\n%s", diff)
		}
		if question == "error" {
			return fmt.Sprint(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		if res.Injected {
			again, err := i.Pod(Request{Pod: res.Pod, Namespace: "shop"})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(res.Pod, again.Pod); diff != "" {
				t.Errorf("injected twice:\n%s", diff)
			}
		}
		switch question {
		case "reason":
			return res.Reason
		case "warnings":
			return strings.Join(res.Warnings, "\n")
		case "order":
			names := func(list []corev1.Container) string {
				var out []string
				for _, c := range list {
					out = append(out, c.Name)
				}
				return strings.Join(out, " ")
			}
			return "init: " + names(res.Pod.Spec.InitContainers) + "\ncontainers: " + names(res.Pod.Spec.Containers)
		}
		text, err := yaml.Marshal(res.Pod)
		if err != nil {
			t.Fatal(err)
		}
		if question == "pod" {
			return string(text)
		}
		return field(t, text, question)
	})
}

// owners are the owners that the proxies are told.
func owners(text []byte) string {
	var out []string
	lines := strings.Split(string(text), "\n")
	for n, l := range lines {
		if strings.Contains(l, "ISTIO_META_OWNER") {
			out = append(out, strings.TrimSpace(lines[n+1]))
		}
	}
	return strings.Join(out, "\n")
}

// testConfig is the charts' configuration, and what a case changes.
func testConfig(t *testing.T, files map[string][]byte) Config {
	t.Helper()
	read := func(name string) []byte {
		b, err := manifests.Files.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var values map[string]any
	for _, text := range [][]byte{
		read("charts/istiod/values.yaml"),
		[]byte("global: {hub: localhost, tag: test}"),
		files["values.yaml"],
	} {
		var more map[string]any
		if err := yaml.Unmarshal(text, &more); err != nil {
			t.Fatal(err)
		}
		values = merged(values, more)
	}
	settings := map[string]any{
		"templates": map[string]any{
			"sidecar": string(read("charts/istiod/files/injection-template.yaml")),
			"gateway": string(read("charts/istiod/files/gateway-injection-template.yaml")),
		},
	}
	var more map[string]any
	if err := yaml.Unmarshal(files["settings.yaml"], &more); err != nil {
		t.Fatal(err)
	}
	text, err := yaml.Marshal(merged(settings, more))
	if err != nil {
		t.Fatal(err)
	}
	v, err := yaml.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := ReadConfig(string(text), string(v), string(files["mesh.yaml"]))
	if err != nil {
		t.Fatal(err)
	}
	cfg.NativeSidecars = files["classic.yaml"] == nil
	return cfg
}

func merged(a, b map[string]any) map[string]any {
	out := maps.Clone(a)
	if out == nil {
		out = make(map[string]any)
	}
	for k, v := range b {
		if m, ok := v.(map[string]any); ok {
			if n, ok := out[k].(map[string]any); ok {
				out[k] = merged(n, m)
				continue
			}
		}
		out[k] = v
	}
	return out
}

// field reads "spec.containers[istio-proxy].env": an element of a list is chosen
// by its name, a key with dots in it stands in brackets as well.
func field(t *testing.T, text []byte, path string) string {
	t.Helper()
	var v any
	if err := yaml.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	for path != "" {
		var key string
		if path[0] == '[' {
			key, path, _ = strings.Cut(path[1:], "]")
		} else {
			path = strings.TrimPrefix(path, ".")
			n := strings.IndexAny(path, ".[")
			if n < 0 {
				n = len(path)
			}
			key, path = path[:n], path[n:]
		}
		var next any
		switch at := v.(type) {
		case map[string]any:
			next = at[key]
		case []any:
			for _, e := range at {
				m, _ := e.(map[string]any)
				if m["name"] == key || m["mountPath"] == key {
					next = e
				}
			}
		}
		if next == nil {
			return "(none)"
		}
		v = next
		if path == "." {
			break
		}
	}
	switch v := v.(type) {
	case string:
		if json.Valid([]byte(v)) && strings.HasPrefix(v, "{") {
			var nice any
			if json.Unmarshal([]byte(v), &nice) == nil {
				b, _ := yaml.Marshal(nice)
				return string(b)
			}
		}
		return v
	}
	b, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
