package compile_test

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"

	"github.com/heddle-mesh/heddle/internal/compile"
	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/plan"
)

// The generated worlds draw from few names, so that objects meet: services with
// the same host, rules for the same service, pods with the same address.
var (
	namespaces = rapid.SampledFrom([]string{"default", "other", "istio-system"})
	names      = rapid.SampledFrom([]string{"a", "b"})
	hosts      = rapid.SampledFrom([]string{"a", "b", "a.default.svc.cluster.local", "*.default.svc.cluster.local", "*", "x.example.com", "*.example.com"})
	ports      = rapid.SampledFrom([]uint32{80, 81, 5432})
	versions   = rapid.SampledFrom([]string{"v1", "v2"})
	exports    = rapid.SampledFrom([][]string{nil, {"."}, {"*"}, {"other"}, {"~"}})
)

// object draws one object of any kind that plans are made of.
func object(t *rapid.T) *config.Object {
	o := &config.Object{Key: config.Key{Namespace: namespaces.Draw(t, "namespace"), Name: names.Draw(t, "name")}}
	o.Created = time.Unix(int64(rapid.IntRange(0, 3).Draw(t, "created")), 0)
	switch rapid.IntRange(0, 7).Draw(t, "kind") {
	case 0, 1:
		o.Kind = config.Pod
		o.Labels = map[string]string{"app": names.Draw(t, "app"), "version": versions.Draw(t, "version")}
		if rapid.Bool().Draw(t, "sidecar") {
			o.Labels["security.istio.io/tlsMode"] = "istio"
		}
		p := &corev1.Pod{}
		p.Spec.ServiceAccountName = names.Draw(t, "account")
		p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}}}
		p.Status.PodIP = fmt.Sprintf("10.1.0.%d", rapid.IntRange(1, 4).Draw(t, "ip"))
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: rapid.SampledFrom([]corev1.ConditionStatus{"True", "True", "False"}).Draw(t, "ready")}}
		if rapid.IntRange(0, 5).Draw(t, "going") == 0 {
			p.DeletionTimestamp = &metav1.Time{Time: time.Unix(9, 0)}
		}
		o.Spec = p
	case 2:
		o.Kind = config.Service
		s := &corev1.Service{}
		s.Spec.ClusterIP = rapid.SampledFrom([]string{"", "None", "10.96.0.1"}).Draw(t, "clusterIP")
		s.Spec.Selector = map[string]string{"app": names.Draw(t, "selects")}
		for _, n := range rapid.SliceOfDistinct(ports, rapid.ID[uint32]).Draw(t, "ports") {
			p := corev1.ServicePort{Port: int32(n), Name: rapid.SampledFrom([]string{"http", "tcp", "x", "grpc", "tls"}).Draw(t, "protocol")}
			if rapid.Bool().Draw(t, "named") {
				p.TargetPort = intstr.FromString("web")
			}
			s.Spec.Ports = append(s.Spec.Ports, p)
		}
		if e := exports.Draw(t, "exportTo"); e != nil {
			o.Annotations = map[string]string{"networking.istio.io/exportTo": strings.Join(e, ",")}
		}
		o.Spec = s
	case 3:
		o.Kind = config.ServiceEntry
		s := &networking.ServiceEntry{
			Hosts:      []string{rapid.SampledFrom([]string{"x.example.com", "*.example.com", "a.default.svc.cluster.local"}).Draw(t, "host")},
			Resolution: networking.ServiceEntry_Resolution(rapid.IntRange(0, 3).Draw(t, "resolution")),
			Location:   networking.ServiceEntry_Location(rapid.IntRange(0, 1).Draw(t, "location")),
			Ports:      []*networking.ServicePort{{Number: ports.Draw(t, "port"), Name: "p", Protocol: rapid.SampledFrom([]string{"HTTP", "TCP", "TLS"}).Draw(t, "protocol")}},
			ExportTo:   exports.Draw(t, "exportTo"),
		}
		if rapid.Bool().Draw(t, "endpoint") {
			s.Endpoints = []*networking.WorkloadEntry{{Address: "10.2.0.1", Labels: map[string]string{"version": versions.Draw(t, "version")}, ServiceAccount: "ext"}}
		}
		if rapid.Bool().Draw(t, "range") {
			s.Addresses = []string{"10.9.0.0/16"}
		}
		o.Spec = s
	case 4:
		o.Kind = config.VirtualService
		v := &networking.VirtualService{Hosts: []string{hosts.Draw(t, "host")}, ExportTo: exports.Draw(t, "exportTo")}
		v.Gateways = rapid.SampledFrom([][]string{nil, {"mesh"}, {"a"}, {"mesh", "default/a"}}).Draw(t, "gateways")
		to := &networking.Destination{Host: hosts.Draw(t, "to"), Subset: rapid.SampledFrom([]string{"", "v1"}).Draw(t, "subset")}
		if strings.HasPrefix(to.Host, "*") {
			to.Host = "b"
		}
		r := &networking.HTTPRoute{Route: []*networking.HTTPRouteDestination{{Destination: to}}}
		if rapid.Bool().Draw(t, "match") {
			m := &networking.HTTPMatchRequest{Uri: &networking.StringMatch{MatchType: &networking.StringMatch_Prefix{Prefix: "/p"}}}
			if rapid.Bool().Draw(t, "caller") {
				m.SourceLabels = map[string]string{"version": versions.Draw(t, "version")}
			}
			r.Match = []*networking.HTTPMatchRequest{m}
		}
		if rapid.Bool().Draw(t, "timeout") {
			r.Timeout = durationpb.New(time.Second)
		}
		v.Http = []*networking.HTTPRoute{r}
		v.Tcp = []*networking.TCPRoute{{
			Match: []*networking.L4MatchAttributes{{Port: ports.Draw(t, "tcp port")}},
			Route: []*networking.RouteDestination{{Destination: &networking.Destination{Host: "b"}}},
		}}
		v.Tls = []*networking.TLSRoute{{
			Match: []*networking.TLSMatchAttributes{{SniHosts: []string{rapid.SampledFrom([]string{"x.example.com", "y.example.com", "*.example.com"}).Draw(t, "sni")}}},
			Route: []*networking.RouteDestination{{Destination: &networking.Destination{Host: "b"}}},
		}}
		o.Spec = v
	case 5:
		o.Kind = config.DestinationRule
		d := &networking.DestinationRule{Host: hosts.Draw(t, "host"), ExportTo: exports.Draw(t, "exportTo")}
		d.Subsets = []*networking.Subset{{Name: "v1", Labels: map[string]string{"version": versions.Draw(t, "version")}}}
		d.TrafficPolicy = &networking.TrafficPolicy{ConnectionPool: &networking.ConnectionPoolSettings{
			Tcp: &networking.ConnectionPoolSettings_TCPSettings{MaxConnections: rapid.Int32Range(0, 3).Draw(t, "connections")},
		}}
		if rapid.Bool().Draw(t, "callers") {
			d.WorkloadSelector = &typev1beta1.WorkloadSelector{MatchLabels: map[string]string{"version": versions.Draw(t, "caller")}}
		}
		o.Spec = d
	case 6:
		o.Kind = config.PeerAuthentication
		mode := rapid.Custom(func(t *rapid.T) *security.PeerAuthentication_MutualTLS {
			return &security.PeerAuthentication_MutualTLS{Mode: security.PeerAuthentication_MutualTLS_Mode(rapid.IntRange(0, 3).Draw(t, "mode"))}
		})
		p := &security.PeerAuthentication{Mtls: mode.Draw(t, "mtls")}
		if rapid.Bool().Draw(t, "selector") {
			p.Selector = &typev1beta1.WorkloadSelector{MatchLabels: map[string]string{"app": names.Draw(t, "app")}}
			p.PortLevelMtls = map[uint32]*security.PeerAuthentication_MutualTLS{ports.Draw(t, "port"): mode.Draw(t, "port mtls")}
		}
		o.Spec = p
	case 7:
		o.Kind = config.Gateway
		o.Spec = &networking.Gateway{
			Selector: map[string]string{"app": "a"},
			Servers: []*networking.Server{{
				Port:  &networking.Port{Number: ports.Draw(t, "port"), Name: "p", Protocol: rapid.SampledFrom([]string{"HTTP", "TCP"}).Draw(t, "protocol")},
				Hosts: []string{rapid.SampledFrom([]string{"*", "*.example.com", "default/x.example.com"}).Draw(t, "host")},
			}},
		}
	}
	return o
}

