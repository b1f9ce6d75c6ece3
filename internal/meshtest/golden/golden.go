// Package golden runs tests that are written as text: a txtar file holds input
// files and, for each question about them, a section whose name is the question
// and whose body is the answer. Run with -update to write the answers that the
// code gives; commit a changed answer only if you can explain it.
//
//	# What the case shows.
//	-- config.yaml --
//	…
//	-- sidecar default: routes 9080 --
//	routes 9080 …
package golden

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

var update = flag.Bool("update", false, "write the answers into the golden files")

// Answer returns the answer to a question about the input files of one case.
// What is wrong with the case itself it reports to t.
type Answer func(t *testing.T, files map[string][]byte, question string) string

// Run runs each file that matches pattern as a subtest. Sections whose name has
// one of the extensions are input files; the others are questions.
func Run(t *testing.T, pattern string, extensions []string, answer Answer) {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	if len(paths) == 0 {
		t.Fatalf("no golden files match %s", pattern)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), filepath.Ext(path)), func(t *testing.T) {
			a, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if run(t, a, extensions, answer) && *update {
				if err := os.WriteFile(path, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// run compares the answers with those in the archive, or puts them there. It
// reports whether the archive changed.
func run(t *testing.T, a *txtar.Archive, extensions []string, answer Answer) (changed bool) {
	t.Helper()
	files := map[string][]byte{}
	var questions []*txtar.File
	for i := range a.Files {
		f := &a.Files[i]
		if isInput(f.Name, extensions) {
			files[f.Name] = f.Data
		} else {
			questions = append(questions, f)
		}
	}
	if len(questions) == 0 {
		t.Error("the case asks nothing")
	}
	for _, q := range questions {
		got := answer(t, files, q.Name)
		if got != "" && !strings.HasSuffix(got, "\n") {
			got += "\n"
		}
		if want := string(q.Data); got != want {
			if *update {
				q.Data, changed = []byte(got), true
			} else {
				t.Errorf("%s: the answer differs (-want +got):\n%s", q.Name, cmp.Diff(want, got))
			}
		}
	}
	return changed
}

func isInput(name string, extensions []string) bool {
	for _, e := range extensions {
		if strings.HasSuffix(name, e) {
			return true
		}
	}
	return false
}
