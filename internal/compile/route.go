package compile

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/plan"
)

// routes translates the HTTP rules of a VirtualService that apply to the
// listener. Rules behind one that takes everything can never match and are left
// out.
func (r rules) routes(v *model.VirtualService) []*plan.Route {
	var out []*plan.Route
	for _, in := range v.Spec.Http {
		if len(in.Match) == 0 {
			if route := r.route(v, in, nil); route != nil {
				return append(out, route)
			}
			continue
		}
		for _, m := range in.Match {
			if !r.applies(v, m.Gateways, m.Port, m.SourceLabels, m.SourceNamespace) {
				continue
			}
			route := r.route(v, in, m)
			if route == nil {
				continue
			}
			out = append(out, route)
			if matchesAll(&route.Match) {
				return out
			}
		}
	}
	return out
}

// route translates one rule with one of its matches; nil means any request. It
// returns nil for a rule that does nothing that a plan can hold.
func (r rules) route(v *model.VirtualService, in *networking.HTTPRoute, m *networking.HTTPMatchRequest) *plan.Route {
	out := &plan.Route{
		Name:   in.Name,
		Match:  routeMatch(m),
		Origin: origin("virtual-service", v.Meta),
	}
	if m.GetName() != "" {
		out.Name = in.Name + "." + m.Name
	}
	out.StatPrefix = m.GetStatPrefix()
	var authority string
	out.Headers, authority = headers(in.Headers)
	out.CORS = cors(in.CorsPolicy)
	out.Fault = fault(in.Fault)
	switch {
	case in.Redirect != nil:
		out.Redirect = r.redirect(in.Redirect)
		return out
	case in.DirectResponse != nil:
		out.Direct = &plan.DirectResponse{Status: in.DirectResponse.Status}
		switch b := in.DirectResponse.Body.GetSpecifier().(type) {
		case *networking.HTTPBody_String_:
			out.Direct.Body = b.String_
		case *networking.HTTPBody_Bytes:
			out.Direct.Body = string(b.Bytes)
		}
		return out
	}
	out.Clusters = r.httpSplit(v, in.Route)
	if len(out.Clusters) == 0 {
		return nil
	}
	if in.Timeout != nil {
		out.Timeout = in.Timeout.AsDuration()
	}
	out.Hash = r.hash(v, in.Route)
	out.Retry = r.scope.retry(in.Retries, len(out.Hash) > 0)
	if re := in.Rewrite.GetUriRegexRewrite(); re != nil {
		out.RegexRewrite = &plan.RegexRewrite{Pattern: re.Match, Substitution: re.Rewrite}
	} else {
		out.PrefixRewrite = in.Rewrite.GetUri()
	}
	out.HostRewrite = cmp.Or(in.Rewrite.GetAuthority(), authority)
	if len(out.Clusters) == 1 && out.Clusters[0].Weight == 0 {
		// What a whole route's only destination changes, the route changes.
		only := &out.Clusters[0]
		out.Headers = joinHeaders(out.Headers, only.Headers)
		out.HostRewrite = cmp.Or(out.HostRewrite, only.HostRewrite)
		only.Headers, only.HostRewrite = nil, ""
	}
	out.Mirrors = r.mirrors(v, in)
	first := in.Route[0].Destination
	_, d, p := r.destination(v, first)
	out.Decorator = decorator(d, p, out.Clusters[0].Cluster)
	return out
}

// decorator names the operation after the first destination.
func decorator(d *destination, p *model.Port, cluster string) string {
	if d != nil && p != nil {
		return string(d.Host) + ":" + strconv.Itoa(int(p.Number)) + "/*"
	}
	parts := strings.Split(cluster, "|")
	return parts[3] + ":" + parts[1] + "/*"
}

func (r rules) redirect(in *networking.HTTPRedirect) *plan.Redirect {
	out := &plan.Redirect{
		Scheme:        in.Scheme,
		Host:          in.Authority,
		Path:          in.Uri,
		PrefixRewrite: in.PrefixRewrite,
		Status:        in.RedirectCode,
	}
	if out.Status == 0 {
		out.Status = 301
	}
	switch p := in.RedirectPort.(type) {
	case *networking.HTTPRedirect_Port:
		out.Port = p.Port
	case *networking.HTTPRedirect_DerivePort:
		if p.DerivePort == networking.HTTPRedirect_FROM_REQUEST_PORT {
			out.Port = uint32(r.port)
		}
	}
	// A port that goes without saying is not said.
	if out.Scheme == "http" && out.Port == 80 || out.Scheme == "https" && out.Port == 443 {
		out.Port = 0
	}
	return out
}

// defaultRetry is what a route without a policy of its own does.
// Source: Istio, DefaultPolicy: a 503 that the server itself answered is final.
func defaultRetry() *plan.Retry {
	return &plan.Retry{
		On:         []string{"connect-failure", "refused-stream", "unavailable", "cancelled", "retriable-status-codes"},
		Attempts:   2,
		HostReopen: hostReopen,
	}
}

// hostReopen is how often another host than those tried is looked for.
const hostReopen = 5

