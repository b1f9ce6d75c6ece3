package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"github.com/heddle-mesh/heddle/api/security"
	"github.com/heddle-mesh/heddle/internal/compile"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/ca"
	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/xds/server"
)

const trustDomain = "cluster.local"

// fixture is a control plane for proxies without a mesh around them: it tells
// each one plan, with a listener that is bound to a port of its own and not
// reached by redirection, and signs its certificates.
type fixture struct {
	addr  string
	grpc  *grpc.Server
	xds   *server.Server
	stop  context.CancelFunc
	ended sync.WaitGroup

	mu    sync.Mutex
	plans map[string]*plan.Plan // by pod name
	las   map[string]*plan.LoadAssignment
}

// newFixture starts a control plane with an authority in dir.
func newFixture(ctx context.Context, dir string) (*fixture, error) {
	authority, err := ca.New(ca.Config{StateDir: dir, TrustDomain: trustDomain})
	if err != nil {
		return nil, err
	}
	f := &fixture{plans: map[string]*plan.Plan{}, las: map[string]*plan.LoadAssignment{}}
	if f.xds, err = server.New(server.Config{Log: slog.New(slog.DiscardHandler)}); err != nil {
		return nil, err
	}
	auth := ca.AuthenticatorFunc(f.authenticate)
	certificates, err := ca.NewService(ca.ServiceConfig{CA: authority, Authenticator: auth})
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	f.addr = l.Addr().String()
	f.grpc = grpc.NewServer(
		grpc.Creds(credentials.NewTLS(authority.ServerTLS(ca.ServerNames(trustDomain)))),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)
	security.Register(f.grpc, certificates)
	f.xds.Register(f.grpc, auth)
	f.xds.Update(f, true, nil)
	ctx, f.stop = context.WithCancel(ctx)
	f.ended.Go(func() { _ = f.xds.Run(ctx) })  // its end is asked for
	f.ended.Go(func() { _ = f.grpc.Serve(l) }) // likewise
	return f, nil
}

func (f *fixture) close() {
	f.stop()
	f.grpc.Stop()
	f.ended.Wait()
}

// authenticate takes a token for the name of a pod and of its service account.
func (f *fixture) authenticate(ctx context.Context) (identity.ID, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	pod, ok := strings.CutPrefix(strings.Join(md.Get("authorization"), ""), "Bearer ")
	f.mu.Lock()
	defer f.mu.Unlock()
	if !ok || f.plans[pod] == nil {
		return identity.ID{}, fmt.Errorf("token %q", pod)
	}
	return identity.ID{TrustDomain: trustDomain, Namespace: "default", ServiceAccount: pod}, nil
}

// View implements server.World.
func (f *fixture) View(p *compile.Proxy) (string, func() *plan.Plan) {
	pod, _, _ := strings.Cut(p.ID, ".")
	return pod, func() *plan.Plan {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.plans[pod]
	}
}

// Endpoints implements server.World.
func (f *fixture) Endpoints(name string) (*plan.LoadAssignment, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	la, ok := f.las[name]
	return la, ok
}

// Secret gives nobody any.
func (f *fixture) Secret(*compile.Proxy, string) (*plan.Secret, bool) { return nil, false }

// tell sets what the proxy in a pod is told. Pods have names of their own, so a
// plan is never changed.
func (f *fixture) tell(pod string, p peer, r role, listen, upstream netip.AddrPort) {
	f.mu.Lock()
	defer f.mu.Unlock()
	cluster := &plan.Cluster{
		Name: fmt.Sprintf("outbound|%d||%s.bench", upstream.Port(), pod), ConnectTimeout: 10 * time.Second,
		Service: plan.ServiceRef{Host: pod + ".bench", Name: pod, Namespace: "default"},
	}
	if r.http2 {
		cluster.Protocol = plan.HTTP2
	}
	l := &plan.Listener{Name: "bench_" + pod, Address: listen, Bound: true, Chains: []*plan.FilterChain{chainOf(p, r, cluster.Name)}}
	endpoint := plan.Endpoint{
		Address: upstream, MTLS: r.tlsOut,
		Workload: plan.Workload{Name: "backend", Namespace: "default", CanonicalName: "backend", CanonicalRevision: "v1"},
	}
	if r.tlsOut {
		cluster.TLS = &plan.ClientTLS{Auto: true, Certificate: "default", Roots: "ROOTCA", SNI: "outbound_.80_._.backend.bench", ALPN: protocols(r)}
	}
	if r.tlsIn {
		// As on the workload's own side: one fixed address behind the port. But an
		// inbound listener refuses what was not redirected to it.
		l.Direction, l.Inspect = plan.Edge, plan.Inspect{TLS: true, HTTP: !r.tcp}
		cluster.Name = fmt.Sprintf("inbound|%d||", upstream.Port())
		cluster.Discovery, cluster.Static = plan.Static, []plan.StaticEndpoint{{Host: upstream.Addr().String(), Port: upstream.Port()}}
		l.Chains = []*plan.FilterChain{chainOf(p, r, cluster.Name)}
	} else {
		f.las[cluster.Name] = &plan.LoadAssignment{Cluster: cluster.Name, Localities: []plan.LocalityEndpoints{{Endpoints: []plan.Endpoint{endpoint}}}}
	}
	f.plans[pod] = &plan.Plan{Listeners: []*plan.Listener{l}, Clusters: []*plan.Cluster{cluster}}
}

// protocols are what Heddle's proxies agree on among themselves.
func protocols(r role) []string {
	if r.tcp {
		return []string{"istio-peer-exchange", "istio"}
	}
	if r.http2 {
		return []string{"istio-h2", "istio"}
	}
	return []string{"istio-http/1.1", "istio"}
}

func chainOf(p peer, r role, cluster string) *plan.FilterChain {
	log := ""
	if p.log {
		log = "/dev/stdout"
	}
	to := []plan.WeightedCluster{{Cluster: cluster}}
	c := &plan.FilterChain{Name: "bench"}
	if r.tlsIn {
		c.Match.Transport = plan.TLSTransport
		c.TLS = &plan.ServerTLS{Certificate: "default", Roots: "ROOTCA", RequireCert: true, ALPN: protocols(r)}
	}
	if r.tcp {
		c.TCP = &plan.TCPChain{StatPrefix: "bench", Clusters: to, Metrics: !p.quiet, AccessLog: log, PeerExchange: r.tlsIn || r.tlsOut}
		return c
	}
	mode := plan.SanitizeClientCert
	if r.tlsIn {
		mode = plan.AppendForwardClientCert
	}
	c.HTTP = &plan.HTTPChain{StatPrefix: "bench", ForwardClientCert: mode, Metrics: !p.quiet, AccessLog: log, Inline: &plan.RouteConfig{
		Name: "bench", Hosts: []*plan.VirtualHost{{Name: "backend.bench:80", Domains: []string{"*"}, Routes: []*plan.Route{{
			Name: "default", Match: plan.RouteMatch{Path: plan.PathMatch{Value: "/"}}, Clusters: to,
		}}}},
	}}
	return c
}
