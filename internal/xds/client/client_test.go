package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/anypb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	cds = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	eds = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	lds = "type.googleapis.com/envoy.config.listener.v3.Listener"
	rds = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	nds = "type.googleapis.com/istio.networking.nds.v1.NameTable"
)

func short(typeURL string) string {
	return map[string]string{cds: "cds", eds: "eds", lds: "lds", rds: "rds", nds: "nds"}[typeURL]
}

// server is a control plane that does nothing but what the test says.
type server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	t       *testing.T
	streams chan *conversation
	net     *network
	grpc    *grpc.Server
	done    chan struct{}
}

// conversation is one stream as the server sees it.
type conversation struct {
	t        *testing.T
	rpc      discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	requests chan *discoveryv3.DeltaDiscoveryRequest
	end      chan error
}

func (s *server) DeltaAggregatedResources(rpc discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	c := &conversation{s.t, rpc, make(chan *discoveryv3.DeltaDiscoveryRequest, 100), make(chan error, 1)}
	go func() {
		for {
			r, err := rpc.Recv()
			if err != nil {
				return
			}
			c.requests <- r
		}
	}()
	select {
	case s.streams <- c:
	case <-rpc.Context().Done():
		return nil
	}
	select {
	case err := <-c.end:
		return err
	case <-rpc.Context().Done():
		return nil
	}
}

// network is a connection in memory that can lose everything without a word.
type network struct {
	listener *bufconn.Listener
	mu       sync.Mutex
	lost     bool
	refused  bool
	dials    int
}

type lossy struct {
	net.Conn
	net *network
}