// proxies are those that the properties are checked for.
func proxies() []*compile.Proxy {
	var out []*compile.Proxy
	for _, ns := range []string{"default", "other"} {
		for _, v := range []string{"v1", "v2"} {
			for i := 1; i <= 2; i++ {
				out = append(out, &compile.Proxy{
					Namespace: ns, IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 0, byte(i)})},
					Labels: map[string]string{"app": "a", "version": v}, DNSCapture: v == "v2",
				})
			}
		}
		out = append(out,
			&compile.Proxy{Class: compile.Gateway, Namespace: ns, Labels: map[string]string{"app": "a"}},
			&compile.Proxy{Class: compile.GRPC, Namespace: ns, Labels: map[string]string{"app": "b"}, Asked: []string{"a:80", "b.default:81"}})
	}
	return out
}

func change(o *config.Object) config.Change { return config.Change{Key: o.Key, Object: o} }

// last keeps the last object of each key, in the order of their keys.
func last(objects []*config.Object) []*config.Object {
	m := map[config.Key]*config.Object{}
	for _, o := range objects {
		m[o.Key] = o
	}
	out := make([]*config.Object, 0, len(m))
	for _, o := range m {
		out = append(out, o)
	}
	slices.SortFunc(out, func(a, b *config.Object) int { return strings.Compare(a.Key.String(), b.Key.String()) })
	return out
}

