package rbac

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// Set is a list of rules with an index. It is immutable.
type Set struct {
	rules []*rule
	// rest are the rules that no index helps to find, in order.
	rest    []int32
	indexes []*index
}

// NewSet compiles rules, which are sorted by name.
func NewSet(in []*plan.RBACRule) *Set {
	s := &Set{}
	counts := countValues(in)
	for i, r := range in {
		s.rules = append(s.rules, compile(r))
		if conditions := counts.choose(r); conditions != nil {
			for _, c := range conditions {
				s.index(c).add(c, int32(i))
			}
		} else {
			s.rest = append(s.rest, int32(i))
		}
	}
	return s
}

// index returns the one for a condition's attribute.
func (s *Set) index(c *plan.Condition) *index {
	for _, ix := range s.indexes {
		if ix.attr == c.Attr && ix.key.text == c.Key {
			return ix
		}
	}
	ix := &index{attr: c.Attr, key: keyOf(*c)}
	s.indexes = append(s.indexes, ix)
	return ix
}

// Match returns the first of the rules that matches, or nil.
func (s *Set) Match(q *Query) *rule {
	best := int32(len(s.rules))
	best = s.first(s.rest, best, q)
	for _, ix := range s.indexes {
		best = ix.find(s, q, best)
	}
	if int(best) == len(s.rules) {
		return nil
	}
	return s.rules[best]
}

// first returns the first of the candidates before best that matches, or best.
func (s *Set) first(candidates []int32, best int32, q *Query) int32 {
	for _, id := range candidates {
		if id >= best {
			break
		}
		if s.rules[id].matches(q) {
			return id
		}
	}
	return best
}

// index finds rules by the values of one attribute.
type index struct {
	attr plan.Attribute
	key  key

	exact map[string][]int32
	// spaces are namespaces within a principal: Contains "/ns/NAME/".
	spaces map[string][]int32
	// accounts are ends of principals: Suffix "/ns/NAME/sa/NAME".
	accounts map[string][]int32
	ends     *trie
	tails    *trie
	ports    map[uint16][]int32
	nets     map[netip.Prefix][]int32
	bits     []netBits // of the nets
}

// netBits is a length of prefixes in one family.
type netBits struct {
	six  bool
	bits int
}

func (ix *index) add(c *plan.Condition, id int32) {
	for _, t := range c.Texts {
		switch t.Kind {
		case plan.StringExact:
			put(&ix.exact, t.Value, id)
		case plan.StringPrefix:
			ix.ends = ix.ends.add(t.Value, false, id)
		case plan.StringTemplate:
			ix.ends = ix.ends.add(literal(t.Value), false, id)
		case plan.StringSuffix:
			if isAccount(c.Attr, t) {
				put(&ix.accounts, t.Value, id)
			} else {
				ix.tails = ix.tails.add(t.Value, true, id)
			}
		case plan.StringContains: // of a namespace: choose has seen to it
			put(&ix.spaces, t.Value, id)
		}
	}
	for _, p := range c.Ports {
		put(&ix.ports, p, id)
	}
	for _, n := range c.Nets {
		put(&ix.nets, n, id)
		b := netBits{n.Addr().Is6(), n.Bits()}
		if !slices.Contains(ix.bits, b) {
			ix.bits = append(ix.bits, b)
		}
	}
}

func put[K comparable](m *map[K][]int32, k K, id int32) {
	if *m == nil {
		*m = map[K][]int32{}
	}
	if l := (*m)[k]; len(l) == 0 || l[len(l)-1] != id {
		(*m)[k] = append(l, id)
	}
}

// find returns the first rule before best that matches and is filed here, or best.
func (ix *index) find(s *Set, q *Query, best int32) int32 {
	if ix.ports != nil {
		return s.first(ix.ports[q.Conn.Local.Port()], best, q)
	}
	if ix.nets != nil {
		ip := q.ip(ix.attr)
		for _, b := range ix.bits {
			if b.six != ip.Is6() {
				continue
			}
			if n, err := ip.Prefix(b.bits); err == nil {
				best = s.first(ix.nets[n], best, q)
			}
		}
		return best
	}
	var buf [valuesInline]string
	for _, v := range q.values(ix.attr, &ix.key, buf[:0]) {
		if ix.exact != nil {
			best = s.first(ix.exact[v], best, q)
		}
		if ix.spaces != nil || ix.accounts != nil {
			best = ix.findParts(s, q, v, best)
		}
		if ix.ends != nil {
			w := ix.ends.walk(v, false)
			for ids := w.step(); ids != nil; ids = w.step() {
				best = s.first(ids, best, q)
			}
		}
		if ix.tails != nil {
			w := ix.tails.walk(v, true)
			for ids := w.step(); ids != nil; ids = w.step() {
				best = s.first(ids, best, q)
			}
		}
	}
	return best
}

