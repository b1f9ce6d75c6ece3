package decode

import (
	"slices"

	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// jwtAuthn reads Istio's use of the filter: every provider is asked on every path,
// and a request without a token passes. Anything stricter, or looser, is refused.
func (r *reader) jwtAuthn(path string, m *jwtv3.JwtAuthentication) []*plan.JWT {
	r.only(path, m, "providers", "rules", "bypass_cors_preflight", "strip_failure_response")
	if m.GetBypassCorsPreflight() || m.GetStripFailureResponse() {
		r.fail(path, "lets preflights by, or hides the reason")
	}
	var names []string
	missing := false
	var collect func(path string, q *jwtv3.JwtRequirement, depth int)
	collect = func(path string, q *jwtv3.JwtRequirement, depth int) {
		list := append(q.GetRequiresAny().GetRequirements(), q.GetRequiresAll().GetRequirements()...)
		switch {
		case q.GetProviderName() != "":
			if !slices.Contains(names, q.GetProviderName()) {
				names = append(names, q.GetProviderName())
			}
		case q.GetAllowMissing() != nil:
			missing = true
		case len(list) > 0 && depth < 3:
			for i, sub := range list {
				collect(index(path, "requirements", i), sub, depth+1)
			}
		default:
			r.fail(path, "is no list of providers with allow_missing")
		}
	}
	for i, rule := range m.GetRules() {
		at := index(path, "rules", i)
		r.only(at, rule, "match", "requires")
		if match := rule.GetMatch(); match.GetPrefix() != "/" || len(match.GetHeaders()) > 0 || len(match.GetQueryParameters()) > 0 {
			r.fail(join(at, "match"), "is not the prefix /")
		}
		collect(join(at, "requires"), rule.GetRequires(), 0)
	}
	if len(m.GetProviders()) > 0 && !missing {
		r.fail(join(path, "rules"), "do not let requests without a token pass")
	}
	if len(m.GetRules()) > 1 || len(names) != len(m.GetProviders()) {
		r.fail(join(path, "rules"), "are several, or do not name all providers")
	}
	var out []*plan.JWT
	for _, name := range names {
		p, at := m.GetProviders()[name], path+".providers["+name+"]"
		if p == nil {
			r.fail(at, "is missing")
			continue
		}
		out = append(out, r.jwtProvider(at, p))
	}
	return out
}

func (r *reader) jwtProvider(path string, p *jwtv3.JwtProvider) *plan.JWT {
	r.only(path, p, "issuer", "audiences", "forward", "from_headers", "from_params", "from_cookies", "forward_payload_header",
		"payload_in_metadata", "local_jwks", "claim_to_headers", "normalize_payload_in_metadata",
		"jwt_cache_config") // the proxy remembers tokens anyway
	j := &plan.JWT{
		Issuer: p.GetIssuer(), Audiences: p.GetAudiences(), Forward: p.GetForward(), PayloadHeader: p.GetForwardPayloadHeader(),
		Params: p.GetFromParams(), Cookies: p.GetFromCookies(), Keys: p.GetLocalJwks().GetInlineString(),
	}
	if j.Keys == "" {
		r.fail(join(path, "local_jwks"), "has no keys inline")
	}
	for _, h := range p.GetFromHeaders() {
		j.Headers = append(j.Headers, plan.JWTHeader{Name: h.GetName(), Prefix: h.GetValuePrefix()})
	}
	for _, c := range p.GetClaimToHeaders() {
		j.ClaimHeaders = append(j.ClaimHeaders, plan.ClaimHeader{Header: c.GetHeaderName(), Claim: c.GetClaimName()})
	}
	for _, c := range p.GetNormalizePayloadInMetadata().GetSpaceDelimitedClaims() {
		if c != "scope" && c != "permission" { // they always are
			j.SpaceDelimited = append(j.SpaceDelimited, c)
		}
	}
	return j
}
