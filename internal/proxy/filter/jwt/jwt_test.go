package jwt

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/jwt"
)

type issuer struct {
	keys string
	sign func(claims map[string]any) string
}

func newIssuer(t *testing.T) issuer {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	set, _ := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: public}}})
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: private}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return issuer{string(set), func(claims map[string]any) string {
		b, _ := json.Marshal(claims)
		signed, err := s.Sign(b)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := signed.CompactSerialize()
		return text
	}}
}

func filterOf(t *testing.T, list ...*plan.JWT) exchange.Filter {
	t.Helper()
	v, err := jwt.NewVerifier(list, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := NewRules(v)
	return New(Config{Rules: func() *Rules { return r }})
}

func ask(f exchange.Filter, query string, headers ...string) *exchange.Exchange {
	x := new(exchange.Exchange)
	q := &x.Request
	q.Scheme, q.Authority, q.Path, q.Query, q.HasQuery = "http", []byte("web"), []byte("/a"), []byte(query), query != ""
	for i := 0; i < len(headers); i += 2 {
		q.Header.AddString(exchange.Identify([]byte(headers[i])), headers[i], headers[i+1])
	}
	f.Request(x)
	return x
}

func get(x *exchange.Exchange, name string) string {
	var all []string
	for v, i := x.Request.Header.Find(name, 0); i >= 0; v, i = x.Request.Header.Find(name, i+1) {
		all = append(all, string(v))
	}
	return strings.Join(all, "|")
}

func TestPlacesOfTokens(t *testing.T) {
	is := newIssuer(t)
	token := is.sign(map[string]any{"iss": "iss", "sub": "me"})
	usual := filterOf(t, &plan.JWT{Issuer: "iss", Keys: is.keys})
	special := filterOf(t, &plan.JWT{Issuer: "iss", Keys: is.keys, Headers: []plan.JWTHeader{{Name: "X-Token", Prefix: "Tok "}}, Params: []string{"t"}, Cookies: []string{"c"}})
	forward := filterOf(t, &plan.JWT{Issuer: "iss", Keys: is.keys, Forward: true})
	for _, c := range []struct {
		name     string
		filter   exchange.Filter
		query    string
		headers  []string
		accepted bool   // a token was found and is valid
		left     string // of authorization, the query, x-token and cookie
	}{
		{"bearer", usual, "", []string{"authorization", "Bearer " + token}, true, ";;;"},
		{"parameter", usual, "a=1&access_token=" + token + "&b=2", nil, true, ";a=1&b=2;;"},
		{"only parameter", usual, "access_token=" + token, nil, true, ";;;"},
		{"other scheme", usual, "", []string{"authorization", "Basic abc"}, false, "Basic abc;;;"},
		{"forwarded", forward, "", []string{"authorization", "Bearer " + token}, true, "Bearer " + token + ";;;"},
		{"own header", special, "", []string{"x-token", "Tok " + token}, true, ";;;"},
		{"own header replaces the usual", special, "", []string{"authorization", "Bearer x"}, false, "Bearer x;;;"},
		{"own parameter", special, "t=" + token, nil, true, ";;;"},
		{"cookie", special, "", []string{"cookie", "a=1; c=" + token + "; b=2"}, true, ";;;a=1; b=2"},
		{"cookie alone", special, "", []string{"cookie", "c=" + token}, true, ";;;"},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := ask(c.filter, c.query, c.headers...)
			if x.Response.Status != 0 || (x.Token != nil) != c.accepted || c.accepted && x.Token.Principal != "iss/me" {
				t.Fatalf("%d %s, token %v", x.Response.Status, x.Details, x.Token)
			}
			left := get(x, "authorization") + ";" + string(x.Request.Query) + ";" + get(x, "x-token") + ";" + get(x, "cookie")
			if left != c.left {
				t.Errorf("left is %q, want %q", left, c.left)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	is := newIssuer(t)
	f := filterOf(t, &plan.JWT{Issuer: "iss", Keys: is.keys, Audiences: []string{"a"}})
	for token, want := range map[string]string{
		"x":                                    "401 Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
		is.sign(map[string]any{"iss": "else"}): "401 Jwt issuer is not configured",
		is.sign(map[string]any{"iss": "iss", "aud": "a", "exp": 1}): "401 Jwt is expired",
		is.sign(map[string]any{"iss": "iss", "aud": "b"}):           "403 Audiences in Jwt are not allowed",
	} {
		x := ask(f, "", "authorization", "Bearer "+token)
		if got := map[int]string{401: "401 ", 403: "403 "}[x.Response.Status] + x.Response.Text; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		v, _ := x.Response.Header.Find("www-authenticate", 0)
		if string(v) != `Bearer realm="http://web/a", error="invalid_token"` {
			t.Errorf("www-authenticate is %s", v)
		}
		if !strings.HasPrefix(x.Details, "jwt_authn_access_denied{") || strings.Contains(x.Details, " ") {
			t.Errorf("details are %s", x.Details)
		}
	}
	// One good token does not excuse a bad one.
	good := is.sign(map[string]any{"iss": "iss", "aud": "a"})
	if x := ask(f, "access_token=bad", "authorization", "Bearer "+good); x.Response.Status != 401 {
		t.Errorf("a bad token beside a good one: %d", x.Response.Status)
	}
}

// TestOnlyTheProxyWritesOutputs holds that nobody can pretend to have been verified.
func TestOnlyTheProxyWritesOutputs(t *testing.T) {
	is := newIssuer(t)
	f := filterOf(t, &plan.JWT{Issuer: "iss", Keys: is.keys, PayloadHeader: "x-payload", ClaimHeaders: []plan.ClaimHeader{{Header: "x-sub", Claim: "sub"}, {Header: "x-role", Claim: "role"}}})
	forged := []string{"X-Payload", "forged", "x-sub", "root", "x-role", "admin", "x-role", "king"}
	x := ask(f, "", forged...)
	if all := get(x, "x-payload") + get(x, "x-sub") + get(x, "x-role"); all != "" {
		t.Errorf("without a token %q is left", all)
	}
	token := is.sign(map[string]any{"iss": "iss", "sub": "me"})
	x = ask(f, "", append(forged, "authorization", "Bearer "+token)...)
	if get(x, "x-payload") != strings.Split(token, ".")[1] || get(x, "x-sub") != "me" || get(x, "x-role") != "" {
		t.Errorf("payload %q, sub %q, role %q", get(x, "x-payload"), get(x, "x-sub"), get(x, "x-role"))
	}
}
