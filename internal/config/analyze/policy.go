package analyze

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/host"
)

// destinationRules checks what rules are for, and rules against each other.
func (a *analysis) destinationRules() {
	type subsetKey struct {
		namespace string
		host      host.Name
		name      string
	}
	first := map[subsetKey]*config.Object{}
	for _, r := range a.rules {
		o := r.object
		s := a.find(r.host, o.Namespace)
		if s == nil && !r.host.IsWildcard() {
			a.warn(o, "", "spec.host", fmt.Sprintf("there is no service %s", r.host), names("services there", a.hostsNear(o.Namespace)))
		}
		if s == nil && r.host.IsWildcard() && !a.anyHost(r.host) {
			a.warn(o, "", "spec.host", fmt.Sprintf("no service is within %s", r.host), names("services there", a.hostsNear(o.Namespace)))
		}
		for i, sub := range r.spec.Subsets {
			path := fmt.Sprintf("spec.subsets[%d]", i)
			k := subsetKey{o.Namespace, r.host, sub.Name}
			if earlier := first[k]; earlier != nil && earlier != o && r.spec.WorkloadSelector == nil {
				a.warn(o, "", path+".name", fmt.Sprintf("%s has subset %s of the host too, and is older", earlier.Key, sub.Name), "this one is ignored; give it another name")
			} else if r.spec.WorkloadSelector == nil {
				first[k] = o
			}
			if s == nil || len(sub.Labels) == 0 {
				continue
			}
			if pods := a.selected(s); len(pods) > 0 && len(matching(pods, sub.Labels)) == 0 {
				a.warn(o, codeNoSubject, path+".labels", fmt.Sprintf("no workload of %s has labels %s", r.host, text(sub.Labels)),
					names("its workloads", workloadLabels(pods)))
			}
		}
	}
}

// anyHost reports whether a pattern stands for any service.
func (a *analysis) anyHost(pattern host.Name) bool {
	return slices.ContainsFunc(a.services, func(s service) bool {
		_, ok := host.Intersect(pattern, s.host)
		return ok
	})
}

func workloadLabels(list []workload) []string {
	var out []string
	for _, w := range list {
		out = append(out, text(w.labels))
	}
	return out
}

// installed are the labels of the gateways that come with an installation, and
// are not among the objects of an application.
var installed = []string{"istio=ingressgateway", "istio=egressgateway"}

// selectors checks that Services and Gateways select workloads. Without any
// workload at all, somebody only looks at a part of the mesh.
func (a *analysis) selectors() {
	all := slices.Concat(slices.Collect(maps.Values(a.workloads))...)
	if len(all) == 0 {
		return
	}
	for i := range a.services {
		s := &a.services[i]
		if len(s.selector) == 0 || len(a.workloads[s.object.Namespace]) == 0 {
			continue
		}
		pods := a.selected(s)
		if len(pods) == 0 {
			a.warn(s.object, "", "spec.selector", fmt.Sprintf("no workload in namespace %s has labels %s", s.object.Namespace, text(s.selector)),
				names("workloads there", workloadLabels(a.workloads[s.object.Namespace])))
			continue
		}
		a.targetPorts(s, pods)
	}
	for _, k := range slices.Sorted(maps.Keys(a.gateways)) {
		g := a.gateways[k]
		if sel := g.spec.Selector; len(sel) > 0 && !slices.Contains(installed, text(sel)) && len(matching(all, sel)) == 0 {
			a.warn(g.object, codeMissing, "spec.selector", fmt.Sprintf("no workload has labels %s", text(sel)), "the gateway's proxy bears them")
		}
	}
}

// targetPorts checks ports that are named: the containers must have the name.
func (a *analysis) targetPorts(s *service, pods []workload) {
	for i, p := range s.service.Spec.Ports {
		if p.TargetPort.Type != intstr.String || p.TargetPort.StrVal == "" {
			continue
		}
		var have []string
		for _, w := range pods {
			for _, c := range w.spec.Containers {
				for _, cp := range c.Ports {
					if cp.Name != "" {
						have = append(have, cp.Name)
					}
				}
			}
		}
		if !slices.Contains(have, p.TargetPort.StrVal) {
			a.warn(s.object, "", fmt.Sprintf("spec.ports[%d].targetPort", i), fmt.Sprintf("no container has a port %s", p.TargetPort.StrVal),
				names("ports", have))
		}
	}
}

// peerAuthentications warns of policies of the same reach, of which only the
// oldest acts.
func (a *analysis) peerAuthentications() {
	first := map[string]*config.Object{}
	for _, p := range a.peers {
		reach := p.object.Namespace + "/" + text(p.spec.GetSelector().GetMatchLabels())
		earlier := first[reach]
		if earlier == nil {
			first[reach] = p.object
			continue
		}
		what := "the whole namespace"
		if sel := text(p.spec.GetSelector().GetMatchLabels()); sel != "" {
			what = strings.ReplaceAll(sel, ",", " and ")
		}
		a.warn(p.object, "", "spec", fmt.Sprintf("%s is for %s too, and is older", earlier.Key, what), "this one is ignored")
		a.faults[len(a.faults)-1].Security = true
	}
}
