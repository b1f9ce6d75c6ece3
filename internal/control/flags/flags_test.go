package flags

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// kubeconfig writes a file that leads to a cluster that nobody asks.
func kubeconfig(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config")
	const text = `
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "https://192.0.2.1:6443"}}]
users: [{name: u, user: {token: t}}]
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestIstiodsArgumentsAreUnderstood(t *testing.T) {
	cfg, err := Parse([]string{"discovery", "--monitoringAddr=:25014", "--log_output_level=default:debug,ads:none", "--domain", "cluster.local",
		"--keepaliveMaxServerConnectionAge", "30m", "--grpcAddr=:25010", "--secureGRPCAddr", ":25012", "--httpAddr=:28080", "--httpsAddr=:15017"},
		[]string{"KUBECONFIG=" + kubeconfig(t), "POD_NAME=istiod-1", "POD_NAMESPACE=mesh", "REVISION=canary", "CLUSTER_ID=east"}, "1.2.3", io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.HTTPAddr != ":25014" || cfg.PlainAddr != ":25010" || cfg.TLSAddr != ":25012" || cfg.ReadyAddr != ":28080" || cfg.ClusterID != "east" || cfg.Version != "1.2.3" {
		t.Errorf("configuration %+v", cfg)
	}
	c := cfg.Cluster
	if c == nil || c.Namespace != "mesh" || c.Revision != "canary" || c.Replica != "istiod-1" || c.Clients.Core == nil {
		t.Errorf("cluster %+v", c)
	}
}

func TestKubernetesIsReadByKubeconfigAlone(t *testing.T) {
	cfg, err := Parse([]string{"--kubeconfig", kubeconfig(t)}, nil, "", io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if c := cfg.Cluster; c == nil || c.Namespace != "istio-system" || c.Revision != "default" || c.Replica == "" {
		t.Errorf("cluster %+v", c)
	}
	if cfg.PlainAddr != "127.0.0.1:15010" || cfg.ReadyAddr != ":8080" {
		t.Errorf("plain at %q, ready at %q", cfg.PlainAddr, cfg.ReadyAddr)
	}
}

func TestPathsAreRead(t *testing.T) {
	cfg, err := Parse([]string{"--token-key", "key.json", "--state-dir", "/s", "a.yaml", "-"}, []string{"KUBECONFIG=/absent"}, "", io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Cluster != nil || strings.Join(cfg.Sources, " ") != "a.yaml -" || cfg.StateDir != "/s" || cfg.Tokens == nil || cfg.ReadyAddr != "" {
		t.Errorf("configuration %+v", cfg)
	}
}

func TestWhatIsWrongIsSaid(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{nil, "neither a PATH nor --kubeconfig"},
		{[]string{"discovery", "a.yaml"}, "reads a cluster, not files"},
		{[]string{"discovery"}, "outside of a cluster give --kubeconfig"},
		{[]string{"--kubeconfig", "/absent"}, "/absent"},
		{[]string{"--frobnicate"}, "frobnicate"},
		{[]string{"--log_output_level=default:loud", "a.yaml"}, "loud"},
	} {
		if _, err := Parse(tt.args, nil, "", io.Discard); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: error %v, want %q", tt.args, err, tt.want)
		}
	}
}
