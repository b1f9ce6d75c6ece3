//go:build heddle_e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/test/e2e/kube"
)

// host is where the clusters of all tests run; those that it began end with it.
var host *kube.Host

func TestMain(m *testing.M) {
	var err error
	if host, err = kube.NewHost("../.."); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := host.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// The clusters that tests share.
var (
	single = kube.Config{Name: "e2e"}
	dual   = kube.Config{Name: "e2edual", Nodes: 2, Dual: true}
)

// reply is what an echo server says of a request.
type reply struct {
	Pod  string `json:"pod"`
	Host string `json:"host"`
	Path string `json:"path"`
}

// ask sends a request from a pod.
func ask(ctx context.Context, n *kube.Namespace, pod, url string) (reply, error) {
	out, err := n.Exec(ctx, pod, "", "meshecho", "get", "-no-reuse", "-timeout", "3s", url)
	if err != nil {
		return reply{}, err
	}
	var r struct {
		Error string
		Reply *reply
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return reply{}, err
	}
	if r.Reply == nil {
		return reply{}, fmt.Errorf("%s from %s: no echo: %s", url, pod, out)
	}
	return *r.Reply, nil
}

// askFromHost sends a request from this machine.
func askFromHost(ctx context.Context, addr, port string) (reply, error) {
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+net.JoinHostPort(addr, port)+"/", nil)
	if err != nil {
		return reply{}, err
	}
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	var r reply
	return r, json.NewDecoder(resp.Body).Decode(&r)
}

// wantPod asks until the pod of that name answers.
func wantPod(t *testing.T, pod string, question func(ctx context.Context) (reply, error)) {
	t.Helper()
	kube.Eventually(t, func(ctx context.Context) error {
		r, err := question(ctx)
		if err == nil && r.Pod != pod {
			err = fmt.Errorf("pod %q answered, not %s", r.Pod, pod)
		}
		return err
	})
}

