// Package balance chooses one of several hosts. Pickers are pure but for the
// turn of a round robin: randomness and the hosts' loads come from outside, so
// that a choice can be repeated in tests and simulations.
package balance

import (
	"sync/atomic"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// Host is one candidate.
type Host struct {
	Weight uint32        // relative; 0 counts as 1
	Active *atomic.Int64 // requests in flight
}

// Picker chooses among the hosts it was made for. It is safe for concurrent use.
type Picker interface {
	// Pick returns the index of a host. random is uniform over all its values.
	Pick(random uint64) int
}

// New returns the picker for a kind of balancing over hosts, of which there is at
// least one. random spreads the first turns of many proxies.
func New(kind plan.Balancing, hosts []Host, random uint64) Picker {
	if len(hosts) == 1 {
		return single{}
	}
	switch kind {
	case plan.RoundRobin:
		return newRoundRobin(hosts, random)
	case plan.Random:
		return newWeighted(hosts)
	}
	return newLeastRequest(hosts)
}

type single struct{}

func (single) Pick(uint64) int { return 0 }

// below maps a uniform 32-bit number to [0, n).
func below(random uint32, n uint64) uint64 { return uint64(random) * n >> 32 }
