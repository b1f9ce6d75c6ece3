package validate

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
)

// meshGateway is the word for all sidecars in a list of gateways.
const meshGateway = "mesh"

// claimPrefix begins header names that stand for claims of a verified token.
const claimPrefix = "@request.auth.claims"

func (c *checker) virtualService(vs *networkingv1alpha3.VirtualService) {
	gatewayRoute := semantics(c.o, routeSemantics)
	delegate := len(vs.Hosts) == 0
	if delegate {
		const hint = "a VirtualService without hosts is a delegate, and only has http routes"
		if len(vs.Gateways) > 0 {
			c.err("spec.gateways", "a delegate has no gateways", hint)
		}
		if len(vs.Tls) > 0 {
			c.err("spec.tls", "a delegate has no tls routes", hint)
		}
		if len(vs.Tcp) > 0 {
			c.err("spec.tcp", "a delegate has no tcp routes", hint)
		}
	}
	c.gatewayNames("spec.gateways", vs.Gateways, gatewayRoute)
	onGateway := boundToGateway(vs)
	c.hosts(vs, onGateway)
	if len(vs.Http)+len(vs.Tls)+len(vs.Tcp) == 0 {
		c.err("spec", "no routes", "give http, tls or tcp")
	}
	for i, r := range vs.Http {
		c.httpRoute(at("spec.http", i), r, delegate, gatewayRoute)
		if !onGateway {
			c.noClaims(at("spec.http", i), r)
		}
	}
	for i, r := range vs.Tls {
		c.tlsRoute(at("spec.tls", i), r, vs, onGateway, gatewayRoute)
	}
	for i, r := range vs.Tcp {
		c.tcpRoute(at("spec.tcp", i), r, gatewayRoute)
	}
	c.exportTo(vs.ExportTo, false, false)
	c.unreachable(vs)
}

// boundToGateway reports whether no sidecar takes the routes.
func boundToGateway(vs *networkingv1alpha3.VirtualService) bool {
	return len(vs.Gateways) > 0 && !slices.Contains(vs.Gateways, meshGateway)
}

func (c *checker) hosts(vs *networkingv1alpha3.VirtualService, onGateway bool) {
	sni := slices.ContainsFunc(vs.Tls, func(r *networkingv1alpha3.TLSRoute) bool {
		return slices.ContainsFunc(r.Match, func(m *networkingv1alpha3.TLSMatchAttributes) bool { return len(m.SniHosts) > 0 })
	})
	good := true
	for i, h := range vs.Hosts {
		field := at("spec.hosts", i)
		switch problem := routedHost(h, onGateway && sni); {
		case isIP(h):
		case problem != "":
			c.err(field, problem, hostHint+`; "*" may stand as the first label`)
			good = false
		case h == "*" && !onGateway:
			c.err(field, `"*" would catch all traffic of the mesh`, "name a host, or bind the routes to a gateway")
			good = false
		}
	}
	if !good {
		return
	}
	for i, a := range vs.Hosts {
		for _, b := range vs.Hosts[:i] {
			if overlap(a, b) {
				c.err(at("spec.hosts", i), fmt.Sprintf("%s and %s overlap", b, a), "keep the wider one, or make two objects")
			}
		}
	}
}

// routedHost is hostProblem for hosts and SNI of routes. Behind a gateway there
// are also the names that gateways give each other, "outbound_.80_.v1_.host".
func routedHost(host string, generated bool) string {
	if rest, ok := strings.CutPrefix(host, "outbound_."); ok && generated {
		if rest == "" || rest[0] < '0' || rest[0] > '8' {
			return fmt.Sprintf("%q is no host: a port follows outbound_", host)
		}
		if len(host) > maxHost {
			return hostProblem(host, true)
		}
		return ""
	}
	return hostProblem(host, true)
}

func (c *checker) gatewayNames(path string, names []string, gatewayRoute bool) {
	for i, n := range names {
		field := at(path, i)
		ns, name, ok := strings.Cut(n, "/")
		if !ok {
			if parts := strings.Split(n, "."); len(parts) > 1 {
				c.warn(field, "an old way to name a gateway", fmt.Sprintf("write %s/%s", parts[1], parts[0]))
			}
			c.fqdn(field, n)
			continue
		}
		if !isLabel(ns) {
			c.err(field, fmt.Sprintf("%q is no namespace", ns), "a gateway is named NAME or NAMESPACE/NAME")
		}
		if !isLabel(name) && (!gatewayRoute || name == "") {
			c.err(field, fmt.Sprintf("%q is no gateway name", name), "a gateway is named NAME or NAMESPACE/NAME")
		}
	}
}

