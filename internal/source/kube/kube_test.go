package kube_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/kubeapi"
	"github.com/heddle-mesh/heddle/internal/meshtest/apiserver"
	"github.com/heddle-mesh/heddle/internal/source/kube"
	"github.com/heddle-mesh/heddle/internal/source/sourcetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests; none takes a tenth of it.
const patience = 30 * time.Second

func clients(t *testing.T, api *apiserver.Server) kubeapi.Clients {
	t.Helper()
	c, err := kubeapi.New(api.Rest())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// contractEditor puts single Services, as the contract does.
type contractEditor struct{ api *apiserver.Server }

func (e contractEditor) Put(t *testing.T, _, manifest string) { e.api.Apply(t, manifest) }
func (e contractEditor) Remove(t *testing.T, name string) {
	e.api.Delete(t, "/v1/services", "test", name)
}

func TestTheContractOfSourcesHolds(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T, h sourcetest.Handlers) (sourcetest.Editor, func(context.Context) error) {
		api := apiserver.New(t)
		s, err := kube.New(kube.Config{Clients: clients(t, api), OnBatch: h.OnBatch, OnFaults: h.OnFaults})
		if err != nil {
			t.Fatal(err)
		}
		return contractEditor{api}, s.Run
	})
}

// cluster is a fake API server with a source that follows it, and what the
// source has said so far.
type cluster struct {
	*apiserver.Server
	t          *testing.T
	batches    chan config.Batch
	faults     chan []config.Fault
	namespaces chan []string

	objects map[config.Key]*config.Object
	synced  bool
	wrong   []config.Fault
	seen    []string
}

func start(t *testing.T, api *apiserver.Server, adjust ...func(*kube.Config)) *cluster {
	t.Helper()
	c := &cluster{
		Server: api, t: t, objects: map[config.Key]*config.Object{},
		batches: make(chan config.Batch, 100), faults: make(chan []config.Fault, 100), namespaces: make(chan []string, 100),
	}
	cfg := kube.Config{
		Clients: clients(t, api), Log: slog.New(slog.DiscardHandler),
		OnBatch:      func(b config.Batch) { c.batches <- b },
		OnFaults:     func(f []config.Fault) { c.faults <- f },
		OnNamespaces: func(n []string) { c.namespaces <- n },
	}
	for _, f := range adjust {
		f(&cfg)
	}
	s, err := kube.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	c.until("the first view", func() bool { return c.synced })
	return c
}

// until takes in what the source says until something holds.
func (c *cluster) until(what string, holds func() bool) {
	c.t.Helper()
	late := time.After(patience)
	for !holds() {
		select {
		case b := <-c.batches:
			c.synced = c.synced || b.Synced
			for _, ch := range b.Changes {
				if ch.Object == nil {
					delete(c.objects, ch.Key)
				} else {
					c.objects[ch.Key] = ch.Object
				}
			}
		case c.wrong = <-c.faults:
		case c.seen = <-c.namespaces:
		case <-late:
			c.t.Fatalf("%s: does not come; objects %v, faults %v, namespaces %v", what, c.names(), c.wrong, c.seen)
		}
	}
}

