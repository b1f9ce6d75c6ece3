package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/config/schema"
	"github.com/heddle-mesh/heddle/internal/lab"
)

func newGet(s Streams) *cobra.Command {
	var m mesh
	var namespace, output string
	var all bool
	c := &cobra.Command{
		Use:     "get KIND [NAME]",
		GroupID: "mesh",
		Short:   "Show objects of the mesh",
		Long: "Shows the objects that the mesh runs with: those of the manifests, and those that it made.\n" +
			"KIND is a kind's name, plural or short name, as for kubectl; KIND/NAME works too.",
		Example: "  heddle get pods -A\n  heddle get vs reviews -n bookstore -o yaml",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			kindName, name, _ := strings.Cut(args[0], "/")
			if len(args) == 2 {
				name = args[1]
			}
			kind, err := findKind(kindName)
			if err != nil {
				return err
			}
			if !slices.Contains([]string{"", "wide", "yaml", "json", "name"}, output) {
				return fmt.Errorf("there is no output format %q: use yaml, json, wide or name", output)
			}
			client, err := m.client()
			if err != nil {
				return err
			}
			r := lab.ObjectRequest{Kind: config.Kind{Group: kind.Group, Name: kind.Name}, Name: name}
			if kind.Namespaced && !all {
				r.Namespace = namespace
			}
			items, err := client.Objects(c.Context(), r)
			if err != nil {
				return err
			}
			if name != "" && len(items) == 0 {
				return fmt.Errorf("there is no %s %s in namespace %s", kind.Name, name, r.Namespace)
			}
			mesh, err := client.Mesh(c.Context())
			if err != nil {
				return err
			}
			return writeObjects(s.Out, kind, items, name != "", all, output, mesh.Published, time.Now())
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			var names []string
			for _, k := range schema.All() {
				if k.New != nil {
					names = append(names, k.Plural)
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
	}
	m.flags(c)
	c.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace to look in")
	c.Flags().BoolVarP(&all, "all-namespaces", "A", false, "look in all namespaces")
	c.Flags().StringVarP(&output, "output", "o", "", "yaml, json, wide or name")
	return c
}

// findKind finds a kind by any of its names, with or without its group.
func findKind(name string) (*schema.Kind, error) {
	name, group, qualified := strings.Cut(strings.ToLower(name), ".")
	var found []*schema.Kind
	for _, k := range schema.All() {
		if qualified && !strings.HasPrefix(k.Group, group) {
			continue
		}
		if strings.ToLower(k.Name) == name || k.Plural == name || slices.Contains(k.Short, name) {
			found = append(found, k)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("there is no kind %q", name)
	}
	// The first is the one that acts: the table begins with those.
	return found[0], nil
}

func writeObjects(w io.Writer, kind *schema.Kind, items []map[string]any, single, all bool, output string, published []lab.PublishedPort, now time.Time) error {
	switch output {
	case "yaml", "json":
		var v any = map[string]any{"apiVersion": "v1", "kind": "List", "items": items}
		if single && len(items) == 1 {
			v = items[0]
		}
		if output == "json" {
			return writeJSON(w, v)
		}
		data, err := yaml.Marshal(v)
		if err == nil {
			_, err = w.Write(data)
		}
		return err
	case "name":
		for _, o := range items {
			if _, err := fmt.Fprintf(w, "%s/%s\n", strings.ToLower(kind.Name), text(o, "metadata", "name")); err != nil {
				return err
			}
		}
		return nil
	}
	if len(items) == 0 {
		_, err := fmt.Fprintln(w, "No resources found")
		return err
	}
	columns := columnsOf(kind, published, output == "wide")
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	var head []string
	if all && kind.Namespaced {
		head = append(head, "NAMESPACE")
	}
	head = append(head, "NAME")
	for _, c := range columns {
		head = append(head, c.title)
	}
	fmt.Fprintln(t, strings.Join(append(head, "AGE"), "\t"))
	for _, o := range items {
		var row []string
		if all && kind.Namespaced {
			row = append(row, text(o, "metadata", "namespace"))
		}
		row = append(row, text(o, "metadata", "name"))
		for _, c := range columns {
			row = append(row, dash(c.value(o)))
		}
		created := "-"
		if at, err := time.Parse(time.RFC3339, text(o, "metadata", "creationTimestamp")); err == nil {
			created = age(now.Sub(at))
		}
		fmt.Fprintln(t, strings.Join(append(row, created), "\t"))
	}
	return t.Flush()
}

// column is one of a kind's own columns.
type column struct {
	title string
	value func(map[string]any) string
}

// columnsOf returns what kubectl shows for a kind.
func columnsOf(kind *schema.Kind, published []lab.PublishedPort, wide bool) []column {
	path := func(title string, p ...string) column {
		return column{title, func(o map[string]any) string { return text(o, p...) }}
	}
	list := func(title string, p ...string) column {
		return column{title, func(o map[string]any) string {
			var out []string
			items, _ := at(o, p...).([]any)
			for _, i := range items {
				out = append(out, fmt.Sprint(i))
			}
			return strings.Join(out, ",")
		}}
	}
	switch kind.Name {
	case "Pod":
		columns := []column{{"READY", podReady}, path("STATUS", "status", "phase"), {"RESTARTS", podRestarts}}
		if wide {
			columns = append(columns, path("IP", "status", "podIP"), path("NODE", "spec", "nodeName"))
		}
		return columns
	case "Deployment":
		return []column{path("REPLICAS", "spec", "replicas")}
	case "Service":
		columns := []column{
			path("TYPE", "spec", "type"), path("CLUSTER-IP", "spec", "clusterIP"),
			{"PUBLISHED", func(o map[string]any) string {
				var out []string
				for _, p := range published {
					if p.Namespace == text(o, "metadata", "namespace") && p.Service == text(o, "metadata", "name") {
						out = append(out, p.Address)
					}
				}
				return strings.Join(out, ",")
			}},
			{"PORTS", servicePorts},
		}
		if wide {
			columns = append(columns, column{"SELECTOR", func(o map[string]any) string { return pairs(at(o, "spec", "selector")) }})
		}
		return columns
	case "VirtualService":
		return []column{list("GATEWAYS", "spec", "gateways"), list("HOSTS", "spec", "hosts")}
	case "DestinationRule":
		return []column{path("HOST", "spec", "host")}
	case "ServiceEntry":
		return []column{list("HOSTS", "spec", "hosts"), path("LOCATION", "spec", "location"), path("RESOLUTION", "spec", "resolution")}
	case "PeerAuthentication":
		return []column{path("MODE", "spec", "mtls", "mode")}
	case "Secret":
		return []column{path("TYPE", "type")}
	}
	if wide {
		return []column{{"LABELS", func(o map[string]any) string { return pairs(at(o, "metadata", "labels")) }}}
	}
	return nil
}

func at(o map[string]any, path ...string) any {
	var v any = o
	for _, p := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[p]
	}
	return v
}

func text(o map[string]any, path ...string) string {
	switch v := at(o, path...).(type) {
	case nil:
		return ""
	case string:
		return v
	default:
		return fmt.Sprint(v)
	}
}

func pairs(v any) string {
	m, _ := v.(map[string]any)
	var out []string
	for k, v := range m {
		out = append(out, fmt.Sprintf("%s=%v", k, v))
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}

func containerStatuses(o map[string]any) []map[string]any {
	items, _ := at(o, "status", "containerStatuses").([]any)
	var out []map[string]any
	for _, i := range items {
		if m, ok := i.(map[string]any); ok {
			out = append(out, m)
		}
	}
	return out
}

func podReady(o map[string]any) string {
	ready, total := 0, 0
	for _, c := range containerStatuses(o) {
		total++
		if c["ready"] == true {
			ready++
		}
	}
	return fmt.Sprintf("%d/%d", ready, total)
}

func podRestarts(o map[string]any) string {
	n := 0.0
	for _, c := range containerStatuses(o) {
		if v, ok := c["restartCount"].(float64); ok {
			n += v
		}
	}
	return fmt.Sprint(int(n))
}

func servicePorts(o map[string]any) string {
	items, _ := at(o, "spec", "ports").([]any)
	var out []string
	for _, i := range items {
		p, ok := i.(map[string]any)
		if !ok {
			continue
		}
		protocol := text(p, "protocol")
		if protocol == "" {
			protocol = "TCP"
		}
		out = append(out, text(p, "port")+"/"+protocol)
	}
	return strings.Join(out, ",")
}
