package model

import (
	"maps"

	security "istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/match"
)

// AuthorizationPolicy says who may do what with the workloads that it selects.
type AuthorizationPolicy struct {
	Meta
	// DryRun policies are evaluated, and change nothing.
	DryRun bool
	Spec   *security.AuthorizationPolicy
}

// RequestAuthentication says whose tokens the workloads that it selects accept.
type RequestAuthentication struct {
	Meta
	Spec *security.RequestAuthentication
}

// dryRunAnnotation takes a policy out of force.
const dryRunAnnotation = "istio.io/dry-run"

func fromAuthorizationPolicy(o *config.Object) *AuthorizationPolicy {
	in := o.Spec.(*security.AuthorizationPolicy)
	p := &AuthorizationPolicy{Meta: meta(o, in), DryRun: o.Annotations[dryRunAnnotation] == "true", Spec: in}
	if p.DryRun {
		print := NewPrinter()
		print.Print(p.Print)
		print.Flag(true)
		p.Print = print.Sum()
	}
	return p
}

func fromRequestAuthentication(o *config.Object) *RequestAuthentication {
	in := o.Spec.(*security.RequestAuthentication)
	return &RequestAuthentication{meta(o, in), in}
}

// byNamespace indexes policies that stand in order.
func byNamespace[T any](list []T, meta func(T) Meta) map[string][]T {
	out := map[string][]T{}
	for _, p := range list {
		ns := meta(p).Namespace
		out[ns] = append(out[ns], p)
	}
	return out
}

// AuthorizationPolicies returns those for a workload: of the root namespace and
// then of its own, each oldest first.
func (w *World) AuthorizationPolicies(wl *Workload) []*AuthorizationPolicy {
	var out []*AuthorizationPolicy
	for _, ns := range w.policyNamespaces(wl) {
		for _, p := range w.authz[ns] {
			if w.attaches(p.Namespace, p.Spec.Selector, p.Spec.TargetRef, p.Spec.TargetRefs, wl) {
				out = append(out, p)
			}
		}
	}
	return out
}

// RequestAuthentications returns those for a workload, in the same order.
func (w *World) RequestAuthentications(wl *Workload) []*RequestAuthentication {
	var out []*RequestAuthentication
	for _, ns := range w.policyNamespaces(wl) {
		for _, p := range w.requests[ns] {
			if w.attaches(p.Namespace, p.Spec.Selector, p.Spec.TargetRef, p.Spec.TargetRefs, wl) {
				out = append(out, p)
			}
		}
	}
	return out
}

func (w *World) policyNamespaces(wl *Workload) []string {
	if wl.Namespace == w.mesh.RootNamespace {
		return []string{wl.Namespace}
	}
	return []string{w.mesh.RootNamespace, wl.Namespace}
}

// gatewayNameLabel is on workloads that were made for a Gateway of the Gateway API.
const gatewayNameLabel = "gateway.networking.k8s.io/gateway-name"

// attaches reports whether a policy in namespace is for a workload: by its labels,
// or by the Gateway that the workload was made for. A policy with targets is for
// nobody else; targets that only waypoints serve select nothing here.
// Source: Istio, ShouldAttachPolicy.
func (w *World) attaches(namespace string, s *typev1beta1.WorkloadSelector, one *typev1beta1.PolicyTargetReference, refs []*typev1beta1.PolicyTargetReference, wl *Workload) bool {
	if one != nil && len(refs) == 0 {
		refs = []*typev1beta1.PolicyTargetReference{one}
	}
	if len(refs) == 0 {
		return match.Labels(s.GetMatchLabels(), wl.Labels)
	}
	gateway := wl.Labels[gatewayNameLabel]
	for _, r := range refs {
		if gateway != "" && r.Group == "gateway.networking.k8s.io" && r.Kind == "Gateway" && r.Name == gateway && namespace == wl.Namespace {
			return true
		}
	}
	return false
}

// KeySet returns the JSON Web Key Set that was fetched from a source, an address or
// an issuer's name, or "" while there is none.
func (w *World) KeySet(source string) string { return w.keySets[source] }

// KeySource names where a rule's keys are to be fetched: an address, or "openid:" and
// the name of an issuer who tells it. It is "" for keys that stand in the rule.
func KeySource(j *security.JWTRule) string {
	switch {
	case j.GetJwks() != "":
	case j.GetJwksUri() != "":
		return j.JwksUri
	case j.GetIssuer() != "":
		return "openid:" + j.Issuer
	}
	return ""
}

// KeySources returns the sources of all key sets that policies refer to, sorted.
func (w *World) KeySources() []string {
	out := map[string]bool{}
	for _, list := range w.requests {
		for _, r := range list {
			for _, j := range r.Spec.JwtRules {
				if s := KeySource(j); s != "" {
					out[s] = true
				}
			}
		}
	}
	return sortedKeys(out)
}

// SetKeys makes the World in which a source has these keys.
func (b *Builder) SetKeys(source, keys string) (*World, Delta) {
	w := b.world.successor()
	w.keySets = maps.Clone(w.keySets)
	if w.keySets == nil {
		w.keySets = map[string]string{}
	}
	w.keySets[source] = keys
	b.world = w
	return w, Delta{Config: true}
}