func build(objects []*config.Object) *model.World {
	w, _ := model.NewBuilder(model.Options{}).Apply(batchOf(objects))
	return w
}

func plans(w *model.World) map[string]*plan.Plan {
	out := map[string]*plan.Plan{}
	for i, p := range proxies() {
		out[fmt.Sprint(i)] = compile.Plan(compile.ViewOf(w, p))
	}
	return out
}

func TestPlansKeepTheirOwnRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := build(last(rapid.SliceOfN(rapid.Custom(object), 1, 20).Draw(t, "objects")))
		for _, p := range plans(w) {
			if err := p.Validate(); err != nil {
				t.Fatalf("%v\n%s", err, p)
			}
		}
	})
}

func TestOrderOfArrivalDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		objects := last(rapid.SliceOfN(rapid.Custom(object), 1, 16).Draw(t, "objects"))
		a := build(objects)
		b := model.NewBuilder(model.Options{})
		for _, o := range rapid.Permutation(objects).Draw(t, "order") {
			b.Apply(config.Batch{Changes: []config.Change{change(o)}})
		}
		for i, p := range proxies() {
			x, y := compile.ViewOf(a, p), compile.ViewOf(b.World(), p)
			if x.Key() != y.Key() {
				t.Errorf("proxy %d: the keys differ", i)
			}
			if px, py := compile.Plan(x), compile.Plan(y); !reflect.DeepEqual(px, py) {
				t.Fatalf("proxy %d: at once\n%s\none by one\n%s", i, px, py)
			}
		}
	})
}