func (c *cluster) names() string {
	var out []string
	for k := range maps.Keys(c.objects) {
		out = append(out, k.String())
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// has waits until these are the objects of some kinds in force.
func (c *cluster) has(want string, kinds ...config.Kind) {
	c.t.Helper()
	c.until(want, func() bool {
		var out []string
		for k := range c.objects {
			if slices.Contains(kinds, k.Kind) {
				out = append(out, k.String())
			}
		}
		slices.Sort(out)
		return strings.Join(out, ", ") == want
	})
}

func virtualService(namespace, name, extra string) string {
	return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: %s, namespace: %s%s}
spec: {hosts: [reviews], http: [{route: [{destination: {host: reviews}}]}]}
`, name, namespace, extra)
}

func TestAKindIsReadOnceItIsDefined(t *testing.T) {
	c := start(t, apiserver.New(t))
	c.has("", config.VirtualService)
	c.Define(t, "networking.istio.io", "v1", "virtualservices", "VirtualService", true)
	c.Apply(t, virtualService("default", "reviews", ""))
	c.has("VirtualService default/reviews", config.VirtualService)
	c.Delete(t, "apiextensions.k8s.io/v1/customresourcedefinitions", "", "virtualservices.networking.istio.io")
	c.has("", config.VirtualService)
	c.Define(t, "networking.istio.io", "v1beta1", "virtualservices", "VirtualService", true)
	c.Apply(t, strings.Replace(virtualService("default", "again", ""), "io/v1", "io/v1beta1", 1))
	c.has("VirtualService default/again", config.VirtualService)
}

func TestTheFirstViewHasTheKindsThatAreDefined(t *testing.T) {
	api := apiserver.New(t)
	api.Define(t, "networking.istio.io", "v1", "virtualservices", "VirtualService", true)
	api.Define(t, "example.org", "v1", "things", "Thing", true)
	api.Apply(t, virtualService("default", "reviews", ""))
	c := start(t, api)
	if got := c.names(); got != "VirtualService default/reviews" {
		t.Errorf("the first view has %s", got)
	}
}

func TestABadObjectTakesNothingElseDown(t *testing.T) {
	api := apiserver.New(t)
	api.Define(t, "networking.istio.io", "v1", "virtualservices", "VirtualService", true)
	api.Apply(t, virtualService("default", "good", ""))
	api.Apply(t, strings.Replace(virtualService("default", "bad", ""), "host: reviews}", "host: reviews}, weight: -1", 1))
	c := start(t, api)
	c.has("VirtualService default/good", config.VirtualService)
	c.until("the fault", func() bool { return len(c.wrong) > 0 })
	if c.wrong[0].Object.Name != "bad" || c.wrong[0].Pos.File != "kubernetes" {
		t.Fatalf("faults are %v", c.wrong)
	}
	// A good one that goes bad keeps its last good version in force.
	before := c.objects[config.Key{Kind: config.VirtualService, Namespace: "default", Name: "good"}]
	c.Apply(t, strings.Replace(virtualService("default", "good", ""), "http:", "nothing: 1, http:", 1))
	c.Apply(t, virtualService("default", "third", ""))
	c.has("VirtualService default/good, VirtualService default/third", config.VirtualService)
	if c.objects[before.Key] != before {
		t.Error("the bad version replaced the good one")
	}
	c.until("both faults", func() bool { return len(c.wrong) == 2 })
	c.Delete(t, "networking.istio.io/v1/virtualservices", "default", "bad")
	c.Apply(t, virtualService("default", "good", ", labels: {a: b}"))
	c.until("no faults", func() bool { return len(c.wrong) == 0 })
	c.until("the good version", func() bool { return c.objects[before.Key].Labels["a"] == "b" })
}

func TestObjectsOfAnotherRevisionAreOutOfSight(t *testing.T) {
	api := apiserver.New(t)
	api.Define(t, "networking.istio.io", "v1", "virtualservices", "VirtualService", true)
	api.Apply(t, virtualService("default", "mine", `, labels: {istio.io/rev: canary}`))
	api.Apply(t, virtualService("default", "all", ""))
	api.Apply(t, virtualService("default", "other", `, labels: {istio.io/rev: stable}`))
	c := start(t, api, func(cfg *kube.Config) { cfg.Revision = "canary" })
	c.has("VirtualService default/all, VirtualService default/mine", config.VirtualService)
	c.Apply(t, virtualService("default", "mine", `, labels: {istio.io/rev: stable}`))
	c.has("VirtualService default/all", config.VirtualService)
}

const meshConfig = `
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    discoverySelectors: [%s]
`

func namespaceWith(name, label string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: {mesh: %s}}\n", name, label)
}

func service(namespace string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: web, namespace: %s}
spec: {selector: {app: web}, ports: [{port: 80}]}
`, namespace)
}

func TestDiscoverySelectorsChooseNamespaces(t *testing.T) {
	api := apiserver.New(t)
	api.Apply(t, fmt.Sprintf(meshConfig, `{matchLabels: {mesh: "in"}}`))
	for ns, label := range map[string]string{"a": "in", "b": "out", "istio-system": "out"} {
		api.Apply(t, namespaceWith(ns, label))
		api.Apply(t, service(ns))
	}
	c := start(t, api)
	c.has("Service a/web, Service istio-system/web", config.Service)
	c.until("two namespaces in sight", func() bool { return strings.Join(c.seen, " ") == "a istio-system" })
	c.Apply(t, namespaceWith("b", "in"))
	c.has("Service a/web, Service b/web, Service istio-system/web", config.Service)
	c.Apply(t, namespaceWith("a", "out"))
	c.has("Service b/web, Service istio-system/web", config.Service)
	c.Apply(t, fmt.Sprintf(meshConfig, ""))
	c.has("Service a/web, Service b/web, Service istio-system/web", config.Service)
	c.until("all namespaces", func() bool { return len(c.seen) == 3 })
}

