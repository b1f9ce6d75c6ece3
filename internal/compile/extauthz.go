package compile

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	security "istio.io/api/security/v1beta1"

	"github.com/heddle-mesh/heddle/internal/host"
	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/plan"
)

// askTimeout is for providers without their own, and askError what clients are told
// while one can not be asked. Sources: MeshConfig's defaults.
const (
	askTimeout = 600 * time.Second
	askError   = 403
)

// provider returns what a CUSTOM policy asks, nil if that can not be asked: it is not
// configured, is of a kind or with an option that is not served, or its service does
// not exist. Nothing passes then.
func providerOf(w *model.World, p *model.AuthorizationPolicy) *plan.ExtAuthz {
	name := p.Spec.GetProvider().GetName()
	in := w.Mesh().Providers[name].GetEnvoyExtAuthzHttp()
	if in == nil || in.IncludeRequestBodyInCheck != nil {
		return nil
	}
	namespace, hostname, ok := strings.Cut(in.Service, "/")
	if !ok {
		namespace, hostname = "", in.Service
	}
	if !slices.ContainsFunc(w.ServicesNamed(host.Name(hostname)), func(s *model.Service) bool { return namespace == "" || s.Namespace == namespace }) {
		return nil
	}
	out := &plan.ExtAuthz{
		Provider: name, Cluster: clusterName(uint16(in.Port), "", host.Name(hostname)), PathPrefix: in.PathPrefix,
		Timeout: cmp.Or(in.Timeout.AsDuration(), askTimeout), FailOpen: in.FailOpen, StatusOnError: askError,
		RequestHeaders: headerTexts(append(slices.Clone(in.IncludeHeadersInCheck), in.IncludeRequestHeadersInCheck...)),
		ToUpstream:     headerTexts(in.HeadersToUpstreamOnAllow), ToClient: headerTexts(in.HeadersToDownstreamOnAllow),
		ToDenied: headerTexts(in.HeadersToDownstreamOnDeny),
	}
	if n, err := strconv.ParseUint(in.StatusOnError, 10, 32); err == nil && 200 <= n && n <= 599 {
		out.StatusOnError = uint32(n)
	}
	for _, k := range slices.Sorted(maps.Keys(in.IncludeAdditionalHeadersInCheck)) {
		out.Added = append(out.Added, plan.AddedHeader{Name: strings.ToLower(k), Value: in.IncludeAdditionalHeadersInCheck[k]})
	}
	return out
}

func headerTexts(names []string) []plan.TextMatch {
	var out []plan.TextMatch
	for _, n := range names {
		out = append(out, textMatch(strings.ToLower(n)))
	}
	return out
}

// asks returns what providers are asked about, by their names.
func (a access) asks() []*plan.ExtAuthz {
	found := map[string]*plan.ExtAuthz{}
	for _, p := range a.policies {
		ask := a.providers[p.Spec.GetProvider().GetName()]
		if p.Spec.Action != security.AuthorizationPolicy_CUSTOM || p.DryRun || ask == nil {
			continue
		}
		if found[ask.Provider] == nil {
			one := *ask
			found[ask.Provider] = &one
		}
		for _, r := range a.rules(p, plan.Deny) {
			r.Name = plan.ExtAuthzPrefix + ask.Provider + "-" + r.Name
			found[ask.Provider].Rules = append(found[ask.Provider].Rules, r)
		}
	}
	var out []*plan.ExtAuthz
	for _, name := range slices.Sorted(maps.Keys(found)) {
		slices.SortFunc(found[name].Rules, func(a, b *plan.RBACRule) int { return strings.Compare(a.Name, b.Name) })
		if len(found[name].Rules) > 0 {
			out = append(out, found[name])
		}
	}
	return out
}

// providersOf indexes what policies can ask.
func providersOf(w *model.World, policies []*model.AuthorizationPolicy) map[string]*plan.ExtAuthz {
	out := map[string]*plan.ExtAuthz{}
	for _, p := range policies {
		if ask := providerOf(w, p); ask != nil {
			out[ask.Provider] = ask
		}
	}
	return out
}

// unasked refuses bytes that rules of CUSTOM policies are about: providers are asked
// about requests only. A rule with a condition on a request is none about bytes.
func unasked(asks []*plan.ExtAuthz) []*plan.RBAC {
	r := &plan.RBAC{Action: plan.Allow, Enforced: true}
	for _, e := range asks {
		r.Rules = append(r.Rules, e.Rules...)
	}
	r = plan.ForBytes([]*plan.RBAC{r})[0] // as for ALLOW: what is about requests is left out
	if r.Action = plan.Deny; len(r.Rules) == 0 {
		return nil
	}
	return []*plan.RBAC{r}
}
