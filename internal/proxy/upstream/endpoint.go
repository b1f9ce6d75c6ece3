package upstream

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/balance"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/telemetry"
)

// Stats counts what a cluster or an endpoint did, under Envoy's names.
type Stats struct {
	RqTotal, RqSuccess, RqError, RqActive atomic.Int64
	CxActive, CxTotal, CxConnectFail      atomic.Int64
	Ejections                             atomic.Int64
}

// Endpoint is one address of a cluster with its pool and counts.
type Endpoint struct {
	Address  netip.AddrPort
	MTLS     bool // its proxy accepts mutual TLS
	Workload telemetry.Workload
	Stats    Stats
	// Handles and Peer are memos for telemetry: labels depend on the endpoint.
	Handles exchange.Handles
	Peer    exchange.PeerMemo

	cluster *Cluster
	plan    plan.Endpoint // without Health and Weight, which may change
	key     string        // for consistent hashes
	born    time.Time
	health  health
	latency balance.Latency

	mu sync.Mutex
	// mu guards
	idle []*Conn // the one used last is at the end
	gone bool    // no longer part of the cluster
	// shared are connections of HTTP/2 that may have room; see shared.go.
	shared sharing
	// timer closes what was idle for too long; armed says that it is running.
	timer *time.Timer
	armed bool
}

func newEndpoint(c *Cluster, p plan.Endpoint) *Endpoint {
	return &Endpoint{
		Address: p.Address,
		MTLS:    p.MTLS,
		Workload: telemetry.Workload{
			Name:              p.Workload.Name,
			Namespace:         p.Workload.Namespace,
			CanonicalName:     p.Workload.CanonicalName,
			CanonicalRevision: p.Workload.CanonicalRevision,
			Cluster:           p.Workload.ClusterID,
		},
		cluster: c,
		plan:    p,
		key:     p.Address.String(),
		born:    c.set.cfg.Now(),
	}
}

// takeIdle returns the connection that was used last, which is the least likely
// to be closed by the other side, or nil.
func (e *Endpoint) takeIdle() *Conn {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := len(e.idle)
	if n == 0 {
		return nil
	}
	c := e.idle[n-1]
	e.idle[n-1] = nil
	e.idle = e.idle[:n-1]
	return c
}

// putIdle keeps a connection for the next request and reports whether it did.
func (e *Endpoint) putIdle(c *Conn, timeout time.Duration) bool {
	if c.idleSince = c.Ended; c.idleSince.IsZero() {
		c.idleSince = e.cluster.set.cfg.Now()
	}
	c.Ended = time.Time{}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone {
		return false
	}
	e.idle = append(e.idle, c)
	if !e.armed {
		e.armed = true
		if e.timer == nil {
			e.timer = time.AfterFunc(min(timeout, sweepEvery), e.expire)
		} else {
			e.timer.Reset(min(timeout, sweepEvery))
		}
	}
	return true
}

// sweepEvery is how often idle connections are looked at: one that the other side
// has closed holds a descriptor until then.
const sweepEvery = 5 * time.Second

// expire closes connections that were idle for too long, or that the other side
// has closed.
func (e *Endpoint) expire() {
	timeout := e.cluster.state.Load().idleTimeout
	now := e.cluster.set.cfg.Now()
	var old []*Conn
	e.mu.Lock()
	e.idle = slices.DeleteFunc(e.idle, func(c *Conn) bool {
		if now.Sub(c.idleSince) < timeout && !c.stale() {
			return false
		}
		old = append(old, c)
		return true
	})
	e.armed = len(e.idle) > 0 && !e.gone
	if e.armed {
		// The list is in the order of idleSince: its head is the oldest.
		e.timer.Reset(min(timeout-now.Sub(e.idle[0].idleSince), sweepEvery))
	}
	e.mu.Unlock()
	for _, c := range old {
		c.discard()
	}
	e.cluster.forgetUnused(e)
}

// flush closes the idle connections. With gone, no connection is kept from now on.
func (e *Endpoint) flush(gone bool) {
	e.mu.Lock()
	idle := e.idle
	e.idle = nil
	e.gone = e.gone || gone
	shared := e.shared.list
	e.shared.list = nil
	if e.timer != nil && gone {
		e.timer.Stop()
	}
	e.mu.Unlock()
	for _, c := range idle {
		c.discard()
	}
	for _, c := range shared {
		c.Shutdown()
	}
}

// retire marks an endpoint as gone unless it has idle connections.
func (e *Endpoint) retire() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.gone = e.gone || len(e.idle) == 0 && len(e.shared.list) == 0 && !e.shared.dialing
	return e.gone
}

// Idle returns how many connections wait for a request.
func (e *Endpoint) Idle() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.idle)
}