func TestOnlyWhatIsReadIsKept(t *testing.T) {
	api := apiserver.New(t)
	api.Apply(t, `
apiVersion: v1
kind: Pod
metadata:
  name: web-1
  namespace: default
  labels: {app: web}
  annotations: {kubectl.kubernetes.io/last-applied-configuration: long, sidecar.istio.io/status: "{}", other/key: x}
  managedFields: [{manager: kubectl}]
spec:
  nodeName: n1
  serviceAccountName: web
  volumes: [{name: v, emptyDir: {}}]
  containers: [{name: app, image: web:1, env: [{name: A, value: b}], volumeMounts: [{name: v, mountPath: /v}], ports: [{name: http, containerPort: 80}]}]
status: {phase: Running, podIP: 10.0.0.1, conditions: [{type: Ready, status: "True"}, {type: Initialized, status: "True"}]}
`)
	api.Apply(t, `
apiVersion: v1
kind: Secret
metadata: {name: tls, namespace: default}
type: kubernetes.io/tls
data: {tls.crt: YQ==, tls.key: Yg==, password: Yw==}
---
apiVersion: v1
kind: Secret
metadata: {name: password, namespace: default}
data: {password: Yw==}
---
apiVersion: v1
kind: Secret
metadata: {name: release, namespace: default}
type: helm.sh/release.v1
data: {tls.crt: YQ==}
`)
	c := start(t, api)
	c.has("Secret default/tls", config.Secret)
	o := c.objects[config.Key{Kind: config.Pod, Namespace: "default", Name: "web-1"}]
	text := fmt.Sprintf("%+v", o.Spec)
	for _, s := range []string{"web-1", "10.0.0.1", "sidecar.istio.io/status"} {
		if !strings.Contains(text, s) {
			t.Errorf("the pod has no %s: %s", s, text)
		}
	}
	for _, s := range []string{"last-applied", "kubectl", "web:1", "emptyDir", "mountPath", "Initialized", "other/key"} {
		if strings.Contains(text, s) {
			t.Errorf("the pod still has %s: %s", s, text)
		}
	}
	secret := fmt.Sprintf("%+v", c.objects[config.Key{Kind: config.Secret, Namespace: "default", Name: "tls"}].Spec)
	if strings.Contains(secret, "password") {
		t.Errorf("the secret still has a password: %s", secret)
	}
}

func TestAPodThatEndsIsGone(t *testing.T) {
	api := apiserver.New(t)
	const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: job, namespace: default}\nspec: {containers: [{name: app}]}\nstatus: {phase: %s}\n"
	api.Apply(t, fmt.Sprintf(pod, "Running"))
	c := start(t, api)
	c.has("Pod default/job", config.Pod)
	c.Apply(t, fmt.Sprintf(pod, "Succeeded"))
	c.has("", config.Pod)
}

// statusOf returns what a VirtualService's status says: state, message, and the
// generation it is about.
func (c *cluster) statusOf(name string) string {
	o := c.Get("networking.istio.io/v1/virtualservices", "default", name)
	status, _ := o["status"].(apiserver.Object)
	conditions, _ := status["conditions"].([]any)
	var out []string
	for _, one := range conditions {
		m := one.(apiserver.Object)
		out = append(out, fmt.Sprint(m["type"], "=", m["status"], " ", m["message"]))
	}
	messages, _ := status["validationMessages"].([]any)
	return fmt.Sprint(strings.Join(out, "; "), " @", status["observedGeneration"], " ", len(messages))
}

func TestAnObjectIsToldWhatBecameOfIt(t *testing.T) {
	api := apiserver.New(t)
	api.Define(t, "networking.istio.io", "v1", "virtualservices", "VirtualService", true)
	bad := func(name string) string {
		return strings.Replace(virtualService("default", name, ""), "host: reviews}", "host: reviews}, weight: -1", 1)
	}
	api.Apply(t, virtualService("default", "good", ""))
	api.Apply(t, bad("bad")+"status: {conditions: [{type: Other, status: \"True\", message: mine}]}\n")
	c := start(t, api, func(cfg *kube.Config) { cfg.Replica = "one" })
	says := func(name, want string) {
		t.Helper()
		for late := time.Now().Add(patience); c.statusOf(name) != want; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(late) {
				t.Fatalf("%s says %q, want %q", name, c.statusOf(name), want)
			}
		}
	}
	const fault = "spec.http[0].route[0].weight: -1 is negative, weights are relative; 0 gets no traffic"
	says("good", "Reconciled=True the control plane has it in force @1 0")
	says("bad", "Other=True mine; Reconciled=False "+fault+" @1 1")
	c.Apply(t, bad("good"))
	says("good", "Reconciled=False "+fault+"; the last good version stays in force @2 1")
	c.Apply(t, virtualService("default", "good", ""))
	says("good", "Reconciled=True the control plane has it in force @3 0")
	// What is written is no change of configuration.
	before := c.objects[config.Key{Kind: config.VirtualService, Namespace: "default", Name: "good"}]
	c.Apply(t, virtualService("default", "last", ""))
	c.until("the last", func() bool {
		return c.objects[config.Key{Kind: config.VirtualService, Namespace: "default", Name: "last"}] != nil
	})
	if now := c.objects[before.Key]; now != before {
		t.Error("a status was taken for a change")
	}
}
