// Package proxy is the data plane as a library: Run wires identity, control
// plane, configuration, listeners, DNS and admin pages together, and ends them in
// the order that costs no request.
//
//	identity agent ─────────────────────────────┐ certificates, per handshake
//	xds client → decode.Store → snapshot.Build → listener.Manager → chains
//	                 │                                 └ filter (HTTP), tcp
//	                 ├→ upstream.Set  (clusters, endpoints; before the snapshot)
//	                 └→ dnsproxy      (names)
//
// Everything that Run touches outside of memory is passed in by Config, so that a
// whole mesh of proxies runs in one test on a simulated network and clock.
package proxy

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/internal/dnsproxy"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/agent"
	"github.com/heddle-mesh/heddle/internal/life"
	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/admin"
	"github.com/heddle-mesh/heddle/internal/proxy/decode"
	"github.com/heddle-mesh/heddle/internal/proxy/filter"
	"github.com/heddle-mesh/heddle/internal/proxy/http2"
	"github.com/heddle-mesh/heddle/internal/proxy/listener"
	"github.com/heddle-mesh/heddle/internal/proxy/mtls"
	"github.com/heddle-mesh/heddle/internal/proxy/overload"
	"github.com/heddle-mesh/heddle/internal/proxy/route"
	"github.com/heddle-mesh/heddle/internal/proxy/snapshot"
	"github.com/heddle-mesh/heddle/internal/proxy/socket"
	"github.com/heddle-mesh/heddle/internal/proxy/tcp"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
	"github.com/heddle-mesh/heddle/internal/telemetry"
	"github.com/heddle-mesh/heddle/internal/xds/client"
)

