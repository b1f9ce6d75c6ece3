package encode_test

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/heddle-mesh/heddle/internal/encode"
	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/decode"
)

// TestDecodeIsTheWayBack holds decode(encode(p)) = p, for sidecars and gateways.
// Plans for gRPC's own client lose on the way what that client has no word for,
// and our proxy never gets one.
func TestDecodeIsTheWayBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := genPlan(t)
		got, err := back(encode.New().Plan(p))
		if err != nil {
			t.Fatalf("decode refuses what encode wrote: %v", err)
		}
		if !reflect.DeepEqual(got, p) {
			t.Fatalf("decode(encode(p)) differs (-p +got):\n%s", cmp.Diff(p, got, equateNetip))
		}
	})
}

func TestDecodeIsTheWayBackForEndpoints(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := genLoadAssignment(t)
		got, err := decode.LoadAssignment(encode.New().LoadAssignment(l).Body)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, l) {
			t.Fatalf("decode(encode(l)) differs (-l +got):\n%s", cmp.Diff(l, got, equateNetip))
		}
	})
}

// TestEqualPlansEqualBytes holds the promise that versions rest on.
func TestEqualPlansEqualBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := genPlan(t)
		one, two := encode.New().Plan(p), encode.New().Plan(p)
		if diff := cmp.Diff(versions(one), versions(two)); diff != "" {
			t.Fatalf("two encodings differ:\n%s", diff)
		}
	})
}

var equateNetip = cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{})

func versions(s encode.Set) map[string]string {
	out := map[string]string{}
	for typ, list := range s {
		for _, r := range list {
			out[typ+" "+r.Name] = r.Version
		}
	}
	return out
}

// back decodes a set into a plan.
func back(s encode.Set) (*plan.Plan, error) {
	p := &plan.Plan{}
	for _, r := range s[encode.ListenerType] {
		l, err := decode.Listener(r.Body)
		if err != nil {
			return nil, err
		}
		p.Listeners = append(p.Listeners, l)
	}
	for _, r := range s[encode.RouteType] {
		c, err := decode.Route(r.Body)
		if err != nil {
			return nil, err
		}
		p.Routes = append(p.Routes, c)
	}
	for _, r := range s[encode.ClusterType] {
		c, err := decode.Cluster(r.Body)
		if err != nil {
			return nil, err
		}
		p.Clusters = append(p.Clusters, c)
	}
	for _, r := range s[encode.NameTableType] {
		t, err := decode.NameTable(r.Body)
		if err != nil {
			return nil, err
		}
		p.Names = t
	}
	return p, nil
}

// The generators make every plan that the compile step may make: names are
// unique and lists sorted, and values are in the one form in which they mean
// what they mean, such as no ports to skip where nothing is looked at.

var word = rapid.StringMatching(`[a-z][a-z0-9.-]{0,12}[a-z0-9]`)

func list[T any](t *rapid.T, label string, most int, gen func(t *rapid.T) T) []T {
	var out []T
	for range rapid.IntRange(0, most).Draw(t, label) {
		out = append(out, gen(t))
	}
	return out
}

func some[T any](t *rapid.T, label string, most int, gen func(t *rapid.T) T) []T {
	out := list(t, label, most-1, gen)
	return append(out, gen(t))
}

func maybe[T any](t *rapid.T, label string, gen func(t *rapid.T) T) (zero T) {
	if rapid.Bool().Draw(t, label) {
		return gen(t)
	}
	return zero
}

func text(t *rapid.T) string    { return word.Draw(t, "word") }
func anyText(t *rapid.T) string { return rapid.String().Draw(t, "text") }
func flag(t *rapid.T) bool      { return rapid.Bool().Draw(t, "flag") }
func port(t *rapid.T) uint16    { return rapid.Uint16Range(1, 65535).Draw(t, "port") }
func count(t *rapid.T) uint32   { return rapid.Uint32Range(1, 1<<31-1).Draw(t, "count") }

func span(t *rapid.T) time.Duration {
	return time.Duration(rapid.Int64Range(1, int64(24*time.Hour)).Draw(t, "duration"))
}

func addr(t *rapid.T) netip.Addr {
	if rapid.Bool().Draw(t, "v6") {
		return netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "ip")))
	}
	return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "ip")))
}

