// Package jwt refuses requests with tokens that are not valid, and tells policies and
// the workload what valid ones say. A request without a token passes: whether one is
// needed is for policies to say.
package jwt

import (
	"bytes"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/jwt"
)

// Config is what the filter needs.
type Config struct {
	// Rules returns the rules in force, nil for none. It is called for each request.
	Rules func() *Rules
}

// New returns the filter.
func New(cfg Config) exchange.Filter {
	return exchange.Filter{Request: func(x *exchange.Exchange) {
		if r := cfg.Rules(); r != nil {
			r.request(x)
		}
	}}
}

// Rules is a verifier with the places where its rules look for tokens. It is
// immutable.
type Rules struct {
	verifier *jwt.Verifier
	places   []place
	// outputs are headers that only the proxy may write, in lower case.
	outputs []string
}

// place is where a token may stand.
type place struct {
	kind   kind
	name   string // in lower case if of a header
	prefix string
	from   []bool // by rule: whether it looks here
}

type kind uint8

const (
	header kind = iota
	param
	cookie
)

// NewRules finds out where to look; it returns nil if there are no rules.
func NewRules(v *jwt.Verifier) *Rules {
	if len(v.Rules()) == 0 {
		return nil
	}
	r := &Rules{verifier: v}
	for i, rule := range v.Rules() {
		p := rule.Plan
		look := func(k kind, name, prefix string) {
			at := slices.IndexFunc(r.places, func(o place) bool { return o.kind == k && o.name == name && o.prefix == prefix })
			if at < 0 {
				at = len(r.places)
				r.places = append(r.places, place{k, name, prefix, make([]bool, len(v.Rules()))})
			}
			r.places[at].from[i] = true
		}
		if len(p.Headers)+len(p.Params)+len(p.Cookies) == 0 {
			look(header, "authorization", "Bearer ")
			look(param, "access_token", "")
		}
		for _, h := range p.Headers {
			look(header, strings.ToLower(h.Name), h.Prefix)
		}
		for _, name := range p.Params {
			look(param, name, "")
		}
		for _, name := range p.Cookies {
			look(cookie, name, "")
		}
		if p.PayloadHeader != "" {
			r.outputs = append(r.outputs, strings.ToLower(p.PayloadHeader))
		}
		for _, c := range p.ClaimHeaders {
			r.outputs = append(r.outputs, strings.ToLower(c.Header))
		}
	}
	return r
}

func (r *Rules) request(x *exchange.Exchange) {
	h := &x.Request.Header
	for _, name := range r.outputs {
		for _, i := h.Find(name, 0); i >= 0; _, i = h.Find(name, i+1) {
			h.DelAt(i)
		}
	}
	for i := range r.places {
		p := &r.places[i]
		var ok bool
		switch p.kind {
		case header:
			ok = r.header(x, p)
		case param:
			ok = r.param(x, p)
		case cookie:
			ok = r.cookie(x, p)
		}
		if !ok {
			return
		}
	}
}

// header judges the tokens in the lines of a header, and removes those lines.
func (r *Rules) header(x *exchange.Exchange, p *place) bool {
	h := &x.Request.Header
	for v, i := h.Find(p.name, 0); i >= 0; v, i = h.Find(p.name, i+1) {
		token, found := bytes.CutPrefix(v, []byte(p.prefix))
		if !found {
			continue
		}
		result, ok := r.judge(x, p, clip(token))
		if !ok {
			return false
		}
		if result != nil && !result.Rule.Plan.Forward {
			h.DelAt(i)
		}
	}
	return true
}

