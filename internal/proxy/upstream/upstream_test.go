package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/meshtest/certs"
	"github.com/heddle-mesh/heddle/internal/meshtest/simnet"
	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/mtls"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func addr(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// bed is a proxy's set and servers that keep their connections, on a network in
// memory with virtual time.
type bed struct {
	t     *testing.T
	net   *simnet.Net
	proxy *simnet.Host
	set   *Set
	hosts []*simnet.Host
	wg    sync.WaitGroup

	mu       sync.Mutex
	accepted map[netip.AddrPort][]net.Conn
}

func inBubble(t *testing.T, cfg Config, f func(b *bed)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bed{t: t, net: simnet.New(simnet.Config{}), accepted: map[netip.AddrPort][]net.Conn{}}
		b.proxy = b.net.Host("proxy", "10.0.0.1", "10.0.0.6")
		cfg.Network, cfg.Log = b.proxy.Proxy(), slog.New(slog.DiscardHandler)
		b.set = NewSet(cfg)
		defer func() {
			b.set.Close()
			for _, h := range b.hosts {
				h.Kill()
			}
			b.proxy.Kill()
			b.wg.Wait()
		}()
		f(b)
	})
}

// server accepts and keeps connections. With tlsConfig it finishes handshakes.
func (b *bed) server(a string, tlsConfig *tls.Config) netip.AddrPort {
	b.t.Helper()
	ap := addr(a)
	h := b.net.Host(a, ap.Addr().String())
	b.hosts = append(b.hosts, h)
	l, err := h.App().Listen(b.t.Context(), ap)
	if err != nil {
		b.t.Fatal(err)
	}
	b.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if tlsConfig != nil {
				tc := tls.Server(c, tlsConfig)
				c = tc
				b.wg.Go(func() { tc.Handshake() })
			}
			b.mu.Lock()
			b.accepted[ap] = append(b.accepted[ap], c)
			b.mu.Unlock()
		}
	})
	return ap
}

func (b *bed) conns(a netip.AddrPort) []net.Conn {
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.accepted[a]
}

func assignment(endpoints ...netip.AddrPort) *plan.LoadAssignment {
	la := &plan.LoadAssignment{Localities: []plan.LocalityEndpoints{{}}}
	for _, a := range endpoints {
		la.Localities[0].Endpoints = append(la.Localities[0].Endpoints, plan.Endpoint{Address: a})
	}
	return la
}

// only makes c the only cluster.
func (b *bed) only(c *plan.Cluster, la *plan.LoadAssignment) *Cluster {
	if c.Name == "" {
		c.Name = "c"
	}
	b.set.Update(map[string]*plan.Cluster{c.Name: c}, map[string]*plan.LoadAssignment{c.EDSName(): la})
	return b.set.Cluster(c.Name)
}

func (b *bed) acquire(c *Cluster, w Want) *Conn {
	b.t.Helper()
	conn, err := c.Acquire(b.t.Context(), w)
	if err != nil {
		b.t.Fatal(err)
	}
	return conn
}

func TestTheConnectionUsedLastIsReused(t *testing.T) {
	inBubble(t, Config{}, func(b *bed) {
		a := b.server("10.0.1.1:80", nil)
		c := b.only(&plan.Cluster{}, assignment(a))
		first, second := b.acquire(c, Want{}), b.acquire(c, Want{})
		if first.Reused || second.Reused || first == second {
			t.Fatal("new connections were reused")
		}
		c.Release(first, true)
		c.Release(second, true)
		if got := b.acquire(c, Want{}); got != second || !got.Reused {
			t.Errorf("got the first one, reused %v", got.Reused)
		}
		fresh := b.acquire(c, Want{Fresh: true})
		if fresh == first || fresh.Reused {
			t.Error("asked for a fresh connection, got a pooled one")
		}
		if s := c.Stats.Load(); s.CxActive != 3 || s.CxTotal != 3 || s.RqTotal != 4 || s.RqActive != 2 {
			t.Errorf("%+v", s)
		}
		c.Release(second, false)
		fresh.Close()
		c.Release(fresh, true) // closing ended its use: releasing changes nothing
		if s := c.Stats.Load(); s.CxActive != 1 || s.RqActive != 0 {
			t.Errorf("after closing: %+v", s)
		}
	})
}

