package route

import (
	"cmp"
	"maps"
	"math/bits"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/internal/plan"
)

const (
	// fewRoutes is up to how many routes are looked at one after the other.
	fewRoutes = 8
	// maxLengths bounds in how many lengths of prefix an index looks a path up. Those
	// of the rarest lengths are looked at one by one.
	maxLengths = 30
	// maxLists is a list for each length, one for exact paths, one for the rest.
	maxLists = maxLengths + 2
)

// paths finds the routes that a path may match, in their order: the first that
// matches wins. What it finds is a superset, since it compares hashes only; who asks
// looks at all conditions.
type paths struct {
	lengths []int  // of the prefixes, ascending
	slots   []slot // by hash, of which it takes the lower bits; n 0 is free
	routes  []int32
	rest    span // those without a path to look up
}

// slot is the routes of one path or prefix.
type slot struct {
	hash uint64
	span
}

// span is a part of paths.routes, in ascending order.
type span struct{ from, to int32 }

// FNV-1a, 64 bit: a hash that grows with the text byte by byte, so that one walk
// gives it for all prefixes.
const (
	hashStart = 0xcbf29ce484222325
	hashPrime = 0x100000001b3
	// exactly tells a whole path from a prefix.
	exactly = 0x9e3779b97f4a7c15
)

func hashOf(text string) uint64 {
	h := uint64(hashStart)
	for i := range len(text) {
		h = (h ^ uint64(text[i])) * hashPrime
	}
	return h
}

// newPaths returns nil for routes that are too few.
func newPaths(routes []rule) *paths {
	if len(routes) <= fewRoutes {
		return nil
	}
	type group struct {
		length int
		hashes map[uint64][]int32
	}
	exact := map[uint64][]int32{}
	byLength := map[int]*group{}
	var rest []int32
	for i := range routes {
		m := &routes[i].plan.Match
		value := m.Path.Value
		switch {
		case m.IgnoreCase || m.Path.Kind == plan.PathRegex:
			rest = append(rest, int32(i))
			continue
		case m.Path.Kind == plan.PathExact:
			h := hashOf(value) ^ exactly
			exact[h] = append(exact[h], int32(i))
			continue
		case m.Path.Kind == plan.PathSegmentPrefix:
			value = strings.TrimRight(value, "/")
		}
		g := byLength[len(value)]
		if g == nil {
			g = &group{len(value), map[uint64][]int32{}}
			byLength[len(value)] = g
		}
		h := hashOf(value)
		g.hashes[h] = append(g.hashes[h], int32(i))
	}
	// The lengths of most prefixes are looked up; what is few can be looked at.
	groups := slices.SortedFunc(maps.Values(byLength), func(a, b *group) int {
		return cmp.Or(cmp.Compare(len(b.hashes), len(a.hashes)), cmp.Compare(a.length, b.length))
	})
	for _, g := range groups[min(maxLengths, len(groups)):] {
		for _, list := range g.hashes {
			rest = append(rest, list...)
		}
	}
	slices.Sort(rest)
	x := &paths{}
	x.rest = x.keep(rest)
	all := len(exact)
	for _, g := range groups[:min(maxLengths, len(groups))] {
		x.lengths = append(x.lengths, g.length)
		all += len(g.hashes)
	}
	slices.Sort(x.lengths)
	x.slots = make([]slot, 1<<bits.Len(uint(2*all))) // half of them free, and more
	enter := func(hashes map[uint64][]int32) {
		for h, list := range hashes {
			i := h & uint64(len(x.slots)-1)
			for x.slots[i].to > 0 {
				i = (i + 1) & uint64(len(x.slots)-1)
			}
			x.slots[i] = slot{h, x.keep(list)}
		}
	}
	enter(exact)
	for _, g := range groups[:min(maxLengths, len(groups))] {
		enter(g.hashes)
	}
	return x
}

func (x *paths) keep(list []int32) span {
	from := len(x.routes)
	x.routes = append(x.routes, list...)
	return span{int32(from), int32(len(x.routes))}
}

// candidates are the routes found for one path: spans of which each is in order.
type candidates struct {
	paths *paths
	n     int
	// full says that there are more, by hashes that happen to be equal: then all
	// routes have to be looked at.
	full  bool
	spans [maxLists]span
}

func (c *candidates) add(s span) {
	switch {
	case s.from == s.to:
	case c.n == maxLists:
		c.full = true
	default:
		c.spans[c.n] = s
		c.n++
	}
}

// look adds all that is under a hash: by chance that may be more than one.
func (c *candidates) look(h uint64) {
	slots := c.paths.slots
	for i := h & uint64(len(slots)-1); slots[i].to > 0; i = (i + 1) & uint64(len(slots)-1) {
		if slots[i].hash == h {
			c.add(slots[i].span)
		}
	}
}

// find adds the routes for a path.
func (c *candidates) find(path []byte) {
	c.add(c.paths.rest)
	h, at := uint64(hashStart), 0
	for _, length := range c.paths.lengths {
		if length > len(path) {
			break
		}
		for ; at < length; at++ {
			h = (h ^ uint64(path[at])) * hashPrime
		}
		c.look(h)
	}
	for ; at < len(path); at++ {
		h = (h ^ uint64(path[at])) * hashPrime
	}
	c.look(h ^ exactly)
}

// next returns the first route that is left, or -1.
func (c *candidates) next() int {
	best, first := -1, int32(0)
	for i := range c.n {
		if r := c.paths.routes[c.spans[i].from]; best < 0 || r < first {
			best, first = i, r
		}
	}
	if best < 0 {
		return -1
	}
	if s := &c.spans[best]; s.from+1 < s.to {
		s.from++
	} else {
		c.n--
		*s = c.spans[c.n]
	}
	return int(first)
}