func addrPort(t *rapid.T) netip.AddrPort { return netip.AddrPortFrom(addr(t), port(t)) }

func genPlan(t *rapid.T) *plan.Plan {
	p := &plan.Plan{}
	for i := range rapid.IntRange(0, 3).Draw(t, "listeners") {
		l := genListener(t)
		l.Name = fmt.Sprintf("%d_%s", i, l.Name)
		p.Listeners = append(p.Listeners, l)
	}
	for i := range rapid.IntRange(0, 2).Draw(t, "routes") {
		r := genRouteConfig(t)
		r.Name = fmt.Sprintf("%d|%s", i, r.Name)
		p.Routes = append(p.Routes, r)
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "clusters") {
		c := genCluster(t)
		c.Name = fmt.Sprintf("%d|%s", i, c.Name)
		p.Clusters = append(p.Clusters, c)
	}
	if flag(t) {
		p.Names = &plan.NameTable{}
		for i := range rapid.IntRange(0, 3).Draw(t, "names") {
			p.Names.Names = append(p.Names.Names, plan.NameEntry{
				Host: fmt.Sprintf("%d.%s", i, text(t)), IPs: list(t, "ips", 3, addr),
				Registry: maybe(t, "registry", text), Short: maybe(t, "short", text), Namespace: maybe(t, "ns", text),
			})
		}
	}
	return p
}

func genListener(t *rapid.T) *plan.Listener {
	l := &plan.Listener{
		Name:           text(t),
		Address:        addrPort(t),
		Direction:      rapid.SampledFrom([]plan.Direction{plan.Outbound, plan.Inbound, plan.Edge}).Draw(t, "direction"),
		Bound:          flag(t),
		UseOriginalDst: flag(t),
		ProxyProtocol:  flag(t),
	}
	l.Inspect.TLS, l.Inspect.HTTP = flag(t), flag(t)
	if l.Inspect.TLS || l.Inspect.HTTP {
		l.Inspect.Timeout = maybe(t, "timeout", span)
		seen := map[uint16]bool{}
		for _, p := range list(t, "skip", 4, port) {
			if seen[p] {
				continue
			}
			seen[p] = true
			if l.Inspect.TLS && l.Inspect.HTTP && flag(t) {
				l.Inspect.SkipHTTPPorts = append(l.Inspect.SkipHTTPPorts, p)
			} else {
				l.Inspect.SkipPorts = append(l.Inspect.SkipPorts, p)
			}
		}
	}
	seen := map[string]bool{}
	for _, c := range some(t, "chains", 3, genChain) {
		if key := fmt.Sprintf("%+v", c.Match); !seen[key] {
			seen[key] = true
			l.Chains = append(l.Chains, c)
		}
	}
	l.Default = maybe(t, "default", genChain)
	return l
}

func genChain(t *rapid.T) *plan.FilterChain {
	c := &plan.FilterChain{Name: maybe(t, "name", text)}
	c.Match.DestinationPort = maybe(t, "destination port", port)
	c.Match.Prefixes = list(t, "prefixes", 2, func(t *rapid.T) netip.Prefix {
		a := addr(t)
		return netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits"))
	})
	c.Match.ServerNames = list(t, "server names", 2, text)
	c.Match.Transport = rapid.SampledFrom([]plan.Transport{plan.AnyTransport, plan.RawBuffer, plan.TLSTransport}).Draw(t, "transport")
	c.Match.ALPN = list(t, "alpn", 2, text)
	if flag(t) {
		c.TLS = &plan.ServerTLS{Certificate: text(t), ALPN: list(t, "alpn", 2, text)}
		if flag(t) {
			c.TLS.Roots, c.TLS.RequireCert, c.TLS.TrustDomains = text(t), flag(t), list(t, "domains", 2, text)
		}
	}
	if flag(t) {
		c.HTTP = genHTTPChain(t)
		return c
	}
	c.TCP = &plan.TCPChain{
		StatPrefix: maybe(t, "stat", text), Clusters: genSplit(t, false), IdleTimeout: maybe(t, "idle", span),
		AccessLog: maybe(t, "log", text), Metrics: flag(t), PeerExchange: flag(t),
		RBAC: plan.ForBytes(list(t, "rbac", 2, genRBAC)),
	}
	return c
}

