package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/install"
	"github.com/heddle-mesh/heddle/internal/life"
)

// cluster is the choice of a Kubernetes cluster by flags.
type cluster struct{ kubeconfig, context string }

func (k *cluster) flags(c *cobra.Command) {
	c.Flags().StringVarP(&k.kubeconfig, "kubeconfig", "c", "", "file with the cluster's address and your credentials")
	c.Flags().StringVar(&k.context, "context", "", "context of the kubeconfig")
}

func (k *cluster) connect() (*install.Cluster, error) {
	return install.Connect(k.kubeconfig, k.context)
}

// settings is the choice of what to install, by flags.
type settings struct {
	files    []string
	set      []string
	revision string
}

func (o *settings) flags(c *cobra.Command) {
	c.Flags().StringArrayVarP(&o.files, "filename", "f", nil, "file of kind IstioOperator; later ones are laid over earlier ones")
	c.Flags().StringArrayVarP(&o.set, "set", "s", nil, "one setting, as profile=demo, values.global.tag=1 or meshConfig.accessLogFile=/dev/stdout")
	c.Flags().StringVarP(&o.revision, "revision", "r", "", "name of the control plane, beside others")
}

func (o *settings) plan(s Streams, kubeVersion string) (*install.Plan, error) {
	var sources []install.Source
	for _, f := range o.files {
		var b []byte
		var err error
		if f == "-" {
			b, err = io.ReadAll(s.In)
		} else {
			b, err = os.ReadFile(f)
		}
		if err != nil {
			return nil, err
		}
		sources = append(sources, install.Source{Name: f, Text: b})
	}
	set := o.set
	if o.revision != "" {
		set = append(set[:len(set):len(set)], "revision="+o.revision)
	}
	return install.NewPlan(life.Version(), kubeVersion, sources, set)
}

// progress prints what an installation does: on a terminal the current line
// changes, elsewhere each component gets one line when it is done.
func progress(out *os.File) install.Progress {
	_, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS)
	live := err == nil
	began := time.Now()
	return func(component, word string, done bool) {
		switch {
		case done && live:
			fmt.Fprintf(out, "\r\033[K✔ %s: %s (%.1fs)\n", component, word, time.Since(began).Seconds())
		case done:
			fmt.Fprintf(out, "✔ %s: %s (%.1fs)\n", component, word, time.Since(began).Seconds())
		case live:
			fmt.Fprintf(out, "\r\033[K… %s: %s", component, word)
		}
	}
}

// confirm asks on standard input. Nobody there is a no.
func confirm(s Streams, question string) bool {
	fmt.Fprintf(s.Out, "%s (y/N) ", question)
	line, _ := bufio.NewReader(s.In).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return true
	}
	return false
}

func newInstall(s Streams) *cobra.Command {
	return installCommand(s, "install", "Install the mesh into a Kubernetes cluster")
}

func newUpgrade(s Streams) *cobra.Command {
	return installCommand(s, "upgrade", "Bring an installation to this version")
}

