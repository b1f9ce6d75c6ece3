package forwarded

import (
	"net/netip"
	"testing"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// TestWhoTheClientIs holds Envoy's rules of trusted hops: what a stranger writes in
// front of the list is never believed.
func TestWhoTheClientIs(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  Config
		xff  []string
		want string // "" is the connection's own
	}{
		{"edge without proxies", Config{UseRemoteAddress: true}, []string{"1.1.1.1"}, ""},
		{"edge behind one", Config{UseRemoteAddress: true, TrustedHops: 1}, []string{"6.6.6.6, 1.1.1.1"}, "1.1.1.1"},
		{"edge behind two", Config{UseRemoteAddress: true, TrustedHops: 2}, []string{"6.6.6.6, 1.1.1.1,2.2.2.2"}, "1.1.1.1"},
		{"edge behind two, over lines", Config{UseRemoteAddress: true, TrustedHops: 2}, []string{"6.6.6.6", "1.1.1.1", "2.2.2.2"}, "1.1.1.1"},
		{"edge behind two, one is missing", Config{UseRemoteAddress: true, TrustedHops: 2}, []string{"1.1.1.1"}, ""},
		{"edge behind one, no address", Config{UseRemoteAddress: true, TrustedHops: 1}, []string{"1.1.1.1, unknown"}, ""},
		{"inside", Config{}, []string{"6.6.6.6, 2001:db8::1"}, "2001:db8::1"},
		{"inside, nothing said", Config{}, nil, ""},
		{"inside, empty", Config{}, []string{""}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := new(exchange.Exchange)
			x.Conn = &exchange.Conn{Remote: netip.MustParseAddrPort("10.0.0.9:1")}
			for _, v := range c.xff {
				x.Request.Header.AddString(exchange.ForwardedFor, "x-forwarded-for", v)
			}
			New(c.cfg).Request(x)
			got := ""
			if x.Remote.IsValid() {
				got = x.Remote.String()
			}
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}
