package balance

import (
	"math"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/heddle-mesh/heddle/internal/plan"
)

func hosts(weights ...uint32) []Host {
	list := make([]Host, len(weights))
	for i, w := range weights {
		list[i] = Host{Weight: w, Active: new(atomic.Int64)}
	}
	return list
}

// shares picks n times and returns how often each host came.
func shares(p Picker, hosts, n int) []float64 {
	r := rand.New(rand.NewPCG(1, 2))
	count := make([]float64, hosts)
	for range n {
		count[p.Pick(r.Uint64())]++
	}
	for i := range count {
		count[i] /= float64(n)
	}
	return count
}

func TestSharesFollowWeights(t *testing.T) {
	for _, weights := range [][]uint32{{1, 1, 1}, {0, 1}, {1, 3}, {1, 2, 7}, {100, 1, 1, 1}, {5, 5, 5, 5, 80}} {
		total := 0.0
		for _, w := range weights {
			total += float64(max(w, 1))
		}
		for _, kind := range []plan.Balancing{plan.RoundRobin, plan.Random, plan.LeastRequest} {
			got := shares(New(Config{Kind: kind}, hosts(weights...), 7), len(weights), 200_000)
			for i, w := range weights {
				if want := float64(max(w, 1)) / total; math.Abs(got[i]-want) > 0.006 {
					t.Errorf("kind %d, weights %v: host %d has %.3f, want %.3f", kind, weights, i, got[i], want)
				}
			}
		}
	}
}

func TestRoundRobinIsExact(t *testing.T) {
	p := New(Config{Kind: plan.RoundRobin}, hosts(1, 2, 3), 4)
	for round := range 5 {
		count := [3]int{}
		longest, run, last := 0, 0, -1
		for range 6 {
			i := p.Pick(0)
			count[i]++
			if run++; i != last {
				run, last = 1, i
			}
			longest = max(longest, run)
		}
		if count != [3]int{1, 2, 3} {
			t.Errorf("round %d: %v", round, count)
		}
		if longest > 2 {
			t.Errorf("round %d: one host %d times in a row", round, longest)
		}
	}
}

func TestRoundRobinWithHugeWeightsStaysSmall(t *testing.T) {
	p := newRoundRobin(hosts(1, 1_000_000_007, 500_000_003), 0)
	if len(p.turns) > 2*maxTurns {
		t.Errorf("%d turns", len(p.turns))
	}
}

func TestLeastRequestAvoidsTheBusy(t *testing.T) {
	h := hosts(1, 1, 1, 1)
	h[2].Active.Store(100)
	got := shares(New(Config{Kind: plan.LeastRequest}, h, 0), 4, 100_000)
	// The busy one comes only if both choices fall on it, and then its neighbour is
	// looked at too.
	if got[2] != 0 {
		t.Errorf("the busy host has %.3f of the requests", got[2])
	}
}

func TestLeastRequestWeighsTheLoad(t *testing.T) {
	h := hosts(1, 9)
	// Requests that never end spread as the weights say.
	r := rand.New(rand.NewPCG(3, 4))
	p := New(Config{Kind: plan.LeastRequest}, h, 0)
	for range 1000 {
		h[p.Pick(r.Uint64())].Active.Add(1)
	}
	if n := h[0].Active.Load(); n < 90 || n > 110 {
		t.Errorf("%d of 1000 on the host with a tenth of the weight", n)
	}
}

func TestOneHostIsAlwaysPicked(t *testing.T) {
	for _, kind := range []plan.Balancing{plan.RoundRobin, plan.Random, plan.LeastRequest} {
		if i := New(Config{Kind: kind}, hosts(0), 5).Pick(math.MaxUint64); i != 0 {
			t.Errorf("kind %d picked %d", kind, i)
		}
	}
}

func TestPickingAllocatesNothing(t *testing.T) {
	for _, kind := range []plan.Balancing{plan.RoundRobin, plan.Random, plan.LeastRequest} {
		p := New(Config{Kind: kind}, hosts(1, 2, 3), 5)
		if n := testing.AllocsPerRun(100, func() { p.Pick(12345) }); n != 0 {
			t.Errorf("kind %d: %v allocations", kind, n)
		}
	}
}
