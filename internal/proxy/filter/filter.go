// Package filter handles a client's connection as HTTP: it reads requests, sends
// each through a chain of filters, writes the responses and accounts for them.
//
// The chain is composed once for a listener's filter chain; see chain.go for its
// order and the reasons. Each filter has a folder of its own below this one and
// knows nothing of the others.
package filter

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/filter/extauthz"
	jwtfilter "github.com/heddle-mesh/heddle/internal/proxy/filter/jwt"
	"github.com/heddle-mesh/heddle/internal/proxy/http2"
	"github.com/heddle-mesh/heddle/internal/proxy/jwt"
	"github.com/heddle-mesh/heddle/internal/proxy/mtls"
	"github.com/heddle-mesh/heddle/internal/proxy/rbac"
	"github.com/heddle-mesh/heddle/internal/proxy/route"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
	"github.com/heddle-mesh/heddle/internal/telemetry"
)

// Handler and Filter are what chains are made of.
type (
	Handler = exchange.Handler
	Filter  = exchange.Filter
)

// Config is what a Server needs. Chain, Routes and Clusters are required.
type Config struct {
	Chain     *plan.HTTPChain
	Direction plan.Direction
	// Routes returns the current table, or nil while there is none. It is called
	// for each request.
	Routes   func() *route.Table
	Clusters *upstream.Set

	Metrics *telemetry.Registry // nil: no metrics
	Log     *telemetry.Log      // nil: no access log
	// Own describes the workload that the proxy serves.
	Own telemetry.Workload
	// OwnMetadata and OwnMetadataID describe it to peers, as header values.
	OwnMetadata, OwnMetadataID string
	// DecodePeer reads a peer's description; nil: mtls.DecodeHeaders.
	DecodePeer func(metadata, id string) (telemetry.Workload, bool)

	// Overloaded reports that a new request is to be shed; nil: none ever is.
	Overloaded func() bool

	// IdleTimeout ends a connection between requests; 0: an hour.
	IdleTimeout time.Duration
	// HeaderTimeout bounds how long a request's head may take from its first byte;
	// 0: a minute.
	HeaderTimeout time.Duration
	// StallTimeout ends a connection whose client, in the middle of a request,
	// neither sends nor takes anything; 0: five minutes. Waiting for an upstream is
	// no stall.
	StallTimeout time.Duration
	// Budget bounds what streams of HTTP/2 keep, of all connections that share it; nil:
	// no bound.
	Budget *http2.Budget

	Now    func() time.Time // nil: time.Now
	Random func() uint64    // nil: math/rand
	Logger *slog.Logger     // nil: slog.Default
}

// Sources: Envoy's default idle_timeout and stream_idle_timeout. It has no default
// for heads, which lets a client hold a connection for nothing.
const (
	defaultIdleTimeout   = time.Hour
	defaultHeaderTimeout = time.Minute
	defaultStallTimeout  = 5 * time.Minute
)

// Server serves connections of one filter chain. It is safe for concurrent use.
type Server struct {
	cfg       Config
	chain     chain
	observers []func(*exchange.Exchange)
	// streams and relays are the server's own, because timers are in them.
	streams sync.Pool // of *stream
	relays  sync.Pool // of *router.Relay
	// rules, tokens and asks are those in force.
	asks   atomic.Pointer[extauthz.Rules]
	rules  atomic.Pointer[rbac.Engine]
	tokens atomic.Pointer[jwtfilter.Rules]

	panics *telemetry.Counter
}

// NewServer composes the chain.
func NewServer(cfg Config) *Server {
	switch {
	case cfg.Chain == nil:
		panic("filter: Config.Chain is required")
	case cfg.Routes == nil:
		panic("filter: Config.Routes is required")
	case cfg.Clusters == nil:
		panic("filter: Config.Clusters is required")
	}
	if cfg.DecodePeer == nil {
		cfg.DecodePeer = decodePeer
	}
	if cfg.IdleTimeout <= 0 {
		cfg.IdleTimeout = defaultIdleTimeout
	}
	if cfg.HeaderTimeout <= 0 {
		cfg.HeaderTimeout = defaultHeaderTimeout
	}
	if cfg.StallTimeout <= 0 {
		cfg.StallTimeout = defaultStallTimeout
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Random == nil {
		cfg.Random = rand.Uint64
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Server{cfg: cfg, observers: observers(cfg), panics: new(telemetry.Counter)}
	s.Police(cfg.Chain)
	s.chain = compose(s)
	if cfg.Metrics != nil {
		s.panics = cfg.Metrics.Counter("heddle_proxy_panics_total", "Requests that ended in a panic of the proxy.")
	}
	return s
}

// Police puts the policy of a chain in force that differs from the server's own in
// nothing else. It acts on the next request of every connection.
func (s *Server) Police(c *plan.HTTPChain) {
	s.rules.Store(rbac.New(c.RBAC))
	s.asks.Store(extauthz.NewRules(c.Ask))
	tokens, err := jwt.NewVerifier(c.JWT, s.cfg.Now)
	if err != nil {
		s.cfg.Logger.Error("keys of tokens can not be read, and accept none", "chain", c.StatPrefix, "error", err)
	}
	s.tokens.Store(jwtfilter.NewRules(tokens))
}

func decodePeer(metadata, id string) (telemetry.Workload, bool) {
	m, err := mtls.DecodeHeaders(metadata, id)
	if err != nil {
		return telemetry.Workload{}, false
	}
	return m.Workload(), true
}

// Panics returns how many requests ended in a panic.
func (s *Server) Panics() int64 { return s.panics.Value() }

// connContext returns the context of a connection's requests. It does not end
// when the server drains: what has begun is finished.
func connContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithCancel(context.WithoutCancel(ctx))
}
