package compile

import (
	"slices"
	"testing"

	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/plan"
)

// alpnOffers are what callers offer for bytes and for requests.
var alpnOffers = [][]string{meshTCP, {"istio-http/1.1"}, {"istio-http/1.0"}, {"istio-h2"}}

// TestEveryChainThatASidecarReachesAgreesOnALPN holds what Go's TLS asks for: a
// server that names protocols refuses a client that offers none of them.
func TestEveryChainThatASidecarReachesAgreesOnALPN(t *testing.T) {
	in := &inbound{mesh: &model.Mesh{TrustDomain: "td"}}
	for _, h := range []handling{asTCP, asTLS, asHTTP, asAuto} {
		for _, mode := range []model.MTLSMode{model.Permissive, model.Strict} {
			for _, offer := range alpnOffers {
				var chain *plan.FilterChain
				for _, c := range in.chains(80, h, mode, nil) {
					m := c.Match
					if m.Transport == plan.TLSTransport && (len(m.ALPN) == 0 && chain == nil || slices.ContainsFunc(offer, func(o string) bool { return slices.Contains(m.ALPN, o) })) {
						chain = c
					}
				}
				if chain == nil || chain.TLS == nil {
					t.Errorf("%v, %s: no chain ends a sidecar's TLS with %q", h, mode, offer)
					continue
				}
				if !slices.ContainsFunc(offer, func(o string) bool { return slices.Contains(chain.TLS.ALPN, o) }) {
					t.Errorf("%v, %s: the chain agrees to %q, and %q was offered", h, mode, chain.TLS.ALPN, offer)
				}
			}
		}
	}
}

func TestOnlyBytesExchangeMetadata(t *testing.T) {
	in := &inbound{mesh: &model.Mesh{}}
	for _, c := range in.chains(80, asAuto, model.Permissive, nil) {
		switch {
		case c.TLS == nil:
			if c.TCP != nil && c.TCP.PeerExchange {
				t.Errorf("%s exchanges metadata without TLS", c.Match)
			}
		case c.HTTP != nil:
			// The caller would wait for an answer that requests do not bring.
			if slices.Contains(c.TLS.ALPN, "istio-peer-exchange") {
				t.Errorf("%s agrees to an exchange that it does not make", c.Match)
			}
		case !c.TCP.PeerExchange:
			t.Errorf("%s does not exchange metadata", c.Match)
		}
	}
}

func TestStrictLetsNothingInWithoutACertificate(t *testing.T) {
	in := &inbound{mesh: &model.Mesh{}}
	for _, h := range []handling{asTCP, asTLS, asHTTP, asAuto} {
		for _, c := range in.chains(80, h, model.Strict, nil) {
			if c.TLS == nil || !c.TLS.RequireCert || c.TLS.Roots != meshRoots || c.Match.Transport != plan.TLSTransport {
				t.Errorf("%v: %s lets plain text in", h, c.Match)
			}
		}
	}
}
