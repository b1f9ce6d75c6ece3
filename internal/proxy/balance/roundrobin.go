package balance

import "sync/atomic"

// maxTurns bounds the table of a weighted round robin.
const maxTurns = 4096

// roundRobin gives each host its turn, a host of weight 2 two turns per round,
// spread over the round.
type roundRobin struct {
	n     uint64
	turns []uint32 // hosts by turn; nil if all weights are equal
	next  atomic.Uint64
}

func newRoundRobin(hosts []Host, random uint64) *roundRobin {
	r := &roundRobin{n: uint64(len(hosts))}
	weights := make([]int64, len(hosts))
	divisor, total := int64(0), int64(0)
	for i, h := range hosts {
		weights[i] = int64(max(h.Weight, 1))
		divisor = gcd(weights[i], divisor)
	}
	for i := range weights {
		weights[i] /= divisor
		total += weights[i]
	}
	if total > maxTurns && total != int64(len(hosts)) {
		// A long round is shortened; the smallest weights are rounded up to one turn.
		scale := float64(maxTurns) / float64(total)
		total = 0
		for i := range weights {
			weights[i] = max(int64(float64(weights[i])*scale), 1)
			total += weights[i]
		}
	}
	if total != int64(len(hosts)) {
		r.turns = smooth(weights, total)
		r.n = uint64(len(r.turns))
	}
	r.next.Store(random % r.n)
	return r
}

// smooth lays out a round so that a host's turns are far from each other: in each
// step every host earns its weight, and the richest pays the total for the turn.
func smooth(weights []int64, total int64) []uint32 {
	turns := make([]uint32, 0, total)
	credit := make([]int64, len(weights))
	for range total {
		best := 0
		for i, w := range weights {
			credit[i] += w
			if credit[i] > credit[best] {
				best = i
			}
		}
		credit[best] -= total
		turns = append(turns, uint32(best))
	}
	return turns
}

func gcd(a, b int64) int64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

func (r *roundRobin) Pick(uint64) int {
	i := (r.next.Add(1) - 1) % r.n
	if r.turns == nil {
		return int(i)
	}
	return int(r.turns[i])
}
