// Package jwt verifies the tokens that requests bear.
//
// A token is accepted if one of the rules for its issuer accepts it: the signature is
// by one of the rule's keys, with an algorithm that the key is for and that is none
// of those with a shared secret; it is in its time, with a minute's allowance; and it
// is meant for one of the rule's audiences. Cryptography is go-jose's; which key and
// algorithm may be used is decided here, and never by the token.
//
// Tokens that were accepted are remembered until they expire, by their hash and in a
// bounded number, so that a client's next request costs no signature.
package jwt

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// Error is why a token is refused, in Envoy's words. Source: jwt_verify_lib.
type Error string

// The reasons.
const (
	BadFormat        Error = "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
	BadHeaderBase64  Error = "Jwt header is an invalid Base64url encoded"
	BadHeaderJSON    Error = "Jwt header is an invalid JSON"
	BadAlgorithm     Error = "Jwt header [alg] is not supported"
	BadPayloadBase64 Error = "Jwt payload is an invalid Base64url encoded"
	BadPayloadJSON   Error = "Jwt payload is an invalid JSON"
	BadSignature     Error = "Jwt signature is an invalid Base64url encoded"
	UnknownIssuer    Error = "Jwt issuer is not configured"
	WrongAudience    Error = "Audiences in Jwt are not allowed"
	Expired          Error = "Jwt is expired"
	NotYetValid      Error = "Jwt not yet valid"
	NoKey            Error = "Jwks doesn't have key to match kid or alg from Jwt"
	VerificationFail Error = "Jwt verification fails"
)

func (e Error) Error() string { return string(e) }

const (
	// skew is how far clocks may differ. Source: Envoy, clock_skew_seconds.
	skew = time.Minute
	// remembered is how many accepted tokens one half of the memory holds.
	remembered = 4096
	// maxToken bounds a token; the heads of requests have a limit too.
	maxToken = 64 << 10
	// maxKeys bounds how many keys without a name a token is tried with.
	maxKeys = 64
	// maxDepth bounds the nesting of claims.
	maxDepth = 32
)

// algorithms are those whose keys are public. No token can choose another, so that
// nobody signs with a public key as if it were a secret.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

// Rule is a plan.JWT that can be asked. It is immutable.
type Rule struct {
	Plan  *plan.JWT
	index int
	keys  []jose.JSONWebKey
}

// Result is an accepted token. It is immutable and shared.
type Result struct {
	Rule  *Rule
	Token *exchange.Token
	// Payload is the token's second part as it stood there.
	Payload string
	// Headers are the values for Rule.Plan.ClaimHeaders, "" for a claim that is
	// missing.
	Headers []string
	until   time.Time
}

// Verifier verifies tokens by some rules. It is safe for concurrent use.
type Verifier struct {
	rules []*Rule
	now   func() time.Time

	mu sync.Mutex
	// mu guards the two halves of the memory: when young is full it becomes old.
	young, old map[[sha256.Size]byte]*Result
}

// NewVerifier returns a Verifier. A rule whose keys can not be read has none, and
// accepts nothing; the error says so. now may be nil.
func NewVerifier(list []*plan.JWT, now func() time.Time) (*Verifier, error) {
	if now == nil {
		now = time.Now
	}
	v := &Verifier{now: now, young: map[[sha256.Size]byte]*Result{}}
	var errs []error
	for i, p := range list {
		keys, err := ParseKeys(p.Keys)
		if err != nil {
			errs = append(errs, fmt.Errorf("keys of issuer %q: %w", p.Issuer, err))
		}
		v.rules = append(v.rules, &Rule{p, i, keys})
	}
	return v, errors.Join(errs...)
}

// Rules returns the rules in their order.
func (v *Verifier) Rules() []*Rule { return v.rules }

// ParseKeys reads a JSON Web Key Set, or a single key. Keys that verify nothing are
// left out: shared secrets, and those for encryption.
func ParseKeys(text string) ([]jose.JSONWebKey, error) {
	// Key by key, so that one of a kind that is not known does not hide the others.
	var raw struct {
		Keys []json.RawMessage `json:"keys"`
		Type string            `json:"kty"`
	}
	if err := json.Unmarshal([]byte(text), &raw); err != nil {
		return nil, err
	}
	if raw.Type != "" {
		raw.Keys = append(raw.Keys, json.RawMessage(text))
	}
	var out []jose.JSONWebKey
	for _, r := range raw.Keys {
		var k jose.JSONWebKey
		if k.UnmarshalJSON(r) != nil || k.Use != "" && k.Use != "sig" {
			continue
		}
		k = k.Public()
		switch k.Key.(type) {
		case *rsa.PublicKey, *ecdsa.PublicKey, ed25519.PublicKey:
			out = append(out, k)
		}
	}
	return out, nil
}