// noClaims refuses matches on token claims, which only gateways verify.
func (c *checker) noClaims(path string, r *networkingv1alpha3.HTTPRoute) {
	for i, m := range r.Match {
		for field, headers := range map[string]map[string]*networkingv1alpha3.StringMatch{"headers": m.Headers, "withoutHeaders": m.WithoutHeaders} {
			for _, h := range slices.Sorted(maps.Keys(headers)) {
				if isClaim(h) {
					c.err(key(at(path+".match", i)+"."+field, h), "claims of a token are matched at gateways only", "bind the routes to a gateway")
				}
			}
		}
	}
}

// isClaim reports whether a header name stands for a claim: "@request.auth.claims.sub"
// or "@request.auth.claims[sub]".
func isClaim(header string) bool {
	rest, ok := strings.CutPrefix(strings.ToLower(header), claimPrefix)
	switch {
	case !ok || len(rest) < 2:
		return false
	case rest[0] == '.':
		return true
	}
	return rest[0] == '[' && rest[len(rest)-1] == ']' && len(rest) > 2
}

func (c *checker) httpRoute(path string, r *networkingv1alpha3.HTTPRoute, delegate, gatewayRoute bool) {
	c.httpAction(path, r, delegate)
	for i, m := range r.Match {
		c.httpMatch(at(path+".match", i), m)
	}
	c.headerOperations(path+".headers", r.Headers)
	c.cors(path+".corsPolicy", r.CorsPolicy)
	c.faultInjection(path+".fault", r.Fault)
	if r.MirrorPercent != nil { // deprecated, and still taken
		c.warn(path+".mirrorPercent", "deprecated", "use mirrorPercentage")
		if v := r.MirrorPercent.Value; v > 100 { // as above
			c.err(path+".mirrorPercent", fmt.Sprintf("%d is no percentage", v), "it goes from 0 to 100")
		}
	}
	c.mirrorPercentage(path+".mirrorPercentage", r.MirrorPercentage)
	if r.Mirror != nil {
		c.destination(path+".mirror", r.Mirror)
	}
	for i, m := range r.Mirrors {
		field := at(path+".mirrors", i)
		if m.Destination == nil {
			c.err(field+".destination", "missing", "")
			continue
		}
		c.destination(field+".destination", m.Destination)
		c.mirrorPercentage(field+".percentage", m.Percentage)
	}
	c.redirect(path+".redirect", r.Redirect)
	c.directResponse(path+".directResponse", r.DirectResponse)
	c.retries(path+".retries", r.Retries)
	c.rewrite(path+".rewrite", r.Rewrite)
	c.oneAuthority(path, r)
	var total int64
	for i, d := range r.Route {
		field := at(path+".route", i)
		c.headerOperations(field+".headers", d.Headers)
		total += c.weighted(field, d.Destination, d.Weight, gatewayRoute)
	}
	c.total(path+".route", len(r.Route), total)
	c.duration(path+".timeout", r.Timeout)
}

// httpAction checks that a route does one thing.
func (c *checker) httpAction(path string, r *networkingv1alpha3.HTTPRoute, delegate bool) {
	exclude := func(first, second string, both bool) {
		if both {
			c.err(path+"."+second, fmt.Sprintf("%s and %s exclude each other", first, second), "keep one of them")
		}
	}
	if r.Delegate != nil && !delegate {
		exclude("delegate", "redirect", r.Redirect != nil)
		exclude("delegate", "route", len(r.Route) > 0)
		return
	}
	if r.Delegate != nil {
		c.err(path+".delegate", "a delegate cannot delegate", "")
	}
	switch {
	case r.Redirect != nil:
		exclude("redirect", "route", len(r.Route) > 0)
		exclude("redirect", "fault", r.Fault != nil)
		exclude("redirect", "rewrite", r.Rewrite != nil)
		exclude("redirect", "directResponse", r.DirectResponse != nil)
	case r.DirectResponse != nil:
		exclude("directResponse", "route", len(r.Route) > 0)
		exclude("directResponse", "fault", r.Fault != nil)
		exclude("directResponse", "rewrite", r.Rewrite != nil)
	case len(r.Route) == 0:
		c.err(path, "the route goes nowhere", "give route, redirect or directResponse")
	}
	exclude("mirror", "mirrors", r.Mirror != nil && len(r.Mirrors) > 0)
}

