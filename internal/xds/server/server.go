// Package server tells proxies their configuration over Envoy's xDS protocol:
// the aggregated discovery service in both variants, state-of-the-world and
// incremental.
//
// What the protocol demands of one stream is in two pure machines, sotw and
// delta, without goroutine, clock or socket: a request goes in, a response comes
// out. Around them is one loop for each stream. It answers requests, and wakes
// when the world changed:
//
//   - endpoints that changed go at once to the streams that watch them;
//   - so do secrets, to proxies that proved who they are and may read them;
//   - other changes are collected for a few milliseconds, then every stream
//     compiles its view again, where streams with equal views share one plan and
//     its bytes, and sends what differs: clusters, endpoints, listeners, routes,
//     names, in this order, so that nothing is referred to before it is there.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/internal/compile"
	"github.com/heddle-mesh/heddle/internal/encode"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/plan"
)

// World is what the server needs of a model.World. It never changes; methods are
// called from many goroutines.
type World interface {
	// View returns the fingerprint of what a proxy may see, and the step that
	// makes the plan: pure, and called once for each fingerprint.
	View(p *compile.Proxy) (key string, plan func() *plan.Plan)
	// Endpoints returns the endpoints behind an EDS name, or false if there is no
	// such thing.
	Endpoints(name string) (*plan.LoadAssignment, bool)
	// Secret returns a secret by the name that a proxy has for it, or false if there
	// is none for it.
	Secret(p *compile.Proxy, name string) (*plan.Secret, bool)
}

// Authenticator tells who is calling. It is asked once for each stream, may block
// while ctx lives, and fails if the caller proves nothing.
type Authenticator interface {
	Authenticate(ctx context.Context) (identity.ID, error)
}

// Config says how the server behaves. Zero durations get the defaults named.
type Config struct {
	// Quiet is how long no change must come before a collected one is sent (5 ms),
	// and MaxWait how long a change may wait for that at most (50 ms).
	Quiet, MaxWait time.Duration
	// MaySecrets says whether a service account may read the Secrets of its own
	// namespace. It may block while ctx lives, and is asked each time that secrets
	// are sent: it should remember what it said. nil: nobody is given any.
	MaySecrets func(ctx context.Context, namespace, serviceAccount string) (bool, error)
	// OnFault, if set, hears of plans that could not be made.
	OnFault func(error)
	Log     *slog.Logger
}

// Defaults of Config. Istio waits 100 ms for quiet; the price of a push is a few
// milliseconds here.
const (
	defaultQuiet   = 5 * time.Millisecond
	defaultMaxWait = 50 * time.Millisecond
)

// Server holds the streams and what they are told. Run must run for changes to
// be sent.
type Server struct {
	cfg     Config
	plans   *plans
	eds     *endpoints
	counts  counters
	pending chan struct{} // holds one token while a change waits to be published
	ready   chan struct{} // closed when there is a world
	stop    chan struct{} // closed when Run ends

	debugger Debugger // nil: tools are not answered
	tools    string   // the namespace they are of

	mu sync.Mutex
	// mu guards the newest world, the published one and the streams.
	newest  World
	changed time.Time // when the oldest change that is not published came; else zero
	current *publication
	streams map[*stream]bool
	ended   bool
}

// publication is a world that streams take their configuration from.
type publication struct {
	world   World
	changed time.Time // when its first change came
}

// New returns a server without a world: streams wait for the first Update.
func New(cfg Config) (*Server, error) {
	if cfg.Log == nil {
		return nil, errors.New("xds server: Config.Log is missing")
	}
	if cfg.Quiet == 0 {
		cfg.Quiet = defaultQuiet
	}
	if cfg.MaxWait == 0 {
		cfg.MaxWait = defaultMaxWait
	}
	if cfg.OnFault == nil {
		cfg.OnFault = func(error) {}
	}
	return &Server{
		cfg:     cfg,
		plans:   newPlans(encode.New()),
		eds:     newEndpoints(encode.New()),
		pending: make(chan struct{}, 1),
		ready:   make(chan struct{}),
		stop:    make(chan struct{}),
		streams: map[*stream]bool{},
	}, nil
}

// Register adds the discovery service to a gRPC server. Callers prove who they
// are to auth; nil takes everybody at their word, and is for addresses that only
// trusted programs reach.
func (s *Server) Register(to grpc.ServiceRegistrar, auth Authenticator) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(to, &service{server: s, auth: auth})
}

