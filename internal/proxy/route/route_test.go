package route

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

func table(t testing.TB, c *plan.RouteConfig) *Table {
	t.Helper()
	tb, err := NewTable(c)
	if err != nil {
		t.Fatal(err)
	}
	return tb
}

// request makes a request; headers are "name: value".
func request(authority, path string, headers ...string) Request {
	h := &exchange.Header{}
	for _, l := range headers {
		name, value, _ := strings.Cut(l, ": ")
		h.AddString(exchange.Identify([]byte(name)), name, value)
	}
	path, query, _ := strings.Cut(path, "?")
	return Request{
		Method:    []byte("GET"),
		Scheme:    "http",
		Authority: []byte(authority),
		Path:      []byte(path),
		Query:     []byte(query),
		Header:    h,
	}
}

func hostsTable(t testing.TB, ignorePort bool, hosts map[string][]string) *Table {
	c := &plan.RouteConfig{Name: "r", IgnorePort: ignorePort}
	for name, domains := range hosts {
		c.Hosts = append(c.Hosts, &plan.VirtualHost{Name: name, Domains: domains, Routes: []*plan.Route{{Name: name}}})
	}
	return table(t, c)
}

func TestTheMostSpecificDomainWins(t *testing.T) {
	tb := hostsTable(t, true, map[string][]string{
		"exact":  {"a.example.com", "[::1]", "10.0.0.1"},
		"long":   {"*.example.com"},
		"short":  {"*.com"},
		"prefix": {"a.*"},
		"longer": {"a.example.*"},
		"any":    {"*"},
	})
	for authority, want := range map[string]string{
		"a.example.com":      "exact",
		"A.Example.COM:8080": "exact",
		"b.example.com":      "long",
		"x.y.example.com":    "long",
		"example.com":        "short",
		".example.com":       "short", // a wildcard stands for something
		"a.example.org":      "longer",
		"a.org":              "prefix",
		"z.org":              "any",
		"":                   "any",
		"10.0.0.1:80":        "exact",
		"[::1]:80":           "exact",
		"[::1]":              "exact",
		"[::2]:80":           "any",
		strings.Repeat("a", 5000) + ".example.com": "any",
	} {
		if d := tb.Match(request(authority, "/")); d.Host == nil || d.Host.Name != want {
			t.Errorf("%q goes to %v, want %q", authority, d.Host, want)
		}
	}
}

func TestPortsCountUnlessIgnored(t *testing.T) {
	tb := hostsTable(t, false, map[string][]string{"plain": {"a"}, "port": {"a:80"}, "any": {"*"}})
	for authority, want := range map[string]string{"a": "plain", "a:80": "port", "a:81": "any"} {
		if d := tb.Match(request(authority, "/")); d.Host.Name != want {
			t.Errorf("%q goes to %q, want %q", authority, d.Host.Name, want)
		}
	}
}

func TestNoHost(t *testing.T) {
	tb := hostsTable(t, false, map[string][]string{"a": {"a"}})
	if d := tb.Match(request("b", "/")); d != (Decision{}) {
		t.Errorf("got %v", d)
	}
}

func rules(rules ...*plan.Route) *plan.RouteConfig {
	return &plan.RouteConfig{Name: "r", Hosts: []*plan.VirtualHost{{Name: "h", Domains: []string{"*"}, Routes: rules}}}
}

func matches(t *testing.T, m plan.RouteMatch, r Request) bool {
	t.Helper()
	tb := table(t, rules(&plan.Route{Name: "r", Match: m}))
	d := tb.Match(r)
	explained, _ := tb.Explain(r)
	if d != explained {
		t.Errorf("Match says %v, Explain %v", d, explained)
	}
	return d.Route != nil
}

