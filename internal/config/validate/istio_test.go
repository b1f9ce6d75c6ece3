package validate_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/config/schema"
	"github.com/heddle-mesh/heddle/internal/config/validate"
)

// recorded is an object with Istio's answer. See testdata/README.md.
type recorded struct {
	Kind        string            `json:"kind"`
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace"`
	Annotations map[string]string `json:"annotations"`
	Labels      map[string]string `json:"labels"`
	Spec        json.RawMessage   `json:"spec"`
	Valid       bool              `json:"valid"`
	Warning     string            `json:"warning"`
	Error       string            `json:"error"`
}

func TestIstiosAnswers(t *testing.T) {
	f, err := os.Open("testdata/istio.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	kinds := map[string]int{}
	for n := 1; lines.Scan(); n++ {
		var r recorded
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatalf("line %d: %v", n, err)
		}
		kinds[r.Kind]++
		t.Run(fmt.Sprintf("%s/%d", r.Kind, n), func(t *testing.T) {
			errs, warnings := check(t, r)
			if valid := len(errs) == 0; valid != r.Valid {
				t.Errorf("valid is %v, Istio says %v (%s)\n%s\n%s", valid, r.Valid, r.Error, r.Spec, list(errs))
			}
			// An object that is refused may or may not have warnings besides.
			if r.Valid && (len(warnings) > 0) != (r.Warning != "") {
				t.Errorf("warnings:\n%s\nIstio says %q\n%s", list(warnings), r.Warning, r.Spec)
			}
		})
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	if len(kinds) < 14 {
		t.Errorf("cases for %d kinds only: %v", len(kinds), kinds)
	}
}

// check takes the road of a manifest: decode, then validate. Warnings of fields
// that do not act yet are Heddle's own, and left out.
func check(t *testing.T, r recorded) (errs, warnings []config.Fault) {
	t.Helper()
	var kind *schema.Kind
	for _, k := range schema.All() {
		if k.Name == r.Kind && strings.HasSuffix(k.Group, ".istio.io") {
			kind = k
		}
	}
	if kind == nil {
		t.Fatalf("kind %s is unknown", r.Kind)
	}
	// The recorded objects have names that only the admission of an object, not
	// its validation, would refuse.
	manifest, err := json.Marshal(map[string]any{
		"apiVersion": kind.APIVersion(), "kind": r.Kind, "spec": r.Spec,
		"metadata": map[string]any{"name": "recorded", "namespace": r.Namespace, "annotations": r.Annotations, "labels": r.Labels},
	})
	if err != nil {
		t.Fatal(err)
	}
	objects, faults := config.Decode("recorded.json", manifest)
	for _, f := range faults {
		if f.Severity == config.Error {
			errs = append(errs, f)
		}
	}
	for _, o := range objects {
		if r.Name != "" {
			o.Name = r.Name
		}
		for _, f := range validate.Object(o) {
			if f.Severity == config.Error {
				errs = append(errs, f)
			} else {
				warnings = append(warnings, f)
			}
		}
	}
	return errs, warnings
}

func list(faults []config.Fault) string {
	var b strings.Builder
	for _, f := range faults {
		b.WriteString("  " + f.Error() + "\n")
	}
	return b.String()
}

// The documents of the CRDs' own tests: files named -valid hold objects that the
// API server takes, files named -invalid such as it refuses.
func TestCRDs(t *testing.T) {
	files, err := filepath.Glob("testdata/crd/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		want := strings.HasSuffix(file, "-valid.yaml")
		for i, doc := range bytes.Split(data, []byte("\n---")) {
			why := ""
			var rest []string
			for _, line := range strings.Split(string(doc), "\n") {
				if e, ok := strings.CutPrefix(line, "_err:"); ok {
					why = e
					continue
				}
				rest = append(rest, line)
			}
			text := strings.Join(rest, "\n")
			if !strings.Contains(text, "\nkind:") && !strings.HasPrefix(text, "kind:") {
				continue
			}
			t.Run(fmt.Sprintf("%s/%d", filepath.Base(file), i), func(t *testing.T) {
				objects, faults := config.Decode(file, []byte(text))
				for _, o := range objects {
					faults = append(faults, validate.Object(o)...)
				}
				errs := 0
				for _, f := range faults {
					if f.Severity == config.Error {
						errs++
					}
				}
				if (errs == 0) != want {
					t.Errorf("valid is %v, want %v (%s)\n%s\n%s", errs == 0, want, why, text, list(faults))
				}
			})
		}
	}
}
