package tcp

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/meshtest/certs"
	"github.com/heddle-mesh/heddle/internal/meshtest/simnet"
	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/mtls"
	"github.com/heddle-mesh/heddle/internal/proxy/proxyproto"
	"github.com/heddle-mesh/heddle/internal/proxy/socket"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
	"github.com/heddle-mesh/heddle/internal/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// logBuffer is an access log that is read back.
type logBuffer struct{ bytes.Buffer }

func (*logBuffer) Close() error { return nil }

// proxied is a proxy with one cluster "db" in front of a server.
type proxied struct {
	t       *testing.T
	network socket.Network
	listen  netip.AddrPort
	metrics *telemetry.Registry
	text    *logBuffer
	log     *telemetry.Log
	set     *upstream.Set
	proxy   *Proxy
	served  chan error
	tls     *tls.Config // of the accepting side
}

// start serves connections on an address of its own until the test ends; one
// value is sent to served for each.
func start(t *testing.T, network socket.Network, listen netip.AddrPort, clusters map[string]*plan.Cluster, endpoints map[string]*plan.LoadAssignment, chain *plan.TCPChain, id identity.Source, edit func(*Config), accept *tls.Config) *proxied {
	t.Helper()
	p := &proxied{t: t, network: network, metrics: telemetry.NewRegistry(), text: &logBuffer{}, served: make(chan error, 100), tls: accept}
	p.log = telemetry.NewLog(p.text)
	p.set = upstream.NewSet(upstream.Config{Network: network, Identity: id, TLS: func(c *plan.ClientTLS) *tls.Config { return mtls.ClientConfig(id, c) }})
	p.set.Update(clusters, endpoints)
	cfg := Config{
		Chain: chain, Clusters: p.set, Identity: id, Metrics: p.metrics, Log: p.log, Context: t.Context(),
		Own: telemetry.Workload{Name: "own", Namespace: "default"}, OwnMetadata: (&mtls.Metadata{WorkloadName: "own", Namespace: "default"}).Encode(),
	}
	if edit != nil {
		edit(&cfg)
	}
	var err error
	if p.proxy, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	l, err := network.Listen(t.Context(), listen)
	if err != nil {
		t.Fatal(err)
	}
	p.listen = l.Addr().(*net.TCPAddr).AddrPort()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				info := &exchange.Conn{
					Remote: c.RemoteAddr().(*net.TCPAddr).AddrPort(), Local: c.LocalAddr().(*net.TCPAddr).AddrPort(), Direction: cfg.Direction,
				}
				if accept != nil {
					tc := mtls.Server(c, accept)
					if err := tc.Handshake(); err != nil {
						c.Close()
						p.served <- err
						return
					}
					state := tc.ConnectionState()
					info.ALPN, info.PeerID, info.OwnID, info.MTLS = state.NegotiatedProtocol, mtls.PeerID(state), id.Current().ID.String(), true
					c = tc
				}
				p.served <- p.proxy.Serve(t.Context(), c, info)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
		p.set.Close()
	})
	return p
}

func (p *proxied) logged() string {
	p.log.Flush()
	return p.text.String()
}

func (p *proxied) exposed() string {
	var b bytes.Buffer
	p.metrics.WritePrometheus(&b)
	return b.String()
}

// counts fails unless a metric's only series has this value.
func (p *proxied) counts(name string, want int64, labels ...string) {
	p.t.Helper()
	text := p.exposed()
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, name+"{") {
			continue
		}
		for _, l := range labels {
			if !strings.Contains(line, l) {
				p.t.Errorf("%s has no label %s", line, l)
			}
		}
		if !strings.HasSuffix(line, fmt.Sprintf("} %d\n", want)) {
			p.t.Errorf("%s, want %d", line, want)
		}
		return
	}
	p.t.Errorf("no series %s in\n%s", name, text)
}

func plainChain() *plan.TCPChain {
	return &plan.TCPChain{Clusters: []plan.WeightedCluster{{Cluster: "db"}}, Metrics: true, AccessLog: "x"}
}

func cluster(edit func(*plan.Cluster)) map[string]*plan.Cluster {
	c := &plan.Cluster{Name: "db", Discovery: plan.EDS, Service: plan.ServiceRef{Host: "db.default.svc.cluster.local", Name: "db", Namespace: "default"}}
	if edit != nil {
		edit(c)
	}
	return map[string]*plan.Cluster{"db": c}
}

