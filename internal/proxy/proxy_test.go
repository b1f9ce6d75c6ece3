package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"github.com/heddle-mesh/heddle/internal/compile"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/meshtest/certs"
	"github.com/heddle-mesh/heddle/internal/meshtest/simnet"
	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/redirect"
	"github.com/heddle-mesh/heddle/internal/xds/server"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// mesh is a control plane and two pods, client and server, on a simulated
// network. The control plane says what the test puts into plans.
type mesh struct {
	t       *testing.T
	net     *simnet.Net
	istiod  *simnet.Host
	ca      *certs.CA
	pods    map[string]*pod
	version atomic.Int64

	mu    sync.Mutex
	plans map[string]*plan.Plan // by pod
	las   map[string]*plan.LoadAssignment

	xds     *server.Server
	signing atomic.Bool // the certificate authority answers
}

// pod is a host with a proxy.
type pod struct {
	*simnet.Host
	cfg  Config
	log  *logs
	stop func() error
}

// logs is where a proxy's access log goes.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logs) Close() error { return nil }

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// View implements server.World.
func (m *mesh) View(p *compile.Proxy) (string, func() *plan.Plan) {
	name, _, _ := strings.Cut(p.ID, ".")
	return fmt.Sprintf("%s %d", name, m.version.Load()), func() *plan.Plan {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.plans[name]
	}
}

// Endpoints implements server.World.
func (m *mesh) Endpoints(name string) (*plan.LoadAssignment, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	la, ok := m.las[name]
	return la, ok
}

// Secret gives nobody any.
func (m *mesh) Secret(*compile.Proxy, string) (*plan.Secret, bool) { return nil, false }

// Authenticate implements server.Authenticator: the token is the pod's name.
func (m *mesh) Authenticate(ctx context.Context) (identity.ID, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	name, ok := strings.CutPrefix(strings.Join(md.Get("authorization"), ""), "Bearer ")
	if !ok || m.pods[name] == nil {
		return identity.ID{}, fmt.Errorf("token %q", name)
	}
	return identity.ID{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: name}, nil
}

const service = "server.default.svc.cluster.local"

func newMesh(t *testing.T) *mesh {
	m := &mesh{t: t, net: simnet.New(simnet.Config{}), pods: map[string]*pod{}, ca: certs.New(t, "cluster.local")}
	m.signing.Store(true)
	m.istiod = m.net.Host("istiod", "10.0.0.2")
	m.plans = map[string]*plan.Plan{"client": clientPlan(), "server": serverPlan()}
	m.las = map[string]*plan.LoadAssignment{"outbound|8080||" + service: {Cluster: "outbound|8080||" + service, Localities: []plan.LocalityEndpoints{{
		Endpoints: []plan.Endpoint{{Address: netip.MustParseAddrPort("10.1.0.2:8080"), MTLS: true, Workload: plan.Workload{Name: "server", Namespace: "default", CanonicalName: "server", CanonicalRevision: "v1"}}},
	}}}}
	for i, name := range []string{"client", "server"} {
		p := &pod{Host: m.net.Host(name, fmt.Sprintf("10.1.0.%d", i+1)), log: &logs{}}
		m.pods[name] = p
		p.cfg = Config{
			Version: "test", Network: p.Proxy(), Log: slog.New(slog.DiscardHandler),
			Workload: Workload{
				PodName: name, Namespace: "default", ServiceAccount: name, IPs: p.Addrs(), ClusterID: "Kubernetes", TrustDomain: "cluster.local",
				Labels: map[string]string{"app": name, "version": "v1"}, WorkloadName: name, Metadata: map[string]any{"DNS_CAPTURE": "true"},
			},
			Control: Control{
				Address: "10.0.0.2:15012",
				Roots:   func() ([]byte, error) { return m.ca.PEM(), nil },
				Token:   func() (string, error) { return name + "\n", nil },
				CSR: func(_ context.Context, csr []byte) ([]string, error) {
					if !m.signing.Load() {
						return nil, errors.New("the authority is away")
					}
					return m.ca.SignCSR(csr, identity.ID{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: name}, 24*time.Hour)
				},
			},
			Servers: Servers{
				Admin: netip.MustParseAddrPort("127.0.0.1:15000"), Status: netip.MustParseAddrPort("0.0.0.0:15020"),
				Ready: netip.MustParseAddrPort("0.0.0.0:15021"), Prometheus: netip.MustParseAddrPort("0.0.0.0:15090"),
			},
			Drain:   Drain{Termination: DefaultTermination, Minimum: DefaultMinimumDrain},
			OpenLog: func(string) (io.WriteCloser, error) { return p.log, nil },
		}
		rules := redirect.Default()
		rules.DNS = true
		p.Redirect(redirect.Rules(rules))
	}
	return m
}

