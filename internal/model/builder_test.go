package model

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/host"
)

func object(kind config.Kind, namespace, name string, spec any) *config.Object {
	return &config.Object{Key: config.Key{Kind: kind, Namespace: namespace, Name: name}, Spec: spec}
}

func batch(objects ...*config.Object) config.Batch {
	var b config.Batch
	for _, o := range objects {
		b.Changes = append(b.Changes, config.Change{Key: o.Key, Object: o})
	}
	return b
}

func gone(o *config.Object) config.Batch {
	return config.Batch{Changes: []config.Change{{Key: o.Key}}}
}

func pod(name, ip, app string, ready bool) *config.Object {
	p := &corev1.Pod{}
	p.Status.PodIP = ip
	if ready {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	}
	o := object(config.Pod, "default", name, p)
	o.Labels = map[string]string{"app": app}
	return o
}

func service(name, clusterIP string, ports ...corev1.ServicePort) *config.Object {
	s := &corev1.Service{}
	s.Spec.ClusterIP = clusterIP
	s.Spec.Selector = map[string]string{"app": name}
	s.Spec.Ports = ports
	return object(config.Service, "default", name, s)
}

var web = corev1.ServicePort{Name: "http", Port: 80}

func TestDeltaTellsEndpointsFromConfig(t *testing.T) {
	a, headless := service("a", "10.96.0.1", web), service("headless", "None", web)
	start := []*config.Object{
		a, headless, service("other", "10.96.0.2", web),
		pod("a-1", "10.1.0.1", "a", true), pod("a-2", "10.1.0.2", "a", false), pod("h-1", "10.1.0.3", "headless", true),
	}
	otherAccount := pod("a-2", "10.1.0.2", "a", true)
	otherAccount.Spec.(*corev1.Pod).Spec.ServiceAccountName = "robot"
	going := pod("a-1", "10.1.0.1", "a", true)
	going.Spec.(*corev1.Pod).DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	annotated := pod("a-1", "10.1.0.1", "a", true)
	annotated.Spec.(*corev1.Pod).Status.Message = "says nothing that matters"

	for _, c := range []struct {
		name  string
		batch config.Batch
		want  Delta
	}{
		{"a pod becomes ready", batch(pod("a-2", "10.1.0.2", "a", true)), Delta{Endpoints: []string{"a.default.svc.cluster.local|80"}}},
		{"a pod is going away", batch(going), Delta{Endpoints: []string{"a.default.svc.cluster.local|80"}}},
		{"nothing that matters", batch(annotated), Delta{}},
		{"the same again", batch(start...), Delta{}},
		{"there and back", batch(pod("a-2", "10.1.0.2", "a", true), pod("a-2", "10.1.0.2", "a", false)), Delta{}},
		{"another account", batch(otherAccount), Delta{Config: true, Endpoints: []string{"a.default.svc.cluster.local|80"}}},
		{"a pod is gone", gone(pod("a-1", "", "", false)), Delta{Config: true, Endpoints: []string{"a.default.svc.cluster.local|80"}}},
		{"a pod of no service", batch(pod("x", "10.1.0.9", "x", true)), Delta{Config: true}},
		{"a pod without an address", batch(pod("x", "", "a", true)), Delta{}},
		// Callers of a headless service have its endpoints in their listeners.
		{"a headless pod stops", batch(pod("h-1", "10.1.0.3", "headless", false)), Delta{Config: true, Endpoints: []string{"headless.default.svc.cluster.local|80"}}},
		{"a route", batch(object(config.VirtualService, "default", "v", &networking.VirtualService{Hosts: []string{"a"}})), Delta{Config: true}},
		{"a rule", batch(object(config.DestinationRule, "default", "d", &networking.DestinationRule{Host: "a"})), Delta{Config: true, Endpoints: []string{"a.default.svc.cluster.local|80"}}},
		{"a policy", batch(object(config.PeerAuthentication, "default", "p", &security.PeerAuthentication{})), Delta{Config: true, Endpoints: []string{
			"a.default.svc.cluster.local|80", "headless.default.svc.cluster.local|80", "other.default.svc.cluster.local|80",
		}}},
		{"a kind that nothing is made of", batch(object(config.Secret, "default", "s", &corev1.Secret{})), Delta{}},
		{"some other ConfigMap", batch(object(config.ConfigMap, "default", "istio", &corev1.ConfigMap{})), Delta{}},
		{"a deletion of what is not there", gone(object(config.Gateway, "default", "g", nil)), Delta{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := NewBuilder(Options{})
			b.Apply(batch(start...))
			if _, d := b.Apply(c.batch); !reflect.DeepEqual(d, c.want) {
				t.Errorf("got %+v, want %+v", d, c.want)
			}
		})
	}
}

