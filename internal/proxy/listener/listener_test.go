package listener

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/heddle-mesh/heddle/internal/meshtest/certs"
	"github.com/heddle-mesh/heddle/internal/meshtest/simnet"
	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/decode"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/mtls"
	"github.com/heddle-mesh/heddle/internal/proxy/route"
	"github.com/heddle-mesh/heddle/internal/proxy/snapshot"
	"github.com/heddle-mesh/heddle/internal/redirect"
	"github.com/heddle-mesh/heddle/internal/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo says who it is and what it was told, and then echoes lines until one says
// "end", the client ends, or a drain is on and a line was answered.
type echo struct{ name string }

func (e echo) Serve(ctx context.Context, c net.Conn, info *exchange.Conn) error {
	defer c.Close()
	fmt.Fprintf(c, "%s to=%v sni=%s alpn=%s mtls=%v peer=%s\n", e.name, info.Local, info.SNI, info.ALPN, info.MTLS, info.PeerID)
	b := make([]byte, 64<<10)
	for {
		n, err := c.Read(b)
		if err != nil {
			return err
		}
		if string(b[:n]) == "panic" {
			panic("as asked for")
		}
		if _, err := c.Write(b[:n]); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// proxy is a manager on a simulated host, fed with listeners.
type proxy struct {
	*Manager
	t       *testing.T
	net     *simnet.Net
	pod     *simnet.Host
	client  *simnet.Host
	ca      *certs.CA
	id      *certs.Source
	metrics *telemetry.Registry
	live    *snapshot.Live
	deps    snapshot.Deps
	stop    func()
}

func run(t *testing.T, edit func(*Config), listeners ...*plan.Listener) *proxy {
	t.Helper()
	n := simnet.New(simnet.Config{})
	p := &proxy{t: t, net: n, pod: n.Host("pod", "10.0.0.1"), client: n.Host("client", "10.0.0.9"), live: &snapshot.Live{}, metrics: telemetry.NewRegistry()}
	p.ca = certs.New(t, "cluster.local")
	p.id = p.ca.Source("default", "pod")
	ctx, cancel := context.WithCancel(t.Context())
	p.deps = snapshot.Deps{
		Live: p.live,
		HTTP: func(h *plan.HTTPChain, _ plan.Direction, _ func() *route.Table) (snapshot.Handler, error) {
			return echo{h.StatPrefix}, nil
		},
		TCP: func(h *plan.TCPChain, _ plan.Direction) (snapshot.Handler, error) { return echo{h.StatPrefix}, nil },
		TLS: func(s *plan.ServerTLS) *tls.Config { return mtls.ServerConfig(p.id, s) }, Context: ctx,
	}
	cfg := Config{Network: p.pod.Proxy(), Live: p.live, Identity: p.id, Metrics: p.metrics, Log: slog.New(slog.DiscardHandler)}
	if edit != nil {
		edit(&cfg)
	}
	var err error
	if p.Manager, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	p.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(p.stop)
	p.update(listeners...)
	return p
}

// update publishes listeners and waits until their sockets are open.
func (p *proxy) update(listeners ...*plan.Listener) {
	p.t.Helper()
	state := &decode.State{Listeners: map[string]*plan.Listener{}}
	for _, l := range listeners {
		state.Listeners[l.Name] = l
	}
	s, err := snapshot.Build(state, p.live.Current(), p.deps)
	if err != nil {
		p.t.Fatal(err)
	}
	p.live.Publish(s)
	p.Update(s)
	synctest.Wait()
}

func (p *proxy) dial(from *simnet.Host, addr string) net.Conn {
	p.t.Helper()
	c, err := from.App().Dial(p.t.Context(), netip.Addr{}, netip.MustParseAddrPort(addr))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	return c
}

// line reads up to the end of a line.
func line(t *testing.T, c net.Conn) string {
	t.Helper()
	var out []byte
	b := make([]byte, 1)
	for {
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatalf("after %q: %v", out, err)
		}
		if b[0] == '\n' {
			return string(out)
		}
		out = append(out, b[0])
	}
}

func chainOf(name string, m plan.ChainMatch) *plan.FilterChain {
	return &plan.FilterChain{Name: name, Match: m, TCP: &plan.TCPChain{StatPrefix: name}}
}

var sidecarTLS = &plan.ServerTLS{Certificate: "default", Roots: "ROOTCA", RequireCert: true, ALPN: []string{"istio-http/1.1", "istio-peer-exchange", "istio"}}

// inbound is virtualInbound in permissive mode.
func inbound(timeout time.Duration) *plan.Listener {
	secure := chainOf("mtls", plan.ChainMatch{Transport: plan.TLSTransport, ALPN: []string{"istio-http/1.1", "istio"}})
	secure.TLS = sidecarTLS
	return &plan.Listener{
		Name: "virtualInbound", Address: netip.MustParseAddrPort("0.0.0.0:15006"), Direction: plan.Inbound, Bound: true, UseOriginalDst: true,
		Inspect: plan.Inspect{TLS: true, HTTP: true, Timeout: timeout, SkipPorts: []uint16{3306}},
		Chains: []*plan.FilterChain{
			secure,
			chainOf("http", plan.ChainMatch{Transport: plan.RawBuffer, ALPN: []string{"http/1.0", "http/1.1", "h2c"}}),
			chainOf("tls", plan.ChainMatch{Transport: plan.TLSTransport}),
			chainOf("tcp", plan.ChainMatch{Transport: plan.RawBuffer}),
		},
	}
}

// outbound is virtualOutbound with the listeners it hands connections to.
func outbound() []*plan.Listener {
	virtual := &plan.Listener{Name: "virtualOutbound", Address: netip.MustParseAddrPort("0.0.0.0:15001"), Bound: true, UseOriginalDst: true,
		Default: chainOf("passthrough", plan.ChainMatch{})}
	db := &plan.Listener{Name: "10.96.0.7_5432", Address: netip.MustParseAddrPort("10.96.0.7:5432"), Chains: []*plan.FilterChain{chainOf("db", plan.ChainMatch{})},
		Inspect: plan.Inspect{TLS: true, HTTP: true}}
	auto := &plan.Listener{Name: "0.0.0.0_9080", Address: netip.MustParseAddrPort("0.0.0.0:9080"), Inspect: plan.Inspect{TLS: true, HTTP: true, Timeout: 5 * time.Second},
		Chains: []*plan.FilterChain{chainOf("http", plan.ChainMatch{Transport: plan.RawBuffer, ALPN: []string{"http/1.1", "h2c"}})}, Default: chainOf("other", plan.ChainMatch{})}
	return []*plan.Listener{virtual, db, auto}
}

// captured redirects the pod's traffic as Istio does.
func captured(p *proxy) {
	cfg, err := redirect.FromAnnotations(nil)
	if err != nil {
		p.t.Fatal(err)
	}
	p.pod.Redirect(redirect.Rules(cfg))
}

func TestCapturedConnectionGetsTheBestListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := run(t, nil, outbound()...)
		captured(p)
		for _, test := range []struct{ dst, send, want string }{
			{"10.96.0.7:5432", "", "db to=10.96.0.7:5432"},
			{"10.96.0.8:5432", "", "passthrough to=10.96.0.8:5432"},
			{"10.96.0.8:9080", "GET / HTTP/1.1\r\n", "http to=10.96.0.8:9080"},
			{"10.96.0.8:9080", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http to=10.96.0.8:9080"},
			{"10.96.0.8:9080", "*1\r\n$4\r\nPING\r\n", "other to=10.96.0.8:9080"},
		} {
			began := time.Now()
			c := p.dial(p.pod, test.dst)
			io.WriteString(c, test.send)
			if got := line(t, c); !strings.HasPrefix(got, test.want+" ") {
				t.Errorf("to %s, %q: %q, want %q", test.dst, test.send, got, test.want)
			}
			if test.send != "" {
				b := make([]byte, len(test.send))
				if _, err := io.ReadFull(c, b); err != nil || string(b) != test.send {
					t.Errorf("the bytes looked at arrive as %q, %v, want %q", b, err, test.send)
				}
			}
			if took := time.Since(began); took != 0 {
				t.Errorf("to %s, %q: decided after %v, want at once", test.dst, test.send, took)
			}
			c.Close()
		}
	})
}

