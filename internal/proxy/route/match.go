package route

import (
	"bytes"
	"regexp"
	"strings"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// rule is a route with its compiled conditions.
type rule struct {
	plan    *plan.Route
	path    *regexp.Regexp // with plan.PathRegex
	headers []header
	query   []query
	claims  []claim
	retry   *Retry
	action  *Action
}

// header is a condition on a header.
type header struct {
	plan  *plan.HeaderMatch
	id    exchange.ID
	regex *regexp.Regexp
}

// query is a condition on a query parameter.
type query struct {
	plan  *plan.QueryMatch
	regex *regexp.Regexp
}

// claim is a condition on a claim.
type claim struct {
	plan  *plan.ClaimMatch
	regex *regexp.Regexp
}

// matches looks at each text of the claim.
func (c *claim) matches(t *exchange.Token) bool {
	found := false
	if t != nil {
		for _, v := range t.Claims[c.plan.Path] {
			if found = compareText(c.plan.Kind, v, c.plan.Value, c.regex); found {
				break
			}
		}
	}
	return found != c.plan.Invert
}

func compareText(kind plan.StringKind, value, want string, re *regexp.Regexp) bool {
	switch kind {
	case plan.StringPresent:
		return true
	case plan.StringExact:
		return value == want
	case plan.StringPrefix:
		return strings.HasPrefix(value, want)
	case plan.StringSuffix:
		return strings.HasSuffix(value, want)
	case plan.StringContains:
		return strings.Contains(value, want)
	case plan.StringRegex:
		return re != nil && re.MatchString(value)
	}
	return false
}

func (r *rule) matches(q *Request) bool {
	if !r.matchesPath(q.Path) {
		return false
	}
	for i := range r.headers {
		if !r.headers[i].matches(q) {
			return false
		}
	}
	for i := range r.query {
		if !r.query[i].matches(q.Query) {
			return false
		}
	}
	for i := range r.claims {
		if !r.claims[i].matches(q.Token) {
			return false
		}
	}
	return true
}

func (r *rule) matchesPath(path []byte) bool {
	m := &r.plan.Match
	want := m.Path.Value
	switch m.Path.Kind {
	case plan.PathPrefix:
		return hasPrefix(path, want, m.IgnoreCase)
	case plan.PathExact:
		return len(path) == len(want) && hasPrefix(path, want, m.IgnoreCase)
	case plan.PathRegex:
		return r.path != nil && r.path.Match(path)
	case plan.PathSegmentPrefix:
		for len(want) > 0 && want[len(want)-1] == '/' {
			want = want[:len(want)-1]
		}
		return hasPrefix(path, want, m.IgnoreCase) && (len(path) == len(want) || path[len(want)] == '/')
	}
	return false
}

func hasPrefix(s []byte, prefix string, ignoreCase bool) bool {
	if len(s) < len(prefix) {
		return false
	}
	if !ignoreCase {
		return string(s[:len(prefix)]) == prefix
	}
	for i := range len(prefix) {
		if lower(s[i]) != lower(prefix[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c | 0x20
	}
	return c
}

func (h *header) matches(q *Request) bool {
	value, present := h.value(q)
	if h.plan.Kind == plan.StringPresent {
		return present != h.plan.Invert
	}
	if !present && !h.plan.MissingIsEmpty {
		return false // whether inverted or not
	}
	return compare(h.plan.Kind, value, h.plan.Value, h.regex) != h.plan.Invert
}

var http, https = []byte("http"), []byte("https")

// value returns what the condition looks at. Several fields of one name count as
// one, joined by commas; that is the one case in which a match allocates.
func (h *header) value(q *Request) ([]byte, bool) {
	if h.plan.Name != "" && h.plan.Name[0] == ':' {
		switch h.plan.Name {
		case ":method":
			return q.Method, true
		case ":authority":
			return q.Authority, true
		case ":scheme":
			if q.Scheme == "https" {
				return https, true
			}
			return http, true
		}
		return nil, false
	}
	if q.Header == nil {
		return nil, false
	}
	if h.id == exchange.Host {
		return q.Authority, true
	}
	if h.id != exchange.Other && !q.Header.Has(h.id) {
		return nil, false
	}
	value, i := q.Header.Find(h.plan.Name, 0)
	if i < 0 {
		return nil, false
	}
	second, j := q.Header.Find(h.plan.Name, i+1)
	if j < 0 {
		return value, true
	}
	joined := append([]byte(nil), value...)
	for j >= 0 {
		joined = append(append(joined, ','), second...)
		second, j = q.Header.Find(h.plan.Name, j+1)
	}
	return joined, true
}

func compare(kind plan.StringKind, value []byte, want string, re *regexp.Regexp) bool {
	switch kind {
	case plan.StringPresent:
		return true
	case plan.StringExact:
		return string(value) == want
	case plan.StringPrefix:
		return len(value) >= len(want) && string(value[:len(want)]) == want
	case plan.StringSuffix:
		return len(value) >= len(want) && string(value[len(value)-len(want):]) == want
	case plan.StringContains:
		return contains(value, want)
	case plan.StringRegex:
		return re != nil && re.Match(value)
	}
	return false
}

func contains(value []byte, want string) bool {
	for len(value) >= len(want) {
		if want == "" {
			return true
		}
		i := bytes.IndexByte(value[:len(value)-len(want)+1], want[0])
		if i < 0 {
			return false
		}
		if string(value[i:i+len(want)]) == want {
			return true
		}
		value = value[i+1:]
	}
	return false
}

// matches looks at the first parameter of the name. Values are compared as they
// were sent, escapes and all, as Envoy does.
func (q *query) matches(params []byte) bool {
	value, ok := parameter(params, q.plan.Name)
	return ok && compare(q.plan.Kind, value, q.plan.Value, q.regex)
}

// parameter returns the first value of a parameter.
func parameter(params []byte, name string) ([]byte, bool) {
	for len(params) > 0 {
		var p []byte
		p, params, _ = bytes.Cut(params, []byte("&"))
		if n, value, _ := bytes.Cut(p, []byte("=")); string(n) == name {
			return value, true
		}
	}
	return nil, false
}
