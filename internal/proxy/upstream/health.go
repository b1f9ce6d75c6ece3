package upstream

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/balance"
)

// maxEjection bounds how long a host is ejected. Source: Envoy's default
// max_ejection_time.
const maxEjection = 5 * time.Minute

// Outcome is how an attempt ended, as far as its endpoint is to blame.
type Outcome uint8

const (
	Answered    Outcome = iota // with some status
	Unreachable                // no connection, or one that broke before the answer
	TimedOut                   // no answer in time
)

// health is what outlier detection knows of an endpoint.
type health struct {
	bad, gateway, local atomic.Uint32 // failures in a row
	ejected             atomic.Bool

	// The cluster's mu guards
	until time.Time // when the ejection ends
	times uint32    // ejections that count for the next one's length
}

// Observe takes in how an attempt ended: what it was answered, and how long that
// took. Enough failures in a row eject the endpoint.
func (e *Endpoint) Observe(o Outcome, status int, took time.Duration) {
	s := e.cluster.state.Load()
	if s.plan.Balancing == plan.PeakEWMA {
		e.latency.Observe(e.cluster.set.cfg.Now(), took)
	}
	if p := s.plan.Outlier; p != nil && e.health.count(p, o, status) {
		e.cluster.eject(e)
	}
}

// count adds an outcome and reports whether it is one too many.
func (h *health) count(p *plan.Outlier, o Outcome, status int) bool {
	if o != Answered {
		if p.SplitLocal {
			n := h.local.Add(1)
			return p.ConsecutiveLocal > 0 && n >= p.ConsecutiveLocal
		}
		// Without the split, what a proxy would answer for it counts.
		status = 503
		if o == TimedOut {
			status = 504
		}
	} else {
		reset(&h.local)
	}
	bad := status >= 500
	if len(p.Codes) > 0 && o == Answered {
		bad = slices.Contains(p.Codes, uint32(status))
	}
	if !bad {
		reset(&h.bad)
		reset(&h.gateway)
		return false
	}
	over := p.Consecutive5xx > 0 && h.bad.Add(1) >= p.Consecutive5xx
	if status < 502 || status > 504 {
		reset(&h.gateway)
		return over
	}
	return p.ConsecutiveGateway > 0 && h.gateway.Add(1) >= p.ConsecutiveGateway || over
}

// reset spares the write that would take the counter's line from other cores.
func reset(n *atomic.Uint32) {
	if n.Load() != 0 {
		n.Store(0)
	}
}

// eject takes an endpoint out of the choice for a while, unless too many are out.
func (c *Cluster) eject(e *Endpoint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.state.Load()
	p := s.plan.Outlier
	if p == nil || c.closed || e.health.ejected.Load() || !slices.ContainsFunc(s.members, func(m member) bool { return m.Endpoint == e }) {
		return
	}
	out := 1
	for i := range s.members {
		if s.members[i].health.ejected.Load() {
			out++
		}
	}
	// "At least one" is for clusters that are too small for the percentage; the
	// only endpoint is never ejected so.
	if 100*out > int(p.MaxPercent)*len(s.members) && !(p.AtLeastOne && out == 1 && len(s.members) > 1) {
		return
	}
	h := &e.health
	h.times++
	h.until = c.set.cfg.Now().Add(min(p.BaseEjection*time.Duration(min(h.times, 1<<10)), max(maxEjection, p.BaseEjection)))
	h.ejected.Store(true)
	c.Stats.Ejections.Add(1)
	e.Stats.Ejections.Add(1)
	c.rechoose(s)
}

// rechoose stores a picker for what is healthy now. The caller holds mu.
func (c *Cluster) rechoose(s *state) {
	next := *s
	next.members = slices.Clone(s.members) // pick marks who is usable
	c.pick(&next)
	c.state.Store(&next)
}

// pick makes the picker for a state, and lets the clock run as long as anything in
// it depends on time. The caller holds mu.
func (c *Cluster) pick(next *state) {
	p, now := next.plan, c.set.cfg.Now()
	hosts := make([]balance.Host, len(next.members))
	busy := false // with what changes by itself
	for i := range next.members {
		m := &next.members[i]
		if p.Outlier == nil && m.health.ejected.Load() {
			m.health.ejected.Store(false) // nobody would bring it back
		}
		m.usable = m.healthy && !m.health.ejected.Load()
		hosts[i] = balance.Host{
			Weight: m.weight, Active: &m.Stats.RqActive, Latency: &m.latency, Key: m.key,
			Priority: m.priority, Locality: m.locality, LocalityWeight: m.localityWeight, Unhealthy: !m.usable,
		}
		if p.Warmup != nil {
			age := now.Sub(m.born)
			hosts[i].Weight = balance.Warm(p.Warmup, m.weight, age)
			busy = busy || age < p.Warmup.Duration
		}
		busy = busy || m.health.times > 0
	}
	next.picker = balance.New(balance.Config{
		Kind: p.Balancing, MinRing: p.MinRing, TableSize: p.TableSize,
		LocalityWeighted: p.LocalityWeighted, Panic: p.PanicPercent, Now: c.set.cfg.Now,
	}, hosts, c.set.cfg.Random())
	if busy {
		c.startClock(p)
	}
}

// Steps of a warm-up: a hundredth of it, but not more often than every second.
const (
	warmupSteps = 100
	warmupStep  = time.Second
)

// startClock calls advance at the next moment that matters. The caller holds mu.
func (c *Cluster) startClock(p *plan.Cluster) {
	if c.ticking || c.closed {
		return
	}
	every := time.Duration(0)
	if p.Outlier != nil {
		every = p.Outlier.Interval
	}
	if w := p.Warmup; w != nil {
		step := max(w.Duration/warmupSteps, warmupStep)
		if every == 0 || step < every {
			every = step
		}
	}
	if every <= 0 {
		return
	}
	c.ticking = true
	if c.clock == nil {
		c.clock = time.AfterFunc(every, c.advance)
	} else {
		c.clock.Reset(every)
	}
}

// advance brings back the endpoints whose time is over, and forgets ejections of
// those that behaved since.
func (c *Cluster) advance() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ticking = false
	if c.closed {
		return
	}
	s, now := c.state.Load(), c.set.cfg.Now()
	for i := range s.members {
		h := &s.members[i].health
		switch {
		case h.ejected.Load() && !now.Before(h.until):
			h.ejected.Store(false)
			h.bad.Store(0)
			h.gateway.Store(0)
			h.local.Store(0)
			// Each look at a good one takes an ejection back, the first one after
			// an interval.
			h.until = now
		case !h.ejected.Load() && h.times > 0 && now.After(h.until):
			h.times--
		}
	}
	c.rechoose(s)
}

// BeginRetry counts a retry, unless there are as many as the cluster allows at
// once. EndRetry has to follow if it returns true.
func (c *Cluster) BeginRetry() bool {
	p := c.Plan()
	n := c.retries.Add(1)
	allowed := int64(p.MaxRetries)
	if b := p.RetryBudget; b != nil {
		busy := c.Stats.RqActive.Load() + c.pending.Load()
		allowed = max(int64(b.Percent/100*float64(busy)), int64(b.MinRetries), 1)
	}
	if allowed > 0 && n > allowed {
		c.retries.Add(-1)
		return false
	}
	return true
}

// EndRetry ends what BeginRetry began.
func (c *Cluster) EndRetry() { c.retries.Add(-1) }