func TestWorldsShareWhatABatchDoesNotTouch(t *testing.T) {
	b := NewBuilder(Options{})
	v := object(config.VirtualService, "default", "v", &networking.VirtualService{Hosts: []string{"a"}})
	first, _ := b.Apply(batch(service("a", "10.96.0.1", web), service("b", "", web), pod("a-1", "10.1.0.1", "a", true), v))

	second, _ := b.Apply(batch(object(config.VirtualService, "default", "w", &networking.VirtualService{Hosts: []string{"b"}})))
	if second.services != first.services || second.workloads != first.workloads || second.endpoints != first.endpoints || second.rules != first.rules {
		t.Error("a VirtualService copied indexes of other kinds")
	}
	if second.virtuals[0] != first.virtuals[0] {
		t.Error("an untouched VirtualService was converted again")
	}
	third, _ := b.Apply(batch(service("c", "10.96.0.3", web)))
	for _, s := range first.Services() {
		if third.Service(s.Host) != s {
			t.Errorf("%s is another value, though nothing of it changed", s.Host)
		}
	}
	if len(first.VirtualServices()) != 1 || len(first.Services()) != 2 {
		t.Error("the first World changed")
	}
}

func TestAddressesStayWhenServicesComeAndGo(t *testing.T) {
	b := NewBuilder(Options{})
	a := service("a", "", web)
	w, _ := b.Apply(batch(a))
	was := w.Service("a.default.svc.cluster.local").Addresses
	if len(was) != 1 || !netip.MustParsePrefix("10.96.0.0/16").Contains(was[0]) {
		t.Fatalf("the address is %v", was)
	}
	for i := range 500 {
		o := service("s"+string(rune('a'+i%26))+string(rune('a'+i/26)), "", web)
		o.Created = time.Unix(int64(i+1), 0)
		b.Apply(batch(o))
	}
	// One that asks for the address by name gets it, and the other moves on.
	w, _ = b.Apply(batch(service("taker", was[0].String(), web)))
	if got := w.ServiceAt(was[0]); got == nil || got.Name != "taker" {
		t.Errorf("%v belongs to %v", was[0], got)
	}
	seen := map[netip.Addr]bool{}
	for _, s := range w.Services() {
		for _, ip := range s.Addresses {
			if seen[ip] {
				t.Errorf("%v was given twice", ip)
			}
			seen[ip] = true
			if last := ip.As4()[3]; last == 0 || last == 255 {
				t.Errorf("%s got %v", s.Name, ip)
			}
		}
	}
	w, _ = b.Apply(gone(service("taker", "")))
	if got := w.Service("a.default.svc.cluster.local").Addresses; !slices.Equal(got, was) {
		t.Errorf("the address is %v now, and was %v", got, was)
	}
}

func TestAFullRangeLeavesServicesWithoutAddress(t *testing.T) {
	b := NewBuilder(Options{ServiceCIDR: netip.MustParsePrefix("10.0.0.0/24")})
	var objects []*config.Object
	for i := range 300 {
		objects = append(objects, service("s"+string(rune('a'+i%26))+string(rune('a'+i/26)), "", web))
	}
	w, _ := b.Apply(batch(objects...))
	with := 0
	for _, s := range w.Services() {
		with += len(s.Addresses)
	}
	if with != 254 {
		t.Errorf("%d services got an address of the 254 there are", with)
	}
}

func TestAnAddressBelongsToThePodThatStays(t *testing.T) {
	ip := netip.MustParseAddr("10.1.0.1")
	going := pod("a-old", "10.1.0.1", "a", true)
	going.Spec.(*corev1.Pod).DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	b := NewBuilder(Options{})
	w, _ := b.Apply(batch(going))
	if w.Workload(ip).Name != "a-old" {
		t.Fatal("the only pod does not own its address")
	}
	w, _ = b.Apply(batch(pod("b-new", "10.1.0.1", "b", true)))
	if got := w.Workload(ip).Name; got != "b-new" {
		t.Errorf("the address belongs to %s", got)
	}
	w, _ = b.Apply(gone(pod("b-new", "", "", false)))
	if got := w.Workload(ip); got == nil || got.Name != "a-old" {
		t.Errorf("the address belongs to %v", got)
	}
}

func TestPodsThatAreNoWorkloads(t *testing.T) {
	ended := pod("a", "10.1.0.1", "a", true)
	ended.Spec.(*corev1.Pod).Status.Phase = corev1.PodSucceeded
	node := pod("b", "10.1.0.2", "a", true)
	node.Spec.(*corev1.Pod).Spec.HostNetwork = true
	w, _ := NewBuilder(Options{}).Apply(batch(ended, node, pod("c", "", "a", false)))
	if n := len(w.Workloads()); n != 0 {
		t.Errorf("there are %d workloads", n)
	}
}

