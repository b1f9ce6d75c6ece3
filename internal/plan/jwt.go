package plan

import (
	"strings"
)

// JWT says whose tokens are accepted, where they stand and what becomes of them.
type JWT struct {
	Issuer    string   // "" accepts any that the keys sign for
	Audiences []string // a token needs one of them; none: any
	// Keys is a JSON Web Key Set. One without keys accepts no token: it stands for
	// keys that could not be had.
	Keys string
	// Headers, Params and Cookies are where a token may stand. If all are empty it
	// is "authorization: Bearer TOKEN" and the parameter "access_token".
	Headers []JWTHeader
	Params  []string
	Cookies []string
	// Forward leaves the token in the request.
	Forward bool
	// PayloadHeader is sent the token's payload, as it stood in the token.
	PayloadHeader string
	ClaimHeaders  []ClaimHeader
	// SpaceDelimited are claims whose text is a list.
	SpaceDelimited []string
}

// JWTHeader is a header with a token behind a prefix.
type JWTHeader struct{ Name, Prefix string }

// ClaimHeader is a header that is sent a claim; names of nested claims are joined
// by dots.
type ClaimHeader struct{ Header, Claim string }

// String returns the rule in one line, without its keys.
func (j *JWT) String() string {
	w := words{"jwt", j.Issuer}
	w.addIf(len(j.Audiences) > 0, "aud=%s", strings.Join(j.Audiences, ","))
	for _, h := range j.Headers {
		w.add("header=%s:%s", h.Name, strings.TrimSpace(h.Prefix))
	}
	w.addIf(len(j.Params) > 0, "param=%s", strings.Join(j.Params, ","))
	w.addIf(len(j.Cookies) > 0, "cookie=%s", strings.Join(j.Cookies, ","))
	w.addIf(j.Forward, "forward")
	w.addIf(j.PayloadHeader != "", "payload=%s", j.PayloadHeader)
	for _, c := range j.ClaimHeaders {
		w.add("%s=%s", c.Header, c.Claim)
	}
	w.addIf(len(j.SpaceDelimited) > 0, "split=%s", strings.Join(j.SpaceDelimited, ","))
	w.addIf(j.Keys == NoKeys, "no-keys")
	return w.String()
}

// NoKeys is a key set by which no token can be checked.
const NoKeys = `{"keys":[]}`
