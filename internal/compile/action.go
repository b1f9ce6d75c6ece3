package compile

import (
	"math"
	"slices"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/plan"
)

// httpSplit resolves the parts of an HTTP split. A single part gets everything;
// among several, one of weight 0 nothing.
func (r rules) httpSplit(v *model.VirtualService, parts []*networking.HTTPRouteDestination) []plan.WeightedCluster {
	var out []plan.WeightedCluster
	for _, part := range parts {
		w := plan.WeightedCluster{}
		w.Cluster, _, _ = r.destination(v, part.Destination)
		w.Headers, w.HostRewrite = headers(part.Headers)
		if len(parts) == 1 {
			return []plan.WeightedCluster{w}
		}
		if part.Weight <= 0 {
			continue
		}
		w.Weight = uint32(part.Weight)
		// Parts of a split may name the same cluster twice; those that change
		// nothing are one.
		i := slices.IndexFunc(out, func(o plan.WeightedCluster) bool {
			return o.Cluster == w.Cluster && o.Headers == nil && w.Headers == nil && o.HostRewrite == w.HostRewrite
		})
		if i >= 0 {
			out[i].Weight += w.Weight
		} else {
			out = append(out, w)
		}
	}
	return out
}

// headers translates changes of headers. One that sets the authority is none of
// a field: it is returned apart. Other parts of a request that have no field
// cannot be changed here.
func headers(in *networking.Headers) (out *plan.Headers, authority string) {
	if in == nil {
		return nil, ""
	}
	var request, response plan.HeaderEdit
	request, authority = edit(in.Request)
	response, _ = edit(in.Response)
	if len(request.Put)+len(request.Remove)+len(response.Put)+len(response.Remove) == 0 {
		return nil, authority
	}
	return &plan.Headers{Request: request, Response: response}, authority
}

func edit(in *networking.Headers_HeaderOperations) (out plan.HeaderEdit, authority string) {
	put := func(m map[string]string, appends bool) {
		for _, name := range sortedKeys(m) {
			switch n := strings.ToLower(name); {
			case n == "host" || n == ":authority":
				authority = m[name]
			case fixed(n):
			default:
				out.Put = append(out.Put, plan.HeaderValue{Name: n, Value: m[name], Append: appends})
			}
		}
	}
	put(in.GetSet(), false)
	put(in.GetAdd(), true)
	for _, name := range in.GetRemove() {
		if n := strings.ToLower(name); n != "host" && !fixed(n) {
			out.Remove = append(out.Remove, n)
		}
	}
	return out, authority
}

// fixed reports whether a header cannot be changed: it is none, or it says where a
// message ends.
func fixed(name string) bool {
	switch name {
	case "content-length", "transfer-encoding", "connection":
		return true
	}
	return strings.HasPrefix(name, ":")
}

// joinHeaders puts the second's changes behind the first's.
func joinHeaders(a, b *plan.Headers) *plan.Headers {
	if a == nil {
		return b
	}
	if b == nil {
		return a
	}
	join := func(a, b plan.HeaderEdit) plan.HeaderEdit {
		return plan.HeaderEdit{Remove: append(slices.Clip(a.Remove), b.Remove...), Put: append(slices.Clip(a.Put), b.Put...)}
	}
	return &plan.Headers{Request: join(a.Request, b.Request), Response: join(a.Response, b.Response)}
}

// mirrors translates who gets copies of requests. A copy without a percentage is
// sent of all; one of 0 % of none.
func (r rules) mirrors(v *model.VirtualService, in *networking.HTTPRoute) []plan.Mirror {
	var out []plan.Mirror
	add := func(to *networking.Destination, part plan.Fraction) {
		if to == nil || part == 0 {
			return
		}
		name, _, _ := r.destination(v, to)
		out = append(out, plan.Mirror{Cluster: name, Fraction: part})
	}
	if len(in.Mirrors) == 0 {
		part := plan.Fraction(plan.Million)
		if p := in.MirrorPercentage; p != nil {
			part = fraction(p)
		} else if p := in.MirrorPercent; p != nil {
			part = fraction(&networking.Percent{Value: float64(p.Value)})
		}
		add(in.Mirror, part)
	}
	for _, m := range in.Mirrors {
		part := plan.Fraction(plan.Million)
		if m.Percentage != nil {
			part = fraction(m.Percentage)
		}
		add(m.Destination, part)
	}
	return out
}

func fraction(p *networking.Percent) plan.Fraction {
	const perPercent = plan.Million / 100
	return plan.Fraction(math.Round(min(max(p.GetValue(), 0), 100) * perPercent))
}