func endpointsOf(addrs ...netip.AddrPort) map[string]*plan.LoadAssignment {
	la := &plan.LoadAssignment{Cluster: "db", Localities: []plan.LocalityEndpoints{{}}}
	for _, a := range addrs {
		la.Localities[0].Endpoints = append(la.Localities[0].Endpoints, plan.Endpoint{Address: a, Workload: plan.Workload{Name: "db-v1", Namespace: "default"}})
	}
	return map[string]*plan.LoadAssignment{"db": la}
}

// serve accepts connections on network and hands them to handle, which need not
// close them.
func serve(t *testing.T, network socket.Network, addr netip.AddrPort, handle func(net.Conn)) netip.AddrPort {
	t.Helper()
	l, err := network.Listen(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); handle(c) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func dial(t *testing.T, network socket.Network, addr netip.AddrPort) net.Conn {
	t.Helper()
	c, err := network.Dial(t.Context(), netip.Addr{}, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// networks runs a test on both kinds of sockets: those whose bytes stay in the
// kernel, and those whose bytes are copied.
func networks(t *testing.T, test func(t *testing.T, network socket.Network, proxy, server netip.AddrPort)) {
	t.Run("kernel", func(t *testing.T) {
		a := netip.MustParseAddrPort("127.0.0.1:0")
		test(t, socket.System{}, a, a)
	})
	t.Run("simulated", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := simnet.New(simnet.Config{}).Host("pod", "10.0.0.1")
			test(t, h.Proxy(), netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.1:2"))
		})
	})
}

func TestBytesPassBothWaysAndAreCounted(t *testing.T) {
	networks(t, func(t *testing.T, network socket.Network, at, server netip.AddrPort) {
		const size = 3<<20 + 17
		up, down := bytes.Repeat([]byte("question"), size/8+1)[:size], bytes.Repeat([]byte("response"), size/8+1)[:size]
		got := make(chan []byte, 1)
		server = serve(t, network, server, func(c net.Conn) {
			var wg sync.WaitGroup
			wg.Go(func() {
				b, err := io.ReadAll(c)
				if err != nil {
					t.Error(err)
				}
				got <- b
			})
			if _, err := c.Write(down); err != nil {
				t.Error(err)
			}
			c.(interface{ CloseWrite() error }).CloseWrite()
			wg.Wait()
		})
		p := start(t, network, at, cluster(nil), endpointsOf(server), plainChain(), nil, nil, nil)
		c := dial(t, network, p.listen)
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.Write(up); err != nil {
				t.Error(err)
			}
			c.(interface{ CloseWrite() error }).CloseWrite()
		})
		b, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(b, down) {
			t.Errorf("client got %d bytes, %v, want the server's %d", len(b), err, len(down))
		}
		if b := <-got; !bytes.Equal(b, up) {
			t.Errorf("server got %d bytes, want the client's %d", len(b), len(up))
		}
		wg.Wait()
		if err := <-p.served; err != nil {
			t.Errorf("Serve = %v, want nil", err)
		}
		p.counts("istio_tcp_received_bytes_total", size, `reporter="source"`, `destination_workload="db-v1"`, `destination_service="db.default.svc.cluster.local"`, `source_workload="own"`)
		p.counts("istio_tcp_sent_bytes_total", size, `request_protocol="tcp"`, `response_flags="-"`, `connection_security_policy="unknown"`)
		p.counts("istio_tcp_connections_opened_total", 1)
		p.counts("istio_tcp_connections_closed_total", 1)
		if line, want := p.logged(), fmt.Sprintf(`"- - -" 0 - - - "-" %d %d `, size, size); !strings.Contains(line, want) || !strings.Contains(line, `"`+server.String()+`" db `) {
			t.Errorf("access log %q, want %q and the server in it", line, want)
		}
	})
}