func (c *checker) httpMatch(path string, m *networkingv1alpha3.HTTPMatchRequest) {
	for _, h := range slices.Sorted(maps.Keys(m.Headers)) {
		field := key(path+".headers", h)
		if !isClaim(h) {
			c.headerName(field, h)
		}
		c.stringMatch(field, m.Headers[h])
	}
	for _, h := range slices.Sorted(maps.Keys(m.WithoutHeaders)) {
		field := key(path+".withoutHeaders", h)
		if !isClaim(h) {
			c.headerName(field, h)
		}
		if m.WithoutHeaders[h].GetRegex() != "*" { // stands for presence
			c.stringMatch(field, m.WithoutHeaders[h])
		}
	}
	// An empty prefix is right for a path, where it matches all.
	if re, ok := m.Uri.GetMatchType().(*networkingv1alpha3.StringMatch_Regex); ok {
		c.regex(path+".uri.regex", re.Regex)
	}
	c.stringMatch(path+".scheme", m.Scheme)
	c.stringMatch(path+".method", m.Method)
	c.stringMatch(path+".authority", m.Authority)
	for _, q := range slices.Sorted(maps.Keys(m.QueryParams)) {
		c.stringMatch(key(path+".queryParams", q), m.QueryParams[q])
	}
	if m.Port != 0 {
		c.port(path+".port", m.Port)
	}
	c.labels(path+".sourceLabels", m.SourceLabels)
	c.gatewayNames(path+".gateways", m.Gateways, false)
	if m.SourceNamespace != "" && !isLabel(m.SourceNamespace) {
		c.err(path+".sourceNamespace", fmt.Sprintf("%q is no namespace", m.SourceNamespace), "")
	}
}

func (c *checker) stringMatch(path string, m *networkingv1alpha3.StringMatch) {
	switch t := m.GetMatchType().(type) {
	case *networkingv1alpha3.StringMatch_Prefix:
		if t.Prefix == "" {
			c.err(path+".prefix", "empty prefix", "write {} to ask for presence")
		}
	case *networkingv1alpha3.StringMatch_Regex:
		c.regex(path+".regex", t.Regex)
	}
}

func (c *checker) headerOperations(path string, h *networkingv1alpha3.Headers) {
	for side, ops := range map[string]*networkingv1alpha3.Headers_HeaderOperations{"request": h.GetRequest(), "response": h.GetResponse()} {
		for verb, values := range map[string]map[string]string{"add": ops.GetAdd(), "set": ops.GetSet()} {
			for _, name := range slices.Sorted(maps.Keys(values)) {
				field := key(path+"."+side+"."+verb, name)
				c.editedHeader(field, name, side == "request")
				c.headerValue(field, values[name])
			}
		}
		for i, name := range ops.GetRemove() {
			c.editedHeader(at(path+"."+side+".remove", i), name, false)
		}
	}
}

// editedHeader checks the name of a header that is changed. The authority can
// be rewritten on the way to the upstream, and nowhere else.
func (c *checker) editedHeader(path, name string, authority bool) {
	switch {
	case name == "":
		c.err(path, "empty header name", "")
	case authority && isAuthority(name):
	case strings.EqualFold(name, "host"):
		c.err(path, "the Host header cannot be changed here", "set it in headers.request, or use rewrite.authority")
	case strings.HasPrefix(name, ":"):
		c.err(path, fmt.Sprintf("%q is no header but a part of the request line", name), "")
	case slices.Contains(framing, strings.ToLower(name)):
		c.warn(path, fmt.Sprintf("%q says where a message ends, and stays as it is", name), "")
	}
}

// framing are headers that proxies keep to themselves.
var framing = []string{"content-length", "transfer-encoding", "connection"}