// fault translates what is spoilt. Without a percentage that is nothing.
func fault(in *networking.HTTPFaultInjection) *plan.Fault {
	out := &plan.Fault{}
	if d := in.GetDelay(); d != nil {
		out.Delay = d.GetFixedDelay().AsDuration()
		out.DelayFraction = fraction(d.Percentage)
		if d.Percentage == nil {
			out.DelayFraction = fraction(&networking.Percent{Value: float64(d.Percent)})
		}
		if out.Delay <= 0 || out.DelayFraction == 0 {
			out.Delay, out.DelayFraction = 0, 0
		}
	}
	if a := in.GetAbort(); a != nil {
		out.AbortFraction = fraction(a.Percentage)
		switch e := a.ErrorType.(type) {
		case *networking.HTTPFaultInjection_Abort_HttpStatus:
			out.AbortStatus = uint32(e.HttpStatus)
		case *networking.HTTPFaultInjection_Abort_GrpcStatus:
			out.AbortStatus, out.AbortGRPC = grpcCode(e.GrpcStatus), true
		default:
			out.AbortFraction = 0
		}
		if out.AbortFraction == 0 {
			out.AbortStatus, out.AbortGRPC = 0, false
		}
	}
	if out.DelayFraction == 0 && out.AbortFraction == 0 {
		return nil
	}
	return out
}

// grpcCodes in the order of their numbers. Source: gRPC, "Status codes and their
// use in gRPC".
var grpcCodes = [...]string{
	"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
	"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
	"INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
}

// grpcCode reads a status by name or number; what is neither is UNKNOWN, which
// validation has refused.
func grpcCode(s string) uint32 {
	if i := slices.Index(grpcCodes[:], strings.ToUpper(s)); i >= 0 {
		return uint32(i)
	}
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		return uint32(n)
	}
	return 2
}

func cors(in *networking.CorsPolicy) *plan.CORS {
	if in == nil {
		return nil
	}
	out := &plan.CORS{
		Methods:          strings.Join(in.AllowMethods, ","),
		Headers:          strings.Join(in.AllowHeaders, ","),
		Expose:           strings.Join(in.ExposeHeaders, ","),
		Credentials:      in.AllowCredentials.GetValue(),
		ForwardUnmatched: in.UnmatchedPreflights != networking.CorsPolicy_IGNORE,
	}
	for _, o := range in.AllowOrigins {
		kind, value := stringMatch(o)
		out.Origins = append(out.Origins, plan.StringMatch{Kind: kind, Value: value})
	}
	if len(in.AllowOrigins) == 0 {
		for _, o := range in.AllowOrigin {
			out.Origins = append(out.Origins, plan.StringMatch{Kind: plan.StringExact, Value: o})
		}
	}
	if in.MaxAge != nil {
		out.MaxAge = strconv.FormatInt(int64(in.MaxAge.AsDuration().Seconds()), 10)
	}
	return out
}

// hash gathers what the destinations of a rule choose their endpoints by.
func (r rules) hash(v *model.VirtualService, parts []*networking.HTTPRouteDestination) []plan.HashPolicy {
	var out []plan.HashPolicy
	for _, part := range parts {
		_, d, p := r.destination(v, part.Destination)
		for _, h := range r.scope.hashOf(d, p, part.Destination.GetSubset()) {
			if !slices.ContainsFunc(out, func(o plan.HashPolicy) bool { return o.Kind == h.Kind && o.Name == h.Name }) {
				out = append(out, h)
			}
		}
	}
	return out
}

// hashOf returns what calls to a service choose their endpoint by.
func (s *scope) hashOf(d *destination, p *model.Port, subset string) []plan.HashPolicy {
	if d == nil || p == nil {
		return nil
	}
	in := policyFor(d.rule, d.rule.Subset(subset), p).GetLoadBalancer().GetConsistentHash()
	if in == nil {
		return nil
	}
	switch k := in.HashKey.(type) {
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpHeaderName:
		return []plan.HashPolicy{{Kind: plan.HashHeader, Name: strings.ToLower(k.HttpHeaderName)}}
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpCookie:
		c := k.HttpCookie
		h := plan.HashPolicy{Kind: plan.HashCookie, Name: c.Name}
		if c.Ttl != nil {
			h.Generate, h.TTL, h.Path = true, c.Ttl.AsDuration(), c.Path
			for _, a := range c.Attributes {
				h.Attributes = append(h.Attributes, plan.CookieAttribute{Name: a.Name, Value: a.Value})
			}
		}
		return []plan.HashPolicy{h}
	case *networking.LoadBalancerSettings_ConsistentHashLB_UseSourceIp:
		if k.UseSourceIp {
			return []plan.HashPolicy{{Kind: plan.HashSourceIP}}
		}
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpQueryParameterName:
		return []plan.HashPolicy{{Kind: plan.HashQuery, Name: k.HttpQueryParameterName}}
	}
	return nil
}
