package validate

import (
	"encoding/json"
	"fmt"
	"net/url"

	securityv1beta1 "istio.io/api/security/v1beta1"
)

func (c *checker) requestAuthentication(r *securityv1beta1.RequestAuthentication) {
	c.targets(r.Selector, r.TargetRef, r.TargetRefs)
	for i, j := range r.JwtRules {
		c.jwtRule(at("spec.jwtRules", i), j)
	}
}

func (c *checker) jwtRule(path string, j *securityv1beta1.JWTRule) {
	if j.Issuer == "" {
		c.err(path+".issuer", "missing", "the iss claim that tokens must have")
	}
	if j.JwksUri != "" && j.Jwks != "" {
		c.err(path+".jwks", "jwks and jwksUri exclude each other", "keep one of them")
	}
	if j.JwksUri != "" {
		u, err := url.Parse(j.JwksUri)
		switch {
		case err != nil:
			c.err(path+".jwksUri", err.Error(), "")
		case u.Scheme != "http" && u.Scheme != "https":
			c.err(path+".jwksUri", fmt.Sprintf("%q is no HTTP URL", j.JwksUri), "write https://HOST/PATH")
		}
	}
	c.keySet(path+".jwks", j.Jwks)
	for i, h := range j.FromHeaders {
		if h.Name == "" {
			c.err(at(path+".fromHeaders", i)+".name", "missing", "")
		}
	}
	c.noEmpty(path, []named{{"audiences", j.Audiences}, {"fromParams", j.FromParams}, {"fromCookies", j.FromCookies},
		{"spaceDelimitedClaims", j.SpaceDelimitedClaims}})
	for i, o := range j.OutputClaimToHeaders {
		field := at(path+".outputClaimToHeaders", i)
		if o.Claim == "" {
			c.err(field+".claim", "missing", "")
		}
		if o.Header == "" {
			c.err(field+".header", "missing", "")
		} else {
			c.headerName(field+".header", o.Header)
		}
	}
	c.duration(path+".timeout", j.Timeout)
}

// keySet checks that a JSON Web Key Set can be read; a single key stands for a
// set of one. Source: RFC 7517.
func (c *checker) keySet(path, text string) {
	if text == "" {
		return
	}
	type webKey struct {
		Type string `json:"kty"`
	}
	var set struct {
		webKey
		Keys []webKey `json:"keys"`
	}
	const hint = `a key set is {"keys": [...]} (RFC 7517)`
	if err := json.Unmarshal([]byte(text), &set); err != nil {
		c.err(path, "not JSON: "+err.Error(), hint)
		return
	}
	if set.Type == "" && set.Keys == nil {
		c.err(path, "neither a key nor a set of keys", hint)
	}
	for i, k := range set.Keys {
		if k.Type == "" {
			c.err(path, fmt.Sprintf("keys[%d] has no kty", i), hint)
		}
	}
}