// findParts looks up the parts of a principal. A name of an unusual form may hold
// several things that look like a namespace: all of them count, as for a comparison
// of texts.
func (ix *index) findParts(s *Set, q *Query, v string, best int32) int32 {
	for rest := v; ; {
		i := strings.Index(rest, "/ns/")
		if i < 0 {
			return best
		}
		rest = rest[i:]
		if ix.accounts != nil {
			best = s.first(ix.accounts[rest], best, q)
		}
		rest = rest[1:] // the slash behind "ns" may begin another
		if end := strings.IndexByte(rest[3:], '/'); end >= 0 && ix.spaces != nil {
			best = s.first(ix.spaces[v[len(v)-len(rest)-1:len(v)-len(rest)+3+end+1]], best, q)
		}
	}
}

// isAccount recognises what compile makes of a service account.
func isAccount(a plan.Attribute, t plan.TextMatch) bool {
	rest, ok := strings.CutPrefix(t.Value, "/ns/")
	return ok && a == plan.AttrPrincipal && t.Kind == plan.StringSuffix && rest != ""
}

// isSpace recognises what compile makes of a namespace.
func isSpace(a plan.Attribute, t plan.TextMatch) bool {
	rest, ok := strings.CutPrefix(t.Value, "/ns/")
	rest, end := strings.CutSuffix(rest, "/")
	return ok && end && a == plan.AttrPrincipal && t.Kind == plan.StringContains && rest != "" && !strings.Contains(rest, "/")
}

// literal is what every path begins with that fits a template.
func literal(template string) string {
	before, _, _ := strings.Cut(template, "*")
	return before
}

// valueKey identifies a value of an attribute over all rules.
type valueKey struct {
	attr plan.Attribute
	key  string
	kind plan.StringKind
	text string
	net  netip.Prefix
	port uint16
}

// counts tells how many conditions have a value.
type counts map[valueKey]int

func countValues(rules []*plan.RBACRule) counts {
	n := counts{}
	for _, r := range rules {
		for _, list := range [...][]plan.Conditions{r.To, r.From} {
			for _, cs := range list {
				for i := range cs {
					for k := range keysOf(&cs[i]) {
						n[k]++
					}
				}
			}
		}
	}
	return n
}

// keysOf yields the values of a condition.
func keysOf(c *plan.Condition) func(yield func(valueKey) bool) {
	return func(yield func(valueKey) bool) {
		for _, t := range c.Texts {
			k := valueKey{attr: c.Attr, key: c.Key, kind: t.Kind, text: t.Value}
			if t.Kind == plan.StringTemplate {
				k.kind, k.text = plan.StringPrefix, literal(t.Value)
			}
			if !yield(k) {
				return
			}
		}
		for _, n := range c.Nets {
			if !yield(valueKey{attr: c.Attr, net: n}) {
				return
			}
		}
		for _, p := range c.Ports {
			if !yield(valueKey{attr: c.Attr, port: p}) {
				return
			}
		}
	}
}

// choose returns the conditions to file a rule under, one for each alternative of
// one of its sides: whichever are shared by the fewest rules. It returns nil if
// neither side can be filed.
func (n counts) choose(r *plan.RBACRule) []*plan.Condition {
	to, costTo := n.side(r.To)
	from, costFrom := n.side(r.From)
	if from == nil || to != nil && costTo < costFrom {
		return to
	}
	return from
}

func (n counts) side(list []plan.Conditions) (out []*plan.Condition, cost int) {
	for _, cs := range list {
		var best *plan.Condition
		bestCost := 0
		for i := range cs {
			c := &cs[i]
			if !canFile(c) {
				continue
			}
			most := 0
			for k := range keysOf(c) {
				most = max(most, n[k])
			}
			if best == nil || most < bestCost {
				best, bestCost = c, most
			}
		}
		if best == nil {
			return nil, 0
		}
		out = append(out, best)
		cost += bestCost
	}
	return out, cost
}

// canFile reports whether all values of a condition can be looked up.
func canFile(c *plan.Condition) bool {
	if c.Not || c.Attr == plan.AttrMetadata {
		return false
	}
	for _, t := range c.Texts {
		switch t.Kind {
		case plan.StringPresent:
			return false
		case plan.StringContains:
			if !isSpace(c.Attr, t) {
				return false
			}
		}
	}
	return true
}
