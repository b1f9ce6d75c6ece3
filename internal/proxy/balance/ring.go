package balance

import (
	"math"
	"math/bits"
	"slices"
	"strconv"

	"github.com/cespare/xxhash/v2"
)

const (
	// usualRing is Envoy's default for RingHashLbConfig.
	usualRing = 1024
	// largestRing bounds the memory of a ring, 16 bytes for each point. The points
	// of one host are halved until a ring fits.
	largestRing = 1 << 18
)

// ring gives each host points on a circle of hashes; a request belongs to the
// host of the next point. When a host leaves, only what was its own moves.
type ring struct {
	points []point
}

type point struct {
	hash uint64
	host int32
}

// newRing makes a ring of at least so many points. How many a host has does not
// depend on how many hosts there are: Envoy divides a fixed number among them, by
// which points of all hosts move when one comes or goes.
func newRing(hosts []Host, least uint64) *ring {
	if least == 0 {
		least = usualRing
	}
	heaviest := uint32(1)
	for i := range hosts {
		heaviest = max(heaviest, hosts[i].Weight)
	}
	// Of a power of two, so that the basis seldom changes.
	basis := float64(uint32(1) << (bits.Len32(heaviest) - 1))
	count := func(each float64, h *Host) uint64 {
		return uint64(max(math.Round(each*float64(max(h.Weight, 1))/basis), 1))
	}
	total := func(each float64) (sum uint64) {
		for i := range hosts {
			sum += count(each, &hosts[i])
		}
		return sum
	}
	each := math.Ceil(float64(least) / 2) // there are two hosts at least
	for total(each) < least {
		each *= 2
	}
	for total(each) > max(largestRing, 2*least) && each > 1 {
		each /= 2
	}
	r := &ring{points: make([]point, 0, total(each))}
	var buf []byte
	for i := range hosts {
		buf = append(append(buf[:0], hosts[i].Key...), '_')
		for n := range count(each, &hosts[i]) {
			r.points = append(r.points, point{xxhash.Sum64(strconv.AppendUint(buf, n, 10)), int32(i)})
		}
	}
	slices.SortFunc(r.points, func(a, b point) int {
		switch {
		case a.hash < b.hash:
			return -1
		case a.hash > b.hash:
			return 1
		}
		return int(a.host - b.host)
	})
	return r
}

func (r *ring) Pick(hash uint64) int {
	low, high := 0, len(r.points)
	for low < high {
		if mid := int(uint(low+high) >> 1); r.points[mid].hash < hash {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low == len(r.points) {
		low = 0
	}
	return int(r.points[low].host)
}