func (c lossy) Write(b []byte) (int, error) {
	c.net.mu.Lock()
	lost := c.net.lost
	c.net.mu.Unlock()
	if lost {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (n *network) set(f func(n *network)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f(n)
}

func (n *network) dial(ctx context.Context, _ string) (net.Conn, error) {
	n.mu.Lock()
	n.dials++
	refused := n.refused
	n.lost = false
	n.mu.Unlock()
	if refused {
		return nil, errors.New("connection refused")
	}
	c, err := n.listener.DialContext(ctx)
	return lossy{c, n}, err
}

func serve(t *testing.T) *server {
	s := &server{t: t, streams: make(chan *conversation, 10), net: &network{listener: bufconn.Listen(1 << 20)}, done: make(chan struct{})}
	s.grpc = grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s.grpc, s)
	go func() {
		defer close(s.done)
		_ = s.grpc.Serve(s.net.listener)
	}()
	t.Cleanup(func() {
		s.grpc.Stop()
		<-s.done
	})
	return s
}

func (s *server) next() *conversation {
	s.t.Helper()
	synctest.Wait()
	select {
	case c := <-s.streams:
		return c
	default:
		s.t.Fatal("no stream was opened")
		return nil
	}
}

// heard returns the requests that came, each as "cds +a -b nonce=1 nack=why has a@1".
func (c *conversation) heard() []string {
	synctest.Wait()
	var out []string
	for {
		select {
		case r := <-c.requests:
			words := []string{short(r.GetTypeUrl())}
			for _, n := range r.GetResourceNamesSubscribe() {
				words = append(words, "+"+n)
			}
			for _, n := range r.GetResourceNamesUnsubscribe() {
				words = append(words, "-"+n)
			}
			if r.GetResponseNonce() != "" {
				words = append(words, "ack="+r.GetResponseNonce())
			}
			if r.GetErrorDetail() != nil {
				words = append(words, "nack="+r.GetErrorDetail().GetMessage())
			}
			for _, n := range slices.Sorted(maps.Keys(r.GetInitialResourceVersions())) {
				words = append(words, "has "+n+"@"+r.GetInitialResourceVersions()[n])
			}
			if r.GetNode() != nil {
				words = append(words, "node="+r.GetNode().GetId())
			}
			out = append(out, strings.Join(words, " "))
		default:
			return out
		}
	}
}

func (c *conversation) expect(want ...string) {
	c.t.Helper()
	if got := c.heard(); !slices.Equal(got, want) {
		c.t.Errorf("heard\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// say sends "name@version" resources and "-name" removals.
func (c *conversation) say(typ, nonce string, words ...string) {
	c.t.Helper()
	m := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: typ, Nonce: nonce}
	for _, w := range words {
		if name, gone := strings.CutPrefix(w, "-"); gone {
			m.RemovedResources = append(m.RemovedResources, name)
			continue
		}
		name, version, _ := strings.Cut(w, "@")
		m.Resources = append(m.Resources, &discoveryv3.Resource{Name: name, Version: version, Resource: &anypb.Any{TypeUrl: typ, Value: []byte(version)}})
	}
	if err := c.rpc.Send(m); err != nil {
		c.t.Error(err)
	}
}

// handler wants the endpoints of its clusters and the routes of its listeners,
// by their own names, and refuses versions called "bad".
type handler struct {
	mu    sync.Mutex
	has   map[string]map[string]string
	trace []string
}

func (h *handler) Apply(typ string, added []Resource, removed []string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var words []string
	for _, r := range added {
		words = append(words, r.Name+"@"+r.Version)
		if r.Version == "bad" {
			return fmt.Errorf("%s is bad", r.Name)
		}
	}
	if h.has == nil {
		h.has = map[string]map[string]string{}
	}
	if h.has[typ] == nil {
		h.has[typ] = map[string]string{}
	}
	for _, r := range added {
		h.has[typ][r.Name] = r.Version
	}
	for _, n := range removed {
		delete(h.has[typ], n)
		words = append(words, "-"+n)
	}
	h.trace = append(h.trace, short(typ)+" "+strings.Join(words, " "))
	return nil
}

func (h *handler) Wanted(typ string) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Sorted(maps.Keys(h.has[map[string]string{eds: cds, rds: lds}[typ]]))
}

func (h *handler) expect(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Equal(h.trace, want) {
		t.Errorf("applied\n\t%s\nwant\n\t%s", strings.Join(h.trace, "\n\t"), strings.Join(want, "\n\t"))
	}
	h.trace = nil
}

type running struct {
	*Client
	*handler
	stop func()
}

func run(t *testing.T, s *server, cache string) *running {
	t.Helper()
	return runAs(t, s, cache, "node")
}

func runAs(t *testing.T, s *server, cache, node string) *running {
	h := &handler{}
	c, err := New(Config{
		Node: &corev3.Node{Id: node}, Handler: h, CachePath: cache, Log: slog.New(slog.DiscardHandler),
		Connect: func(context.Context) (*grpc.ClientConn, error) {
			return Dial("passthrough:///x", insecure.NewCredentials(), grpc.WithContextDialer(s.net.dial))
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return &running{c, h, stop}
}

func TestSubscriptionsFollowWhatIsWanted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t)
		c := run(t, s, "")
		v := s.next()
		v.expect("cds node=node", "lds", "nds")
		if c.Connected() {
			t.Error("connected before anything was said")
		}
		v.say(cds, "1", "a@1", "b@1")
		v.expect("cds ack=1", "eds +a +b")
		v.say(eds, "2", "a@1", "b@1")
		v.expect("eds ack=2")
		v.say(lds, "3", "l@1")
		v.expect("lds ack=3", "rds +l")
		v.say(cds, "4", "c@1", "-a")
		v.expect("cds ack=4", "eds +c -a")
		c.handler.expect(t, "cds a@1 b@1", "eds a@1 b@1", "lds l@1", "cds c@1 -a")
		if !c.Connected() {
			t.Error("not connected")
		}
		var names []string
		for _, r := range c.Resources(eds) {
			names = append(names, r.Name)
		}
		if !slices.Equal(names, []string{"b"}) {
			t.Errorf("endpoints of %v are kept, want b alone", names)
		}
		if r := c.Resources(cds); len(r) != 2 || r[0].Name != "b" || r[0].Version != "1" || r[0].Updated.IsZero() {
			t.Errorf("clusters %+v", r)
		}
	})
}

func TestARefusalIsToldAndLeavesNoTrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t)
		file := filepath.Join(t.TempDir(), "cache")
		c := run(t, s, file)
		v := s.next()
		v.heard()
		v.say(cds, "1", "a@1")
		v.heard()
		v.say(cds, "2", "a@bad", "-a")
		v.expect("cds ack=2 nack=a is bad")
		if r := c.Resources(cds); len(r) != 1 || r[0].Version != "1" {
			t.Errorf("clusters %+v", r)
		}
		c.stop()
		content, err := os.ReadFile(file)
		if err != nil || strings.Contains(string(content), "bad") {
			t.Errorf("the file has what was refused, or is missing: %v", err)
		}
	})
}

func TestLongReasonsAreCut(t *testing.T) {
	if s := shorten(strings.Repeat("é", 10_000)); len(s) > 5<<10 || !strings.HasSuffix(s, "…") {
		t.Errorf("%d bytes", len(s))
	}
}

func TestAfterALossTheSessionGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t)
		c := run(t, s, "")
		v := s.next()
		v.say(cds, "1", "a@1")
		v.say(eds, "2", "a@7")
		v.say(lds, "3", "l@1")
		v.say(rds, "4", "l@2")
		v.say(nds, "5", "t@1")
		synctest.Wait()
		v.end <- errors.New("restart")
		synctest.Wait()
		if c.Connected() {
			t.Error("connected after the loss")
		}
		time.Sleep(firstPause)
		w := s.next()
		w.expect("cds has a@1 node=node", "eds +a has a@7", "lds has l@1", "rds +l has l@2", "nds has t@1")
	})
}