// Network is all that a proxy needs of one.
type Network interface {
	socket.Network
	// ListenPacket receives UDP datagrams at addr.
	ListenPacket(ctx context.Context, addr netip.AddrPort) (net.PacketConn, error)
	// DialContext is net.Dialer's; what it opens is not redirected.
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// Config is what a proxy is. Network, Workload, Control and Log are required.
type Config struct {
	Version  string
	Workload Workload
	Network  Network
	Control  Control
	Servers  Servers
	DNS      *DNS // nil does not capture DNS
	Drain    Drain

	// App is the application that health and metrics are asked of; nil has none.
	App *admin.App

	// CachePath is the file with the last good configuration; "" keeps none.
	CachePath string
	// KeepIdentity holds certificate and key over a restart; nil keeps none.
	KeepIdentity agent.Keeper
	// OpenLog opens an access log; nil opens files, and the process's own streams
	// for /dev/stdout and /dev/stderr.
	OpenLog func(path string) (io.WriteCloser, error)
	// MemoryLimit is how many bytes the process may hold before it gives up work; 0:
	// as many as it likes.
	MemoryLimit int64
	// MaxConnections bounds the clients' connections; 0 is listener's default.
	MaxConnections int
	// Resolver finds the hosts of clusters and the control plane that are given by
	// name; nil is the operating system's.
	Resolver upstream.Resolver

	Log   *slog.Logger
	Level *slog.LevelVar // of Log; nil: it can not be changed
	// OnReady is called once, when the proxy has become ready; it may be nil.
	OnReady func()
}

// Servers are the addresses of the pages about the proxy. An invalid one leaves
// its server out.
type Servers struct {
	Admin      netip.AddrPort // 127.0.0.1:15000
	Status     netip.AddrPort // 0.0.0.0:15020
	Ready      netip.AddrPort // 0.0.0.0:15021
	Prometheus netip.AddrPort // 0.0.0.0:15090
}

// DNS configures the answers to captured queries.
type DNS struct {
	Listen    netip.AddrPort // 127.0.0.1:15053
	Listen6   netip.AddrPort // [::1]:15053; invalid without IPv6
	Upstreams []netip.AddrPort
	Search    []string
}

// Drain says how a proxy ends.
type Drain struct {
	// Termination is how long it goes on after it was asked to end, with
	// connections being closed where they can.
	Termination time.Duration
	// ExitOnZero waits for Minimum, and then until no connection is left, in the
	// place of Termination.
	ExitOnZero bool
	Minimum    time.Duration
	// Chain is how long connections of a removed listener may go on.
	Chain time.Duration
}

// Istio's defaults: terminationDrainDuration, MINIMUM_DRAIN_DURATION and
// drainDuration of ProxyConfig.
const (
	DefaultTermination  = 5 * time.Second
	DefaultMinimumDrain = 5 * time.Second
	DefaultChainDrain   = 45 * time.Second
)

// activeCheck is how often ExitOnZero looks at the connections.
// Source: Istio, activeConnectionCheckDelay.
const activeCheck = time.Second

// proxy is one running proxy.
type proxy struct {
	cfg      Config
	metrics  *telemetry.Registry
	logs     *telemetry.Logs
	identity identity.Source
	secrets  mtls.Secrets
	clusters *upstream.Set
	budget   *http2.Budget // of what streams keep, to and from both sides
	live     snapshot.Live
	manager  *listener.Manager
	overload *overload.Guard
	admin    *admin.Server
	dns      *dnsproxy.Server
	deps     snapshot.Deps

	hasIdentity <-chan struct{} // closed when there was a first certificate; nil: none is expected
	quit        context.CancelFunc
	warm        atomic.Bool
	last        *decode.State // taken in by apply
}

// Run runs a proxy until ctx ends, and then drains it. It returns when everything
// has ended; nil if that was asked for.
func Run(ctx context.Context, cfg Config) error {
	switch {
	case cfg.Network == nil:
		return errors.New("proxy: Config.Network is missing")
	case cfg.Log == nil:
		return errors.New("proxy: Config.Log is missing")
	case cfg.Control.Address == "" && cfg.Control.Connect == nil:
		return errors.New("proxy: Config.Control has no address")
	}
	if err := cfg.Workload.check(); err != nil {
		return fmt.Errorf("proxy: Config.Workload: %w", err)
	}
	cfg.Resolver = cmp.Or[upstream.Resolver](cfg.Resolver, net.DefaultResolver)

	// The work goes on after ctx has ended, until it is drained.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	asked, quit := context.WithCancel(ctx)
	defer quit()
	p := &proxy{cfg: cfg, metrics: telemetry.NewRegistry(), quit: quit, last: &decode.State{}}
	g := life.NewGroup(work)
	if err := p.start(g); err != nil {
		g.Stop()
		return errors.Join(err, g.Wait())
	}
	select {
	case <-asked.Done():
		p.drain(g.Context())
	case <-g.Context().Done(): // a part failed: the others are ending
	}
	g.Stop()
	err := g.Wait()
	p.clusters.Close()
	p.clusters.Wait()
	return err
}

// start makes all parts and starts them.
func (p *proxy) start(g *life.Group) error {
	cfg, ctx := &p.cfg, g.Context()
	log := cfg.Log

	// 1st: who this is, and what it proves that with.
	control := newControl(cfg)
	if err := p.startIdentity(g, control); err != nil {
		return err
	}

	// 2nd: what requests and connections need.
	p.logs = telemetry.NewLogs(cfg.OpenLog)
	p.metrics.GaugeFunc("heddle_access_log_dropped", "Access log entries that were lost because their reader did not keep up.", func() float64 { return float64(p.logs.Dropped()) })
	g.Go("access log", p.logs.Run)
	p.budget = http2.NewBudget(budget(cfg.MemoryLimit))
	p.clusters = upstream.NewSet(upstream.Config{
		Network: cfg.Network, Identity: p.identity, Resolver: cfg.Resolver, Log: log, Budget: p.budget,
		TLS: func(t *plan.ClientTLS) *tls.Config { return mtls.ClientConfig(p.identity, t) },
	})
	g.Go("clusters", p.clusters.Run)
	p.overload = overload.New(overload.Config{Limit: cfg.MemoryLimit, Metrics: p.metrics, Log: log})
	g.Go("memory", p.overload.Run)
	p.deps = p.chains(ctx)
	var err error
	p.manager, err = listener.New(listener.Config{
		Network: cfg.Network, Live: &p.live, Identity: p.identity, Metrics: p.metrics, Log: log,
		MaxConnections: cfg.MaxConnections, DrainTime: cfg.Drain.Chain, Refuse: p.overload.Refuse,
	})
	if err != nil {
		return err
	}
	g.Go("listeners", p.manager.Run)

	// 3rd: names.
	if cfg.DNS != nil {
		if err := p.startDNS(g); err != nil {
			return err
		}
	}

	// 4th: what it is told to do. From here on the parts above get work.
	store := decode.NewStore(p.apply)
	xds, err := client.New(client.Config{Node: cfg.Workload.node(cfg.Version), Connect: control.connect, Handler: store, CachePath: cfg.CachePath, Log: log})
	if err != nil {
		return err
	}
	p.metrics.GaugeFunc("istio_agent_xds_connected", "1 while the control plane is connected.", func() float64 {
		if xds.Connected() {
			return 1
		}
		return 0
	})
	g.Go("control plane", func(ctx context.Context) error {
		defer store.Close()
		return xds.Run(ctx)
	})

	// 5th: what others may see and ask of it.
	p.admin, err = admin.New(admin.Config{
		Version: cfg.Version, Node: cfg.Workload.node(cfg.Version), Resources: xds.Resources, Live: &p.live, Clusters: p.clusters,
		Metrics: p.metrics, Identity: p.identity, Level: cfg.Level, Connections: p.manager.Active, Ready: p.ready,
		Drain: p.drainListeners, Quit: p.quit, App: cfg.App,
	})
	if err != nil {
		return err
	}
	for _, s := range []struct {
		name    string
		addr    netip.AddrPort
		handler http.Handler
	}{
		{"admin", cfg.Servers.Admin, p.admin.Admin()},
		{"status", cfg.Servers.Status, p.admin.Status()},
		{"ready", cfg.Servers.Ready, p.admin.Ready()},
		{"prometheus", cfg.Servers.Prometheus, p.admin.Prometheus()},
	} {
		if s.addr.IsValid() {
			if err := p.serve(g, s.name, s.addr, s.handler); err != nil {
				return err
			}
		}
	}
	if cfg.OnReady != nil {
		g.Go("ready", p.announce)
	}
	return nil
}

// startIdentity starts the agent that keeps the workload's certificate.
func (p *proxy) startIdentity(g *life.Group, c *control) error {
	w := &p.cfg.Workload
	csr, closeCSR, err := c.csr()
	if err != nil {
		return err
	}
	roots, err := c.roots()
	if err != nil {
		closeCSR()
		return err
	}
	failures := p.metrics.Counter("istio_agent_num_failed_outgoing_requests", "Number of failed outgoing requests (e.g. to a token exchange server, CA, etc.)", telemetry.Label{Name: "request_type", Value: "CSR"})
	requests := p.metrics.Counter("istio_agent_num_outgoing_requests", "Number of total outgoing requests (e.g. to a token exchange server, CA, etc.)", telemetry.Label{Name: "request_type", Value: "CSR"})
	a, err := agent.New(agent.Config{
		ID: identity.ID{TrustDomain: w.TrustDomain, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount}, CSR: csr, RootPEM: roots, Keep: p.cfg.KeepIdentity, Log: p.cfg.Log,
		OnAttempt: func(err error) {
			requests.Inc()
			if err != nil {
				failures.Inc()
			}
		},
	})
	if err != nil {
		closeCSR()
		return err
	}
	p.identity, p.hasIdentity = a, a.Ready()
	g.Go("identity", func(ctx context.Context) error {
		defer closeCSR()
		return a.Run(ctx)
	})
	return nil
}

// mostStreamBudget is plenty for one workload, and budgetShare the part of a small
// proxy's memory that may be in data which waits to be sent.
const (
	mostStreamBudget = 64 << 20
	budgetShare      = 4
)

// budget returns how much streams of HTTP/2 may keep, in bytes.
func budget(limit int64) int64 {
	if limit <= 0 {
		return mostStreamBudget
	}
	return min(limit/budgetShare, mostStreamBudget)
}

// chains says how filter chains are made.
func (p *proxy) chains(ctx context.Context) snapshot.Deps {
	cfg := &p.cfg
	meta := cfg.Workload.metadata()
	own := meta.Workload()
	named := own // as it is called where it has shown its certificate
	named.Principal = identity.ID{TrustDomain: cfg.Workload.TrustDomain, Namespace: cfg.Workload.Namespace, ServiceAccount: cfg.Workload.ServiceAccount}.String()
	frame := meta.Encode()
	header, headerID := meta.Headers()
	bytes := func(c *plan.TCPChain, d plan.Direction) (*tcp.Proxy, error) {
		log, err := p.logs.Get(c.AccessLog)
		if err != nil {
			return nil, err
		}
		return tcp.New(tcp.Config{Chain: c, Direction: d, Clusters: p.clusters, Identity: p.identity, Metrics: p.metrics, Log: log, Own: own, OwnMetadata: frame, Context: ctx})
	}
	return snapshot.Deps{
		Live: &p.live, Context: ctx,
		TLS: func(t *plan.ServerTLS) *tls.Config {
			if t.Certificate != mtls.OwnCertificate {
				return mtls.EdgeConfig(&p.secrets, t)
			}
			return mtls.ServerConfig(p.identity, t)
		},
		TCP: func(c *plan.TCPChain, d plan.Direction) (snapshot.Handler, error) { return bytes(c, d) },
		HTTP: func(c *plan.HTTPChain, d plan.Direction, routes func() *route.Table) (snapshot.Handler, error) {
			log, err := p.logs.Get(c.AccessLog)
			if err != nil {
				return nil, err
			}
			metrics := p.metrics
			if !c.Metrics {
				metrics = nil
			}
			s := filter.NewServer(filter.Config{Chain: c, Direction: d, Routes: routes, Clusters: p.clusters, Metrics: metrics, Log: log,
				Own: named, OwnMetadata: header, OwnMetadataID: headerID, Logger: cfg.Log, Budget: p.budget, Overloaded: p.overload.Shed})
			other, err := bytes(passThrough(c, d), d)
			if err != nil {
				return nil, err
			}
			return &httpOrBytes{s, other}, nil
		},
	}
}

func (p *proxy) startDNS(g *life.Group) error {
	cfg, d := &p.cfg, p.cfg.DNS
	c := dnsproxy.Config{Upstreams: d.Upstreams, Search: d.Search, Log: cfg.Log}
	c.Dial = func(ctx context.Context, network string, addr netip.AddrPort) (net.Conn, error) {
		return cfg.Network.DialContext(ctx, network, addr.String())
	}
	requests := p.metrics.Counter("istio_agent_dns_requests_total", "Total number of DNS requests.")
	upstreams := p.metrics.Counter("istio_agent_dns_upstream_requests_total", "Total number of DNS requests forwarded to upstream.")
	failures := p.metrics.Counter("istio_agent_dns_upstream_failures_total", "Total number of DNS failures.")
	c.OnRequest = requests.Inc
	c.OnForward = func(_ time.Duration, err error) {
		upstreams.Inc()
		if err != nil {
			failures.Inc()
		}
	}
	ctx := g.Context()
	var opened []io.Closer
	fail := func(err error) error {
		for _, o := range opened {
			o.Close()
		}
		return fmt.Errorf("DNS: %w", err)
	}
	open := func(addr netip.AddrPort) (net.PacketConn, net.Listener, error) {
		packet, err := cfg.Network.ListenPacket(ctx, addr)
		if err != nil {
			return nil, nil, err
		}
		opened = append(opened, packet)
		stream, err := cfg.Network.Listen(ctx, addr)
		if err != nil {
			return nil, nil, err
		}
		opened = append(opened, stream)
		return packet, stream, nil
	}
	var err error
	if c.Packet, c.Stream, err = open(d.Listen); err != nil {
		return fail(err)
	}
	if d.Listen6.IsValid() {
		if c.Packet6, c.Stream6, err = open(d.Listen6); err != nil {
			// A machine without IPv6 has no queries over it either.
			cfg.Log.Info("no DNS over IPv6", "error", err)
			c.Packet6, c.Stream6 = nil, nil
		}
	}
	if p.dns, err = dnsproxy.New(c); err != nil {
		return fail(err)
	}
	g.Go("DNS", p.dns.Run)
	return nil
}

// serve runs one of the servers for people, tools and probes.
func (p *proxy) serve(g *life.Group, name string, addr netip.AddrPort, h http.Handler) error {
	l, err := p.cfg.Network.Listen(g.Context(), addr)
	if err != nil {
		return fmt.Errorf("%s server: %w", name, err)
	}
	s := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(p.cfg.Log.Handler(), slog.LevelDebug),
	}
	g.Go(name+" server", func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() { s.Close() })
		defer stop()
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	return nil
}

