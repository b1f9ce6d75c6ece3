// Package tcp forwards connections whose bytes mean nothing to the proxy.
//
// Each direction ends on its own: what one side ends, the other is told, and may
// go on answering. A reset of one side resets the other, so that nobody takes a
// broken stream for a complete one. Between two plain-text sockets the bytes stay
// in the kernel.
package tcp

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/mtls"
	"github.com/heddle-mesh/heddle/internal/proxy/rbac"
	"github.com/heddle-mesh/heddle/internal/proxy/route"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
	"github.com/heddle-mesh/heddle/internal/telemetry"
)

const (
	// defaultIdleTimeout is Envoy's for TCP proxying.
	defaultIdleTimeout = time.Hour
	// maxAttempts is how many endpoints are tried before a client is given up.
	// Nothing was sent to those that failed, so that another try is harmless, and
	// it hides an endpoint that is going away before the control plane says so.
	maxAttempts = 3
	// exchangeTimeout bounds the wait for a peer's metadata. A peer that agreed
	// on the exchange sends it at once.
	exchangeTimeout = 10 * time.Second
)

// Config is what a Proxy needs. Chain and Clusters are required.
type Config struct {
	Chain     *plan.TCPChain
	Direction plan.Direction
	Clusters  *upstream.Set
	Identity  identity.Source     // for the name that is presented to servers; may be nil
	Metrics   *telemetry.Registry // nil counts nothing
	Log       *telemetry.Log      // nil logs nothing
	// Own describes this proxy's workload, OwnMetadata the same as peers are sent
	// it.
	Own         telemetry.Workload
	OwnMetadata []byte
	// Context bounds attempts to connect.
	Context context.Context
}

// Proxy serves the connections of one chain.
type Proxy struct {
	cfg   Config
	idle  time.Duration
	rules atomic.Pointer[rbac.Engine] // nil: everybody may connect

	allowed, denied *telemetry.Counter
}

// New checks cfg.
func New(cfg Config) (*Proxy, error) {
	switch {
	case cfg.Chain == nil:
		return nil, errors.New("tcp: Config.Chain is missing")
	case cfg.Clusters == nil:
		return nil, errors.New("tcp: Config.Clusters is missing")
	case len(cfg.Chain.Clusters) == 0:
		return nil, errors.New("tcp: chain without cluster")
	case cfg.Context == nil:
		cfg.Context = context.Background()
	}
	p := &Proxy{cfg: cfg, idle: cfg.Chain.IdleTimeout}
	p.Police(cfg.Chain.RBAC)
	p.allowed, p.denied = new(telemetry.Counter), new(telemetry.Counter)
	if cfg.Metrics != nil {
		const help = "Connections that authorization policies decided about."
		p.allowed, p.denied = cfg.Metrics.Counter("envoy_tcp_rbac_allowed", help), cfg.Metrics.Counter("envoy_tcp_rbac_denied", help)
	}
	if p.idle <= 0 {
		p.idle = defaultIdleTimeout
	}
	if !cfg.Chain.Metrics {
		p.cfg.Metrics = nil
	}
	return p, nil
}

// Police puts rules in force, for connections that come from now on.
func (p *Proxy) Police(rules []*plan.RBAC) { p.rules.Store(rbac.New(rules)) }

// connection is one client's with what is known of it.
type connection struct {
	proxy  *Proxy
	info   *exchange.Conn
	labels telemetry.Labels
	entry  telemetry.Entry

	handle atomic.Pointer[telemetry.TCP] // nil until the labels are known
	// Bytes by direction, and how many of them the handle was told of. Only the
	// direction's goroutine changes them.
	up, down, toldUp, toldDown int64
}

// Serve forwards c until it ends, and returns why, if not in order. The end of ctx
// does not end it: bytes have no good moment for that.
func (p *Proxy) Serve(_ context.Context, c net.Conn, info *exchange.Conn) error {
	return p.begin(info).serve(c, nil)
}

func (p *Proxy) begin(info *exchange.Conn) *connection {
	x := &connection{proxy: p, info: info}
	x.entry.Start = time.Now()
	x.entry.DownstreamLocal, x.entry.DownstreamRemote = info.Local, info.Remote
	x.entry.ServerName = info.SNI
	x.labelClient()
	return x
}

