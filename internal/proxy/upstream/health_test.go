package upstream

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// hosts returns an assignment of n endpoints in one place.
func hosts(n int) *plan.LoadAssignment {
	list := make([]netip.AddrPort, n)
	for i := range list {
		list[i] = addr(fmt.Sprintf("10.0.1.%d:80", i+1))
	}
	return assignment(list...)
}

// chosen counts what n choices fall on.
func (c *Cluster) chosen(n int) map[netip.AddrPort]int {
	out := map[netip.AddrPort]int{}
	for range n {
		if e := c.choose(c.state.Load(), &Want{}); e != nil {
			out[e.Address]++
		}
	}
	return out
}

func outlier() *plan.Outlier {
	return &plan.Outlier{Consecutive5xx: 5, Interval: 10 * time.Second, BaseEjection: 30 * time.Second, MaxPercent: 100}
}

func TestFailuresInARowEject(t *testing.T) {
	for name, c := range map[string]struct {
		policy func(*plan.Outlier)
		report func(e *Endpoint)
		after  int // reports; 0: never
	}{
		"5xx":                         {nil, func(e *Endpoint) { e.Observe(Answered, 500, 0) }, 5},
		"4xx":                         {nil, func(e *Endpoint) { e.Observe(Answered, 404, 0) }, 0},
		"no connection":               {nil, func(e *Endpoint) { e.Observe(Unreachable, 0, 0) }, 5},
		"no answer":                   {nil, func(e *Endpoint) { e.Observe(TimedOut, 0, 0) }, 5},
		"a good one in between":       {nil, func(e *Endpoint) { e.Observe(Answered, 500, 0); e.Observe(Answered, 200, 0) }, 0},
		"gateway errors":              {func(o *plan.Outlier) { o.ConsecutiveGateway = 2 }, func(e *Endpoint) { e.Observe(Answered, 503, 0) }, 2},
		"500 is no gateway error":     {func(o *plan.Outlier) { o.ConsecutiveGateway, o.Consecutive5xx = 2, 0 }, func(e *Endpoint) { e.Observe(Answered, 500, 0) }, 0},
		"timeouts are gateway errors": {func(o *plan.Outlier) { o.ConsecutiveGateway = 3 }, func(e *Endpoint) { e.Observe(TimedOut, 0, 0) }, 3},
		"local failures apart":        {func(o *plan.Outlier) { o.SplitLocal, o.ConsecutiveLocal = true, 3 }, func(e *Endpoint) { e.Observe(Unreachable, 0, 0) }, 3},
		"local failures do not count": {func(o *plan.Outlier) { o.SplitLocal = true }, func(e *Endpoint) { e.Observe(Unreachable, 0, 0) }, 0},
		"codes of one's own":          {func(o *plan.Outlier) { o.Codes = []uint32{418} }, func(e *Endpoint) { e.Observe(Answered, 418, 0) }, 5},
		"other codes then not":        {func(o *plan.Outlier) { o.Codes = []uint32{418} }, func(e *Endpoint) { e.Observe(Answered, 500, 0) }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, Config{}, func(b *bed) {
				o := outlier()
				if c.policy != nil {
					c.policy(o)
				}
				cluster := b.only(&plan.Cluster{Outlier: o}, hosts(3))
				e := cluster.state.Load().members[1].Endpoint
				n := 0
				for n < 20 && !e.health.ejected.Load() {
					c.report(e)
					n++
				}
				if got := map[bool]int{true: n, false: 0}[e.health.ejected.Load()]; got != c.after {
					t.Fatalf("ejected after %d, want %d", got, c.after)
				}
				if cluster.chosen(300)[e.Address] > 0 == (c.after > 0) {
					t.Errorf("choices fall on %v", cluster.chosen(300))
				}
			})
		})
	}
}

func TestEjectionsEndAndGrow(t *testing.T) {
	inBubble(t, Config{}, func(b *bed) {
		c := b.only(&plan.Cluster{Outlier: outlier()}, hosts(3))
		e := c.state.Load().members[0].Endpoint
		away := func() time.Duration {
			for range 5 {
				e.Observe(Answered, 500, 0)
			}
			start := time.Now()
			for e.health.ejected.Load() {
				time.Sleep(time.Second)
			}
			synctest.Wait() // who brings it back may not have made the choice anew yet
			if c.chosen(300)[e.Address] == 0 {
				t.Error("it is back, and not chosen")
			}
			return time.Since(start)
		}
		for i, want := range []time.Duration{30, 60, 90} {
			if got := away(); got < want*time.Second || got > want*time.Second+10*time.Second {
				t.Errorf("ejection %d took %s, want %d s and a look's time", i, got, want)
			}
		}
		time.Sleep(time.Minute) // good behaviour is rewarded
		if got := away(); got > 41*time.Second {
			t.Errorf("after a good minute it was ejected for %s", got)
		}
	})
}