// Verify judges a token that was found in a place where only some of the rules look
// for it: from tells for each whether it does.
func (v *Verifier) Verify(token []byte, from []bool) (*Result, error) {
	sum := sha256.Sum256(token)
	now := v.now()
	if r := v.recall(sum); r != nil && now.Before(r.until) && from[r.Rule.index] {
		return r, nil
	}
	t, err := parse(string(token))
	if err != nil {
		return nil, err
	}
	err = UnknownIssuer
	for _, rule := range v.rules {
		if rule.Plan.Issuer != "" && rule.Plan.Issuer != t.issuer || !from[rule.index] {
			continue
		}
		if err = t.check(rule, now); err == nil {
			r := t.result(rule, now)
			v.remember(sum, r)
			return r, nil
		}
	}
	return nil, err
}

func (v *Verifier) recall(sum [sha256.Size]byte) *Result {
	v.mu.Lock()
	defer v.mu.Unlock()
	if r := v.young[sum]; r != nil {
		return r
	}
	r := v.old[sum]
	if r != nil {
		v.keep(sum, r)
	}
	return r
}

func (v *Verifier) remember(sum [sha256.Size]byte, r *Result) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.keep(sum, r)
}

// keep is called with mu held.
func (v *Verifier) keep(sum [sha256.Size]byte, r *Result) {
	if len(v.young) >= remembered {
		v.young, v.old = map[[sha256.Size]byte]*Result{}, v.young
	}
	v.young[sum] = r
}

// token is one that was parsed, and is not verified.
type token struct {
	signed    *jose.JSONWebSignature
	algorithm jose.SignatureAlgorithm
	kid       string
	payload   string
	claims    map[string]any
	issuer    string
	subject   string
	audiences []string
	expires   time.Time // zero: never
	begins    time.Time // zero: did
}

func parse(text string) (*token, error) {
	head, rest, ok := strings.Cut(text, ".")
	payload, signature, ok2 := strings.Cut(rest, ".")
	if !ok || !ok2 || strings.Contains(signature, ".") || len(text) > maxToken {
		return nil, BadFormat
	}
	b, err := base64.RawURLEncoding.DecodeString(head)
	if err != nil {
		return nil, BadHeaderBase64
	}
	var h struct {
		Algorithm string   `json:"alg"`
		Critical  []string `json:"crit"`
	}
	if json.Unmarshal(b, &h) != nil {
		return nil, BadHeaderJSON
	}
	t := &token{payload: payload}
	if !slices.Contains(algorithms, jose.SignatureAlgorithm(h.Algorithm)) || len(h.Critical) > 0 {
		return nil, BadAlgorithm
	}
	if b, err = base64.RawURLEncoding.DecodeString(payload); err != nil {
		return nil, BadPayloadBase64
	}
	if err := t.read(b); err != nil {
		return nil, err
	}
	if _, err := base64.RawURLEncoding.DecodeString(signature); err != nil {
		return nil, BadSignature
	}
	if t.signed, err = jose.ParseSignedCompact(text, algorithms); err != nil {
		return nil, VerificationFail
	}
	// What the one reads who verifies, should the two read differently.
	read := t.signed.Signatures[0].Protected
	t.algorithm, t.kid = jose.SignatureAlgorithm(read.Algorithm), read.KeyID
	return t, nil
}

// read reads the claims that decide.
func (t *token) read(payload []byte) error {
	if tooDeep(payload) {
		return BadPayloadJSON
	}
	d := json.NewDecoder(strings.NewReader(string(payload)))
	d.UseNumber()
	if d.Decode(&t.claims) != nil || t.claims == nil || d.More() {
		return BadPayloadJSON
	}
	var ok [5]bool
	t.issuer, ok[0] = optional[string](t.claims, "iss")
	t.subject, ok[1] = optional[string](t.claims, "sub")
	t.expires, ok[2] = moment(t.claims, "exp")
	t.begins, ok[3] = moment(t.claims, "nbf")
	switch aud := t.claims["aud"].(type) {
	case nil:
		ok[4] = true
	case string:
		t.audiences, ok[4] = []string{aud}, true
	case []any:
		ok[4] = true
		for _, a := range aud {
			s, text := a.(string)
			ok[4] = ok[4] && text
			t.audiences = append(t.audiences, s)
		}
	}
	if slices.Contains(ok[:], false) {
		return BadPayloadJSON
	}
	return nil
}

// tooDeep counts brackets outside of texts.
func tooDeep(b []byte) bool {
	depth, text := 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case text && c == '\\':
			i++
		case c == '"':
			text = !text
		case text:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return true
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return false
}