func TestIdleConnectionsAreClosedInTime(t *testing.T) {
	inBubble(t, Config{}, func(b *bed) {
		a := b.server("10.0.1.1:80", nil)
		c := b.only(&plan.Cluster{IdleTimeout: 10 * time.Second}, assignment(a))
		x, y := b.acquire(c, Want{}), b.acquire(c, Want{})
		c.Release(x, true)
		time.Sleep(5 * time.Second)
		c.Release(y, true)
		time.Sleep(5*time.Second + time.Millisecond)
		if n := c.status().Endpoints[0].Idle; n != 1 {
			t.Errorf("after 10 s %d are idle", n)
		}
		time.Sleep(5 * time.Second)
		if n := c.Stats.CxActive.Load(); n != 0 {
			t.Errorf("after 15 s %d are open", n)
		}
		for _, s := range b.conns(a) {
			if _, err := s.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("the server sees %v", err)
			}
		}
	})
}

func TestAnEndpointThatLeavesDrains(t *testing.T) {
	inBubble(t, Config{}, func(b *bed) {
		gone, stays := b.server("10.0.1.1:80", nil), b.server("10.0.1.2:80", nil)
		p := &plan.Cluster{Balancing: plan.RoundRobin}
		c := b.only(p, assignment(gone, stays))
		var used, idle *Conn
		for range 4 {
			switch conn := b.acquire(c, Want{Fresh: true}); {
			case conn.Remote != gone:
				conn.Close()
			case used == nil:
				used = conn
			default:
				idle = conn
			}
		}
		c.Release(idle, true)
		kept := c.state.Load().endpoints[1]
		b.only(p, assignment(stays))
		if e := c.state.Load().endpoints; len(e) != 1 || e[0] != kept {
			t.Error("the endpoint that stays lost its state")
		}
		if n := c.Stats.CxActive.Load(); n != 1 {
			t.Errorf("%d connections are open, only the one in use should be", n)
		}
		if _, err := used.Write([]byte("x")); err != nil {
			t.Errorf("the connection in use: %v", err)
		}
		for range 10 {
			if conn := b.acquire(c, Want{}); conn.Remote != stays {
				t.Fatal("the endpoint that left is chosen")
			} else {
				c.Release(conn, true)
			}
		}
		c.Release(used, true)
		if n := c.Stats.CxActive.Load(); n != 1 {
			t.Errorf("%d connections are open after the last use", n)
		}
	})
}

func TestUnhealthyAndDrainingEndpointsAreNotChosen(t *testing.T) {
	inBubble(t, Config{}, func(b *bed) {
		good := b.server("10.0.1.1:80", nil)
		la := assignment(good, addr("10.0.1.2:80"), addr("10.0.1.3:80"))
		la.Localities[0].Endpoints[1].Health = plan.Unhealthy
		la.Localities[0].Endpoints[2].Health = plan.Draining
		c := b.only(&plan.Cluster{}, la)
		e := c.state.Load().endpoints[0]
		for range 20 {
			c.Release(b.acquire(c, Want{}), true)
		}
		// Health and weight change without touching what the endpoint holds.
		la = assignment(good)
		la.Localities[0].Endpoints[0].Health = plan.Unhealthy
		b.only(c.Plan(), la)
		if _, err := c.Acquire(b.t.Context(), Want{}); !errors.Is(err, ErrNoHealthy) {
			t.Errorf("no host is healthy, and the error is %v", err)
		}
		if c.state.Load().endpoints[0] != e || e.Idle() != 1 {
			t.Error("the endpoint lost its state with its health")
		}
	})
}

