//go:build heddle_e2e

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/test/e2e/kube"
)

// installed makes sure that the mesh runs in the cluster, as a user would.
func installed(t *testing.T, c *kube.Cluster) {
	t.Helper()
	must(t, c, "install", "-y", "--set", "hub=ghcr.io/heddle-mesh", "--set", "tag=dev")
}

// must runs the CLI.
func must(t *testing.T, c *kube.Cluster, args ...string) string {
	t.Helper()
	out, err := c.Heddle(t.Context(), args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// meshed returns a namespace whose pods get a sidecar, with versions v1 and v2 of a
// server and a client in it.
func meshed(t *testing.T) *kube.Namespace {
	t.Helper()
	c := host.Cluster(t, single)
	installed(t, c)
	n := c.Namespace(t, "istio-injection=enabled")
	n.Apply(client + app("v1") + app("v2"))
	n.WaitReady("deployment/echo-v1", "deployment/echo-v2", "pod/client")
	return n
}

// app is one version of a server that speaks everything, with the Service. It goes
// on for some seconds after it was told to end, because callers do not know at
// once, and as in Istio a request that was answered by 503 is not sent again
// unless a VirtualService says so.
func app(version string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  selector: {app: echo}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: http2, port: 81, targetPort: 8081}
  - {name: grpc, port: 7070}
  - {name: tcp, port: 9090}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: echo}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo-%[1]s}
spec:
  selector: {matchLabels: {app: echo, version: %[1]s}}
  template:
    metadata: {labels: {app: echo, version: %[1]s}}
    spec:
      serviceAccountName: echo
      containers:
      - name: echo
        image: ghcr.io/heddle-mesh/meshecho:dev
        args: [serve, "http:8080", "h2:8081", "grpc:7070", "tcp:9090"]
        env: [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
        lifecycle: {preStop: {sleep: {seconds: 3}}}
`, version)
}

// client is a pod to ask from. Its container tap sees what leaves the pod.
const client = `---
apiVersion: v1
kind: ServiceAccount
metadata: {name: client}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  serviceAccountName: client
  terminationGracePeriodSeconds: 0
  containers:
  - name: client
    image: ghcr.io/heddle-mesh/meshecho:dev
    args: [serve, "http:8085"]
  - name: tap
    image: ghcr.io/heddle-mesh/meshecho:dev
    args: [serve, "http:8086"]
    securityContext: {runAsUser: 0, capabilities: {add: [NET_RAW]}}
`

// outsider is a client without a sidecar.
const outsider = `---
apiVersion: v1
kind: Pod
metadata: {name: outsider, labels: {app: outsider, sidecar.istio.io/inject: "false"}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: client
    image: ghcr.io/heddle-mesh/meshecho:dev
    args: [serve, "http:8085"]
`

const subsets = `---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo}
spec:
  host: echo
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
`

const split = subsets + `---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: echo}
spec:
  hosts: [echo]
  http:
  - route:
    - destination: {host: echo, subset: v1}
      weight: 80
    - destination: {host: echo, subset: v2}
      weight: 20