// TestARefusedClientReachesNoServer holds that policy is asked before anything else:
// the server hears of nothing, and the log says by which rule.
func TestARefusedClientReachesNoServer(t *testing.T) {
	networks(t, func(t *testing.T, network socket.Network, listen, server netip.AddrPort) {
		addr := serve(t, network, server, func(net.Conn) { t.Error("the server was called") })
		chain := plainChain()
		chain.RBAC = []*plan.RBAC{{Action: plan.Deny, Enforced: true, Rules: []*plan.RBACRule{{Name: "ns[a]-policy[b]-rule[0]"}}}}
		p := start(t, network, listen, cluster(nil), endpointsOf(addr), chain, nil, nil, nil)
		c := dial(t, network, p.listen)
		if b, _ := io.ReadAll(c); len(b) > 0 {
			t.Errorf("the client reads %q", b)
		}
		if err := <-p.served; err == nil {
			t.Error("no error")
		}
		if !strings.Contains(p.logged(), "rbac_access_denied_matched_policy[ns[a]-policy[b]-rule[0]]") {
			t.Errorf("the log is %s", p.logged())
		}
		if _, err := p.proxy.Open(&exchange.Conn{Remote: p.listen, Local: p.listen}); err == nil {
			t.Error("a way is opened ahead")
		}
	})
}

func TestServerAnswersAfterTheClientHasEnded(t *testing.T) {
	networks(t, func(t *testing.T, network socket.Network, at, server netip.AddrPort) {
		server = serve(t, network, server, func(c net.Conn) {
			b, _ := io.ReadAll(c) // needs the client's end to pass through
			fmt.Fprintf(c, "%d bytes", len(b))
		})
		p := start(t, network, at, cluster(nil), endpointsOf(server), plainChain(), nil, nil, nil)
		c := dial(t, network, p.listen)
		io.WriteString(c, "hello")
		c.(interface{ CloseWrite() error }).CloseWrite()
		if b, err := io.ReadAll(c); err != nil || string(b) != "5 bytes" {
			t.Errorf("got %q, %v, want the answer to what was sent before the end", b, err)
		}
		<-p.served
	})
}

func TestServerThatSpeaksFirstIsHeard(t *testing.T) {
	networks(t, func(t *testing.T, network socket.Network, at, server netip.AddrPort) {
		server = serve(t, network, server, func(c net.Conn) {
			io.WriteString(c, "220 ready\r\n")
			io.Copy(io.Discard, c)
		})
		p := start(t, network, at, cluster(nil), endpointsOf(server), plainChain(), nil, nil, nil)
		c := dial(t, network, p.listen)
		b := make([]byte, 11)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "220 ready\r\n" {
			t.Errorf("got %q, %v, want the greeting", b, err)
		}
		c.Close()
		<-p.served
	})
}

func TestResetOfOneSideResetsTheOther(t *testing.T) {
	networks(t, func(t *testing.T, network socket.Network, at, server netip.AddrPort) {
		broken := make(chan error, 1)
		reset := make(chan bool)
		server = serve(t, network, server, func(c net.Conn) {
			io.WriteString(c, "x")
			if <-reset {
				c.(interface{ SetLinger(int) error }).SetLinger(0)
				return
			}
			_, err := io.Copy(io.Discard, c)
			broken <- err
		})
		p := start(t, network, at, cluster(nil), endpointsOf(server), plainChain(), nil, nil, nil)
		for _, side := range []string{"client", "server"} {
			c := dial(t, network, p.listen)
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			reset <- side == "server"
			var err error
			if side == "client" {
				c.(interface{ SetLinger(int) error }).SetLinger(0)
				c.Close()
				err = <-broken
			} else {
				_, err = c.Read(make([]byte, 1))
			}
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("reset by the %s: the other side sees %v, want a reset", side, err)
			}
			if err := <-p.served; err == nil {
				t.Errorf("reset by the %s: Serve = nil, want an error", side)
			}
		}
	})
}

func TestQuietConnectionIsClosedAfterTheIdleTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := simnet.New(simnet.Config{}).Host("pod", "10.0.0.1")
		server := serve(t, h.Proxy(), netip.MustParseAddrPort("10.0.0.1:2"), func(c net.Conn) { io.Copy(c, c) })
		chain := plainChain()
		chain.IdleTimeout = 10 * time.Minute
		p := start(t, h.Proxy(), netip.MustParseAddrPort("10.0.0.1:1"), cluster(nil), endpointsOf(server), chain, nil, nil, nil)
		c := dial(t, h.Proxy(), p.listen)
		began := time.Now()
		for range 3 {
			time.Sleep(9 * time.Minute)
			io.WriteString(c, "still here")
			if _, err := io.ReadFull(c, make([]byte, 10)); err != nil {
				t.Fatalf("after %v: %v", time.Since(began), err)
			}
		}
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read: %v, want an orderly end", err)
		}
		if got, want := time.Since(began), 37*time.Minute; got != want {
			t.Errorf("closed after %v, want %v: the timeout after the last byte", got, want)
		}
		if err := <-p.served; !errors.Is(err, errIdle) {
			t.Errorf("Serve = %v, want the idle timeout", err)
		}
		if line := p.logged(); !strings.Contains(line, " tcp_session_idle_timeout ") {
			t.Errorf("access log %q does not name the timeout", line)
		}
	})
}

