package model

import (
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/heddle-mesh/heddle/internal/host"
)

// delegated puts the rules of delegates into the VirtualServices that refer to
// them: one without hosts is part of others, and nothing by itself. Delegation
// goes one level deep.
func delegated(all []*VirtualService, domain string) []*VirtualService {
	parts := map[string]*VirtualService{}
	refers := false
	for _, v := range all {
		if len(v.Hosts) == 0 {
			parts[v.Namespace+"/"+v.Name] = v
		}
		refers = refers || slices.ContainsFunc(v.Spec.Http, func(r *networking.HTTPRoute) bool { return r.Delegate != nil })
	}
	if !refers && len(parts) == 0 {
		return all
	}
	out := make([]*VirtualService, 0, len(all))
	for _, v := range all {
		if len(v.Hosts) > 0 {
			out = append(out, v.with(parts, domain))
		}
	}
	return out
}

// with returns the VirtualService with its delegates' rules in the place of the
// references.
func (v *VirtualService) with(parts map[string]*VirtualService, domain string) *VirtualService {
	if !slices.ContainsFunc(v.Spec.Http, func(r *networking.HTTPRoute) bool { return r.Delegate != nil }) {
		return v
	}
	print := NewPrinter()
	print.Print(v.Print)
	var rules []*networking.HTTPRoute
	for _, r := range v.Spec.Http {
		if r.Delegate == nil {
			rules = append(rules, r)
			continue
		}
		part := parts[or(r.Delegate.Namespace, v.Namespace)+"/"+r.Delegate.Name]
		if part == nil || !part.ExportTo.VisibleTo(v.Namespace) {
			print.Flag(false)
			continue // there is nothing to route by
		}
		print.Print(part.Print)
		root := qualified(r, v.Namespace, domain)
		for _, own := range part.Spec.Http {
			if merged := mergeRule(root, qualified(own, part.Namespace, domain)); merged != nil {
				rules = append(rules, merged)
			}
		}
	}
	spec := proto.Clone(v.Spec).(*networking.VirtualService)
	spec.Http = rules
	out := *v
	out.Spec, out.Print = spec, print.Sum()
	return &out
}

// qualified returns a copy in which the names of destinations, which are short in
// the rule's own namespace, are complete.
func qualified(in *networking.HTTPRoute, namespace, domain string) *networking.HTTPRoute {
	r := proto.Clone(in).(*networking.HTTPRoute)
	full := func(d *networking.Destination) {
		if d != nil {
			d.Host = string(host.FQDN(d.Host, namespace, domain))
		}
	}
	for _, d := range r.Route {
		full(d.Destination)
	}
	for _, m := range r.Mirrors {
		full(m.Destination)
	}
	full(r.Mirror)
	return r
}

// mergeRule makes of a delegate's rule what it is under the root's, or returns nil
// if it asks for requests that the root does not hand to it. What the delegate
// leaves out it has from the root.
func mergeRule(root, part *networking.HTTPRoute) *networking.HTTPRoute {
	match, ok := mergeMatches(root.Match, part.Match)
	if !ok {
		return nil
	}
	out := part
	out.Match = match
	out.Name = joinNames(root.Name, part.Name)
	inherit(&out.Rewrite, root.Rewrite)
	inherit(&out.DirectResponse, root.DirectResponse)
	inherit(&out.Timeout, root.Timeout)
	inherit(&out.Retries, root.Retries)
	inherit(&out.Fault, root.Fault)
	inherit(&out.Mirror, root.Mirror)
	inherit(&out.MirrorPercent, root.MirrorPercent)
	inherit(&out.MirrorPercentage, root.MirrorPercentage)
	inherit(&out.CorsPolicy, root.CorsPolicy)
	inherit(&out.Headers, root.Headers)
	if len(out.Mirrors) == 0 {
		out.Mirrors = root.Mirrors
	}
	return out
}

func inherit[T any](to **T, from *T) {
	if *to == nil {
		*to = from
	}
}

func joinNames(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "-" + b
}