// control starts the control plane; its end is returned.
func (m *mesh) control() (stop func()) {
	m.t.Helper()
	l, err := m.istiod.App().Listen(m.t.Context(), netip.MustParseAddrPort("10.0.0.2:15012"))
	if err != nil {
		m.t.Fatal(err)
	}
	if m.xds, err = server.New(server.Config{Log: slog.New(slog.DiscardHandler)}); err != nil {
		m.t.Fatal(err)
	}
	cert := m.ca.Issue(certs.Spec{ID: identity.ID{TrustDomain: "cluster.local", Namespace: "istio-system", ServiceAccount: "istiod"}, DNSNames: []string{"istiod.istio-system.svc"}}).Certificate
	g := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{*cert}, NextProtos: []string{"h2"}})))
	m.xds.Register(g, m)
	m.xds.Update(m, true, nil)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { m.xds.Run(ctx) })
	wg.Go(func() { g.Serve(l) })
	stop = sync.OnceFunc(func() {
		cancel()
		g.Stop()
		wg.Wait()
	})
	m.t.Cleanup(stop)
	return stop
}

// push tells the proxies of a changed plan.
func (m *mesh) push(change func()) {
	m.mu.Lock()
	change()
	m.mu.Unlock()
	m.version.Add(1)
	m.xds.Update(m, true, nil)
	m.settle()
}

// settle lets messages arrive and timers of a few milliseconds run out.
func (m *mesh) settle() { time.Sleep(time.Second) }

// run starts a pod's proxy.
func (m *mesh) run(name string) *pod {
	m.t.Helper()
	p := m.pods[name]
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, p.cfg) }()
	p.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	m.t.Cleanup(func() {
		if err := p.stop(); err != nil {
			m.t.Errorf("the proxy of %s: %v", name, err)
		}
	})
	return p
}

// app starts the server's program.
func (m *mesh) app() {
	l, err := m.pods["server"].App().Listen(m.t.Context(), netip.MustParseAddrPort("0.0.0.0:8080"))
	if err != nil {
		m.t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if d, err := time.ParseDuration(r.URL.Query().Get("sleep")); err == nil {
			time.Sleep(d)
		}
		fmt.Fprintf(w, "%s from %s xfcc=%q", r.URL.Path, r.RemoteAddr[:strings.LastIndexByte(r.RemoteAddr, ':')], r.Header.Get("X-Forwarded-Client-Cert"))
	})}
	var wg sync.WaitGroup
	wg.Go(func() { s.Serve(l) })
	m.t.Cleanup(func() { s.Close(); wg.Wait() })
}

func clientPlan() *plan.Plan {
	forward := func(cluster string) *plan.TCPChain {
		return &plan.TCPChain{StatPrefix: cluster, Clusters: []plan.WeightedCluster{{Cluster: cluster}}, Metrics: true, AccessLog: "/dev/stdout"}
	}
	return &plan.Plan{
		Listeners: []*plan.Listener{
			{
				Name: "0.0.0.0_8080", Address: netip.MustParseAddrPort("0.0.0.0:8080"), Inspect: plan.Inspect{HTTP: true, TLS: true},
				Chains: []*plan.FilterChain{{
					Match: plan.ChainMatch{Transport: plan.RawBuffer, ALPN: []string{"http/1.0", "http/1.1", "h2c"}},
					HTTP:  &plan.HTTPChain{StatPrefix: "outbound_0.0.0.0_8080", RouteName: "8080", Metrics: true, AccessLog: "/dev/stdout"},
				}},
				Default: &plan.FilterChain{Name: "PassthroughFilterChain", TCP: forward("PassthroughCluster")},
			},
			{
				Name: "virtualOutbound", Address: netip.MustParseAddrPort("0.0.0.0:15001"), Bound: true, UseOriginalDst: true,
				Default: &plan.FilterChain{Name: "virtualOutbound-catchall-tcp", TCP: forward("PassthroughCluster")},
			},
		},
		Routes: []*plan.RouteConfig{{Name: "8080", Hosts: []*plan.VirtualHost{{
			Name: service + ":8080", Domains: []string{"server", service},
			Routes: []*plan.Route{{Name: "default", Match: plan.RouteMatch{Path: plan.PathMatch{Value: "/"}}, Clusters: []plan.WeightedCluster{{Cluster: "outbound|8080||" + service}}}},
		}}, IgnorePort: true}},
		Clusters: []*plan.Cluster{
			{Name: "PassthroughCluster", Discovery: plan.OriginalDst, Balancing: plan.ClusterProvided, ConnectTimeout: 10 * time.Second},
			{
				Name: "outbound|8080||" + service, ConnectTimeout: 10 * time.Second, Service: plan.ServiceRef{Host: service, Name: "server", Namespace: "default"},
				TLS: &plan.ClientTLS{Auto: true, Certificate: "default", Roots: "ROOTCA", SNI: "outbound_.8080_._." + service,
					SubjectAltNames: []string{"spiffe://cluster.local/ns/default/sa/server"}, ALPN: []string{"istio-http/1.1", "istio"}},
			},
		},
		Names: &plan.NameTable{Names: []plan.NameEntry{{Host: service, IPs: []netip.Addr{netip.MustParseAddr("10.96.0.7")}, Registry: "Kubernetes", Short: "server", Namespace: "default"}}},
	}
}

