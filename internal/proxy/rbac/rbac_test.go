package rbac

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

var decisions = flag.Int("decisions", 1_000_000, "how many decisions to compare with the plain evaluator")

// request is what tests decide about.
type request struct {
	peer, sni          string
	from, to           string
	remote             string
	method, path, host string
	headers            [][2]string
	issuer             string // and subject: the token's principal
	claims             map[string][]string
	bytes              bool
}

func (r request) query() *Query {
	q := &Query{Conn: &exchange.Conn{PeerID: r.peer, SNI: r.sni}}
	if r.from != "" {
		q.Conn.Remote = netip.MustParseAddrPort(r.from)
	}
	if r.to != "" {
		q.Conn.Local = netip.MustParseAddrPort(r.to)
	}
	if r.remote != "" {
		q.Remote = netip.MustParseAddr(r.remote)
	}
	if r.bytes {
		return q
	}
	q.Exchange = new(exchange.Exchange)
	x := &q.Exchange.Request
	x.Method, x.Path, x.Authority = []byte(r.method), []byte(r.path), []byte(r.host)
	for _, h := range r.headers {
		x.Header.AddString(exchange.Identify([]byte(h[0])), h[0], h[1])
	}
	if r.issuer != "" || r.claims != nil {
		q.Exchange.Token = &exchange.Token{Principal: r.issuer, Claims: r.claims}
	}
	return q
}

// naive decides rule by rule, value by value, with no index: what the engine must
// say too.
func naive(lists []*plan.RBAC, r request) (denied bool, details string) {
	for _, l := range lists {
		if !l.Enforced || l.Action == plan.Audit {
			continue
		}
		i := slices.IndexFunc(l.Rules, func(rule *plan.RBACRule) bool { return naiveRule(rule, r) })
		if l.Action == plan.Deny && i >= 0 {
			return true, "rbac_access_denied_matched_policy[" + l.Rules[i].Name + "]"
		}
		if l.Action == plan.Allow && i < 0 {
			return true, "rbac_access_denied_matched_policy[none]"
		}
	}
	return false, ""
}

func naiveRule(rule *plan.RBACRule, r request) bool {
	side := func(list []plan.Conditions) bool {
		return len(list) == 0 || slices.ContainsFunc(list, func(cs plan.Conditions) bool {
			return !slices.ContainsFunc(cs, func(c plan.Condition) bool { return naiveCondition(c, r) == c.Not })
		})
	}
	return side(rule.To) && side(rule.From)
}

func naiveCondition(c plan.Condition, r request) bool {
	inside := func(ip string) bool {
		return slices.ContainsFunc(c.Nets, func(n netip.Prefix) bool { return n.Contains(netip.MustParseAddr(ip)) })
	}
	var values []string
	switch c.Attr {
	case plan.AttrSourceIP:
		return inside(netip.MustParseAddrPort(r.from).Addr().String())
	case plan.AttrDestinationIP:
		return inside(netip.MustParseAddrPort(r.to).Addr().String())
	case plan.AttrRemoteIP:
		return inside(r.remote)
	case plan.AttrDestinationPort:
		return slices.Contains(c.Ports, netip.MustParseAddrPort(r.to).Port())
	case plan.AttrPrincipal:
		values = []string{r.peer}
	case plan.AttrSNI:
		values = []string{r.sni}
	}
	if !r.bytes {
		switch c.Attr {
		case plan.AttrHost:
			values = []string{strings.ToLower(r.host)}
		case plan.AttrMethod:
			values = []string{r.method}
		case plan.AttrPath:
			values = []string{r.path}
		case plan.AttrRequestPrincipal:
			if r.issuer != "" {
				values = []string{r.issuer}
			}
		case plan.AttrClaim:
			values = r.claims[c.Key]
		case plan.AttrHeader:
			for _, h := range r.headers {
				if h[0] == c.Key {
					values = append(values, h[1])
				}
			}
		}
	}
	return slices.ContainsFunc(values, func(v string) bool {
		return slices.ContainsFunc(c.Texts, func(m plan.TextMatch) bool {
			switch m.Kind {
			case plan.StringExact:
				return v == m.Value
			case plan.StringPrefix:
				return strings.HasPrefix(v, m.Value)
			case plan.StringSuffix:
				return strings.HasSuffix(v, m.Value)
			case plan.StringContains:
				return strings.Contains(v, m.Value)
			case plan.StringPresent:
				return v != ""
			}
			return naiveTemplate(m.Value, v)
		})
	})
}