func TestEjectionsAreBounded(t *testing.T) {
	for _, c := range []struct {
		hosts   int
		percent uint32
		one     bool
		want    int
	}{
		{11, 10, false, 1}, {9, 10, false, 0}, {9, 10, true, 1}, {20, 10, true, 2}, {4, 50, false, 2}, {4, 100, false, 4}, {1, 10, true, 0}, {5, 0, false, 0},
	} {
		inBubble(t, Config{}, func(b *bed) {
			o := outlier()
			o.MaxPercent, o.AtLeastOne = c.percent, c.one
			cluster := b.only(&plan.Cluster{Outlier: o}, hosts(c.hosts))
			out := 0
			for _, m := range cluster.state.Load().members {
				for range 5 {
					m.Observe(Answered, 503, 0)
				}
				if m.health.ejected.Load() {
					out++
				}
			}
			if out != c.want {
				t.Errorf("%d hosts, at most %d %%: %d ejected, want %d", c.hosts, c.percent, out, c.want)
			}
			if got := cluster.Stats.Ejections.Load(); got != int64(c.want) {
				t.Errorf("counted %d", got)
			}
		})
	}
}

func TestAFartherPriorityTakesOver(t *testing.T) {
	inBubble(t, Config{}, func(b *bed) {
		la := hosts(4)
		all := la.Localities[0].Endpoints
		la.Localities = []plan.LocalityEndpoints{{Endpoints: all[:2]}, {Endpoints: all[2:], Priority: 1}}
		c := b.only(&plan.Cluster{Outlier: outlier()}, la)
		near, far := c.state.Load().members[:2], c.state.Load().members[2:]
		count := func() (n, f int) {
			got := c.chosen(1000)
			return got[near[0].Address] + got[near[1].Address], got[far[0].Address] + got[far[1].Address]
		}
		if n, f := count(); n != 1000 || f != 0 {
			t.Errorf("all is well: %d near, %d far", n, f)
		}
		eject := func(m member) {
			for range 5 {
				m.Observe(Answered, 500, 0)
			}
		}
		eject(near[0])
		if n, _ := count(); n < 620 || n > 780 {
			t.Errorf("with half of the near: %d near, want about 70 %%", n)
		}
		eject(near[1])
		if n, f := count(); n != 0 || f != 1000 {
			t.Errorf("with none of the near: %d near, %d far", n, f)
		}
		// A retry that may go to other places leaves the priority that was tried.
		w := &Want{Tried: []*Endpoint{far[0].Endpoint}, Remote: true}
		time.Sleep(time.Hour)
		for range 100 {
			if e := c.choose(c.state.Load(), w); !slices.ContainsFunc(near, func(m member) bool { return m.Endpoint == e }) {
				t.Fatalf("the retry goes to %s", e.Address)
			}
		}
	})
}

func TestEqualHashesKeepTheirEndpoint(t *testing.T) {
	inBubble(t, Config{}, func(b *bed) {
		for _, kind := range []plan.Balancing{plan.RingHash, plan.Maglev} {
			c := b.only(&plan.Cluster{Balancing: kind}, hosts(5))
			where := map[uint64]*Endpoint{}
			used := map[*Endpoint]bool{}
			for h := range uint64(100) {
				w := &Want{Hash: h * 0x9e3779b97f4a7c15, Hashed: true}
				where[h] = c.choose(c.state.Load(), w)
				used[where[h]] = true
				if again := c.choose(c.state.Load(), w); again != where[h] {
					t.Errorf("%s: hash %d goes to %s, then to %s", kind, h, where[h].Address, again.Address)
				}
				w.Tried = []*Endpoint{where[h]}
				if other := c.choose(c.state.Load(), w); other == where[h] || c.choose(c.state.Load(), w) != other {
					t.Errorf("%s: another try goes to %s", kind, other.Address)
				}
			}
			if len(used) != 5 {
				t.Errorf("%s: %d endpoints are used", kind, len(used))
			}
		}
	})
}

func TestANewEndpointWarmsUp(t *testing.T) {
	inBubble(t, Config{}, func(b *bed) {
		p := &plan.Cluster{Balancing: plan.RoundRobin, Warmup: &plan.Warmup{Duration: time.Minute, MinPercent: 10, Aggression: 1}}
		b.only(p, hosts(4))
		time.Sleep(2 * time.Minute)
		c := b.only(p, hosts(5))
		fresh := c.state.Load().members[4].Address
		share := func() float64 { return float64(c.chosen(4100)[fresh]) / 4100 }
		for _, at := range []struct {
			after time.Duration
			want  float64
		}{{0, 0.1 / 4.1}, {30 * time.Second, 0.5 / 4.5}, {31 * time.Second, 0.2}} {
			time.Sleep(at.after)
			if got := share(); math.Abs(got-at.want) > 0.02 {
				t.Errorf("%s later it gets %.3f, want %.3f", at.after, got, at.want)
			}
		}
	})
}