// mergeMatches combines conditions. Each of the delegate's has to be narrower
// than one of the root's.
func mergeMatches(root, part []*networking.HTTPMatchRequest) ([]*networking.HTTPMatchRequest, bool) {
	if len(root) == 0 {
		return part, true
	}
	if len(part) == 0 {
		return root, true
	}
	var out []*networking.HTTPMatchRequest
	for _, p := range part {
		found := false
		for _, r := range root {
			if !conflict(r, p) {
				out = append(out, mergeMatch(r, p))
				found = true
			}
		}
		if !found {
			return nil, false
		}
	}
	return out, true
}

func mergeMatch(root, part *networking.HTTPMatchRequest) *networking.HTTPMatchRequest {
	out := proto.Clone(part).(*networking.HTTPMatchRequest)
	out.Name = joinNames(root.Name, part.Name)
	inherit(&out.Uri, root.Uri)
	inherit(&out.Scheme, root.Scheme)
	inherit(&out.Method, root.Method)
	inherit(&out.Authority, root.Authority)
	out.Headers = both(root.Headers, part.Headers)
	out.WithoutHeaders = both(root.WithoutHeaders, part.WithoutHeaders)
	out.QueryParams = both(root.QueryParams, part.QueryParams)
	out.SourceLabels = both(root.SourceLabels, part.SourceLabels)
	if out.Port == 0 {
		out.Port = root.Port
	}
	out.SourceNamespace = or(out.SourceNamespace, root.SourceNamespace)
	out.StatPrefix = or(out.StatPrefix, root.StatPrefix)
	if len(out.Gateways) == 0 {
		out.Gateways = root.Gateways
	}
	return out
}

// both joins two maps; where they have the same key the second counts.
func both[V any](a, b map[string]V) map[string]V {
	if len(a) == 0 {
		return b
	}
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}

// conflict reports whether a delegate's condition asks for requests that do not
// meet the root's. Source: Istio, hasConflict.
func conflict(root, part *networking.HTTPMatchRequest) bool {
	for _, m := range [...][2]*networking.StringMatch{
		{root.Uri, part.Uri}, {root.Scheme, part.Scheme}, {root.Method, part.Method}, {root.Authority, part.Authority},
	} {
		if wider(m[0], m[1]) {
			return true
		}
	}
	for _, m := range [...][2]map[string]*networking.StringMatch{
		{root.Headers, part.Headers}, {root.WithoutHeaders, part.WithoutHeaders}, {root.QueryParams, part.QueryParams},
	} {
		for name, value := range m[1] {
			if wider(m[0][name], value) {
				return true
			}
		}
	}
	if root.IgnoreUriCase != part.IgnoreUriCase ||
		root.Port != 0 && part.Port != 0 && root.Port != part.Port ||
		root.SourceNamespace != "" && part.SourceNamespace != "" && root.SourceNamespace != part.SourceNamespace {
		return true
	}
	for k, v := range part.SourceLabels {
		if r, ok := root.SourceLabels[k]; ok && r != v {
			return true
		}
	}
	return len(root.Gateways) > 0 && slices.ContainsFunc(part.Gateways, func(g string) bool {
		return !slices.Contains(root.Gateways, g)
	})
}

// wider reports whether part holds for a text for which root does not. It says so
// of regular expressions whenever there is another comparison, because nobody
// knows.
func wider(root, part *networking.StringMatch) bool {
	if root.GetMatchType() == nil || part.GetMatchType() == nil {
		return false
	}
	switch r := root.MatchType.(type) {
	case *networking.StringMatch_Exact:
		p, ok := part.MatchType.(*networking.StringMatch_Exact)
		return !ok || p.Exact != r.Exact
	case *networking.StringMatch_Prefix:
		switch p := part.MatchType.(type) {
		case *networking.StringMatch_Exact:
			return !strings.HasPrefix(p.Exact, r.Prefix)
		case *networking.StringMatch_Prefix:
			return !strings.HasPrefix(p.Prefix, r.Prefix)
		}
	}
	return true
}
