package balance

import (
	"slices"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// overprovisioning is how many requests a tier or a place can take in proportion
// to its healthy hosts, in percent: with 72 of 100 healthy, it is still whole.
// Source: Envoy's default overprovisioning_factor.
const overprovisioning = 140

// tiers chooses a priority, then a place, then a host.
type tiers struct {
	choose *weighted // nil: the only tier
	tier   []tier
}

// tier is one priority.
type tier struct {
	choose *weighted // of a place; nil: the only one
	place  []place
}

// place is hosts that are chosen from in one way.
type place struct {
	picker Picker
	hosts  []int // indexes among all
}

func newTiers(cfg Config, hosts []Host, random uint64) Picker {
	var priorities []uint32
	for i := range hosts {
		priorities = append(priorities, hosts[i].Priority)
	}
	slices.Sort(priorities)
	priorities = slices.Compact(priorities)
	healthy, total := make([]int, len(priorities)), make([]int, len(priorities))
	for i := range hosts {
		p, _ := slices.BinarySearch(priorities, hosts[i].Priority)
		total[p]++
		if !hosts[i].Unhealthy {
			healthy[p]++
		}
	}
	loads, panics := Loads(healthy, total, cfg.Panic)
	t := &tiers{}
	var weights []Host
	for p, load := range loads {
		if load == 0 {
			continue
		}
		if one := newTier(cfg, hosts, priorities[p], panics[p], random); len(one.place) > 0 {
			t.tier = append(t.tier, one)
			weights = append(weights, Host{Weight: load})
		}
	}
	if len(t.tier) == 0 {
		return nil
	}
	if len(t.tier) > 1 {
		t.choose = newWeighted(weights)
	}
	return t
}

// Loads returns what part of the requests each priority gets, in percent, and
// whether it uses its unhealthy hosts too. Source: Envoy, "Priority levels" and
// "Panic threshold".
func Loads(healthy, total []int, panicBelow uint32) (loads []uint32, panics []bool) {
	loads, panics = make([]uint32, len(total)), make([]bool, len(total))
	health := make([]int, len(total))
	sum, hosts := 0, 0
	for i := range total {
		if total[i] > 0 {
			health[i] = min(100, overprovisioning*healthy[i]/total[i])
		}
		sum += health[i]
		hosts += total[i]
	}
	all := min(sum, 100)
	everywhere := true
	for i := range total {
		panics[i] = all < 100 && total[i] > 0 && 100*healthy[i] < int(panicBelow)*total[i]
		everywhere = everywhere && (panics[i] || total[i] == 0)
	}
	left := 100
	switch {
	case hosts == 0:
		return loads, panics
	case everywhere && panicBelow > 0:
		// By size, because health says nothing any more.
		for i := range total {
			loads[i] = uint32(100 * total[i] / hosts)
			left -= int(loads[i])
		}
	case all == 0:
		return loads, panics // nothing is healthy, and panic is off
	default:
		for i := range total {
			n := min(left, health[i]*100/all)
			loads[i] = uint32(n)
			left -= n
		}
	}
	// What rounding left over goes to the first that has any.
	for i := range loads {
		if loads[i] > 0 {
			loads[i] += uint32(left)
			break
		}
	}
	return loads, panics
}

func newTier(cfg Config, hosts []Host, priority uint32, panics bool, random uint64) tier {
	usable := func(h *Host) bool { return h.Priority == priority && (panics || !h.Unhealthy) }
	if !cfg.LocalityWeighted {
		var indexes []int
		for i := range hosts {
			if usable(&hosts[i]) {
				indexes = append(indexes, i)
			}
		}
		return tier{place: placeOf(nil, cfg, hosts, indexes, random)}
	}
	// A place counts by its weight, less what of it is not healthy.
	type locality struct {
		number, usable, total int
		weight                uint32
		indexes               []int
	}
	var places []locality
	for i := range hosts {
		h := &hosts[i]
		if h.Priority != priority {
			continue
		}
		at := slices.IndexFunc(places, func(l locality) bool { return l.number == h.Locality })
		if at < 0 {
			at = len(places)
			places = append(places, locality{number: h.Locality, weight: h.LocalityWeight})
		}
		places[at].total++
		if usable(h) {
			places[at].usable++
			places[at].indexes = append(places[at].indexes, i)
		}
	}
	effective := func(l *locality) uint32 {
		return uint32(min(100, overprovisioning*l.usable/l.total)) * min(l.weight, 1<<24)
	}
	if cfg.Kind == plan.RingHash || cfg.Kind == plan.Maglev {
		// One table holds all places, so that a host keeps its requests when the
		// weights of places change: a place's weight is in those of its hosts.
		scaled := slices.Clone(hosts)
		var indexes []int
		for i := range places {
			l := &places[i]
			sum := uint64(0)
			for _, j := range l.indexes {
				sum += uint64(max(hosts[j].Weight, 1))
			}
			for _, j := range l.indexes {
				if w := uint64(effective(l)) * uint64(max(hosts[j].Weight, 1)) * 100 / sum; w > 0 {
					scaled[j].Weight = uint32(min(w, 1<<31))
					indexes = append(indexes, j)
				}
			}
		}
		slices.Sort(indexes)
		return tier{place: placeOf(nil, cfg, scaled, indexes, random)}
	}
	var t tier
	var weights []Host
	for i := range places {
		if w := effective(&places[i]); w > 0 {
			t.place = placeOf(t.place, cfg, hosts, places[i].indexes, random)
			weights = append(weights, Host{Weight: w})
		}
	}
	if len(t.place) > 1 {
		t.choose = newWeighted(weights)
	}
	return t
}

func placeOf(list []place, cfg Config, hosts []Host, indexes []int, random uint64) []place {
	if len(indexes) == 0 {
		return list
	}
	mine := make([]Host, len(indexes))
	for i, j := range indexes {
		mine[i] = hosts[j]
	}
	return append(list, place{pickerOf(cfg, mine, random), indexes})
}

func (t *tiers) Pick(random uint64) int {
	// Each step has a number of its own, made of the one: the same hash takes the
	// same way.
	in := &t.tier[0]
	if t.choose != nil {
		in = &t.tier[t.choose.Pick(mix(random+1))]
	}
	at := &in.place[0]
	if in.choose != nil {
		at = &in.place[in.choose.Pick(mix(random+2))]
	}
	return at.hosts[at.picker.Pick(random)]
}
