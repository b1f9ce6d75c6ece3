// Package flags reads what heddle-proxy is started with: a subcommand with its
// flags, and the environment that Istio's injection gives to istio-proxy.
package flags

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/heddle-mesh/heddle/internal/dnsproxy"
	"github.com/heddle-mesh/heddle/internal/life"
	"github.com/heddle-mesh/heddle/internal/proxy"
	"github.com/heddle-mesh/heddle/internal/proxy/socket"
)

// Places where Istio's injection mounts files, and those of the local mesh.
const (
	rootCert     = "/var/run/secrets/istio/root-cert.pem"
	tokenFile    = "/var/run/secrets/tokens/istio-token"
	podInfo      = "/etc/istio/pod"
	podInfoLocal = "/run/heddle/podinfo"
	cache        = "/var/lib/istio/data"
	cacheLocal   = "/run/heddle/cache"
	resolvConf   = "/etc/resolv.conf"
)

// proxyMark is what redirection knows the proxy's sockets by.
const proxyMark = 1337

// Main runs the subcommand in args until it is done or ctx ends. environ is as
// os.Environ returns it.
func Main(ctx context.Context, args, environ []string, version string, stdout, stderr io.Writer) error {
	if len(args) > 0 && args[0] == "proxy" { // as pilot-agent is called
		args = args[1:]
	}
	if len(args) == 0 {
		return errors.New("usage: heddle-proxy sidecar|gateway|redirect|wait|request|version [flags]")
	}
	switch args[0] {
	case "sidecar", "gateway", "router":
		cfg, err := Parse(args, environ, version, stderr)
		if err != nil {
			return err
		}
		cfg.MemoryLimit = small()
		ready := make(chan struct{})
		cfg.OnReady = func() { close(ready) }
		g := life.NewGroup(context.WithoutCancel(ctx)) // the proxy ends it, after its drain
		g.Go("memory", func(ctx context.Context) error {
			keepSmall(ctx, ready)
			return nil
		})
		err = proxy.Run(ctx, *cfg)
		g.Stop()
		return errors.Join(err, g.Wait())
	case "redirect":
		return Redirect(args[1:], stdout, stderr)
	case "wait":
		return Wait(ctx, args[1:], stderr)
	case "request":
		return Request(ctx, args[1:], stdout, stderr)
	case "version":
		_, err := fmt.Fprintln(stdout, version)
		return err
	}
	return fmt.Errorf("unknown subcommand %q; there are sidecar, gateway, redirect, wait, request and version", args[0])
}

// environment is what the process was given, and what ProxyConfig.proxyMetadata
// adds to it.
type environment map[string]string

func readEnvironment(environ []string) environment {
	e := make(environment)
	for _, s := range environ {
		if name, value, ok := strings.Cut(s, "="); ok {
			e[name] = value
		}
	}
	return e
}

// proxyConfig is the part of Istio's ProxyConfig that acts here.
type proxyConfig struct {
	DiscoveryAddress         string            `json:"discoveryAddress"`
	DrainDuration            string            `json:"drainDuration"`
	TerminationDrainDuration string            `json:"terminationDrainDuration"`
	ProxyAdminPort           uint16            `json:"proxyAdminPort"`
	StatusPort               uint16            `json:"statusPort"`
	MeshID                   string            `json:"meshId"`
	ProxyMetadata            map[string]string `json:"proxyMetadata"`
}

// faults gathers what is wrong, so that all of it is told at once.
type faults []error

func (f *faults) add(err error) {
	if err != nil {
		*f = append(*f, err)
	}
}

func (f *faults) duration(name, value string, otherwise time.Duration) time.Duration {
	if value == "" {
		return otherwise
	}
	d, err := time.ParseDuration(value)
	if err != nil || d < 0 {
		f.add(fmt.Errorf("%s: %q is not a duration", name, value))
		return otherwise
	}
	return d
}