func genHTTPChain(t *rapid.T) *plan.HTTPChain {
	c := &plan.HTTPChain{
		StatPrefix:        maybe(t, "stat", text),
		ForwardClientCert: plan.ClientCertMode(rapid.IntRange(0, 4).Draw(t, "xfcc")),
		TrustedHops:       rapid.Uint32Range(0, 3).Draw(t, "hops"),
		UseRemoteAddress:  flag(t), AccessLog: maybe(t, "log", text), Metrics: flag(t),
		RBAC: list(t, "rbac", 3, genRBAC), JWT: list(t, "jwt", 2, genJWT), Ask: genAsks(t),
	}
	if flag(t) {
		c.RouteName = text(t)
	} else {
		c.Inline = genRouteConfig(t)
	}
	return c
}

func genJWT(t *rapid.T) *plan.JWT {
	return &plan.JWT{
		Issuer: maybe(t, "issuer", text), Audiences: list(t, "audiences", 2, text), Keys: text(t), Params: list(t, "params", 2, text),
		Cookies: list(t, "cookies", 2, text), Forward: flag(t), PayloadHeader: maybe(t, "payload", text), SpaceDelimited: list(t, "split", 2, text),
		Headers: list(t, "headers", 2, func(t *rapid.T) plan.JWTHeader {
			return plan.JWTHeader{Name: text(t), Prefix: maybe(t, "prefix", text)}
		}),
		ClaimHeaders: list(t, "claims", 2, func(t *rapid.T) plan.ClaimHeader { return plan.ClaimHeader{Header: text(t), Claim: text(t)} }),
	}
}

// genAsks makes providers of different names.
func genAsks(t *rapid.T) (out []*plan.ExtAuthz) {
	names := func(what string) []plan.TextMatch {
		return list(t, what, 2, func(t *rapid.T) plan.TextMatch {
			return plan.TextMatch{Kind: rapid.SampledFrom([]plan.StringKind{plan.StringExact, plan.StringPrefix, plan.StringSuffix}).Draw(t, "kind"), Value: text(t)}
		})
	}
	for i := range rapid.IntRange(0, 2).Draw(t, "providers") {
		e := &plan.ExtAuthz{
			Provider: fmt.Sprintf("%d%s", i, text(t)), Cluster: text(t), PathPrefix: maybe(t, "prefix", text), Timeout: span(t) + 1, FailOpen: flag(t),
			StatusOnError: rapid.Uint32Range(200, 599).Draw(t, "status"), RequestHeaders: names("send"), ToUpstream: names("upstream"),
			ToClient: names("client"), ToDenied: names("denied"),
			Added: list(t, "added", 2, func(t *rapid.T) plan.AddedHeader { return plan.AddedHeader{Name: text(t), Value: anyText(t)} }),
		}
		for n := range rapid.IntRange(1, 3).Draw(t, "rules") {
			e.Rules = append(e.Rules, &plan.RBACRule{Name: fmt.Sprintf("%s%s-%d", plan.ExtAuthzPrefix, e.Provider, n)})
		}
		out = append(out, e)
	}
	return out
}

func genRBAC(t *rapid.T) *plan.RBAC {
	r := &plan.RBAC{
		Action:   rapid.SampledFrom([]plan.RBACAction{plan.Allow, plan.Deny, plan.Audit}).Draw(t, "action"),
		Enforced: flag(t),
	}
	r.DryRun = !r.Enforced || flag(t)
	rules := func() (out []*plan.RBACRule) {
		for i := range rapid.IntRange(0, 3).Draw(t, "rules") {
			out = append(out, &plan.RBACRule{Name: fmt.Sprintf("%d-%s", i, text(t)),
				To: list(t, "to", 2, func(t *rapid.T) plan.Conditions {
					return some(t, "conditions", 3, func(t *rapid.T) plan.Condition { return genCondition(t, false) })
				}),
				From: list(t, "from", 2, func(t *rapid.T) plan.Conditions {
					return some(t, "conditions", 3, func(t *rapid.T) plan.Condition { return genCondition(t, true) })
				}),
			})
		}
		return out
	}
	if r.Enforced {
		r.Rules = rules()
	}
	if r.DryRun {
		r.Shadow = rules()
	}
	return r
}