func installCommand(s Streams, name, short string) *cobra.Command {
	var k cluster
	var o settings
	var yes, dry bool
	var timeout time.Duration
	c := &cobra.Command{
		Use: name, GroupID: "cluster", Short: short, Args: cobra.NoArgs,
		Long: "Applies CRDs, control plane and gateways, each when the one before runs, and removes what an\n" +
			"earlier installation of the same revision had and this one has not. Files and settings are those\n" +
			"of Istio's IstioOperator. Profiles: " + strings.Join(install.Profiles(), ", ") + ".",
		Example: "  heddle install -y\n  heddle install --set profile=demo --set meshConfig.accessLogFile=/dev/stdout\n  heddle install -f mesh.yaml --revision canary",
		RunE: func(c *cobra.Command, _ []string) error {
			to, err := k.connect()
			if err != nil {
				return err
			}
			version, err := to.Version(c.Context())
			if err != nil {
				return err
			}
			p, err := o.plan(s, version)
			if err != nil {
				return err
			}
			components, err := p.Components()
			if err != nil {
				return err
			}
			if dry {
				return dryRun(c.Context(), s, to, components)
			}
			if name == "upgrade" {
				if _, err := to.Get(c.Context(), "apps/v1", "Deployment", p.Namespace(), controlPlane(p.Revision())); err != nil {
					return fmt.Errorf("there is nothing to upgrade: %w", err)
				}
			}
			if !yes && !confirm(s, fmt.Sprintf("This will install %s into namespace %s. Proceed?", count(len(components), "component"), p.Namespace())) {
				return errors.New("nothing was changed")
			}
			i := install.Installer{Cluster: to, Progress: progress(s.Out), Timeout: timeout}
			return i.Install(c.Context(), p, components)
		},
	}
	k.flags(c)
	o.flags(c)
	c.Flags().BoolVarP(&yes, "skip-confirmation", "y", false, "do not ask")
	c.Flags().BoolVar(&dry, "dry-run", false, "let the server check everything, and change nothing")
	c.Flags().DurationVar(&timeout, "readiness-timeout", 5*time.Minute, "how long a component may take to run; 0 does not wait")
	return c
}

func controlPlane(revision string) string {
	if revision == "" {
		return "istiod"
	}
	return "istiod-" + revision
}

// dryRun lets the server check each object. What is in a namespace that is not
// there, or of a kind that the installation brings, can not be checked yet.
func dryRun(ctx context.Context, s Streams, to *install.Cluster, components []install.Component) error {
	bad := 0
	for _, c := range components {
		for _, o := range c.Objects {
			if _, err := to.Apply(ctx, o, true); err != nil && !install.IsNotFound(err) {
				fmt.Fprintln(s.Err, err)
				bad++
				continue
			}
			fmt.Fprintln(s.Out, o)
		}
	}
	if bad > 0 {
		return fmt.Errorf("%s would fail", count(bad, "object"))
	}
	return nil
}

func newUninstall(s Streams) *cobra.Command {
	var k cluster
	var revision string
	var purge, yes bool
	c := &cobra.Command{
		Use: "uninstall", GroupID: "cluster", Short: "Remove the mesh from a Kubernetes cluster", Args: cobra.NoArgs,
		Long: "Removes one control plane with its gateways, or with --purge everything: all revisions, and the\n" +
			"CRDs with all configuration in them, the authority's key, and namespaces that heddle install made,\n" +
			"with all in them. Pods that have a proxy keep it until they are restarted.",
		RunE: func(c *cobra.Command, _ []string) error {
			if revision == "" && !purge {
				return errors.New("say which control plane with --revision, or --purge for everything")
			}
			to, err := k.connect()
			if err != nil {
				return err
			}
			i := install.Installer{Cluster: to, Progress: progress(s.Out)}
			found, err := i.Uninstall(c.Context(), revision, purge)
			if err != nil {
				return err
			}
			if len(found) == 0 {
				return errors.New("there is no such installation")
			}
			if !yes {
				for _, o := range found {
					fmt.Fprintln(s.Out, o)
				}
				if !confirm(s, "These will be removed. Proceed?") {
					return errors.New("nothing was changed")
				}
			}
			if err := i.Remove(c.Context(), found); err != nil {
				return err
			}
			fmt.Fprintf(s.Out, "✔ removed %s\n", count(len(found), "object"))
			return nil
		},
	}
	k.flags(c)
	c.Flags().StringVarP(&revision, "revision", "r", "", "the control plane to remove; the one without a name is \"default\"")
	c.Flags().BoolVar(&purge, "purge", false, "remove everything")
	c.Flags().BoolVarP(&yes, "skip-confirmation", "y", false, "do not ask")
	return c
}