// serve forwards c, over the way that was opened ahead if there is one.
func (x *connection) serve(c net.Conn, ahead *Ahead) error {
	p := x.proxy
	err := x.forward(newEnd(c), ahead)

	x.tell()
	if h := x.handle.Load(); h != nil {
		h.Closed()
	}
	x.entry.BytesReceived, x.entry.BytesSent = x.up, x.down
	x.entry.Duration = time.Since(x.entry.Start)
	p.cfg.Log.Write(&x.entry)
	return err
}

// forward exchanges metadata with the client, connects, does the same with the
// server, and copies.
func (x *connection) forward(client end, ahead *Ahead) error {
	p := x.proxy
	if err := x.refused(); err != nil {
		if ahead != nil {
			ahead.server.Close()
		}
		x.opened()
		client.conn.Close()
		return err
	}
	if ahead != nil {
		defer ahead.server.Close()
		x.opened()
		return x.relay(&relay{client: client, server: newEnd(&heard{ahead.server, ahead.first}), idle: p.idle, count: x.count})
	}
	if p.cfg.Chain.PeerExchange && x.info.ALPN == mtls.PeerExchange {
		frame, err := mtls.Exchange(client.conn, p.cfg.OwnMetadata, false, time.Now().Add(exchangeTimeout))
		if err != nil {
			client.reset()
			return err
		}
		if m, err := mtls.Decode(frame); err == nil {
			peer := m.Workload()
			x.info.Peer = &peer
			x.labelClient()
		}
	}

	server, err := x.connect()
	if err != nil {
		client.reset()
		x.opened()
		return err
	}
	defer server.Close()

	r := &relay{client: client, server: newEnd(server.Conn), idle: p.idle, count: x.count}
	if server.ALPN == mtls.PeerExchange {
		if err := mtls.WriteFrame(server, p.cfg.OwnMetadata); err != nil {
			client.reset()
			x.opened()
			return fmt.Errorf("metadata to server: %w", err)
		}
		// The client's first bytes need not wait for the answer.
		r.fromServer = func() error {
			if err := x.metadata(server); err != nil {
				return err
			}
			x.opened()
			return nil
		}
	} else {
		x.opened()
	}
	return x.relay(r)
}

// refused returns an error if policy does not let the client connect. Nothing was
// read from it yet, and nothing is sent for it.
func (x *connection) refused() error {
	rules := x.proxy.rules.Load()
	if rules == nil {
		return nil
	}
	v := rules.Decide(&rbac.Query{Conn: x.info})
	if !v.Denied {
		x.proxy.allowed.Inc()
		return nil
	}
	x.proxy.denied.Inc()
	x.entry.Termination = v.Details
	return errors.New(v.Details)
}

// relay copies, and notes how it ended.
func (x *connection) relay(r *relay) error {
	err := r.run()
	if x.handle.Load() == nil {
		x.opened()
	}
	if errors.Is(err, errIdle) {
		x.entry.Termination = "tcp_session_idle_timeout"
	}
	return err
}

// metadata reads what the server says of itself.
func (x *connection) metadata(server *upstream.Conn) error {
	if err := server.SetReadDeadline(time.Now().Add(exchangeTimeout)); err != nil {
		return err
	}
	frame, err := mtls.ReadFrame(server)
	if err != nil {
		return fmt.Errorf("metadata from server: %w", err)
	}
	if m, err := mtls.Decode(frame); err == nil {
		w := m.Workload()
		w.Principal = x.labels.Destination.Principal
		x.labels.Destination = w
	}
	return server.SetReadDeadline(time.Time{})
}