func isAuthority(header string) bool {
	return strings.EqualFold(header, ":authority") || strings.EqualFold(header, "host")
}

// oneAuthority checks that the authority is rewritten in one place.
func (c *checker) oneAuthority(path string, r *networkingv1alpha3.HTTPRoute) {
	set := r.Rewrite.GetAuthority() != ""
	for verb, values := range map[string]map[string]string{"set": r.Headers.GetRequest().GetSet(), "add": r.Headers.GetRequest().GetAdd()} {
		for _, name := range slices.Sorted(maps.Keys(values)) {
			if !isAuthority(name) {
				continue
			}
			if set {
				c.err(key(path+".headers.request."+verb, name), "the authority is set twice", "keep one place")
			}
			set = set || values[name] != ""
		}
	}
}

func (c *checker) mirrorPercentage(path string, p *networkingv1alpha3.Percent) {
	if v := p.GetValue(); v < 0 || v > 100 {
		c.err(path+".value", fmt.Sprintf("%v is no percentage", v), "it goes from 0 to 100")
	}
}

// weighted checks one share of a split and returns its weight.
func (c *checker) weighted(path string, d *networkingv1alpha3.Destination, weight int32, gatewayRoute bool) int64 {
	switch {
	case d == nil:
		c.err(path+".destination", "missing", "a share of traffic needs a destination")
	case !gatewayRoute:
		c.destination(path+".destination", d)
	}
	if weight < 0 {
		c.err(path+".weight", fmt.Sprintf("%d is negative", weight), "weights are relative; 0 gets no traffic")
	}
	return int64(weight)
}

func (c *checker) total(path string, shares int, total int64) {
	if shares > 1 && total == 0 {
		c.err(path, "all weights are 0, so that no destination gets traffic", "give at least one a weight")
	}
}

func (c *checker) destination(path string, d *networkingv1alpha3.Destination) {
	if d.Host == "*" {
		c.err(path+".host", `"*" is no destination`, "name a service")
	} else {
		c.wildcardHost(path+".host", d.Host)
	}
	if d.Subset != "" {
		c.subsetName(path+".subset", d.Subset)
	}
	if d.Port != nil {
		c.port(path+".port.number", d.Port.Number)
	}
}

func (c *checker) subsetName(path, name string) {
	if !isLabel(name) {
		c.err(path, fmt.Sprintf("%q is no name of a subset", name), "a name is letters, digits and inner hyphens")
	}
}

var corsMethods = []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch,
	http.MethodDelete, http.MethodConnect, http.MethodOptions, http.MethodTrace}

func (c *checker) cors(path string, p *networkingv1alpha3.CorsPolicy) {
	if p == nil {
		return
	}
	for i, o := range p.AllowOrigins {
		field := at(path+".allowOrigins", i)
		switch t := o.MatchType.(type) {
		case *networkingv1alpha3.StringMatch_Regex:
			c.regex(field+".regex", t.Regex)
		default:
			if o.GetExact() == "" && o.GetPrefix() == "" {
				c.err(field, "no origin is given", "write exact, prefix or regex")
			}
		}
	}
	for i, m := range p.AllowMethods {
		if !slices.Contains(corsMethods, m) {
			c.err(at(path+".allowMethods", i), fmt.Sprintf("%q is no method", m), "known are "+strings.Join(corsMethods, ", "))
		}
	}
	for field, names := range map[string][]string{"allowHeaders": p.AllowHeaders, "exposeHeaders": p.ExposeHeaders} {
		for i, n := range names {
			if n != "*" {
				c.headerName(at(path+"."+field, i), n)
			}
		}
	}
	c.duration(path+".maxAge", p.MaxAge)
	if p.MaxAge.GetNanos() > 0 {
		c.err(path+".maxAge", "finer than a second", "browsers count whole seconds")
	}
}