func TestPathMatches(t *testing.T) {
	for _, c := range []struct {
		kind   plan.PathKind
		value  string
		ignore bool
		path   string
		want   bool
	}{
		{plan.PathPrefix, "/foo", false, "/foobar", true},
		{plan.PathPrefix, "/foo", false, "/Foo", false},
		{plan.PathPrefix, "/foo", true, "/FOObar", true},
		{plan.PathPrefix, "/foo", false, "/fo", false},
		{plan.PathExact, "/foo", false, "/foo", true},
		{plan.PathExact, "/foo", false, "/foo/", false},
		{plan.PathExact, "/foo", false, "/foo?a=b", true},
		{plan.PathExact, "/foo", true, "/FOO", true},
		{plan.PathRegex, "/fo+", false, "/foooo", true},
		{plan.PathRegex, "/fo+", false, "/foooo/x", false},
		{plan.PathRegex, "/fo+", false, "x/foo", false},
		{plan.PathRegex, "/a|/b", false, "/b", true},
		{plan.PathRegex, "/a|/b", false, "/bc", false},
		{plan.PathRegex, "(?m)/a$", false, "/a", true},
		{plan.PathRegex, "(?m)/a$", false, "/a\nb", false},
		{plan.PathSegmentPrefix, "/foo", false, "/foo", true},
		{plan.PathSegmentPrefix, "/foo", false, "/foo/bar", true},
		{plan.PathSegmentPrefix, "/foo", false, "/foobar", false},
		{plan.PathSegmentPrefix, "/foo/", false, "/foo", true},
		{plan.PathSegmentPrefix, "/", false, "/anything", true},
	} {
		m := plan.RouteMatch{Path: plan.PathMatch{Kind: c.kind, Value: c.value}, IgnoreCase: c.ignore}
		if got := matches(t, m, request("a", c.path)); got != c.want {
			t.Errorf("%d %q (ignore case %v) on %q: %v", c.kind, c.value, c.ignore, c.path, got)
		}
	}
}

func TestHeaderMatches(t *testing.T) {
	for _, c := range []struct {
		m       plan.HeaderMatch
		headers []string
		want    bool
	}{
		{plan.HeaderMatch{Name: "x", Kind: plan.StringExact, Value: "a"}, []string{"x: a"}, true},
		{plan.HeaderMatch{Name: "x", Kind: plan.StringExact, Value: "a"}, []string{"X: a"}, true},
		{plan.HeaderMatch{Name: "x", Kind: plan.StringExact, Value: "a"}, nil, false},
		{plan.HeaderMatch{Name: "x", Kind: plan.StringExact, Value: "a"}, []string{"x: A"}, false},
		{plan.HeaderMatch{Name: "x", Kind: plan.StringExact, Value: "a,b"}, []string{"x: a", "x: b"}, true},
		{plan.HeaderMatch{Name: "x", Kind: plan.StringExact, Value: "a"}, []string{"x: a", "x: b"}, false},
		{plan.HeaderMatch{Name: "x", Kind: plan.StringPrefix, Value: "a"}, []string{"x: ab"}, true},
		{plan.HeaderMatch{Name: "x", Kind: plan.StringSuffix, Value: "b"}, []string{"x: ab"}, true},
		{plan.HeaderMatch{Name: "x", Kind: plan.StringContains, Value: "bc"}, []string{"x: abcd"}, true},
		{plan.HeaderMatch{Name: "x", Kind: plan.StringContains, Value: "bd"}, []string{"x: bbcd"}, false},
		{plan.HeaderMatch{Name: "x", Kind: plan.StringContains, Value: ""}, []string{"x: "}, true},
		{plan.HeaderMatch{Name: "x", Kind: plan.StringRegex, Value: "[a-c]+"}, []string{"x: abc"}, true},
		{plan.HeaderMatch{Name: "x", Kind: plan.StringRegex, Value: "[a-c]+"}, []string{"x: abcd"}, false},
		{plan.HeaderMatch{Name: "x", Kind: plan.StringPresent}, []string{"x: "}, true},
		{plan.HeaderMatch{Name: "x", Kind: plan.StringPresent}, nil, false},
		{plan.HeaderMatch{Name: "x", Kind: plan.StringPresent, Invert: true}, nil, true},
		{plan.HeaderMatch{Name: "x", Kind: plan.StringPresent, Invert: true}, []string{"x: 1"}, false},
		{plan.HeaderMatch{Name: "x", Kind: plan.StringExact, Value: "a", Invert: true}, []string{"x: b"}, true},
		{plan.HeaderMatch{Name: "x", Kind: plan.StringExact, Value: "a", Invert: true}, []string{"x: a"}, false},
		{plan.HeaderMatch{Name: "x", Kind: plan.StringExact, Value: "a", Invert: true}, nil, false},
		{plan.HeaderMatch{Name: "x", Kind: plan.StringExact, Value: "a", Invert: true, MissingIsEmpty: true}, nil, true},
		{plan.HeaderMatch{Name: "x", Kind: plan.StringExact, Value: "", MissingIsEmpty: true}, nil, true},
		{plan.HeaderMatch{Name: ":method", Kind: plan.StringExact, Value: "GET"}, nil, true},
		{plan.HeaderMatch{Name: ":method", Kind: plan.StringExact, Value: "POST"}, nil, false},
		{plan.HeaderMatch{Name: ":authority", Kind: plan.StringPrefix, Value: "a."}, nil, true},
		{plan.HeaderMatch{Name: ":scheme", Kind: plan.StringExact, Value: "http"}, nil, true},
		{plan.HeaderMatch{Name: "user-agent", Kind: plan.StringExact, Value: "curl"}, []string{"user-agent: curl"}, true},
		{plan.HeaderMatch{Name: "user-agent", Kind: plan.StringExact, Value: "curl"}, nil, false},
	} {
		m := plan.RouteMatch{Path: plan.PathMatch{Value: "/"}, Headers: []plan.HeaderMatch{c.m}}
		if got := matches(t, m, request("a.b", "/", c.headers...)); got != c.want {
			t.Errorf("%+v on %q: %v", c.m, c.headers, got)
		}
	}
}