func genCondition(t *rapid.T, from bool) plan.Condition {
	attr := plan.Attribute(rapid.IntRange(0, int(plan.AttrMetadata)).Filter(func(i int) bool {
		return plan.Attribute(i).OfSource() == from
	}).Draw(t, "attribute"))
	c := plan.Condition{Attr: attr, Not: flag(t)}
	kinds := []plan.StringKind{plan.StringPresent, plan.StringExact, plan.StringPrefix, plan.StringSuffix, plan.StringContains}
	value := func(t *rapid.T) string { return text(t) }
	switch attr {
	case plan.AttrSourceIP, plan.AttrRemoteIP, plan.AttrDestinationIP:
		c.Nets = some(t, "nets", 2, func(t *rapid.T) netip.Prefix {
			a := addr(t)
			return netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")).Masked()
		})
		return c
	case plan.AttrDestinationPort:
		c.Ports = some(t, "ports", 2, port)
		return c
	case plan.AttrHeader:
		c.Key = text(t)
	case plan.AttrClaim:
		c.Key = strings.Join(some(t, "claim", 3, text), "\x00")
	case plan.AttrMetadata:
		c.Key = text(t) + "\x00" + text(t)
	case plan.AttrPath:
		kinds = append(kinds, plan.StringTemplate)
	case plan.AttrRequestPrincipal:
		kinds = kinds[:4] // an issuer's URL and a subject, or parts of them
		value = func(t *rapid.T) string { return "https://" + text(t) + "/" + text(t) }
	}
	c.Texts = some(t, "texts", 3, func(t *rapid.T) plan.TextMatch {
		m := plan.TextMatch{Kind: rapid.SampledFrom(kinds).Draw(t, "kind")}
		if m.Kind != plan.StringPresent {
			m.Value = value(t)
		}
		return m
	})
	return c
}

// genSplit makes one cluster, or several of which not all have weight 0.
func genSplit(t *rapid.T, zeros bool) []plan.WeightedCluster {
	changed := func(w plan.WeightedCluster) plan.WeightedCluster {
		if zeros {
			w.Headers, w.HostRewrite = maybe(t, "headers", genHeaders), maybe(t, "host", text)
		}
		return w
	}
	if flag(t) {
		w := plan.WeightedCluster{Cluster: text(t), Weight: maybe(t, "weight", count)}
		if w.Weight > 0 {
			w = changed(w)
		}
		return []plan.WeightedCluster{w}
	}
	out := []plan.WeightedCluster{changed(plan.WeightedCluster{Cluster: text(t), Weight: rapid.Uint32Range(1, 1000).Draw(t, "weight")})}
	least := uint32(1)
	if zeros {
		least = 0
	}
	return append(out, some(t, "split", 3, func(t *rapid.T) plan.WeightedCluster {
		return plan.WeightedCluster{Cluster: text(t), Weight: rapid.Uint32Range(least, 1000).Draw(t, "weight")}
	})...)
}

func genRouteConfig(t *rapid.T) *plan.RouteConfig {
	c := &plan.RouteConfig{Name: text(t), IgnorePort: flag(t)}
	for i := range rapid.IntRange(0, 2).Draw(t, "hosts") {
		c.Hosts = append(c.Hosts, &plan.VirtualHost{
			Name:    fmt.Sprintf("%s:%d", text(t), i),
			Domains: []string{fmt.Sprintf("%d.%s", i, text(t)), fmt.Sprintf("*.%d.%s", i, text(t)), fmt.Sprintf("%d.%s.*", i, text(t))},
			Routes:  list(t, "routes", 3, genRoute),
		})
	}
	return c
}

