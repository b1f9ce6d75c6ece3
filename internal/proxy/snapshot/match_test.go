package snapshot

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// indexed makes a listener of chains that are known by their names.
func indexed(inspect plan.Inspect, def bool, chains ...*plan.FilterChain) *Listener {
	l := &Listener{Plan: &plan.Listener{Inspect: inspect}, byPort: make(map[uint16]*candidates)}
	for _, p := range chains {
		chain := &Chain{Plan: p}
		l.Chains = append(l.Chains, chain)
		if l.byPort[p.Match.DestinationPort] == nil {
			l.byPort[p.Match.DestinationPort] = &candidates{}
		}
		l.byPort[p.Match.DestinationPort].add(chain)
	}
	if def {
		l.Default = &Chain{Plan: &plan.FilterChain{Name: "default"}}
	}
	return l
}

func nameOf(c *Chain) string {
	if c == nil {
		return ""
	}
	return c.Plan.Name
}

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// sidecar is what Istio's virtualInbound looks like for a pod with the ports
// 9080, which takes both mutual TLS and plain text, and 9090, which takes only
// the former.
func sidecar() *Listener {
	sidecarALPN := []string{"istio-http/1.0", "istio-http/1.1", "istio-h2"}
	tcpALPN := []string{"istio-peer-exchange", "istio"}
	plain := []string{"http/1.0", "http/1.1", "h2c"}
	chain := func(name string, m plan.ChainMatch) *plan.FilterChain { return &plan.FilterChain{Name: name, Match: m} }
	return indexed(plan.Inspect{TLS: true, HTTP: true}, false,
		chain("blackhole", plan.ChainMatch{DestinationPort: 15006}),
		chain("9080 mtls http", plan.ChainMatch{DestinationPort: 9080, Transport: plan.TLSTransport, ALPN: sidecarALPN}),
		chain("9080 mtls tcp", plan.ChainMatch{DestinationPort: 9080, Transport: plan.TLSTransport, ALPN: tcpALPN}),
		chain("9080 tls", plan.ChainMatch{DestinationPort: 9080, Transport: plan.TLSTransport}),
		chain("9080 http", plan.ChainMatch{DestinationPort: 9080, Transport: plan.RawBuffer, ALPN: plain}),
		chain("9080 tcp", plan.ChainMatch{DestinationPort: 9080, Transport: plan.RawBuffer}),
		chain("9090 mtls", plan.ChainMatch{DestinationPort: 9090, Transport: plan.TLSTransport}),
		chain("pass mtls", plan.ChainMatch{Transport: plan.TLSTransport, ALPN: tcpALPN}),
		chain("pass", plan.ChainMatch{Transport: plan.RawBuffer}),
	)
}

// gateway has one chain per host name.
func gateway() *Listener {
	chain := func(name string, names ...string) *plan.FilterChain {
		return &plan.FilterChain{Name: name, Match: plan.ChainMatch{ServerNames: names}}
	}
	h2 := chain("a h2", "a.example.com")
	h2.Match.ALPN = []string{"h2"}
	h2.Match.Transport = plan.TLSTransport
	return indexed(plan.Inspect{TLS: true}, true,
		chain("wild", "*.example.com"), chain("wilder", "*.com"), chain("a", "a.example.com", "z.test"), h2)
}

// ranges has chains by destination address.
func ranges() *Listener {
	chain := func(name string, p ...string) *plan.FilterChain {
		return &plan.FilterChain{Name: name, Match: plan.ChainMatch{Prefixes: prefixes(p...)}}
	}
	named := chain("host", "10.1.2.3/32")
	named.Match.ServerNames = []string{"only.this"}
	return indexed(plan.Inspect{TLS: true, HTTP: true}, false,
		chain("all"), chain("ten", "10.0.0.0/8"), chain("ten one", "10.1.0.0/16", "fd00::/8"), named)
}