// echoes is a server with a Service, and a client. A node's number can be given to each.
func echoes(c *kube.Cluster, families string, server, client int) string {
	pod := func(name string, node int, port string) string {
		return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, labels: {app: %[1]s}}
spec:
  nodeName: %[2]s
  terminationGracePeriodSeconds: 0
  containers:
  - name: echo
    image: ghcr.io/heddle-mesh/meshecho:dev
    args: [serve, "http:%[3]s"]
    env: [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
    readinessProbe: {tcpSocket: {port: %[3]s}, periodSeconds: 1}
`, name, c.Nodes[node].Name, port)
	}
	return pod("server", server, "8080") + pod("client", client, "8081") + `---
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  ` + families + `
  selector: {app: server}
  ports: [{name: http, port: 80, targetPort: 8080}]
`
}

func TestPodsTalkOverAService(t *testing.T) {
	n := host.Cluster(t, single).Namespace(t)
	n.Apply(echoes(n.Cluster, "", 0, 0))
	n.WaitReady("pod/server", "pod/client")
	for _, url := range []string{"http://server/a?b=c", "http://server." + n.Name + ".svc.cluster.local/a?b=c"} {
		wantPod(t, "server", func(ctx context.Context) (reply, error) {
			r, err := ask(ctx, n, "pod/client", url)
			if err == nil && r.Path != "/a?b=c" {
				err = fmt.Errorf("the server was asked for %s", r.Path)
			}
			return r, err
		})
	}
	wantPod(t, "server", func(ctx context.Context) (reply, error) { return askFromHost(ctx, n.ServiceIPs("server")[0], "80") })
	wantPod(t, "server", func(ctx context.Context) (reply, error) { return askFromHost(ctx, n.PodIPs("server")[0], "8080") })
}

func TestDualStackAcrossNodes(t *testing.T) {
	n := host.Cluster(t, dual).Namespace(t)
	n.Apply(echoes(n.Cluster, "ipFamilyPolicy: RequireDualStack", 0, 1))
	n.WaitReady("pod/server", "pod/client")
	pods, services := n.PodIPs("server"), n.ServiceIPs("server")
	if len(pods) != 2 || len(services) != 2 {
		t.Fatalf("the pod has addresses %v, the Service %v; want one of each family", pods, services)
	}
	for i := range 2 {
		if is6 := net.ParseIP(pods[i]).To4() == nil; is6 != (i == 1) || is6 != (net.ParseIP(services[i]).To4() == nil) {
			t.Errorf("address %d: pod %s, Service %s", i, pods[i], services[i])
		}
		wantPod(t, "server", func(ctx context.Context) (reply, error) {
			return ask(ctx, n, "pod/client", "http://"+net.JoinHostPort(services[i], "80")+"/")
		})
		wantPod(t, "server", func(ctx context.Context) (reply, error) {
			return ask(ctx, n, "pod/client", "http://"+net.JoinHostPort(pods[i], "8080")+"/")
		})
		wantPod(t, "server", func(ctx context.Context) (reply, error) { return askFromHost(ctx, services[i], "80") })
	}
}

// A pod reaches a server on this machine, so that a control plane may run outside
// of the cluster.
func TestPodsReachThisMachine(t *testing.T) {
	n := host.Cluster(t, single).Namespace(t)
	n.Apply(echoes(n.Cluster, "", 0, 0))
	n.WaitReady("pod/client")
	l, err := net.Listen("tcp", net.JoinHostPort(n.Host[0], "0"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("x-echo-pod", "none")
		w.Header().Set("content-type", "application/json")
		json.NewEncoder(w).Encode(reply{Pod: "this machine"})
	})}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-done })
	wantPod(t, "this machine", func(ctx context.Context) (reply, error) {
		return ask(ctx, n, "pod/client", "http://"+l.Addr().String()+"/")
	})
}

// The images stand for the conformance suite's: its server with settings from the
// environment, and Istio's with flags, whose client is run in the pod and prints
// what the suite parses.
func TestEchoImagesServeAsTheConformanceSuiteExpects(t *testing.T) {
	n := host.Cluster(t, single).Namespace(t)
	n.Apply(`
apiVersion: v1
kind: Pod
metadata: {name: basic, labels: {app: basic}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: basic
    image: registry.k8s.io/gateway-api/echo-basic:v1.5.1
    env:
    - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
    - {name: SERVICE_NAME, value: basic}
    readinessProbe: {httpGet: {path: /health, port: 3000}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: echo-v1, labels: {app: echo}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: echo
    image: registry.k8s.io/gateway-api/echo-advanced:v1.5.1
    args: [--tcp=9090, --port=8080, --grpc=7070, --port=8443, --tls=8443, --crt=/cert.crt, --key=/cert.key]
    readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  selector: {app: echo}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: https, port: 443, targetPort: 8443}, {name: grpc, port: 7070}]
`)
	n.WaitReady("pod/basic", "pod/echo-v1")
	for url, want := range map[string][]string{
		"http://echo/path": {"StatusCode=200", "Hostname=echo-v1", "URL=/path", "RequestHeader=X-Me:1"},
		"https://echo/":    {"StatusCode=200", "Hostname=echo-v1", "Alpn=h2"},
		"grpc://echo:7070": {"StatusCode=200", "Hostname=echo-v1", "RequestHeader=X-Me:1"},
		"http://" + n.PodIPs("basic")[0] + ":3000/status/404": {"StatusCode=404"},
		"http://" + n.PodIPs("basic")[0] + ":3000/":           {"StatusCode=200", "Hostname=basic"},
	} {
		kube.Eventually(t, func(ctx context.Context) error {
			out, err := n.Exec(ctx, "pod/echo-v1", "echo", "client", url, "-H", "X-Me:1")
			if err != nil {
				return err
			}
			for _, w := range want {
				if !strings.Contains(out, w+"\n") {
					return fmt.Errorf("%s: no %s in\n%s", url, w, out)
				}
			}
			return nil
		})
	}
	wantPod(t, "basic", func(ctx context.Context) (reply, error) { return askFromHost(ctx, n.PodIPs("basic")[0], "3000") })
}

// The demo's services run in a cluster as they do in the local mesh.
func TestBookstoreServes(t *testing.T) {
	n := host.Cluster(t, single).Namespace(t)
	var objects []string
	for _, file := range []string{"details", "productpage", "ratings", "reviews", "stock"} {
		b, err := os.ReadFile("../../examples/bookstore/" + file + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		n.Apply(string(b))
	}
	for line := range strings.Lines(n.Do("get", "deployments", "-o", "name")) {
		objects = append(objects, strings.TrimSpace(line))
	}
	n.WaitReady(objects...)
	kube.Eventually(t, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, "GET", "http://"+net.JoinHostPort(n.ServiceIPs("productpage")[0], "9080")+"/", nil)
		if err != nil {
			return err
		}
		c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := c.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		page, err := io.ReadAll(resp.Body)
		if err == nil && (resp.StatusCode != 200 || !strings.Contains(string(page), "reviews-v")) {
			err = fmt.Errorf("status %d, and no reviews in\n%s", resp.StatusCode, page)
		}
		return err
	})
}
