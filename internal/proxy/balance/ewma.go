package balance

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// decay is how fast a host's latency is forgotten: after this time, an
// observation counts by a factor of e less. Source: Finagle, "Aperture load
// balancers", the default of its peak EWMA.
const decay = 10 * time.Second

// unknown is the cost of a host nothing is known of that has requests in flight: it
// is given one request, and no second one before the first has come back.
const unknown = float64(time.Hour)

// Latency is a moving average of how long a host takes that jumps to every peak
// and sinks back slowly. The zero value knows nothing.
type Latency struct {
	mu    sync.Mutex
	cost  atomic.Uint64 // float64, nanoseconds
	stamp atomic.Int64  // of the last observation, nanoseconds
}

// Observe takes in that a request took d and ended now.
func (l *Latency) Observe(now time.Time, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := now.UnixNano()
	cost, took := math.Float64frombits(l.cost.Load()), float64(max(d, 0))
	if took > cost {
		cost = took
	} else {
		w := math.Exp(-float64(max(at-l.stamp.Load(), 0)) / float64(decay))
		cost = cost*w + took*(1-w)
	}
	l.cost.Store(math.Float64bits(cost))
	l.stamp.Store(at)
}

// at returns the cost of now. A host that is not used gets its chance again.
func (l *Latency) at(now int64) float64 {
	cost := math.Float64frombits(l.cost.Load())
	return cost * math.Exp(-float64(max(now-l.stamp.Load(), 0))/float64(decay))
}

// peakEWMA takes the quicker of two hosts chosen at random, each by its latency
// times the requests that it would then have.
type peakEWMA struct {
	hosts []Host
	by    *weighted
	now   func() time.Time
}

func newPeakEWMA(hosts []Host, now func() time.Time) *peakEWMA {
	return &peakEWMA{hosts: hosts, by: newWeighted(hosts), now: now}
}

func (p *peakEWMA) Pick(random uint64) int {
	a := p.by.Pick(random)
	b := p.by.Pick(mix(random))
	if a == b {
		if p.by.columns != nil {
			return a // comparing with a neighbour would give that one too much
		}
		if b++; b == len(p.hosts) {
			b = 0
		}
	}
	now := p.now().UnixNano()
	if p.load(a, now) <= p.load(b, now) {
		return a
	}
	return b
}

func (p *peakEWMA) load(i int, now int64) float64 {
	h := &p.hosts[i]
	active := float64(h.Active.Load())
	cost := h.Latency.at(now)
	if h.Latency.stamp.Load() == 0 && active > 0 {
		cost = unknown
	}
	return cost * (active + 1) / float64(max(h.Weight, 1))
}
