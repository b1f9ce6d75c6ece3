package cli

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/heddle-mesh/heddle/internal/inspect"
)

// proxyConfig is what the subcommands share.
type proxyConfig struct {
	mesh              where
	s                 Streams
	namespace, output string
	filter            inspect.Filter
}

func newProxyConfig(s Streams) *cobra.Command {
	c := &cobra.Command{
		Use:     "proxy-config",
		Aliases: []string{"pc"},
		GroupID: "look",
		Short:   "Show what a proxy was told",
		Example: "  heddle proxy-config cluster productpage-v1-0\n  heddle pc route productpage-v1-0 --route 9080\n  heddle pc listener reviews-v1-0.default -o json",
	}
	part := func(use, alias, section, short string, table func(*inspect.Dump, inspect.Filter) *inspect.Table) *cobra.Command {
		return newPart(s, use, alias, short, func(p *proxyConfig, c *cobra.Command, pod string) error {
			d, err := p.dump(c, pod)
			if err != nil {
				return err
			}
			if p.output == "" {
				return writeTable(s.Out, table(d, p.filter))
			}
			return p.write(d.Section(section))
		})
	}
	c.AddCommand(
		part("cluster", "c", "Clusters", "Show the groups of endpoints", (*inspect.Dump).Clusters),
		part("listener", "l", "Listeners", "Show what is accepted, and where it goes", (*inspect.Dump).Listeners),
		part("route", "r", "Routes", "Show the routes of HTTP requests", (*inspect.Dump).Routes),
		part("secret", "s", "Secrets", "Show certificates", func(d *inspect.Dump, _ inspect.Filter) *inspect.Table { return d.Secrets() }),
		newPart(s, "endpoint", "ep", "Show the endpoints with their health", (*proxyConfig).endpoints),
		newPart(s, "bootstrap", "b", "Show what the proxy was started with", func(p *proxyConfig, c *cobra.Command, pod string) error {
			d, err := p.dump(c, pod)
			if err != nil {
				return err
			}
			return p.write(d.Section("Bootstrap"))
		}),
		newPart(s, "all", "a", "Show everything", (*proxyConfig).all),
		newLogLevel(s),
	)
	return c
}

// newPart makes a subcommand about one pod.
func newPart(s Streams, use, alias, short string, run func(*proxyConfig, *cobra.Command, string) error) *cobra.Command {
	p := &proxyConfig{s: s}
	c := &cobra.Command{
		Use: use + " POD[.NAMESPACE]", Aliases: []string{alias, use + "s"}, Short: short, Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if !slices.Contains([]string{"", "json", "yaml", "short"}, p.output) {
				return fmt.Errorf("there is no output format %q: use json, yaml or short", p.output)
			}
			if p.output == "short" {
				p.output = ""
			}
			return run(p, c, args[0])
		},
		ValidArgsFunction: p.mesh.completePods(&p.namespace),
	}
	p.mesh.flags(c)
	f := c.Flags()
	f.StringVarP(&p.namespace, "namespace", "n", "", "namespace of the pod")
	f.StringVarP(&p.output, "output", "o", "", "short, json or yaml")
	switch use {
	case "cluster":
		f.StringVar(&p.filter.FQDN, "fqdn", "", "only this service")
		f.StringVar(&p.filter.Subset, "subset", "", "only this subset")
		f.StringVar(&p.filter.Direction, "direction", "", "inbound or outbound only")
		f.IntVar(&p.filter.Port, "port", 0, "only this port")
	case "listener":
		f.StringVar(&p.filter.Address, "address", "", "only this address")
		f.IntVar(&p.filter.Port, "port", 0, "only this port")
	case "route":
		f.StringVar(&p.filter.Name, "route", "", "only the route configuration of this name")
	case "endpoint":
		f.StringVar(&p.filter.Cluster, "cluster", "", "only this cluster")
		f.StringVar(&p.filter.Status, "status", "", "healthy or unhealthy only")
		f.StringVar(&p.filter.Address, "address", "", "only this address")
		f.IntVar(&p.filter.Port, "port", 0, "only this port")
	}
	return c
}

func (p *proxyConfig) ask(c *cobra.Command, pod, method, path string) ([]byte, error) {
	r, err := p.mesh.reach(p.s)
	if err != nil {
		return nil, err
	}
	return r.proxy(c.Context(), p.namespace, pod, method, path)
}

func (p *proxyConfig) dump(c *cobra.Command, pod string) (*inspect.Dump, error) {
	page, err := p.ask(c, pod, "GET", "/config_dump?include_eds")
	if err != nil {
		return nil, err
	}
	return inspect.ParseDump(page)
}

// write writes v in full.
func (p *proxyConfig) write(v any) error {
	if p.output == "yaml" {
		b, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = p.s.Out.Write(b)
		return err
	}
	return writeJSON(p.s.Out, v)
}

func (p *proxyConfig) endpoints(c *cobra.Command, pod string) error {
	page, err := p.ask(c, pod, "GET", "/clusters?format=json")
	if err != nil {
		return err
	}
	if p.output != "" {
		var v any
		if err := yaml.Unmarshal(page, &v); err != nil {
			return err
		}
		return p.write(v)
	}
	t, err := inspect.Endpoints(page, p.filter)
	if err != nil {
		return err
	}
	return writeTable(p.s.Out, t)
}

func (p *proxyConfig) all(c *cobra.Command, pod string) error {
	d, err := p.dump(c, pod)
	if err != nil {
		return err
	}
	if p.output != "" {
		return p.write(d.All())
	}
	for _, t := range []*inspect.Table{d.Clusters(p.filter), d.Listeners(p.filter), d.Routes(p.filter), d.Secrets()} {
		if err := writeTable(p.s.Out, t); err != nil {
			return err
		}
		fmt.Fprintln(p.s.Out)
	}
	return p.endpoints(c, pod)
}

// newLogLevel shows or sets how much a proxy logs.
func newLogLevel(s Streams) *cobra.Command {
	var level string
	c := newPart(s, "log", "o", "Show or set how much the proxy logs", func(p *proxyConfig, c *cobra.Command, pod string) error {
		path := "/logging"
		if level != "" {
			path += "?" + url.Values{"level": {strings.ToLower(level)}}.Encode()
		}
		page, err := p.ask(c, pod, "POST", path)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(p.s.Out, strings.TrimSpace(string(page)))
		return err
	})
	c.Flags().StringVar(&level, "level", "", "the new level: debug, info, warning or error")
	return c
}