// connect returns a connection to an endpoint of one of the chain's clusters.
func (x *connection) connect() (*upstream.Conn, error) {
	name := route.Pick(x.proxy.cfg.Chain.Clusters, rand.Uint64())
	x.entry.UpstreamCluster = name
	c := x.proxy.cfg.Clusters.Cluster(name)
	x.labelService(name, c)
	if c == nil {
		return nil, x.failed(exchange.NoCluster, fmt.Errorf("no cluster %q", name))
	}
	var tried []*upstream.Endpoint
	for {
		server, err := c.Connect(x.proxy.cfg.Context, upstream.Want{OriginalDst: x.info.Local, Client: x.info.Remote, Tried: tried})
		if err == nil {
			x.labelServer(server)
			return server, nil
		}
		refused, ok := errors.AsType[*upstream.ConnectError](err)
		switch {
		case errors.Is(err, upstream.ErrNoHealthy):
			return nil, x.failed(exchange.NoHealthyUpstream, err)
		case errors.Is(err, upstream.ErrOverflow):
			return nil, x.failed(exchange.UpstreamOverflow, err)
		case !ok:
			return nil, x.failed(exchange.UpstreamFailure, err)
		}
		x.entry.UpstreamHost = refused.Endpoint.Address
		x.entry.TransportFailure = refused.TransportFailure()
		if len(tried)+1 == maxAttempts || slices.Contains(tried, refused.Endpoint) {
			return nil, x.failed(exchange.UpstreamFailure|exchange.RetriesExhausted, err)
		}
		tried = append(tried, refused.Endpoint)
	}
}

func (x *connection) failed(f exchange.Flags, err error) error {
	x.entry.Flags = f.String()
	x.labels.Flags = x.entry.Flags
	return err
}

// labelClient fills in what the client's side tells.
func (x *connection) labelClient() {
	own := x.proxy.cfg.Own
	x.labels.Protocol = telemetry.ProtocolTCP
	if x.proxy.cfg.Direction != plan.Inbound {
		x.labels.Reporter, x.labels.Security = telemetry.ReporterSource, telemetry.UnknownSecurity
		x.labels.Source = own
		return
	}
	x.labels.Reporter, x.labels.Security = telemetry.ReporterDestination, telemetry.NoSecurity
	x.labels.Destination = own
	if x.info.Peer != nil {
		x.labels.Source = *x.info.Peer
	}
	if x.info.MTLS {
		x.labels.Security = telemetry.MutualTLS
		x.labels.Source.Principal, x.labels.Destination.Principal = x.info.PeerID, x.info.OwnID
	}
}

// labelService fills in what the choice of a cluster tells. Clusters of no service
// are called by their own name.
func (x *connection) labelService(name string, c *upstream.Cluster) {
	x.labels.ServiceName = name
	if c == nil {
		return
	}
	if s := c.Plan().Service; s.Name != "" {
		x.labels.Service, x.labels.ServiceName, x.labels.ServiceNamespace = s.Host, s.Name, s.Namespace
	}
}

// labelServer fills in what the connection to the server tells.
func (x *connection) labelServer(server *upstream.Conn) {
	x.entry.UpstreamHost, x.entry.UpstreamLocal = server.Remote, server.Local
	x.entry.TransportFailure = ""
	if x.proxy.cfg.Direction == plan.Inbound {
		return
	}
	x.labels.Destination = server.Endpoint.Workload
	if !server.MTLS {
		return
	}
	x.labels.Security = telemetry.MutualTLS
	x.labels.Destination.Principal = server.PeerID
	if src := x.proxy.cfg.Identity; src != nil {
		if m := src.Current(); m != nil {
			x.labels.Source.Principal = m.ID.String()
		}
	}
}

// opened counts the connection, now that its labels are known.
func (x *connection) opened() {
	if x.proxy.cfg.Metrics == nil {
		return
	}
	h := x.proxy.cfg.Metrics.TCP(x.labels)
	h.Opened()
	x.handle.Store(h)
}

// count is told of bytes that passed, by each direction's goroutine.
func (x *connection) count(up, down int64) {
	h := x.handle.Load()
	if up > 0 {
		x.up += up
		if h != nil {
			h.Received(x.up - x.toldUp)
			x.toldUp = x.up
		}
	}
	if down > 0 {
		x.down += down
		if h != nil {
			h.Sent(x.down - x.toldDown)
			x.toldDown = x.down
		}
	}
}

// tell reports what count could not, when both directions have ended.
func (x *connection) tell() {
	if h := x.handle.Load(); h != nil {
		h.Received(x.up - x.toldUp)
		h.Sent(x.down - x.toldDown)
		x.toldUp, x.toldDown = x.up, x.down
	}
}