// naiveTemplate tries everything.
func naiveTemplate(t, path string) bool {
	switch {
	case strings.HasPrefix(t, "**"):
		for i := 0; i <= len(path); i++ {
			if naiveTemplate(t[2:], path[i:]) {
				return true
			}
		}
		return false
	case strings.HasPrefix(t, "*"):
		end := strings.IndexByte(path, '/')
		if end < 0 {
			end = len(path)
		}
		return end > 0 && naiveTemplate(t[1:], path[end:])
	case t == "":
		return path == ""
	}
	return path != "" && t[0] == path[0] && naiveTemplate(t[1:], path[1:])
}

// The world that rules and requests are drawn from is small, so that they meet.
type gen struct{ *rand.Rand }

func pick[T any](g gen, list ...T) T { return list[g.IntN(len(list))] }

func (g gen) namespace() string { return pick(g, "a", "b", "ns", "a-b", "sa") }
func (g gen) account() string   { return pick(g, "x", "y.z", "ns", "sa") }
func (g gen) principal() string {
	return pick(g, "", "spiffe://td/odd/ns/"+g.namespace()+"/ns/"+g.namespace()+"/sa/"+g.account(),
		"spiffe://"+pick(g, "td", "td.old")+"/ns/"+g.namespace()+"/sa/"+g.account(), "spiffe://td/ns/"+g.namespace()+"/sa/"+g.account())
}
func (g gen) path() string {
	return "/" + pick(g, "", "a", "b", "ab", "a/b", "a/"+pick(g, "b", "c", "bb")+"/"+pick(g, "", "c", "d.html"), "v1/items/"+fmt.Sprint(g.IntN(20)))
}
func (g gen) host() string { return pick(g, "a.com", "b.a.com", "A.com", "a.com:80", "[::1]:80", "c") }
func (g gen) ip() string {
	return pick(g, "10.0.0.1", "10.0.1.1", "10.1.0.1", "192.168.0.9", "2001:db8::1", "2001:db8:1::1")
}
func (g gen) port() string { return pick(g, "80", "81", "443", "9000") }

func (g gen) request() request {
	r := request{peer: g.principal(), sni: pick(g, "", "a.com", "b.a.com"), remote: g.ip(),
		from: netip.AddrPortFrom(netip.MustParseAddr(g.ip()), 1).String(), to: netip.AddrPortFrom(netip.MustParseAddr(g.ip()), 80).String(),
		method: pick(g, "GET", "POST", "PUT"), path: g.path(), host: g.host(), bytes: g.IntN(8) == 0}
	r.to = r.to[:len(r.to)-2] + g.port()
	for range g.IntN(4) {
		r.headers = append(r.headers, [2]string{pick(g, "x-role", "user-agent", "x-b"), pick(g, "", "admin", "guest", "adm")})
	}
	if g.IntN(2) == 0 {
		r.issuer = pick(g, "", "iss/"+g.account(), "other/x")
		r.claims = map[string][]string{"aud": {g.namespace(), g.namespace()}, "a\x00b": {g.account()}}
	}
	return r
}

func (g gen) texts(value func() string) []plan.TextMatch {
	var out []plan.TextMatch
	for n := pick(g, 1, 1, 2, 3, 12); n > 0; n-- {
		v := value()
		m := plan.TextMatch{Kind: plan.StringExact, Value: v}
		cut := g.IntN(len(v) + 1)
		switch g.IntN(9) {
		case 0, 1:
			m.Kind, m.Value = plan.StringPrefix, v[:cut]
		case 2:
			m.Kind, m.Value = plan.StringSuffix, v[cut:]
		case 3:
			m.Kind, m.Value = plan.StringContains, v[min(cut, 2):]
		case 4:
			m = plan.TextMatch{Kind: plan.StringPresent}
		}
		out = append(out, m)
	}
	return out
}