// apply takes in what the control plane said: first what can be called, then who
// calls it, and last what is no longer called. It is called by one goroutine at a
// time.
func (p *proxy) apply(state *decode.State) {
	if p.dns != nil {
		p.dns.SetTable(state.Names)
	}
	if !state.Warm {
		// Half of a configuration might leave out what protects the workload.
		return
	}
	if err := p.secrets.Set(state.Secrets); err != nil {
		p.cfg.Log.Error("secrets can not be used", "error", err)
	}
	clusters := union(state.Clusters, p.last.Clusters)
	endpoints := union(state.Endpoints, p.last.Endpoints)
	p.clusters.Update(clusters, endpoints)

	s, err := snapshot.Build(state, p.live.Current(), p.deps)
	if err != nil {
		p.cfg.Log.Error("parts of the configuration can not be used", "error", err)
	}
	p.live.Publish(s)
	p.manager.Update(s)

	if len(clusters) != len(state.Clusters) {
		p.clusters.Update(state.Clusters, state.Endpoints)
	}
	p.last = state
	p.warm.Store(true)
}

// union has all of m, and what only old has.
func union[T any](m, old map[string]T) map[string]T {
	out := make(map[string]T, max(len(m), len(old)))
	maps.Copy(out, old)
	maps.Copy(out, m)
	return out
}

