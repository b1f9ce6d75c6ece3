package compile_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/api/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/internal/compile"
	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/model"
)

// BenchmarkEdit is what an operator waits for: one VirtualService changes, and
// the plans of 100 sidecars in 10 namespaces are made anew. The mesh has 100
// services with a VirtualService each and 300 pods.
func BenchmarkEdit(b *testing.B) {
	var objects []*config.Object
	var proxies []*compile.Proxy
	route := func(i int, timeout time.Duration) *config.Object {
		name := fmt.Sprintf("s%d", i)
		return &config.Object{
			Key: config.Key{Kind: config.VirtualService, Namespace: fmt.Sprintf("ns%d", i%10), Name: name},
			Spec: &networking.VirtualService{Hosts: []string{name}, Http: []*networking.HTTPRoute{{
				Timeout: durationpb.New(timeout),
				Route:   []*networking.HTTPRouteDestination{{Destination: &networking.Destination{Host: name}}},
			}}},
		}
	}
	for i := range 100 {
		ns, name := fmt.Sprintf("ns%d", i%10), fmt.Sprintf("s%d", i)
		s := &corev1.Service{}
		s.Spec.Selector = map[string]string{"app": name}
		s.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80}, {Name: "tcp", Port: 5432}}
		objects = append(objects, &config.Object{Key: config.Key{Kind: config.Service, Namespace: ns, Name: name}, Spec: s}, route(i, 0))
		for j := range 3 {
			p := &corev1.Pod{}
			p.Status.PodIP = fmt.Sprintf("10.1.%d.%d", i, j+1)
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
			objects = append(objects, &config.Object{
				Key:    config.Key{Kind: config.Pod, Namespace: ns, Name: fmt.Sprintf("%s-%d", name, j)},
				Labels: map[string]string{"app": name}, Spec: p,
			})
		}
		proxies = append(proxies, &compile.Proxy{Namespace: ns, IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i), 1})}})
	}
	builder := model.NewBuilder(model.Options{})
	builder.Apply(batchOf(objects))
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n++
		w, d := builder.Apply(config.Batch{Changes: []config.Change{change(route(7, time.Duration(n)*time.Millisecond))}})
		if !d.Config {
			b.Fatal("the edit changed nothing")
		}
		for _, p := range proxies {
			if plan := compile.Plan(compile.ViewOf(w, p)); len(plan.Clusters) < 200 {
				b.Fatal("the plan is not whole")
			}
		}
	}
}
