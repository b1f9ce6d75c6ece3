package balance

// weighted chooses at random, each host with the probability of its weight.
// Vose's alias method: one comparison for any number of hosts.
type weighted struct {
	columns []column // nil if all weights are equal
	n       uint64
}

// column gives its own host below the threshold, and its alias above.
type column struct {
	threshold uint32
	alias     uint32
}

func newWeighted(hosts []Host) *weighted {
	w := &weighted{n: uint64(len(hosts))}
	total, equal := uint64(0), true
	for _, h := range hosts {
		total += uint64(max(h.Weight, 1))
		equal = equal && max(h.Weight, 1) == max(hosts[0].Weight, 1)
	}
	if equal {
		return w
	}
	// Each column has room for the average weight. Those with less are filled up
	// from one with more.
	const full = 1 << 32
	share := make([]float64, len(hosts))
	var small, large []int
	for i, h := range hosts {
		share[i] = float64(max(h.Weight, 1)) * float64(len(hosts)) / float64(total)
		if share[i] < 1 {
			small = append(small, i)
		} else {
			large = append(large, i)
		}
	}
	w.columns = make([]column, len(hosts))
	for i := range w.columns {
		w.columns[i] = column{full - 1, uint32(i)}
	}
	for len(small) > 0 && len(large) > 0 {
		s, l := small[len(small)-1], large[len(large)-1]
		small = small[:len(small)-1]
		w.columns[s] = column{uint32(share[s] * full), uint32(l)}
		share[l] -= 1 - share[s]
		if share[l] < 1 {
			large = large[:len(large)-1]
			small = append(small, l)
		}
	}
	return w
}

func (w *weighted) Pick(random uint64) int {
	// The upper half chooses the column, the lower half within it.
	i := below(uint32(random>>32), w.n)
	if w.columns == nil {
		return int(i)
	}
	if c := w.columns[i]; uint32(random) > c.threshold {
		return int(c.alias)
	}
	return int(i)
}
