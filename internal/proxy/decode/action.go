package decode

import (
	"regexp"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// headers reads the changes of a request and its response; nil if there are none.
func (r *reader) headers(path string, add []*corev3.HeaderValueOption, remove []string, addResponse []*corev3.HeaderValueOption, removeResponse []string) *plan.Headers {
	if len(add)+len(remove)+len(addResponse)+len(removeResponse) == 0 {
		return nil
	}
	return &plan.Headers{
		Request:  r.headerEdit(join(path, "request_headers"), add, remove),
		Response: r.headerEdit(join(path, "response_headers"), addResponse, removeResponse),
	}
}

func (r *reader) headerEdit(path string, add []*corev3.HeaderValueOption, remove []string) plan.HeaderEdit {
	var out plan.HeaderEdit
	for i, o := range add {
		at := index(path+"_to_add", "", i)
		r.only(at, o, "header", "append", "append_action", "keep_empty_value")
		v := plan.HeaderValue{Name: strings.ToLower(o.GetHeader().GetKey()), Value: o.GetHeader().GetValue()}
		if len(o.GetHeader().GetRawValue()) > 0 {
			v.Value = string(o.GetHeader().GetRawValue())
		}
		r.headerName(at, v.Name)
		if strings.ContainsAny(v.Value, "\r\n\x00") {
			r.fail(at, "the value has characters that no header may have")
		}
		switch o.GetAppendAction() {
		case corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD:
			// "append" is the older form, which sets if it is false.
			v.Append = o.GetAppend() == nil || o.GetAppend().GetValue()
		case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
		default:
			r.fail(join(at, "append_action"), "%v is not supported", o.GetAppendAction())
		}
		out.Put = append(out.Put, v)
	}
	for i, name := range remove {
		r.headerName(index(path+"_to_remove", "", i), name)
		out.Remove = append(out.Remove, strings.ToLower(name))
	}
	return out
}

// headerName refuses what is no field, and those that say where a message ends: the
// authority has its own rewrite, and other parts of a request cannot be changed.
func (r *reader) headerName(path, name string) {
	switch strings.ToLower(name) {
	case "content-length", "transfer-encoding", "connection":
		r.fail(path, "%q is no header that can be changed", name)
	}
	if name == "" || name[0] == ':' || strings.EqualFold(name, "host") || strings.ContainsAny(name, " \t\r\n\x00:") {
		r.fail(path, "%q is no header that can be changed", name)
	}
}

// fraction reads a part of all requests. Envoy counts in hundreds, ten thousands
// or millions.
func (r *reader) fraction(path string, f *typev3.FractionalPercent) plan.Fraction {
	n := uint64(f.GetNumerator())
	switch f.GetDenominator() {
	case typev3.FractionalPercent_HUNDRED:
		n *= plan.Million / 100
	case typev3.FractionalPercent_TEN_THOUSAND:
		n *= plan.Million / 10_000
	case typev3.FractionalPercent_MILLION:
	default:
		r.fail(join(path, "denominator"), "%d is not known", f.GetDenominator())
	}
	return plan.Fraction(min(n, plan.Million))
}

func (r *reader) hashPolicy(path string, m *routev3.RouteAction_HashPolicy) plan.HashPolicy {
	out := plan.HashPolicy{Terminal: m.GetTerminal()}
	switch p := m.GetPolicySpecifier().(type) {
	case *routev3.RouteAction_HashPolicy_Header_:
		r.only(join(path, "header"), p.Header, "header_name")
		out.Kind, out.Name = plan.HashHeader, strings.ToLower(p.Header.GetHeaderName())
	case *routev3.RouteAction_HashPolicy_Cookie_:
		c := p.Cookie
		out.Kind, out.Name, out.Path = plan.HashCookie, c.GetName(), c.GetPath()
		if c.GetTtl() != nil {
			out.Generate, out.TTL = true, r.positive(join(path, "cookie.ttl"), c.GetTtl())
		}
		for _, a := range c.GetAttributes() {
			out.Attributes = append(out.Attributes, plan.CookieAttribute{Name: a.GetName(), Value: a.GetValue()})
			if strings.ContainsAny(a.GetName()+a.GetValue(), ";\r\n\x00") {
				r.fail(join(path, "cookie.attributes"), "%q is no attribute", a.GetName())
			}
		}
		if strings.ContainsAny(out.Name+out.Path, "; =,\r\n\x00") {
			r.fail(join(path, "cookie"), "%q is no cookie", out.Name)
		}
	case *routev3.RouteAction_HashPolicy_ConnectionProperties_:
		out.Kind = plan.HashSourceIP
		if !p.ConnectionProperties.GetSourceIp() {
			r.fail(join(path, "connection_properties"), "are not the source address")
		}
		return out
	case *routev3.RouteAction_HashPolicy_QueryParameter_:
		out.Kind, out.Name = plan.HashQuery, p.QueryParameter.GetName()
	default:
		r.fail(path, "is of a kind that is not supported")
		return out
	}
	if out.Name == "" {
		r.fail(path, "names nothing")
	}
	return out
}

func (r *reader) mirror(path string, m *routev3.RouteAction_RequestMirrorPolicy) plan.Mirror {
	r.only(path, m, "cluster", "runtime_fraction", "disable_shadow_host_suffix_append",
		"trace_sampled") // traces
	out := plan.Mirror{Cluster: m.GetCluster(), Fraction: plan.Million, Shadow: !m.GetDisableShadowHostSuffixAppend()}
	if out.Cluster == "" {
		r.fail(join(path, "cluster"), "is empty")
	}
	if f := m.GetRuntimeFraction(); f != nil {
		out.Fraction = r.fraction(join(path, "runtime_fraction.default_value"), f.GetDefaultValue())
	}
	return out
}

func (r *reader) regexRewrite(path string, m *matcherv3.RegexMatchAndSubstitute) *plan.RegexRewrite {
	out := &plan.RegexRewrite{Pattern: r.regex(join(path, "pattern"), m.GetPattern().GetRegex()), Substitution: m.GetSubstitution()}
	re, err := regexp.Compile(out.Pattern)
	if err != nil {
		return out
	}
	// "\1" must name a group that is there, and "\" stand before nothing else.
	for i := 0; i < len(out.Substitution); i++ {
		if out.Substitution[i] != '\\' {
			continue
		}
		i++
		if i == len(out.Substitution) || out.Substitution[i] != '\\' && (out.Substitution[i] < '0' || out.Substitution[i] > '9') {
			r.fail(join(path, "substitution"), "%q has a backslash before what is no group", out.Substitution)
			break
		}
		if c := out.Substitution[i]; c != '\\' && int(c-'0') > re.NumSubexp() {
			r.fail(join(path, "substitution"), "%q names a group that the pattern does not have", out.Substitution)
			break
		}
	}
	return out
}

// filterConfigs reads what a route tells filters.
func (r *reader) filterConfigs(path string, configs map[string]*anypb.Any, out *plan.Route) {
	for name, a := range configs {
		at := path + "[" + name + "]"
		switch a.GetTypeUrl() {
		case "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault":
			m := &faultv3.HTTPFault{}
			if r.unpack(at, a, m) {
				out.Fault = r.fault(at, m)
			}
		case "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy":
			m := &corsv3.CorsPolicy{}
			if r.unpack(at, a, m) {
				out.CORS = r.cors(at, m)
			}
		default:
			r.fail(at, "is for a filter (%s) that is not supported", a.GetTypeUrl())
		}
	}
}

func (r *reader) fault(path string, m *faultv3.HTTPFault) *plan.Fault {
	r.only(path, m, "delay", "abort",
		"disable_downstream_cluster_stats") // counters
	out := &plan.Fault{}
	if d := m.GetDelay(); d != nil {
		at := join(path, "delay")
		r.only(at, d, "fixed_delay", "percentage")
		out.Delay = r.positive(join(at, "fixed_delay"), d.GetFixedDelay())
		out.DelayFraction = r.fraction(join(at, "percentage"), d.GetPercentage())
	}
	if a := m.GetAbort(); a != nil {
		at := join(path, "abort")
		r.only(at, a, "http_status", "grpc_status", "percentage")
		out.AbortFraction = r.fraction(join(at, "percentage"), a.GetPercentage())
		switch e := a.GetErrorType().(type) {
		case *faultv3.FaultAbort_HttpStatus:
			out.AbortStatus = e.HttpStatus
			if e.HttpStatus < 200 || e.HttpStatus > 599 {
				r.fail(join(at, "http_status"), "%d is not a status of 200 to 599", e.HttpStatus)
			}
		case *faultv3.FaultAbort_GrpcStatus:
			out.AbortStatus, out.AbortGRPC = e.GrpcStatus, true
		}
	}
	if out.DelayFraction == 0 && out.AbortFraction == 0 {
		return nil
	}
	return out
}

func (r *reader) cors(path string, m *corsv3.CorsPolicy) *plan.CORS {
	r.only(path, m, "allow_origin_string_match", "allow_methods", "allow_headers", "expose_headers", "max_age",
		"allow_credentials", "filter_enabled", "forward_not_matching_preflights")
	if f := m.GetFilterEnabled(); f != nil {
		switch r.fraction(join(path, "filter_enabled.default_value"), f.GetDefaultValue()) {
		case 0:
			return nil
		case plan.Million:
		default:
			r.fail(join(path, "filter_enabled"), "is for a part of the requests, which is not supported")
		}
	}
	out := &plan.CORS{
		Methods:          m.GetAllowMethods(),
		Headers:          m.GetAllowHeaders(),
		Expose:           m.GetExposeHeaders(),
		MaxAge:           m.GetMaxAge(),
		Credentials:      m.GetAllowCredentials().GetValue(),
		ForwardUnmatched: m.GetForwardNotMatchingPreflights() == nil || m.GetForwardNotMatchingPreflights().GetValue(),
	}
	if strings.ContainsAny(out.Methods+out.Headers+out.Expose+out.MaxAge, "\r\n\x00") {
		r.fail(path, "has characters that no header may have")
	}
	if _, err := strconv.ParseUint(out.MaxAge, 10, 63); out.MaxAge != "" && err != nil {
		r.fail(join(path, "max_age"), "%q is not a number of seconds", out.MaxAge)
	}
	for i, o := range m.GetAllowOriginStringMatch() {
		at := index(path, "allow_origin_string_match", i)
		kind, value := r.stringMatch(at, o)
		if kind == plan.StringPrefix && value == "" {
			kind = plan.StringPresent // any
		}
		out.Origins = append(out.Origins, plan.StringMatch{Kind: kind, Value: value})
	}
	return out
}