func (g gen) condition(from bool) plan.Condition {
	c := plan.Condition{Not: g.IntN(5) == 0}
	for c.Attr = plan.Attribute(g.IntN(int(plan.AttrMetadata) + 1)); c.Attr.OfSource() != from; {
		c.Attr = plan.Attribute(g.IntN(int(plan.AttrMetadata) + 1))
	}
	switch c.Attr {
	case plan.AttrPrincipal:
		c.Texts = g.texts(g.principal)
		switch g.IntN(4) {
		case 0:
			c.Texts = []plan.TextMatch{{Kind: plan.StringContains, Value: "/ns/" + g.namespace() + "/"}}
		case 1:
			c.Texts = []plan.TextMatch{{Kind: plan.StringSuffix, Value: "/ns/" + g.namespace() + "/sa/" + g.account()}}
		}
	case plan.AttrSourceIP, plan.AttrRemoteIP, plan.AttrDestinationIP:
		for range 1 + g.IntN(2) {
			a := netip.MustParseAddr(g.ip())
			c.Nets = append(c.Nets, netip.PrefixFrom(a, pick(g, 0, 8, 24, a.BitLen())).Masked())
		}
	case plan.AttrDestinationPort:
		c.Ports = []uint16{pick[uint16](g, 80, 81, 443, 9000)}
	case plan.AttrSNI, plan.AttrHost:
		c.Texts = g.texts(func() string { return strings.ToLower(g.host()) })
	case plan.AttrMethod:
		c.Texts = g.texts(func() string { return pick(g, "GET", "POST") })
	case plan.AttrPath:
		c.Texts = g.texts(g.path)
		if g.IntN(3) == 0 {
			c.Texts = append(c.Texts, plan.TextMatch{Kind: plan.StringTemplate, Value: pick(g, "/*", "/**", "/a/*", "/a/**", "/*/b/**", "/a/**/c", "/v1/items/*", "/**.html")})
		}
	case plan.AttrHeader:
		c.Key = pick(g, "x-role", "user-agent", "x-b")
		c.Texts = g.texts(func() string { return pick(g, "admin", "guest", "adm") })
	case plan.AttrRequestPrincipal:
		c.Texts = g.texts(func() string { return "iss/" + g.account() })
	case plan.AttrClaim:
		c.Key = pick(g, "aud", "a\x00b", "none")
		c.Texts = g.texts(func() string { return pick(g, g.account(), g.namespace()) })
	case plan.AttrMetadata:
		c.Key, c.Texts = "f\x00k", g.texts(g.account)
	}
	return c
}

func (g gen) rules() []*plan.RBACRule {
	side := func(from bool) (out []plan.Conditions) {
		for range pick(g, 0, 1, 1, 2) {
			var cs plan.Conditions
			for range 1 + g.IntN(3) {
				cs = append(cs, g.condition(from))
			}
			out = append(out, cs)
		}
		return out
	}
	var out []*plan.RBACRule
	for i := range pick(g, 0, 1, 3, 10, 60) {
		out = append(out, &plan.RBACRule{Name: fmt.Sprintf("rule[%03d]", i), To: side(false), From: side(true)})
	}
	return out
}

func TestEngineAgreesWithThePlainEvaluator(t *testing.T) {
	const requests = 1000
	g := gen{rand.New(rand.NewPCG(1, 2))}
	denied, allowed := 0, 0
	for n := 0; n < *decisions; n += requests {
		var lists []*plan.RBAC
		for range 1 + g.IntN(3) {
			lists = append(lists, &plan.RBAC{
				Action: pick(g, plan.Allow, plan.Deny, plan.Audit), Enforced: g.IntN(8) != 0, Rules: g.rules(),
			})
		}
		e := New(lists)
		for range requests {
			r := g.request()
			want, why := naive(lists, r)
			got := e.Decide(r.query())
			if got.Denied != want || got.Details != why {
				t.Fatalf("request %+v: denied=%v %s, want %v %s\n%s", r, got.Denied, got.Details, want, why, text(lists))
			}
			if want {
				denied++
			} else {
				allowed++
			}
		}
	}
	if denied == 0 || allowed == 0 {
		t.Errorf("%d denied, %d allowed: the requests tell nothing", denied, allowed)
	}
}

func text(lists []*plan.RBAC) string {
	var b strings.Builder
	for _, l := range lists {
		fmt.Fprintln(&b, l.Action, l.Enforced)
		for _, r := range l.Rules {
			fmt.Fprintln(&b, " ", r)
		}
	}
	return b.String()
}

func TestTemplates(t *testing.T) {
	for _, c := range []struct {
		template, path string
		want           bool
	}{
		{"/a/*", "/a/b", true}, {"/a/*", "/a/", false}, {"/a/*", "/a", false}, {"/a/*", "/a/b/c", false},
		{"/a/**", "/a/", true}, {"/a/**", "/a/b/c", true}, {"/a/**", "/ab", false},
		{"/*/b/**", "/x/b/", true}, {"/*/b/**", "/x/y/b/", false},
		{"/a/**/z", "/a/b/c/z", true}, {"/a/**/z", "/a/b/c/zz", false}, {"/a/**/z", "/a/z", false},
	} {
		if got := matchTemplate(c.template, c.path); got != c.want {
			t.Errorf("%s and %s: %v", c.template, c.path, got)
		}
	}
}

