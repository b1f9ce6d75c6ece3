package filter

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/heddle-mesh/heddle/internal/meshtest/simnet"
	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/route"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
	"github.com/heddle-mesh/heddle/internal/telemetry"
)

func TestMain(m *testing.M) {
	if app := os.Getenv(smallProxy); app != "" {
		if err := runSmallProxy(app); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// bed is a client, a proxy and servers on a network in memory. Its time is
// virtual.
type bed struct {
	t       *testing.T
	net     *simnet.Net
	client  *simnet.Host
	proxy   *simnet.Host
	set     *upstream.Set
	table   atomic.Pointer[route.Table]
	server  *Server
	log     *logBuffer
	metrics *telemetry.Registry
	entries *telemetry.Log

	direction plan.Direction
	info      func(*exchange.Conn)
	config    func(*Config)
	endpoints map[string]*plan.LoadAssignment
	clusters  map[string]*plan.Cluster

	hosts  []*simnet.Host
	ctx    context.Context
	cancel context.CancelFunc
	drain  context.CancelFunc // makes the proxy stop
	wg     sync.WaitGroup
}

var proxyAddr = netip.MustParseAddrPort("10.0.0.1:8080")

// inBubble runs f with a bed that is taken down after it.
func inBubble(t *testing.T, f func(b *bed)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bed{
			t:         t,
			net:       simnet.New(simnet.Config{}),
			direction: plan.Outbound,
			log:       &logBuffer{},
			metrics:   telemetry.NewRegistry(),
			endpoints: map[string]*plan.LoadAssignment{},
			clusters:  map[string]*plan.Cluster{},
		}
		b.client = b.net.Host("client", "10.0.0.9")
		b.proxy = b.net.Host("proxy", "10.0.0.1")
		b.ctx, b.cancel = context.WithCancel(t.Context())
		b.set = upstream.NewSet(upstream.Config{Network: b.proxy.Proxy(), Log: slog.New(slog.DiscardHandler)})
		b.entries = telemetry.NewLog(b.log)
		defer func() {
			b.cancel()
			b.net.Remove(b.client)
			for _, h := range b.hosts {
				h.Kill()
			}
			b.set.Close()
			b.proxy.Kill()
			b.wg.Wait()
		}()
		f(b)
	})
}

type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) Close() error { return nil }

// logged returns the access log so far.
func (b *bed) logged() string {
	synctest.Wait()
	b.entries.Flush()
	b.log.mu.Lock()
	defer b.log.mu.Unlock()
	return b.log.b.String()
}

// host adds a machine that is taken down in the end.
func (b *bed) host(addr string) *simnet.Host {
	h := b.net.Host(addr, addr)
	b.hosts = append(b.hosts, h)
	return h
}

// backend starts a server that calls serve for each connection.
func (b *bed) backend(addr string, serve func(net.Conn)) netip.AddrPort {
	b.t.Helper()
	ap := netip.MustParseAddrPort(addr)
	l, err := b.host(ap.Addr().String()).App().Listen(b.ctx, ap)
	if err != nil {
		b.t.Fatal(err)
	}
	b.serveOn(l, serve)
	return ap
}

func (b *bed) serveOn(l net.Listener, serve func(net.Conn)) {
	b.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b.wg.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	})
}

