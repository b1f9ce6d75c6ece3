package ca

import (
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
)

func newIssuer(t testing.TB) (*Issuer, *Verifier) {
	t.Helper()
	i, err := NewIssuer(filepath.Join(t.TempDir(), "state", "token-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	v, err := NewVerifier(i.PublicKeyPath(), Audience)
	if err != nil {
		t.Fatal(err)
	}
	return i, v
}

func issue(t testing.TB, i *Issuer, ttl time.Duration) string {
	t.Helper()
	token, err := i.Issue("default", "reviews", ttl)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func part(t testing.TB, token string, n int) map[string]any {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[n])
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestTokenIsLikeKubernetes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, v := newIssuer(t)
		token := issue(t, i, 0)
		namespace, account, err := v.Verify(token)
		if err != nil || namespace != "default" || account != "reviews" {
			t.Fatalf("%q, %q, %v", namespace, account, err)
		}
		if header := part(t, token, 0); header["alg"] != "ES256" || header["kid"] == "" || header["jwk"] != nil {
			t.Errorf("header = %v", header)
		}
		now := float64(time.Now().Unix())
		got, err := json.Marshal(part(t, token, 1))
		if err != nil {
			t.Fatal(err)
		}
		want, err := json.Marshal(map[string]any{
			"iss": "heddle", "sub": "system:serviceaccount:default:reviews", "aud": []string{"istio-ca"},
			"iat": now, "nbf": now, "exp": now + 3600,
			"kubernetes.io": map[string]any{"namespace": "default", "serviceaccount": map[string]any{"name": "reviews"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != string(want) {
			t.Errorf("claims\n%s, want\n%s", got, want)
		}
	})
}

func TestTokenExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, v := newIssuer(t)
		token := issue(t, i, time.Minute)
		time.Sleep(time.Minute)
		if _, _, err := v.Verify(token); err != nil {
			t.Errorf("at its last moment: %v", err)
		}
		time.Sleep(time.Second)
		if _, _, err := v.Verify(token); err == nil || !strings.Contains(err.Error(), "expired") {
			t.Errorf("after its life: %v", err)
		}
	})
}

func TestIssuerChecksNames(t *testing.T) {
	i, _ := newIssuer(t)
	for _, tt := range [][2]string{{"", "a"}, {"a", ""}, {"a:b", "c"}, {"a", "b:c"}, {"a/b", "c"}, {"a", ".."}} {
		if _, err := i.Issue(tt[0], tt[1], 0); err == nil {
			t.Errorf("%q is accepted", tt)
		}
	}
}

func TestKeyIsKeptAndPrivate(t *testing.T) {
	i, v := newIssuer(t)
	keyPath := strings.TrimSuffix(i.PublicKeyPath(), ".jwks.json") + ".pem"
	info, err := os.Stat(keyPath)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("the key has mode %o", got)
	}
	set, err := os.ReadFile(i.PublicKeyPath())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(set), `"d"`) {
		t.Error("the public key set holds the private key")
	}
	again, err := NewIssuer(keyPath)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := v.Verify(issue(t, again, 0)); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	if err := os.Chmod(keyPath, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := NewIssuer(keyPath); err == nil {
		t.Error("a key that others may read is used")
	}
}

func TestVerifierFollowsTheKeyFile(t *testing.T) {
	i, v := newIssuer(t)
	token := issue(t, i, 0)
	path := i.PublicKeyPath()
	if _, _, err := v.Verify(token); err != nil {
		t.Fatal(err)
	}
	// A new key: the old token is worth nothing, the new one counts.
	other, _ := newIssuer(t)
	set, err := os.ReadFile(other.PublicKeyPath())
	if err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeFile(path, set, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := v.Verify(token); err == nil {
		t.Error("a key that was replaced still counts")
	}
	if _, _, err := v.Verify(issue(t, other, 0)); err != nil {
		t.Errorf("the new key does not count: %v", err)
	}
	// No readable key set: nobody gets in, with no old keys to fall back to.
	for name, change := range map[string]func() error{
		"gone":    func() error { return os.Remove(path) },
		"garbage": func() error { return writeFile(path, []byte("{"), 0o644) },
		"empty":   func() error { return writeFile(path, []byte(`{"keys":[]}`), 0o644) },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		_, _, err := v.Verify(issue(t, other, 0))
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), path) {
			t.Errorf("%s: the caller learns of our files: %v", name, err)
		}
	}
	if err := writeFile(path, old, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := v.Verify(token); err != nil {
		t.Errorf("back again: %v", err)
	}
}