func TestMostSpecificChainWins(t *testing.T) {
	for _, test := range []struct {
		listener  *Listener
		dst       string
		name      string
		transport plan.Transport
		alpn      string
		want      string
	}{
		{sidecar(), "10.0.0.1:9080", "", plan.TLSTransport, "istio-http/1.1 istio", "9080 mtls http"},
		{sidecar(), "10.0.0.1:9080", "", plan.TLSTransport, "istio istio-http/1.1", "9080 mtls tcp"}, // the client's order decides
		{sidecar(), "10.0.0.1:9080", "", plan.TLSTransport, "h2 http/1.1", "9080 tls"},
		{sidecar(), "10.0.0.1:9080", "", plan.TLSTransport, "", "9080 tls"},
		{sidecar(), "10.0.0.1:9080", "", plan.RawBuffer, "http/1.1", "9080 http"},
		{sidecar(), "10.0.0.1:9080", "", plan.RawBuffer, "h2c", "9080 http"},
		{sidecar(), "10.0.0.1:9080", "", plan.RawBuffer, "", "9080 tcp"},
		{sidecar(), "10.0.0.1:9090", "", plan.TLSTransport, "istio", "9090 mtls"},
		{sidecar(), "10.0.0.1:9090", "", plan.RawBuffer, "", ""}, // a port that is named does not fall back
		{sidecar(), "10.0.0.1:7", "", plan.RawBuffer, "http/1.1", "pass"},
		{sidecar(), "10.0.0.1:7", "", plan.TLSTransport, "istio", "pass mtls"},
		{sidecar(), "10.0.0.1:7", "", plan.TLSTransport, "h2", ""},
		{sidecar(), "10.0.0.1:15006", "", plan.RawBuffer, "", "blackhole"},

		{gateway(), "10.0.0.1:443", "a.example.com", plan.TLSTransport, "h2", "a h2"},
		{gateway(), "10.0.0.1:443", "a.example.com", plan.TLSTransport, "http/1.1", "default"}, // transport was decided before ALPN
		{gateway(), "10.0.0.1:443", "a.example.com", plan.RawBuffer, "", "a"},
		{gateway(), "10.0.0.1:443", "z.test", plan.TLSTransport, "", "a"},
		{gateway(), "10.0.0.1:443", "b.example.com", plan.TLSTransport, "", "wild"},
		{gateway(), "10.0.0.1:443", "c.b.example.com", plan.TLSTransport, "", "wild"},
		{gateway(), "10.0.0.1:443", "example.com", plan.TLSTransport, "", "wilder"},
		{gateway(), "10.0.0.1:443", "com", plan.TLSTransport, "", "default"},
		{gateway(), "10.0.0.1:443", "", plan.TLSTransport, "", "default"},

		{ranges(), "10.1.2.3:80", "only.this", plan.TLSTransport, "", "host"},
		{ranges(), "10.1.2.3:80", "other", plan.TLSTransport, "", ""}, // no way back to a wider range
		{ranges(), "10.1.2.4:80", "", plan.RawBuffer, "", "ten one"},
		{ranges(), "[::ffff:10.1.2.4]:80", "", plan.RawBuffer, "", "ten one"},
		{ranges(), "10.2.2.4:80", "", plan.RawBuffer, "", "ten"},
		{ranges(), "[fd00::1]:80", "", plan.RawBuffer, "", "ten one"},
		{ranges(), "11.2.2.4:80", "", plan.RawBuffer, "", "all"},
		{ranges(), "[2001::1]:80", "", plan.RawBuffer, "", "all"},
	} {
		got := test.listener.Match(Facts{Destination: netip.MustParseAddrPort(test.dst), ServerName: test.name, Transport: test.transport, ALPN: strings.Fields(test.alpn)})
		if nameOf(got) != test.want {
			t.Errorf("%s %q %d %q: chain %q, want %q", test.dst, test.name, test.transport, test.alpn, nameOf(got), test.want)
		}
	}
}

func TestOnlyWhatDecidesIsWaitedFor(t *testing.T) {
	both := plan.Inspect{TLS: true, HTTP: true}
	chain := func(m plan.ChainMatch) *plan.FilterChain { return &plan.FilterChain{Match: m} }
	skip := sidecar()
	skip.Plan.Inspect.SkipPorts = []uint16{9080}
	skipHTTP := sidecar()
	skipHTTP.Plan.Inspect.SkipHTTPPorts = []uint16{9080}
	for _, test := range []struct {
		name      string
		listener  *Listener
		port      uint16
		tls, http bool
	}{
		{"sidecar, both", sidecar(), 9080, true, true},
		{"sidecar, mutual TLS only", sidecar(), 9090, true, false},
		{"sidecar, unknown port", sidecar(), 7, true, false},
		{"sidecar, own port", sidecar(), 15006, false, false},
		{"skipped", skip, 9080, false, false},
		{"skipped for HTTP", skipHTTP, 9080, true, false},
		{"gateway", gateway(), 443, true, false},
		{"one chain", indexed(both, false, chain(plan.ChainMatch{})), 80, false, false},
		{"default only", indexed(both, true), 80, false, false},
		{"by address only", indexed(both, true, chain(plan.ChainMatch{Prefixes: prefixes("10.0.0.0/8")})), 80, false, false},
		{"detection of HTTP", indexed(both, true, chain(plan.ChainMatch{Transport: plan.RawBuffer, ALPN: []string{"http/1.1", "h2c"}})), 80, true, true},
		{"not asked to look", indexed(plan.Inspect{}, true, chain(plan.ChainMatch{Transport: plan.RawBuffer, ALPN: []string{"http/1.1"}})), 80, false, false},
	} {
		tls, http := test.listener.Needs(netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), test.port))
		if tls != test.tls || http != test.http {
			t.Errorf("%s: looks for TLS %v, HTTP %v, want %v, %v", test.name, tls, http, test.tls, test.http)
		}
	}
}