// TestChangesAreAsGoodAsANewStart applies changes one by one and compares with a
// World built at once from what is left, and with what each Delta promises.
func TestChangesAreAsGoodAsANewStart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := model.NewBuilder(model.Options{})
		left := map[config.Key]*config.Object{}
		prev := b.World()
		before := observe(prev)
		steps := rapid.IntRange(1, 20).Draw(t, "steps")
		for range steps {
			o := rapid.Custom(object).Draw(t, "object")
			c := change(o)
			if rapid.IntRange(0, 3).Draw(t, "delete") == 0 {
				c.Object = nil
				delete(left, o.Key)
			} else {
				left[o.Key] = o
			}
			w, d := b.Apply(config.Batch{Changes: []config.Change{c}})
			after := observe(w)
			if !d.Config && !reflect.DeepEqual(before.keys, after.keys) {
				t.Fatalf("%s changed a view, and the delta says no", c.Key)
			}
			names := maps.Clone(before.endpoints)
			maps.Copy(names, after.endpoints)
			for name := range names {
				p := strings.Split(name, "|")
				key := strings.SplitN(p[3], "~", 2)[0] + "|" + p[1]
				was, is := endpointsText(prev, name), endpointsText(w, name)
				if was != is && !slices.Contains(d.Endpoints, key) {
					t.Fatalf("%s changed the endpoints of %s, and the delta names only %q\nbefore\n%s\nafter\n%s", c.Key, name, d.Endpoints, was, is)
				}
			}
			prev = w
			before = after
		}
		objects := make([]*config.Object, 0, len(left))
		for _, o := range left {
			objects = append(objects, o)
		}
		fresh := observe(build(objects))
		if !reflect.DeepEqual(before.keys, fresh.keys) {
			t.Fatal("the views differ from those of a new start")
		}
		if !reflect.DeepEqual(plans(b.World()), plans(build(objects))) {
			t.Fatal("the plans differ from those of a new start")
		}
		for name, text := range before.endpoints {
			if text != fresh.endpoints[name] {
				t.Fatalf("the endpoints of %s differ from those of a new start", name)
			}
		}
	})
}

// observed is what proxies may see of a World: the keys of their views, and the
// endpoints that they ask for.
type observed struct {
	keys      []string
	endpoints map[string]string
}

func observe(w *model.World) observed {
	o := observed{endpoints: map[string]string{}}
	for _, p := range proxies() {
		v := compile.ViewOf(w, p)
		o.keys = append(o.keys, v.Key())
		for _, c := range compile.Plan(v).Clusters {
			if c.Discovery != plan.EDS {
				continue
			}
			name := c.Name
			if c.ServiceName != "" {
				name = c.ServiceName
			}
			o.endpoints[name] = endpointsText(w, name)
		}
	}
	return o
}

func endpointsText(w *model.World, name string) string {
	la, ok := compile.Endpoints(w, name)
	if !ok {
		return "unknown"
	}
	return la.String()
}

func TestEqualKeysMeanEqualPlans(t *testing.T) {
	seen := map[string]*plan.Plan{}
	shared := 0
	rapid.Check(t, func(t *rapid.T) {
		w := build(last(rapid.SliceOfN(rapid.Custom(object), 0, 6).Draw(t, "objects")))
		for _, p := range proxies() {
			v := compile.ViewOf(w, p)
			made := compile.Plan(v)
			old, ok := seen[v.Key()]
			if !ok {
				seen[v.Key()] = made
				continue
			}
			shared++
			if !reflect.DeepEqual(old, made) {
				t.Fatalf("one key, two plans:\n%s\nand\n%s", old, made)
			}
		}
	})
	if shared == 0 {
		t.Error("no two views had the same key, so nothing was compared")
	}
}

func TestEveryEndpointNameOfAPlanIsKnown(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := build(last(rapid.SliceOfN(rapid.Custom(object), 1, 16).Draw(t, "objects")))
		for name, text := range observe(w).endpoints {
			if text == "unknown" {
				t.Fatalf("a plan asks for the endpoints of %s, which are unknown", name)
			}
		}
	})
}