func TestQueryMatches(t *testing.T) {
	for _, c := range []struct {
		m    plan.QueryMatch
		path string
		want bool
	}{
		{plan.QueryMatch{Name: "a", Kind: plan.StringExact, Value: "1"}, "/?a=1", true},
		{plan.QueryMatch{Name: "a", Kind: plan.StringExact, Value: "1"}, "/?b=2&a=1", true},
		{plan.QueryMatch{Name: "a", Kind: plan.StringExact, Value: "1"}, "/?a=2&a=1", false},
		{plan.QueryMatch{Name: "a", Kind: plan.StringExact, Value: "1"}, "/?aa=1", false},
		{plan.QueryMatch{Name: "a", Kind: plan.StringPresent}, "/?a", true},
		{plan.QueryMatch{Name: "a", Kind: plan.StringPresent}, "/", false},
		{plan.QueryMatch{Name: "a", Kind: plan.StringRegex, Value: "[0-9]+"}, "/?a=12", true},
		{plan.QueryMatch{Name: "a", Kind: plan.StringRegex, Value: "[0-9]+"}, "/?a=12x", false},
	} {
		m := plan.RouteMatch{Path: plan.PathMatch{Value: "/"}, Query: []plan.QueryMatch{c.m}}
		if got := matches(t, m, request("a", c.path)); got != c.want {
			t.Errorf("%+v on %q: %v", c.m, c.path, got)
		}
	}
}