func serverPlan() *plan.Plan {
	inbound := func() *plan.HTTPChain {
		return &plan.HTTPChain{
			StatPrefix: "inbound_0.0.0.0_8080", ForwardClientCert: plan.AppendForwardClientCert, Metrics: true, AccessLog: "/dev/stdout",
			Inline: &plan.RouteConfig{Name: "inbound|8080||", Hosts: []*plan.VirtualHost{{Name: "inbound|http|8080", Domains: []string{"*"}, Routes: []*plan.Route{{
				Name: "default", Match: plan.RouteMatch{Path: plan.PathMatch{Value: "/"}}, Clusters: []plan.WeightedCluster{{Cluster: "inbound|8080||"}},
			}}}}},
		}
	}
	secure := &plan.ServerTLS{Certificate: "default", Roots: "ROOTCA", RequireCert: true, ALPN: []string{"istio-http/1.1", "istio-http/1.0", "istio"}}
	return &plan.Plan{
		Listeners: []*plan.Listener{{
			Name: "virtualInbound", Address: netip.MustParseAddrPort("0.0.0.0:15006"), Direction: plan.Inbound, Bound: true, UseOriginalDst: true,
			Inspect: plan.Inspect{TLS: true, HTTP: true},
			Chains: []*plan.FilterChain{
				{Name: "0.0.0.0_8080", Match: plan.ChainMatch{DestinationPort: 8080, Transport: plan.TLSTransport}, TLS: secure, HTTP: inbound()},
				{Name: "0.0.0.0_8080", Match: plan.ChainMatch{DestinationPort: 8080, Transport: plan.RawBuffer}, HTTP: inbound()},
			},
		}},
		Clusters: []*plan.Cluster{{
			Name: "inbound|8080||", Discovery: plan.OriginalDst, Balancing: plan.ClusterProvided, ConnectTimeout: 10 * time.Second,
			BindAddress: netip.MustParseAddr("127.0.0.6"), Service: plan.ServiceRef{Host: service, Name: "server", Namespace: "default"},
		}},
	}
}

// conn is an application's connection.
type conn struct {
	net.Conn
	r *bufio.Reader
}

func (m *mesh) dial(from *simnet.Host, addr string) *conn {
	m.t.Helper()
	c, err := from.App().Dial(m.t.Context(), netip.Addr{}, netip.MustParseAddrPort(addr))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { c.Close() })
	return &conn{c, bufio.NewReader(c)}
}

// get sends a request and returns status, body and whether the connection ends.
func (c *conn) get(t *testing.T, path string) (int, string, bool) {
	t.Helper()
	status, body, closes, err := c.try(path)
	if err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
	return status, body, closes
}

func (c *conn) try(path string) (status int, body string, closes bool, err error) {
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: server:8080\r\n\r\n", path)
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return 0, "", false, err
	}
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), resp.Close, err
}

// page asks one of a pod's own servers.
func (m *mesh) page(p *pod, port int, path string) (int, string) {
	c, err := p.Proxy().Dial(m.t.Context(), netip.Addr{}, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port)))
	if err != nil {
		return 0, err.Error()
	}
	defer c.Close()
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", path)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, err.Error()
	}
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

