package validate

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
	typev1beta1 "istio.io/api/type/v1beta1"
)

// exportTo checks the namespaces that an object is visible in. none allows "~",
// nowhere; local allows the own namespace only.
func (c *checker) exportTo(export []string, none, local bool) {
	const field = "spec.exportTo"
	seen := map[string]bool{}
	for i, e := range export {
		ns := e
		if e == "." {
			ns = c.o.Namespace
		}
		switch {
		case seen[ns]:
			problem := fmt.Sprintf("%q stands twice", e)
			if ns != e {
				problem = fmt.Sprintf("%q and %q are the same namespace", e, ns)
			}
			c.err(at(field, i), problem, "")
		case e == "~" && !none:
			c.err(at(field, i), `"~" exports to nowhere`, "only a ServiceEntry can be exported so")
		case e != "*" && e != "~" && e != "." && !isLabel(e):
			c.err(at(field, i), fmt.Sprintf("%q is no namespace", e), `write a namespace, "." for this one, or "*" for all`)
		}
		seen[ns] = true
	}
	if len(export) > 1 && seen["*"] {
		c.err(field, `"*" is every namespace`, "leave the others out")
	}
	if len(export) > 1 && seen["~"] {
		c.err(field, `"~" is no namespace at all`, "leave the others out, or it")
	}
	if local && len(export) > 0 && (len(seen) > 1 || !seen[c.o.Namespace]) {
		c.err(field, "a rule with a workloadSelector acts in its own namespace only", `write exportTo: ["."]`)
	}
}

// labelSelector checks the labels of a selector. Istio compares them exactly.
func (c *checker) labelSelector(path string, labels map[string]string) {
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		switch v := labels[k]; {
		case k == "":
			c.err(path, "empty label key", "")
		case strings.Contains(k, "*") || strings.Contains(v, "*"):
			c.err(key(path, k), "a selector knows no wildcards", "write the whole value")
		}
	}
}

// workloadSelector checks a selector of security, telemetry and extension kinds,
// and of a DestinationRule.
func (c *checker) workloadSelector(path string, s *typev1beta1.WorkloadSelector) {
	if s == nil {
		return
	}
	c.labelSelector(path+".matchLabels", s.MatchLabels)
	if len(s.MatchLabels) == 0 {
		c.warn(path, "the selector has no labels and so selects every workload", "leave it out, or name labels")
	}
}

// networkSelector checks the selector of the networking kinds.
func (c *checker) networkSelector(path string, s *networkingv1alpha3.WorkloadSelector) {
	if s == nil {
		return
	}
	c.labelSelector(path+".labels", s.Labels)
	if len(s.Labels) == 0 {
		c.warn(path, "the selector has no labels and so selects every workload of the namespace", "leave it out, or name labels")
	}
}

// targets checks what a policy is attached to: a selector or references, not
// both.
func (c *checker) targets(selector *typev1beta1.WorkloadSelector, ref *typev1beta1.PolicyTargetReference, refs []*typev1beta1.PolicyTargetReference) {
	set := 0
	for _, have := range []bool{selector != nil, ref != nil, len(refs) > 0} {
		if have {
			set++
		}
	}
	if set > 1 {
		c.err("spec", "selector, targetRef and targetRefs exclude each other", "keep targetRefs for waypoints and gateways, selector for the rest")
	}
	c.workloadSelector("spec.selector", selector)
	if ref != nil {
		c.targetRef("spec.targetRef", ref)
	}
	c.targetRefs(refs)
}

// maxTargets is the CRDs' bound.
const maxTargets = 16

func (c *checker) targetRefs(refs []*typev1beta1.PolicyTargetReference) {
	if len(refs) > maxTargets {
		c.err("spec.targetRefs", fmt.Sprintf("%d references", len(refs)), fmt.Sprintf("the most is %d", maxTargets))
	}
	for i, r := range refs {
		c.targetRef(at("spec.targetRefs", i), r)
	}
}

func (c *checker) targetRef(path string, r *typev1beta1.PolicyTargetReference) {
	if r.Name == "" {
		c.err(path+".name", "missing", "name the object that the policy is for")
	}
	if r.Namespace != "" {
		c.err(path+".namespace", "a policy is for objects of its own namespace", "leave it out")
	}
	switch r.Group + "/" + r.Kind {
	case "/Service", "core/Service", "networking.istio.io/ServiceEntry",
		"gateway.networking.k8s.io/Gateway", "gateway.networking.k8s.io/GatewayClass":
	default:
		c.err(path, fmt.Sprintf("a policy cannot be for a %s of group %q", r.Kind, r.Group),
			"it can be for a Service, a ServiceEntry, or a Gateway or GatewayClass of the Gateway API")
	}
}