// retry translates a policy; without one, the mesh's default counts. Zero
// attempts turn retries off.
//
// sticky says that requests have an endpoint of their own: then a retry goes to
// the same one unless the policy wants otherwise.
func (s *scope) retry(in *networking.HTTPRetry, sticky bool) *plan.Retry {
	out := defaultRetry()
	if sticky {
		out.HostReopen = 0
	}
	if in == nil {
		in = s.mesh.DefaultRetry
	}
	if in == nil {
		return out
	}
	if in.Attempts <= 0 {
		return nil
	}
	out.Remote = in.RetryRemoteLocalities.GetValue()
	if b := in.Backoff; b != nil {
		out.Backoff = b.AsDuration()
	}
	out.Attempts = uint32(in.Attempts)
	if in.PerTryTimeout != nil {
		out.PerTry = in.PerTryTimeout.AsDuration()
	}
	if ignore := in.RetryIgnorePreviousHosts; ignore != nil {
		out.HostReopen = 0
		if ignore.Value {
			out.HostReopen = hostReopen
		}
	}
	if in.RetryOn != "" {
		out.On = nil
		for _, word := range strings.Split(in.RetryOn, ",") {
			word = strings.TrimSpace(word)
			if code, err := strconv.ParseUint(word, 10, 32); err == nil {
				out.Codes = append(out.Codes, uint32(code))
			} else if word != "" {
				out.On = append(out.On, word)
			}
		}
		if len(out.Codes) > 0 && !slices.Contains(out.On, "retriable-status-codes") {
			out.On = append(out.On, "retriable-status-codes")
		}
	}
	return out
}

// routeMatch translates the conditions that are about the request.
func routeMatch(in *networking.HTTPMatchRequest) plan.RouteMatch {
	out := plan.RouteMatch{Path: plan.PathMatch{Kind: plan.PathPrefix, Value: "/"}}
	if in == nil {
		return out
	}
	switch u := in.Uri.GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		out.Path = plan.PathMatch{Kind: plan.PathExact, Value: u.Exact}
	case *networking.StringMatch_Prefix:
		out.Path = plan.PathMatch{Kind: plan.PathPrefix, Value: u.Prefix}
	case *networking.StringMatch_Regex:
		out.Path = plan.PathMatch{Kind: plan.PathRegex, Value: u.Regex}
	}
	out.IgnoreCase = in.IgnoreUriCase && out.Path.Kind != plan.PathRegex
	for _, part := range []struct {
		name string
		m    *networking.StringMatch
	}{{":method", in.Method}, {":authority", in.Authority}, {":scheme", in.Scheme}} {
		if part.m != nil {
			out.Headers = append(out.Headers, headerMatch(part.name, part.m))
		}
	}
	for _, name := range headerNames(in.Headers) {
		if path, ok := claimPath(name); ok {
			kind, value := stringMatch(in.Headers[name])
			out.Claims = append(out.Claims, plan.ClaimMatch{Path: path, Kind: kind, Value: value})
			continue
		}
		out.Headers = append(out.Headers, headerMatch(name, in.Headers[name]))
	}
	for _, name := range headerNames(in.WithoutHeaders) {
		if path, ok := claimPath(name); ok {
			kind, value := stringMatch(in.WithoutHeaders[name])
			out.Claims = append(out.Claims, plan.ClaimMatch{Path: path, Kind: kind, Value: value, Invert: true})
			continue
		}
		h := headerMatch(name, in.WithoutHeaders[name])
		h.Invert = true
		// A request without the header does not have the unwanted value.
		h.MissingIsEmpty = h.Kind != plan.StringPresent
		out.Headers = append(out.Headers, h)
	}
	for _, name := range slices.Sorted(maps.Keys(in.QueryParams)) {
		kind, value := stringMatch(in.QueryParams[name])
		out.Query = append(out.Query, plan.QueryMatch{Name: name, Kind: kind, Value: value})
	}
	return out
}

// headerNames returns the headers that conditions are about, sorted. Those that
// have fields of their own may not be named here, and are left out.
func headerNames(m map[string]*networking.StringMatch) []string {
	names := slices.Sorted(maps.Keys(m))
	return slices.DeleteFunc(names, func(n string) bool {
		return n == "uri" || n == "scheme" || n == "method" || n == "authority"
	})
}

// claimPath reads a header name that stands for a claim of the request's token:
// "@request.auth.claims.a.b", or "@request.auth.claims[a][b]" where names have dots.
func claimPath(name string) (string, bool) {
	const prefix = "@request.auth.claims"
	if len(name) <= len(prefix) || !strings.EqualFold(name[:len(prefix)], prefix) {
		return "", false
	}
	name = prefix + name[len(prefix):] // case matters from here on
	if path, ok := bracketed(name, prefix); ok {
		return strings.Join(path, "\x00"), true
	}
	path, ok := strings.CutPrefix(name, prefix+".")
	return strings.ReplaceAll(path, ".", "\x00"), ok && path != ""
}

func headerMatch(name string, m *networking.StringMatch) plan.HeaderMatch {
	kind, value := stringMatch(m)
	return plan.HeaderMatch{Name: strings.ToLower(name), Kind: kind, Value: value}
}

// stringMatch translates a comparison. An empty one asks for presence, and so
// does the regular expression "*", which would be invalid otherwise.
func stringMatch(m *networking.StringMatch) (plan.StringKind, string) {
	switch v := m.GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		return plan.StringExact, v.Exact
	case *networking.StringMatch_Prefix:
		return plan.StringPrefix, v.Prefix
	case *networking.StringMatch_Regex:
		if v.Regex != "*" {
			return plan.StringRegex, v.Regex
		}
	}
	return plan.StringPresent, ""
}

// matchesAll reports whether a match holds for every request.
func matchesAll(m *plan.RouteMatch) bool {
	if len(m.Headers) > 0 || len(m.Query) > 0 || len(m.Claims) > 0 {
		return false
	}
	switch m.Path.Kind {
	case plan.PathPrefix, plan.PathSegmentPrefix:
		return m.Path.Value == "/"
	case plan.PathRegex:
		return m.Path.Value == ".*" || m.Path.Value == "/.*"
	}
	return false
}
