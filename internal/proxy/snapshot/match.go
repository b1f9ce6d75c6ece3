package snapshot

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// Facts are what is known of a connection when its chain is chosen.
type Facts struct {
	Destination netip.AddrPort // original
	ServerName  string         // SNI in lower case, "" if none
	// Transport is RawBuffer unless a ClientHello was seen.
	Transport plan.Transport
	// ALPN is what the ClientHello offers, or the protocol that the look for
	// HTTP found.
	ALPN []string
}

// candidates are the chains of a listener for one destination port, or those for
// any. The needs say which facts tell them apart: a fact that does not is not
// waited for.
type candidates struct {
	chains            []*Chain
	needTLS, needHTTP bool
}

func (c *candidates) add(chain *Chain) {
	c.chains = append(c.chains, chain)
	m := &chain.Plan.Match
	sniffed := slices.ContainsFunc(m.ALPN, sniffedALPN)
	if m.Transport != plan.TLSTransport && sniffed {
		c.needHTTP = true
	}
	// A request is not mistaken for a ClientHello, so that protocols found by
	// the look for HTTP alone do not ask for the other one.
	if m.Transport != plan.AnyTransport || len(m.ServerNames) > 0 || slices.ContainsFunc(m.ALPN, func(p string) bool { return !sniffedALPN(p) }) {
		c.needTLS = true
	}
}

func sniffedALPN(p string) bool { return p == "http/1.0" || p == "http/1.1" || p == "h2c" }

// candidates returns the chains to choose from for a destination port. Chains
// that name the port exclude those that name none, even if none of them matches
// in the end.
func (l *Listener) candidates(port uint16) *candidates {
	if c := l.byPort[port]; c != nil {
		return c
	}
	return l.byPort[0]
}

// Needs reports which looks at the first bytes of a connection to dst can change
// how it is handled.
func (l *Listener) Needs(dst netip.AddrPort) (tls, http bool) {
	c := l.candidates(dst.Port())
	if c == nil || slices.Contains(l.Plan.Inspect.SkipPorts, dst.Port()) {
		return false, false
	}
	return l.Plan.Inspect.TLS && c.needTLS,
		l.Plan.Inspect.HTTP && c.needHTTP && !slices.Contains(l.Plan.Inspect.SkipHTTPPorts, dst.Port())
}

// Match returns the chain that handles a connection, or nil if none does.
//
// The fields of ChainMatch are compared in their order. At each, the chains with
// the most specific value that holds stay and all others are out, also if none of
// those that stay matches in the end: there is no way back, as in Envoy. Of chains
// that are equal in everything the first is taken.
//
// Source: Envoy, config.listener.v3.FilterChainMatch and
// FilterChainManagerImpl::findFilterChain.
func (l *Listener) Match(f Facts) *Chain {
	if chain := l.match(f); chain != nil {
		return chain
	}
	return l.Default
}

func (l *Listener) match(f Facts) *Chain {
	c := l.candidates(f.Destination.Port())
	if c == nil {
		return nil
	}
	addr := f.Destination.Addr().Unmap()
	bits := -1
	for _, chain := range c.chains {
		bits = max(bits, prefixBits(chain.Plan.Match.Prefixes, addr))
	}
	if bits < 0 {
		return nil
	}
	name := -1
	for _, chain := range c.chains {
		m := &chain.Plan.Match
		if prefixBits(m.Prefixes, addr) == bits {
			name = max(name, nameRank(m.ServerNames, f.ServerName))
		}
	}
	if name < 0 {
		return nil
	}
	// What is left differs in transport and ALPN only.
	stays := func(m *plan.ChainMatch) bool {
		return prefixBits(m.Prefixes, addr) == bits && nameRank(m.ServerNames, f.ServerName) == name
	}
	transport := plan.AnyTransport
	for _, chain := range c.chains {
		if m := &chain.Plan.Match; m.Transport == f.Transport && stays(m) {
			transport = f.Transport
			break
		}
	}
	for _, p := range f.ALPN {
		for _, chain := range c.chains {
			if m := &chain.Plan.Match; m.Transport == transport && slices.Contains(m.ALPN, p) && stays(m) {
				return chain
			}
		}
	}
	for _, chain := range c.chains {
		if m := &chain.Plan.Match; m.Transport == transport && len(m.ALPN) == 0 && stays(m) {
			return chain
		}
	}
	return nil
}

// prefixBits returns the length of the longest prefix that contains addr, 0 if
// there are no prefixes, and -1 if none contains it.
func prefixBits(prefixes []netip.Prefix, addr netip.Addr) int {
	if len(prefixes) == 0 {
		return 0
	}
	best := -1
	for _, p := range prefixes {
		if p.Contains(addr) {
			best = max(best, p.Bits())
		}
	}
	return best
}

// nameRank orders how well names fit name: no condition is 0, a wildcard the more
// the longer it is, the exact name beats all, and -1 does not fit. A wildcard
// stands for one or more labels.
func nameRank(names []string, name string) int {
	if len(names) == 0 {
		return 0
	}
	best := -1
	for _, n := range names {
		if suffix, ok := strings.CutPrefix(n, "*"); ok {
			if len(name) > len(suffix) && suffix != "" && strings.HasSuffix(name, suffix) {
				best = max(best, len(suffix))
			}
		} else if n == name && name != "" {
			return 1 << 16
		}
	}
	return best
}
