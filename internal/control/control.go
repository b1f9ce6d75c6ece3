// Package control is heddled as a library: it reads configuration, keeps the
// world, and tells every proxy its part of it.
//
// [Run] is the whole flow on one screen. Each stage hands its result to the
// next, and one goroutine owns the world:
//
//	files ──batches──▶ world ──worlds──▶ xDS server ══▶ proxies
//	   └────faults──▶ register ◀──faults────┘
//
// Beside it stand the certificate authority, on the port with TLS, and a port
// with metrics and a look inside for tools.
package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/heddle-mesh/heddle/api/security"
	"github.com/heddle-mesh/heddle/internal/compile"
	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/identity/ca"
	"github.com/heddle-mesh/heddle/internal/jwks"
	"github.com/heddle-mesh/heddle/internal/life"
	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/source/file"
	"github.com/heddle-mesh/heddle/internal/xds/server"
)

// Config says what to serve and where.
type Config struct {
	// Sources are files and directories with manifests, "-" for Stdin.
	Sources []string
	Stdin   io.Reader
	// NewSource, if set, takes the place of Sources: it makes what brings changes
	// in. The two functions are called as those of file.Config are.
	NewSource func(onBatch func(config.Batch), onFaults func([]config.Fault)) (Source, error)
	// Cluster, if set, takes the place of both: a Kubernetes cluster is read, and
	// holds the root key.
	Cluster *Cluster
	// StateDir holds the root key and what else must outlive the process.
	StateDir string

	// Addresses to listen on; "" leaves a service out.
	PlainAddr string // xDS without TLS and without proof of identity: "127.0.0.1:15010"
	TLSAddr   string // xDS and certificates with TLS: ":15012"
	HTTPAddr  string // metrics, readiness and debug pages: ":15014"
	ReadyAddr string // the same, where Istio's installation asks for readiness: ":8080"
	// WebhookAddr is where a cluster's API server asks about pods and
	// configuration: ":15017". Without Cluster there is nobody who would.
	WebhookAddr string
	// DebugFromAnywhere answers debug pages to callers of other addresses than
	// this machine's own, too. They show all configuration: it is for networks
	// that are closed themselves.
	DebugFromAnywhere bool
	// Listen opens a listener; nil means the machine's network. Tests put a
	// simulated one in its place.
	Listen func(ctx context.Context, network, addr string) (net.Listener, error)

	// BlockedKeySources are addresses from which no keys of tokens are fetched.
	BlockedKeySources []netip.Prefix

	TrustDomain string // "" means "cluster.local"
	ClusterID   string // "" means "Kubernetes"
	// ServerNames are what the TLS certificate is for; nil means ca.ServerNames.
	ServerNames []string
	// Tokens verifies bearer tokens; nil accepts client certificates only.
	Tokens TokenVerifier

	// Quiet and MaxWait say how long changes are collected; see server.Config.
	Quiet, MaxWait time.Duration

	Version string
	Log     *slog.Logger
	// OnFaults, if set, hears of faults beside the log.
	OnFaults func([]config.Fault)
	// OnServing, if set, is called once all listeners are open.
	OnServing func(Addresses)
}

// Addresses are where a control plane listens; nil for what it was not told to.
type Addresses struct{ Plain, TLS, HTTP net.Addr }

// Source brings changes of configuration in. Run sends them until ctx ends.
type Source interface {
	Run(ctx context.Context) error
}

// TokenVerifier checks a bearer token and says whose it is.
type TokenVerifier interface {
	Verify(token string) (namespace, serviceAccount string, err error)
}

func (c *Config) complete() error {
	switch {
	case len(c.Sources) == 0 && c.NewSource == nil && c.Cluster == nil:
		return errors.New("control: Config.Sources is empty")
	case c.Log == nil:
		return errors.New("control: Config.Log is missing")
	case c.TLSAddr != "" && c.StateDir == "" && c.Cluster == nil:
		return errors.New("control: Config.StateDir is missing")
	}
	if c.NewSource == nil && c.Cluster == nil {
		c.NewSource = func(onBatch func(config.Batch), onFaults func([]config.Fault)) (Source, error) {
			return file.New(file.Config{Paths: c.Sources, Stdin: c.Stdin, Log: c.Log, OnBatch: onBatch, OnFaults: onFaults})
		}
	}
	if c.Listen == nil {
		c.Listen = (&net.ListenConfig{}).Listen
	}
	if c.TrustDomain == "" {
		c.TrustDomain = "cluster.local"
	}
	if c.ClusterID == "" {
		c.ClusterID = "Kubernetes"
	}
	if c.ServerNames == nil {
		c.ServerNames = ca.ServerNames("cluster.local")
	}
	return nil
}

