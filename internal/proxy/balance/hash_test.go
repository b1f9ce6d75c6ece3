package balance

import (
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/heddle-mesh/heddle/internal/plan"
)

var hashing = []Config{{Kind: plan.RingHash}, {Kind: plan.RingHash, MinRing: 64}, {Kind: plan.Maglev, TableSize: 1009}, {Kind: plan.Maglev}}

func named(n int) []Host {
	list := make([]Host, n)
	for i := range list {
		list[i] = Host{Key: fmt.Sprintf("10.0.0.%d:80", i), Active: new(atomic.Int64), Latency: new(Latency)}
	}
	return list
}

// spread returns which key each of n hashes goes to.
func spread(p Picker, hosts []Host, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = hosts[p.Pick(mix(uint64(i)))].Key
	}
	return out
}

func TestEqualHashesHaveOneHost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := rapid.SampledFrom(hashing[:3]).Draw(t, "kind")
		hosts := named(rapid.IntRange(1, 20).Draw(t, "hosts"))
		order := rapid.Permutation(hosts).Draw(t, "order")
		hash := rapid.Uint64().Draw(t, "hash")
		a, b := New(cfg, hosts, 1), New(cfg, order, 2)
		if x, y := hosts[a.Pick(hash)].Key, order[b.Pick(hash)].Key; cfg.Kind == plan.RingHash && x != y {
			t.Fatalf("%s, and %s where hosts stand in another order", x, y)
		}
		if x, y := a.Pick(hash), New(cfg, hosts, 3).Pick(hash); x != y {
			t.Fatalf("host %d, and then %d", x, y)
		}
	})
}

// When a host leaves, requests of the others stay; when it comes back, all is as
// before. A table moves a few more than a ring.
func TestFewRequestsMoveWhenAHostLeaves(t *testing.T) {
	const n = 20_000
	for _, cfg := range hashing {
		for _, size := range []int{3, 10, 40} {
			hosts := named(size)
			before := spread(New(cfg, hosts, 0), hosts, n)
			gone := hosts[size/2].Key
			left := slices.Delete(slices.Clone(hosts), size/2, size/2+1)
			after := spread(New(cfg, left, 0), left, n)
			moved, lost := 0, 0
			for i := range before {
				if before[i] == gone {
					lost++
				} else if before[i] != after[i] {
					moved++
				}
			}
			limit := 0
			if cfg.Kind == plan.Maglev {
				limit = n / 12
			}
			if moved > limit || lost == 0 || lost == n {
				t.Errorf("%+v with %d hosts: %d of %d requests moved, %d had to", cfg, size, moved, n, lost)
			}
		}
	}
}

func TestHashesSpreadByWeight(t *testing.T) {
	const n = 100_000
	for _, cfg := range hashing {
		hosts := named(4)
		for i, w := range []uint32{1, 2, 3, 4} {
			hosts[i].Weight = w
		}
		got := map[string]float64{}
		for _, key := range spread(New(cfg, hosts, 0), hosts, n) {
			got[key]++
		}
		tolerance := 0.02
		if cfg.Kind == plan.RingHash {
			tolerance = 0.1 // a ring is only roughly even
		}
		for i, h := range hosts {
			if share := got[h.Key] / n; math.Abs(share-float64(i+1)/10) > tolerance {
				t.Errorf("%+v: weight %d has %.3f", cfg, i+1, share)
			}
		}
	}
}

