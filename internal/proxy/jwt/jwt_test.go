package jwt

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// keyring is keys of all kinds, made once.
type keyring struct {
	rsa  *rsa.PrivateKey
	ec   *ecdsa.PrivateKey
	ed   ed25519.PrivateKey
	text string // the key set
}

func newKeyring(t testing.TB) keyring {
	t.Helper()
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	e, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k := keyring{rsa: r, ec: e, ed: ed}
	k.text = setOf(t, jose.JSONWebKey{Key: &r.PublicKey, KeyID: "rsa"}, jose.JSONWebKey{Key: &e.PublicKey, KeyID: "ec"}, jose.JSONWebKey{Key: ed.Public(), KeyID: "ed"})
	return k
}

func setOf(t testing.TB, keys ...jose.JSONWebKey) string {
	b, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func sign(t testing.TB, alg jose.SignatureAlgorithm, key any, kid string, claims map[string]any) string {
	t.Helper()
	o := &jose.SignerOptions{}
	if kid != "" {
		o = o.WithHeader("kid", kid)
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, o)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := json.Marshal(claims)
	signed, err := s.Sign(b)
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func verifier(t testing.TB, list ...*plan.JWT) *Verifier {
	t.Helper()
	v, err := NewVerifier(list, func() time.Time { return noon })
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestTokensAreJudged(t *testing.T) {
	k := newKeyring(t)
	other := newKeyring(t)
	v := verifier(t, &plan.JWT{Issuer: "iss", Keys: k.text, Audiences: []string{"https://shop/"}}, &plan.JWT{Issuer: "free", Keys: k.text},
		&plan.JWT{Issuer: "dead", Keys: plan.NoKeys})
	with := func(more ...any) map[string]any {
		c := map[string]any{"iss": "iss", "sub": "me", "aud": "shop", "exp": noon.Unix() + 60}
		for i := 0; i < len(more); i += 2 {
			c[more[i].(string)] = more[i+1]
		}
		return c
	}
	forge := func(head string) string {
		b := base64.RawURLEncoding
		return b.EncodeToString([]byte(head)) + "." + b.EncodeToString([]byte(`{"iss":"free","sub":"root"}`)) + "."
	}
	public, _ := json.Marshal(jose.JSONWebKey{Key: &k.rsa.PublicKey})
	good := sign(t, jose.RS256, k.rsa, "rsa", with())
	cut := strings.LastIndex(good, ".")
	for _, c := range []struct {
		name, token string
		want        error
	}{
		{"RS256", good, nil},
		{"RS384", sign(t, jose.RS384, k.rsa, "rsa", with()), nil},
		{"PS512", sign(t, jose.PS512, k.rsa, "rsa", with()), nil},
		{"ES256", sign(t, jose.ES256, k.ec, "ec", with()), nil},
		{"EdDSA", sign(t, jose.EdDSA, k.ed, "ed", with()), nil},
		{"no name of a key", sign(t, jose.ES256, k.ec, "", with()), nil},
		{"several audiences", sign(t, jose.ES256, k.ec, "ec", with("aud", []string{"a", "http://shop"})), nil},
		{"no end", sign(t, jose.ES256, k.ec, "ec", map[string]any{"iss": "free"}), nil},
		{"ended a moment ago", sign(t, jose.ES256, k.ec, "ec", with("exp", noon.Unix()-59)), nil},
		{"ended", sign(t, jose.ES256, k.ec, "ec", with("exp", noon.Unix()-61)), Expired},
		{"not begun", sign(t, jose.ES256, k.ec, "ec", with("nbf", noon.Unix()+61)), NotYetValid},
		{"other audience", sign(t, jose.ES256, k.ec, "ec", with("aud", "bank")), WrongAudience},
		{"no audience", sign(t, jose.ES256, k.ec, "ec", map[string]any{"iss": "iss"}), WrongAudience},
		{"other issuer", sign(t, jose.ES256, k.ec, "ec", with("iss", "else")), UnknownIssuer},
		{"other key of that name", sign(t, jose.ES256, other.ec, "ec", with()), VerificationFail},
		{"unknown key", sign(t, jose.ES256, k.ec, "new", with()), NoKey},
		{"key of another kind", sign(t, jose.RS256, k.rsa, "ec", with()), NoKey},
		{"issuer without keys", sign(t, jose.ES256, k.ec, "ec", with("iss", "dead")), NoKey},
		{"none", forge(`{"alg":"none"}`), BadAlgorithm},
		{"None", forge(`{"alg":"None"}`), BadAlgorithm},
		{"public key as a secret", sign(t, jose.HS256, public, "rsa", with()), BadAlgorithm},
		{"key brought along", forge(`{"alg":"RS256","jwk":` + string(public) + `}`), NoKey},
		{"critical header", forge(`{"alg":"RS256","crit":["b64"],"b64":false}`), BadAlgorithm},
		{"two parts", "a.b", BadFormat},
		{"four parts", good + ".x", BadFormat},
		{"head", "!." + good[strings.Index(good, ".")+1:], BadHeaderBase64},
		{"no signature", good[:cut+1], VerificationFail},
		{"signature of another", good[:cut] + sign(t, jose.RS256, k.rsa, "rsa", with("sub", "you"))[cut:], VerificationFail},
		{"payload that is no object", base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256"}`)) + ".MQ.MQ", BadPayloadJSON},
		{"audience of numbers", sign(t, jose.ES256, k.ec, "ec", with("aud", 1)), BadPayloadJSON},
		{"end that is text", sign(t, jose.ES256, k.ec, "ec", with("exp", "never")), BadPayloadJSON},
	} {
		t.Run(c.name, func(t *testing.T) {
			for range 2 { // the second time it may be remembered
				r, err := v.Verify([]byte(c.token), []bool{true, true, true})
				if c.want != nil && !errors.Is(err, c.want) && !(c.name == "key brought along" && errors.Is(err, VerificationFail)) || c.want == nil && err != nil || (r == nil) == (err == nil) {
					t.Errorf("%v, want %v", err, c.want)
				}
			}
		})
	}
	// A token that is remembered is still only for the places of its rule.
	if _, err := v.Verify([]byte(good), []bool{false, true, true}); err != UnknownIssuer {
		t.Errorf("in a place where its rule does not look: %v", err)
	}
}

func TestARememberedTokenExpires(t *testing.T) {
	k := newKeyring(t)
	now := noon
	v, err := NewVerifier([]*plan.JWT{{Issuer: "iss", Keys: k.text}}, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	token := []byte(sign(t, jose.EdDSA, k.ed, "ed", map[string]any{"iss": "iss", "exp": noon.Unix()}))
	if _, err := v.Verify(token, []bool{true}); err != nil {
		t.Fatal(err)
	}
	now = noon.Add(skew + time.Second)
	if _, err := v.Verify(token, []bool{true}); err != Expired {
		t.Errorf("%v, want %v", err, Expired)
	}
}

func TestWhatATokenSays(t *testing.T) {
	k := newKeyring(t)
	v := verifier(t, &plan.JWT{Issuer: "iss", Keys: k.text, SpaceDelimited: []string{"roles"}, ClaimHeaders: []plan.ClaimHeader{
		{Header: "x-n", Claim: "n"}, {Header: "x-b", Claim: "a.b.c"}, {Header: "x-t", Claim: "yes"}, {Header: "x-bad", Claim: "bad"}, {Header: "x-none", Claim: "none"}, {Header: "x-list", Claim: "list"}}})
	r, err := v.Verify([]byte(sign(t, jose.ES256, k.ec, "", map[string]any{"iss": "iss", "sub": "me", "n": 12345678901, "yes": true, "bad": "a\r\nb: c",
		"a": map[string]any{"b": map[string]any{"c": "deep"}}, "list": []any{"x", 1, "y"}, "scope": "read write", "roles": "p q", "text": "r s"})), []bool{true})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{"iss": {"iss"}, "sub": {"me"}, "bad": {"a\r\nb: c"}, "a\x00b\x00c": {"deep"}, "list": {"x", "y"},
		"scope": {"read", "write"}, "roles": {"p", "q"}, "text": {"r s"}}
	if !reflect.DeepEqual(r.Token.Claims, want) || r.Token.Principal != "iss/me" {
		t.Errorf("%q %q", r.Token.Principal, r.Token.Claims)
	}
	if want := []string{"12345678901", "deep", "true", "", "", ""}; !reflect.DeepEqual(r.Headers, want) {
		t.Errorf("headers %q", r.Headers)
	}
}

func TestAKnownTokenCostsNoMemory(t *testing.T) {
	k := newKeyring(t)
	v := verifier(t, &plan.JWT{Issuer: "iss", Keys: k.text})
	token, from := []byte(sign(t, jose.ES256, k.ec, "", map[string]any{"iss": "iss"})), []bool{true}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := v.Verify(token, from); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestKeysThatVerifyNothingAreLeftOut(t *testing.T) {
	k := newKeyring(t)
	secret := `{"kty":"oct","k":"c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}`
	public, _ := json.Marshal(jose.JSONWebKey{Key: k.rsa.Public(), KeyID: "r"})
	keys, err := ParseKeys(`{"keys":[` + secret + `,{"kty":"new"},{"kty":"RSA","use":"enc","n":"AQAB","e":"AQAB"},` + string(public) + `]}`)
	if err != nil || len(keys) != 1 || keys[0].KeyID != "r" {
		t.Errorf("%v %v", keys, err)
	}
	if keys, err := ParseKeys(string(public)); err != nil || len(keys) != 1 {
		t.Errorf("a single key gives %v %v", keys, err)
	}
	if _, err := ParseKeys("{"); err == nil {
		t.Error("half a set is read")
	}
}

func FuzzToken(f *testing.F) {
	k := newKeyring(f)
	v := verifier(f, &plan.JWT{Issuer: "iss", Keys: k.text})
	good := sign(f, jose.ES256, k.ec, "ec", map[string]any{"iss": "iss", "aud": []string{"a"}})
	f.Add(good)
	f.Add("a.b.c")
	f.Add(".." + strings.Repeat("[", 100))
	f.Fuzz(func(t *testing.T, token string) {
		r, err := v.Verify([]byte(token), []bool{true})
		if (r == nil) == (err == nil) {
			t.Fatalf("%v %v", r, err)
		}
		if err == nil && token != good && !strings.HasPrefix(token, good[:strings.LastIndex(good, ".")]) {
			t.Fatalf("%q is accepted", token)
		}
	})
}

func FuzzKeys(f *testing.F) {
	f.Add(newKeyring(f).text)
	f.Add(`{"keys":[{"kty":"EC","crv":"P-256","x":"AQ","y":"AQ"}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		keys, err := ParseKeys(text)
		if err != nil && keys != nil {
			t.Fatal("keys beside an error")
		}
		for i := range keys {
			for _, a := range algorithms {
				fits(&keys[i], a)
			}
		}
	})
}
