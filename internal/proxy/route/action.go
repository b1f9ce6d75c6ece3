package route

import (
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// Action is what a route does, as far as it has to be compiled.
type Action struct {
	rewrite      *regexp.Regexp
	substitution []segment
	origins      []origin
	hash         []hash
	// Edits are the route's changes of headers, and Shares those of the parts of its
	// split; nil are none.
	Edits  *Edits
	Shares []*Edits
}

// segment is a piece of a substitution: a text, or what a group matched.
type segment struct {
	text  string
	group int // -1: text
}

type origin struct {
	plan  *plan.StringMatch
	regex *regexp.Regexp
}

type hash struct {
	plan *plan.HashPolicy
	id   exchange.ID
}

// newAction returns nil if there is nothing to compile.
func newAction(p *plan.Route) (*Action, error) {
	shares := slices.ContainsFunc(p.Clusters, func(w plan.WeightedCluster) bool { return w.Headers != nil })
	if p.RegexRewrite == nil && p.CORS == nil && len(p.Hash) == 0 && p.Headers == nil && !shares {
		return nil, nil
	}
	a := &Action{Edits: newEdits(p.Headers)}
	if shares {
		for i := range p.Clusters {
			a.Shares = append(a.Shares, newEdits(p.Clusters[i].Headers))
		}
	}
	var faults []error
	if re := p.RegexRewrite; re != nil {
		if len(re.Pattern) > maxRegex {
			faults = append(faults, fmt.Errorf("rewrite: regular expression has %d bytes, more than %d", len(re.Pattern), maxRegex))
		} else if compiled, err := regexp.Compile(re.Pattern); err != nil {
			faults = append(faults, fmt.Errorf("rewrite: %w", err))
		} else {
			a.rewrite, a.substitution = compiled, segments(re.Substitution)
		}
	}
	if p.CORS != nil {
		for i := range p.CORS.Origins {
			o := origin{plan: &p.CORS.Origins[i]}
			if o.plan.Kind == plan.StringRegex {
				var err error
				if o.regex, err = compile(o.plan.Value); err != nil {
					faults = append(faults, fmt.Errorf("origin: %w", err))
				}
			}
			a.origins = append(a.origins, o)
		}
	}
	for i := range p.Hash {
		h := hash{plan: &p.Hash[i]}
		if h.plan.Kind == plan.HashHeader {
			h.id = exchange.Identify([]byte(h.plan.Name))
		}
		a.hash = append(a.hash, h)
	}
	return a, errors.Join(faults...)
}

// segments reads a substitution: "\1" is the first group, "\0" all of the match,
// "\\" a backslash.
func segments(s string) []segment {
	var out []segment
	text := ""
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			text += s[i : i+1]
			continue
		}
		i++
		if s[i] < '0' || s[i] > '9' {
			text += s[i : i+1]
			continue
		}
		if text != "" {
			out = append(out, segment{text, -1})
			text = ""
		}
		out = append(out, segment{"", int(s[i] - '0')})
	}
	if text != "" {
		out = append(out, segment{text, -1})
	}
	return out
}

// Rewrite appends to b the path with every match of the route's pattern replaced,
// and reports whether there is a pattern.
func (a *Action) Rewrite(b, path []byte) ([]byte, bool) {
	if a == nil || a.rewrite == nil {
		return b, false
	}
	from := 0
	for _, m := range a.rewrite.FindAllSubmatchIndex(path, -1) {
		b = append(b, path[from:m[0]]...)
		for _, s := range a.substitution {
			switch {
			case s.group < 0:
				b = append(b, s.text...)
			case 2*s.group+1 < len(m) && m[2*s.group] >= 0:
				b = append(b, path[m[2*s.group]:m[2*s.group+1]]...)
			}
		}
		from = m[1]
	}
	return append(b, path[from:]...), true
}

// Origin reports whether the route's CORS policy allows an origin. Source: Envoy,
// which takes an exact "*" for any.
func (a *Action) Origin(value []byte) bool {
	if a == nil {
		return false
	}
	for i := range a.origins {
		o := &a.origins[i]
		if o.plan.Kind == plan.StringExact && o.plan.Value == "*" || compare(o.plan.Kind, value, o.plan.Value, o.regex) {
			return true
		}
	}
	return false
}

// Hash returns what the choice of x's endpoint goes by, and whether anything
// does. made is the policy of a cookie that the client has to be given: it was
// made of random. Source: Envoy, HashPolicyImpl::generateHash.
func (a *Action) Hash(x *exchange.Exchange, random uint64) (sum uint64, ok bool, made *plan.HashPolicy) {
	if a == nil {
		return 0, false, nil
	}
	for i := range a.hash {
		h := &a.hash[i]
		one, found := h.of(x)
		if !found && h.plan.Generate && made == nil {
			var text [16]byte
			one, found, made = xxhash.Sum64(Cookie(text[:0], random)), true, h.plan
		}
		if !found {
			continue
		}
		if ok {
			one ^= sum<<1 | sum>>63
		}
		sum, ok = one, true
		if h.plan.Terminal {
			break
		}
	}
	return sum, ok, made
}

// Cookie appends the value of a cookie that is made of random.
func Cookie(b []byte, random uint64) []byte {
	const digits = "0123456789abcdef"
	for shift := 60; shift >= 0; shift -= 4 {
		b = append(b, digits[random>>shift&15])
	}
	return b
}

func (h *hash) of(x *exchange.Exchange) (uint64, bool) {
	q := &x.Request
	switch h.plan.Kind {
	case plan.HashHeader:
		if h.id == exchange.Host {
			return xxhash.Sum64(q.Authority), true
		}
		if value, i := q.Header.Find(h.plan.Name, 0); i >= 0 {
			return xxhash.Sum64(value), true
		}
	case plan.HashCookie:
		for value, i := q.Header.Find("cookie", 0); i >= 0; value, i = q.Header.Find("cookie", i+1) {
			if v, ok := cookie(value, h.plan.Name); ok {
				return xxhash.Sum64(v), true
			}
		}
	case plan.HashSourceIP:
		b, err := x.Conn.Remote.Addr().Unmap().AppendText(x.Scratch())
		if err == nil && len(b) > len(x.Scratch()) {
			return xxhash.Sum64(b[len(x.Scratch()):]), true
		}
	case plan.HashQuery:
		if v, ok := parameter(q.Query, h.plan.Name); ok {
			return xxhash.Sum64(v), true
		}
	}
	return 0, false
}

// cookie finds one in the value of a cookie header. Source: RFC 6265 section
// 4.2.1.
func cookie(header []byte, name string) ([]byte, bool) {
	for len(header) > 0 {
		part := header
		header = nil
		for i, c := range part {
			if c == ';' {
				part, header = part[:i], part[i+1:]
				break
			}
		}
		for len(part) > 0 && part[0] == ' ' {
			part = part[1:]
		}
		if len(part) > len(name) && part[len(name)] == '=' && string(part[:len(name)]) == name {
			v := part[len(name)+1:]
			if n := len(v); n >= 2 && v[0] == '"' && v[n-1] == '"' {
				v = v[1 : n-1]
			}
			return v, true
		}
	}
	return nil, false
}