// The tables of Envoy's documentation, "Priority levels" and "Panic threshold".
func TestLoadsFollowHealth(t *testing.T) {
	for _, c := range []struct {
		healthy, total []int
		panicBelow     uint32
		loads          []uint32
		panics         []bool
	}{
		{[]int{100, 100}, []int{100, 100}, 0, []uint32{100, 0}, []bool{false, false}},
		{[]int{72, 100}, []int{100, 100}, 0, []uint32{100, 0}, []bool{false, false}},
		{[]int{71, 100}, []int{100, 100}, 0, []uint32{99, 1}, []bool{false, false}},
		{[]int{50, 100}, []int{100, 100}, 0, []uint32{70, 30}, []bool{false, false}},
		{[]int{25, 100}, []int{100, 100}, 0, []uint32{35, 65}, []bool{false, false}},
		{[]int{25, 25}, []int{100, 100}, 0, []uint32{50, 50}, []bool{false, false}},
		{[]int{0, 100}, []int{100, 100}, 50, []uint32{0, 100}, []bool{false, false}},
		{[]int{5, 65}, []int{100, 100}, 50, []uint32{8, 92}, []bool{true, false}},
		{[]int{0, 0, 0}, []int{1, 1, 2}, 50, []uint32{25, 25, 50}, []bool{true, true, true}},
		{[]int{0, 0}, []int{3, 3}, 0, []uint32{0, 0}, []bool{false, false}},
		{nil, nil, 50, nil, nil},
	} {
		loads, panics := Loads(c.healthy, c.total, c.panicBelow)
		if !slices.Equal(loads, c.loads) || !slices.Equal(panics, c.panics) {
			t.Errorf("%v of %v healthy, panic below %d %%: loads %v panics %v, want %v %v",
				c.healthy, c.total, c.panicBelow, loads, panics, c.loads, c.panics)
		}
	}
}

func TestLoadsAreAlwaysWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 5).Draw(t, "priorities")
		healthy, total := make([]int, n), make([]int, n)
		any := false
		for i := range n {
			total[i] = rapid.IntRange(0, 20).Draw(t, "total")
			healthy[i] = rapid.IntRange(0, total[i]).Draw(t, "healthy")
			any = any || healthy[i] > 0
		}
		panicBelow := rapid.Uint32Range(0, 100).Draw(t, "panic")
		loads, panics := Loads(healthy, total, panicBelow)
		sum := uint32(0)
		for i, l := range loads {
			sum += l
			if l > 0 && healthy[i] == 0 && !panics[i] {
				t.Fatalf("priority %d gets %d %% and has nothing healthy: %v of %v", i, l, healthy, total)
			}
		}
		if any && sum != 100 || sum != 0 && sum != 100 {
			t.Fatalf("%v of %v healthy, panic below %d %%: the loads %v are %d %%", healthy, total, panicBelow, loads, sum)
		}
	})
}

// Whatever the kind and the hosts are, one that is unhealthy is chosen in a panic
// only, and one of a farther priority only if nearer ones are short.
func TestOnlyUsableHostsArePicked(t *testing.T) {
	kinds := []plan.Balancing{plan.LeastRequest, plan.RoundRobin, plan.Random, plan.RingHash, plan.Maglev, plan.PeakEWMA}
	rapid.Check(t, func(t *rapid.T) {
		hosts := named(rapid.IntRange(0, 12).Draw(t, "hosts"))
		for i := range hosts {
			h := &hosts[i]
			h.Unhealthy = rapid.Bool().Draw(t, "unhealthy")
			h.Weight = rapid.Uint32Range(0, 5).Draw(t, "weight")
			h.Priority = rapid.Uint32Range(0, 2).Draw(t, "priority")
			h.Locality = rapid.IntRange(0, 2).Draw(t, "locality")
			h.LocalityWeight = uint32(h.Locality) // the first has none
		}
		cfg := Config{
			Kind: rapid.SampledFrom(kinds).Draw(t, "kind"), TableSize: 97, Now: time.Now,
			LocalityWeighted: rapid.Bool().Draw(t, "weighted"), Panic: rapid.SampledFrom([]uint32{0, 50}).Draw(t, "panic"),
		}
		p := New(cfg, hosts, 7)
		usable := slices.ContainsFunc(hosts, func(h Host) bool { return !h.Unhealthy })
		if p == nil {
			if usable && !cfg.LocalityWeighted {
				t.Fatal("nothing can be picked")
			}
			return
		}
		for range 50 {
			h := hosts[p.Pick(rapid.Uint64().Draw(t, "random"))]
			if h.Unhealthy && cfg.Panic == 0 {
				t.Fatalf("picked %+v", h)
			}
			whole := 0
			for i := range hosts {
				if hosts[i].Priority == 0 && !hosts[i].Unhealthy {
					whole++
				}
			}
			near := slices.DeleteFunc(slices.Clone(hosts), func(h Host) bool { return h.Priority != 0 })
			if h.Priority > 0 && len(near) > 0 && whole == len(near) && !cfg.LocalityWeighted {
				t.Fatalf("picked %+v although all that is near is healthy", h)
			}
		}
	})
}