func TestTriedEndpointsAreAvoided(t *testing.T) {
	inBubble(t, Config{}, func(b *bed) {
		var list []netip.AddrPort
		for i := range 5 {
			list = append(list, b.server(fmt.Sprintf("10.0.1.%d:80", i+1), nil))
		}
		c := b.only(&plan.Cluster{Balancing: plan.Random}, assignment(list...))
		all := c.state.Load().endpoints
		for range 50 {
			conn := b.acquire(c, Want{Tried: all[:4]})
			if conn.Endpoint != all[4] {
				t.Fatal("an endpoint that was tried is chosen again")
			}
			c.Release(conn, true)
		}
		c.Release(b.acquire(c, Want{Tried: all}), true) // all were tried: any will do
	})
}

func TestFailuresToConnect(t *testing.T) {
	inBubble(t, Config{}, func(b *bed) {
		b.hosts = append(b.hosts, b.net.Host("refuses", "10.0.1.1"))
		dark := b.net.Host("dark", "10.0.1.2")
		dark.Crash()
		for _, c := range []struct {
			a       string
			after   time.Duration
			reason  string
			failure string
		}{
			{"10.0.1.1:80", 0, "remote connection failure", "delayed connect error: Connection refused"},
			{"10.0.1.2:80", 3 * time.Second, "connection timeout", ""},
			{"10.0.1.3:80", 0, "remote connection failure", "delayed connect error: No route to host"},
		} {
			cl := b.only(&plan.Cluster{ConnectTimeout: 3 * time.Second}, assignment(addr(c.a)))
			begin := time.Now()
			_, err := cl.Acquire(b.t.Context(), Want{})
			ce, ok := errors.AsType[*ConnectError](err)
			if !ok {
				t.Fatalf("%s: %v", c.a, err)
			}
			if ce.Reason() != c.reason || ce.TransportFailure() != c.failure || time.Since(begin) != c.after || ce.Endpoint.Address != addr(c.a) {
				t.Errorf("%s: %q %q after %v", c.a, ce.Reason(), ce.TransportFailure(), time.Since(begin))
			}
			if s := ce.Endpoint.Stats.Load(); s.CxConnectFail != 1 || s.RqActive != 0 || s.CxActive != 0 {
				t.Errorf("%s: %+v", c.a, s)
			}
		}
		cl := b.only(&plan.Cluster{}, assignment(addr("10.0.1.2:80")))
		begin := time.Now()
		if _, err := cl.Acquire(b.t.Context(), Want{Deadline: begin.Add(time.Second)}); !errors.Is(err, ErrDeadline) || time.Since(begin) != time.Second {
			t.Errorf("deadline: %v after %v", err, time.Since(begin))
		}
		ctx, cancel := context.WithTimeout(b.t.Context(), time.Second)
		defer cancel()
		if _, err := cl.Acquire(ctx, Want{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("context: %v", err)
		}
	})
}

func TestConnectionLimitQueues(t *testing.T) {
	inBubble(t, Config{}, func(b *bed) {
		x, y := b.server("10.0.1.1:80", nil), b.server("10.0.1.2:80", nil)
		c := b.only(&plan.Cluster{MaxConnections: 2, MaxPending: 2, Balancing: plan.RoundRobin}, assignment(x, y))
		first, second := b.acquire(c, Want{}), b.acquire(c, Want{})
		type result struct {
			conn  *Conn
			err   error
			after time.Duration
		}
		begin := time.Now()
		results := make(chan result, 3)
		wait := func(w Want) {
			conn, err := c.Acquire(b.t.Context(), w)
			results <- result{conn, err, time.Since(begin)}
		}
		go wait(Want{})
		synctest.Wait()
		go wait(Want{Deadline: begin.Add(2 * time.Second)})
		synctest.Wait()
		if _, err := c.Acquire(b.t.Context(), Want{}); !errors.Is(err, ErrOverflow) {
			t.Errorf("a third one may wait: %v", err)
		}
		time.Sleep(time.Second)
		c.Release(first, true) // is handed on as it is
		if r := <-results; r.conn != first || r.after != time.Second {
			t.Errorf("the first in the queue: %+v", r)
		}
		if r := <-results; !errors.Is(r.err, ErrDeadline) || r.after != 2*time.Second {
			t.Errorf("the second: %+v", r)
		}
		go wait(Want{})
		synctest.Wait()
		c.Release(second, false) // closed: there is room for a new one
		r := <-results
		if r.conn == nil || r.conn.Reused {
			t.Errorf("after a close: %+v", r)
		}
		c.Release(first, true)
		c.Release(r.conn, true)
		// Idle connections to one endpoint make room for the other.
		for range 4 {
			conn := b.acquire(c, Want{Fresh: true})
			c.Release(conn, true)
		}
		if s := c.Stats.Load(); s.CxActive > 2 || s.RqActive != 0 || c.pending.Load() != 0 {
			t.Errorf("%+v, pending %d", s, c.pending.Load())
		}
	})
}

func TestALargerLimitLetsTheQueueIn(t *testing.T) {
	inBubble(t, Config{}, func(b *bed) {
		a := b.server("10.0.1.1:80", nil)
		c := b.only(&plan.Cluster{MaxConnections: 1}, assignment(a))
		first := b.acquire(c, Want{})
		got := make(chan *Conn)
		go func() {
			conn, err := c.Acquire(b.t.Context(), Want{})
			if err != nil {
				t.Error(err)
			}
			got <- conn
		}()
		synctest.Wait()
		b.only(&plan.Cluster{MaxConnections: 2}, assignment(a))
		second := <-got
		if first == second {
			t.Error("one connection for two")
		}
		first.Close()
		second.Close()
		if c.slots.used != 0 {
			t.Errorf("%d slots are in use", c.slots.used)
		}
	})
}

func TestRequestLimits(t *testing.T) {
	inBubble(t, Config{}, func(b *bed) {
		a := b.server("10.0.1.1:80", nil)
		c := b.only(&plan.Cluster{MaxRequests: 2, MaxPerConn: 2}, assignment(a))
		x, y := b.acquire(c, Want{}), b.acquire(c, Want{})
		if _, err := c.Acquire(b.t.Context(), Want{}); !errors.Is(err, ErrOverflow) {
			t.Errorf("a third request: %v", err)
		}
		y.Close()
		c.Release(x, true)
		if again := b.acquire(c, Want{}); again != x {
			t.Error("closed after one request")
		}
		c.Release(x, true)
		if n := c.Stats.CxActive.Load(); n != 0 {
			t.Errorf("open after its last request: %d", n)
		}
	})
}

// A server that was told whose connection it is must not get another client's
// request on it.
func TestConnectionOfOneClientIsNotUsedForAnother(t *testing.T) {
	inBubble(t, Config{}, func(b *bed) {
		a := b.server("10.0.1.1:80", nil)
		c := b.only(&plan.Cluster{ProxyProtocol: 1, MaxConnections: 1}, assignment(a))
		x := b.acquire(c, Want{Client: addr("192.0.2.1:1"), OriginalDst: addr("192.0.2.9:80")})
		done := make(chan *Conn)
		go func() { done <- b.acquire(c, Want{Client: addr("192.0.2.2:2"), OriginalDst: addr("192.0.2.9:80")}) }()
		synctest.Wait() // it waits for the only place
		c.Release(x, true)
		y := <-done
		if y == x || y.Reused {
			t.Error("the connection was used again")
		}
		header := make([]byte, len("PROXY TCP4 192.0.2.2 192.0.2.9 2 80\r\n"))
		if _, err := io.ReadFull(b.conns(a)[1], header); err != nil || string(header) != "PROXY TCP4 192.0.2.2 192.0.2.9 2 80\r\n" {
			t.Errorf("the server is told %q, %v", header, err)
		}
		y.Close()
	})
}

func TestOriginalDestination(t *testing.T) {
	inBubble(t, Config{}, func(b *bed) {
		x, y := b.server("10.0.1.1:80", nil), b.server("10.0.1.2:80", nil)
		c := b.only(&plan.Cluster{Discovery: plan.OriginalDst, BindAddress: netip.MustParseAddr("10.0.0.6")}, nil)
		for _, a := range []netip.AddrPort{x, y, x} {
			conn := b.acquire(c, Want{OriginalDst: a})
			if conn.Remote != a || conn.Local.Addr().String() != "10.0.0.6" {
				t.Errorf("from %v to %v", conn.Local, conn.Remote)
			}
			c.Release(conn, true)
		}
		if s := c.status(); len(s.Endpoints) != 2 || s.Counts.CxTotal != 2 {
			t.Errorf("%+v", s)
		}
		if _, err := c.Acquire(b.t.Context(), Want{}); !errors.Is(err, ErrNoHealthy) {
			t.Errorf("without destination: %v", err)
		}
		// Endpoints that nobody uses are forgotten.
		time.Sleep(2 * defaultIdleTimeout)
		if s := c.status(); len(s.Endpoints) != 0 || s.Counts.CxActive != 0 {
			t.Errorf("later: %+v", s)
		}
	})
}

func TestRemovedClustersDrain(t *testing.T) {
	inBubble(t, Config{}, func(b *bed) {
		a := b.server("10.0.1.1:80", nil)
		c := b.only(&plan.Cluster{}, assignment(a))
		used, idle := b.acquire(c, Want{}), b.acquire(c, Want{})
		c.Release(idle, true)
		b.set.Update(nil, nil)
		if b.set.Cluster("c") != nil {
			t.Error("still there")
		}
		if _, err := c.Acquire(b.t.Context(), Want{}); !errors.Is(err, ErrNoHealthy) {
			t.Errorf("a request that holds it: %v", err)
		}
		c.Release(used, true)
		if n := c.Stats.CxActive.Load(); n != 0 {
			t.Errorf("%d connections are open", n)
		}
	})
}

func TestUnchangedClustersCostNothingToUpdate(t *testing.T) {
	inBubble(t, Config{}, func(b *bed) {
		p, la := &plan.Cluster{Name: "c"}, assignment(addr("10.0.1.1:80"))
		clusters, endpoints := map[string]*plan.Cluster{"c": p}, map[string]*plan.LoadAssignment{"c": la}
		b.set.Update(clusters, endpoints)
		before := b.set.Cluster("c").state.Load()
		b.set.Update(clusters, endpoints)
		if b.set.Cluster("c").state.Load() != before {
			t.Error("the same configuration made a new state")
		}
	})
}

// resolver answers from a table.
type resolver struct {
	mu    sync.Mutex
	table map[string][]string
	calls int
}

func (r *resolver) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	var list []netip.Addr
	for _, a := range r.table[host] {
		list = append(list, netip.MustParseAddr(a))
	}
	if list == nil {
		return nil, errors.New("no such host")
	}
	return list, nil
}

