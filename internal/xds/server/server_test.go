package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/heddle-mesh/heddle/internal/compile"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/plan"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testWorld has clusters, each with its number of endpoints.
type testWorld struct {
	clusters map[string]int // requests limit, so that a change shows
	ports    map[string]int // endpoints by cluster
	compiled *atomic.Int32
	broken   bool
	secrets  int
	asked    bool // the plan depends on what is asked for, and on nothing else
}

func (w *testWorld) View(p *compile.Proxy) (string, func() *plan.Plan) {
	key := fmt.Sprint(w.clusters, w.broken)
	if w.asked {
		key += fmt.Sprint(p.Asked)
	}
	return key, func() *plan.Plan {
		if w.compiled != nil {
			w.compiled.Add(1)
		}
		if w.broken {
			panic("cannot compile")
		}
		out := &plan.Plan{}
		names := make([]string, 0, len(w.clusters))
		for name := range w.clusters {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			out.Clusters = append(out.Clusters, &plan.Cluster{Name: name, MaxRequests: uint32(w.clusters[name])})
			// A listener and a route for each, that change with it.
			r := &plan.RouteConfig{Name: name, Hosts: []*plan.VirtualHost{{Name: fmt.Sprint(w.clusters[name]), Domains: []string{"*"}}}}
			out.Routes = append(out.Routes, r)
			out.Listeners = append(out.Listeners, &plan.Listener{Name: name, Address: netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(w.clusters[name]))})
		}
		out.Names = &plan.NameTable{Names: []plan.NameEntry{{Host: fmt.Sprint(w.clusters)}}}
		if w.asked {
			out = &plan.Plan{}
			for _, name := range p.Asked {
				out.Listeners = append(out.Listeners, &plan.Listener{Name: name, API: &plan.HTTPChain{RouteName: "r"}})
			}
		}
		return out
	}
}

// Secret gives each namespace one secret, in the version secrets.
func (w *testWorld) Secret(p *compile.Proxy, name string) (*plan.Secret, bool) {
	return &plan.Secret{Name: name, Certificate: []byte(p.Namespace), Key: fmt.Append(nil, w.secrets)}, w.secrets > 0 && name == "kubernetes://one"
}

func (w *testWorld) Endpoints(name string) (*plan.LoadAssignment, bool) {
	n, ok := w.ports[name]
	if n < 0 {
		panic("negative endpoints")
	}
	if !ok {
		return nil, false
	}
	g := plan.LocalityEndpoints{}
	for i := range n {
		g.Endpoints = append(g.Endpoints, plan.Endpoint{Address: netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(i+1))})
	}
	return &plan.LoadAssignment{Cluster: name, Localities: []plan.LocalityEndpoints{g}}, true
}

// chanWire is a wire without network, so that its time is virtual.
type chanWire struct {
	in   chan *request
	out  chan *response
	gone chan struct{} // closed when the client has gone
}

func (w *chanWire) recv() (*request, error) {
	select {
	case r, ok := <-w.in:
		if !ok {
			return nil, io.EOF
		}
		return r, nil
	case <-w.gone:
		return nil, io.EOF
	}
}

func (w *chanWire) send(r *response) error {
	select {
	case w.out <- r:
		return nil
	case <-w.gone:
		return io.ErrClosedPipe
	}
}

// peer is a client on a chanWire.
type peer struct {
	t    *testing.T
	wire *chanWire
	node *corev3.Node
	done chan error
}

func nodeOf(id string, meta map[string]any) *corev3.Node {
	m, err := structpb.NewStruct(meta)
	if err != nil {
		panic(err)
	}
	return &corev3.Node{Id: id, Metadata: m}
}

var sidecar = nodeOf("sidecar~10.0.0.1~a-1.default~default.svc.cluster.local", nil)

func connect(t *testing.T, s *Server, m machine, node *corev3.Node, auth Authenticator) *peer {
	p := &peer{t: t, node: node, done: make(chan error, 1),
		wire: &chanWire{in: make(chan *request, 100), out: make(chan *response, 100), gone: make(chan struct{})}}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		// As gRPC does, a handler that returns ends the stream's context.
		defer cancel()
		p.done <- s.serve(ctx, auth, p.wire, m)
		close(p.wire.gone)
	}()
	return p
}