func newManifest(s Streams) *cobra.Command {
	c := &cobra.Command{Use: "manifest", GroupID: "cluster", Short: "Show what an installation is made of"}
	var o settings
	generate := &cobra.Command{
		Use: "generate", Short: "Print the objects of an installation", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			p, err := o.plan(s, "")
			if err != nil {
				return err
			}
			components, err := p.Components()
			if err != nil {
				return err
			}
			for _, c := range components {
				b, err := install.Manifest(c.Objects)
				if err != nil {
					return err
				}
				if _, err := s.Out.Write(b); err != nil {
					return err
				}
			}
			return nil
		},
	}
	o.flags(generate)
	diff := &cobra.Command{
		Use: "diff FILE FILE", Short: "Compare two files of objects", Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, files []string) error {
			var both [2][]install.Object
			for n, f := range files {
				b, err := os.ReadFile(f)
				if err != nil {
					return err
				}
				if both[n], err = install.ReadObjects(b); err != nil {
					return fmt.Errorf("%s: %w", f, err)
				}
			}
			d, err := install.Diff(both[0], both[1])
			if err != nil {
				return err
			}
			if d != "" {
				fmt.Fprint(s.Out, d)
				return exitError{1}
			}
			fmt.Fprintln(s.Out, "the files hold the same objects")
			return nil
		},
	}
	c.AddCommand(generate, diff)
	return c
}

func newVerifyInstall(s Streams) *cobra.Command {
	var k cluster
	var revision string
	c := &cobra.Command{
		Use: "verify-install", GroupID: "cluster", Short: "Check whether an installation runs", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			to, err := k.connect()
			if err != nil {
				return err
			}
			i := install.Installer{Cluster: to}
			faults, n, err := i.Verify(c.Context(), revision)
			if err != nil {
				return err
			}
			for _, f := range faults {
				fmt.Fprintln(s.Out, "✘ "+f)
			}
			if len(faults) > 0 {
				return exitError{1}
			}
			fmt.Fprintf(s.Out, "✔ %s, all as they should be\n", count(n, "object"))
			return nil
		},
	}
	k.flags(c)
	c.Flags().StringVarP(&revision, "revision", "r", "", "one control plane; all of them without it")
	return c
}

func newExperimental(s Streams) *cobra.Command {
	x := &cobra.Command{Use: "x", Aliases: []string{"experimental", "exp"}, GroupID: "cluster", Short: "Commands that may change"}
	var k cluster
	var namespace string
	precheck := &cobra.Command{
		Use: "precheck", Short: "Check whether a cluster is fit for an installation", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			to, err := k.connect()
			if err != nil {
				return err
			}
			i := install.Installer{Cluster: to}
			findings, err := i.Precheck(c.Context(), namespace)
			if err != nil {
				return err
			}
			bad := false
			for _, f := range findings {
				kind := "warning"
				if f.Error {
					kind, bad = "error", true
				}
				fmt.Fprintf(s.Out, "%s: %s\n", kind, f.Text)
			}
			if bad {
				return exitError{1}
			}
			fmt.Fprintln(s.Out, "✔ no obstacle found")
			return nil
		},
	}
	k.flags(precheck)
	precheck.Flags().StringVarP(&namespace, "istioNamespace", "i", install.DefaultNamespace, "namespace of the control plane")
	x.AddCommand(precheck)
	return x
}

