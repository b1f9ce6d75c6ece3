package rbac

import (
	"strings"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// texts are the values that a condition compares with. Few are compared one by one,
// many are looked up.
type texts struct {
	few   []plan.TextMatch
	exact map[string]struct{}
	ends  *trie // by prefix
	tails *trie // by suffix, read backwards
}

// manyTexts is from where on a lookup is cheaper than comparing.
const manyTexts = 8

func newTexts(list []plan.TextMatch) texts {
	if len(list) < manyTexts {
		return texts{few: list}
	}
	t := texts{exact: map[string]struct{}{}}
	for _, m := range list {
		switch m.Kind {
		case plan.StringExact:
			t.exact[m.Value] = struct{}{}
		case plan.StringPrefix:
			t.ends = t.ends.add(m.Value, false, 0)
		case plan.StringSuffix:
			t.tails = t.tails.add(m.Value, true, 0)
		default:
			t.few = append(t.few, m)
		}
	}
	return t
}

func (t *texts) match(v string) bool {
	if t.exact != nil {
		if _, ok := t.exact[v]; ok {
			return true
		}
		if t.ends.any(v, false) || t.tails.any(v, true) {
			return true
		}
	}
	for i := range t.few {
		if matchText(t.few[i].Kind, t.few[i].Value, v) {
			return true
		}
	}
	return false
}

func matchText(kind plan.StringKind, value, v string) bool {
	switch kind {
	case plan.StringExact:
		return v == value
	case plan.StringPresent:
		return v != ""
	case plan.StringPrefix:
		return strings.HasPrefix(v, value)
	case plan.StringSuffix:
		return strings.HasSuffix(v, value)
	case plan.StringContains:
		return strings.Contains(v, value)
	case plan.StringTemplate:
		return matchTemplate(value, v)
	}
	return false
}

// matchTemplate compares a path with a template, in which "*" stands for a segment
// that is not empty, and "**" for any number of characters, "/" among them. There
// is at most one "**" in a template that Istio accepts; several cost no more than
// the product of the lengths.
func matchTemplate(t, path string) bool {
	// Where to go on when what follows a "**" did not fit.
	back, from := -1, 0
	ti, pi := 0, 0
	for {
		switch {
		case ti < len(t) && t[ti] == '*' && ti+1 < len(t) && t[ti+1] == '*':
			ti += 2
			back, from = ti, pi
			continue
		case ti < len(t) && t[ti] == '*':
			n := pi
			for n < len(path) && path[n] != '/' {
				n++
			}
			if n > pi {
				ti, pi = ti+1, n
				continue
			}
		case ti < len(t) && pi < len(path) && t[ti] == path[pi]:
			ti, pi = ti+1, pi+1
			continue
		case ti == len(t) && pi == len(path):
			return true
		}
		if back < 0 || from >= len(path) {
			return false
		}
		from++
		ti, pi = back, from
	}
}