func (r *resolver) set(host string, addrs ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.table[host] = addrs
}

func TestDNS(t *testing.T) {
	r := &resolver{table: map[string][]string{"two.example": {"10.0.1.1", "10.0.1.2"}}}
	inBubble(t, Config{Resolver: r}, func(b *bed) {
		ctx, cancel := context.WithCancel(b.t.Context())
		b.wg.Go(func() { b.set.Run(ctx) })
		defer cancel()
		list := func(c *Cluster) string {
			synctest.Wait()
			var s []netip.AddrPort
			for _, e := range c.state.Load().endpoints {
				s = append(s, e.Address)
			}
			return fmt.Sprint(s)
		}
		names := []plan.StaticEndpoint{{Host: "two.example", Port: 80}, {Host: "10.0.1.9", Port: 81}}
		strict := b.only(&plan.Cluster{Discovery: plan.StrictDNS, Static: names}, nil)
		if got := list(strict); got != "[10.0.1.1:80 10.0.1.2:80 10.0.1.9:81]" {
			t.Errorf("strict: %s", got)
		}
		r.set("two.example", "10.0.1.2", "10.0.1.3")
		time.Sleep(refreshInterval + time.Second)
		if got := list(strict); got != "[10.0.1.2:80 10.0.1.3:80 10.0.1.9:81]" {
			t.Errorf("after a change: %s", got)
		}
		r.set("two.example")
		time.Sleep(refreshInterval)
		if got := list(strict); got != "[10.0.1.2:80 10.0.1.3:80 10.0.1.9:81]" {
			t.Errorf("after a failure: %s", got)
		}
		r.set("two.example", "10.0.1.4")
		time.Sleep(retryInterval + time.Second) // failures are retried sooner
		if got := list(strict); got != "[10.0.1.4:80 10.0.1.9:81]" {
			t.Errorf("after the failure: %s", got)
		}
		r.set("two.example", "10.0.1.5", "10.0.1.6")
		logical := b.only(&plan.Cluster{Discovery: plan.LogicalDNS, Static: names[:1]}, nil)
		if got := list(logical); got != "[10.0.1.5:80]" {
			t.Errorf("logical: %s", got)
		}
		// A name that nobody knows fails when that is clear, not when time is up.
		unknown := b.only(&plan.Cluster{Name: "u", Discovery: plan.StrictDNS, Static: []plan.StaticEndpoint{{Host: "x"}}}, nil)
		begin := time.Now()
		if _, err := unknown.Acquire(b.t.Context(), Want{}); !errors.Is(err, ErrNoHealthy) || time.Since(begin) != 0 {
			t.Errorf("unknown name: %v after %v", err, time.Since(begin))
		}
	})
}