func genRoute(t *rapid.T) *plan.Route {
	r := &plan.Route{
		Name: maybe(t, "name", text), Match: genMatch(t),
		Origin: maybe(t, "origin", anyText), Decorator: maybe(t, "decorator", anyText),
		Headers: maybe(t, "headers", genHeaders), StatPrefix: maybe(t, "stat", text),
	}
	if flag(t) {
		r.CORS = &plan.CORS{
			Methods: maybe(t, "methods", text), Headers: maybe(t, "headers", text), Expose: maybe(t, "expose", text),
			Credentials: flag(t), ForwardUnmatched: flag(t),
			MaxAge: rapid.SampledFrom([]string{"", "0", "86400"}).Draw(t, "max age"),
			Origins: list(t, "origins", 2, func(t *rapid.T) plan.StringMatch {
				kind, value := genString(t)
				if kind == plan.StringPrefix {
					value += "p" // every text begins with the empty one: that is "present"
				}
				return plan.StringMatch{Kind: kind, Value: value}
			}),
		}
	}
	if flag(t) {
		r.Fault = &plan.Fault{Delay: span(t), DelayFraction: genFraction(t)}
		if flag(t) {
			r.Fault.AbortStatus, r.Fault.AbortGRPC, r.Fault.AbortFraction = rapid.Uint32Range(200, 599).Draw(t, "abort"), flag(t), genFraction(t)
		}
	}
	switch rapid.IntRange(0, 5).Draw(t, "action") {
	case 0:
		r.Direct = &plan.DirectResponse{Status: rapid.Uint32Range(200, 599).Draw(t, "status"), Body: maybe(t, "body", anyText)}
	case 1:
		r.Redirect = &plan.Redirect{
			Scheme: maybe(t, "scheme", text), Host: maybe(t, "host", text), Port: uint32(maybe(t, "port", port)),
			Status: rapid.SampledFrom([]uint32{301, 302, 303, 307, 308}).Draw(t, "status"),
		}
		if flag(t) {
			r.Redirect.Path = maybe(t, "path", text)
		} else {
			r.Redirect.PrefixRewrite = maybe(t, "rewrite", text)
		}
	case 2: // for proxyless servers
	default:
		r.Clusters = genSplit(t, true)
		r.Timeout = maybe(t, "timeout", span)
		r.PrefixRewrite, r.HostRewrite = maybe(t, "rewrite", text), maybe(t, "host", text)
		if r.PrefixRewrite == "" && flag(t) {
			r.RegexRewrite = &plan.RegexRewrite{Pattern: "/(" + text(t) + ")", Substitution: `\1\0` + text(t)}
		}
		r.Hash = list(t, "hash", 2, genHash)
		r.Mirrors = list(t, "mirrors", 2, func(t *rapid.T) plan.Mirror {
			return plan.Mirror{Cluster: text(t), Fraction: genFraction(t), Shadow: flag(t)}
		})
		if flag(t) {
			r.Retry = &plan.Retry{
				On: list(t, "on", 3, text), Codes: list(t, "codes", 2, count), Attempts: rapid.Uint32().Draw(t, "attempts"),
				PerTry: maybe(t, "per try", span), HostReopen: maybe(t, "reopen", count),
				Remote: flag(t), Backoff: maybe(t, "backoff", span),
			}
		}
	}
	return r
}

func genFraction(t *rapid.T) plan.Fraction {
	return plan.Fraction(rapid.Uint32Range(1, plan.Million).Draw(t, "fraction"))
}

func genHeaders(t *rapid.T) *plan.Headers {
	edit := func() plan.HeaderEdit {
		return plan.HeaderEdit{
			Remove: list(t, "remove", 2, func(t *rapid.T) string { return "x-" + text(t) }),
			Put: list(t, "put", 2, func(t *rapid.T) plan.HeaderValue {
				return plan.HeaderValue{Name: "x-" + text(t), Value: maybe(t, "value", text), Append: flag(t)}
			}),
		}
	}
	h := &plan.Headers{Request: edit(), Response: edit()}
	h.Request.Remove = append(h.Request.Remove, "x-last")
	return h
}

func genHash(t *rapid.T) plan.HashPolicy {
	h := plan.HashPolicy{Kind: plan.HashKind(rapid.IntRange(0, 3).Draw(t, "hash kind")), Terminal: flag(t)}
	if h.Kind != plan.HashSourceIP {
		h.Name = text(t)
	}
	if h.Kind == plan.HashCookie {
		h.Path = maybe(t, "path", text)
		h.Attributes = list(t, "attributes", 2, func(t *rapid.T) plan.CookieAttribute {
			return plan.CookieAttribute{Name: text(t), Value: maybe(t, "value", text)}
		})
		if h.Generate = flag(t); h.Generate {
			h.TTL = maybe(t, "ttl", span)
		}
	}
	return h
}

