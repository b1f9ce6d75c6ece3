package cli

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/config/schema"
	"github.com/heddle-mesh/heddle/internal/lab"
)

// heddle runs a command as a user types it.
func heddle(t *testing.T, stdin string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	file := func(name string) *os.File {
		f, err := os.Create(filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	in, out, errs := file("in"), file("out"), file("err")
	if _, err := in.WriteString(stdin); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	status = Run(t.Context(), args, Streams{in, out, errs})
	read := func(f *os.File) string {
		b, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	return read(out), read(errs), status
}

func TestValidate(t *testing.T) {
	const good = "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: b}\nspec: {ports: [{name: http, port: 80}]}\n"
	for _, c := range []struct {
		name, text string
		args       []string
		status     int
		out        []string
	}{
		{name: "good", text: good, out: []string{"1 object, 0 errors, 0 warnings"}},
		{name: "misspelt", text: strings.Replace(good, "ports:", "portz:", 1), status: 1, out: []string{":4", "portz"}},
		{name: "a kind that nobody knows", text: "apiVersion: example.com/v1\nkind: Thing\nmetadata: {name: a}\n", out: []string{"warning: ", "Thing", "0 errors, 1 warning"}},
		{name: "a warning, strictly", args: []string{"--strict"}, text: "apiVersion: example.com/v1\nkind: Thing\nmetadata: {name: a}\n", status: 1},
		{name: "no YAML", text: "a: [", status: 1, out: []string{"error: "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "m.yaml")
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			for how, args := range map[string][]string{"file": {path}, "stdin": {"-"}} {
				out, errs, status := heddle(t, c.text, append(append([]string{"validate"}, c.args...), args...)...)
				if status != c.status {
					t.Errorf("%s: status %d, want %d: %s%s", how, status, c.status, out, errs)
				}
				for _, want := range c.out {
					if !strings.Contains(out, want) {
						t.Errorf("%s: %q lacks %q", how, out, want)
					}
				}
			}
		})
	}
}

func TestTheExampleIsValid(t *testing.T) {
	out, errs, status := heddle(t, "", "validate", "../../examples/bookstore")
	if status != 0 || strings.Contains(out, "warning:") {
		t.Errorf("status %d: %s%s", status, out, errs)
	}
}

// What goes wrong is one sentence on standard error.
func TestErrors(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"ps"}, "no mesh is running"},
		{[]string{"logs", "a"}, "no mesh is running"},
		{[]string{"exec", "a", "--", "true"}, "no mesh is running"},
		{[]string{"get", "pods"}, "no mesh is running"},
		{[]string{"get", "unicorns"}, `there is no kind "unicorns"`},
		{[]string{"get", "pods", "-o", "xml"}, `there is no output format "xml"`},
		{[]string{"ps", "--name", "A B"}, "is no name for a mesh"},
		{[]string{"up", "--name", "../x", "."}, "is no name for a mesh"},
		{[]string{"up", "/no/such/path"}, "no such file"},
		{[]string{"exec", "a"}, "name a pod and a command"},
		{[]string{"ps", "--wrong"}, "unknown flag"},
		{[]string{"wrong"}, "unknown command"},
	} {
		out, errs, status := heddle(t, "", c.args...)
		if status == 0 || out != "" || !strings.Contains(errs, c.want) || strings.Count(errs, "\n") != 1 {
			t.Errorf("heddle %s: status %d, stdout %q, stderr %q, want one line with %q", strings.Join(c.args, " "), status, out, errs, c.want)
		}
	}
}

func TestVersion(t *testing.T) {
	out, _, status := heddle(t, "", "version")
	if status != 0 || strings.TrimSpace(out) == "" {
		t.Errorf("status %d, %q", status, out)
	}
}

func TestKindsByAnyName(t *testing.T) {
	for name, want := range map[string]string{
		"pods": "Pod", "po": "Pod", "Pod": "Pod", "svc": "Service", "deploy": "Deployment", "deployments.apps": "Deployment",
		"vs": "VirtualService", "virtualservice": "VirtualService", "dr": "DestinationRule", "destinationrules.networking.istio.io": "DestinationRule",
		"cm": "ConfigMap", "se": "ServiceEntry", "pa": "PeerAuthentication",
	} {
		k, err := findKind(name)
		if err != nil || k.Name != want {
			t.Errorf("findKind(%q) = %v, %v, want %s", name, k, err, want)
		}
	}
}

func TestPodsAsATable(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	pods := []lab.PodStatus{
		{Namespace: "shop", Name: "web-0", Ready: true, Status: "Running", IP: "10.244.0.2", Started: now.Add(-time.Hour), Containers: []lab.ContainerStatus{
			{Name: "istio-proxy", Ready: true}, {Name: "web", Ready: true, Restarts: 2, LastExit: "exit 1", ExitedAt: now.Add(-30 * time.Second)},
		}},
		{Namespace: "shop", Name: "web-1", Status: "CrashLoopBackOff", Problem: "web: ended", Started: now, Containers: []lab.ContainerStatus{{Name: "web"}}},
	}
	var b bytes.Buffer
	if err := writePods(&b, pods, now, false); err != nil {
		t.Fatal(err)
	}
	want := `NAMESPACE   NAME    READY   STATUS             RESTARTS   LAST EXIT               AGE   IP
shop        web-0   2/2     Running            2          web: exit 1 (30s ago)   60m   10.244.0.2
shop        web-1   0/1     CrashLoopBackOff   0          -                       0s    -

shop/web-1: web: ended
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestObjectsAsATable(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	service := map[string]any{
		"metadata": map[string]any{"name": "web", "namespace": "shop", "creationTimestamp": "2026-11-21T11:59:00Z"},
		"spec":     map[string]any{"type": "LoadBalancer", "clusterIP": "10.96.0.7", "ports": []any{map[string]any{"port": 80.0}}},
	}
	var b bytes.Buffer
	published := []lab.PublishedPort{{Namespace: "shop", Service: "web", Port: 80, Address: "127.0.0.1:8080"}}
	if err := writeObjects(&b, schema.Find("", "Service"), []map[string]any{service}, false, true, "", published, now); err != nil {
		t.Fatal(err)
	}
	want := `NAMESPACE   NAME   TYPE           CLUSTER-IP   PUBLISHED        PORTS    AGE
shop        web    LoadBalancer   10.96.0.7    127.0.0.1:8080   80/TCP   60s
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestAges(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 90 * time.Second: "90s", 5*time.Minute + 3*time.Second: "5m3s", 40 * time.Minute: "40m", 30 * time.Hour: "30h", 80 * time.Hour: "3d",
	} {
		if got := age(d); got != want {
			t.Errorf("age(%s) = %s, want %s", d, got, want)
		}
	}
}