func newTag(s Streams) *cobra.Command {
	c := &cobra.Command{Use: "tag", GroupID: "cluster", Short: "Names that stand for a revision in namespaces' labels"}
	var k cluster
	var revision, namespace, output string
	var overwrite, yes, byDefault bool
	make := func(use, short string, run func(ctx context.Context, tag string) error) *cobra.Command {
		sub := &cobra.Command{Use: use, Short: short, Args: cobra.ExactArgs(1),
			RunE: func(c *cobra.Command, args []string) error { return run(c.Context(), args[0]) }}
		sub.Flags().StringVarP(&namespace, "istioNamespace", "i", install.DefaultNamespace, "namespace of the control plane")
		return sub
	}
	generate := make("generate TAG", "Print a tag's webhook", func(_ context.Context, tag string) error {
		o, err := install.Tag(tag, revision, namespace, byDefault)
		if err != nil {
			return err
		}
		b, err := install.Manifest([]install.Object{o})
		if err == nil {
			_, err = s.Out.Write(b)
		}
		return err
	})
	set := make("set TAG", "Make a tag mean a revision", func(ctx context.Context, tag string) error {
		to, err := k.connect()
		if err != nil {
			return err
		}
		if _, err := to.Get(ctx, "apps/v1", "Deployment", namespace, controlPlane(strings.TrimPrefix(revision, "default"))); err != nil {
			return fmt.Errorf("revision %s: %w", revision, err)
		}
		i := install.Installer{Cluster: to}
		tags, err := i.Tags(ctx)
		if err != nil {
			return err
		}
		for _, t := range tags {
			if t.Labels()["istio.io/tag"] == tag && !overwrite {
				return fmt.Errorf("tag %s means revision %s; --overwrite changes it", tag, t.Labels()["istio.io/rev"])
			}
		}
		o, err := install.Tag(tag, revision, namespace, byDefault)
		if err != nil {
			return err
		}
		if _, err := to.Apply(ctx, o, false); err != nil {
			return err
		}
		fmt.Fprintf(s.Out, "✔ tag %s means revision %s: label namespaces with istio.io/rev=%s\n", tag, revision, tag)
		return nil
	})
	for _, sub := range []*cobra.Command{generate, set} {
		sub.Flags().StringVarP(&revision, "revision", "r", "", "the revision that it means")
		sub.Flags().BoolVar(&byDefault, "auto-inject-namespaces", false, "inject pods of namespaces that say nothing, too")
		_ = sub.MarkFlagRequired("revision") // fails only for a flag that does not exist
	}
	set.Flags().BoolVar(&overwrite, "overwrite", false, "change a tag that is set")
	remove := make("remove TAG", "Remove a tag", func(ctx context.Context, tag string) error {
		to, err := k.connect()
		if err != nil {
			return err
		}
		i := install.Installer{Cluster: to}
		infos, err := i.DescribeTags(ctx)
		if err != nil {
			return err
		}
		for _, info := range infos {
			if info.Tag == tag && len(info.Namespaces) > 0 && !yes &&
				!confirm(s, fmt.Sprintf("Namespaces %s will not be injected any more. Proceed?", strings.Join(info.Namespaces, ", "))) {
				return errors.New("nothing was changed")
			}
		}
		tags, err := i.Tags(ctx)
		if err != nil {
			return err
		}
		for _, t := range tags {
			if t.Labels()["istio.io/tag"] == tag {
				if err := to.Delete(ctx, t); err != nil {
					return err
				}
				fmt.Fprintf(s.Out, "✔ tag %s removed\n", tag)
				return nil
			}
		}
		return fmt.Errorf("there is no tag %s", tag)
	})
	remove.Flags().BoolVarP(&yes, "skip-confirmation", "y", false, "do not ask")
	list := &cobra.Command{
		Use: "list", Aliases: []string{"show"}, Short: "List tags, their revisions and namespaces", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			to, err := k.connect()
			if err != nil {
				return err
			}
			i := install.Installer{Cluster: to}
			infos, err := i.DescribeTags(c.Context())
			if err != nil {
				return err
			}
			if output == "json" {
				e := json.NewEncoder(s.Out)
				e.SetIndent("", "  ")
				return e.Encode(infos)
			}
			w := tabwriter.NewWriter(s.Out, 0, 0, 3, ' ', 0)
			fmt.Fprintln(w, "TAG\tREVISION\tNAMESPACES")
			for _, t := range infos {
				fmt.Fprintf(w, "%s\t%s\t%s\n", t.Tag, t.Revision, strings.Join(t.Namespaces, ","))
			}
			return w.Flush()
		},
	}
	list.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	for _, sub := range []*cobra.Command{set, remove, list} {
		k.flags(sub)
	}
	c.AddCommand(set, generate, list, remove)
	return c
}
