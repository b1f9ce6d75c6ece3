package compile

import (
	"strings"

	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/plan"
)

// tokens returns whose tokens are accepted. Keys that could not be had accept none:
// a request with a token is refused then, and not taken for one without.
func (a access) tokens() []*plan.JWT {
	var out []*plan.JWT
	for _, r := range a.requests {
		for _, in := range r.Spec.JwtRules {
			if in == nil {
				continue
			}
			j := &plan.JWT{
				Issuer:         in.Issuer,
				Audiences:      in.Audiences,
				Keys:           in.Jwks,
				Params:         in.FromParams,
				Cookies:        in.FromCookies,
				Forward:        in.ForwardOriginalToken,
				PayloadHeader:  strings.ToLower(in.OutputPayloadToHeader),
				SpaceDelimited: in.SpaceDelimitedClaims,
			}
			if j.Keys == "" {
				j.Keys = a.keys[model.KeySource(in)]
			}
			if j.Keys == "" {
				j.Keys = plan.NoKeys
			}
			for _, h := range in.FromHeaders {
				j.Headers = append(j.Headers, plan.JWTHeader{Name: strings.ToLower(h.Name), Prefix: h.Prefix})
			}
			for _, c := range in.OutputClaimToHeaders {
				j.ClaimHeaders = append(j.ClaimHeaders, plan.ClaimHeader{Header: strings.ToLower(c.Header), Claim: c.Claim})
			}
			out = append(out, j)
		}
	}
	return out
}