func TestFaultsAreNamedTogether(t *testing.T) {
	_, err := NewTable(&plan.RouteConfig{Name: "cfg", Hosts: []*plan.VirtualHost{
		{Name: "one", Domains: []string{"a"}, Routes: []*plan.Route{
			{Match: plan.RouteMatch{Path: plan.PathMatch{Kind: plan.PathRegex, Value: "("}}},
			{Match: plan.RouteMatch{Headers: []plan.HeaderMatch{{Name: "h", Kind: plan.StringRegex, Value: "a)(b"}}}},
		}},
		{Name: "two", Domains: []string{"A", ""}},
	}})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{`route 0: path`, `header "h"`, `domain "A" is taken`, "empty domain"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
}

func TestPickFollowsWeights(t *testing.T) {
	shares := []plan.WeightedCluster{{Cluster: "a", Weight: 90}, {Cluster: "never"}, {Cluster: "b", Weight: 10}}
	count := map[string]int{}
	const n = 1 << 14
	for i := range uint64(n) {
		count[Pick(shares, i*(math.MaxUint64/n))]++
	}
	if got := float64(count["a"]) / n; math.Abs(got-0.9) > 0.001 || count["never"] != 0 || count["a"]+count["b"] != n {
		t.Errorf("%v", count)
	}
	if got := Pick(shares, math.MaxUint64); got != "b" {
		t.Errorf("the largest number picks %q", got)
	}
	if got := Pick([]plan.WeightedCluster{{Cluster: "only"}}, 0); got != "only" {
		t.Errorf("a single share of weight 0: %q", got)
	}
	if got := Pick([]plan.WeightedCluster{{Cluster: "a"}, {Cluster: "b"}}, 0); got != "" {
		t.Errorf("all weights 0: %q", got)
	}
}

func TestExplainNamesEveryMiss(t *testing.T) {
	tb := table(t, &plan.RouteConfig{Name: "9080", Hosts: []*plan.VirtualHost{
		{Name: "other", Domains: []string{"other"}},
		{Name: "reviews", Domains: []string{"reviews"}, Routes: []*plan.Route{
			{Name: "canary", Match: plan.RouteMatch{Headers: []plan.HeaderMatch{{Name: "end-user", Kind: plan.StringExact, Value: "jason"}}}},
			{Name: "api", Match: plan.RouteMatch{Path: plan.PathMatch{Value: "/api"}}},
			{Match: plan.RouteMatch{Path: plan.PathMatch{Value: "/"}}},
		}},
		{Name: "allow_any", Domains: []string{"*"}},
	}})
	d, trace := tb.Explain(request("reviews", "/x", "end-user: tom"))
	if d.Route == nil || d.Host.Name != "reviews" {
		t.Fatalf("got %v", d)
	}
	want := `- other: no domain matches authority "reviews"
+ reviews: domain "reviews" matches authority "reviews" best
- allow_any: domain "*" matches authority "reviews", but another virtual host's is more specific
- reviews canary: header "end-user" with value "tom" does not match exact "jason"
- reviews api: path "/x" does not match prefix "/api"
+ reviews route 2: all conditions hold
`
	if got := trace.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestMatchAllocatesNothing(t *testing.T) {
	tb := table(t, &plan.RouteConfig{IgnorePort: true, Hosts: []*plan.VirtualHost{
		{Name: "h", Domains: []string{"a.example.com", "*.example.com"}, Routes: []*plan.Route{
			{Match: plan.RouteMatch{Path: plan.PathMatch{Kind: plan.PathRegex, Value: "/x[0-9]+"}}},
			{Match: plan.RouteMatch{Path: plan.PathMatch{Value: "/a"}, Headers: []plan.HeaderMatch{
				{Name: "end-user", Kind: plan.StringRegex, Value: "j.*"}, {Name: ":method", Kind: plan.StringExact, Value: "GET"},
			}}},
		}},
	}})
	r := request("B.Example.com:8080", "/a/b", "end-user: jason")
	if n := testing.AllocsPerRun(100, func() {
		if tb.Match(r).Route == nil {
			t.Fatal("no match")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// scan is what a table means, without index: every domain of every virtual host
// is looked at.
func scan(c *plan.RouteConfig, authority string) *plan.VirtualHost {
	if c.IgnorePort {
		authority = string(withoutPort([]byte(authority)))
	}
	var best *plan.VirtualHost
	bestRank := -1
	for _, v := range c.Hosts {
		for _, d := range v.Domains {
			if domainMatches(d, authority) && rank(d) > bestRank {
				best, bestRank = v, rank(d)
			}
		}
	}
	return best
}

func TestIndexAnswersAsAScan(t *testing.T) {
	label := rapid.SampledFrom([]string{"a", "b", "ab", "A", "ba", "aa"})
	name := rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(label, 1, 4).Draw(t, "labels"), ".")
	})
	domain := rapid.Custom(func(t *rapid.T) string {
		n := name.Draw(t, "name")
		switch rapid.IntRange(0, 9).Draw(t, "form") {
		case 0, 1, 2:
			return "*." + n
		case 3:
			return "*" + n
		case 4, 5:
			return n + ".*"
		case 6:
			return n + "*"
		case 7:
			return "*"
		case 8:
			return n + ":80"
		}
		return n
	})
	rapid.Check(t, func(t *rapid.T) {
		c := &plan.RouteConfig{IgnorePort: rapid.Bool().Draw(t, "ignore")}
		taken := map[string]bool{}
		for i, d := range rapid.SliceOfN(domain, 0, 12).Draw(t, "domains") {
			if taken[strings.ToLower(d)] {
				continue
			}
			taken[strings.ToLower(d)] = true
			c.Hosts = append(c.Hosts, &plan.VirtualHost{Name: fmt.Sprint(i), Domains: []string{d}})
		}
		tb, err := NewTable(c)
		if err != nil {
			t.Fatal(err)
		}
		authority := name.Draw(t, "authority") + rapid.SampledFrom([]string{"", ":80", ":81"}).Draw(t, "port")
		if got, want := tb.Match(request(authority, "/")).Host, scan(c, authority); got != want {
			t.Fatalf("%q: index says %v, scan %v", authority, got, want)
		}
	})
}

func BenchmarkMatch(b *testing.B) {
	c := &plan.RouteConfig{IgnorePort: true}
	for i := range 1000 {
		n := fmt.Sprintf("svc-%d.default.svc.cluster.local", i)
		c.Hosts = append(c.Hosts, &plan.VirtualHost{Name: n, Domains: []string{n}, Routes: []*plan.Route{
			{Match: plan.RouteMatch{Path: plan.PathMatch{Value: "/api/"}}},
			{Match: plan.RouteMatch{Path: plan.PathMatch{Value: "/"}}},
		}})
	}
	c.Hosts = append(c.Hosts, &plan.VirtualHost{Name: "any", Domains: []string{"*"}, Routes: []*plan.Route{{}}})
	tb := table(b, c)
	for name, r := range map[string]Request{
		"exact":   request("svc-500.default.svc.cluster.local:9080", "/x"),
		"unknown": request("www.example.com", "/x"),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				tb.Match(r)
			}
		})
	}
}
