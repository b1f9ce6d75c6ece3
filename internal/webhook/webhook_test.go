package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/version"
	fakediscovery "k8s.io/client-go/discovery/fake"
	"k8s.io/client-go/kubernetes/fake"
	"pgregory.net/rapid"

	"github.com/heddle-mesh/heddle/internal/inject"
)

const settings = `
policy: enabled
templates:
  sidecar: |
    metadata: {labels: {injected: "{{ .Revision }}"}}
    spec:
      containers:
      - {name: istio-proxy, image: "{{ .ProxyImage }}", env: [{name: CLUSTER, value: "{{ .Values.global.multiCluster.clusterName }}"}]}
`

const values = `{"global": {"hub": "h", "tag": 1, "proxy": {"image": "p"}, "multiCluster": {"clusterName": "own"}}}`

func newServer(t *testing.T) *Server {
	t.Helper()
	cfg, err := inject.ReadConfig(settings, values, "")
	if err != nil {
		t.Fatal(err)
	}
	i, err := inject.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(slog.New(slog.DiscardHandler))
	s.SetInjector(i)
	return s
}

// review asks a server about an object.
func review(t *testing.T, s http.Handler, path string, object string) *admissionv1.AdmissionResponse {
	t.Helper()
	body, err := json.Marshal(admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{
			UID: "u1", Operation: admissionv1.Create, Namespace: "shop", Object: runtime.RawExtension{Raw: []byte(object)},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(string(body)))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		t.Fatalf("%s: %d %s", path, w.Code, w.Body)
	}
	var out admissionv1.AdmissionReview
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
		t.Fatal(err)
	}
	if out.Response == nil || out.Response.UID != "u1" || out.Kind != "AdmissionReview" {
		t.Fatalf("%s: %s", path, w.Body)
	}
	return out.Response
}

func TestPodIsInjectedByPatch(t *testing.T) {
	s := newServer(t)
	// The object has a field that no version of the types knows.
	pod := `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"newField":7,"containers":[{"name":"a","image":"i","other":true}]}}`
	res := review(t, s, "/inject/cluster/east", pod)
	if !res.Allowed || res.PatchType == nil || *res.PatchType != admissionv1.PatchTypeJSONPatch {
		t.Fatalf("%+v", res)
	}
	p, err := jsonpatch.DecodePatch(res.Patch)
	if err != nil {
		t.Fatal(err)
	}
	// The API server's object has its maps already.
	got, err := p.Apply([]byte(pod))
	if err != nil {
		t.Fatalf("%s: %v", res.Patch, err)
	}
	for _, want := range []string{`"newField":7`, `"other":true`, `"image":"h/p:1"`, `"value":"east"`, `"injected":"default"`} {
		if !strings.Contains(string(got), want) {
			t.Errorf("%s is missing in %s", want, got)
		}
	}
	if strings.Contains(string(got), `"namespace"`) {
		t.Errorf("the patch sets the namespace: %s", res.Patch)
	}
	if n := s.Counts.InjectionSuccess.Load(); n != 1 {
		t.Errorf("%d injections are counted", n)
	}
}

func TestPodThatIsNotInjected(t *testing.T) {
	s := newServer(t)
	res := review(t, s, "/inject", `{"metadata":{"name":"p","labels":{"sidecar.istio.io/inject":"false"}},"spec":{"containers":[{"name":"a"}]}}`)
	if !res.Allowed || len(res.Patch) > 0 {
		t.Errorf("%+v", res)
	}
	res = review(t, s, "/inject", `{"metadata":{"name":"p","annotations":{"sidecar.istio.io/proxyCPU":"x"}},"spec":{"containers":[{"name":"a"}]}}`)
	if res.Allowed || !strings.Contains(res.Result.Message, "sidecar.istio.io/proxyCPU") {
		t.Errorf("%+v", res.Result)
	}
	res = review(t, NewServer(slog.New(slog.DiscardHandler)), "/inject", `{"spec":{"containers":[]}}`)
	if res.Allowed || !strings.Contains(res.Result.Message, "settings") {
		t.Errorf("without settings: %+v", res)
	}
}

