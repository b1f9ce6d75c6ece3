package config_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/config/analyze"
	"github.com/heddle-mesh/heddle/internal/config/validate"
)

// FuzzDecode takes any bytes the whole way: decode, validate, analyze. Nothing
// may panic or run on; every object and fault must be fit to be shown.
func FuzzDecode(f *testing.F) {
	cases, err := filepath.Glob("testdata/decode/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range cases {
		ar, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(ar.Files[0].Data)
	}
	for _, pattern := range []string{"validate/testdata/crd/*.yaml", "analyze/testdata/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Add([]byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"istio","namespace":"istio-system"},"data":{"mesh":"a: &a [*a]"}}`))
	f.Add([]byte("a: &a\n  <<: *a\n"))
	f.Add([]byte("--- !!binary |\n  aGk=\n...\n%TAG ! x\n---\n? [a]\n: b\n"))

	f.Fuzz(func(t *testing.T, data []byte) {
		objects, faults := config.Decode("f.yaml", data)
		for _, o := range objects {
			if o.Name == "" || o.Kind.Name == "" || o.Spec == nil || o.Pos.Line < 1 {
				t.Errorf("object %+v", o)
			}
			faults = append(faults, validate.Object(o)...)
		}
		faults = append(faults, analyze.Check(objects)...)
		for _, fault := range faults {
			if fault.Pos.File != "f.yaml" || fault.Pos.Line < 0 || fault.Problem == "" || fault.Error() == "" {
				t.Errorf("fault %+v", fault)
			}
		}
	})
}
