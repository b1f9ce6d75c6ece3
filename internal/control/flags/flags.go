// Package flags reads what heddled is started with: flags, and the environment
// that Istio's installation gives to its control plane.
package flags

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/heddle-mesh/heddle/internal/control"
	"github.com/heddle-mesh/heddle/internal/identity/ca"
	"github.com/heddle-mesh/heddle/internal/kubeapi"
)

// subcommand is what istiod is started with.
const subcommand = "discovery"

// foreign are flags of istiod's that say nothing to us, so that its
// installation's arguments can stay as they are.
var foreign = []string{
	"caCertFile", "clusterAliases", "clusterRegistriesNamespace", "configDir", "ctrlz_address", "ctrlz_port", "domain",
	"keepaliveInterval", "keepaliveMaxServerConnectionAge", "keepaliveTimeout", "log_as_json", "log_caller",
	"log_stacktrace_level", "log_target", "meshConfig", "namespace", "networksConfig", "plugins", "profile", "registries",
	"resync", "shutdownDuration", "tls-cipher-suites", "tlsCertFile", "tlsKeyFile", "vklog",
}

// Parse makes a control plane's configuration of arguments and environment, as
// os.Args and os.Environ return them. In Kubernetes it reads the files that a pod
// has mounted; it opens nothing.
func Parse(args, environ []string, version string, stderr io.Writer) (control.Config, error) {
	env := map[string]string{}
	for _, s := range environ {
		if name, value, ok := strings.Cut(s, "="); ok {
			env[name] = value
		}
	}
	cfg := control.Config{Stdin: os.Stdin, Version: version}
	discovery := len(args) > 0 && args[0] == subcommand
	if discovery {
		args = args[1:]
	}
	fs := flag.NewFlagSet("heddled", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprintf(stderr, "Usage: heddled [flags] PATH...      reads files\n       heddled %s [flags]      reads the Kubernetes cluster that it runs in\n       heddled --kubeconfig FILE [flags]\n\nPATH is a file or directory with manifests, or - for standard input.\n\n", subcommand)
		fs.PrintDefaults()
	}
	both := func(p *string, name, istio, value, usage string) {
		fs.StringVar(p, name, value, usage)
		fs.StringVar(p, istio, value, "the same as --"+name)
	}
	fs.StringVar(&cfg.StateDir, "state-dir", "/var/lib/heddled", "directory of the root key, where files are read")
	both(&cfg.PlainAddr, "plain-address", "grpcAddr", "127.0.0.1:15010", "xDS without TLS or proof of identity; empty for none")
	both(&cfg.TLSAddr, "address", "secureGRPCAddr", ":15012", "xDS and certificates with TLS; empty for none")
	both(&cfg.HTTPAddr, "http-address", "monitoringAddr", ":15014", "metrics, readiness and debug pages; empty for none")
	both(&cfg.ReadyAddr, "ready-address", "httpAddr", "", "the same at another address; in Kubernetes :8080")
	both(&cfg.WebhookAddr, "webhook-address", "httpsAddr", "", "injection and validation, asked by the API server; in Kubernetes :15017")
	fs.StringVar(&cfg.TrustDomain, "trust-domain", cmp.Or(env["TRUST_DOMAIN"], "cluster.local"), "trust domain of all identities, unless the mesh's configuration names one")
	fs.StringVar(&cfg.ClusterID, "cluster-id", cmp.Or(env["CLUSTER_ID"], "Kubernetes"), "name of this cluster")
	tokenKey := fs.String("token-key", "", "file with the public key that service account tokens are checked with, where files are read")
	kubeconfig := fs.String("kubeconfig", env["KUBECONFIG"], "file that says how a Kubernetes cluster is reached from outside")
	namespace := fs.String("root-namespace", cmp.Or(env["POD_NAMESPACE"], "istio-system"), "namespace of the control plane")
	revision := fs.String("revision", cmp.Or(env["REVISION"], "default"), "revision of the control plane")
	level := slog.LevelInfo
	fs.TextVar(&level, "log-level", level, "debug, info, warn or error")
	fs.Func("log_output_level", "the same, as Istio writes it: default:info,...", func(text string) error { return setLevel(&level, text) })
	var ignored []string
	for _, name := range foreign {
		fs.Func(name, "accepted for compatibility", func(string) error {
			ignored = append(ignored, "--"+name)
			return nil
		})
	}
	if err := fs.Parse(args); err != nil {
		return control.Config{}, err
	}
	for block := range strings.SplitSeq(env["BLOCKED_CIDRS_IN_JWKS_URIS"], ",") {
		if block = strings.TrimSpace(block); block == "" {
			continue
		}
		p, err := netip.ParsePrefix(block)
		if err != nil {
			return control.Config{}, fmt.Errorf("BLOCKED_CIDRS_IN_JWKS_URIS: %w", err)
		}
		cfg.BlockedKeySources = append(cfg.BlockedKeySources, p)
	}
	cfg.Sources = fs.Args()
	cfg.Log = slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	if len(ignored) > 0 {
		cfg.Log.Info("flags of istiod's that change nothing here", "flags", strings.Join(ignored, " "))
	}
	switch {
	case discovery && len(cfg.Sources) > 0:
		return control.Config{}, fmt.Errorf("unexpected argument %q: %s reads a cluster, not files", cfg.Sources[0], subcommand)
	case len(cfg.Sources) > 0:
		return cfg, tokens(&cfg, *tokenKey)
	case !discovery && *kubeconfig == "":
		return control.Config{}, errors.New("neither a PATH nor --kubeconfig is given")
	}
	if cfg.ReadyAddr == "" {
		cfg.ReadyAddr = ":8080"
	}
	if cfg.WebhookAddr == "" && discovery {
		// One that runs outside of its cluster is not asked.
		cfg.WebhookAddr = ":15017"
	}
	reach, err := reach(*kubeconfig)
	if err != nil {
		return control.Config{}, err
	}
	clients, err := kubeapi.New(reach)
	if err != nil {
		return control.Config{}, err
	}
	host, _ := os.Hostname() // only one of three parts of a name
	cfg.Cluster = &control.Cluster{
		Clients: clients, Namespace: *namespace, Revision: *revision,
		Replica: cmp.Or(env["POD_NAME"], fmt.Sprintf("%s-%d", host, os.Getpid())),
	}
	return cfg, nil
}

// reach says how the API server is reached: as a file says, or as any pod does.
func reach(kubeconfig string) (*rest.Config, error) {
	if kubeconfig != "" {
		c, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", kubeconfig, err)
		}
		return c, nil
	}
	c, err := rest.InClusterConfig()
	if err != nil {
		return nil, fmt.Errorf("%w; outside of a cluster give --kubeconfig", err)
	}
	return c, nil
}

func tokens(cfg *control.Config, key string) error {
	if key == "" {
		return nil
	}
	t, err := ca.NewVerifier(key, ca.Audience)
	if err != nil {
		return err
	}
	cfg.Tokens = t
	return nil
}

// setLevel reads Istio's list of scopes with their levels, of which ours is the
// one for all.
func setLevel(to *slog.Level, text string) error {
	for part := range strings.SplitSeq(text, ",") {
		scope, level, ok := strings.Cut(part, ":")
		if !ok {
			scope, level = "default", scope
		}
		if scope != "default" && scope != "all" {
			continue
		}
		if level == "none" || level == "fatal" {
			level = "error"
		}
		if err := to.UnmarshalText([]byte(level)); err != nil {
			return fmt.Errorf("%q is no level; there are debug, info, warn, error", level)
		}
	}
	return nil
}