func TestServerThatSpeaksFirstIsNotHeldUp(t *testing.T) {
	for _, test := range []struct {
		name    string
		timeout time.Duration
		from    string
		dst     string
		want    string
		after   time.Duration
	}{
		{"a port that is known", 0, "client", "10.0.0.1:3306", "tcp", 0},
		{"a listener with one chain", 0, "pod", "10.96.0.7:5432", "db", 0},
		{"detection, client silent", 0, "pod", "10.96.0.8:9080", "other", 5 * time.Second},
		{"inbound detection, client silent", 3 * time.Second, "client", "10.0.0.1:7", "tcp", 3 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := run(t, nil, append(outbound(), inbound(test.timeout))...)
				captured(p)
				from := p.client
				if test.from == "pod" {
					from = p.pod
				}
				began := time.Now()
				c := p.dial(from, test.dst)
				if got := line(t, c); !strings.HasPrefix(got, test.want+" ") {
					t.Errorf("%q, want chain %s", got, test.want)
				}
				if took := time.Since(began); took != test.after {
					t.Errorf("greeted after %v, want %v", took, test.after)
				}
				time.Sleep(time.Hour) // the deadline of the look must be gone
				io.WriteString(c, "late")
				if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
					t.Errorf("an hour later: %v", err)
				}
			})
		})
	}
}

