package flags

import (
	"bytes"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heddle-mesh/heddle/internal/proxy"
	"github.com/heddle-mesh/heddle/internal/proxy/socket"
)

// write makes a file below root.
func write(t *testing.T, root, path, text string) {
	t.Helper()
	path = filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

var minimal = []string{"POD_NAME=reviews-v1-5f", "POD_NAMESPACE=books", "INSTANCE_IP=10.0.0.7"}

func TestInjectedEnvironmentIsUnderstood(t *testing.T) {
	root := t.TempDir()
	write(t, root, rootCert, "ROOT")
	write(t, root, tokenFile, "TOKEN\n")
	write(t, root, "/etc/resolv.conf", "nameserver 10.96.0.10\nsearch books.svc.cluster.local svc.cluster.local\n")
	write(t, root, podInfo+"/labels", "app=\"reviews\"\nversion=\"v1\"\nquoted=\"a\\\"b\"\n")
	write(t, root, cache+"/x", "")
	cfg, err := parse(root, []string{"sidecar", "--domain", "books.svc.cluster.local", "--proxyLogLevel=warning", "--proxyComponentLogLevel=misc:error", "--stsPort", "0", "--outlierLogPath=/dev/stdout", "--meshConfig=./etc/istio/config/mesh", "--log_output_level=default:debug,dns:info"},
		append([]string{
			"INSTANCE_IPS=fd00::7,10.0.0.7", "SERVICE_ACCOUNT=reviews", "TRUST_DOMAIN=example.org", "CA_ADDR=ca.example:15012",
			`PROXY_CONFIG={"discoveryAddress":"istiod.example:15012","terminationDrainDuration":"20s","drainDuration":"30s","proxyAdminPort":16000,"statusPort":16020,"meshId":"m1","proxyMetadata":{"EXIT_ON_ZERO_ACTIVE_CONNECTIONS":"true","POD_NAME":"loses"}}`,
			"ISTIO_META_DNS_CAPTURE=true", "ISTIO_META_CLUSTER_ID=c1", "ISTIO_META_WORKLOAD_NAME=reviews-v1", "ISTIO_META_OWNER=kubernetes://apis/apps/v1/namespaces/books/deployments/reviews-v1",
			"ISTIO_META_NODE_NAME=node", "ISTIO_META_INTERCEPTION_MODE=REDIRECT", `ISTIO_METAJSON_LABELS={"app":"stale"}`, `ISTIO_METAJSON_ANNOTATIONS={"a":"b"}`, `ISTIO_META_POD_PORTS=[{"containerPort":9080}]`,
			"MINIMUM_DRAIN_DURATION=7s", "SECRET_TTL=1h", "ENVOY_STATUS_PORT=16021",
		}, minimal...), "1.2.3", io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	w := cfg.Workload
	w.Metadata = nil
	want := proxy.Workload{
		PodName: "reviews-v1-5f", Namespace: "books", ServiceAccount: "reviews", IPs: []netip.Addr{netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("fd00::7")},
		ClusterID: "c1", TrustDomain: "example.org", DNSDomain: "books.svc.cluster.local",
		Labels:      map[string]string{"app": "reviews", "version": "v1", "quoted": `a"b`},
		Annotations: map[string]string{"a": "b"}, WorkloadName: "reviews-v1", Owner: "kubernetes://apis/apps/v1/namespaces/books/deployments/reviews-v1",
		MeshID: "m1", NodeName: "node", CertTTL: time.Hour,
	}
	if diff := cmp.Diff(want, w, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("workload (-want +got):\n%s", diff)
	}
	if got := cfg.Workload.Metadata["INTERCEPTION_MODE"]; got != "REDIRECT" {
		t.Errorf("metadata INTERCEPTION_MODE = %v", got)
	}
	wantServers := proxy.Servers{Admin: netip.MustParseAddrPort("127.0.0.1:16000"), Status: netip.MustParseAddrPort("[::]:16020"),
		Ready: netip.MustParseAddrPort("[::]:16021"), Prometheus: netip.MustParseAddrPort("[::]:15090")}
	if cfg.Servers != wantServers {
		t.Errorf("servers %v, want %v", cfg.Servers, wantServers)
	}
	if want := (proxy.Drain{Termination: 20 * time.Second, Chain: 30 * time.Second, ExitOnZero: true, Minimum: 7 * time.Second}); cfg.Drain != want {
		t.Errorf("drain %v, want %v", cfg.Drain, want)
	}
	if cfg.Control.Address != "istiod.example:15012" || cfg.Control.CAAddress != "ca.example:15012" {
		t.Errorf("control plane %q, authority %q", cfg.Control.Address, cfg.Control.CAAddress)
	}
	roots, err1 := cfg.Control.Roots()
	token, err2 := cfg.Control.Token()
	if err1 != nil || err2 != nil || string(roots) != "ROOT" || token != "TOKEN\n" {
		t.Errorf("roots %q, %v; token %q, %v", roots, err1, token, err2)
	}
	write(t, root, tokenFile, "RENEWED")
	if token, _ := cfg.Control.Token(); token != "RENEWED" {
		t.Errorf("token %q, want the file's new content", token)
	}
	if d := cfg.DNS; d == nil || len(d.Upstreams) != 1 || d.Upstreams[0] != netip.MustParseAddrPort("10.96.0.10:53") || d.Search[0] != "books.svc.cluster.local" {
		t.Errorf("DNS %+v", d)
	}
	if cfg.Level.Level() != slog.LevelDebug {
		t.Errorf("level %v, want debug", cfg.Level.Level())
	}
	if filepath.Dir(cfg.CachePath) != filepath.Join(root, cache) {
		t.Errorf("cache %q", cfg.CachePath)
	}
}

func TestLittleIsEnough(t *testing.T) {
	cfg, err := parse(t.TempDir(), []string{"gateway", "--mark", "7"}, minimal, "dev", io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if !cfg.Workload.Gateway || cfg.Workload.ServiceAccount != "default" || cfg.Workload.DNSDomain != "books.svc.cluster.local" || cfg.Workload.TrustDomain != "cluster.local" {
		t.Errorf("workload %+v", cfg.Workload)
	}
	if cfg.Control.Address != "istiod.istio-system.svc:15012" || cfg.DNS != nil || cfg.CachePath != "" {
		t.Errorf("control plane %q, DNS %v, cache %q", cfg.Control.Address, cfg.DNS, cfg.CachePath)
	}
	if cfg.Drain.Termination != proxy.DefaultTermination || cfg.Drain.ExitOnZero {
		t.Errorf("drain %+v", cfg.Drain)
	}
	if cfg.Network.(socket.System).Mark != 7 {
		t.Errorf("mark %d, want 7", cfg.Network.(socket.System).Mark)
	}
	if cfg.Servers.Ready != netip.MustParseAddrPort("0.0.0.0:15021") {
		t.Errorf("ready on %v", cfg.Servers.Ready)
	}
	if n := connectionLimit(); n < 64 || n > 1<<20 {
		t.Errorf("connectionLimit() = %d", n)
	}
}

func TestAllFaultsAreToldAtOnce(t *testing.T) {
	root := t.TempDir()
	write(t, root, podInfo+"/labels", "app=unquoted\n")
	_, err := parse(root, []string{"sidecar", "--log_output_level=default:loud", "extra"}, []string{
		"INSTANCE_IP=not-an-address", "PROXY_CONFIG={", "ISTIO_METAJSON_X={", "SECRET_TTL=soon", "EXIT_ON_ZERO_ACTIVE_CONNECTIONS=perhaps", "ENVOY_STATUS_PORT=99999",
	}, "dev", io.Discard)
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"POD_NAME", "INSTANCE_IP", "PROXY_CONFIG", "ISTIO_METAJSON_X", "SECRET_TTL", "EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "ENVOY_STATUS_PORT", "loud", "extra", `"app"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not in the error:\n%v", want, err)
		}
	}
}

