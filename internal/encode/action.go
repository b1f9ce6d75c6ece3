package encode

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	commonfaultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/heddle-mesh/heddle/internal/plan"
)

func headerEdit(e plan.HeaderEdit) (add []*corev3.HeaderValueOption, remove []string) {
	for _, v := range e.Put {
		action := corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
		if v.Append {
			action = corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD
		}
		add = append(add, &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: v.Name, Value: v.Value},
			AppendAction: action,
			// An empty value is one that was asked for.
			KeepEmptyValue: true,
		})
	}
	return add, e.Remove
}

func fraction(f plan.Fraction) *typev3.FractionalPercent {
	return &typev3.FractionalPercent{Numerator: uint32(f), Denominator: typev3.FractionalPercent_MILLION}
}

func hashPolicy(h plan.HashPolicy) *routev3.RouteAction_HashPolicy {
	out := &routev3.RouteAction_HashPolicy{Terminal: h.Terminal}
	switch h.Kind {
	case plan.HashHeader:
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_Header_{Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: h.Name}}
	case plan.HashCookie:
		c := &routev3.RouteAction_HashPolicy_Cookie{Name: h.Name, Path: h.Path}
		if h.Generate {
			c.Ttl = durationpb.New(h.TTL)
		}
		for _, a := range h.Attributes {
			c.Attributes = append(c.Attributes, &routev3.RouteAction_HashPolicy_CookieAttribute{Name: a.Name, Value: a.Value})
		}
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_Cookie_{Cookie: c}
	case plan.HashSourceIP:
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_ConnectionProperties_{
			ConnectionProperties: &routev3.RouteAction_HashPolicy_ConnectionProperties{SourceIp: true},
		}
	case plan.HashQuery:
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_QueryParameter_{
			QueryParameter: &routev3.RouteAction_HashPolicy_QueryParameter{Name: h.Name},
		}
	}
	return out
}

// filterConfigs is what a route tells the filters before the router. gRPC has of
// them only the one for faults.
func filterConfigs(r *plan.Route, forGRPC bool) map[string]*anypb.Any {
	out := map[string]*anypb.Any{}
	if r.Fault != nil {
		out[faultFilter] = pack(faultConfig(r.Fault))
	}
	if r.CORS != nil && !forGRPC {
		out[corsFilter] = pack(corsPolicy(r.CORS))
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

func faultConfig(f *plan.Fault) *faultv3.HTTPFault {
	out := &faultv3.HTTPFault{}
	if f.DelayFraction > 0 {
		out.Delay = &commonfaultv3.FaultDelay{
			FaultDelaySecifier: &commonfaultv3.FaultDelay_FixedDelay{FixedDelay: durationpb.New(f.Delay)},
			Percentage:         fraction(f.DelayFraction),
		}
	}
	if f.AbortFraction > 0 {
		out.Abort = &faultv3.FaultAbort{Percentage: fraction(f.AbortFraction)}
		if f.AbortGRPC {
			out.Abort.ErrorType = &faultv3.FaultAbort_GrpcStatus{GrpcStatus: f.AbortStatus}
		} else {
			out.Abort.ErrorType = &faultv3.FaultAbort_HttpStatus{HttpStatus: f.AbortStatus}
		}
	}
	return out
}

func corsPolicy(c *plan.CORS) *corsv3.CorsPolicy {
	out := &corsv3.CorsPolicy{
		AllowMethods:                 c.Methods,
		AllowHeaders:                 c.Headers,
		ExposeHeaders:                c.Expose,
		MaxAge:                       c.MaxAge,
		AllowCredentials:             wrapperspb.Bool(c.Credentials),
		ForwardNotMatchingPreflights: wrapperspb.Bool(c.ForwardUnmatched),
		FilterEnabled: &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{
			Numerator: 100, Denominator: typev3.FractionalPercent_HUNDRED,
		}},
	}
	for _, o := range c.Origins {
		m := stringMatch(o.Kind, o.Value)
		if m == nil { // any origin
			m = &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{}}
		}
		out.AllowOriginStringMatch = append(out.AllowOriginStringMatch, m)
	}
	return out
}
