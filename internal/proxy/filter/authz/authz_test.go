package authz

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/rbac"
	"github.com/heddle-mesh/heddle/internal/telemetry"
)

func ask(f exchange.Filter, path string) *exchange.Exchange {
	x := new(exchange.Exchange)
	x.Conn = &exchange.Conn{PeerID: "spiffe://td/ns/a/sa/b", Remote: netip.MustParseAddrPort("10.0.0.1:1")}
	x.Request.Method, x.Request.Path, x.Request.Authority = []byte("GET"), []byte(path), []byte("web")
	f.Request(x)
	return x
}

// onPath matches one path.
func onPath(name, path string) []*plan.RBACRule {
	return []*plan.RBACRule{{Name: name, To: []plan.Conditions{{{Attr: plan.AttrPath, Texts: []plan.TextMatch{{Kind: plan.StringExact, Value: path}}}}}}}
}

func TestTheAnswerNamesTheRule(t *testing.T) {
	rules := rbac.New([]*plan.RBAC{
		{Action: plan.Deny, Enforced: true, Rules: onPath("ns[a]-policy[no]-rule[0]", "/secret")},
		{Action: plan.Allow, Enforced: true, Rules: onPath("ns[a]-policy[yes]-rule[0]", "/ok")},
	})
	metrics := telemetry.NewRegistry()
	f := New(Config{Rules: func() *rbac.Engine { return rules }, Prefix: "in", Count: metrics, Logger: slog.Default()})
	for path, want := range map[string]string{
		"/ok": "", "/secret": "rbac_access_denied_matched_policy[ns[a]-policy[no]-rule[0]]", "/": "rbac_access_denied_matched_policy[none]",
	} {
		x := ask(f, path)
		if x.Details != want || want != "" && (x.Response.Status != 403 || x.Response.Text != "RBAC: access denied") {
			t.Errorf("%s: %d %q %s", path, x.Response.Status, x.Response.Text, x.Details)
		}
	}
	var b bytes.Buffer
	metrics.WritePrometheus(&b)
	for _, line := range []string{`envoy_http_rbac_allowed{http_conn_manager_prefix="in"} 1`, `envoy_http_rbac_denied{http_conn_manager_prefix="in"} 2`} {
		if !strings.Contains(b.String(), line) {
			t.Errorf("the metrics lack %s", line)
		}
	}
}

func TestADryRunIsLogged(t *testing.T) {
	rules := rbac.New([]*plan.RBAC{{Action: plan.Deny, DryRun: true, Shadow: onPath("ns[a]-policy[no]-rule[0]", "/secret")}})
	var b bytes.Buffer
	f := New(Config{Rules: func() *rbac.Engine { return rules }, Logger: slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if x := ask(f, "/secret"); x.Response.Status != 0 {
		t.Errorf("answered %d", x.Response.Status)
	}
	if !strings.Contains(b.String(), "shadow denied") || !strings.Contains(b.String(), "policy=ns[a]-policy[no]-rule[0]") {
		t.Errorf("the log is %q", b.String())
	}
}

func TestWithoutRulesNothingIsRefused(t *testing.T) {
	f := New(Config{Rules: func() *rbac.Engine { return nil }})
	if x := ask(f, "/"); x.Response.Status != 0 {
		t.Errorf("answered %d", x.Response.Status)
	}
}
