package install

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

func plan(t *testing.T, text string, settings ...string) *Plan {
	t.Helper()
	p, err := NewPlan("v1.2.3", "", []Source{{"mesh.yaml", []byte("kind: IstioOperator\nspec:\n" + text)}}, settings)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func rendered(t *testing.T, p *Plan) map[string]Object {
	t.Helper()
	components, err := p.Components()
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]Object)
	for _, c := range components {
		for _, o := range c.Objects {
			if o.Labels()[ownerLabel] != "heddle" || o.Labels()[componentLabel] != c.Name {
				t.Errorf("%s is not labelled", o)
			}
			out[o.String()] = o
		}
	}
	return out
}

func TestSettingsReachTheirObjects(t *testing.T) {
	const istiod = "Deployment istio-system/istiod"
	container := func(o Object) map[string]any {
		list := at(o, "spec", "template", "spec", "containers").([]any)
		return list[0].(map[string]any)
	}
	for _, c := range []struct {
		name, spec string
		settings   []string
		object     string
		get        func(o Object) any
		want       any
	}{
		{"the build's version is the tag", "  profile: minimal", nil, istiod, func(o Object) any { return container(o)["image"] }, "ghcr.io/heddle-mesh/heddled:v1.2.3"},
		{"hub and tag", "  {profile: minimal, hub: h.example, tag: 1.5}", nil, istiod, func(o Object) any { return container(o)["image"] }, "h.example/heddled:1.5"},
		{"--set beats the file", "  {profile: minimal, hub: a}", []string{"values.global.hub=b", "global.tag=t"}, istiod, func(o Object) any { return container(o)["image"] }, "b/heddled:t"},
		{"k8s settings", "  components: {pilot: {k8s: {replicaCount: 3, hpaSpec: {minReplicas: 2}}}}", nil, "HorizontalPodAutoscaler istio-system/istiod", func(o Object) any { return at(o, "spec", "minReplicas") }, 2.0},
		{"values without autoscaling", "  values: {autoscaleEnabled: false, pilot: {replicaCount: 2}}", nil, istiod, func(o Object) any { return at(o, "spec", "replicas") }, 2.0},
		{"revision", "  {profile: minimal, revision: canary}", nil, "Service istio-system/istiod-canary", func(o Object) any { return at(o, "spec", "selector", "istio.io/rev") }, "canary"},
		{"namespace", "  {profile: minimal, namespace: mesh}", nil, "Service mesh/istiod", Object.name, "istiod"},
		{"mesh settings", "  {profile: minimal, meshConfig: {accessLogFile: /dev/stdout, defaultConfig: {drainDuration: 9s}}}", nil, "ConfigMap istio-system/istio",
			func(o Object) any {
				return strings.Count(o.Data("mesh"), "accessLogFile: /dev/stdout") + strings.Count(o.Data("mesh"), "drainDuration: 9s") + strings.Count(o.Data("mesh"), "discoveryAddress: istiod.istio-system.svc:15012")
			}, 3},
		{"a gateway of another name", "  components: {ingressGateways: [{name: edge, enabled: true, namespace: gw, k8s: {service: {type: NodePort}}}]}", nil, "Service gw/edge", func(o Object) any { return at(o, "spec", "type") }, "NodePort"},
		{"an egress gateway is called from inside", "  profile: demo", nil, "Service istio-system/istio-egressgateway", func(o Object) any { return at(o, "spec", "type") }, "ClusterIP"},
		{"lists", "  profile: minimal", []string{"extraContainerArgs={--a,--b}", `podAnnotations.example\.com/x=y`}, istiod, func(o Object) any { return at(o, "spec", "template", "metadata", "annotations", "example.com/x") }, "y"},
		{"injection leaves the control plane alone", "  profile: minimal", nil, istiod, func(o Object) any { return at(o, "spec", "template", "metadata", "labels", "sidecar.istio.io/inject") }, "false"},
	} {
		t.Run(c.name, func(t *testing.T) {
			objects := rendered(t, plan(t, c.spec, c.settings...))
			o, ok := objects[c.object]
			if !ok {
				t.Fatalf("there is no %s among %v", c.object, slices.Sorted(maps.Keys(objects)))
			}
			if got := c.get(o); got != c.want {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}

func (o Object) name() any { return o.Name() }

func TestFaultsOfSettingsAreNamed(t *testing.T) {
	for _, c := range []struct{ text, setting, want string }{
		{"kind: Pod", "", "mesh.yaml: kind is \"Pod\""},
		{"kind: IstioOperator\nspec: {profile: none-such}", "", "default, demo"},
		{"kind: IstioOperator\nspec: {components: {pilot: {k8s: {overlays: []}}}}", "", "overlays"},
		{"kind: IstioOperator", "novalue", "--set novalue"},
		{"kind: IstioOperator", "a[99999]=1", "no index"},
		{"kind: [", "", "mesh.yaml"},
	} {
		var set []string
		if c.setting != "" {
			set = []string{c.setting}
		}
		if _, err := NewPlan("v1", "", []Source{{"mesh.yaml", []byte(c.text)}}, set); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: %v, want %s", c.text, c.setting, err, c.want)
		}
	}
}

// TestNoWebhookCanStopACluster holds the webhooks to what keeps a cluster alive
// while the control plane is not: system namespaces are never asked about, each
// injector needs a label, and validation begins open.
func TestNoWebhookCanStopACluster(t *testing.T) {
	for name, o := range rendered(t, plan(t, "  {values: {sidecarInjectorWebhook: {enableNamespacesByDefault: true}, revisionTags: [prod]}}")) {
		hooks, _ := o["webhooks"].([]any)
		for _, h := range hooks {
			m := h.(map[string]any)
			b, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			text := string(b)
			if strings.Contains(name, "Validating") {
				if m["failurePolicy"] != "Ignore" || strings.Contains(text, `"pods"`) {
					t.Errorf("%s: %s", name, text)
				}
				continue
			}
			for _, want := range []string{`"kubernetes.io/metadata.name","operator":"NotIn"`, "kube-system", `"resources":["pods"]`, `"operations":["CREATE"]`} {
				if !strings.Contains(text, want) {
					t.Errorf("%s: %v has no %s", name, m["name"], want)
				}
			}
		}
	}
}

func TestTagMeansARevision(t *testing.T) {
	o, err := Tag("prod", "canary", "istio-system", false)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Manifest([]Object{o})
	if err != nil {
		t.Fatal(err)
	}
	if o.Name() != "istio-revision-tag-prod" || o.Labels()["istio.io/rev"] != "canary" || !strings.Contains(string(b), "name: istiod-canary") || !strings.Contains(string(b), "- prod") {
		t.Errorf("%s", b)
	}
}

// apiServer is as much of an API server as an installation needs: server-side
// apply is a replacement, and everything runs at once.
type apiServer struct {
	mu      sync.Mutex
	objects map[string]Object // by path
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	answer := func(v any) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(v)
	}
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if parts[0] == "version" {
		answer(map[string]string{"gitVersion": "v1.34.4"})
		return
	}
	if n := len(parts); r.Method == http.MethodGet && (parts[0] == "api" && n == 2 || parts[0] == "apis" && n == 3) {
		list := []map[string]any{}
		for _, k := range append(slices.Clone(owned), []struct{ apiVersion, kind string }{
			{"v1", "Namespace"}, {"v1", "Secret"}, {"coordination.k8s.io/v1", "Lease"}, {"apiextensions.k8s.io/v1", "CustomResourceDefinition"},
		}...) {
			if root(k.apiVersion) == "/"+strings.Join(parts, "/") {
				cluster := strings.HasPrefix(k.kind, "Cluster") || strings.HasSuffix(k.kind, "Configuration") || k.kind == "Namespace" || k.kind == "CustomResourceDefinition"
				list = append(list, map[string]any{"kind": k.kind, "name": strings.ToLower(k.kind) + "s", "namespaced": !cluster})
			}
		}
		answer(map[string]any{"resources": list})
		return
	}
	switch r.Method {
	case http.MethodPatch:
		var o Object
		b, err := io.ReadAll(r.Body)
		if err != nil || json.Unmarshal(b, &o) != nil || r.URL.Query().Get("fieldManager") == "" {
			http.Error(w, "bad", http.StatusBadRequest)
			return
		}
		o["status"] = map[string]any{"updatedReplicas": 1, "availableReplicas": 1, "replicas": 1,
			"conditions": []any{map[string]any{"type": "Established", "status": "True"}}}
		if r.URL.Query().Get("dryRun") == "" {
			s.objects[r.URL.Path] = o
		}
		answer(o)
	case http.MethodDelete:
		delete(s.objects, r.URL.Path)
		answer(map[string]any{})
	case http.MethodGet:
		if o, ok := s.objects[r.URL.Path]; ok {
			answer(o)
			return
		}
		if selector := r.URL.Query().Get("labelSelector"); selector != "" || parts[len(parts)-1] == "leases" {
			items := []Object{}
			for _, p := range slices.Sorted(maps.Keys(s.objects)) {
				o := s.objects[p]
				if !strings.HasSuffix(p, "/"+parts[len(parts)-1]+"/"+o.Name()) {
					continue
				}
				fits := true
				for _, want := range strings.FieldsFunc(selector, func(r rune) bool { return r == ',' }) {
					k, v, exact := strings.Cut(want, "=")
					got, has := o.Labels()[k]
					fits = fits && has && (!exact || got == v)
				}
				if fits {
					items = append(items, o)
				}
			}
			answer(map[string]any{"items": items})
			return
		}
		w.WriteHeader(http.StatusNotFound)
		json.NewEncoder(w).Encode(map[string]any{"message": "not found", "code": 404})
	}
}

func TestInstallationReplacesTheOneBefore(t *testing.T) {
	api := &apiServer{objects: make(map[string]Object)}
	server := httptest.NewServer(api)
	defer server.Close()
	to, err := NewCluster(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer to.http.CloseIdleConnections()
	var done []string
	i := Installer{Cluster: to, Timeout: time.Minute, Progress: func(c, _ string, d bool) {
		if d {
			done = append(done, c)
		}
	}}
	install := func(p *Plan) {
		t.Helper()
		components, err := p.Components()
		if err != nil {
			t.Fatal(err)
		}
		if err := i.Install(t.Context(), p, components); err != nil {
			t.Fatal(err)
		}
	}
	has := func(kind, name string) bool {
		for p := range api.objects {
			if strings.HasSuffix(p, "/"+kind+"s/"+name) {
				return true
			}
		}
		return false
	}
	install(plan(t, "  profile: default"))
	if len(done) != 3 || !has("deployment", "istio-ingressgateway") || !has("deployment", "istiod") || !has("namespace", "istio-system") {
		t.Errorf("done %v, there are %v", done, slices.Sorted(maps.Keys(api.objects)))
	}
	tag, err := Tag("prod", "", "istio-system", false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := to.Apply(t.Context(), tag, false); err != nil {
		t.Fatal(err)
	}
	install(plan(t, "  {profile: minimal, revision: canary}"))
	install(plan(t, "  profile: minimal"))
	if has("deployment", "istio-ingressgateway") {
		t.Error("the gateway that is no longer wanted is still there")
	}
	if !has("deployment", "istiod-canary") || !has("mutatingwebhookconfiguration", "istio-revision-tag-prod") {
		t.Error("another revision's objects, or a tag, are gone")
	}
	if faults, n, err := i.Verify(t.Context(), "canary"); err != nil || n == 0 || len(faults) == 0 || !strings.Contains(faults[0], "no certificate authority yet") {
		t.Errorf("%v, %d objects, %v", faults, n, err)
	}
	written := map[string]string{ // by control planes, while they run
		"lease": "istio-status-leader", "secret": "istio-ca-secret", "configmap": "istio-ca-root-cert", "namespace": "istio-system",
	}
	for _, text := range []string{
		"apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata: {name: istio-status-leader, namespace: istio-system}\n",
		"apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata: {name: mine, namespace: istio-system}\n",
		"apiVersion: v1\nkind: Secret\nmetadata: {name: istio-ca-secret, namespace: istio-system}\n",
		"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio-ca-root-cert, namespace: default, labels: {istio.io/config: 'true'}}\n",
	} {
		objects, err := ReadObjects([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := to.Apply(t.Context(), objects[0], false); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		revision string
		purge    bool
		left     bool // the CRDs, and what control planes have written
	}{{"canary", false, true}, {"", true, false}} {
		found, err := i.Uninstall(t.Context(), c.revision, c.purge)
		if err != nil || len(found) == 0 {
			t.Fatalf("%d objects, %v", len(found), err)
		}
		if err := i.Remove(t.Context(), found); err != nil {
			t.Fatal(err)
		}
		if has("deployment", "istiod-canary") || has("customresourcedefinition", "gateways.networking.istio.io") != c.left {
			t.Errorf("after %+v there are %v", c, slices.Sorted(maps.Keys(api.objects)))
		}
		for kind, name := range written {
			if has(kind, name) != c.left {
				t.Errorf("after %+v: %s %s: %v", c, kind, name, has(kind, name))
			}
		}
		if !has("lease", "mine") {
			t.Errorf("after %+v: somebody else's lease is gone", c)
		}
	}
}

func TestDiffTellsWhatChanged(t *testing.T) {
	read := func(text string) []Object {
		o, err := ReadObjects([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	const a = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {a: 1, b: 2, c: 3}\n"
	d, err := Diff(read(a+"---\n"+strings.Replace(a, "name: a", "name: gone", 1)), read(strings.Replace(a, "b: 2", "b: 5", 1)+"---\n"+strings.Replace(a, "name: a", "name: new", 1)))
	if want := "~ Service a\n  -   b: 2\n  +   b: 5\n- Service gone\n+ Service new\n"; err != nil || d != want {
		t.Errorf("%q, want %q, %v", d, want, err)
	}
	if d, err := Diff(read(a), read(a)); d != "" || err != nil {
		t.Errorf("%q, %v", d, err)
	}
}

func FuzzSet(f *testing.F) {
	f.Add("a.b[0].c=1")
	f.Add(`a\.b=null`)
	f.Fuzz(func(t *testing.T, s string) {
		m := make(map[string]any)
		if set(m, s) == nil {
			if _, err := json.Marshal(m); err != nil {
				t.Error(err)
			}
		}
	})
}
