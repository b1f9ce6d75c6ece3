package cli

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/config/analyze"
	"github.com/heddle-mesh/heddle/internal/source/file"
)

func newValidate(s Streams) *cobra.Command {
	var strict bool
	c := &cobra.Command{
		Use:     "validate PATH...",
		GroupID: "config",
		Short:   "Check manifests without a mesh",
		Long: "Reads manifests and prints everything that is wrong with them: what can not be read, what\n" +
			"Istio would refuse, what has no effect here, and what does not fit together, such as a route\n" +
			"to a subset that nobody defines. The exit status is 1 if there is an error.",
		Example: "  heddle validate examples/bookstore\n  cat route.yaml | heddle validate -",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, paths []string) error {
			objects, faults := file.ReadAll(paths, s.In)
			faults = append(faults, analyze.Check(objects)...)
			var errs, warnings int
			seen := make(map[string]bool)
			for _, f := range faults {
				kind := "warning"
				if f.Severity == config.Error {
					kind = "error"
				}
				line := kind + ": " + f.Error()
				if seen[line] {
					continue
				}
				seen[line] = true
				if kind == "error" {
					errs++
				} else {
					warnings++
				}
				fmt.Fprintln(s.Out, line)
			}
			fmt.Fprintf(s.Out, "%s, %s, %s\n", count(len(objects), "object"), count(errs, "error"), count(warnings, "warning"))
			if errs > 0 || strict && warnings > 0 {
				return exitError{1}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&strict, "strict", false, "count warnings as errors")
	return c
}

// count says "1 error", "2 errors".
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	if slices.Contains([]string{"s", "x"}, what[len(what)-1:]) {
		what += "e"
	}
	return fmt.Sprintf("%d %ss", n, what)
}