func TestWorkloadsAreNamedAsUsersKnowThem(t *testing.T) {
	yes := true
	for _, c := range []struct {
		name   string
		labels map[string]string
		owner  *metav1.OwnerReference
		prefix string
		want   [3]string // app, canonical name, revision
	}{
		{"web-5d-x", map[string]string{"pod-template-hash": "5d", "app": "site", "version": "v2"},
			&metav1.OwnerReference{Kind: "ReplicaSet", Name: "web-5d", Controller: &yes}, "", [3]string{"web", "site", "v2"}},
		{"db-0", nil, &metav1.OwnerReference{Kind: "StatefulSet", Name: "db", Controller: &yes}, "", [3]string{"db", "db", "latest"}},
		{"web-5d-x", map[string]string{"pod-template-hash": "5d"}, nil, "web-5d-", [3]string{"web", "web", "latest"}},
		{"alone", map[string]string{"service.istio.io/canonical-name": "c", "app.kubernetes.io/name": "n", "service.istio.io/canonical-revision": "r"},
			nil, "", [3]string{"alone", "c", "r"}},
	} {
		o := pod(c.name, "10.1.0.1", "", true)
		o.Labels = c.labels
		in := o.Spec.(*corev1.Pod)
		in.GenerateName = c.prefix
		if c.owner != nil {
			in.OwnerReferences = []metav1.OwnerReference{*c.owner}
		}
		wl := fromPod(o, Options{})
		if got := [3]string{wl.App, wl.CanonicalName, wl.CanonicalRevision}; got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func TestMutualTLSIsToldFromThePod(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*config.Object, *corev1.Pod)
		want bool
	}{
		{"nothing", func(*config.Object, *corev1.Pod) {}, false},
		{"label", func(o *config.Object, _ *corev1.Pod) { o.Labels["security.istio.io/tlsMode"] = "istio" }, true},
		{"a gateway's proxy", func(_ *config.Object, p *corev1.Pod) {
			p.Spec.Containers = []corev1.Container{{Name: "istio-proxy"}}
		}, false},
		{"turned off", func(o *config.Object, p *corev1.Pod) {
			o.Labels["security.istio.io/tlsMode"] = "disabled"
			p.Spec.Containers = []corev1.Container{{Name: "istio-proxy"}}
		}, false},
	} {
		o := pod("a", "10.1.0.1", "a", true)
		c.edit(o, o.Spec.(*corev1.Pod))
		if got := fromPod(o, Options{}).MTLS; got != c.want {
			t.Errorf("%s: got %v", c.name, got)
		}
	}
}

func TestProtocolOfAPort(t *testing.T) {
	text := func(s string) *string { return &s }
	for _, c := range []struct {
		port uint16
		name string
		app  *string
		want Protocol
	}{
		{80, "http", nil, HTTP},
		{80, "http-web", nil, HTTP},
		{80, "HTTP-web", nil, HTTP},
		{80, "httpx", nil, Auto},
		{80, "", nil, Auto},
		{80, "grpc", nil, GRPC},
		{80, "grpc-web", nil, GRPC},
		{80, "grpc-web-x", nil, GRPC},
		{80, "http2-x", nil, HTTP2},
		{443, "https", nil, TLS},
		{443, "tls-x", nil, TLS},
		{53, "udp-dns", nil, UDP},
		{3306, "", nil, TCP},
		{3306, "http", nil, HTTP},
		{27017, "anything", nil, TCP},
		{80, "http", text("tcp"), TCP},
		{80, "tcp", text("kubernetes.io/h2c"), HTTP2},
		{80, "tcp", text("something.else"), Auto},
		{80, "http", text(""), HTTP},
	} {
		if got := servicePortProtocol(c.port, c.name, c.app); got != c.want {
			t.Errorf("port %d %q: got %s, want %s", c.port, c.name, got, c.want)
		}
	}
}

func TestExportTo(t *testing.T) {
	for _, c := range []struct {
		list, fallback []string
		own, other     bool
	}{
		{nil, nil, true, true},
		{nil, []string{"."}, true, false},
		{[]string{"*"}, []string{"."}, true, true},
		{[]string{"."}, nil, true, false},
		{[]string{"other"}, nil, false, true},
		{[]string{".", "other"}, nil, true, true},
		{[]string{"~"}, nil, false, false},
	} {
		v := visibility(c.list, c.fallback, "own")
		if v.VisibleTo("own") != c.own || v.VisibleTo("other") != c.other {
			t.Errorf("%q: own %v, other %v", c.list, v.VisibleTo("own"), v.VisibleTo("other"))
		}
	}
}

