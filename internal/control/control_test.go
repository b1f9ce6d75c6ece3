package control_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/heddle-mesh/heddle/internal/control"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/agent"
	"github.com/heddle-mesh/heddle/internal/identity/ca"
	"github.com/heddle-mesh/heddle/internal/proxy/decode"
	"github.com/heddle-mesh/heddle/internal/xds/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests; none takes a tenth of it.
const patience = 30 * time.Second

const mesh = `
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: default}
spec:
  selector: {app: reviews}
  clusterIP: 10.96.0.10
  ports: [{name: http, port: 9080}]
---
apiVersion: v1
kind: Pod
metadata: {name: reviews-v1, namespace: default, labels: {app: reviews, version: v1}}
spec: {serviceAccountName: reviews, containers: [{name: app}]}
status: {phase: Running, podIP: 10.0.0.1, conditions: [{type: Ready, status: "True"}]}
`

const reviewsV2 = `
---
apiVersion: v1
kind: Pod
metadata: {name: reviews-v2, namespace: default, labels: {app: reviews, version: v2}}
spec: {serviceAccountName: reviews, containers: [{name: app}]}
status: {phase: Running, podIP: 10.0.0.2, conditions: [{type: Ready, status: "True"}]}
`

// rule is the DestinationRule of toV1 before v1 came to it.
const rule = `
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec: {host: reviews, subsets: [{name: v2, labels: {version: v2}}]}
`

const toV1 = `
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec: {host: reviews, subsets: [{name: v2, labels: {version: v2}}, {name: v1, labels: {version: v1}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: default}
spec: {hosts: [reviews], http: [{route: [{destination: {host: reviews, subset: v1}}]}]}
`

const eds, edsV1 = "outbound|9080||reviews.default.svc.cluster.local", "outbound|9080|v1|reviews.default.svc.cluster.local"

// plane is a running control plane whose one file the test edits.
type plane struct {
	t    *testing.T
	file string
	cfg  control.Config
	stop func()

	mu sync.Mutex
	at control.Addresses // mu guards it
}

func (p *plane) addresses() control.Addresses {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at
}

func start(t *testing.T, content string, adjust ...func(*control.Config)) *plane {
	t.Helper()
	dir := t.TempDir()
	p := &plane{t: t, file: filepath.Join(dir, "mesh.yaml")}
	p.write(content)
	p.cfg = control.Config{
		Sources: []string{p.file}, StateDir: filepath.Join(t.TempDir(), "state"),
		PlainAddr: "127.0.0.1:0", TLSAddr: "127.0.0.1:0", HTTPAddr: "127.0.0.1:0",
		Version: "test", Log: slog.New(slog.DiscardHandler),
	}
	for _, f := range adjust {
		f(&p.cfg)
	}
	p.run()
	return p
}

// run starts the plane, on the ports of last time if there was one.
func (p *plane) run() {
	p.t.Helper()
	serving := make(chan control.Addresses, 1)
	p.cfg.OnServing = func(a control.Addresses) { serving <- a }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- control.Run(ctx, p.cfg) }()
	p.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				p.t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			p.t.Error("Run does not end")
		}
	})
	p.t.Cleanup(p.stop)
	select {
	case at := <-serving:
		p.mu.Lock()
		p.at = at
		p.mu.Unlock()
		p.cfg.PlainAddr, p.cfg.TLSAddr, p.cfg.HTTPAddr = at.Plain.String(), at.TLS.String(), at.HTTP.String()
	case err := <-done:
		p.t.Fatalf("Run: %v", err)
	}
}

// write replaces the file at once, as tools that are careful do.
func (p *plane) write(content string) {
	p.t.Helper()
	next := p.file + ".next"
	if err := os.WriteFile(next, []byte(content), 0o600); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(next, p.file); err != nil {
		p.t.Fatal(err)
	}
}

func (p *plane) get(path string) (int, string) {
	p.t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	r, err := c.Get("http://" + p.addresses().HTTP.String() + path)
	if err != nil {
		p.t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

// eventually asks again until what is said holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never came that %s", what)
		}
	}
}

func node(pod string, meta map[string]any) *corev3.Node {
	m, err := structpb.NewStruct(meta)
	if err != nil {
		panic(err)
	}
	return &corev3.Node{Id: "sidecar~10.0.0.1~" + pod + ".default~default.svc.cluster.local", Metadata: m}
}

// sidecar is a proxy's end of the wire: client and store.
type sidecar struct {
	t      *testing.T
	states chan *decode.State
	client *client.Client
	stop   func()
}