func (c *checker) faultInjection(path string, f *networkingv1alpha3.HTTPFaultInjection) {
	if f == nil {
		return
	}
	if f.Abort == nil && f.Delay == nil {
		c.err(path, "neither delay nor abort", "give one, or leave fault out")
	}
	if a := f.Abort; a != nil {
		c.faultPercentage(path+".abort.percentage", a.Percentage)
		switch t := a.ErrorType.(type) {
		case *networkingv1alpha3.HTTPFaultInjection_Abort_HttpStatus:
			c.status(path+".abort.httpStatus", t.HttpStatus)
		case *networkingv1alpha3.HTTPFaultInjection_Abort_GrpcStatus:
			if !slices.Contains(grpcStatuses, t.GrpcStatus) {
				c.err(path+".abort.grpcStatus", fmt.Sprintf("%q is no gRPC status", t.GrpcStatus), `such as "UNAVAILABLE"`)
			}
		case *networkingv1alpha3.HTTPFaultInjection_Abort_Http2Error:
			c.err(path+".abort.http2Error", "HTTP/2 errors cannot be injected", "use httpStatus or grpcStatus")
		default:
			c.warn(path+".abort", "no error is named, so that nothing is aborted", "give httpStatus or grpcStatus")
		}
	}
	if d := f.Delay; d != nil {
		c.faultPercentage(path+".delay.percentage", d.Percentage)
		switch t := d.HttpDelayType.(type) {
		case *networkingv1alpha3.HTTPFaultInjection_Delay_FixedDelay:
			c.duration(path+".delay.fixedDelay", t.FixedDelay)
		case *networkingv1alpha3.HTTPFaultInjection_Delay_ExponentialDelay:
			c.err(path+".delay.exponentialDelay", "exponential delays cannot be injected", "use fixedDelay")
		}
	}
}