func TestUnreadableMeshConfigLeavesTheDefaults(t *testing.T) {
	cm := &corev1.ConfigMap{Data: map[string]string{"mesh": "trustDomain: [not, a, name]"}}
	w, _ := NewBuilder(Options{}).Apply(batch(object(config.ConfigMap, "istio-system", "istio", cm)))
	if m := w.Mesh(); m.TrustDomain != "cluster.local" || !m.AutoMTLS || m.ConnectTimeout != 10*time.Second {
		t.Errorf("got %+v", m)
	}
}

func TestTheRootNamespaceMoves(t *testing.T) {
	strict := &security.PeerAuthentication{Mtls: &security.PeerAuthentication_MutualTLS{Mode: security.PeerAuthentication_MutualTLS_STRICT}}
	b := NewBuilder(Options{})
	w, _ := b.Apply(batch(object(config.PeerAuthentication, "root", "p", strict)))
	if got := w.NamespaceMTLS("default"); got != Permissive {
		t.Fatalf("got %s", got)
	}
	cm := &corev1.ConfigMap{Data: map[string]string{"mesh": "rootNamespace: root"}}
	w, d := b.Apply(batch(object(config.ConfigMap, "istio-system", "istio", cm)))
	if got := w.NamespaceMTLS("default"); got != Strict || !d.Config {
		t.Errorf("got %s, delta %+v", got, d)
	}
}

func TestPortModesInheritFromTheirWorkload(t *testing.T) {
	mode := func(m security.PeerAuthentication_MutualTLS_Mode) *security.PeerAuthentication_MutualTLS {
		return &security.PeerAuthentication_MutualTLS{Mode: m}
	}
	p := &security.PeerAuthentication{
		Selector: &typev1beta1.WorkloadSelector{MatchLabels: map[string]string{"app": "a"}},
		PortLevelMtls: map[uint32]*security.PeerAuthentication_MutualTLS{
			80: mode(security.PeerAuthentication_MutualTLS_DISABLE), 81: mode(security.PeerAuthentication_MutualTLS_UNSET),
		},
	}
	ns := &security.PeerAuthentication{Mtls: mode(security.PeerAuthentication_MutualTLS_STRICT)}
	w, _ := NewBuilder(Options{}).Apply(batch(
		object(config.PeerAuthentication, "default", "p", p), object(config.PeerAuthentication, "default", "ns", ns)))
	m := w.MTLS("default", map[string]string{"app": "a"})
	if m.Port(80) != Disable || m.Port(81) != Strict || m.Port(82) != Strict {
		t.Errorf("got %+v", m)
	}
	if got := w.MTLS("default", map[string]string{"app": "b"}); got.Mode != Strict || got.Ports != nil {
		t.Errorf("another workload got %+v", got)
	}
}

func TestInstancesOfAWorkload(t *testing.T) {
	entry := &networking.ServiceEntry{
		Hosts: []string{"x.example.com"}, Resolution: networking.ServiceEntry_STATIC,
		Ports:     []*networking.ServicePort{{Number: 90, Name: "tcp", Protocol: "TCP", TargetPort: 9090}},
		Endpoints: []*networking.WorkloadEntry{{Address: "10.1.0.1"}},
	}
	w, _ := NewBuilder(Options{}).Apply(batch(
		service("a", "10.96.0.1", web), service("b", "10.96.0.2", web), pod("a-1", "10.1.0.1", "a", false),
		object(config.ServiceEntry, "other", "x", entry)))
	var got []host.Name
	for _, i := range w.InstancesOf(w.Workload(netip.MustParseAddr("10.1.0.1"))) {
		got = append(got, i.Service.Host)
	}
	if want := []host.Name{"a.default.svc.cluster.local", "x.example.com"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestMemoIsMadeOnceForAWorld(t *testing.T) {
	b := NewBuilder(Options{})
	n := 0
	f := func() any { n++; return n }
	w := b.World()
	first, again, other := w.Memo("k", f), w.Memo("k", f), w.Memo("l", f)
	if first != 1 || again != 1 || other != 2 {
		t.Error("a value was made again, or shared between keys")
	}
	next, _ := b.Apply()
	if next.Memo("k", f) != 3 {
		t.Error("the next World has the value of the last")
	}
}

func TestPrintsTellValuesApart(t *testing.T) {
	sum := func(values ...string) Print {
		p := NewPrinter()
		p.Text(values...)
		return p.Sum()
	}
	if sum("a", "bc") == sum("ab", "c") || sum("a") == sum("a", "") || sum() == sum("") {
		t.Error("different texts have the same print")
	}
}