// levels is the search as Envoy's documentation tells it: at each field the
// chains are grouped by value, and the group with the best value goes on.
func levels(all []*plan.FilterChain, f Facts) string {
	narrow := func(ranks func(*plan.ChainMatch) int) {
		best := 0
		for _, c := range all {
			best = max(best, ranks(&c.Match))
		}
		all = slices.DeleteFunc(slices.Clone(all), func(c *plan.FilterChain) bool { return best == 0 || ranks(&c.Match) != best })
	}
	narrow(func(m *plan.ChainMatch) int {
		switch m.DestinationPort {
		case f.Destination.Port():
			return 2
		case 0:
			return 1
		}
		return 0
	})
	narrow(func(m *plan.ChainMatch) int {
		if len(m.Prefixes) == 0 {
			return 1
		}
		best := 0
		for _, p := range m.Prefixes {
			if p.Contains(f.Destination.Addr()) {
				best = max(best, 1+p.Bits())
			}
		}
		return best
	})
	narrow(func(m *plan.ChainMatch) int {
		if len(m.ServerNames) == 0 {
			return 1
		}
		best := 0
		for _, n := range m.ServerNames {
			switch {
			case n == f.ServerName && n != "":
				best = 1000
			case n[0] == '*' && strings.HasSuffix(f.ServerName, n[1:]) && f.ServerName != n[1:]:
				best = max(best, 1+len(n))
			}
		}
		return best
	})
	narrow(func(m *plan.ChainMatch) int {
		switch m.Transport {
		case f.Transport:
			return 2
		case plan.AnyTransport:
			return 1
		}
		return 0
	})
	narrow(func(m *plan.ChainMatch) int {
		if len(m.ALPN) == 0 {
			return 1
		}
		for i, p := range f.ALPN {
			if slices.Contains(m.ALPN, p) {
				return 100 - i
			}
		}
		return 0
	})
	if len(all) == 0 {
		return ""
	}
	return all[0].Name
}

func TestMatchEqualsTheSearchByLevels(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	pick := func(all ...string) string { return all[r.IntN(len(all))] }
	some := func(all ...string) (out []string) {
		for _, s := range all {
			if r.IntN(3) == 0 {
				out = append(out, s)
			}
		}
		return out
	}
	for round := range 20_000 {
		var chains []*plan.FilterChain
		for i := range 1 + r.IntN(8) {
			chains = append(chains, &plan.FilterChain{Name: fmt.Sprint(i), Match: plan.ChainMatch{
				DestinationPort: uint16(r.IntN(3)),
				Prefixes:        prefixes(some("0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/16", "11.0.0.0/8")...),
				ServerNames:     some("*.c", "*.b.c", "a.b.c", "d"),
				Transport:       plan.Transport(r.IntN(3)),
				ALPN:            some("x", "y", "http/1.1"),
			}})
		}
		f := Facts{
			Destination: netip.AddrPortFrom(netip.MustParseAddr(pick("10.0.0.1", "10.1.0.1", "11.0.0.1", "12.0.0.1")), uint16(1+r.IntN(3))),
			ServerName:  pick("", "a.b.c", "b.c", "x.b.c", "x.c", "d"),
			Transport:   plan.Transport(1 + r.IntN(2)),
			ALPN:        some("y", "x", "z", "http/1.1"),
		}
		if got, want := nameOf(indexed(plan.Inspect{}, false, chains...).Match(f)), levels(chains, f); got != want {
			for _, c := range chains {
				t.Logf("%s: %+v", c.Name, c.Match)
			}
			t.Fatalf("round %d: %+v: chain %q, want %q", round, f, got, want)
		}
	}
}

func TestMatchAllocatesNothing(t *testing.T) {
	l := sidecar()
	f := Facts{Destination: netip.MustParseAddrPort("10.0.0.1:9080"), Transport: plan.RawBuffer, ALPN: []string{"http/1.1"}}
	if n := testing.AllocsPerRun(100, func() { l.Match(f) }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}
