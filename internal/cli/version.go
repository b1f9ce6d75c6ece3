package cli

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/internal/life"
)

func newVersion(s Streams) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			switch output {
			case "":
				_, err := fmt.Fprintln(s.Out, life.Version())
				return err
			case "json":
				return writeJSON(s.Out, map[string]string{"version": life.Version(), "go": runtime.Version()})
			}
			return fmt.Errorf("there is no output format %q: use json", output)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "", "json")
	return c
}