func TestAttemptsGrowRarerAndDoNotMeet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t)
		s.net.set(func(n *network) { n.refused = true })
		run(t, s, "")
		time.Sleep(10 * time.Minute)
		s.net.set(func(n *network) {
			// At 7.5 to 15 s each, and some more at the beginning.
			if n.dials < 38 || n.dials > 90 {
				t.Errorf("%d attempts in 10 minutes", n.dials)
			}
			n.refused = false
		})
		time.Sleep(lastPause)
		v := s.next()
		v.say(cds, "1", "a@1")
		synctest.Wait()
		v.end <- nil
		// One that was answered starts from the short pause again.
		time.Sleep(firstPause)
		s.next()
	})
}

func TestASilentLossIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t)
		c := run(t, s, "")
		v := s.next()
		v.say(cds, "1", "a@1")
		synctest.Wait()
		s.net.set(func(n *network) { n.lost = true })
		time.Sleep(31 * time.Second)
		synctest.Wait()
		if c.Connected() {
			t.Error("half a minute after the peer vanished the client thinks that it is connected")
		}
		s.net.set(func(n *network) { n.lost = false })
		time.Sleep(time.Second)
		s.next()
	})
}

func TestTheFileStandsInForTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "cache")
		s := serve(t)
		c := run(t, s, file)
		v := s.next()
		v.say(cds, "1", "a@1")
		v.say(eds, "2", "a@7")
		v.say(lds, "3")
		synctest.Wait()
		c.stop()

		// The server is away.
		s.net.set(func(n *network) { n.refused = true })
		c = run(t, s, file)
		c.handler.expect(t, "cds a@1", "eds a@7", "lds ")
		if c.Connected() {
			t.Error("connected to a server that is away")
		}
		if r := c.Resources(eds); len(r) != 1 || r[0].Version != "7" || r[0].Updated.IsZero() {
			t.Errorf("endpoints %+v", r)
		}
		// It comes back, and is told what is here.
		s.net.set(func(n *network) { n.refused = false })
		time.Sleep(time.Second)
		s.next().expect("cds has a@1 node=node", "eds +a has a@7", "lds", "nds")
	})
}

func TestTheFileIsWrittenWhileRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "cache")
		s := serve(t)
		run(t, s, file)
		v := s.next()
		v.say(cds, "1", "a@1")
		time.Sleep(settle)
		synctest.Wait()
		if _, err := os.Stat(file); err != nil {
			t.Error(err)
		}
		if left, _ := filepath.Glob(file + ".*"); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
}

func TestAFileThatIsNotToBeTrustedIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "cache")
		s := serve(t)
		c := run(t, s, file)
		s.next().say(cds, "1", "a@1", "b@1")
		synctest.Wait()
		c.stop()
		good, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		s.net.set(func(n *network) { n.refused = true })
		flipped := slices.Clone(good)
		flipped[len(flipped)-1] ^= 1
		for name, content := range map[string][]byte{
			"empty":           {},
			"garbage":         []byte("hello\nworld"),
			"cut short":       good[:len(good)-3],
			"one bit flipped": flipped,
			"another version": []byte(strings.Replace(string(good), "cache 1", "cache 2", 1)),
		} {
			if err := os.WriteFile(file, content, 0o600); err != nil {
				t.Fatal(err)
			}
			c := run(t, s, file)
			synctest.Wait()
			if len(c.Resources(cds)) != 0 {
				t.Errorf("%s: it was loaded", name)
			}
			c.stop()
		}
		if err := os.WriteFile(file, good, 0o600); err != nil {
			t.Fatal(err)
		}
		c = runAs(t, s, file, "another node")
		synctest.Wait()
		if len(c.Resources(cds)) != 0 {
			t.Error("the file of another node was loaded")
		}
		c.stop()
		c = run(t, s, file)
		c.handler.expect(t, "cds a@1 b@1")
	})
}

func TestNewNamesWhatIsMissing(t *testing.T) {
	full := Config{
		Node: &corev3.Node{Id: "n"}, Handler: &handler{}, Log: slog.New(slog.DiscardHandler),
		Connect: func(context.Context) (*grpc.ClientConn, error) { return nil, io.EOF },
	}
	for want, spoil := range map[string]func(c *Config){
		"Node":    func(c *Config) { c.Node = nil },
		"Connect": func(c *Config) { c.Connect = nil },
		"Handler": func(c *Config) { c.Handler = nil },
		"Log":     func(c *Config) { c.Log = nil },
	} {
		c := full
		spoil(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error about %s", err, want)
		}
	}
}

func FuzzParseFile(f *testing.F) {
	f.Add([]byte(fileHeader + "\nnode\n"))
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = parseFile(b, "node") })
}