func TestBytesAreCountedWhileTheConnectionIsOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := simnet.New(simnet.Config{}).Host("pod", "10.0.0.1")
		server := serve(t, h.Proxy(), netip.MustParseAddrPort("10.0.0.1:2"), func(c net.Conn) { io.Copy(c, c) })
		p := start(t, h.Proxy(), netip.MustParseAddrPort("10.0.0.1:1"), cluster(nil), endpointsOf(server), plainChain(), nil, nil, nil)
		c := dial(t, h.Proxy(), p.listen)
		io.WriteString(c, "12345")
		io.ReadFull(c, make([]byte, 5))
		time.Sleep(10 * time.Second)
		p.counts("istio_tcp_received_bytes_total", 5)
		p.counts("istio_tcp_sent_bytes_total", 5)
		p.counts("istio_tcp_connections_closed_total", 0)
		c.Close()
		<-p.served
		p.counts("istio_tcp_connections_closed_total", 1)
	})
}

func TestFailureToConnectResetsTheClient(t *testing.T) {
	at := netip.MustParseAddrPort("10.0.0.1:1")
	dead := netip.MustParseAddrPort("10.0.0.1:3")
	for _, test := range []struct {
		name      string
		clusters  map[string]*plan.Cluster
		endpoints map[string]*plan.LoadAssignment
		flags     string
	}{
		{"no cluster", nil, nil, "NC"},
		{"no endpoint", cluster(nil), endpointsOf(), "UH"},
		{"refused", cluster(nil), endpointsOf(dead), "UF,URX"},
		{"no identity for a server that needs TLS", cluster(func(c *plan.Cluster) {
			c.TLS = &plan.ClientTLS{Certificate: "default", Roots: "ROOTCA"}
		}), endpointsOf(dead), "UF,URX"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := simnet.New(simnet.Config{}).Host("pod", "10.0.0.1")
				p := start(t, h.Proxy(), at, test.clusters, test.endpoints, plainChain(), certs.NewSource(nil), nil, nil)
				c := dial(t, h.Proxy(), p.listen)
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("the client sees %v, want a reset", err)
				}
				if err := <-p.served; err == nil {
					t.Error("Serve = nil, want an error")
				}
				if line := p.logged(); !strings.Contains(line, `"- - -" 0 `+test.flags+" ") {
					t.Errorf("access log %q, want the flags %s", line, test.flags)
				}
				p.counts("istio_tcp_connections_closed_total", 1, `response_flags="`+test.flags+`"`)
			})
		})
	}
}

func TestAnotherEndpointIsTriedWhenOneRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := simnet.New(simnet.Config{}).Host("pod", "10.0.0.1")
		server := serve(t, h.Proxy(), netip.MustParseAddrPort("10.0.0.1:2"), func(c net.Conn) { io.WriteString(c, "ok") })
		dead := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:3"), netip.MustParseAddrPort("10.0.0.1:4")}
		p := start(t, h.Proxy(), netip.MustParseAddrPort("10.0.0.1:1"), cluster(nil), endpointsOf(append(dead, server)...), plainChain(), nil, nil, nil)
		for range 20 {
			c := dial(t, h.Proxy(), p.listen)
			if b, err := io.ReadAll(c); err != nil || string(b) != "ok" {
				t.Fatalf("got %q, %v, want ok", b, err)
			}
			c.Close()
			<-p.served
		}
	})
}