// ready says why the proxy can not do its work yet, or nil.
func (p *proxy) ready() error {
	switch {
	case !p.warm.Load():
		return errors.New("no configuration yet")
	case !p.manager.Open():
		return errors.New("listeners are not open yet")
	}
	select {
	case <-p.hasIdentity:
		return nil
	default:
		return errors.New("no certificate yet")
	}
}

// announce calls OnReady.
func (p *proxy) announce(ctx context.Context) error {
	t := time.NewTicker(50 * time.Millisecond)
	defer t.Stop()
	for p.ready() != nil {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
	p.cfg.OnReady()
	return nil
}

// drainListeners asks the connections to end soon.
func (p *proxy) drainListeners(inboundOnly bool) {
	p.manager.Drain(plan.Inbound)
	p.manager.Drain(plan.Edge)
	if !inboundOnly {
		p.manager.Drain(plan.Outbound)
	}
}

// drain is the way to the end. Clients hear of it with their next response and
// go elsewhere; those that did not hear yet are still served. The workload's own
// calls go on until it ends too.
func (p *proxy) drain(ctx context.Context) {
	d := &p.cfg.Drain
	p.cfg.Log.Info("draining", "connections", p.manager.Active())
	p.admin.SetDraining()
	p.drainListeners(true)
	if !d.ExitOnZero {
		pause(ctx, d.Termination)
	} else {
		pause(ctx, d.Minimum)
		for ctx.Err() == nil && p.manager.Active() > 0 {
			pause(ctx, activeCheck)
		}
	}
	p.cfg.Log.Info("ending", "connections", p.manager.Active())
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
