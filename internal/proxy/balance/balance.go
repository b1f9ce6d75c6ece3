// Package balance chooses one of several hosts. Pickers are pure but for the
// turn of a round robin: randomness, time and the hosts' loads come from outside,
// so that a choice can be repeated in tests and simulations.
//
// A choice has up to three steps. Priorities: the nearest tier of hosts takes all
// requests as long as enough of it is healthy. Localities, if they have weights of
// their own. And one host, by the kind of balancing.
package balance

import (
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// Host is one candidate.
type Host struct {
	Weight uint32        // relative; 0 counts as 1
	Active *atomic.Int64 // requests in flight; for LeastRequest and PeakEWMA
	// Latency is for PeakEWMA.
	Latency *Latency
	// Key is what a consistent hash knows the host by: its address.
	Key string

	Priority uint32
	// Locality numbers the places, each with its weight.
	Locality       int
	LocalityWeight uint32
	// Unhealthy hosts are chosen in a panic only.
	Unhealthy bool
}

// Picker chooses among the hosts it was made for. It is safe for concurrent use.
type Picker interface {
	// Pick returns the index of a host. random is uniform over all its values; the
	// kinds that hash take the request's hash in its place, and give equal ones the
	// same host.
	Pick(random uint64) int
}

// Config says how to choose.
type Config struct {
	Kind plan.Balancing
	// MinRing and TableSize are as in plan.Cluster.
	MinRing, TableSize uint64
	LocalityWeighted   bool
	// Panic is the percentage of healthy hosts below which all count as healthy.
	Panic uint32
	// Now is for PeakEWMA.
	Now func() time.Time
}

// New returns a picker over hosts, or nil if none of them may be chosen. random
// spreads the first turns of many proxies.
func New(cfg Config, hosts []Host, random uint64) Picker {
	if simple(cfg, hosts) {
		return pickerOf(cfg, hosts, random)
	}
	return newTiers(cfg, hosts, random)
}

// simple reports whether the hosts are one tier, all healthy and in one place as
// far as that matters.
func simple(cfg Config, hosts []Host) bool {
	for i := range hosts {
		h := &hosts[i]
		if h.Unhealthy || h.Priority != hosts[0].Priority || cfg.LocalityWeighted && h.Locality != hosts[0].Locality {
			return false
		}
	}
	return true
}

// pickerOf returns the picker of a kind over hosts that are all to be used.
func pickerOf(cfg Config, hosts []Host, random uint64) Picker {
	switch len(hosts) {
	case 0:
		return nil
	case 1:
		return single{}
	}
	switch cfg.Kind {
	case plan.RoundRobin:
		return newRoundRobin(hosts, random)
	case plan.Random:
		return newWeighted(hosts)
	case plan.RingHash:
		return newRing(hosts, cfg.MinRing)
	case plan.Maglev:
		return newMaglev(hosts, cfg.TableSize)
	case plan.PeakEWMA:
		return newPeakEWMA(hosts, cfg.Now)
	}
	return newLeastRequest(hosts)
}

type single struct{}

func (single) Pick(uint64) int { return 0 }

// below maps a uniform 32-bit number to [0, n).
func below(random uint32, n uint64) uint64 { return uint64(random) * n >> 32 }