func TestDotsAreDots(t *testing.T) {
	e := New([]*plan.RBAC{{Action: plan.Allow, Enforced: true, Rules: []*plan.RBACRule{{Name: "r", From: []plan.Conditions{{{
		Attr: plan.AttrPrincipal, Texts: []plan.TextMatch{{Kind: plan.StringSuffix, Value: "/ns/a/sa/b.c"}},
	}}}}}}})
	if !e.Decide(request{peer: "spiffe://td/ns/a/sa/bxc"}.query()).Denied {
		t.Error("an account with another letter in the place of the dot is let in")
	}
	if e.Decide(request{peer: "spiffe://td/ns/a/sa/b.c"}.query()).Denied {
		t.Error("the account itself is refused")
	}
}

// TestEachHeaderLine holds that a second line of a name can not hide the first.
func TestEachHeaderLine(t *testing.T) {
	e := New([]*plan.RBAC{{Action: plan.Deny, Enforced: true, Rules: []*plan.RBACRule{{Name: "r", From: []plan.Conditions{{{
		Attr: plan.AttrHeader, Key: "x-role", Texts: []plan.TextMatch{{Kind: plan.StringExact, Value: "admin"}},
	}}}}}}})
	for _, headers := range [][][2]string{
		{{"x-role", "admin"}}, {{"x-role", "guest"}, {"x-role", "admin"}}, {{"X-Role", "admin"}, {"x-role", "guest"}},
	} {
		if !e.Decide(request{headers: headers}.query()).Denied {
			t.Errorf("%v gets through", headers)
		}
	}
}

func TestDryRunChangesNothing(t *testing.T) {
	e := New([]*plan.RBAC{{Action: plan.Allow, DryRun: true}, {Action: plan.Deny, Enforced: true, DryRun: true,
		Shadow: []*plan.RBACRule{{Name: "r"}}}})
	v := e.Decide(request{}.query())
	if v.Denied || !v.Shadow.Evaluated || !v.Shadow.Denied || v.Shadow.Rule != "r" || v.Shadow.Action != plan.Deny {
		t.Errorf("%+v", v)
	}
}

func TestDecidingAllocatesNothing(t *testing.T) {
	e := New(manyRules(1000))
	r := request{peer: "spiffe://cluster.local/ns/ns7/sa/a7", method: "GET", path: "/api/7/x", host: "A.example.com",
		from: "10.0.0.1:1", to: "10.0.0.2:80", headers: [][2]string{{"x-role", "b"}}}
	q := r.query()
	if n := testing.AllocsPerRun(100, func() { e.Decide(q) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// manyRules is n rules as a large installation has them: one list that denies by
// path, one that allows by account, namespace, method and path.
func manyRules(n int) []*plan.RBAC {
	deny, allow := &plan.RBAC{Action: plan.Deny, Enforced: true}, &plan.RBAC{Action: plan.Allow, Enforced: true}
	one := func(a plan.Attribute, k plan.StringKind, v string) plan.Condition {
		return plan.Condition{Attr: a, Texts: []plan.TextMatch{{Kind: k, Value: v}}}
	}
	for i := range n {
		deny.Rules = append(deny.Rules, &plan.RBACRule{Name: fmt.Sprintf("deny[%06d]", i),
			To: []plan.Conditions{{one(plan.AttrPath, plan.StringPrefix, fmt.Sprintf("/secret/%d/", i))}}})
		allow.Rules = append(allow.Rules, &plan.RBACRule{Name: fmt.Sprintf("allow[%06d]", i),
			To:   []plan.Conditions{{one(plan.AttrMethod, plan.StringExact, "GET"), one(plan.AttrPath, plan.StringPrefix, fmt.Sprintf("/api/%d/", i))}},
			From: []plan.Conditions{{one(plan.AttrPrincipal, plan.StringExact, fmt.Sprintf("spiffe://cluster.local/ns/ns%d/sa/a%d", i, i))}}})
	}
	return []*plan.RBAC{deny, allow}
}

func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			e := New(manyRules(n))
			queries := make([]*Query, 64)
			for i := range queries {
				id := i * (n / 64) % n
				queries[i] = request{peer: fmt.Sprintf("spiffe://cluster.local/ns/ns%d/sa/a%d", id, id), method: "GET",
					path: fmt.Sprintf("/api/%d/items", id), host: "api.example.com", from: "10.0.0.1:1", to: "10.0.0.2:80"}.query()
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if e.Decide(queries[i&63]).Denied {
					b.Fatal("denied")
				}
				i++
			}
		})
	}
}