func TestWithoutTimeoutDetectionWaitsForTheClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := run(t, nil, inbound(0))
		captured(p)
		c := p.dial(p.client, "10.0.0.1:7")
		time.Sleep(24 * time.Hour)
		io.WriteString(c, "GET / HT")
		time.Sleep(speakTimeout - time.Second)
		io.WriteString(c, "TP/1.1\r\n")
		if got := line(t, c); !strings.HasPrefix(got, "http ") {
			t.Errorf("%q, want chain http", got)
		}
	})
}

func TestSilentClientDoesNotKeepTheProxyFromEnding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := run(t, nil, inbound(0))
		captured(p)
		c := p.dial(p.client, "10.0.0.1:7")
		synctest.Wait()
		if p.Active() != 1 {
			t.Fatalf("%d connections, want 1", p.Active())
		}
		p.stop()
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("the connection outlived the proxy")
		}
	})
}

func TestMutualTLSIsTerminated(t *testing.T) {
	appHello := clientHello(t, &tls.Config{ServerName: "app.example"})
	synctest.Test(t, func(t *testing.T) {
		p := run(t, nil, inbound(0))
		captured(p)
		caller := p.ca.Source("default", "caller")
		for _, size := range []int{maxHello, 100, 1} { // of the pieces in which the client's bytes arrive
			c := pieces{p.dial(p.client, "10.0.0.1:9080"), size}
			tc := tls.Client(c, mtls.ClientConfig(caller, &plan.ClientTLS{Certificate: "default", Roots: "ROOTCA",
				SNI: "outbound_.9080_._.reviews", ALPN: []string{"istio-http/1.1", "istio"}}))
			want := "mtls to=10.0.0.1:9080 sni=outbound_.9080_._.reviews alpn=istio-http/1.1 mtls=true peer=spiffe://cluster.local/ns/default/sa/caller"
			if got := line(t, tc); got != want {
				t.Errorf("in pieces of %d: %q, want %q", size, got, want)
			}
			tc.Close()
		}
		// TLS that is not a sidecar's is the workload's own business.
		c := p.dial(p.client, "10.0.0.1:9080")
		c.Write(appHello)
		if got := line(t, c); !strings.HasPrefix(got, "tls to=10.0.0.1:9080 sni=app.example ") {
			t.Errorf("%q, want chain tls", got)
		}
		c.Close()
	})
}

// pieces writes a few bytes at a time, each as a segment of its own.
type pieces struct {
	net.Conn
	size int
}

func (p pieces) Write(b []byte) (n int, err error) {
	for len(b) > 0 && err == nil {
		var m int
		m, err = p.Conn.Write(b[:min(p.size, len(b))])
		b, n = b[m:], n+m
		time.Sleep(time.Millisecond)
	}
	return n, err
}

