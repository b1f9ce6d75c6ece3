// Package overload keeps the proxy alive when memory runs short. It looks at how
// much the process holds, and says when to give work up: first new requests, then
// new connections, too. What has begun is finished, and so gives memory back.
//
// Every connection and every stream is bounded already; this is for too many of
// them. The garbage collector is asked to stay below a share of the limit, so that
// more than that means memory that is in use.
package overload

import (
	"context"
	"log/slog"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/internal/telemetry"
)

// Shares of the limit, in percent. At GCPercent the collector works hard; beyond
// it what is left must be in use.
const (
	GCPercent     = 80
	shedPercent   = 88
	refusePercent = 94
	// calmPercent is where everything is taken again: well below, so that the two do
	// not alternate.
	calmPercent = 84
)

// Between two looks, which take a quarter of a microsecond: in time, and in what memory grows by,
// for a storm of connections fills it faster than the clock ticks.
const (
	often    = 20 * time.Millisecond
	seldom   = 250 * time.Millisecond
	conns    = 16
	requests = 256
)

// Config is what a Guard needs.
type Config struct {
	// Limit is how many bytes the process may hold; 0: as many as it likes.
	Limit int64
	// InUse returns how many it holds; nil asks the runtime.
	InUse   func() int64
	Metrics *telemetry.Registry
	Log     *slog.Logger // nil: slog.Default
}

// level is what is given up.
type level int32

const (
	calm level = iota
	shedding
	refusing
)

var levels = [...]string{"calm", "shedding requests", "refusing connections"}

// Guard says what is to be given up. It is safe for concurrent use.
type Guard struct {
	cfg           Config
	level         atomic.Int32
	most          atomic.Int64 // of what was seen in use
	conns         atomic.Uint32
	requests      atomic.Uint32
	looking       sync.Mutex
	shed, refused *telemetry.Counter
}

// New returns a guard at which everything is calm until Run has looked.
func New(cfg Config) *Guard {
	if cfg.InUse == nil {
		cfg.InUse = inUse()
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	g := &Guard{cfg: cfg}
	g.shed = cfg.Metrics.Counter("heddle_proxy_overload_shed_requests_total", "Requests answered with 503 because memory was short.")
	g.refused = cfg.Metrics.Counter("heddle_proxy_overload_refused_connections_total", "Connections closed at once because memory was short.")
	cfg.Metrics.GaugeFunc("heddle_proxy_overload_peak_bytes", "The most memory that was seen in use.", func() float64 { return float64(g.most.Load()) })
	cfg.Metrics.GaugeFunc("heddle_proxy_overload_level", "0 if all is taken, 1 if requests are shed, 2 if connections are refused.", func() float64 { return float64(g.level.Load()) })
	return g
}

// Shed reports whether a new request is to be answered with 503, and counts it if so.
func (g *Guard) Shed() bool {
	g.count(&g.requests, requests)
	if level(g.level.Load()) < shedding {
		return false
	}
	g.shed.Inc()
	return true
}

// Refuse reports whether a new connection is to be closed, and counts it if so.
func (g *Guard) Refuse() bool {
	g.count(&g.conns, conns)
	if level(g.level.Load()) < refusing {
		return false
	}
	g.refused.Inc()
	return true
}

// count looks with every nth event, unless somebody is looking.
func (g *Guard) count(events *atomic.Uint32, n uint32) {
	if events.Add(1)%n == 0 && g.cfg.Limit > 0 && g.looking.TryLock() {
		g.look()
		g.looking.Unlock()
	}
}

// Run looks until ctx ends.
func (g *Guard) Run(ctx context.Context) error {
	if g.cfg.Limit <= 0 {
		return nil
	}
	t := time.NewTimer(seldom)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		g.looking.Lock()
		next := g.look()
		g.looking.Unlock()
		t.Reset(next)
	}
}

// look sets the level, and returns after how long to look again. looking is held.
func (g *Guard) look() time.Duration {
	used := g.cfg.InUse()
	g.most.Store(max(g.most.Load(), used))
	was := level(g.level.Load())
	is := next(was, used, g.cfg.Limit)
	if is != was {
		g.level.Store(int32(is))
		g.cfg.Log.Warn("memory", "now", levels[is], "before", levels[was], "bytes", used, "limit", g.cfg.Limit)
	}
	if used > g.cfg.Limit/2 {
		return often
	}
	return seldom
}

// next returns the level that follows was.
func next(was level, used, limit int64) level {
	switch percent := used * 100 / limit; {
	case percent >= refusePercent:
		return refusing
	case percent >= shedPercent:
		return max(was, shedding)
	case percent >= calmPercent:
		return min(was, shedding)
	}
	return calm
}

// inUse returns a function that asks the runtime for what its memory limit counts:
// all that it has from the operating system and has not given back.
func inUse() func() int64 {
	samples := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	return func() int64 {
		metrics.Read(samples)
		return int64(samples[0].Value.Uint64() - samples[1].Value.Uint64())
	}
}
