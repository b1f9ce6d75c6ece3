package config_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
	securityv1beta1 "istio.io/api/security/v1beta1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/config/schema"
)

var update = flag.Bool("update", false, "write what the cases give into their files")

// Each file of testdata/decode is a manifest and, as its archive's file "want",
// the objects and faults that come of it.
func TestDecodeSaysWhatIsWrong(t *testing.T) {
	files, err := filepath.Glob("testdata/decode/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if len(ar.Files) != 2 || ar.Files[1].Name != "want" {
				t.Fatal("a case has a manifest and a file want")
			}
			got := transcript(ar.Files[0].Name, ar.Files[0].Data)
			if *update {
				ar.Files[1].Data = []byte(got)
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if want := string(ar.Files[1].Data); got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func transcript(name string, data []byte) string {
	objects, faults := config.Decode(name, data)
	var b strings.Builder
	for _, o := range objects {
		fmt.Fprintf(&b, "object %s %s at %s\n", o.APIVersion, o.Key, o.Pos)
	}
	for _, f := range faults {
		level := "error"
		switch {
		case f.Security:
			level = "SECURITY"
		case f.Severity == config.Warning:
			level = "warning"
		}
		fmt.Fprintf(&b, "%s %s\n", level, f.Error())
	}
	return b.String()
}

func one(t *testing.T, text string) *config.Object {
	t.Helper()
	objects, faults := config.Decode("one.yaml", []byte(text))
	for _, f := range faults {
		if f.Severity == config.Error {
			t.Fatal(f)
		}
	}
	if len(objects) != 1 {
		t.Fatalf("%d objects", len(objects))
	}
	return objects[0]
}

func TestEveryFieldHasItsLine(t *testing.T) {
	o := one(t, `# a comment

apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: reviews
  labels:
    app.kubernetes.io/name: x
spec:
  hosts:
  - reviews
  http:
  - match:
    - headers:
        x-user:
          exact: jason
    route:
    - destination:
        host: reviews
      weight: 80
    - destination: {host: reviews, subset: v2}
      weight: 20
`)
	for path, line := range map[string]int{
		"apiVersion":                            3,
		"metadata.name":                         6,
		"metadata.labels":                       7,
		"spec.hosts":                            10,
		"spec.hosts[0]":                         11,
		"spec.http[0]":                          13,
		"spec.http[0].match[0].headers":         14,
		"spec.http[0].match[0].headers[x-user]": 15,
		"spec.http[0].match[0].headers[x-user].exact": 16,
		"spec.http[0].route[0].weight":                20,
		"spec.http[0].route[1]":                       21,
		"spec.http[0].route[1].destination.subset":    21,
		"spec.http[0].route[1].weight":                22,
		// Not written: the nearest that is.
		"spec.http[0].route[1].headers.request": 21,
		"spec.tcp[0].route":                     9,
		"nowhere":                               3,
	} {
		if got := o.At(path); got != (config.Position{File: "one.yaml", Line: line}) {
			t.Errorf("%s is at %v, want line %d", path, got, line)
		}
	}
	if got, ok := o.Lines["metadata.labels[app.kubernetes.io/name]"]; !ok || got != 8 {
		t.Errorf("the label is at %d", got)
	}
}

func TestValuesArrive(t *testing.T) {
	vs := one(t, `{"apiVersion": "networking.istio.io/v1alpha3", "kind": "VirtualService",
 "metadata": {"name": "a\ud83d\ude00", "namespace": "n", "annotations": {"k": "v"}, "creationTimestamp": "2026-01-02T03:04:05Z"},
 "spec": {"hosts": ["a"], "http": [{"timeout": "1m30s", "retries": {"attempts": 0, "retryRemoteLocalities": false}}]}}`)
	spec := vs.Spec.(*networkingv1alpha3.VirtualService)
	if vs.Name != "a😀" || vs.Namespace != "n" || vs.Annotations["k"] != "v" || vs.Kind != config.VirtualService {
		t.Errorf("object is %+v", vs.Key)
	}
	if !vs.Created.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) {
		t.Errorf("created %v", vs.Created)
	}
	if vs.Pos.Line != 1 || vs.Lines["metadata.name"] != 2 || vs.Lines["spec.hosts[0]"] != 3 {
		t.Errorf("lines of JSON are %v", vs.Lines)
	}
	if d := spec.Http[0].Timeout.AsDuration(); d != 90*time.Second {
		t.Errorf("timeout is %v", d)
	}
	if r := spec.Http[0].Retries.RetryRemoteLocalities; r == nil || r.Value {
		t.Errorf("a wrapper that is false is %v", r)
	}

	pa := one(t, "apiVersion: security.istio.io/v1beta1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: {selector: {matchLabels: {a: b}}, portLevelMtls: {8080: {mode: STRICT}}}\n")
	if m := pa.Spec.(*securityv1beta1.PeerAuthentication).PortLevelMtls[8080]; m.GetMode() != securityv1beta1.PeerAuthentication_MutualTLS_STRICT {
		t.Errorf("port 8080 is %v", m)
	}

	d := one(t, `apiVersion: apps/v1
kind: Deployment
metadata: {name: a}
spec:
  replicas: 0x2
  selector: {matchLabels: {app: a}}
  template:
    metadata: {labels: {app: a}}
    spec:
      volumes: [{name: v, configMap: {name: c, defaultMode: 0644}}]
      containers:
      - name: a
        resources: {limits: {cpu: 2, memory: 64Mi}}
        env: [{name: ON, value: "yes"}]
        readinessProbe: {httpGet: {port: web, path: /}, periodSeconds: 1}
`).Spec.(*appsv1.Deployment)
	pod := d.Spec.Template.Spec
	if *d.Spec.Replicas != 2 || *pod.Volumes[0].ConfigMap.DefaultMode != 0o644 || pod.Containers[0].Env[0].Value != "yes" ||
		pod.Containers[0].Resources.Limits.Cpu().Value() != 2 || pod.Containers[0].ReadinessProbe.HTTPGet.Port.StrVal != "web" {
		t.Errorf("deployment is %+v", d.Spec)
	}
	if d.Namespace != "default" {
		t.Errorf("namespace is %q", d.Namespace)
	}

	s := one(t, "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata:\n  k: |\n    aGVs\n    bG8=\n").Spec.(*corev1.Secret)
	if string(s.Data["k"]) != "hello" {
		t.Errorf("secret is %q", s.Data["k"])
	}

	r := one(t, "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: HTTPRoute\nmetadata: {name: a}\nspec: {hostnames: [a.b], rules: [{backendRefs: [{name: s, port: 80}]}]}\n").Spec.(*gatewayv1.HTTPRoute)
	if r.Spec.Hostnames[0] != "a.b" || *r.Spec.Rules[0].BackendRefs[0].Port != 80 {
		t.Errorf("route is %+v", r.Spec)
	}
}

// A document is small, and what it stands for is not.
func TestBombsAreDefused(t *testing.T) {
	bomb := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\na0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
	for i := 1; i < 10; i++ {
		bomb += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 10), ","))
	}
	for name, c := range map[string]struct{ text, want string }{
		"aliases of aliases":   {bomb, "more than 200000 values"},
		"an alias in itself":   {"a: &a [*a]\n", "100 deep"},
		"a merge of itself":    {"a: &a\n  <<: *a\n", "100 deep"},
		"brackets":             {strings.Repeat("[", 5000) + strings.Repeat("]", 5000), "100 deep"},
		"JSON brackets":        {`{"a":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + "}", "100 deep"},
		"a very long document": {"a: " + strings.Repeat("x", 9<<20), "bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			objects, faults := config.Decode("bomb.yaml", []byte(c.text))
			if len(objects) != 0 || len(faults) != 1 || !strings.Contains(faults[0].Problem, c.want) {
				t.Errorf("%d objects, faults %v", len(objects), faults)
			}
			if d := time.Since(start); d > 10*time.Second {
				t.Errorf("it took %v", d)
			}
		})
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	for _, text := range []string{
		"data: {k: 12345678}", "data: {k: [hunter2]}", "stringData: {k: 12345678}", "stringData: {k: true}",
		"data: {k: 'hunter2!'}", "data: hunter2", "data: {k: {hunter2: x}}",
	} {
		_, faults := config.Decode("s.yaml", []byte("apiVersion: v1\nkind: Secret\nmetadata: {name: a}\n"+text+"\n"))
		if len(faults) == 0 {
			t.Errorf("%s: no fault", text)
		}
		for _, f := range faults {
			if s := f.Error(); strings.Contains(s, "hunter2") || strings.Contains(s, "12345678") || strings.Contains(s, "true") {
				t.Errorf("%s: %s", text, s)
			}
		}
	}
}

// Every kind of the table decodes in every version that it says is served.
func TestEveryServedVersionDecodes(t *testing.T) {
	for _, k := range schema.All() {
		for _, v := range k.Versions {
			av := v
			if k.Group != "" {
				av = k.Group + "/" + v
			}
			text := fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata:\n  name: a\n", av, k.Name)
			objects, faults := config.Decode("k.yaml", []byte(text))
			for _, f := range faults {
				if f.Severity == config.Error {
					t.Errorf("%s %s: %v", av, k.Name, f)
				}
			}
			if want := k.New != nil; (len(objects) == 1) != want {
				t.Errorf("%s %s: %d objects", av, k.Name, len(objects))
			}
			if k.Inert != "" && (len(faults) != 1 || faults[0].Security != k.Guard) {
				t.Errorf("%s %s does not act, and the faults are %v", av, k.Name, faults)
			}
		}
	}
}

func TestMeshConfig(t *testing.T) {
	cm := one(t, `apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |-
    trustDomain: example.org
    root_namespace: mesh-root
    enableAutoMtls: false
    connectTimeout: 3s
    enableTracing: true
`)
	m, faults := config.MeshConfig(cm)
	if m == nil {
		t.Fatalf("faults: %v", faults)
	}
	if m.TrustDomain != "example.org" || m.RootNamespace != "mesh-root" || m.EnableAutoMtls == nil || m.EnableAutoMtls.Value ||
		m.ConnectTimeout.AsDuration() != 3*time.Second {
		t.Errorf("mesh is %v", m)
	}
	if len(faults) != 1 || faults[0].Error() != "one.yaml:10 ConfigMap istio-system/istio data[mesh]: enableTracing: not acted on yet" {
		t.Errorf("faults are %v", faults)
	}

	cm = one(t, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    trustDomian: x\n    connectTimeout: 3\n")
	m, faults = config.MeshConfig(cm)
	if m != nil || len(faults) != 2 || faults[0].Pos.Line != 6 || !strings.Contains(faults[0].Hint, "trustDomain") || faults[1].Pos.Line != 7 {
		t.Errorf("mesh is %v, faults are %v", m, faults)
	}

	cm = one(t, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {other: x}\n")
	if m, faults := config.MeshConfig(cm); m != nil || faults != nil {
		t.Errorf("without the key: %v, %v", m, faults)
	}
}

func TestDecodeAnswersTheSameTwice(t *testing.T) {
	files, err := filepath.Glob("testdata/decode/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		data = bytes.ReplaceAll(data, []byte("-- want --"), nil)
		if a, b := transcript("x", data), transcript("x", data); a != b {
			t.Errorf("%s:\n%s\n%s", file, a, b)
		}
	}
}

func TestFlowSyntaxErrorsAreOnTheirLine(t *testing.T) {
	const text = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a, namespace: b}\nspec:\n  hosts: [web\n  http: []\n"
	_, faults := config.Decode("f.yaml", []byte(text))
	if len(faults) != 1 || faults[0].Pos.Line != 5 {
		t.Errorf("faults %v, want one on line 5, where the list is not closed", faults)
	}
}