func TestStaticAddresses(t *testing.T) {
	inBubble(t, Config{}, func(b *bed) {
		a := b.server("10.0.1.1:80", nil)
		c := b.only(&plan.Cluster{Discovery: plan.Static, Static: []plan.StaticEndpoint{{Host: "10.0.1.1", Port: 80}}}, nil)
		if conn := b.acquire(c, Want{}); conn.Remote != a {
			t.Errorf("to %v", conn.Remote)
		} else {
			conn.Close()
		}
	})
}

func TestMutualTLSWhereTheEndpointTakesIt(t *testing.T) {
	own := certs.NewSource(nil)
	var client identity.Source
	cfg := Config{Identity: own, TLS: func(p *plan.ClientTLS) *tls.Config { return mtls.ClientConfig(client, p) }}
	inBubble(t, cfg, func(b *bed) {
		ca := certs.New(b.t, "cluster.local") // by the bubble's clock
		client = ca.Source("clients", "caller")
		server := mtls.ServerConfig(ca.Source("servers", "reviews"), &plan.ServerTLS{
			Certificate: "default", Roots: "ROOTCA", RequireCert: true, ALPN: []string{"istio-peer-exchange", "istio-http/1.1", "istio"}})
		secure, plain := b.server("10.0.1.1:80", server), b.server("10.0.1.2:80", nil)
		la := assignment(secure, plain)
		la.Localities[0].Endpoints[0].MTLS = true
		p := &plan.Cluster{Balancing: plan.RoundRobin, TLS: &plan.ClientTLS{Auto: true, Certificate: "default", Roots: "ROOTCA",
			ALPN: []string{"istio-peer-exchange", "istio"}, SubjectAltNames: []string{"spiffe://cluster.local/ns/servers/sa/reviews"}}}
		c := b.only(p, la)
		e := c.state.Load().endpoints

		if _, err := c.Acquire(b.t.Context(), Want{Tried: e[1:]}); !errors.Is(err, mtls.ErrNoIdentity) {
			t.Errorf("without own certificate: %v", err)
		}
		own.Set(ca.Material("clients", "caller"))

		conn := b.acquire(c, Want{Tried: e[1:]})
		if !conn.MTLS || conn.PeerID != "spiffe://cluster.local/ns/servers/sa/reviews" || conn.ALPN != "istio-http/1.1" {
			t.Errorf("secure: %v %q %q", conn.MTLS, conn.PeerID, conn.ALPN)
		}
		raw, err := c.Connect(b.t.Context(), Want{Tried: e[1:]})
		if err != nil || raw.ALPN != "istio-peer-exchange" {
			t.Fatalf("for bytes: %v %v", raw, err)
		}
		raw.Close()
		open := b.acquire(c, Want{Tried: e[:1]})
		if open.MTLS || open.PeerID != "" {
			t.Errorf("plain: %v %q", open.MTLS, open.PeerID)
		}
		c.Release(open, true)

		// Other expectations of the server hold for new requests at once: what was
		// agreed on before is not used again.
		other := *p.TLS
		other.SubjectAltNames = []string{"spiffe://cluster.local/ns/servers/sa/other"}
		next := *p
		next.TLS = &other
		b.only(&next, la)
		c.Release(conn, true)
		_, err = c.Acquire(b.t.Context(), Want{Tried: e[1:]})
		ce, ok := errors.AsType[*ConnectError](err)
		if !ok || ce.TransportFailure() != "TLS_error:peer_identity_not_expected" {
			t.Errorf("a server with another identity: %v", err)
		}
		if n := c.Stats.CxActive.Load(); n != 0 {
			t.Errorf("%d connections are open", n)
		}
	})
}

