package cli

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/internal/inspect"
)

func newProxyStatus(s Streams) *cobra.Command {
	var m where
	c := &cobra.Command{
		Use:     "proxy-status",
		GroupID: "look",
		Short:   "Show which proxies have their configuration",
		Long: "Shows for each proxy and type of configuration whether the proxy took what the control\n" +
			"plane sent last: SYNCED, STALE (not yet, or refused) or NOT SENT (nothing to send).",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := m.reach(s)
			if err != nil {
				return err
			}
			pages, err := r.control(c.Context(), "/debug/syncz")
			if err != nil {
				return err
			}
			t, err := inspect.ProxyStatus(pages)
			if err != nil {
				return err
			}
			return writeTable(s.Out, t)
		},
	}
	m.flags(c)
	return c
}

// writeTable writes a table in aligned columns.
func writeTable(out io.Writer, t *inspect.Table) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	for _, row := range t.Rows {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}