func TestConfigurationIsValidatedAsOffline(t *testing.T) {
	s := newServer(t)
	const head = `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"v","namespace":"shop"%s},"spec":%s}`
	for _, c := range []struct{ object, refused string }{
		{fmt.Sprintf(head, "", `{"hosts":["a"],"http":[{"route":[{"destination":{"host":"a"}}]}]}`), ""},
		{fmt.Sprintf(head, "", `{"hosts":["a"],"http":[{"route":[{"destination":{"host":"a"}}],"timeout":"1us"}]}`), "timeout"},
		{fmt.Sprintf(head, "", `{"hosts":["a"],"httpp":[]}`), "httpp"},
		{fmt.Sprintf(head, `,"annotations":{"internal.istio.io/webhook-always-reject":"true"}`, `{"hosts":["a"],"http":[{"route":[{"destination":{"host":"a"}}]}]}`), "refused"},
		{`{"apiVersion":"example.com/v1","kind":"Thing","metadata":{"name":"x"}}`, ""},
	} {
		res := review(t, s, "/validate", c.object)
		if res.Allowed != (c.refused == "") {
			t.Errorf("%s: %+v", c.object, res)
		}
		if c.refused != "" && !strings.Contains(res.Result.Message, c.refused) {
			t.Errorf("%s is not named: %s", c.refused, res.Result.Message)
		}
	}
}

func TestRequestsThatAreNoReviews(t *testing.T) {
	s := newServer(t)
	for _, c := range []struct {
		method, path, kind, body string
		want                     int
	}{
		{"GET", "/inject", "application/json", "", 405},
		{"POST", "/other", "application/json", "{}", 404},
		{"POST", "/injected", "application/json", "{}", 404},
		{"POST", "/inject", "text/plain", "{}", 415},
		{"POST", "/inject", "application/json", "{", 400},
		{"POST", "/inject", "application/json", `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`, 400},
		{"POST", "/validate", "application/json", strings.Repeat("x", maxReview+1), 413},
		{"GET", "/ready", "", "", 200},
	} {
		r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
		r.Header.Set("Content-Type", c.kind)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("%s %s: %d, want %d", c.method, c.path, w.Code, c.want)
		}
	}
}

func TestPatchMakesOneOfTheOther(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var value *rapid.Generator[any]
		leaf := rapid.OneOf(rapid.Just[any]("s"), rapid.Just[any](1.0), rapid.Just[any](nil), rapid.Just[any](false))
		key := rapid.SampledFrom([]string{"name", "a", "b/c", "d~e"})
		value = rapid.Custom(func(t *rapid.T) any {
			switch rapid.IntRange(0, 3).Draw(t, "kind") {
			case 0:
				m := map[string]any{}
				for k, v := range rapid.MapOfN(key, leaf, 0, 4).Draw(t, "map") {
					m[k] = v
				}
				return m
			case 1:
				list := []any{}
				for _, n := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"x", "y", "z", "w"}), 0, 4, rapid.ID[string]).Draw(t, "names") {
					list = append(list, map[string]any{"name": n, "v": leaf.Draw(t, "v")})
				}
				return list
			}
			return leaf.Draw(t, "leaf")
		})
		object := rapid.MapOf(key, value)
		a, b := object.Draw(t, "a"), object.Draw(t, "b")
		x, _ := json.Marshal(a)
		y, _ := json.Marshal(b)
		text, err := Patch(x, y)
		if err != nil {
			t.Fatal(err)
		}
		p, err := jsonpatch.DecodePatch(text)
		if err != nil {
			t.Fatal(err)
		}
		got, err := p.Apply(x)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		var g, w any
		if json.Unmarshal(got, &g) != nil || json.Unmarshal(y, &w) != nil || !reflect.DeepEqual(g, w) {
			t.Fatalf("%s makes %s of %s, not %s", text, got, x, y)
		}
	})
}