// optional reads a claim that need not be there, but must be of its type.
func optional[T any](claims map[string]any, name string) (v T, ok bool) {
	c, there := claims[name]
	if !there {
		return v, true
	}
	v, ok = c.(T)
	return v, ok
}

// moment reads seconds since 1970.
func moment(claims map[string]any, name string) (time.Time, bool) {
	n, ok := optional[json.Number](claims, name)
	if !ok || n == "" {
		return time.Time{}, ok
	}
	f, err := n.Float64()
	const most = 1 << 40 // in the year 36812
	if err != nil || f < 0 || f > most {
		return time.Time{}, false
	}
	return time.Unix(int64(f), 0), true
}

// check judges the token by one rule.
func (t *token) check(r *Rule, now time.Time) error {
	if !t.begins.IsZero() && now.Add(skew).Before(t.begins) {
		return NotYetValid
	}
	if !t.expires.IsZero() && now.After(t.expires.Add(skew)) {
		return Expired
	}
	if a := r.Plan.Audiences; len(a) > 0 && !slices.ContainsFunc(t.audiences, func(have string) bool {
		// A slash at the end, and the scheme, make no difference to Envoy.
		return slices.ContainsFunc(a, func(want string) bool { return audience(want) == audience(have) })
	}) {
		return WrongAudience
	}
	tried := 0
	for i := range r.keys {
		k := &r.keys[i]
		if t.kid != "" && k.KeyID != "" && k.KeyID != t.kid || !fits(k, t.algorithm) {
			continue
		}
		if tried++; tried > maxKeys {
			break
		}
		if _, err := t.signed.Verify(k.Key); err == nil {
			return nil
		}
	}
	if tried == 0 {
		return NoKey
	}
	return VerificationFail
}

func audience(s string) string {
	s = strings.TrimPrefix(strings.TrimPrefix(s, "https://"), "http://")
	return strings.TrimSuffix(s, "/")
}

// fits reports whether a key is for an algorithm.
func fits(k *jose.JSONWebKey, a jose.SignatureAlgorithm) bool {
	if k.Algorithm != "" && k.Algorithm != string(a) {
		return false
	}
	switch key := k.Key.(type) {
	case *rsa.PublicKey:
		return strings.HasPrefix(string(a), "RS") || strings.HasPrefix(string(a), "PS")
	case *ecdsa.PublicKey:
		return a == map[int]jose.SignatureAlgorithm{256: jose.ES256, 384: jose.ES384, 521: jose.ES512}[key.Curve.Params().BitSize]
	case ed25519.PublicKey:
		return a == jose.EdDSA
	}
	return false
}

// result gathers what the request is told, and the policies ask for.
func (t *token) result(r *Rule, now time.Time) *Result {
	out := &Result{Rule: r, Payload: t.payload, Token: &exchange.Token{Claims: map[string][]string{}}, until: now.Add(time.Hour)}
	if end := t.expires.Add(skew); !t.expires.IsZero() && end.Before(out.until) {
		out.until = end
	}
	if t.issuer != "" && t.subject != "" {
		out.Token.Principal = t.issuer + "/" + t.subject
	}
	split := append([]string{"scope", "permission"}, r.Plan.SpaceDelimited...)
	flatten(out.Token.Claims, "", t.claims, split)
	for _, c := range r.Plan.ClaimHeaders {
		out.Headers = append(out.Headers, scalar(t.claims, c.Claim))
	}
	return out
}

// flatten puts the texts of claims under the names that lead to them.
func flatten(out map[string][]string, at string, claims map[string]any, split []string) {
	for name, v := range claims {
		key := name
		if at != "" {
			key = at + "\x00" + name
		}
		switch v := v.(type) {
		case string:
			out[key] = []string{v}
			if slices.Contains(split, strings.ReplaceAll(key, "\x00", ".")) {
				out[key] = strings.Fields(v)
			}
		case []any:
			for _, e := range v {
				if s, ok := e.(string); ok {
					out[key] = append(out[key], s)
				}
			}
		case map[string]any:
			flatten(out, key, v, split)
		}
	}
}

// scalar returns a claim as the value of a header, "" if it can be none: a text, a
// number or a truth value. The name as it stands comes before one read as a path.
func scalar(claims map[string]any, name string) string {
	v, ok := claims[name]
	if !ok {
		first, rest, nested := strings.Cut(name, ".")
		if sub, is := claims[first].(map[string]any); nested && is {
			return scalar(sub, rest)
		}
		return ""
	}
	switch v := v.(type) {
	case string:
		if strings.ContainsFunc(v, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }) {
			return "" // it would be more than a value
		}
		return v
	case json.Number:
		return v.String()
	case bool:
		return strconv.FormatBool(v)
	}
	return ""
}