func (p *peer) ask(r *request) {
	r.node, p.node = p.node, nil
	p.wire.in <- r
	synctest.Wait()
}

// hear returns all that was sent, as "cds a@… b@…" without versions, and ACKs it.
func (p *peer) hear() string {
	synctest.Wait()
	var lines []string
	for {
		select {
		case r := <-p.wire.out:
			words := []string{short(r.typeURL)}
			for _, one := range r.resources {
				words = append(words, one.Name)
			}
			for _, name := range r.removed {
				words = append(words, "-"+name)
			}
			lines = append(lines, strings.Join(words, " "))
			p.wire.in <- &request{typeURL: r.typeURL, nonce: r.nonce, names: p.names(r.typeURL)}
			synctest.Wait()
		default:
			return strings.Join(lines, "; ")
		}
	}
}

// names are what the state-of-the-world peers of these tests subscribe to.
func (p *peer) names(typeURL string) []string {
	switch typeURL {
	case eds:
		return []string{"outbound|80||a", "outbound|80||b"}
	case rds:
		return []string{"outbound|80||a"}
	}
	return nil
}

func (p *peer) want(what string) {
	p.t.Helper()
	if got := p.hear(); got != what {
		p.t.Errorf("heard %q, want %q", got, what)
	}
}

func short(typeURL string) string {
	return map[string]string{cds: "cds", eds: "eds", lds: "lds", rds: "rds", nds: "nds"}[typeURL]
}

func (p *peer) subscribe(delta bool) {
	for _, typ := range pushOrder {
		r := &request{typeURL: typ}
		if delta {
			r.subscribe = p.names(typ)
		} else {
			r.names = p.names(typ)
		}
		p.ask(r)
	}
}

func start(t *testing.T, faults func(error)) *Server {
	t.Helper()
	s, err := New(Config{Log: slog.New(slog.DiscardHandler), OnFault: faults})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return s
}

const a, b = "outbound|80||a", "outbound|80||b"

func small(limit int) *testWorld {
	return &testWorld{clusters: map[string]int{a: limit}, ports: map[string]int{a: 1}}
}

func bothVariants(t *testing.T, f func(t *testing.T, delta bool, m machine)) {
	t.Run("state of the world", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { f(t, false, newSotw()) })
	})
	t.Run("incremental", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { f(t, true, newDelta()) })
	})
}

func TestAChangeIsSentInOrder(t *testing.T) {
	bothVariants(t, func(t *testing.T, delta bool, m machine) {
		s := start(t, nil)
		s.Update(small(1), true, nil)
		p := connect(t, s, m, sidecar, nil)
		p.subscribe(delta)
		missing := ""
		if delta {
			missing = " -" + b
		}
		p.want("cds " + a + "; eds " + a + missing + "; lds " + a + "; rds " + a + "; nds nametable")
		s.Update(small(2), true, nil)
		time.Sleep(time.Second)
		// The endpoints come again, because the cluster they belong to changed.
		p.want("cds " + a + "; eds " + a + "; lds " + a + "; rds " + a + "; nds nametable")
		s.Update(small(2), true, nil)
		time.Sleep(time.Second)
		p.want("")
	})
}

func TestEndpointsGoAtOnceToThoseWhoWatchThem(t *testing.T) {
	bothVariants(t, func(t *testing.T, delta bool, m machine) {
		s := start(t, nil)
		w := small(1)
		w.compiled = &atomic.Int32{}
		s.Update(w, true, nil)
		p := connect(t, s, m, sidecar, nil)
		p.subscribe(delta)
		p.hear()
		before, began := w.compiled.Load(), time.Now()

		next := *w
		next.ports = map[string]int{a: 2, "outbound|81||a": 1}
		s.Update(&next, false, []string{"a|80", "a|81"})
		p.want("eds " + a)
		s.Update(&next, false, []string{"a|80"})
		p.want("")
		next2 := next
		next2.ports = map[string]int{a: 2, b: 1}
		s.Update(&next2, false, []string{"b|80"})
		p.want("eds " + b)
		if !time.Now().Equal(began) {
			t.Error("it took time")
		}
		if w.compiled.Load() != before {
			t.Error("something was compiled")
		}
	})
}