func TestPlainTextIsNeverSentWhereTLSIsConfigured(t *testing.T) {
	inBubble(t, Config{}, func(b *bed) {
		a := b.server("10.0.1.1:80", nil)
		c := b.only(&plan.Cluster{TLS: &plan.ClientTLS{}}, assignment(a))
		if conn, err := c.Acquire(b.t.Context(), Want{}); err == nil {
			t.Errorf("got a connection, %T", conn.Conn)
		}
	})
}

func TestManyAtOnce(t *testing.T) {
	inBubble(t, Config{}, func(b *bed) {
		var list []netip.AddrPort
		for i := range 4 {
			list = append(list, b.server(fmt.Sprintf("10.0.1.%d:80", i+1), nil))
		}
		p := &plan.Cluster{MaxConnections: 5, IdleTimeout: 50 * time.Millisecond}
		c := b.only(p, assignment(list...))
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				for j := range 50 {
					w := Want{}
					if (i+j)%7 == 0 {
						w.Deadline = time.Now().Add(time.Millisecond)
					}
					conn, err := c.Acquire(b.t.Context(), w)
					if errors.Is(err, ErrDeadline) {
						continue
					}
					if err != nil {
						t.Error(err)
						return
					}
					time.Sleep(time.Duration((i*j)%5) * time.Millisecond)
					c.Release(conn, (i+j)%3 > 0)
				}
			})
		}
		for i := range 100 {
			time.Sleep(3 * time.Millisecond)
			b.only(&plan.Cluster{MaxConnections: uint32(3 + i%4), IdleTimeout: p.IdleTimeout}, assignment(list[i%4:]...))
		}
		wg.Wait()
		time.Sleep(time.Second)
		c.slots.mu.Lock()
		defer c.slots.mu.Unlock()
		if s := c.Stats.Load(); s.CxActive != 0 || s.RqActive != 0 || c.slots.used != 0 || len(c.slots.queue) != 0 || c.pending.Load() != 0 {
			t.Errorf("in the end %+v, slots %d, queue %d, pending %d", s, c.slots.used, len(c.slots.queue), c.pending.Load())
		}
	})
}