func genMatch(t *rapid.T) plan.RouteMatch {
	var m plan.RouteMatch
	m.Path.Kind = plan.PathKind(rapid.IntRange(0, 3).Draw(t, "path kind"))
	switch m.Path.Kind {
	case plan.PathRegex:
		m.Path.Value = "/" + text(t) + ".*"
	case plan.PathSegmentPrefix:
		m.Path.Value = "/" + text(t)
	default:
		m.Path.Value = anyText(t)
	}
	m.IgnoreCase = flag(t)
	m.Headers = list(t, "headers", 2, func(t *rapid.T) plan.HeaderMatch {
		h := plan.HeaderMatch{Name: text(t), Invert: flag(t), MissingIsEmpty: flag(t)}
		h.Kind, h.Value = genString(t)
		return h
	})
	m.Query = list(t, "query", 2, func(t *rapid.T) plan.QueryMatch {
		q := plan.QueryMatch{Name: text(t)}
		q.Kind, q.Value = genString(t)
		return q
	})
	m.Claims = list(t, "claims", 2, func(t *rapid.T) plan.ClaimMatch {
		c := plan.ClaimMatch{Path: text(t) + "\x00" + text(t), Invert: flag(t)}
		c.Kind, c.Value = genString(t)
		return c
	})
	return m
}

func genString(t *rapid.T) (plan.StringKind, string) {
	kind := plan.StringKind(rapid.IntRange(0, 5).Draw(t, "string kind"))
	switch kind {
	case plan.StringPresent:
		return kind, ""
	case plan.StringRegex:
		return kind, text(t) + "(x|y)*"
	default:
		return kind, anyText(t)
	}
}

func genCluster(t *rapid.T) *plan.Cluster {
	c := &plan.Cluster{
		Name:      text(t),
		Discovery: plan.Discovery(rapid.IntRange(0, 4).Draw(t, "discovery")),
		Balancing: plan.Balancing(rapid.IntRange(0, 2).Draw(t, "balancing")),

		ConnectTimeout: maybe(t, "connect", span), IdleTimeout: maybe(t, "idle", span),
		MaxConnections: maybe(t, "connections", count), MaxPending: maybe(t, "pending", count),
		MaxRequests: maybe(t, "requests", count), MaxPerConn: maybe(t, "per connection", count),
		BindAddress: maybe(t, "bind", addr), Origin: maybe(t, "origin", anyText),
		ProxyProtocol: uint8(rapid.IntRange(0, 2).Draw(t, "PROXY protocol")),
		MaxRetries:    maybe(t, "retries", count), MaxConnAge: maybe(t, "age", span),
		LocalityWeighted: flag(t), PanicPercent: rapid.Uint32Range(0, 100).Draw(t, "panic"),
	}
	percent := func(name string) float64 { return rapid.Float64Range(0, 100).Draw(t, name) }
	if flag(t) {
		c.Balancing = rapid.SampledFrom([]plan.Balancing{plan.RingHash, plan.Maglev, plan.PeakEWMA}).Draw(t, "balancing")
		switch c.Balancing {
		case plan.RingHash:
			c.MinRing = rapid.Uint64Range(0, 1<<20).Draw(t, "ring")
		case plan.Maglev:
			c.TableSize = rapid.SampledFrom([]uint64{0, 17, 65537}).Draw(t, "table")
		}
	} else if c.Balancing != plan.Random && flag(t) {
		c.Warmup = &plan.Warmup{Duration: span(t), MinPercent: percent("least"), Aggression: 0.5 + percent("aggression")}
	}
	if flag(t) {
		c.Outlier = &plan.Outlier{
			Consecutive5xx: maybe(t, "5xx", count), ConsecutiveGateway: maybe(t, "gateway", count),
			Interval: span(t), BaseEjection: span(t), MaxPercent: rapid.Uint32Range(0, 100).Draw(t, "ejected"), AtLeastOne: flag(t),
			Codes: list(t, "codes", 3, count),
		}
		if flag(t) {
			c.Outlier.SplitLocal, c.Outlier.ConsecutiveLocal = true, maybe(t, "local", count)
		}
	}
	seconds := func(t *rapid.T) time.Duration {
		return time.Duration(rapid.IntRange(0, 9999).Draw(t, "seconds")) * time.Second
	}
	if flag(t) {
		c.Keepalive = &plan.Keepalive{Time: seconds(t), Interval: seconds(t), Probes: maybe(t, "probes", count)}
	}
	if flag(t) {
		c.RetryBudget = &plan.RetryBudget{Percent: percent("budget"), MinRetries: maybe(t, "least", count)}
	}
	host := func(t *rapid.T) plan.StaticEndpoint { return plan.StaticEndpoint{Host: text(t), Port: port(t)} }
	switch c.Discovery {
	case plan.EDS:
		c.ServiceName = maybe(t, "service name", func(t *rapid.T) string { return "eds " + text(t) })
	case plan.OriginalDst:
		c.Balancing, c.MinRing, c.TableSize, c.Warmup = plan.ClusterProvided, 0, 0, nil
		c.LocalityWeighted, c.PanicPercent = false, 0
	case plan.Static:
		c.Static = list(t, "static", 2, func(t *rapid.T) plan.StaticEndpoint {
			return plan.StaticEndpoint{Host: addr(t).String(), Port: port(t)}
		})
	case plan.StrictDNS:
		c.Static = list(t, "static", 2, host)
	case plan.LogicalDNS:
		c.Static = []plan.StaticEndpoint{host(t)}
	}
	if flag(t) {
		c.Service = plan.ServiceRef{Host: text(t), Name: text(t), Namespace: text(t)}
	}
	if flag(t) {
		c.TLS = &plan.ClientTLS{
			Auto: flag(t), Certificate: maybe(t, "cert", text), SNI: maybe(t, "sni", text), ALPN: list(t, "alpn", 2, text),
		}
		if flag(t) {
			c.TLS.Roots, c.TLS.SubjectAltNames = text(t), list(t, "sans", 2, anyText)
		} else {
			c.TLS.Unverified = flag(t)
		}
	}
	return c
}