func TestChangesAreCollected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, nil)
		s.Update(small(1), true, nil)
		p := connect(t, s, newDelta(), sidecar, nil)
		p.ask(&request{typeURL: cds})
		p.hear()
		compiled := &atomic.Int32{}
		for i := range 4 {
			w := small(i + 2)
			w.compiled = compiled
			s.Update(w, true, nil)
			time.Sleep(2 * time.Millisecond)
		}
		p.want("")
		time.Sleep(3 * time.Millisecond) // quiet for 5 ms
		p.want("cds " + a)
		if n := compiled.Load(); n != 1 {
			t.Errorf("compiled %d times, want once", n)
		}
		// A stream of changes without any pause is sent now and then all the same.
		began := time.Now()
		for i := 0; p.hear() == ""; i++ {
			s.Update(small(100+i), true, nil)
			time.Sleep(2 * time.Millisecond)
		}
		if d := time.Since(began); d > 60*time.Millisecond {
			t.Errorf("the first of many changes waited %v", d)
		}
	})
}

func TestEqualViewsAreCompiledOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, nil)
		w := small(1)
		w.compiled = &atomic.Int32{}
		s.Update(w, true, nil)
		var peers []*peer
		for range 50 {
			p := connect(t, s, newDelta(), sidecar, nil)
			p.ask(&request{typeURL: cds})
			peers = append(peers, p)
		}
		next := *w
		next.clusters = map[string]int{a: 2}
		s.Update(&next, true, nil)
		time.Sleep(time.Second)
		for _, p := range peers {
			p.want("cds " + a + "; cds " + a)
		}
		if n := w.compiled.Load(); n != 2 {
			t.Errorf("compiled %d times for two worlds", n)
		}
		if c := s.Counts(); c.Streams != 50 || c.Pushes[cds] != 100 || c.Convergence.Count != 50 {
			t.Errorf("counts %+v", c)
		}
	})
}

func TestRequestsWaitForTheFirstWorld(t *testing.T) {
	bothVariants(t, func(t *testing.T, delta bool, m machine) {
		s := start(t, nil)
		p := connect(t, s, m, sidecar, nil)
		p.ask(&request{typeURL: lds})
		p.ask(&request{typeURL: cds})
		time.Sleep(time.Minute)
		p.want("")
		s.Update(small(1), true, nil)
		p.want("cds " + a + "; lds " + a)
	})
}

func TestAWorldThatCannotBeCompiledChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var faults []error
		s := start(t, func(err error) { faults = append(faults, err) })
		s.Update(small(1), true, nil)
		p := connect(t, s, newDelta(), sidecar, nil)
		p.ask(&request{typeURL: cds})
		p.want("cds " + a)
		bad := small(2)
		bad.broken = true
		s.Update(bad, true, nil)
		time.Sleep(time.Second)
		p.want("")
		if len(faults) != 1 || !strings.Contains(faults[0].Error(), "cannot compile") {
			t.Errorf("faults %v", faults)
		}
		s.Update(small(3), true, nil)
		time.Sleep(time.Second)
		p.want("cds " + a)
	})
}

func TestAMistakeEndsOneStreamOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var faults []error
		s := start(t, func(err error) { faults = append(faults, err) })
		w := small(1)
		w.ports[b] = -1
		s.Update(w, true, nil)
		p, q := connect(t, s, newDelta(), sidecar, nil), connect(t, s, newDelta(), sidecar, nil)
		q.subscribe(false)
		q.hear()
		p.ask(&request{typeURL: eds, subscribe: []string{b}})
		if err := <-p.done; status.Code(err) != codes.Internal {
			t.Errorf("the stream ended with %v", err)
		}
		if len(faults) != 1 || !strings.Contains(faults[0].Error(), "negative endpoints") {
			t.Errorf("faults %v", faults)
		}
		s.Update(small(2), true, nil)
		time.Sleep(time.Second)
		if got := q.hear(); !strings.Contains(got, "cds "+a) {
			t.Errorf("the other stream heard %q", got)
		}
		if n := len(s.Proxies()); n != 1 {
			t.Errorf("%d proxies are left", n)
		}
	})
}

func TestRequestsDuringAPushDoNotSwallowIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, nil)
		s.Update(small(1), true, nil)
		p := connect(t, s, newDelta(), sidecar, nil)
		p.ask(&request{typeURL: cds})
		p.want("cds " + a)
		// The publication and the request for listeners meet.
		s.Update(small(2), true, nil)
		time.Sleep(defaultQuiet)
		p.wire.in <- &request{typeURL: lds}
		got := p.hear()
		for _, want := range []string{"cds " + a, "lds " + a} {
			if !strings.Contains(got, want) {
				t.Errorf("heard %q, want %q among it", got, want)
			}
		}
	})
}