func connect(t *testing.T, n *corev3.Node, cache string, dial func() (*grpc.ClientConn, error)) *sidecar {
	t.Helper()
	s := &sidecar{t: t, states: make(chan *decode.State, 1000)}
	store := decode.NewStore(func(st *decode.State) { s.states <- st })
	c, err := client.New(client.Config{
		Node: n, Handler: store, CachePath: cache, Log: slog.New(slog.DiscardHandler),
		Connect: func(context.Context) (*grpc.ClientConn, error) { return dial() },
	})
	if err != nil {
		t.Fatal(err)
	}
	s.client = c
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		<-done
		store.Close()
	})
	t.Cleanup(s.stop)
	return s
}

// until returns the first state of which something holds.
func (s *sidecar) until(what string, holds func(*decode.State) bool) *decode.State {
	s.t.Helper()
	late := time.After(patience)
	for {
		select {
		case st := <-s.states:
			if holds(st) {
				return st
			}
		case <-late:
			s.t.Fatalf("no state came in which %s", what)
		}
	}
}

func endpoints(st *decode.State, name string) int {
	n := 0
	if l := st.Endpoints[name]; l != nil {
		for _, g := range l.Localities {
			n += len(g.Endpoints)
		}
	}
	return n
}

func (p *plane) plain() (*grpc.ClientConn, error) {
	return client.Dial("passthrough:///"+p.addresses().Plain.String(), insecure.NewCredentials())
}

func TestFromFileToProxy(t *testing.T) {
	p := start(t, mesh)
	s := connect(t, node("reviews-v1", nil), "", p.plain)
	first := s.until("all is there", func(st *decode.State) bool { return st.Warm })
	if endpoints(first, eds) != 1 || first.Listeners["virtualInbound"] == nil || first.Routes["9080"] == nil {
		t.Fatalf("the first state lacks something: %+v", first)
	}
	p.write(mesh + reviewsV2)
	second := s.until("there are two endpoints", func(st *decode.State) bool { return endpoints(st, eds) == 2 })
	if second.Clusters[eds] != first.Clusters[eds] || second.Listeners["virtualOutbound"] != first.Listeners["virtualOutbound"] {
		t.Error("more than the endpoints was sent")
	}
	p.write(mesh + reviewsV2 + toV1)
	s.until("routes lead to the subset", func(st *decode.State) bool {
		if st.Clusters[edsV1] != nil && endpoints(st, edsV1) != 1 {
			t.Errorf("there is a state in which the subset has %d endpoints", endpoints(st, edsV1))
		}
		return st.Routes["9080"].Hosts[0].Routes[0].Clusters[0].Cluster == edsV1
	})
	p.write(mesh)
	s.until("the subset is gone again", func(st *decode.State) bool {
		if st.Clusters[edsV1] == nil && st.Routes["9080"].Hosts[0].Routes[0].Clusters[0].Cluster == edsV1 {
			t.Error("there is a state in which routes lead to a cluster that is gone")
		}
		return st.Clusters[edsV1] == nil && endpoints(st, eds) == 1
	})
}

func TestAFaultyEditChangesNothingAndIsTold(t *testing.T) {
	p := start(t, mesh)
	s := connect(t, node("reviews-v1", nil), "", p.plain)
	s.until("all is there", func(st *decode.State) bool { return st.Warm })
	p.write(mesh + reviewsV2 + strings.Replace(toV1, "hosts:", "hostz:", 1))
	var faults struct {
		Config []struct {
			Severity, Kind, Object, File, Problem string
			Line                                  int
		}
	}
	eventually(t, "the fault is shown", func() bool {
		_, body := p.get("/debug/faults")
		if err := json.Unmarshal([]byte(body), &faults); err != nil {
			t.Fatal(err)
		}
		return len(faults.Config) > 0
	})
	f := faults.Config[0]
	if f.Severity != "error" || f.Kind != "VirtualService" || f.Object != "default/reviews" || f.Line == 0 || !strings.HasSuffix(f.File, "mesh.yaml") {
		t.Errorf("fault %+v", f)
	}
	p.write(mesh + reviewsV2)
	s.until("the good part acts", func(st *decode.State) bool {
		if st.Clusters[edsV1] != nil {
			t.Error("something of the faulty edit acted")
		}
		return endpoints(st, eds) == 2
	})
	eventually(t, "the fault is gone", func() bool {
		_, body := p.get("/debug/faults")
		return strings.Contains(body, `"config": []`)
	})
}

