package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/internal/lab"
)

func newPs(s Streams) *cobra.Command {
	var m mesh
	var namespace, output string
	c := &cobra.Command{
		Use:     "ps",
		GroupID: "mesh",
		Short:   "List the pods of the mesh",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if output != "" && output != "json" && output != "wide" {
				return fmt.Errorf("there is no output format %q: use json or wide", output)
			}
			client, err := m.client()
			if err != nil {
				return err
			}
			all, err := client.Pods(c.Context())
			if err != nil {
				return err
			}
			pods := []lab.PodStatus{}
			for _, p := range all {
				if namespace == "" || p.Namespace == namespace {
					pods = append(pods, p)
				}
			}
			if output == "json" {
				return writeJSON(s.Out, pods)
			}
			return writePods(s.Out, pods, time.Now(), output == "wide")
		},
	}
	m.flags(c)
	c.Flags().StringVarP(&namespace, "namespace", "n", "", "show one namespace only")
	c.Flags().StringVarP(&output, "output", "o", "", "json, or wide for one line for each container")
	return c
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func writePods(out io.Writer, pods []lab.PodStatus, now time.Time, wide bool) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "NAMESPACE\tNAME\tREADY\tSTATUS\tRESTARTS\tLAST EXIT\tAGE\tIP")
	for _, p := range pods {
		ready, restarts := 0, 0
		last, at := "", time.Time{}
		for _, c := range p.Containers {
			if c.Ready {
				ready++
			}
			restarts += c.Restarts
			if c.LastExit != "" && c.ExitedAt.After(at) {
				last, at = fmt.Sprintf("%s: %s (%s ago)", c.Name, c.LastExit, age(now.Sub(c.ExitedAt))), c.ExitedAt
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%d/%d\t%s\t%d\t%s\t%s\t%s\n", p.Namespace, p.Name, ready, len(p.Containers),
			p.Status, restarts, dash(last), age(now.Sub(p.Started)), dash(p.IP))
		if !wide {
			continue
		}
		for _, c := range p.Containers {
			fmt.Fprintf(w, "\t  %s\t%v\t%s\t%d\t%s\t\t\n", c.Name, c.Ready, c.State, c.Restarts, dash(c.LastExit))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, p := range pods {
		if !p.Ready && p.Problem != "" && p.Status != "Completed" {
			if _, err := fmt.Fprintf(out, "\n%s/%s: %s\n", p.Namespace, p.Name, strings.TrimSpace(p.Problem)); err != nil {
				return err
			}
		}
	}
	return nil
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// age formats a duration as kubectl does: in its largest units.
func age(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(max(d, 0).Seconds()))
	case d < 10*time.Minute:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 3*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours())/24)
}