// signer makes any token: what an attacker has, or a bug in an issuer.
func signer(t testing.TB, alg jose.SignatureAlgorithm, key any, headers map[jose.HeaderKey]any) func(claims string) string {
	t.Helper()
	opts := &jose.SignerOptions{}
	for k, v := range headers {
		opts.WithHeader(k, v)
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, opts)
	if err != nil {
		t.Fatal(err)
	}
	return func(claims string) string {
		signed, err := s.Sign([]byte(claims))
		if err != nil {
			t.Fatal(err)
		}
		token, err := signed.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
}

const goodClaims = `{"iss":"heddle","aud":["istio-ca"],"sub":"system:serviceaccount:default:reviews","exp":4102444800,` +
	`"kubernetes.io":{"namespace":"default","serviceaccount":{"name":"reviews"}}}`

func TestVerifyRefuses(t *testing.T) {
	i, v := newIssuer(t)
	key, err := readKey(strings.TrimSuffix(i.PublicKeyPath(), ".jwks.json") + ".pem")
	if err != nil {
		t.Fatal(err)
	}
	kid, err := keyID(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	own := signer(t, jose.ES256, key, map[jose.HeaderKey]any{"kid": kid})
	if namespace, account, err := v.Verify(own(goodClaims)); err != nil || namespace != "default" || account != "reviews" {
		t.Fatalf("the good token: %v", err)
	}
	stranger := ecKey(t, elliptic.P256())
	p384 := ecKey(t, elliptic.P384())
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	edit := func(old, fresh string) string {
		t.Helper()
		s := strings.Replace(goodClaims, old, fresh, 1)
		if s == goodClaims {
			t.Fatalf("%q is not in the claims", old)
		}
		return own(s)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	good := own(goodClaims)
	parts := strings.Split(good, ".")
	set, err := os.ReadFile(i.PublicKeyPath())
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	hs := func(secret []byte) string {
		return signer(t, jose.HS256, secret, map[jose.HeaderKey]any{"kid": kid})(goodClaims)
	}
	tokens := map[string]string{
		"empty":                      "",
		"text":                       "token",
		"two parts":                  parts[0] + "." + parts[1],
		"five parts":                 good + ".a.b",
		"JSON form":                  `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`,
		"no signature":               parts[0] + "." + parts[1] + ".",
		"signature of another":       parts[0] + "." + parts[1] + "." + strings.Split(edit(`reviews"}`, `ratings"}`), ".")[2],
		"alg none":                   b64([]byte(`{"alg":"none","kid":"`+kid+`"}`)) + "." + parts[1] + ".",
		"alg None, signed":           b64([]byte(`{"alg":"None","kid":"`+kid+`"}`)) + "." + parts[1] + "." + parts[2],
		"HMAC with the key set":      hs(set),
		"HMAC with the public key":   hs(public),
		"RS256":                      signer(t, jose.RS256, rsaKey, map[jose.HeaderKey]any{"kid": kid})(goodClaims),
		"ES384":                      signer(t, jose.ES384, p384, map[jose.HeaderKey]any{"kid": kid})(goodClaims),
		"a stranger's key":           signer(t, jose.ES256, stranger, map[jose.HeaderKey]any{"kid": kid})(goodClaims),
		"a stranger's key, embedded": signer(t, jose.ES256, stranger, map[jose.HeaderKey]any{"kid": kid, "jwk": jose.JSONWebKey{Key: &stranger.PublicKey}})(goodClaims),
		"no kid":                     signer(t, jose.ES256, key, nil)(goodClaims),
		"kid of another":             signer(t, jose.ES256, key, map[jose.HeaderKey]any{"kid": "x"})(goodClaims),
		"kid is a path":              signer(t, jose.ES256, key, map[jose.HeaderKey]any{"kid": "../../../dev/null"})(goodClaims),
		"unknown crit":               signer(t, jose.ES256, key, map[jose.HeaderKey]any{"kid": kid, "crit": []string{"x"}, "x": 1})(goodClaims),
		"too long":                   own(strings.Replace(goodClaims, "{", `{"x":"`+strings.Repeat("x", maxToken)+`",`, 1)),
		"other issuer":               edit(`"heddle"`, `"kubernetes"`),
		"no issuer":                  edit(`"iss":"heddle",`, ``),
		"other audience":             edit(`istio-ca`, `vault`),
		"audience as part":           edit(`istio-ca`, `istio-ca2`),
		"no audience":                edit(`"aud":["istio-ca"],`, ``),
		"no expiry":                  edit(`"exp":4102444800,`, ``),
		"expired":                    edit(`4102444800`, `1`),
		"expiry as text":             edit(`4102444800`, `"4102444800"`),
		"not yet valid":              edit(`"exp"`, `"nbf":4102444000,"exp"`),
		"issued in the future":       edit(`"exp"`, `"iat":4102444000,"exp"`),
		"no subject":                 edit(`"sub":"system:serviceaccount:default:reviews",`, ``),
		"subject of another":         edit(`default:reviews`, `default:ratings`),
		"account of another":         edit(`"reviews"}`, `"ratings"}`),
		"namespace of another":       edit(`"namespace":"default"`, `"namespace":"other"`),
		"no account":                 edit(`,"kubernetes.io":{"namespace":"default","serviceaccount":{"name":"reviews"}}`, ``),
		"account with a slash":       own(strings.ReplaceAll(goodClaims, "reviews", "a/sa/b")),
		"claim twice":                edit(`"sub"`, `"sub":"system:serviceaccount:default:admin","sub"`),
		"claims are a list":          own(`[]`),
		"claims are text":            own(`x`),
	}
	for name, token := range tokens {
		t.Run(name, func(t *testing.T) {
			if namespace, account, err := v.Verify(token); err == nil || namespace != "" || account != "" {
				t.Errorf("accepted as %q %q, %v", namespace, account, err)
			}
		})
	}
}

func TestVerifierWantsES256KeysOnly(t *testing.T) {
	_, v := newIssuer(t)
	p384 := ecKey(t, elliptic.P384())
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	es := ecKey(t, elliptic.P256())
	for name, keys := range map[string][]jose.JSONWebKey{
		"P-384":  {{Key: &p384.PublicKey, KeyID: "k"}},
		"RSA":    {{Key: &rsaKey.PublicKey, KeyID: "k"}},
		"octets": {{Key: []byte("secret"), KeyID: "k"}},
		"two":    {{Key: &es.PublicKey, KeyID: "k"}, {Key: &es.PublicKey, KeyID: "k"}},
	} {
		b, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
		if err != nil {
			t.Fatal(err)
		}
		if err := writeFile(v.path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, _, err := v.Verify(signer(t, jose.ES256, es, map[jose.HeaderKey]any{"kid": "k"})(goodClaims)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestVerifierNeedsItsParts(t *testing.T) {
	if _, err := NewVerifier("", Audience); err == nil {
		t.Error("without key set")
	}
	if _, err := NewVerifier("x", ""); err == nil {
		t.Error("without audience")
	}
}

// FuzzVerify: no token panics, and none but the good ones gets in. The claims are
// also signed with the right key, so that the fuzzer gets past the signature.
func FuzzVerify(f *testing.F) {
	i, v := newIssuer(f)
	key, err := readKey(strings.TrimSuffix(i.PublicKeyPath(), ".jwks.json") + ".pem")
	if err != nil {
		f.Fatal(err)
	}
	kid, err := keyID(&key.PublicKey)
	if err != nil {
		f.Fatal(err)
	}
	own := signer(f, jose.ES256, key, map[jose.HeaderKey]any{"kid": kid})
	stranger := signer(f, jose.ES256, ecKey(f, elliptic.P256()), map[jose.HeaderKey]any{"kid": kid})
	f.Add(stranger(goodClaims), goodClaims)
	f.Add("eyJhbGciOiJub25lIn0.e30.", `{"exp":1}`)
	f.Add("..", "")
	f.Fuzz(func(t *testing.T, token, claims string) {
		// No input can hold a signature by this run's key.
		if namespace, account, err := v.Verify(token); err == nil {
			t.Errorf("accepted as %q %q", namespace, account)
		}
		namespace, account, err := v.Verify(own(claims))
		if err != nil {
			return
		}
		var c map[string]any
		if json.Unmarshal([]byte(claims), &c) != nil || c["sub"] != "system:serviceaccount:"+namespace+":"+account || checkAccount(namespace, account) != nil {
			t.Errorf("%s: accepted as %q %q", claims, namespace, account)
		}
	})
}
