package lab

import (
	"net/netip"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/plan"
)

// Pods returns the pods that objects ask for, named, injected and labelled as
// the local mesh does it, but without a status. Mesh tests that simulate a
// network use it, so that they run the same pods.
func Pods(objects []*config.Object) []*corev1.Pod {
	all := make(map[config.Key]*config.Object, len(objects))
	for _, o := range objects {
		all[o.Key] = o
	}
	keys := make([]config.Key, 0, len(all))
	for k := range all {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, compareKeys)
	var out []*corev1.Pod
	for _, k := range keys {
		switch spec := all[k].Spec.(type) {
		case *appsv1.Deployment:
			hash := templateHash(&spec.Spec.Template)
			start, _ := rollout(spec, hash, nil)
			for _, name := range start {
				// Settings of the proxy that can not be read are left out, as there.
				pod, _ := makePod(all, k.Namespace, &spec.Spec.Template, name, k.Name)
				out = append(out, pod)
			}
		case *corev1.Pod:
			template := &corev1.PodTemplateSpec{ObjectMeta: spec.ObjectMeta, Spec: spec.Spec}
			pod, _ := makePod(all, k.Namespace, template, k.Name, "")
			out = append(out, pod)
		}
	}
	return out
}

// Names returns what the cluster's DNS server answers in a world.
func Names(w *model.World) *plan.NameTable { return names(w) }

// Endpoints returns where a port of a Service leads: ready pods that stay.
func Endpoints(w *model.World, s *model.Service, port uint16) []netip.AddrPort {
	return endpointsOf(w, s, port)
}
