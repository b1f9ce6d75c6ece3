package kube_test

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"testing"

	"k8s.io/client-go/informers"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/kubeapi"
	"github.com/heddle-mesh/heddle/internal/meshtest/apiserver"
	"github.com/heddle-mesh/heddle/internal/source/kube"
)

const (
	benchServices = 200
	benchPods     = 2000
)

// fill makes services with pods as they look in a cluster: injected, and with
// what kubelet and controllers write into them.
func fill(b *testing.B) *apiserver.Server {
	b.Helper()
	api := apiserver.New(b)
	var container strings.Builder
	for i := range 2 {
		fmt.Fprintf(&container, `
  - name: c%d
    image: registry.example.org/team/service:v1.2.3
    args: [--first, --second=value, --third=another]
    env: [{name: A, value: "1"}, {name: B, valueFrom: {fieldRef: {fieldPath: metadata.name}}}, {name: C, value: some longer text}]
    ports: [{name: http%d, containerPort: %d}]
    resources: {requests: {cpu: 100m, memory: 128Mi}, limits: {cpu: "2", memory: 1Gi}}
    readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 5}
    volumeMounts: [{name: a, mountPath: /a}, {name: b, mountPath: /b}, {name: t, mountPath: /var/run/secrets}]`, i, i, 8080+i)
	}
	for i := range benchServices {
		api.Apply(b, fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: s%d, namespace: default}\nspec: {selector: {app: s%d}, clusterIP: 10.1.%d.%d, ports: [{name: http, port: 80}]}\n", i, i, i/250, i%250))
	}
	for i := range benchPods {
		api.Apply(b, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata:
  name: s%[1]d-7d9c5b8f6d-%[2]d
  namespace: default
  labels: {app: s%[1]d, version: v1, pod-template-hash: 7d9c5b8f6d, security.istio.io/tlsMode: istio}
  annotations: {kubectl.kubernetes.io/restartedAt: "2026-01-01", sidecar.istio.io/status: "{\"initContainers\":[\"istio-init\"],\"containers\":[\"istio-proxy\"],\"volumes\":[\"a\",\"b\"]}"}
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: s%[1]d-7d9c5b8f6d, uid: 11111111-2222-3333-4444-555555555555, controller: true}]
  managedFields: [{manager: kube-controller-manager, operation: Update, apiVersion: v1, fieldsType: FieldsV1, fieldsV1: {"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {"f:containers": {"k:c0": {".": {}, "f:args": {}, "f:env": {}, "f:image": {}, "f:ports": {}}}}}}]
spec:
  nodeName: node-%[3]d
  serviceAccountName: s%[1]d
  volumes: [{name: a, emptyDir: {}}, {name: b, configMap: {name: c}}, {name: t, projected: {sources: [{serviceAccountToken: {path: token, expirationSeconds: 3600}}]}}]
  tolerations: [{key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 300}]
  containers:%[4]s
status:
  phase: Running
  podIP: 10.2.%[5]d.%[6]d
  podIPs: [{ip: 10.2.%[5]d.%[6]d}]
  conditions: [{type: Initialized, status: "True", lastTransitionTime: "2026-01-01T00:00:00Z"}, {type: Ready, status: "True", lastTransitionTime: "2026-01-01T00:00:00Z"}, {type: PodScheduled, status: "True", lastTransitionTime: "2026-01-01T00:00:00Z"}]
  containerStatuses: [{name: c0, ready: true, restartCount: 0, image: registry.example.org/team/service:v1.2.3, imageID: sha256:0123456789abcdef, containerID: "containerd://0123456789abcdef", state: {running: {startedAt: "2026-01-01T00:00:00Z"}}}]
`, i%benchServices, i, i%100, container.String(), i/250, i%250))
	}
	return api
}

// heap is what is in use once all garbage is gone.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkMemory tells how much memory is kept of a cluster's pods and services:
// by the source, and by the client library's informers, which keep objects whole.
func BenchmarkMemory(b *testing.B) {
	report := func(b *testing.B, before uint64) {
		b.ReportMetric(float64(heap()-before)/benchPods, "B/pod")
		b.ReportMetric(0, "ns/op")
	}
	b.Run("source", func(b *testing.B) {
		api := fill(b)
		c, err := kubeapi.New(api.Rest())
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			before := heap()
			synced := make(chan int, 1)
			s, err := kube.New(kube.Config{Clients: c, OnBatch: func(batch config.Batch) { synced <- len(batch.Changes) }, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- s.Run(ctx) }()
			if n := <-synced; n != benchServices+benchPods {
				b.Fatalf("%d objects came", n)
			}
			report(b, before)
			cancel()
			<-done
		}
	})
	b.Run("informers", func(b *testing.B) {
		api := fill(b)
		c, err := kubeapi.New(api.Rest())
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			before := heap()
			f := informers.NewSharedInformerFactory(c.Core, 0)
			pods, services := f.Core().V1().Pods(), f.Core().V1().Services()
			pods.Informer()
			services.Informer()
			stop := make(chan struct{})
			f.Start(stop)
			f.WaitForCacheSync(stop)
			report(b, before)
			close(stop)
			f.Shutdown()
		}
	})
}
