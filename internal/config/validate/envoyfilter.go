package validate

import (
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
)

// envoyFilter checks the frame of the patches; what is in them is Envoy's.
func (c *checker) envoyFilter(f *networkingv1alpha3.EnvoyFilter) {
	if f.WorkloadSelector != nil && len(f.TargetRefs) > 0 {
		c.err("spec.targetRefs", "workloadSelector and targetRefs exclude each other", "keep one of them")
	}
	c.targetRefs(f.TargetRefs)
	c.networkSelector("spec.workloadSelector", f.WorkloadSelector)
	for i, p := range f.ConfigPatches {
		path := at("spec.configPatches", i)
		if p.Patch == nil {
			c.err(path+".patch", "missing", "")
		} else if p.Patch.Operation == networkingv1alpha3.EnvoyFilter_Patch_INVALID {
			c.err(path+".patch.operation", "missing", "such as MERGE or INSERT_BEFORE")
		} else if p.Patch.Value == nil && p.Patch.Operation != networkingv1alpha3.EnvoyFilter_Patch_REMOVE {
			c.err(path+".patch.value", "missing", "every operation but REMOVE needs a value")
		}
		if p.ApplyTo == networkingv1alpha3.EnvoyFilter_INVALID {
			c.err(path+".applyTo", "missing", "such as HTTP_FILTER or CLUSTER")
		}
		w := p.Match.GetWaypoint()
		if p.Match != nil && (w != nil) != (p.Match.Context == networkingv1alpha3.EnvoyFilter_WAYPOINT) {
			c.err(path+".match", "context WAYPOINT and a waypoint match go together", "")
		}
		if w != nil && (w.PortNumber != 0 || c.written(path+".match.waypoint.portNumber")) {
			c.port(path+".match.waypoint.portNumber", w.PortNumber)
		}
	}
}