`

// answer is what a client says of one request.
type answer struct {
	Status int
	Code   string // of gRPC
	Error  string
	Header map[string]string
	Reply  *struct {
		Pod    string
		Proto  string
		Header map[string]string
	}
}

func (a answer) ok() bool {
	return a.Reply != nil && a.Error == "" && (a.Status == 200 || a.Code == "OK")
}

func (a answer) String() string { return fmt.Sprintf("{status %d%s %s}", a.Status, a.Code, a.Error) }

// requests asks from a pod, with the flags of "meshecho get".
func requests(ctx context.Context, n *kube.Namespace, pod string, args ...string) ([]answer, error) {
	out, err := n.Exec(ctx, pod, "client", append([]string{"meshecho", "get"}, args...)...)
	if err != nil {
		return nil, err
	}
	var all []answer
	for d := json.NewDecoder(strings.NewReader(out)); ; {
		var a answer
		if err := d.Decode(&a); err == io.EOF {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
}

// failed lists what went wrong, each kind once with its number.
func failed(all []answer) map[string]int {
	count := make(map[string]int)
	for _, a := range all {
		if !a.ok() {
			count[a.String()]++
		}
	}
	return count
}

// asked asks until all requests succeed.
func asked(t *testing.T, n *kube.Namespace, pod string, args ...string) []answer {
	t.Helper()
	var all []answer
	kube.Eventually(t, func(ctx context.Context) error {
		var err error
		if all, err = requests(ctx, n, pod, args...); err == nil && len(failed(all)) > 0 {
			err = fmt.Errorf("%v: %v", args, failed(all))
		}
		return err
	})
	return all
}

// routed waits until a proxy has the VirtualService of the namespace.
func routed(t *testing.T, n *kube.Namespace, pod string) {
	t.Helper()
	kube.Eventually(t, func(ctx context.Context) error {
		out, err := n.Heddle(ctx, "proxy-config", "route", pod+"."+n.Name, "--route", "7070")
		if err == nil && !strings.Contains(out, "echo."+n.Name) {
			err = fmt.Errorf("no VirtualService in\n%s", out)
		}
		return err
	})
}

func TestTrafficIsSplitByWeight(t *testing.T) {
	n := meshed(t)
	n.Apply(split)
	routed(t, n, "client")
	for proto, url := range map[string]string{"": "http://echo/", "h2": "http://echo:81/", "grpc": "http://echo:7070/"} {
		all := asked(t, n, "pod/client", "-n", "1000", "-parallel", "4", "-proto", proto, url)
		v1 := 0
		for _, a := range all {
			if strings.HasPrefix(a.Reply.Pod, "echo-v1-") {
				v1++
			}
		}
		if len(all) != 1000 || math.Abs(float64(v1)-800) > 40 {
			t.Errorf("%s: %d of %d requests went to v1, want 80 %%", url, v1, len(all))
		}
	}
}

// What pods say to each other is TLS on the wire, with both identities in it; a pod
// without sidecar is served until STRICT, and refused then.
func TestTrafficBetweenPodsIsEncrypted(t *testing.T) {
	n := meshed(t)
	n.Apply(outsider)
	n.WaitReady("pod/outsider")
	id := "spiffe://cluster.local/ns/" + n.Name + "/sa/"
	ports := map[string]string{"": "http://echo/", "h2": "http://echo:81/", "grpc": "http://echo:7070/"}
	for proto, url := range ports {
		a := asked(t, n, "pod/client", "-proto", proto, url)[0]
		if xfcc := a.Reply.Header["x-forwarded-client-cert"]; !strings.HasPrefix(xfcc, "By="+id+"echo;") || !strings.HasSuffix(xfcc, ";URI="+id+"client") {
			t.Errorf("%s: the server was told of the client %q", url, xfcc)
		}
		a = asked(t, n, "pod/outsider", "-proto", proto, url)[0]
		if xfcc, ok := a.Reply.Header["x-forwarded-client-cert"]; ok {
			t.Errorf("%s: the server was told %q of a client without sidecar", url, xfcc)
		}
	}
	// Proxies keep connections for HTTP. What says that a flow is TLS stands at its
	// beginning, so the flows are of TCP, whose connections are new.
	if got := onTheWire(t, n, "client", func() {
		if _, err := n.Exec(t.Context(), "pod/client", "client", "meshecho", "tcp", "echo:9090", "hello"); err != nil {
			t.Error(err)
		}
	}); !slices.Equal(got, []string{"TLS 1.3"}) {
		t.Errorf("on the wire of the client there is %v, want TLS 1.3 alone", got)
	}
	n.Apply(`{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: default}, spec: {mtls: {mode: STRICT}}}`)
	for proto, url := range ports {
		kube.Eventually(t, func(ctx context.Context) error {
			all, err := requests(ctx, n, "pod/outsider", "-proto", proto, "-no-reuse", url)
			if err == nil && (len(all) != 1 || all[0].ok()) {
				err = fmt.Errorf("%s serves a client without sidecar: %v", url, all)
			}
			return err
		})
		asked(t, n, "pod/client", "-n", "20", "-proto", proto, url)
	}
}

// onTheWire says what kinds of flows pass a pod's interface while do runs.
func onTheWire(t *testing.T, n *kube.Namespace, pod string, do func()) []string {
	t.Helper()
	type result struct {
		out string
		err error
	}
	done := make(chan result, 1)
	go func() {
		out, err := n.Exec(t.Context(), "pod/"+pod, "tap", "meshecho", "tap", "-for", "5s", "eth0")
		done <- result{out, err}
	}()
	for {
		do()
		select {
		case r := <-done:
			if r.err != nil {
				t.Fatal(r.err)
			}
			var kinds []string
			if err := json.Unmarshal([]byte(r.out), &kinds); err != nil {
				t.Fatal(err)
			}
			return kinds
		default:
		}
	}
}

// scrape returns the samples of a metric that a pod's proxy shows, as Prometheus
// would take them.
func scrape(ctx context.Context, n *kube.Namespace, ip, metric string) ([]string, error) {
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+net.JoinHostPort(ip, "15020")+"/stats/prometheus", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var found []string
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), metric+"{") {
			found = append(found, lines.Text())
		}
	}
	return found, lines.Err()
}

func TestMetricsNameBothEnds(t *testing.T) {
	n := meshed(t)
	asked(t, n, "pod/client", "-n", "20", "http://echo/")
	asked(t, n, "pod/client", "-n", "20", "-proto", "grpc", "http://echo:7070/")
	server := strings.TrimSpace(n.Do("get", "pods", "--selector=version=v1", "-o", "jsonpath={.items[0].metadata.name}"))
	for pod, reporter := range map[string]string{"client": "source", server: "destination"} {
		for _, protocol := range []string{"http", "grpc"} {
			want := []string{
				`reporter="` + reporter + `"`,
				`source_principal="spiffe://cluster.local/ns/` + n.Name + `/sa/client"`,
				`destination_principal="spiffe://cluster.local/ns/` + n.Name + `/sa/echo"`,
				`source_workload="client"`, `destination_workload="echo-v1"`,
				`destination_service="echo.` + n.Name + `.svc.cluster.local"`,
				`request_protocol="` + protocol + `"`, `response_code="200"`,
				`connection_security_policy="mutual_tls"`,
			}
			kube.Eventually(t, func(ctx context.Context) error {
				samples, err := scrape(ctx, n, n.PodIPs(pod)[0], "istio_requests_total")
				if err == nil && !slices.ContainsFunc(samples, func(s string) bool {
					return !slices.ContainsFunc(want, func(w string) bool { return !strings.Contains(s, w) })
				}) {
					err = fmt.Errorf("%s: no sample with %s in\n%s", pod, want, strings.Join(samples, "\n"))
				}
				return err
			})
		}
	}
}

func TestCommandsLookIntoProxies(t *testing.T) {
	n := meshed(t)
	n.Apply(split)
	routed(t, n, "client")
	asked(t, n, "pod/client", "http://echo/")
	kube.Eventually(t, func(ctx context.Context) error {
		out, err := n.Heddle(ctx, "proxy-status")
		if err != nil {
			return err
		}
		mine := 0
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); strings.HasSuffix(f[0], "."+n.Name) {
				mine++
				if !slices.Equal(f[2:6], []string{"SYNCED", "SYNCED", "SYNCED", "SYNCED"}) {
					return fmt.Errorf("not in step: %s", line)
				}
			}
		}
		if mine != 3 {
			return fmt.Errorf("%d proxies of the three in\n%s", mine, out)
		}
		return nil
	})
	svc := "echo." + n.Name + ".svc.cluster.local"
	for _, c := range []struct {
		args []string
		want string // as a regular expression
	}{
		{[]string{"cluster", "client"}, regexp.QuoteMeta(svc) + ` +80 +v2 +outbound +EDS +echo\.` + n.Name},
		{[]string{"listener", "client"}, `0\.0\.0\.0 +7070 .*Route: 7070`},
		{[]string{"route", "client", "--route", "80"}, regexp.QuoteMeta(svc) + `.*/\* +echo\.` + n.Name},
		{[]string{"endpoint", "client", "--cluster", "outbound|80|v1|" + svc}, `:8080 +HEALTHY +OK`},
		{[]string{"endpoint", "deployment/echo-v1"}, `inbound\|8080\|\|`},
		{[]string{"secret", "client"}, `default +Cert Chain +ACTIVE +true`},
		{[]string{"bootstrap", "client"}, `"node"`},
		{[]string{"all", "client"}, `PassthroughCluster`},
		{[]string{"log", "client"}, `info`},
	} {
		out := must(t, n.Cluster, append(append([]string{"proxy-config"}, c.args...), "-n", n.Name)...)
		if ok, err := regexp.MatchString(c.want, out); err != nil || !ok {
			t.Errorf("proxy-config %v: no %s in\n%s", c.args, c.want, out)
		}
	}
	if out, err := n.Heddle(t.Context(), "proxy-config", "cluster", "nobody", "-n", n.Name); err == nil || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("a pod that does not exist: %v\n%s", err, out)
	}
	if out := must(t, n.Cluster, "verify-install"); !strings.Contains(out, "all as they should be") {
		t.Error(out)
	}
}

func TestBookstoreBehindTheIngressGateway(t *testing.T) {
	c := host.Cluster(t, single)
	installed(t, c)
	n := c.Namespace(t, "istio-injection=enabled")
	for _, file := range []string{"details", "productpage", "ratings", "reviews", "stock", "routing", "gateway"} {
		b, err := os.ReadFile("../../examples/bookstore/" + file + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		n.Apply(string(b))
	}
	n.WaitReady(strings.Fields(n.Do("get", "deployments", "-o", "name"))...)
	svc, err := c.Run(t.Context(), "", "--namespace=istio-system", "get", "service", "istio-ingressgateway", "-o", "jsonpath={.spec.clusterIP}")
	if err != nil {
		t.Fatal(err)
	}
	page := func(ctx context.Context) (string, error) {
		req, err := http.NewRequestWithContext(ctx, "GET", "http://"+net.JoinHostPort(svc, "80")+"/productpage", nil)
		if err != nil {
			return "", err
		}
		c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := c.Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != 200 {
			err = fmt.Errorf("status %d: %s", resp.StatusCode, b)
		}
		return string(b), err
	}
	seen := make(map[string]int)
	kube.Eventually(t, func(ctx context.Context) error {
		p, err := page(ctx)
		if err != nil {
			return err
		}
		if v := regexp.MustCompile(`reviews-v\d`).FindString(p); v != "" {
			seen[v]++
		}
		if seen["reviews-v1"] == 0 || seen["reviews-v3"] == 0 {
			return fmt.Errorf("reviews came from %v, want v1 and v3", seen)
		}
		return nil
	})
	if seen["reviews-v2"] > 0 {
		t.Errorf("reviews came from v2, which has no weight: %v", seen)
	}
}