func genLoadAssignment(t *rapid.T) *plan.LoadAssignment {
	l := &plan.LoadAssignment{Cluster: text(t)}
	l.Localities = list(t, "localities", 3, func(t *rapid.T) plan.LocalityEndpoints {
		return plan.LocalityEndpoints{
			Locality: plan.Locality{Region: maybe(t, "region", text), Zone: maybe(t, "zone", text), SubZone: maybe(t, "subzone", text)},
			Priority: rapid.Uint32Range(0, 128).Draw(t, "priority"),
			Weight:   rapid.Uint32Range(1, 1000).Draw(t, "weight"),
			Endpoints: list(t, "endpoints", 3, func(t *rapid.T) plan.Endpoint {
				e := plan.Endpoint{
					Address: addrPort(t), Health: plan.Health(rapid.IntRange(0, 2).Draw(t, "health")),
					Weight: rapid.Uint32Range(0, 100).Draw(t, "weight"), MTLS: flag(t),
				}
				if flag(t) {
					e.Workload = plan.Workload{Name: text(t), Namespace: text(t), CanonicalName: text(t), CanonicalRevision: maybe(t, "rev", text), ClusterID: maybe(t, "cluster", text)}
				}
				return e
			}),
		}
	})
	return l
}

func TestOfElementsWithOneNameTheFirstStays(t *testing.T) {
	set := encode.New().Plan(&plan.Plan{Clusters: []*plan.Cluster{
		{Name: "b", MaxRequests: 1}, {Name: "a"}, {Name: "b", MaxRequests: 2},
	}})
	var names []string
	for _, r := range set[encode.ClusterType] {
		names = append(names, r.Name)
	}
	if got := strings.Join(names, " "); got != "a b" {
		t.Fatalf("clusters %q, want a b", got)
	}
	c, err := decode.Cluster(set[encode.ClusterType][1].Body)
	if err != nil || c.MaxRequests != 1 {
		t.Errorf("got %+v, %v, want the first b", c, err)
	}
}
