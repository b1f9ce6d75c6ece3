// Package upstream reaches clusters: it holds their endpoints and keep-alive
// pools, chooses an endpoint, and opens or reuses a connection to it, with
// mutual TLS where the endpoint takes it.
//
// A Cluster lives as long as its name is in use, across configuration changes:
// a new plan.Cluster or load assignment is stored into it in one atomic step,
// and requests in flight keep what they started with. An Endpoint likewise lives
// as long as its address is part of the cluster; when it leaves, its idle
// connections are closed and those in use finish.
//
// Waiting happens on channels and timers only, and no lock is held across I/O.
package upstream

import (
	"context"
	"crypto/tls"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/http2"
	"github.com/heddle-mesh/heddle/internal/proxy/socket"
)

// Resolver looks up addresses. *net.Resolver is one.
type Resolver interface {
	// LookupNetIP returns the addresses of host; network is "ip". It returns when
	// ctx ends at the latest.
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Config is what a Set needs. Network is required; TLS is where a cluster asks
// for TLS, and Resolver where one has DNS names.
type Config struct {
	Network  socket.Network
	Identity identity.Source
	// TLS returns the client configuration for a cluster. It is called once for a
	// cluster's configuration, not per connection.
	TLS      func(*plan.ClientTLS) *tls.Config
	Resolver Resolver
	Now      func() time.Time // nil: time.Now
	Random   func() uint64    // nil: math/rand
	Log      *slog.Logger     // nil: slog.Default
	// Budget bounds what streams of HTTP/2 keep; nil: no bound.
	Budget *http2.Budget
}

// Set is all clusters of one proxy.
type Set struct {
	cfg      Config
	clusters atomic.Pointer[map[string]*Cluster]
	refresh  chan struct{} // cap 1: the DNS clusters may have changed
	// life ends with Close: nothing is dialled for many requests after it. readers are
	// the goroutines of shared connections.
	life    context.Context
	end     context.CancelFunc
	readers sync.WaitGroup

	mu     sync.Mutex // serializes Update and Close
	closed bool
}

// NewSet returns an empty set.
func NewSet(cfg Config) *Set {
	if cfg.Network == nil {
		panic("upstream: Config.Network is required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Random == nil {
		cfg.Random = rand.Uint64
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	s := &Set{cfg: cfg, refresh: make(chan struct{}, 1)}
	s.life, s.end = context.WithCancel(context.Background())
	s.clusters.Store(&map[string]*Cluster{})
	return s
}

// Cluster returns the cluster of this name, nil if there is none. The result may
// be kept: it stays usable, with no endpoints once it was removed.
func (s *Set) Cluster(name string) *Cluster { return (*s.clusters.Load())[name] }

// Update makes these the set's clusters and endpoints; endpoints are keyed by
// their EDS name. Clusters keep their pools and live state under their name. Those
// left out drain.
func (s *Set) Update(clusters map[string]*plan.Cluster, endpoints map[string]*plan.LoadAssignment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	old := *s.clusters.Load()
	next := make(map[string]*Cluster, len(clusters))
	for name, p := range clusters {
		c := old[name]
		if c == nil {
			c = newCluster(s, name)
		}
		eds := p.ServiceName
		if eds == "" {
			eds = name
		}
		c.update(p, endpoints[eds])
		next[name] = c
	}
	s.clusters.Store(&next)
	for name, c := range old {
		if next[name] == nil {
			c.close()
		}
	}
	select {
	case s.refresh <- struct{}{}:
	default:
	}
}

// Close closes all idle connections and makes every further one fail with
// ErrNoHealthy. Connections in use finish; Wait waits for those that are shared.
func (s *Set) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.end()
	for _, c := range *s.clusters.Load() {
		c.close()
	}
	s.clusters.Store(&map[string]*Cluster{})
}

// Wait returns when the shared connections of a set that was closed have ended.
func (s *Set) Wait() { s.readers.Wait() }

// sorted returns the clusters by name.
func (s *Set) sorted() []*Cluster {
	m := *s.clusters.Load()
	list := make([]*Cluster, 0, len(m))
	for _, name := range slices.Sorted(maps.Keys(m)) {
		list = append(list, m[name])
	}
	return list
}