// param judges tokens in the query, and removes them.
func (r *Rules) param(x *exchange.Exchange, p *place) bool {
	q := &x.Request
	removed := false
	kept := x.Scratch()
	from := len(kept)
	for rest := q.Query; len(rest) > 0; {
		item := rest
		if i := bytes.IndexByte(rest, '&'); i >= 0 {
			item, rest = rest[:i], rest[i+1:]
		} else {
			rest = nil
		}
		name, token, _ := bytes.Cut(item, []byte("="))
		if string(name) == p.name {
			result, ok := r.judge(x, p, token)
			if !ok {
				return false
			}
			if result != nil && !result.Rule.Plan.Forward {
				removed = true
				continue
			}
		}
		if len(kept) > from {
			kept = append(kept, '&')
		}
		kept = append(kept, item...)
	}
	if removed {
		q.Query = x.Keep(kept)
		q.HasQuery = len(q.Query) > 0
	}
	return true
}

// cookie judges tokens in cookies, and removes them.
func (r *Rules) cookie(x *exchange.Exchange, p *place) bool {
	h := &x.Request.Header
	for n := h.Len(); n > 0; n-- { // lines that are added below are done already
		f := h.At(n - 1)
		if f == nil || f.ID != exchange.Cookie {
			continue
		}
		removed := false
		kept := x.Scratch()
		from := len(kept)
		for rest := f.Value; len(rest) > 0; {
			item := rest
			if i := bytes.IndexByte(rest, ';'); i >= 0 {
				item, rest = rest[:i], rest[i+1:]
			} else {
				rest = nil
			}
			item = bytes.TrimSpace(item)
			name, token, _ := bytes.Cut(item, []byte("="))
			if string(name) == p.name {
				result, ok := r.judge(x, p, bytes.Trim(token, `"`))
				if !ok {
					return false
				}
				if result != nil && !result.Rule.Plan.Forward {
					removed = true
					continue
				}
			}
			if len(kept) > from {
				kept = append(kept, "; "...)
			}
			kept = append(kept, item...)
		}
		if removed {
			value := x.Keep(kept)
			h.DelAt(n - 1)
			if len(value) > 0 {
				h.Add(exchange.Cookie, "cookie", value)
			}
		}
	}
	return true
}

// judge verifies one token and applies what it says. It returns false if the request
// is answered, and no result if there is no token.
func (r *Rules) judge(x *exchange.Exchange, p *place, token []byte) (*jwt.Result, bool) {
	if len(token) == 0 {
		return nil, true
	}
	result, err := r.verifier.Verify(token, p.from)
	if err != nil {
		refuse(x, err)
		return nil, false
	}
	if x.Token == nil {
		x.Token = result.Token
	}
	h, rule := &x.Request.Header, result.Rule.Plan
	if rule.PayloadHeader != "" {
		h.AddString(exchange.Identify([]byte(rule.PayloadHeader)), rule.PayloadHeader, result.Payload)
	}
	for i, c := range rule.ClaimHeaders {
		if v := result.Headers[i]; v != "" {
			h.AddString(exchange.Identify([]byte(c.Header)), c.Header, v)
		}
	}
	return result, true
}

// clip ends a token at the first byte that can not be part of one.
func clip(token []byte) []byte {
	for i, c := range token {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.' || c == '=') {
			return token[:i]
		}
	}
	return token
}

// refuse answers as Envoy does: an audience that is not meant is forbidden, all else
// is not authorized.
func refuse(x *exchange.Exchange, err error) {
	q := &x.Request
	realm := `Bearer realm="` + q.Scheme + "://" + quotable(q.Authority) + quotable(q.Path) + `", error="invalid_token"`
	status := 401
	if err == jwt.WrongAudience {
		status = 403
	}
	reason := err.Error()
	x.Reply(status, reason, "jwt_authn_access_denied{"+strings.ReplaceAll(reason, " ", "_")+"}")
	x.Response.Header.AddString(exchange.Other, "www-authenticate", realm)
}

// quotable leaves out what would end a quoted text.
func quotable(b []byte) string {
	return strings.Map(func(c rune) rune {
		if c == '"' || c == '\\' || c < ' ' || c == 0x7f {
			return -1
		}
		return c
	}, string(b))
}
