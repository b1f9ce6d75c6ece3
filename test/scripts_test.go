// Package test runs the mesh scripts: on a simulated network inside one
// process, and, with the build tag heddle_root, as real processes in network
// namespaces.
package test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/meshtest/script"
)

// eachScript loads every script that runs on a stage and calls run for it as a
// subtest named after the file.
func eachScript(t *testing.T, stage string, run func(*testing.T, *script.Script)) {
	t.Helper()
	files, err := filepath.Glob("scripts/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txtar"), func(t *testing.T) {
			s, err := script.Load(f)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(s.Stages, stage) {
				t.Logf("%q does not run on stage %s", s.Title, stage)
				return
			}
			run(t, s)
		})
	}
}