// Run serves until ctx ends, or until a part of it cannot go on. Configuration
// that is faulty is no such thing: it is told, and the last good one stays.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.complete(); err != nil {
		return err
	}
	cluster, err := joinCluster(ctx, &cfg)
	if err != nil {
		return err
	}
	g := life.NewGroup(ctx)
	defer g.Stop()
	reg := newRegister(cfg.Log, cfg.OnFaults)
	reg.alone = cluster != nil
	batches := make(chan config.Batch)
	source, err := cfg.NewSource(func(b config.Batch) {
		reg.accepted(b)
		send(g.Context(), batches, b)
	}, reg.heard)
	if err != nil {
		return err
	}
	builder := model.NewBuilder(cluster.options(cfg))
	xds, err := server.New(server.Config{Quiet: cfg.Quiet, MaxWait: cfg.MaxWait, OnFault: reg.unplanned, MaySecrets: cluster.maySecrets(), Log: cfg.Log})
	if err != nil {
		return err
	}
	look := &pages{cfg, reg, xds, cluster.webhooks()}
	xds.SetDebugger(toolsNamespace, look.answer)
	plain := newGRPC()
	xds.Register(plain, nil)
	secure, err := secureServer(cfg, cluster, reg, xds)
	if err != nil {
		return err
	}
	doors, err := open(ctx, cfg)
	if err != nil {
		return err
	}
	defer doors.close()

	keys := make(chan fetched)
	fetcher, err := jwks.New(jwks.Config{Blocked: cfg.BlockedKeySources, Log: cfg.Log, OnKeys: func(ctx context.Context, source, text string) {
		select {
		case keys <- fetched{source, text}:
		case <-ctx.Done():
		}
	}})
	if err != nil {
		return err
	}

	g.Go("source", source.Run)
	g.Go("keys of tokens", fetcher.Run)
	cluster.start(cfg, g, doors.hooks)
	g.Go("world", func(ctx context.Context) error { return keepWorld(ctx, batches, keys, fetcher, builder, reg, xds) })
	g.Go("analysis", reg.analyse)
	g.Go("xds", xds.Run)
	g.Go("plain", serveGRPC(plain, doors.plain))
	g.Go("tls", serveGRPC(secure, doors.tls))
	g.Go("http", serveHTTP(look.handler(), doors.http))
	g.Go("ready", serveHTTP(look.handler(), doors.ready))

	at := doors.addresses()
	cfg.Log.Info("control plane serves", "plain", at.Plain, "tls", at.TLS, "http", at.HTTP)
	if cfg.OnServing != nil {
		cfg.OnServing(at)
	}
	return g.Wait()
}

// secureServer is the port for workloads: certificates, and xDS for those who
// have one or a token. nil if it is not wanted.
func secureServer(cfg Config, cluster *cluster, reg *register, xds *server.Server) (*grpc.Server, error) {
	if cfg.TLSAddr == "" {
		return nil, nil
	}
	authority, err := cluster.authority(cfg)
	if err != nil {
		return nil, err
	}
	ways := []ca.Authenticator{ca.PeerCertificate(cfg.TrustDomain)}
	if cfg.Tokens != nil {
		ways = append(ways, ca.Bearer(cfg.Tokens, cfg.TrustDomain))
	}
	auth := ca.FirstOf(ways...)
	certificates, err := ca.NewService(ca.ServiceConfig{CA: authority, Authenticator: auth, OnResult: reg.signed})
	if err != nil {
		return nil, err
	}
	s := newGRPC(grpc.Creds(credentials.NewTLS(authority.ServerTLS(cfg.ServerNames))))
	security.Register(s, certificates)
	xds.Register(s, auth)
	return s, nil
}