func (f *faults) boolean(name, value string) bool {
	if value == "" {
		return false
	}
	b, err := strconv.ParseBool(value)
	if err != nil {
		f.add(fmt.Errorf("%s: %q is neither true nor false", name, value))
	}
	return b
}

func (f *faults) port(name, value string, otherwise uint16) uint16 {
	if value == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(value, 10, 16)
	if err != nil {
		f.add(fmt.Errorf("%s: %q is not a port", name, value))
		return otherwise
	}
	return uint16(n)
}

// foreign are flags of pilot-agent's that say nothing to this proxy, so that a
// container's arguments can stay as Istio's templates have them.
var foreign = []string{
	"proxyLogLevel", "proxyComponentLogLevel", "meshConfig", "outlierLogPath", "stsPort", "templateFile", "tokenManagerPlugin",
	"log_as_json", "log_caller", "log_stacktrace_level", "log_target", "profiling", "serviceregistry", "trust-domain", "vklog",
}

// Parse makes a proxy's configuration of the subcommand sidecar or gateway with
// its flags, and the environment. It reads the pod's labels and resolv.conf, and
// decides on the network; it opens nothing.
func Parse(args, environ []string, version string, stderr io.Writer) (*proxy.Config, error) {
	return parse("/", args, environ, version, stderr)
}

