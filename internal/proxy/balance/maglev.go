package balance

import "github.com/cespare/xxhash/v2"

// usualTable is Envoy's default for MaglevLbConfig.
const usualTable = 65537

// maglev looks a request up in a table of which each host has its part. Hosts
// fill it in turns, each in an order of its own, so that their parts are even and
// stay mostly the same when hosts come and go.
// Source: Eisenbud and others, "Maglev: A Fast and Reliable Software Network Load
// Balancer", section 3.4; the order in which Envoy fills it.
type maglev struct {
	table []int32
}

func newMaglev(hosts []Host, size uint64) *maglev {
	if size == 0 {
		size = usualTable
	}
	type filler struct {
		offset, skip, next uint64
		weight, target     float64
	}
	heaviest := 1.0
	fillers := make([]filler, len(hosts))
	for i := range hosts {
		seeded := xxhash.NewWithSeed(1)
		seeded.WriteString(hosts[i].Key)
		w := float64(max(hosts[i].Weight, 1))
		heaviest = max(heaviest, w)
		fillers[i] = filler{offset: xxhash.Sum64String(hosts[i].Key) % size, skip: seeded.Sum64()%(size-1) + 1, weight: w}
	}
	m := &maglev{table: make([]int32, size)}
	for i := range m.table {
		m.table[i] = -1
	}
	for filled, round := uint64(0), 1.0; filled < size; round++ {
		for i := range fillers {
			if filled == size {
				break
			}
			f := &fillers[i]
			// The heaviest has a place in every round, one of half its weight in every
			// second one.
			if round*f.weight < f.target {
				continue
			}
			f.target += heaviest
			at := (f.offset + f.skip*f.next) % size
			for m.table[at] >= 0 {
				f.next++
				at = (f.offset + f.skip*f.next) % size
			}
			m.table[at] = int32(i)
			f.next++
			filled++
		}
	}
	return m
}

func (m *maglev) Pick(hash uint64) int { return int(m.table[hash%uint64(len(m.table))]) }
