// Package compile turns what an operator wrote into what proxies are told.
//
// It has two steps. [ViewOf] takes from the World the part that one proxy may
// see; [Plan] makes a plan from that View and from nothing else, so that
// [View.Key] is a cache key: proxies with equal keys get equal plans. A View has
// two halves. The outbound half is what a namespace may call; all its proxies
// share it, with its part of the plan, unless rules tell them apart by label.
// The other half belongs to one workload: what it serves, or, for a gateway,
// whom it lets in.
//
// Endpoints take a shorter road, [Endpoints], straight from the World.
//
// One file holds one topic: what is visible (scope), listeners of callers
// (outbound) and of the called (inbound), HTTP routes (route), virtual hosts
// (vhost), the edge (gateway), clusters, endpoints, names for DNS, mutual TLS,
// and clients that speak xDS themselves (grpc).
package compile

import (
	"github.com/heddle-mesh/heddle/internal/plan"
)

// Plan returns what the proxy with this view is told. It is pure; parts of the
// result are shared with the plans of other views, and nobody may change them.
func Plan(v *View) *plan.Plan {
	switch v.class {
	case GRPC:
		return v.grpcPlan()
	case Gateway:
		return v.gatewayPlan()
	}
	return v.sidecarPlan()
}

// sidecarPlan joins what the workload may call with what it serves.
func (v *View) sidecarPlan() *plan.Plan {
	out := v.scope.outbound()
	p := &plan.Plan{Routes: out.routes}
	p.Listeners = append(p.Listeners, out.listeners...)
	p.Listeners = append(p.Listeners, v.inbound.listener())
	p.Clusters = append(p.Clusters, out.clusters...)
	p.Clusters = append(p.Clusters, v.inbound.clusters()...)
	if v.scope.capture {
		p.Names = v.scope.nameTable()
	}
	return p
}
