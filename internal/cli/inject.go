package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/internal/inject"
	"github.com/heddle-mesh/heddle/internal/install"
	"github.com/heddle-mesh/heddle/internal/life"
)

func newKubeInject(s Streams) *cobra.Command {
	var k cluster
	var o struct {
		file, output                 string
		config, values, mesh         string
		configMap, meshMap           string
		revision, namespace, version string
	}
	c := &cobra.Command{
		Use: "kube-inject -f FILE", GroupID: "cluster", Short: "Put the proxy into manifests, as the webhook puts it into pods", Args: cobra.NoArgs,
		Long: "Reads manifests and prints them with the proxy in every pod, and template of pods, that is to have\n" +
			"one. The templates are the cluster's, or files', or, where there is no cluster, those of this\n" +
			"version. A pod that was injected by hand is left alone by the webhook.",
		Example: "  heddle kube-inject -f app.yaml | kubectl apply -f -",
		RunE: func(c *cobra.Command, _ []string) error {
			if o.file == "" {
				return errors.New("say which manifests with -f FILE, - for standard input")
			}
			in := io.Reader(s.In)
			if o.file != "-" {
				f, err := os.Open(o.file)
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			}
			text, err := io.ReadAll(in)
			if err != nil {
				return err
			}
			var config, values, mesh string
			kubeVersion := o.version
			if o.config != "" || o.values != "" || o.mesh != "" {
				config, values, mesh, err = injectionFiles(o.config, o.values, o.mesh)
			} else if to, unreachable := k.connect(); unreachable == nil && (k.kubeconfig != "" || k.context != "" || hasCluster()) {
				suffix := ""
				if o.revision != "" {
					suffix = "-" + o.revision
				}
				config, values, mesh, err = injectionMaps(c.Context(), to, o.namespace, cmp.Or(o.configMap, "istio-sidecar-injector"+suffix), cmp.Or(o.meshMap, "istio"+suffix))
				if err == nil && kubeVersion == "" {
					kubeVersion, err = to.Version(c.Context())
				}
			} else {
				config, values, mesh, err = builtInInjection(o.revision)
			}
			if err != nil {
				return err
			}
			cfg, err := inject.ReadConfig(config, values, mesh)
			if err != nil {
				return err
			}
			cfg.NativeSidecars = kubeVersion == "" || install.NativeSidecars(kubeVersion)
			i, err := inject.New(cfg)
			if err != nil {
				return err
			}
			out, notes, err := i.Objects(text)
			for _, n := range notes {
				fmt.Fprintln(s.Err, "warning: "+n)
			}
			if err != nil {
				return err
			}
			if o.output != "" {
				return os.WriteFile(o.output, out, 0o644)
			}
			_, err = s.Out.Write(out)
			return err
		},
	}
	k.flags(c)
	c.Flags().StringVarP(&o.file, "filename", "f", "", "file with manifests, - for standard input")
	c.Flags().StringVarP(&o.output, "output", "o", "", "file to write to, in place of standard output")
	c.Flags().StringVar(&o.config, "injectConfigFile", "", "file with the settings of injection, key config of the ConfigMap")
	c.Flags().StringVar(&o.values, "valuesFile", "", "file with the values of the installation, key values of the ConfigMap")
	c.Flags().StringVar(&o.mesh, "meshConfigFile", "", "file with the mesh's settings")
	c.Flags().StringVar(&o.configMap, "injectConfigMapName", "", "ConfigMap with the settings of injection")
	c.Flags().StringVar(&o.meshMap, "meshConfigMapName", "", "ConfigMap with the mesh's settings")
	c.Flags().StringVarP(&o.revision, "revision", "r", "", "control plane that the proxies belong to")
	c.Flags().StringVarP(&o.namespace, "istioNamespace", "i", install.DefaultNamespace, "namespace of the control plane")
	c.Flags().StringVar(&o.version, "kube-version", "", "version of Kubernetes that the manifests are for; native sidecars came with v1.29")
	return c
}

// hasCluster says whether the environment names a cluster: client libraries
// otherwise make one up on this machine.
func hasCluster() bool {
	if os.Getenv("KUBECONFIG") != "" || os.Getenv("KUBERNETES_SERVICE_HOST") != "" {
		return true
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return false
	}
	_, err = os.Stat(home + "/.kube/config")
	return err == nil
}

// injectionFiles reads what is not given from this version's charts.
func injectionFiles(configFile, valuesFile, meshFile string) (config, values, mesh string, err error) {
	config, values, mesh, err = builtInInjection("")
	for _, f := range []struct {
		name string
		to   *string
	}{{configFile, &config}, {valuesFile, &values}, {meshFile, &mesh}} {
		if f.name == "" || err != nil {
			continue
		}
		var b []byte
		b, err = os.ReadFile(f.name)
		*f.to = string(b)
	}
	return config, values, mesh, err
}

func injectionMaps(ctx context.Context, to *install.Cluster, namespace, configMap, meshMap string) (config, values, mesh string, err error) {
	settings, err := to.Get(ctx, "v1", "ConfigMap", namespace, configMap)
	if err != nil {
		return "", "", "", fmt.Errorf("ConfigMap %s/%s: %w", namespace, configMap, err)
	}
	m, err := to.Get(ctx, "v1", "ConfigMap", namespace, meshMap)
	if err != nil {
		return "", "", "", fmt.Errorf("ConfigMap %s/%s: %w", namespace, meshMap, err)
	}
	return settings.Data("config"), settings.Data("values"), m.Data("mesh"), nil
}

// builtInInjection are the settings that this version is installed with.
func builtInInjection(revision string) (config, values, mesh string, err error) {
	p, err := install.NewPlan(life.Version(), "", nil, []string{"profile=minimal", "revision=" + revision})
	if err != nil {
		return "", "", "", err
	}
	components, err := p.Components()
	if err != nil {
		return "", "", "", err
	}
	for _, c := range components {
		for _, o := range c.Objects {
			if o.Kind() == "ConfigMap" && o.Data("config") != "" {
				config, values = o.Data("config"), o.Data("values")
			}
			if o.Kind() == "ConfigMap" && o.Data("mesh") != "" {
				mesh = o.Data("mesh")
			}
		}
	}
	return config, values, mesh, nil
}
