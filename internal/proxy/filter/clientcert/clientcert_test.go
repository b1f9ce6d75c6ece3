package clientcert

import (
	"testing"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

func TestModes(t *testing.T) {
	const own = `By=spiffe://td/ns/a/sa/me;Hash=ab;Subject="O=\"x\", CN=y  z";URI=spiffe://td/ns/b/sa/you`
	for _, c := range []struct {
		mode  plan.ClientCertMode
		mtls  bool
		sent  []string
		want  string
		count int
	}{
		{plan.SanitizeClientCert, true, []string{"URI=x"}, "", 0},
		{plan.ForwardOnlyClientCert, true, []string{"URI=x"}, "URI=x", 1},
		{plan.ForwardOnlyClientCert, false, []string{"URI=x"}, "", 0},
		{plan.AppendForwardClientCert, true, nil, own, 1},
		{plan.AppendForwardClientCert, true, []string{"URI=x", "URI=y"}, "URI=x,URI=y," + own, 1},
		{plan.AppendForwardClientCert, false, []string{"URI=x"}, "", 0},
		{plan.SanitizeSetClientCert, true, []string{"URI=x"}, own, 1},
		{plan.SanitizeSetClientCert, false, []string{"URI=x"}, "", 0},
		{plan.AlwaysForwardOnlyClientCert, false, []string{"URI=x"}, "URI=x", 1},
	} {
		x := exchange.Get()
		x.Conn = &exchange.Conn{MTLS: c.mtls, OwnID: "spiffe://td/ns/a/sa/me", PeerID: "spiffe://td/ns/b/sa/you", PeerHash: "ab",
			PeerSubject: "O=\"x\", CN=y\r\nz"}
		h := &x.Request.Header
		for _, v := range c.sent {
			h.AddString(exchange.ForwardedClientCert, "x-forwarded-client-cert", v)
		}
		New(Config{Mode: c.mode}).Request(x)
		if got := string(h.Get(exchange.ForwardedClientCert)); got != c.want || h.Count(exchange.ForwardedClientCert) != c.count {
			t.Errorf("mode %d, mTLS %v, %q: %q, want %q", c.mode, c.mtls, c.sent, got, c.want)
		}
		exchange.Put(x)
	}
}