// TestWithoutTheControlPlane stops and starts it: the proxy keeps what it has,
// finds it on disk when it starts itself, and follows the new one.
func TestWithoutTheControlPlane(t *testing.T) {
	p := start(t, mesh)
	cache := filepath.Join(t.TempDir(), "xds")
	s := connect(t, node("reviews-v1", nil), cache, p.plain)
	s.until("all is there", func(st *decode.State) bool { return st.Warm })
	p.stop()
	eventually(t, "the loss is noticed", func() bool { return !s.client.Connected() })
	s.stop()

	s = connect(t, node("reviews-v1", nil), cache, p.plain)
	st := s.until("all is there from disk", func(st *decode.State) bool { return st.Warm })
	if s.client.Connected() || endpoints(st, eds) != 1 {
		t.Errorf("connected %v, %d endpoints", s.client.Connected(), endpoints(st, eds))
	}
	p.write(mesh + reviewsV2)
	p.run()
	next := s.until("the new one is followed", func(st *decode.State) bool { return endpoints(st, eds) == 2 })
	if next.Clusters[eds] != st.Clusters[eds] {
		t.Error("an unchanged cluster was sent again")
	}
}

func TestWhoMayConnect(t *testing.T) {
	keys := t.TempDir()
	issuer, err := ca.NewIssuer(filepath.Join(keys, "token-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := ca.NewVerifier(issuer.PublicKeyPath(), ca.Audience)
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, mesh, func(c *control.Config) { c.Tokens = tokens })
	rootPEM, err := os.ReadFile(filepath.Join(p.cfg.StateDir, "root-cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(rootPEM) {
		t.Fatal("no root")
	}
	dial := func(cert *tls.Certificate, token string) (*grpc.ClientConn, error) {
		cfg := &tls.Config{RootCAs: roots, ServerName: "istiod.istio-system.svc"}
		if cert != nil {
			cfg.Certificates = []tls.Certificate{*cert}
		}
		var opts []grpc.DialOption
		if token != "" {
			opts = append(opts, grpc.WithPerRPCCredentials(bearer(token)))
		}
		return client.Dial("passthrough:///"+p.addresses().TLS.String(), credentials.NewTLS(cfg), opts...)
	}
	token, err := issuer.Issue("default", "reviews", time.Hour)
	if err != nil {
		t.Fatal(err)
	}

	// By token, and with it for a certificate.
	s := connect(t, node("reviews-v1", map[string]any{"SERVICE_ACCOUNT": "reviews"}), "", func() (*grpc.ClientConn, error) { return dial(nil, token) })
	s.until("all is there", func(st *decode.State) bool { return st.Warm })
	conn, err := dial(nil, "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	a, err := agent.New(agent.Config{
		ID:      identity.ID{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: "reviews"},
		RootPEM: rootPEM,
		CSR:     agent.Client(agent.ClientConfig{Conn: conn, Token: func() (string, error) { return token, nil }}),
		Log:     slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	defer func() {
		cancel()
		<-done
	}()
	select {
	case <-a.Ready():
	case <-time.After(patience):
		t.Fatal("no certificate was issued")
	}

	// By certificate.
	s = connect(t, node("reviews-v1", nil), "", func() (*grpc.ClientConn, error) { return dial(a.Current().Certificate, "") })
	s.until("all is there", func(st *decode.State) bool { return st.Warm })

	for name, c := range map[string]struct {
		node  *corev3.Node
		token string
		want  codes.Code
	}{
		"nobody":            {node("reviews-v1", nil), "", codes.Unauthenticated},
		"forged":            {node("reviews-v1", nil), token + "x", codes.Unauthenticated},
		"another account":   {node("reviews-v1", map[string]any{"SERVICE_ACCOUNT": "admin"}), token, codes.PermissionDenied},
		"another namespace": {&corev3.Node{Id: "sidecar~10.0.0.1~a.prod~prod.svc.cluster.local"}, token, codes.PermissionDenied},
	} {
		conn, err := dial(nil, c.token)
		if err != nil {
			t.Fatal(err)
		}
		if err := refusal(t, conn, c.node); status.Code(err) != c.want {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
		conn.Close()
	}
	// A proxy may not look at what others are told.
	tool, err := dial(nil, token)
	if err != nil {
		t.Fatal(err)
	}
	defer tool.Close()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(tool).StreamAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&discoveryv3.DiscoveryRequest{TypeUrl: "istio.io/debug/syncz"}); err != nil {
		t.Fatal(err)
	}
	if r, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a workload's look at all proxies: %v, %v", r, err)
	}
	if _, body := p.get("/metrics"); !strings.Contains(body, "citadel_server_success_cert_issuance_count 1\n") {
		t.Errorf("metrics do not count the certificate:\n%s", body)
	}
}

// bearer sends a token with each call.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}
func (bearer) RequireTransportSecurity() bool { return true }

func TestPages(t *testing.T) {
	p := start(t, mesh+toV1+`
---
apiVersion: v1
kind: Secret
metadata: {name: token, namespace: default}
stringData: {password: do-not-tell}
`)
	s := connect(t, node("reviews-v1", map[string]any{"CLUSTER_ID": "Kubernetes", "ISTIO_VERSION": "1.2.3"}), "", p.plain)
	s.until("all is there", func(st *decode.State) bool { return st.Warm })

	for path, want := range map[string][]string{
		"/version":         {"test\n"},
		"/ready":           {"ready\n"},
		"/debug/configz":   {`"kind": "VirtualService"`, `"subset": "v1"`, `"kind": "Secret"`},
		"/debug/registryz": {`"hostname": "reviews.default.svc.cluster.local"`, `"10.96.0.10"`, `"endpoints": 1`},
		"/debug/config_dump?proxyID=reviews-v1.default": {"envoy.admin.v3.ClustersConfigDump", edsV1, "virtualInbound", "10.0.0.1"},
		"/debug/faults": {`"config"`, `"plans"`},
		"/metrics": {
			"pilot_xds 1\n", `pilot_xds_pushes{type="cds"} 1`, "pilot_services 1\n", "pilot_virt_services 1\n",
			"pilot_total_xds_rejects 0\n", `pilot_proxy_convergence_time_bucket{le="+Inf"}`, `pilot_info{version="test"} 1`,
		},
	} {
		code, body := p.get(path)
		if code != http.StatusOK {
			t.Errorf("%s: status %d: %s", path, code, body)
		}
		for _, w := range want {
			if !strings.Contains(body, w) {
				t.Errorf("%s does not say %q:\n%s", path, w, body)
			}
		}
		if strings.Contains(body, "do-not-tell") {
			t.Errorf("%s tells a secret", path)
		}
	}
	eventually(t, "the proxy is synced", func() bool {
		_, body := p.get("/debug/syncz")
		var all []struct {
			Proxy        string `json:"proxy"`
			ProxyType    string `json:"proxy_type"`
			ClusterID    string `json:"cluster_id"`
			IstioVersion string `json:"istio_version"`
			ClusterSent  string `json:"cluster_sent"`
			ClusterAcked string `json:"cluster_acked"`
			Synced       bool   `json:"synced"`
		}
		if err := json.Unmarshal([]byte(body), &all); err != nil || len(all) != 1 {
			t.Fatalf("%v: %s", err, body)
		}
		one := all[0]
		if one.Proxy != "reviews-v1.default" || one.ProxyType != "sidecar" || one.ClusterID != "Kubernetes" || one.IstioVersion != "1.2.3" || one.ClusterSent == "" {
			t.Fatalf("syncz %+v", one)
		}
		return one.Synced && one.ClusterSent == one.ClusterAcked
	})
	if code, _ := p.get("/debug/config_dump?proxyID=nobody.default"); code != http.StatusNotFound {
		t.Errorf("dump of nobody: status %d", code)
	}
}

// Istio's own tools ask over the xDS port.
func TestToolsAreAnsweredOverXDS(t *testing.T) {
	p := start(t, mesh+toV1)
	s := connect(t, node("reviews-v1", map[string]any{"CLUSTER_ID": "Kubernetes", "ISTIO_VERSION": "1.2.3"}), "", p.plain)
	s.until("all is there", func(st *decode.State) bool { return st.Warm })
	conn, err := p.plain()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ask := func(typeURL string, names ...string) (*discoveryv3.DiscoveryResponse, error) {
		ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
		defer stop()
		stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
		if err != nil {
			return nil, err
		}
		if err := stream.Send(&discoveryv3.DiscoveryRequest{TypeUrl: typeURL, ResourceNames: names, Node: &corev3.Node{Id: "tool"}}); err != nil {
			return nil, err
		}
		return stream.Recv()
	}
	eventually(t, "the proxy is synced", func() bool {
		r, err := ask("istio.io/debug/syncz")
		if err != nil {
			t.Fatal(err)
		}
		var one statusv3.ClientConfig
		if len(r.Resources) != 1 || r.Resources[0].UnmarshalTo(&one) != nil {
			t.Fatalf("%v", r)
		}
		meta := one.Node.Metadata.AsMap()
		if one.Node.Id != "reviews-v1.default" || meta["CLUSTER_ID"] != "Kubernetes" || meta["ISTIO_VERSION"] != "1.2.3" || meta["NAMESPACE"] != "default" {
			t.Fatalf("node %v", one.Node)
		}
		if !strings.Contains(r.ControlPlane.GetIdentifier(), `"Component":"istiod"`) || !strings.Contains(r.ControlPlane.GetIdentifier(), `"version":"test"`) {
			t.Fatalf("identifier %v", r.ControlPlane)
		}
		synced := 0
		for _, c := range one.GenericXdsConfigs {
			if c.ConfigStatus == statusv3.ConfigStatus_SYNCED {
				synced++
			}
		}
		return synced == len(one.GenericXdsConfigs) && synced >= 4
	})
	r, err := ask("istio.io/debug/config_dump", "reviews-v1.default")
	if err != nil || len(r.Resources) < 4 || !slices.ContainsFunc(r.Resources, func(a *anypb.Any) bool { return a.MessageIs(&adminv3.ClustersConfigDump{}) }) {
		t.Errorf("dump %v, %v", r, err)
	}
	r, err = ask("istio.io/debug", "registryz")
	if err != nil || len(r.Resources) != 1 || !strings.Contains(string(r.Resources[0].Value), "reviews.default.svc.cluster.local") {
		t.Errorf("page %v, %v", r, err)
	}
	for typeURL, name := range map[string]string{"istio.io/debug": "nothing", "istio.io/debug/config_dump": "nobody.default", "istio.io/debug/else": ""} {
		if r, err := ask(typeURL, name); status.Code(err) != codes.NotFound {
			t.Errorf("%s %q: %v, %v", typeURL, name, r, err)
		}
	}
}

func TestNotReadyBeforeTheFirstGoodView(t *testing.T) {
	p := start(t, "kind: nonsense")
	if code, _ := p.get("/ready"); code != http.StatusServiceUnavailable {
		t.Errorf("ready without configuration: status %d", code)
	}
	p.write(mesh)
	eventually(t, "it is ready", func() bool {
		code, _ := p.get("/ready")
		return code == http.StatusOK
	})
}

// TestDebugPagesAreForThisMachine calls from an address that is not loopback, as
// far as the server can see.
func TestDebugPagesAreForThisMachine(t *testing.T) {
	far := func(c *control.Config) {
		c.Listen = func(ctx context.Context, network, addr string) (net.Listener, error) {
			l, err := (&net.ListenConfig{}).Listen(ctx, network, addr)
			return farListener{l}, err
		}
	}
	p := start(t, mesh, far)
	if code, body := p.get("/debug/configz"); code != http.StatusForbidden || strings.Contains(body, "reviews") {
		t.Errorf("status %d: %s", code, body)
	}
	if code, _ := p.get("/metrics"); code != http.StatusOK {
		t.Errorf("metrics: status %d", code)
	}
	p = start(t, mesh, far, func(c *control.Config) { c.DebugFromAnywhere = true })
	if code, _ := p.get("/debug/configz"); code != http.StatusOK {
		t.Errorf("with leave: status %d", code)
	}
}

// TestAPartThatFailsEndsTheWhole holds that Run does not go on without a port, and
// that nothing it started outlives it.
func TestAPartThatFailsEndsTheWhole(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mesh.yaml")
	if err := os.WriteFile(file, []byte(mesh), 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- control.Run(t.Context(), control.Config{
			Sources: []string{file}, PlainAddr: "127.0.0.1:0", HTTPAddr: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler),
			Listen: func(ctx context.Context, network, addr string) (net.Listener, error) {
				l, err := (&net.ListenConfig{}).Listen(ctx, network, addr)
				return brokenListener{l}, err
			},
		})
	}()
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), "out of order") {
			t.Errorf("Run: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("Run goes on without its ports")
	}
}

type brokenListener struct{ net.Listener }

func (brokenListener) Accept() (net.Conn, error) { return nil, errors.New("out of order") }

type farListener struct{ net.Listener }

func (l farListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return farConn{c}, nil
}

type farConn struct{ net.Conn }

func (farConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(10, 1, 2, 3), Port: 5} }

func TestWhatIsMissingIsNamed(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for want, cfg := range map[string]control.Config{
		"Sources":  {Log: log},
		"Log":      {Sources: []string{"x"}},
		"StateDir": {Sources: []string{"x"}, Log: log, TLSAddr: "127.0.0.1:0"},
	} {
		if err := control.Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error about %s", err, want)
		}
	}
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	err = control.Run(t.Context(), control.Config{Sources: []string{t.TempDir()}, Log: log, PlainAddr: busy.Addr().String()})
	if err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("got %v for an address that is taken", err)
	}
}