// grpcStatuses are the names of google.rpc.Code, with both spellings of
// cancelled.
var grpcStatuses = []string{"OK", "CANCELED", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
	"ALREADY_EXISTS", "PERMISSION_DENIED", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
	"OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}

// faultPercentage checks a share; Envoy counts in millionths.
func (c *checker) faultPercentage(path string, p *networkingv1alpha3.Percent) {
	if v := p.GetValue(); v < 0 || v > 100 || v > 0 && v < 0.0001 {
		c.err(path+".value", fmt.Sprintf("%v is no percentage", v), "it is 0, or goes from 0.0001 to 100")
	}
}

func (c *checker) status(path string, s int32) {
	if s < 200 || s > 600 {
		c.err(path, fmt.Sprintf("%d is no HTTP status", s), "it goes from 200 to 599")
	}
}

func (c *checker) redirect(path string, r *networkingv1alpha3.HTTPRedirect) {
	if r == nil {
		return
	}
	if r.Uri == "" && r.Authority == "" && r.RedirectPort == nil && r.Scheme == "" && r.PrefixRewrite == "" {
		c.err(path, "the redirect changes nothing", "give uri, authority, scheme or port")
	}
	if r.RedirectCode != 0 && (r.RedirectCode < 300 || r.RedirectCode > 399) {
		c.err(path+".redirectCode", fmt.Sprintf("%d does not redirect", r.RedirectCode), "use 301, 302, 303, 307 or 308")
	}
	if r.Scheme != "" && r.Scheme != "http" && r.Scheme != "https" {
		c.err(path+".scheme", fmt.Sprintf("%q is no scheme", r.Scheme), "write http or https")
	}
	if r.GetPort() > 0 {
		c.port(path+".port", r.GetPort())
	}
}

func (c *checker) directResponse(path string, r *networkingv1alpha3.HTTPDirectResponse) {
	if r == nil {
		return
	}
	const most, large = 1 << 20, 100 << 10
	switch size := len(r.Body.GetString_()) + len(r.Body.GetBytes()); {
	case size > most:
		c.err(path+".body", fmt.Sprintf("a body of %d bytes", size), "the most is 1 MiB: every proxy holds it")
	case size > large:
		c.warn(path+".body", fmt.Sprintf("a body of %d bytes", size), "every proxy holds it")
	}
	c.status(path+".status", int32(min(r.Status, 1<<30)))
}

// retryConditions are Envoy's words for HTTP and gRPC.
var retryConditions = []string{"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "retriable-4xx",
	"refused-stream", "retriable-status-codes", "retriable-headers", "envoy-ratelimited", "http3-post-connect-failure",
	"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"}

func (c *checker) retries(path string, r *networkingv1alpha3.HTTPRetry) {
	if r == nil {
		return
	}
	if r.Attempts < 0 {
		c.err(path+".attempts", fmt.Sprintf("%d is negative", r.Attempts), "0 turns retries off")
	}
	if r.Attempts == 0 && (r.PerTryTimeout != nil || r.RetryOn != "" || r.RetryRemoteLocalities != nil) {
		c.err(path+".attempts", "retries are configured but turned off", "give attempts, or leave the rest out")
	}
	c.duration(path+".perTryTimeout", r.PerTryTimeout)
	c.duration(path+".backoff", r.Backoff)
	if r.RetryOn == "" {
		return
	}
	for word := range strings.SplitSeq(r.RetryOn, ",") {
		if code, err := strconv.Atoi(word); err == nil && http.StatusText(code) != "" {
			continue
		}
		if !slices.Contains(retryConditions, word) {
			c.err(path+".retryOn", fmt.Sprintf("%q is no condition for a retry", word), "known are status codes, "+strings.Join(retryConditions, ", "))
		}
	}
}

func (c *checker) rewrite(path string, r *networkingv1alpha3.HTTPRewrite) {
	if r == nil {
		return
	}
	switch re := r.UriRegexRewrite; {
	case r.Uri != "" && re != nil:
		c.err(path+".uriRegexRewrite", "uri and uriRegexRewrite exclude each other", "keep one of them")
	case r.Uri == "" && re == nil && r.Authority == "":
		c.err(path, "the rewrite changes nothing", "give uri, uriRegexRewrite or authority")
	case re != nil && (re.Match == "" || re.Rewrite == ""):
		c.err(path+".uriRegexRewrite", "incomplete", "give both match and rewrite")
	case re != nil:
		c.regex(path+".uriRegexRewrite.match", re.Match)
	}
}

func (c *checker) tlsRoute(path string, r *networkingv1alpha3.TLSRoute, vs *networkingv1alpha3.VirtualService, onGateway, gatewayRoute bool) {
	if len(r.Match) == 0 {
		c.err(path+".match", "missing", "a tls route is chosen by sniHosts")
	}
	for i, m := range r.Match {
		field := at(path+".match", i)
		if len(m.SniHosts) == 0 {
			c.err(field+".sniHosts", "missing", "a tls route is chosen by sniHosts")
		}
		for j, h := range m.SniHosts {
			c.sniHost(at(field+".sniHosts", j), h, vs.Hosts, onGateway)
		}
		c.l4Match(field, m.DestinationSubnets, m.Port, m.SourceLabels, m.Gateways)
	}
	c.l4Routes(path, "tls", r.Route, gatewayRoute)
}

func (c *checker) sniHost(path, host string, hosts []string, onGateway bool) {
	if problem := routedHost(host, onGateway); problem != "" {
		if isIP(host) {
			c.warn(path, "an IP address is no server name, and most clients send none", "use a host (RFC 6066, section 3)")
			return
		}
		c.err(path, problem, hostHint)
		return
	}
	if !slices.ContainsFunc(hosts, func(h string) bool { return within(host, h) }) {
		c.err(path, fmt.Sprintf("%s is not among the hosts of the object", host), "they are "+strings.Join(hosts, ", "))
	}
}

func (c *checker) tcpRoute(path string, r *networkingv1alpha3.TCPRoute, gatewayRoute bool) {
	for i, m := range r.Match {
		c.l4Match(at(path+".match", i), m.DestinationSubnets, m.Port, m.SourceLabels, m.Gateways)
	}
	c.l4Routes(path, "tcp", r.Route, gatewayRoute)
}

func (c *checker) l4Match(path string, subnets []string, port uint32, labels map[string]string, gateways []string) {
	for i, s := range subnets {
		c.cidr(at(path+".destinationSubnets", i), s)
	}
	if port != 0 {
		c.port(path+".port", port)
	}
	c.labels(path+".sourceLabels", labels)
	c.gatewayNames(path+".gateways", gateways, false)
}

func (c *checker) l4Routes(path, kind string, routes []*networkingv1alpha3.RouteDestination, gatewayRoute bool) {
	if len(routes) == 0 {
		c.err(path+".route", "missing", "a "+kind+" route needs a destination")
	}
	var total int64
	for i, d := range routes {
		total += c.weighted(at(path+".route", i), d.Destination, d.Weight, gatewayRoute)
	}
	c.total(path+".route", len(routes), total)
}