func TestSplitFollowsTheWeights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := simnet.New(simnet.Config{}).Host("pod", "10.0.0.1")
		clusters, endpoints := map[string]*plan.Cluster{}, map[string]*plan.LoadAssignment{}
		chain := &plan.TCPChain{}
		for name, weight := range map[string]uint32{"a": 80, "b": 20, "never": 0} {
			clusters[name] = &plan.Cluster{Name: name}
			addr := netip.AddrPortFrom(h.Addr(), uint16(10+len(endpoints)))
			serve(t, h.Proxy(), addr, func(c net.Conn) { io.WriteString(c, name) })
			endpoints[name] = endpointsOf(addr)["db"]
			chain.Clusters = append(chain.Clusters, plan.WeightedCluster{Cluster: name, Weight: weight})
		}
		p := start(t, h.Proxy(), netip.MustParseAddrPort("10.0.0.1:1"), clusters, endpoints, chain, nil, nil, nil)
		got := map[string]int{}
		const n = 2000
		for range n {
			c := dial(t, h.Proxy(), p.listen)
			b, _ := io.ReadAll(c)
			got[string(b)]++
			c.Close()
			<-p.served
		}
		// Five standard deviations of a fair throw are 4.5 %.
		if share := float64(got["a"]) / n; share < 0.755 || share > 0.845 || got["a"]+got["b"] != n {
			t.Errorf("%v of %d connections, want 80 %% a and 20 %% b", got, n)
		}
	})
}

// TestMetadataIsExchanged runs a client's and a server's sidecar with mutual TLS
// between them; each must know the other in its metrics.
func TestMetadataIsExchanged(t *testing.T) {
	networks(t, func(t *testing.T, network socket.Network, at, server netip.AddrPort) {
		ca := certs.New(t, "cluster.local")
		client, db := ca.Source("default", "client"), ca.Source("default", "db")
		app := serve(t, network, server, func(c net.Conn) {
			io.WriteString(c, "greeting") // speaks first
			io.Copy(c, c)
		})
		inbound := plainChain()
		inbound.PeerExchange = true
		dst := start(t, network, at, cluster(nil), endpointsOf(app), inbound, db, func(c *Config) {
			c.Direction = plan.Inbound
			c.Own = telemetry.Workload{Name: "db-v1", Namespace: "default"}
			c.OwnMetadata = (&mtls.Metadata{WorkloadName: "db-v1", Namespace: "default", ClusterID: "Kubernetes", Labels: map[string]string{"app": "db"}}).Encode()
		}, mtls.ServerConfig(db, &plan.ServerTLS{Certificate: "default", Roots: "ROOTCA", RequireCert: true, ALPN: []string{"istio-peer-exchange", "istio"}}))
		if at.Port() != 0 {
			at = netip.AddrPortFrom(at.Addr(), 9)
		}
		endpoints := endpointsOf(dst.listen)
		endpoints["db"].Localities[0].Endpoints[0].MTLS = true
		src := start(t, network, at, cluster(func(c *plan.Cluster) {
			c.TLS = &plan.ClientTLS{Auto: true, Certificate: "default", Roots: "ROOTCA", SNI: "outbound_.5432_._.db", ALPN: []string{"istio-peer-exchange", "istio"},
				SubjectAltNames: []string{"spiffe://cluster.local/ns/default/sa/db"}}
		}), endpoints, plainChain(), client, nil, nil)

		c := dial(t, network, src.listen)
		io.WriteString(c, "ping")
		b := make([]byte, len("greetingping"))
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "greetingping" {
			t.Errorf("got %q, %v, want the greeting and the echo", b, err)
		}
		c.(interface{ CloseWrite() error }).CloseWrite()
		if rest, err := io.ReadAll(c); err != nil || len(rest) != 0 {
			t.Errorf("after the end: %q, %v", rest, err)
		}
		if err := errors.Join(<-src.served, <-dst.served); err != nil {
			t.Error(err)
		}
		principals := []string{`source_principal="spiffe://cluster.local/ns/default/sa/client"`, `destination_principal="spiffe://cluster.local/ns/default/sa/db"`}
		src.counts("istio_tcp_received_bytes_total", 4, append(principals, `reporter="source"`, `connection_security_policy="mutual_tls"`,
			`source_workload="own"`, `destination_workload="db-v1"`, `destination_app="db"`, `destination_cluster="Kubernetes"`)...)
		dst.counts("istio_tcp_sent_bytes_total", 12, append(principals, `reporter="destination"`, `connection_security_policy="mutual_tls"`,
			`source_workload="own"`, `destination_workload="db-v1"`)...)
		for _, p := range []*proxied{src, dst} {
			p.counts("istio_tcp_connections_opened_total", 1)
			p.counts("istio_tcp_connections_closed_total", 1)
		}
	})
}

