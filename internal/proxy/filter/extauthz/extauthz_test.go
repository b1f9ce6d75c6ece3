package extauthz

import (
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

func exact(names ...string) (out []plan.TextMatch) {
	for _, n := range names {
		out = append(out, plan.TextMatch{Kind: plan.StringExact, Value: n})
	}
	return out
}

func door() *plan.ExtAuthz {
	return &plan.ExtAuthz{
		Provider: "door", Cluster: "door", PathPrefix: "/check", Timeout: time.Second, StatusOnError: 503,
		RequestHeaders: exact("x-token", "content-length", "host", "x-from"), Added: []plan.AddedHeader{{Name: "x-from", Value: "mesh"}},
		ToUpstream: exact("x-user", "host", "content-length", ":path"), ToClient: exact("x-note", "transfer-encoding"), ToDenied: exact("x-why"),
		Rules: []*plan.RBACRule{{Name: "r", To: []plan.Conditions{{{Attr: plan.AttrPath, Texts: []plan.TextMatch{{Kind: plan.StringPrefix, Value: "/admin"}}}}}}},
	}
}

func add(h *exchange.Header, headers ...string) {
	for i := 0; i < len(headers); i += 2 {
		h.AddString(exchange.Identify([]byte(headers[i])), headers[i], headers[i+1])
	}
}

func show(h *exchange.Header) string {
	var out []string
	for i := range h.Len() {
		if f := h.At(i); f != nil {
			out = append(out, string(f.Name)+"="+string(f.Value))
		}
	}
	return strings.Join(out, " ")
}

// ask sends a request for a path through the filter. The provider answers with status,
// body and headers; 0 is no answer, and a negative status one that breaks off.
func ask(p *plan.ExtAuthz, path string, request []string, status int, body string, answer ...string) (x *exchange.Exchange, asked string) {
	rules := NewRules([]*plan.ExtAuthz{p})
	f := New(Config{Rules: func() *Rules { return rules }, Send: func(y *exchange.Exchange, cluster string, _ time.Duration, _ int) ([]byte, bool) {
		asked = cluster + " " + string(y.Request.Method) + " " + string(y.Request.Target) + " " + show(&y.Request.Header)
		if status <= 0 {
			y.Response.Status = -status
			return nil, false
		}
		y.Response.Status = status
		add(&y.Response.Header, answer...)
		return []byte(body), true
	}})
	x = &exchange.Exchange{Conn: &exchange.Conn{}}
	q := &x.Request
	q.Method, q.Authority, q.Path, q.Query, q.HasQuery = []byte("PUT"), []byte("web"), []byte(path), []byte("a=b"), true
	add(&q.Header, request...)
	f.Request(x)
	if x.Response.Status == 0 {
		x.Response.Status = 204
		add(&x.Response.Header, "x-note", "upstream")
	}
	f.Response(x)
	return x, asked
}

func TestOnlyWhatRulesMatchIsAskedAbout(t *testing.T) {
	x, asked := ask(door(), "/open", nil, 403, "")
	if asked != "" || x.Response.Status != 204 {
		t.Errorf("asked %q, status %d", asked, x.Response.Status)
	}
	_, asked = ask(door(), "/admin", []string{"x-token", "t", "x-secret", "s", "authorization", "me", "content-length", "5", "x-from", "client"}, 200, "")
	if want := "door PUT /check/admin?a=b host=web x-token=t authorization=me x-from=mesh"; asked != want {
		t.Errorf("asked %q, want %q", asked, want)
	}
}

func TestConsentEditsNothingThatFramesMessages(t *testing.T) {
	x, _ := ask(door(), "/admin", []string{"x-user", "root", "x-user", "root2", "host", "web"}, 200, "",
		"x-user", "ann", "x-user", "bob", "host", "evil", "content-length", "9", ":path", "/evil", "x-note", "seen", "transfer-encoding", "chunked", "x-other", "1")
	if got, want := show(&x.Request.Header), "host=web x-user=ann x-user=bob"; got != want {
		t.Errorf("the request has %q, want %q", got, want)
	}
	if got, want := show(&x.Response.Header), "x-note=seen"; got != want {
		t.Errorf("the response has %q, want %q", got, want)
	}
}

func TestRefusalIsTheProvidersAnswer(t *testing.T) {
	x, _ := ask(door(), "/admin", nil, 302, "go", "location", "/login", "x-why", "no", "x-other", "1", "content-length", "7", "connection", "close")
	if got, want := show(&x.Response.Header), "content-type=text/plain location=/login x-why=no"; x.Response.Status != 302 || x.Response.Text != "go" || got != want {
		t.Errorf("%d %q %q, want %q", x.Response.Status, x.Response.Text, got, want)
	}
	if x.Details != "ext_authz_denied" || x.Flags != exchange.Unauthorized {
		t.Errorf("details %q, flags %s", x.Details, x.Flags)
	}
	all := door()
	all.ToDenied = nil
	if x, _ = ask(all, "/admin", nil, 401, "", "x-other", "1"); show(&x.Response.Header) != "x-other=1" {
		t.Errorf("the response has %q", show(&x.Response.Header))
	}
}

func TestNoWholeAnswerIsNoConsent(t *testing.T) {
	open := door()
	open.FailOpen = true
	for _, tt := range []struct {
		name         string
		status       int
		closed, open int
	}{
		{"nobody there", 0, 503, 204},
		{"breaks off", -200, 503, 204},
		{"server error", 500, 503, 204},
		{"switches protocols", 101, 503, 204},
		{"created", 201, 201, 201}, // not the word that lets pass
		{"not found", 404, 404, 404},
	} {
		for p, want := range map[*plan.ExtAuthz]int{door(): tt.closed, open: tt.open} {
			if x, _ := ask(p, "/admin", nil, tt.status, ""); x.Response.Status != want {
				t.Errorf("%s, fail open %v: status %d, want %d", tt.name, p.FailOpen, x.Response.Status, want)
			}
		}
	}
}

func TestGRPCClientsAreRefusedInTheirTerms(t *testing.T) {
	x, _ := ask(door(), "/admin", []string{"content-type", "application/grpc"}, 403, "no", "content-type", "text/html", "grpc-status", "0")
	if got := show(&x.Response.Header); x.Response.Status != 200 || !strings.Contains(got, "grpc-status=7") || strings.Contains(got, "grpc-status=0") || strings.Contains(got, "html") {
		t.Errorf("%d %s", x.Response.Status, got)
	}
}