// Update takes a new world in. config is set if plans may differ; endpoints names
// the service ports, "host|port", whose endpoints differ. It does not block, and
// must not be called from two goroutines at once.
func (s *Server) Update(w World, config bool, endpoints []string) {
	s.eds.update(w, config, endpoints)
	s.mu.Lock()
	s.newest = w
	first := s.current == nil
	if first {
		s.current = &publication{world: w, changed: time.Now()}
		close(s.ready)
	} else if config && s.changed.IsZero() {
		s.changed = time.Now()
	}
	streams := make([]*stream, 0, len(s.streams))
	for st := range s.streams {
		streams = append(streams, st)
	}
	s.mu.Unlock()

	switch {
	case first:
		for _, st := range streams {
			st.markConfig(s.publication())
		}
	default:
		for _, st := range streams {
			st.markEndpoints(endpoints)
		}
		if config {
			select {
			case s.pending <- struct{}{}:
			default:
			}
		}
	}
}

// SecretsDiffer says that the newest world has other secrets than the one before.
// It does not block.
func (s *Server) SecretsDiffer() {
	s.mu.Lock()
	streams := slices.Collect(maps.Keys(s.streams))
	s.mu.Unlock()
	for _, st := range streams {
		st.markSecrets()
	}
}

// Run publishes changes until ctx ends; then it ends all streams.
func (s *Server) Run(ctx context.Context) error {
	defer s.endStreams()
	for {
		select {
		case <-s.pending:
		case <-ctx.Done():
			return nil
		}
		if !s.settle(ctx) {
			return nil
		}
		s.publish()
	}
}

// settle waits until no further change has come for a while. It returns false if
// ctx ended.
func (s *Server) settle(ctx context.Context) bool {
	quiet, limit := time.NewTimer(s.cfg.Quiet), time.NewTimer(s.cfg.MaxWait)
	defer quiet.Stop()
	defer limit.Stop()
	for {
		select {
		case <-s.pending:
			quiet.Reset(s.cfg.Quiet)
		case <-quiet.C:
			return true
		case <-limit.C:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

// publish makes the newest world the one that configuration comes from.
func (s *Server) publish() {
	s.plans.nextGeneration()
	s.mu.Lock()
	s.current = &publication{world: s.newest, changed: s.changed}
	s.changed = time.Time{}
	p := s.current
	streams := make([]*stream, 0, len(s.streams))
	for st := range s.streams {
		streams = append(streams, st)
	}
	s.mu.Unlock()
	for _, st := range streams {
		st.markConfig(p)
	}
}

func (s *Server) publication() *publication {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

// add makes a stream known, and wakes it if there is a world for it.
func (s *Server) add(st *stream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return errStopping
	}
	s.streams[st] = true
	st.publication = s.current
	return nil
}

func (s *Server) remove(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
}

func (s *Server) endStreams() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	close(s.stop)
}

var errStopping = status.Error(codes.Unavailable, "the control plane is stopping")

// service is the gRPC face of a server for one way of authentication.
type service struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	server *Server
	auth   Authenticator
}

// StreamAggregatedResources is the state-of-the-world variant.
func (s *service) StreamAggregatedResources(rpc discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return s.server.serve(rpc.Context(), s.auth, sotwWire{rpc}, newSotw())
}

// DeltaAggregatedResources is the incremental variant.
func (s *service) DeltaAggregatedResources(rpc discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return s.server.serve(rpc.Context(), s.auth, deltaWire{rpc}, newDelta())
}

// who authenticates a caller and checks that it is what its node says.
func (s *Server) who(ctx context.Context, auth Authenticator, p *compile.Proxy) error {
	if auth == nil {
		return nil
	}
	id, err := auth.Authenticate(ctx)
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	if id.Namespace != p.Namespace {
		return status.Errorf(codes.PermissionDenied, "%s may not ask as node %q: it is of namespace %q", id, p.ID, p.Namespace)
	}
	if p.ServiceAccount == "" {
		p.ServiceAccount = id.ServiceAccount
	}
	if id.ServiceAccount != p.ServiceAccount {
		return status.Errorf(codes.PermissionDenied, "%s may not ask as node %q: it has service account %q", id, p.ID, p.ServiceAccount)
	}
	return nil
}

// fault reports what an operator must know.
func (s *Server) fault(format string, args ...any) {
	err := fmt.Errorf(format, args...)
	s.cfg.Log.Error("fault", "err", err)
	s.cfg.OnFault(err)
}