// fetched are the keys of a source.
type fetched struct{ source, keys string }

// keepWorld owns the world: it alone applies changes, one batch at a time.
func keepWorld(ctx context.Context, batches <-chan config.Batch, keys <-chan fetched, fetcher *jwks.Fetcher, builder *model.Builder, reg *register, xds *server.Server) error {
	var sources []string
	for {
		select {
		case b := <-batches:
			w, delta := builder.Apply(b)
			if first := reg.inForceNow(w); first || !delta.Empty() {
				xds.Update(world{w}, delta.Config, delta.Endpoints)
			}
			if delta.Secrets {
				xds.SecretsDiffer()
			}
			if now := w.KeySources(); !slices.Equal(now, sources) {
				sources = now
				fetcher.Want(now)
			}
		case k := <-keys:
			w, delta := builder.SetKeys(k.source, k.keys)
			reg.inForceNow(w)
			xds.Update(world{w}, delta.Config, delta.Endpoints)
		case <-ctx.Done():
			return nil
		}
	}
}

// send hands a batch on unless nobody will take it any more.
func send(ctx context.Context, to chan<- config.Batch, b config.Batch) {
	select {
	case to <- b:
	case <-ctx.Done():
	}
}

// world shows the server of a model.World what it needs.
type world struct{ *model.World }

func (w world) View(p *compile.Proxy) (string, func() *plan.Plan) {
	v := compile.ViewOf(w.World, p)
	return v.Key(), func() *plan.Plan { return compile.Plan(v) }
}

func (w world) Secret(p *compile.Proxy, name string) (*plan.Secret, bool) {
	return compile.Secret(w.World, p, name)
}

func (w world) Endpoints(name string) (*plan.LoadAssignment, bool) {
	return compile.Endpoints(w.World, name)
}

// doors are the open listeners; nil for what is not served.
type doors struct{ plain, tls, http, ready, hooks net.Listener }

func open(ctx context.Context, cfg Config) (d doors, err error) {
	for _, door := range []struct {
		to   *net.Listener
		addr string
	}{{&d.plain, cfg.PlainAddr}, {&d.tls, cfg.TLSAddr}, {&d.http, cfg.HTTPAddr}, {&d.ready, cfg.ReadyAddr}, {&d.hooks, cfg.WebhookAddr}} {
		if door.addr == "" {
			continue
		}
		if *door.to, err = cfg.Listen(ctx, "tcp", door.addr); err != nil {
			d.close()
			return doors{}, fmt.Errorf("control: %w", err)
		}
	}
	return d, nil
}

func (d doors) close() {
	for _, l := range []net.Listener{d.plain, d.tls, d.http, d.ready, d.hooks} {
		if l != nil {
			_ = l.Close() // the servers have usually done it
		}
	}
}

func (d doors) addresses() Addresses {
	of := func(l net.Listener) net.Addr {
		if l == nil {
			return nil
		}
		return l.Addr()
	}
	return Addresses{of(d.plain), of(d.tls), of(d.http)}
}

// maxRequest bounds what one request may make the control plane allocate; a
// proxy that names 100,000 endpoint lists needs a tenth of it.
const maxRequest = 64 << 20

func newGRPC(opts ...grpc.ServerOption) *grpc.Server {
	return grpc.NewServer(append([]grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.InitialWindowSize(1 << 20),
		grpc.InitialConnWindowSize(1 << 20),
		// Streams are silent for hours; both ends ask whether the other is there.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}, opts...)...)
}

// farewell is how long calls get to end by themselves. Streams do at once, when
// the xDS server stops, and certificates are signed in milliseconds.
const farewell = 2 * time.Second

// serveGRPC returns a function that serves on a listener until its context ends,
// or does nothing if there is no listener.
func serveGRPC(s *grpc.Server, l net.Listener) func(context.Context) error {
	return func(ctx context.Context) error {
		if l == nil {
			return nil
		}
		over := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			defer close(over)
			hard := time.AfterFunc(farewell, s.Stop)
			s.GracefulStop()
			hard.Stop()
		})
		err := s.Serve(l)
		if stop() {
			s.Stop() // it ended by itself, with calls still open
			return err
		}
		<-over
		return nil
	}
}