// TestClustersGoLast holds that a cluster which is gone is taken from a proxy only
// after the proxy was told of the routes that lead elsewhere.
func TestClustersGoLast(t *testing.T) {
	bothVariants(t, func(t *testing.T, delta bool, m machine) {
		s := start(t, nil)
		s.Update(&testWorld{clusters: map[string]int{a: 1, b: 1}, ports: map[string]int{a: 1, b: 1}}, true, nil)
		p := connect(t, s, m, sidecar, nil)
		p.subscribe(delta)
		p.hear()
		s.Update(small(2), true, nil)
		time.Sleep(linger / 2)
		both, gone := "cds "+a+" "+b, "cds "+a
		if delta {
			both, gone = "cds "+a, "cds -"+b+"; eds -"+b
		}
		listeners := "; lds " + a
		if delta {
			listeners += " -" + b
		}
		p.want(both + "; eds " + a + listeners + "; rds " + a + "; nds nametable")
		time.Sleep(linger)
		p.want(gone)
		// One that comes back before it went stays.
		s.Update(&testWorld{clusters: map[string]int{b: 1}, ports: map[string]int{b: 1}}, true, nil)
		time.Sleep(linger / 2)
		p.hear()
		s.Update(small(2), true, nil)
		time.Sleep(linger / 4)
		if got := p.hear(); strings.Contains(got, "-"+a) {
			t.Errorf("heard %q", got)
		}
		time.Sleep(2 * linger)
		if got := p.hear(); strings.Contains(got, "-"+a) {
			t.Errorf("heard %q", got)
		}
		if set, _ := s.Resources("a-1.default"); len(set[cds]) != 1 || set[cds][0].Name != a {
			t.Errorf("in the end there is %v", set[cds])
		}
	})
}

func TestGRPCClientsGetWhatTheyAskFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, nil)
		s.Update(&testWorld{asked: true, clusters: map[string]int{a: 1}}, true, nil)
		node := nodeOf("sidecar~10.0.0.1~a-1.default~default.svc.cluster.local", map[string]any{"GENERATOR": "grpc"})
		p := connect(t, s, newSotw(), node, nil)
		p.ask(&request{typeURL: lds, names: []string{"one:80"}})
		p.want("lds one:80")
		p.ask(&request{typeURL: lds, names: []string{"one:80", "two:80"}})
		p.want("lds one:80 two:80")
		p.ask(&request{typeURL: cds})
		p.want("cds") // by wildcard nothing
	})
}

func TestStoppingEndsTheStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		p := connect(t, s, newDelta(), sidecar, nil)
		p.ask(&request{typeURL: cds})
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if err := <-p.done; status.Code(err) != codes.Unavailable {
			t.Errorf("the stream ended with %v", err)
		}
		q := connect(t, s, newDelta(), sidecar, nil)
		q.ask(&request{typeURL: cds})
		if err := <-q.done; status.Code(err) != codes.Unavailable {
			t.Errorf("a late stream ended with %v", err)
		}
	})
}

type authFunc func() (identity.ID, error)

func (f authFunc) Authenticate(context.Context) (identity.ID, error) { return f() }

