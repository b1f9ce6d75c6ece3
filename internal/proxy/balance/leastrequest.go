package balance

// leastRequest takes the less loaded of two hosts chosen at random: "the power of
// two choices". With unequal weights the two are chosen by weight, and the load
// is what a host has in flight in proportion to its weight.
type leastRequest struct {
	hosts []Host
	by    *weighted
}

func newLeastRequest(hosts []Host) *leastRequest {
	return &leastRequest{hosts: hosts, by: newWeighted(hosts)}
}

func (l *leastRequest) Pick(random uint64) int {
	a := l.by.Pick(random)
	b := l.by.Pick(mix(random))
	if a == b {
		if l.by.columns != nil {
			return a // comparing with a neighbour would give that one too much
		}
		if b++; b == len(l.hosts) {
			b = 0
		}
	}
	ha, hb := &l.hosts[a], &l.hosts[b]
	if ha.Active.Load()*int64(max(hb.Weight, 1)) <= hb.Active.Load()*int64(max(ha.Weight, 1)) {
		return a
	}
	return b
}

// mix makes a second random number of the first. Source: the finalizer of
// SplitMix64.
func mix(z uint64) uint64 {
	z += 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