func TestBadChainIsRefused(t *testing.T) {
	set := upstream.NewSet(upstream.Config{Network: socket.System{}})
	for name, cfg := range map[string]Config{
		"no chain":    {Clusters: set},
		"no clusters": {Chain: plainChain()},
		"no cluster":  {Chain: &plan.TCPChain{}, Clusters: set},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: New gave no error", name)
		}
	}
}

// replayed is a connection with bytes that were read before.
type replayed struct {
	net.Conn
	first []byte
}

func (r *replayed) Detach() (net.Conn, []byte) { return r.Conn, r.first }

func TestBytesThatWereLookedAtComeFirst(t *testing.T) {
	networks(t, func(t *testing.T, network socket.Network, at, server netip.AddrPort) {
		server = serve(t, network, server, func(c net.Conn) { io.Copy(c, c) })
		p := start(t, network, at, cluster(nil), endpointsOf(server), plainChain(), nil, nil, nil)
		var second netip.AddrPort
		if at.Port() != 0 {
			second = netip.AddrPortFrom(at.Addr(), 9)
		} else {
			second = at
		}
		addr := serve(t, network, second, func(c net.Conn) {
			b := make([]byte, 3)
			io.ReadFull(c, b)
			if err := p.proxy.Serve(context.Background(), &replayed{c, b}, &exchange.Conn{}); err != nil {
				t.Error(err)
			}
		})
		c := dial(t, network, addr)
		io.WriteString(c, "abcdef")
		c.(interface{ CloseWrite() error }).CloseWrite()
		if b, err := io.ReadAll(c); err != nil || string(b) != "abcdef" {
			t.Errorf("got %q, %v, want abcdef", b, err)
		}
	})
}

func TestIdleTimeoutReachesBytesInTheKernel(t *testing.T) {
	at := netip.MustParseAddrPort("127.0.0.1:0")
	server := serve(t, socket.System{}, at, func(c net.Conn) { io.Copy(c, c) })
	chain := plainChain()
	chain.IdleTimeout = 50 * time.Millisecond
	p := start(t, socket.System{}, at, cluster(nil), endpointsOf(server), chain, nil, nil, nil)
	c := dial(t, socket.System{}, p.listen)
	io.WriteString(c, "x")
	if b, err := io.ReadAll(c); err != nil || string(b) != "x" {
		t.Errorf("got %q, %v, want the echo and an orderly end", b, err)
	}
	if err := <-p.served; !errors.Is(err, errIdle) {
		t.Errorf("Serve = %v, want the idle timeout", err)
	}
}

func TestServerIsToldWhoseConnectionItIs(t *testing.T) {
	for version, secure := range map[uint8]bool{1: false, 2: true} {
		t.Run(fmt.Sprintf("version %d", version), func(t *testing.T) {
			networks(t, func(t *testing.T, network socket.Network, at, server netip.AddrPort) {
				ca := certs.New(t, "cluster.local")
				told := make(chan proxyproto.Header, 1)
				server = serve(t, network, server, func(c net.Conn) {
					var b []byte
					for {
						b = append(b, 0)
						if _, err := io.ReadFull(c, b[len(b)-1:]); err != nil {
							t.Errorf("after %q: %v", b, err)
							return
						}
						if h, n, _, err := proxyproto.Parse(b); err != nil {
							t.Error(err)
							return
						} else if n > 0 {
							told <- h
							break
						}
					}
					if secure { // the header comes first, in plain text
						c = tls.Server(c, mtls.ServerConfig(ca.Source("default", "db"), &plan.ServerTLS{Certificate: "default"}))
					}
					io.WriteString(c, "ok")
				})
				p := start(t, network, at, cluster(func(c *plan.Cluster) {
					c.ProxyProtocol = version
					if secure {
						c.TLS = &plan.ClientTLS{Certificate: "default", Roots: "ROOTCA"}
					}
				}), endpointsOf(server), plainChain(), ca.Source("default", "client"), nil, nil)
				c := dial(t, network, p.listen)
				if b, err := io.ReadAll(c); err != nil && !secure || string(b) != "ok" {
					t.Errorf("got %q, %v, want ok", b, err)
				}
				want := proxyproto.Header{Source: c.LocalAddr().(*net.TCPAddr).AddrPort(), Destination: c.RemoteAddr().(*net.TCPAddr).AddrPort()}
				if got := <-told; got != want {
					t.Errorf("the server is told %v, want %v", got, want)
				}
			})
		})
	}
}