func TestWhoMayAskAsWhom(t *testing.T) {
	caller := func(ns, sa string) Authenticator {
		return authFunc(func() (identity.ID, error) {
			return identity.ID{TrustDomain: "cluster.local", Namespace: ns, ServiceAccount: sa}, nil
		})
	}
	const id = "sidecar~10.0.0.1~a-1.default~default.svc.cluster.local"
	for name, c := range map[string]struct {
		node *corev3.Node
		auth Authenticator
		want codes.Code
		says string
	}{
		"matching":                {nodeOf(id, map[string]any{"SERVICE_ACCOUNT": "reviews"}), caller("default", "reviews"), codes.OK, ""},
		"account from identity":   {nodeOf(id, nil), caller("default", "reviews"), codes.OK, ""},
		"another namespace":       {nodeOf(id, nil), caller("prod", "reviews"), codes.PermissionDenied, "namespace"},
		"another account":         {nodeOf(id, map[string]any{"SERVICE_ACCOUNT": "admin"}), caller("default", "reviews"), codes.PermissionDenied, "service account"},
		"nobody":                  {nodeOf(id, nil), authFunc(func() (identity.ID, error) { return identity.ID{}, errors.New("no token") }), codes.Unauthenticated, "no token"},
		"no node":                 {nil, nil, codes.InvalidArgument, "no node id"},
		"short id":                {nodeOf("a", nil), nil, codes.InvalidArgument, "not of the form"},
		"ztunnel":                 {nodeOf("ztunnel~10.0.0.1~a.b~c", nil), nil, codes.InvalidArgument, `type "ztunnel" is not supported`},
		"bad address":             {nodeOf("sidecar~x~a.b~c", nil), nil, codes.InvalidArgument, `"x" is not an IP address`},
		"bad instance address":    {nodeOf(id, map[string]any{"INSTANCE_IPS": "10.0.0.1,y"}), nil, codes.InvalidArgument, `"y" is not an IP address`},
		"no namespace":            {nodeOf("sidecar~10.0.0.1~a~c", nil), nil, codes.InvalidArgument, "not pod.namespace"},
		"two namespaces":          {nodeOf(id, map[string]any{"NAMESPACE": "prod"}), nil, codes.InvalidArgument, "another than in the id"},
		"event client of Istio's": {nodeOf(id, map[string]any{"GENERATOR": "event"}), nil, codes.InvalidArgument, `GENERATOR "event"`},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := start(t, nil)
				s.Update(small(1), true, nil)
				p := connect(t, s, newDelta(), c.node, c.auth)
				p.ask(&request{typeURL: cds})
				if c.want == codes.OK {
					p.want("cds " + a)
					return
				}
				err := <-p.done
				if status.Code(err) != c.want || !strings.Contains(err.Error(), c.says) {
					t.Errorf("got %v, want %v that says %q", err, c.want, c.says)
				}
			})
		})
	}
}

func TestProxyOf(t *testing.T) {
	p, err := proxyOf(nodeOf("router~10.0.0.1~gw-1.x.istio-system~istio-system.svc.cluster.local", map[string]any{
		"INSTANCE_IPS": "10.0.0.2,10.0.0.1,fd00::1", "LABELS": map[string]any{"app": "gw"}, "CLUSTER_ID": "Kubernetes",
		"DNS_CAPTURE": "true", "SERVICE_ACCOUNT": "gw",
	}))
	if err != nil {
		t.Fatal(err)
	}
	if p.Class != compile.Gateway || p.ID != "gw-1.x.istio-system" || p.Namespace != "istio-system" || p.Labels["app"] != "gw" ||
		!p.DNSCapture || p.ServiceAccount != "gw" || p.ClusterID != "Kubernetes" {
		t.Errorf("got %+v", p)
	}
	if got := fmt.Sprint(p.IPs); got != "[10.0.0.2 10.0.0.1 fd00::1]" {
		t.Errorf("addresses %s", got)
	}
}

func TestStatusAndResources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, nil)
		s.Update(small(1), true, nil)
		p := connect(t, s, newDelta(), sidecar, nil)
		p.subscribe(true)
		p.hear()
		all := s.Proxies()
		if len(all) != 1 || all[0].Proxy.ID != "a-1.default" || !all[0].Types[cds].Synced() || all[0].Types[eds].Names != 2 {
			t.Errorf("proxies %+v", all)
		}
		set, ok := s.Resources("a-1.default")
		if !ok || len(set[cds]) != 1 || len(set[eds]) != 1 {
			t.Errorf("resources %v %v", set, ok)
		}
		if _, ok := s.Resources("nobody.default"); ok {
			t.Error("resources of a proxy that is not there")
		}
		p.ask(&request{typeURL: cds, nonce: "1", nack: true, refused: "bad cluster"})
		if got := s.Proxies()[0].Types[cds].Refused; got != "bad cluster" {
			t.Errorf("refused %q", got)
		}
		if n := s.Counts().Rejects[cds]; n != 1 {
			t.Errorf("%d rejects", n)
		}
		close(p.wire.in)
		if err := <-p.done; err != nil {
			t.Errorf("the stream ended with %v", err)
		}
		if len(s.Proxies()) != 0 {
			t.Error("a proxy that has gone is listed")
		}
	})
}