// series returns the lines of a metric that have all of the parts.
func series(text, name string, parts ...string) (out []string) {
	for l := range strings.Lines(text) {
		ok := strings.HasPrefix(l, name+"{")
		for _, p := range parts {
			ok = ok && strings.Contains(l, p)
		}
		if ok {
			out = append(out, strings.TrimSpace(l))
		}
	}
	return out
}

func TestRequestGoesThroughTwoProxiesWithMutualTLS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		m.control()
		m.app()
		client, srv := m.run("client"), m.run("server")
		m.settle()
		c := m.dial(client.Host, "10.96.0.7:8080")
		for range 3 {
			status, body, _ := c.get(t, "/hello")
			if status != 200 || !strings.HasPrefix(body, "/hello from 127.0.0.6 ") || !strings.Contains(body, "URI=spiffe://cluster.local/ns/default/sa/client") {
				t.Fatalf("%d %q, want 200 by way of mutual TLS", status, body)
			}
		}
		time.Sleep(2 * time.Second)

		_, text := m.page(client, 15090, "/stats/prometheus")
		if got := series(text, "istio_requests_total", `reporter="source"`, `source_workload="client"`, `destination_workload="server"`, `destination_service="`+service+`"`,
			`destination_principal="spiffe://cluster.local/ns/default/sa/server"`, `response_code="200"`, `connection_security_policy="mutual_tls"`); len(got) != 1 || !strings.HasSuffix(got[0], " 3") {
			t.Errorf("the client's proxy counts %q in\n%s", got, strings.Join(series(text, "istio_requests_total"), "\n"))
		}
		_, text = m.page(srv, 15020, "/stats/prometheus")
		if got := series(text, "istio_requests_total", `reporter="destination"`, `source_workload="client"`, `source_app="client"`, `destination_workload="server"`,
			`source_principal="spiffe://cluster.local/ns/default/sa/client"`, `connection_security_policy="mutual_tls"`); len(got) != 1 || !strings.HasSuffix(got[0], " 3") {
			t.Errorf("the server's proxy counts %q in\n%s", got, strings.Join(series(text, "istio_requests_total"), "\n"))
		}
		for name, want := range map[string]string{"client": "outbound|8080||" + service, "server": "inbound|8080||"} {
			line, _, _ := strings.Cut(m.pods[name].log.String(), "\n")
			if !strings.Contains(line, `"GET /hello HTTP/1.1" 200 - via_upstream - "-" 0 `) || !strings.Contains(line, " "+want+" ") {
				t.Errorf("access log of %s: %q", name, line)
			}
		}
		_, dump := m.page(client, 15000, "/config_dump")
		for _, want := range []string{"outbound|8080||" + service, "virtualOutbound", "sidecar~10.1.0.1~client.default~default.svc.cluster.local", "dynamic_route_configs", "dynamic_active_secrets"} {
			if !strings.Contains(dump, want) {
				t.Errorf("/config_dump has no %s", want)
			}
		}
	})
}

func TestChangedRoutesReachOpenConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		m.control()
		m.app()
		client := m.run("client")
		m.run("server")
		m.settle()
		c := m.dial(client.Host, "10.96.0.7:8080")
		c.get(t, "/")
		m.push(func() {
			p := clientPlan()
			p.Routes[0].Hosts[0].Routes[0].Clusters = nil
			p.Routes[0].Hosts[0].Routes[0].Direct = &plan.DirectResponse{Status: 418, Body: "changed"}
			m.plans["client"] = p
		})
		if status, body, _ := c.get(t, "/"); status != 418 || body != "changed" {
			t.Errorf("%d %q on the open connection, want the new route's 418", status, body)
		}
	})
}

func TestReadinessComesAfterConfigurationAndCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		m.app()
		m.signing.Store(false)
		announced := make(chan struct{})
		m.pods["server"].cfg.OnReady = func() { close(announced) }
		srv := m.run("server")
		check := func(when string, code int, why string) {
			t.Helper()
			if got, body := m.page(srv, 15021, "/healthz/ready"); got != code || !strings.Contains(body, why) {
				t.Errorf("%s: %d %q, want %d %q", when, got, body, code, why)
			}
		}
		m.settle()
		check("at first", 503, "no configuration yet")
		if _, err := m.pods["client"].Proxy().Dial(t.Context(), netip.Addr{}, netip.MustParseAddrPort("10.1.0.2:8080")); err == nil {
			t.Error("a connection was accepted before there was a configuration")
		}
		m.control()
		time.Sleep(time.Minute)
		check("with configuration", 503, "no certificate yet")
		// Plain text is served already; mutual TLS is not.
		plain, err := m.pods["client"].Proxy().Dial(t.Context(), netip.Addr{}, netip.MustParseAddrPort("10.1.0.2:8080"))
		if err != nil {
			t.Fatal(err)
		}
		defer plain.Close()
		if status, body, _ := (&conn{plain, bufio.NewReader(plain)}).get(t, "/plain"); status != 200 {
			t.Errorf("plain text: %d %q", status, body)
		}
		select {
		case <-announced:
			t.Error("announced as ready without certificate")
		default:
		}
		m.signing.Store(true)
		time.Sleep(time.Minute)
		check("with certificate", 200, "")
		<-announced
	})
}

func TestLastGoodConfigurationServesWithoutControlPlane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		stop := m.control()
		m.app()
		m.pods["server"].cfg.CachePath = filepath.Join(t.TempDir(), "xds")
		srv := m.run("server")
		time.Sleep(time.Minute)
		stop()
		m.signing.Store(false)

		// It goes on with what it has.
		ask := func(when string) {
			t.Helper()
			c, err := m.pods["client"].Proxy().Dial(t.Context(), netip.Addr{}, netip.MustParseAddrPort("10.1.0.2:8080"))
			if err != nil {
				t.Fatalf("%s: %v", when, err)
			}
			defer c.Close()
			if status, body, _ := (&conn{c, bufio.NewReader(c)}).get(t, "/"); status != 200 {
				t.Errorf("%s: %d %q", when, status, body)
			}
		}
		time.Sleep(time.Hour)
		ask("an hour without control plane")

		// And so does its successor.
		if err := srv.stop(); err != nil {
			t.Fatal(err)
		}
		srv = m.run("server")
		m.settle()
		ask("started without control plane")
		if code, body := m.page(srv, 15021, "/healthz/ready"); code != 503 || !strings.Contains(body, "no certificate yet") {
			t.Errorf("readiness without a certificate: %d %q", code, body)
		}
		tc := tls.Client(must(m.pods["client"].Proxy().Dial(t.Context(), netip.Addr{}, netip.MustParseAddrPort("10.1.0.2:8080")))(t), &tls.Config{InsecureSkipVerify: true})
		if err := tc.Handshake(); err == nil {
			t.Error("mutual TLS succeeded without a certificate")
		}
		tc.Close()
	})
}

func must(c net.Conn, err error) func(*testing.T) net.Conn {
	return func(t *testing.T) net.Conn {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
}

func TestControlPlaneThatIsNotTrustedIsNotHeard(t *testing.T) {
	for _, test := range []struct {
		name string
		edit func(m *mesh, c *Control)
	}{
		{"other root", func(m *mesh, c *Control) {
			other := certs.New(m.t, "cluster.local").PEM()
			roots := c.Roots
			first := true
			c.Roots = func() ([]byte, error) { // the agent's roots are not the point
				if first {
					first = false
					return roots()
				}
				return other, nil
			}
		}},
		{"other name", func(_ *mesh, c *Control) { c.ServerName = "other.istio-system.svc" }},
		{"other token", func(_ *mesh, c *Control) { c.Token = func() (string, error) { return "client", nil } }},
		{"no token", func(_ *mesh, c *Control) { c.Token = func() (string, error) { return "", errors.New("not mounted") } }},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMesh(t)
				m.control()
				test.edit(m, &m.pods["server"].cfg.Control)
				srv := m.run("server")
				time.Sleep(time.Minute)
				if code, body := m.page(srv, 15021, "/healthz/ready"); code != 503 || !strings.Contains(body, "no configuration yet") {
					t.Errorf("%d %q, want no configuration", code, body)
				}
			})
		})
	}
}

func TestProxyEndsWithoutLosingRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		m.control()
		m.app()
		srv := m.run("server")
		m.settle()
		c := must(m.pods["client"].Proxy().Dial(t.Context(), netip.Addr{}, netip.MustParseAddrPort("10.1.0.2:8080")))(t)
		defer c.Close()
		slow := &conn{c, bufio.NewReader(c)}
		answered := make(chan string, 1)
		go func() {
			status, _, closes, err := slow.try("/slow?sleep=3s")
			answered <- fmt.Sprint(status, " close=", closes, " ", err)
		}()
		time.Sleep(time.Second)
		began := time.Now()
		ended := make(chan error, 1)
		go func() { ended <- srv.stop() }()
		time.Sleep(time.Second)
		if code, _ := m.page(srv, 15021, "/healthz/ready"); code != 503 {
			t.Errorf("readiness while draining: %d, want 503", code)
		}
		if got := <-answered; got != "200 close=true <nil>" {
			t.Errorf("the request in flight: %s, want an answer that ends the connection", got)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took != DefaultTermination {
			t.Errorf("ended after %v, want %v", took, DefaultTermination)
		}
		if _, err := m.pods["client"].Proxy().Dial(t.Context(), netip.Addr{}, netip.MustParseAddrPort("10.1.0.2:8080")); err == nil {
			t.Error("a connection was accepted after the end")
		}
	})
}

func TestExitOnZeroWaitsForTheLastConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		m.control()
		m.app()
		m.pods["server"].cfg.Drain.ExitOnZero = true
		srv := m.run("server")
		m.settle()
		c := must(m.pods["client"].Proxy().Dial(t.Context(), netip.Addr{}, netip.MustParseAddrPort("10.1.0.2:8080")))(t)
		defer c.Close()
		go (&conn{c, bufio.NewReader(c)}).try("/slow?sleep=1m")
		time.Sleep(time.Second)
		began := time.Now()
		if err := srv.stop(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took < 59*time.Second || took > 61*time.Second {
			t.Errorf("ended after %v, want the end of the request after 59s", took)
		}
	})
}

func TestCapturedNamesAreAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		m.control()
		client := m.pods["client"]
		client.cfg.DNS = &DNS{Listen: netip.MustParseAddrPort("127.0.0.1:15053"), Listen6: netip.MustParseAddrPort("[::1]:15053"), Search: []string{"default.svc.cluster.local"}}
		m.run("client")
		m.settle()
		c := must(client.App().DialContext(t.Context(), "udp", "10.96.0.10:53"))(t)
		defer c.Close()
		q := new(dns.Msg)
		q.SetQuestion("server.default.svc.cluster.local.", dns.TypeA)
		answer, _, err := (&dns.Client{}).ExchangeWithConn(q, &dns.Conn{Conn: c})
		if err != nil {
			t.Fatal(err)
		}
		if len(answer.Answer) != 1 || answer.Answer[0].(*dns.A).A.String() != "10.96.0.7" {
			t.Errorf("answer %v, want 10.96.0.7", answer.Answer)
		}
	})
}

func TestBytesThatAreNotHTTPPassThroughAnHTTPChain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		m.control()
		srv := m.run("server")
		l, err := srv.App().Listen(t.Context(), netip.MustParseAddrPort("0.0.0.0:8080"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { io.Copy(c, c); c.Close() }()
			}
		}()
		m.settle()
		c := must(m.pods["client"].Proxy().Dial(t.Context(), netip.Addr{}, netip.MustParseAddrPort("10.1.0.2:8080")))(t)
		const bytes = "\x00neither version of HTTP begins so"
		io.WriteString(c, bytes)
		b := make([]byte, len(bytes))
		if _, err := io.ReadFull(c, b); err != nil || string(b) != bytes {
			t.Errorf("%q, %v, want the bytes echoed by the server", b, err)
		}
		c.Close()
		m.settle()
	})
}

func TestConfigIsChecked(t *testing.T) {
	good := newMesh(t).pods["server"].cfg
	for name, edit := range map[string]func(*Config){
		"no network":         func(c *Config) { c.Network = nil },
		"no log":             func(c *Config) { c.Log = nil },
		"no control plane":   func(c *Config) { c.Control.Address = "" },
		"no pod name":        func(c *Config) { c.Workload.PodName = "" },
		"no address":         func(c *Config) { c.Workload.IPs = nil },
		"no trust domain":    func(c *Config) { c.Workload.TrustDomain = "" },
		"roots not readable": func(c *Config) { c.Control.Roots = func() ([]byte, error) { return nil, errors.New("not mounted") } },
		"port taken":         func(c *Config) { c.Servers.Ready = c.Servers.Status },
	} {
		cfg := good
		edit(&cfg)
		if err := Run(t.Context(), cfg); err == nil {
			t.Errorf("%s: Run returned nil", name)
		}
	}
}