func TestRetriesAreLimited(t *testing.T) {
	inBubble(t, Config{}, func(b *bed) {
		c := b.only(&plan.Cluster{MaxRetries: 2}, hosts(2))
		for i, want := range []bool{true, true, false} {
			if c.BeginRetry() != want {
				t.Errorf("retry %d at once: want %v", i+1, want)
			}
		}
		c.EndRetry()
		if !c.BeginRetry() {
			t.Error("no second one after the first has ended")
		}
		c.EndRetry()
		c.EndRetry()
		c = b.only(&plan.Cluster{RetryBudget: &plan.RetryBudget{Percent: 20, MinRetries: 3}}, hosts(2))
		grant := func() (n int) {
			for c.BeginRetry() {
				n++
			}
			for range n {
				c.EndRetry()
			}
			return n
		}
		if n := grant(); n != 3 {
			t.Errorf("%d retries of nothing", n)
		}
		c.Stats.RqActive.Store(50)
		if n := grant(); n != 10 {
			t.Errorf("%d retries for 50 requests", n)
		}
		c.Stats.RqActive.Store(0)
	})
}

func TestOldConnectionsAreNotUsedAgain(t *testing.T) {
	inBubble(t, Config{}, func(b *bed) {
		a := b.server("10.0.1.1:80", nil)
		c := b.only(&plan.Cluster{MaxConnAge: time.Minute}, assignment(a))
		first := b.acquire(c, Want{})
		c.Release(first, true)
		time.Sleep(30 * time.Second)
		if again := b.acquire(c, Want{}); again != first {
			t.Error("not used again in its time")
		} else {
			c.Release(again, true)
		}
		time.Sleep(31 * time.Second)
		again := b.acquire(c, Want{})
		if again == first {
			t.Error("used again after its time")
		}
		c.Release(again, true)
	})
}

// TestOneSlowBackend lets one of eleven backends take two seconds where the others
// take ten milliseconds, and clients wait one second. It is a simulation of the
// production code in virtual time; the seed decides all of it.
func TestOneSlowBackend(t *testing.T) {
	const (
		rate     = 400 // requests a second
		duration = 5 * time.Minute
		timeout  = time.Second
	)
	detect := &plan.Outlier{Consecutive5xx: 5, Interval: 10 * time.Second, BaseEjection: 30 * time.Second, MaxPercent: 10}
	for _, c := range []struct {
		name    string
		cluster plan.Cluster
		least   float64 // percent of the requests that succeed
		most    float64
	}{
		{"turns", plan.Cluster{Balancing: plan.RoundRobin}, 90, 92},
		{"least request", plan.Cluster{}, 99, 99.9},
		{"turns with outlier detection", plan.Cluster{Balancing: plan.RoundRobin, Outlier: detect}, 99.5, 99.95},
		{"least request with outlier detection", plan.Cluster{Outlier: detect}, 99.9, 100},
		{"peak EWMA", plan.Cluster{Balancing: plan.PeakEWMA}, 99.9, 100},
		{"peak EWMA with outlier detection", plan.Cluster{Balancing: plan.PeakEWMA, Outlier: detect}, 99.9, 100},
	} {
		t.Run(c.name, func(t *testing.T) {
			random := rand.New(rand.NewPCG(7, 11))
			var mu sync.Mutex
			next := func() uint64 {
				mu.Lock()
				defer mu.Unlock()
				return random.Uint64()
			}
			inBubble(t, Config{Random: next}, func(b *bed) {
				cluster := b.only(&c.cluster, hosts(11))
				slow := cluster.state.Load().members[4].Endpoint
				var good, all atomic.Int64
				var wg sync.WaitGroup
				for start := time.Now(); time.Since(start) < duration; {
					// Arrivals are independent of each other.
					gap := -math.Log(1-float64(next()>>11)/(1<<53)) / rate
					time.Sleep(time.Duration(gap * float64(time.Second)))
					all.Add(1)
					wg.Go(func() {
						e := cluster.choose(cluster.state.Load(), &Want{})
						cluster.begin(e)
						defer cluster.end(e)
						if e == slow {
							time.Sleep(timeout)
							e.Observe(TimedOut, 0, timeout)
							return
						}
						time.Sleep(10 * time.Millisecond)
						e.Observe(Answered, 200, 10*time.Millisecond)
						good.Add(1)
					})
				}
				wg.Wait()
				synctest.Wait()
				got := 100 * float64(good.Load()) / float64(all.Load())
				t.Logf("%.3f %% of %d requests, %d ejections", got, all.Load(), cluster.Stats.Ejections.Load())
				if got < c.least || got > c.most {
					t.Errorf("want %g to %g %%", c.least, c.most)
				}
			})
		})
	}
}