// parse is Parse with the directory below which the files are.
func parse(root string, args, environ []string, version string, stderr io.Writer) (*proxy.Config, error) {
	env := readEnvironment(environ)
	var bad faults
	var pc proxyConfig
	if text := env["PROXY_CONFIG"]; text != "" {
		if err := json.Unmarshal([]byte(text), &pc); err != nil {
			bad.add(fmt.Errorf("PROXY_CONFIG: %w", err))
		}
		for k, v := range pc.ProxyMetadata {
			if _, set := env[k]; !set {
				env[k] = v
			}
		}
	}

	fs := flag.NewFlagSet(args[0], flag.ContinueOnError)
	fs.SetOutput(stderr)
	domain := fs.String("domain", "", "DNS domain of the workload, NAMESPACE.svc.cluster.local")
	level := fs.String("log_output_level", "default:info", "least severe level to log")
	roots := fs.String("root-cert", cmp.Or(env["XDS_ROOT_CA"], env["CA_ROOT_CA"], filepath.Join(root, rootCert)), "file with the control plane's root certificates")
	token := fs.String("token", filepath.Join(root, tokenFile), "file with the service account token")
	cacheDir := fs.String("cache-dir", "", "directory for the last good configuration")
	mark := fs.Int("mark", -1, "mark of the proxy's sockets; -1: 1337 where the process may set it")
	connections := fs.Int("max-connections", 0, "most connections of clients; 0: by the limit of descriptors")
	fs.Int("concurrency", 0, "accepted for compatibility: see GOMAXPROCS")
	var ignored []string
	for _, name := range foreign {
		fs.Func(name, "accepted for compatibility", func(string) error {
			ignored = append(ignored, "--"+name)
			return nil
		})
	}
	if err := fs.Parse(args[1:]); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		bad.add(fmt.Errorf("unexpected argument %q", fs.Arg(0)))
	}

	var lv slog.LevelVar
	bad.add(setLevel(&lv, *level))
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: &lv}))
	if len(ignored) > 0 {
		log.Debug("flags of pilot-agent's that change nothing here", "flags", strings.Join(ignored, " "))
	}

	w, err := workload(root, env, args[0] != "sidecar", *domain)
	bad.add(err)
	w.MeshID = cmp.Or(w.MeshID, pc.MeshID)
	w.CertTTL = bad.duration("SECRET_TTL", env["SECRET_TTL"], 24*time.Hour)

	network := socket.System{}
	switch {
	case *mark > 0:
		network.Mark = uint32(*mark)
	case *mark < 0 && socket.MayMark():
		network.Mark = proxyMark
	}

	address := cmp.Or(pc.DiscoveryAddress, env["CA_ADDR"], "istiod.istio-system.svc:15012")
	any4, local := netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{127, 0, 0, 1})
	cfg := &proxy.Config{
		Version: version, Workload: w, Network: network, Log: log, Level: &lv,
		Control: proxy.Control{
			Address: address, CAAddress: cmp.Or(env["CA_ADDR"], address), ServerName: env["ISTIOD_SAN"],
			Roots: func() ([]byte, error) { return os.ReadFile(*roots) },
			Token: func() (string, error) {
				b, err := os.ReadFile(*token)
				return string(b), err
			},
		},
		Servers: proxy.Servers{
			Admin:      netip.AddrPortFrom(local, cmp.Or(pc.ProxyAdminPort, 15000)),
			Status:     netip.AddrPortFrom(any4, cmp.Or(pc.StatusPort, 15020)),
			Ready:      netip.AddrPortFrom(any4, bad.port("ENVOY_STATUS_PORT", env["ENVOY_STATUS_PORT"], 15021)),
			Prometheus: netip.AddrPortFrom(any4, bad.port("ENVOY_PROMETHEUS_PORT", env["ENVOY_PROMETHEUS_PORT"], 15090)),
		},
		Drain: proxy.Drain{
			Termination: bad.duration("terminationDrainDuration", pc.TerminationDrainDuration, proxy.DefaultTermination),
			Chain:       bad.duration("drainDuration", pc.DrainDuration, proxy.DefaultChainDrain),
			ExitOnZero:  bad.boolean("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", env["EXIT_ON_ZERO_ACTIVE_CONNECTIONS"]),
			Minimum:     bad.duration("MINIMUM_DRAIN_DURATION", env["MINIMUM_DRAIN_DURATION"], proxy.DefaultMinimumDrain),
		},
		MaxConnections: cmp.Or(*connections, connectionLimit()),
		// The name servers are asked over marked sockets: the answer must not come
		// from the proxy that waits for it.
		Resolver: &net.Resolver{PreferGo: true, Dial: network.DialContext},
	}
	app, err := application(env, w)
	bad.add(err)
	cfg.App = app
	if slices.ContainsFunc(w.IPs, netip.Addr.Is6) {
		// One socket for both families.
		for _, a := range []*netip.AddrPort{&cfg.Servers.Status, &cfg.Servers.Ready, &cfg.Servers.Prometheus} {
			*a = netip.AddrPortFrom(netip.IPv6Unspecified(), a.Port())
		}
	}
	if bad.boolean("ISTIO_META_DNS_CAPTURE", env["ISTIO_META_DNS_CAPTURE"]) {
		cfg.DNS = &proxy.DNS{
			Listen: netip.AddrPortFrom(local, 15053), Listen6: netip.AddrPortFrom(netip.IPv6Loopback(), 15053),
			Search: []string{w.DNSDomain},
		}
		if f, err := os.Open(filepath.Join(root, resolvConf)); err == nil {
			rc, err := dnsproxy.ParseResolvConf(f)
			f.Close()
			bad.add(err)
			cfg.DNS.Upstreams = rc.Servers
			if len(rc.Search) > 0 {
				cfg.DNS.Search = rc.Search
			}
		}
	}
	dirs := []string{filepath.Join(root, cacheLocal), filepath.Join(root, cache)}
	if *cacheDir != "" {
		dirs = []string{*cacheDir}
	}
	for _, dir := range dirs {
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			cfg.CachePath = filepath.Join(dir, "heddle-xds-cache")
			break
		}
	}
	if text := env[identityFD]; text != "" {
		fd, err := strconv.Atoi(text)
		if err != nil || fd < 3 {
			bad.add(fmt.Errorf("%s: %q is no descriptor", identityFD, text))
		} else {
			cfg.KeepIdentity = kept{os.NewFile(uintptr(fd), "identity")}
		}
	}
	if err := errors.Join(bad...); err != nil {
		return nil, err
	}
	return cfg, nil
}