// httpBackend starts a server of net/http.
func (b *bed) httpBackend(addr string, h http.HandlerFunc) netip.AddrPort {
	b.t.Helper()
	ap := netip.MustParseAddrPort(addr)
	l, err := b.host(ap.Addr().String()).App().Listen(b.ctx, ap)
	if err != nil {
		b.t.Fatal(err)
	}
	tracked := func(w http.ResponseWriter, r *http.Request) {
		b.wg.Add(1)
		defer b.wg.Done()
		h(w, r)
	}
	s := &http.Server{Handler: http.HandlerFunc(tracked), Protocols: bothProtocols(), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	b.wg.Go(func() { s.Serve(l) })
	context.AfterFunc(b.ctx, func() { s.Close() })
	return ap
}

// cluster adds a cluster of these endpoints.
func (b *bed) cluster(name string, endpoints ...netip.AddrPort) *plan.Cluster {
	la := &plan.LoadAssignment{Cluster: name, Localities: []plan.LocalityEndpoints{{}}}
	for _, e := range endpoints {
		la.Localities[0].Endpoints = append(la.Localities[0].Endpoints, plan.Endpoint{
			Address:  e,
			Workload: plan.Workload{Name: "w-" + e.Addr().String(), Namespace: "ns"},
		})
	}
	c := &plan.Cluster{Name: name, Balancing: plan.RoundRobin, ConnectTimeout: time.Second,
		Service: plan.ServiceRef{Host: name + ".ns.svc.cluster.local", Name: name, Namespace: "ns"}}
	b.clusters[name], b.endpoints[name] = c, la
	return c
}

// to is a route of everything to one cluster.
func to(cluster string) *plan.Route {
	return &plan.Route{Name: "to-" + cluster, Match: plan.RouteMatch{Path: plan.PathMatch{Value: "/"}},
		Clusters: []plan.WeightedCluster{{Cluster: cluster, Weight: 1}}}
}

// start makes the proxy listen with these routes for all hosts.
func (b *bed) start(routes ...*plan.Route) {
	b.t.Helper()
	b.apply(routes...)
	cfg := Config{
		Chain:     &plan.HTTPChain{Metrics: true},
		Direction: b.direction,
		Routes:    b.table.Load,
		Clusters:  b.set,
		Metrics:   b.metrics,
		Own:       telemetry.Workload{Name: "me", Namespace: "ns"},
		Log:       b.entries,
		Logger:    slog.New(slog.DiscardHandler),
	}
	if b.config != nil {
		b.config(&cfg)
	}
	b.server = NewServer(cfg)
	l, err := b.proxy.App().Listen(b.ctx, proxyAddr)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, drain := context.WithCancel(b.ctx)
	b.drain = drain
	b.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			info := &exchange.Conn{Remote: c.RemoteAddr().(*net.TCPAddr).AddrPort(), Local: proxyAddr, Direction: b.direction}
			if b.info != nil {
				b.info(info)
			}
			b.wg.Go(func() { b.server.Serve(ctx, c, info) })
		}
	})
}

// apply replaces routes, clusters and endpoints.
func (b *bed) apply(routes ...*plan.Route) {
	b.t.Helper()
	table, err := route.NewTable(&plan.RouteConfig{Name: "test", Hosts: []*plan.VirtualHost{
		{Name: "all", Domains: []string{"*"}, Routes: routes},
	}})
	if err != nil {
		b.t.Fatal(err)
	}
	b.table.Store(table)
	b.set.Update(b.clusters, b.endpoints)
}

// dial connects to the proxy.
func (b *bed) dial() *rawClient {
	b.t.Helper()
	c, err := b.client.App().Dial(b.ctx, netip.Addr{}, proxyAddr)
	if err != nil {
		b.t.Fatal(err)
	}
	return &rawClient{t: b.t, Conn: c, r: bufio.NewReader(c)}
}

// rawClient writes and reads bytes.
type rawClient struct {
	net.Conn
	t *testing.T
	r *bufio.Reader
}

func (c *rawClient) send(lines ...string) {
	c.t.Helper()
	if _, err := io.WriteString(c.Conn, strings.Join(lines, "\r\n")); err != nil {
		c.t.Fatalf("sending: %v", err)
	}
}

// get sends a GET.
func (c *rawClient) get(path string, headers ...string) {
	c.t.Helper()
	c.send(append(append([]string{"GET " + path + " HTTP/1.1", "Host: a.example"}, headers...), "", "")...)
}

type answer struct {
	*http.Response
	body string
	err  error // of reading the body
}

// read reads a response to a request with the method.
func (c *rawClient) read(method string) answer {
	c.t.Helper()
	r, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		c.t.Fatalf("reading a response: %v", err)
	}
	body, err := io.ReadAll(r.Body)
	return answer{r, string(body), err}
}

// ended checks that the proxy closed the connection.
func (c *rawClient) ended() {
	c.t.Helper()
	if b, err := io.ReadAll(c.r); len(b) > 0 {
		c.t.Errorf("left on the connection: %q, %v", b, err)
	}
}

func (a answer) want(t *testing.T, status int, body string) {
	t.Helper()
	if a.StatusCode != status || a.body != body || a.err != nil {
		t.Errorf("got %d %q %v, want %d %q", a.StatusCode, a.body, a.err, status, body)
	}
}

// reply answers each request on a connection with a fixed text; an empty one closes.
func reply(text string) func(net.Conn) {
	return func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			q, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if _, err := io.Copy(io.Discard, q.Body); err != nil || text == "" {
				return
			}
			io.WriteString(c, text)
		}
	}
}

func ok(body string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}