func TestRedirectPrintsItsRules(t *testing.T) {
	root := t.TempDir()
	write(t, root, "annotations", `traffic.sidecar.istio.io/excludeInboundPorts="7777"`+"\n"+`traffic.sidecar.istio.io/excludeOutboundPorts="8888"`+"\n")
	var out bytes.Buffer
	err := Main(t.Context(), []string{"redirect", "--dry-run", "-u", "1338", "-d", "15090,9999", "--annotations", filepath.Join(root, "annotations"), "--capture-all-dns"}, nil, "dev", &out, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"15001", "15006", "15053", "1338", "9999", "8888"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s is not in the rules:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "7777") {
		t.Error("an annotation beats a flag")
	}
	for _, args := range [][]string{{"-m", "TPROXY"}, {"-p", "0"}, {"-u", "root"}, {"-i", "10.0.0.0/99"}, {"more"}} {
		if err := Redirect(append(args, "--dry-run"), io.Discard, io.Discard); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}

func TestSubcommands(t *testing.T) {
	var out bytes.Buffer
	if err := Main(t.Context(), []string{"version"}, nil, "1.2.3", &out, io.Discard); err != nil || out.String() != "1.2.3\n" {
		t.Errorf("version: %q, %v", out.String(), err)
	}
	for _, args := range [][]string{nil, {"proxy"}, {"nothing"}, {"sidecar", "--nothing"}, {"proxy", "sidecar"}} {
		if err := Main(t.Context(), args, nil, "dev", io.Discard, io.Discard); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}