func TestWithoutCertificateMutualTLSFailsAndPlainTextGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := run(t, nil, inbound(0))
		captured(p)
		p.id.Set(nil)
		tc := tls.Client(p.dial(p.client, "10.0.0.1:9080"), mtls.ClientConfig(p.ca.Source("default", "caller"), &plan.ClientTLS{Certificate: "default", Roots: "ROOTCA", ALPN: []string{"istio"}}))
		if err := tc.Handshake(); err == nil {
			t.Error("the handshake succeeded without a certificate")
		}
		c := p.dial(p.client, "10.0.0.1:9080")
		io.WriteString(c, "GET / HTTP/1.1\r\n")
		if got := line(t, c); !strings.HasPrefix(got, "http ") {
			t.Errorf("%q, want chain http", got)
		}
	})
}

func TestHandshakeThatDoesNotEndIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := inbound(0)
		l.Inspect = plan.Inspect{}
		l.Chains = l.Chains[:1]
		l.Chains[0].Match = plan.ChainMatch{}
		p := run(t, nil, l)
		captured(p)
		began := time.Now()
		c := p.dial(p.client, "10.0.0.1:9080")
		io.WriteString(c, "\x16\x03\x01\x02\x00\x01") // the beginning of a ClientHello
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("got bytes, want the end")
		}
		if took := time.Since(began); took != DefaultHandshakeTimeout {
			t.Errorf("given up after %v, want %v", took, DefaultHandshakeTimeout)
		}
		if got := p.handshakeErrors.Value(); got != 1 {
			t.Errorf("%d failed handshakes counted, want 1", got)
		}
	})
}

func TestConnectionToTheProxyItselfIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := run(t, nil, append(outbound(), inbound(0))...)
		for _, test := range []struct {
			name string
			from *simnet.Host
			dst  string
		}{
			{"not captured, outbound port", p.pod, "127.0.0.1:15001"},
			{"not captured, inbound port", p.client, "10.0.0.1:15006"},
			{"not captured, by own address", p.pod, "10.0.0.1:15001"},
		} {
			c := p.dial(test.from, test.dst)
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s: %v, want a reset", test.name, err)
			}
		}
		captured(p)
		c := p.dial(p.client, "10.0.0.1:15006")
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("captured: %v, want a reset", err)
		}
		if p.refused.Value() != 4 {
			t.Errorf("%d refused, want 4", p.refused.Value())
		}
	})
}

func TestConnectionsAboveTheLimitAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := run(t, func(c *Config) { c.MaxConnections = 2 }, outbound()...)
		captured(p)
		a, b := p.dial(p.pod, "10.96.0.7:5432"), p.dial(p.pod, "10.96.0.7:5432")
		line(t, a)
		line(t, b)
		if _, err := p.dial(p.pod, "10.96.0.7:5432").Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the third connection sees %v, want a reset", err)
		}
		a.Close()
		synctest.Wait()
		line(t, p.dial(p.pod, "10.96.0.7:5432"))
	})
}

func TestRemovedListenerDrainsItsConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gateway := &plan.Listener{Name: "0.0.0.0_8080", Address: netip.MustParseAddrPort("0.0.0.0:8080"), Direction: plan.Edge, Bound: true,
			Chains: []*plan.FilterChain{chainOf("old", plan.ChainMatch{})}}
		p := run(t, nil, gateway)
		busy, quiet := p.dial(p.client, "10.0.0.1:8080"), p.dial(p.client, "10.0.0.1:8080")
		line(t, busy)
		line(t, quiet)
		began := time.Now()

		changed := *gateway
		changed.Chains = []*plan.FilterChain{chainOf("new", plan.ChainMatch{})}
		p.update(&changed)
		if got := line(t, p.dial(p.client, "10.0.0.1:8080")); !strings.HasPrefix(got, "new ") {
			t.Errorf("a new connection got %q, want the new chain", got)
		}
		io.WriteString(busy, "last")
		if b, err := io.ReadAll(busy); err != nil || string(b) != "last" {
			t.Errorf("a busy connection of the old chain: %q, %v, want its answer and the end", b, err)
		}
		if _, err := quiet.Read(make([]byte, 1)); err == nil || time.Since(began) != DefaultDrainTime {
			t.Errorf("a quiet connection of the old chain: %v after %v, want its end after %v", err, time.Since(began), DefaultDrainTime)
		}

		p.update()
		if _, err := p.client.App().Dial(t.Context(), netip.Addr{}, netip.MustParseAddrPort("10.0.0.1:8080")); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("the socket of a removed listener: %v, want connection refused", err)
		}
		if p.Active() != 1 {
			t.Errorf("%d connections, want the new chain's, which drains", p.Active())
		}
	})
}

func TestUnchangedListenerKeepsItsConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := inbound(0)
		p := run(t, nil, l)
		captured(p)
		c := p.dial(p.client, "10.0.0.1:3306")
		line(t, c)
		for range 3 {
			same := *inbound(0)
			p.update(&same)
			time.Sleep(time.Hour)
		}
		io.WriteString(c, "still")
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			t.Errorf("after updates that changed nothing: %v", err)
		}
		io.WriteString(c, "here")
		if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
			t.Errorf("the chain is being drained: %v", err)
		}
	})
}

func TestDrainTakesNewConnectionsAndEndsThemSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := run(t, nil, append(outbound(), inbound(0))...)
		captured(p)
		p.Drain(plan.Inbound)
		c := p.dial(p.client, "10.0.0.1:3306")
		line(t, c)
		io.WriteString(c, "once")
		if b, err := io.ReadAll(c); err != nil || string(b) != "once" {
			t.Errorf("%q, %v, want an answer and the end", b, err)
		}
		out := p.dial(p.pod, "10.96.0.7:5432")
		line(t, out)
		for range 2 {
			io.WriteString(out, "x")
			if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
				t.Errorf("outbound connections end too: %v", err)
			}
		}
		// What comes with later updates drains as well.
		l := inbound(0)
		l.Chains[3].TCP.StatPrefix = "changed"
		p.update(append(outbound(), l)...)
		c = p.dial(p.client, "10.0.0.1:3306")
		if got := line(t, c); !strings.HasPrefix(got, "changed ") {
			t.Errorf("%q, want the new chain", got)
		}
		io.WriteString(c, "once")
		if b, err := io.ReadAll(c); err != nil || string(b) != "once" {
			t.Errorf("%q, %v, want an answer and the end", b, err)
		}
	})
}

func TestFaultInOneConnectionLeavesTheOthersAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := run(t, nil, outbound()...)
		captured(p)
		other, bad := p.dial(p.pod, "10.96.0.7:5432"), p.dial(p.pod, "10.96.0.7:5432")
		line(t, other)
		line(t, bad)
		io.WriteString(bad, "panic")
		if _, err := bad.Read(make([]byte, 1)); err == nil {
			t.Error("the faulty connection goes on")
		}
		io.WriteString(other, "x")
		if _, err := io.ReadFull(other, make([]byte, 1)); err != nil {
			t.Errorf("the other connection: %v", err)
		}
		bad.Close()
		synctest.Wait() // a client sees the end of its connection before the fault is counted
		if p.panics.Value() != 1 {
			t.Errorf("%d faults counted, want 1", p.panics.Value())
		}
		if p.Active() != 1 {
			t.Errorf("%d connections, want 1", p.Active())
		}
	})
}

func TestAddressThatIsTakenIsOpenedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := inbound(0)
		p := run(t, nil)
		taken, err := p.pod.Proxy().Listen(t.Context(), l.Address)
		if err != nil {
			t.Fatal(err)
		}
		p.update(l)
		if p.Open() {
			t.Error("Open() = true although the address is taken")
		}
		taken.Close()
		time.Sleep(maxRetry)
		if !p.Open() || len(p.Sockets()) != 1 || p.Sockets()[0].Port() != l.Address.Port() {
			t.Errorf("Open() = %v, Sockets() = %v after the address became free", p.Open(), p.Sockets())
		}
	})
}

func TestNothingMatchesClosesTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := inbound(0)
		l.Chains = l.Chains[:1]
		p := run(t, nil, l)
		captured(p)
		c := p.dial(p.client, "10.0.0.1:9080")
		io.WriteString(c, "GET / HTTP/1.1\r\n")
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("plain text to a port that demands mutual TLS: %v, want a reset", err)
		}
		if p.noChain.Value() != 1 {
			t.Errorf("%d counted, want 1", p.noChain.Value())
		}
	})
}