func TestPlacesGetTheirWeights(t *testing.T) {
	for _, kind := range []plan.Balancing{plan.LeastRequest, plan.RoundRobin, plan.Random, plan.RingHash, plan.Maglev} {
		hosts := named(6)
		for i := range hosts {
			hosts[i].Locality = min(i, 1) // one host there, five here
			hosts[i].LocalityWeight = []uint32{80, 20}[hosts[i].Locality]
		}
		got := 0.0
		const n = 50_000
		for _, key := range spread(New(Config{Kind: kind, LocalityWeighted: true, TableSize: 10007, MinRing: 20_000}, hosts, 0), hosts, n) {
			if key == hosts[0].Key {
				got++
			}
		}
		if share := got / n; math.Abs(share-0.8) > 0.02 {
			t.Errorf("kind %d: the place with weight 80 has %.3f", kind, share)
		}
	}
}

func TestPeakEWMATurnsFromTheSlowAndComesBack(t *testing.T) {
	now := time.Unix(1000, 0)
	hosts := named(4)
	p := New(Config{Kind: plan.PeakEWMA, Now: func() time.Time { return now }}, hosts, 0)
	for i := range hosts {
		hosts[i].Latency.Observe(now, 10*time.Millisecond)
	}
	hosts[1].Latency.Observe(now, time.Second)
	share := func() float64 { return shares(p, len(hosts), 20_000)[1] }
	if s := share(); s != 0 {
		t.Errorf("just after the peak it has %.3f", s)
	}
	for range 100 {
		now = now.Add(time.Second)
		for _, i := range []int{0, 2, 3} {
			hosts[i].Latency.Observe(now, 10*time.Millisecond)
		}
	}
	if s := share(); s < 0.2 {
		t.Errorf("100 s after the peak it has %.3f", s)
	}
}

func TestWarmUpGrows(t *testing.T) {
	w := &plan.Warmup{Duration: 100 * time.Second, MinPercent: 10, Aggression: 1}
	for age, want := range map[time.Duration]uint32{0: 100, 10 * time.Second: 100, 50 * time.Second: 500, 100 * time.Second: 1000, time.Hour: 1000} {
		if got := Warm(w, 1, age); got != want {
			t.Errorf("after %s %d, want %d", age, got, want)
		}
	}
	w.Aggression = 2
	if a, b := Warm(w, 3, 25*time.Second), uint32(1500); a != b {
		t.Errorf("with aggression %d, want %d", a, b)
	}
	rapid.Check(t, func(t *rapid.T) {
		w := &plan.Warmup{
			Duration:   time.Duration(rapid.Int64Range(1, int64(time.Hour)).Draw(t, "duration")),
			MinPercent: rapid.Float64Range(0, 100).Draw(t, "least"),
			Aggression: rapid.Float64Range(0.1, 10).Draw(t, "aggression"),
		}
		weight := rapid.Uint32().Draw(t, "weight")
		before := uint32(0)
		for age := time.Duration(0); age < w.Duration+time.Minute; age += w.Duration/7 + time.Second {
			got := Warm(w, weight, age)
			if got < before || got == 0 {
				t.Fatalf("at %s %d after %d", age, got, before)
			}
			before = got
		}
	})
}

func TestPickingByHashAllocatesNothing(t *testing.T) {
	hosts := named(5)
	hosts[4].Priority, hosts[0].Unhealthy, hosts[1].Unhealthy = 1, true, true
	for _, kind := range []plan.Balancing{plan.RingHash, plan.Maglev, plan.PeakEWMA, plan.LeastRequest} {
		p := New(Config{Kind: kind, Now: time.Now}, hosts, 5)
		if n := testing.AllocsPerRun(100, func() { p.Pick(12345) }); n != 0 {
			t.Errorf("kind %d: %v allocations", kind, n)
		}
	}
}