// newKeeper is one on a cluster with the objects.
func newKeeper(t *testing.T, probe func(labels map[string]string) error, objects ...runtime.Object) (*Keeper, *fake.Clientset, *Server) {
	t.Helper()
	c := fake.NewClientset(objects...)
	c.Discovery().(*fakediscovery.FakeDiscovery).FakedServerVersion = &version.Info{GitVersion: "v1.34.4"}
	s := NewServer(slog.New(slog.DiscardHandler))
	k, err := NewKeeper(KeeperConfig{
		Client: c, Server: s, Namespace: "istio-system", Revision: "default", Log: slog.New(slog.DiscardHandler),
		Roots: func() []byte { return []byte("roots") },
		Probe: func(_ context.Context, labels map[string]string) error { return probe(labels) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return k, c, s
}

func TestValidationFailsClosedOnlyOnceItAnswers(t *testing.T) {
	ignore := admissionregv1.Ignore
	service := admissionregv1.WebhookClientConfig{Service: &admissionregv1.ServiceReference{Namespace: "istio-system", Name: "istiod"}}
	ours := metav1.ObjectMeta{Name: "ours", ResourceVersion: "5", Labels: map[string]string{"istio.io/rev": "default"}}
	foreign := metav1.ObjectMeta{Name: "foreign", Labels: map[string]string{"istio.io/rev": "other"}}
	answer := errors.New("connection refused")
	k, c, _ := newKeeper(t, func(map[string]string) error { return answer },
		&admissionregv1.ValidatingWebhookConfiguration{ObjectMeta: ours, Webhooks: []admissionregv1.ValidatingWebhook{{Name: "v", ClientConfig: service, FailurePolicy: &ignore}}},
		&admissionregv1.MutatingWebhookConfiguration{ObjectMeta: ours, Webhooks: []admissionregv1.MutatingWebhook{{Name: "m", ClientConfig: service}, {Name: "url"}}},
		&admissionregv1.MutatingWebhookConfiguration{ObjectMeta: foreign, Webhooks: []admissionregv1.MutatingWebhook{{Name: "m", ClientConfig: service}}},
	)
	reg := c.AdmissionregistrationV1()
	state := func() string {
		v, err := reg.ValidatingWebhookConfigurations().Get(t.Context(), "ours", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		m, err := reg.MutatingWebhookConfigurations().Get(t.Context(), "ours", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		f, err := reg.MutatingWebhookConfigurations().Get(t.Context(), "foreign", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%s %s %s %s%s", v.Webhooks[0].ClientConfig.CABundle, *v.Webhooks[0].FailurePolicy,
			m.Webhooks[0].ClientConfig.CABundle, m.Webhooks[1].ClientConfig.CABundle, f.Webhooks[0].ClientConfig.CABundle)
	}
	look := func(wantSettled bool, want string) {
		t.Helper()
		settled, err := k.Webhooks(t.Context())
		if err != nil || settled != wantSettled {
			t.Errorf("settled %v, %v", settled, err)
		}
		if got := state(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	look(false, "roots Ignore roots ")
	look(false, "roots Ignore roots ") // nobody answers
	answer = errors.New(`admission webhook "other" denied the request: no`)
	look(false, "roots Ignore roots ")
	answer = errors.New(`admission webhook "v" denied the request: no`)
	look(false, "roots Fail roots ")
	look(true, "roots Fail roots ")
}

func TestFaultySettingsLeaveTheLastGoodOnes(t *testing.T) {
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "istio-sidecar-injector", Namespace: "istio-system", ResourceVersion: "1"},
		Data: map[string]string{"config": settings, "values": values}}
	k, c, s := newKeeper(t, nil, cm)
	if s.Ready() {
		t.Error("ready without settings")
	}
	if err := k.Settings(t.Context()); err != nil || !s.Ready() {
		t.Fatalf("not ready: %v", err)
	}
	first := s.injector.Load()
	bad := cm.DeepCopy()
	bad.ResourceVersion, bad.Data["config"] = "2", "templates: {sidecar: '{{ if }}'}"
	if _, err := c.CoreV1().ConfigMaps("istio-system").Update(t.Context(), bad, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := k.Settings(t.Context()); err == nil || !strings.Contains(err.Error(), "istio-system/istio-sidecar-injector") || !strings.Contains(err.Error(), "sidecar") {
		t.Errorf("the fault is not named: %v", err)
	}
	if s.injector.Load() != first {
		t.Error("faulty settings are in force")
	}
	good := cm.DeepCopy()
	good.ResourceVersion = "3"
	if _, err := c.CoreV1().ConfigMaps("istio-system").Update(t.Context(), good, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := k.Settings(t.Context()); err != nil || s.injector.Load() == first {
		t.Errorf("new settings are not in force: %v", err)
	}
}

func FuzzReadReview(f *testing.F) {
	f.Add([]byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u"}}`), "/inject/cluster/a")
	f.Fuzz(func(t *testing.T, body []byte, path string) {
		if r, err := readReview(body); err == nil && r.Request == nil {
			t.Error("a review without a request")
		}
		_, _ = readPath(path)
	})
}
