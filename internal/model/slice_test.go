package model

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/config"
)

// decoded makes a batch of manifests; a name after "-" removes one.
func decoded(t *testing.T, manifests string) config.Batch {
	t.Helper()
	objects, faults := config.Decode("test.yaml", []byte(manifests))
	for _, f := range faults {
		if f.Severity == config.Error {
			t.Fatal(f)
		}
	}
	var b config.Batch
	for _, o := range objects {
		b.Changes = append(b.Changes, config.Change{Key: o.Key, Object: o})
	}
	return b
}

// answering lists what answers for port 80 of web, with what is known of it.
func answering(w *World) string {
	s := w.Service("web.test.svc.cluster.local")
	if s == nil {
		return "no service"
	}
	var out []string
	for _, e := range w.Endpoints(s).ByPort[80] {
		text := fmt.Sprintf("%s:%d", e.Address, e.Port)
		if e.App != "" {
			text += " " + e.App
		}
		if e.MTLS {
			text += " mtls"
		}
		if e.Draining {
			text += " draining"
		}
		if e.Locality != (Locality{}) {
			text += " " + e.Locality.Region + "/" + e.Locality.Zone + "/" + e.Locality.SubZone
		}
		out = append(out, text)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

const webService = `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: test}
spec: {selector: {app: web}, clusterIP: 10.96.0.9, ports: [{name: http, port: 80, targetPort: named}]}
`

const webPod = `
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: test, labels: {app: web, security.istio.io/tlsMode: istio}}
spec: {nodeName: n1, serviceAccountName: web, containers: [{name: app, ports: [{name: named, containerPort: 8080}]}]}
status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}], conditions: [{type: Ready, status: "True"}]}
`

func webSlice(name, kind, ports, endpoints string) string {
	return fmt.Sprintf(`
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %s, namespace: test, labels: {kubernetes.io/service-name: web}}
addressType: %s
ports: [%s]
endpoints: [%s]
`, name, kind, ports, endpoints)
}

const port8080 = `{name: http, port: 8080, protocol: TCP}`

func TestSlicesSayWhatAnswersForAService(t *testing.T) {
	const ref = `targetRef: {kind: Pod, name: web-1, namespace: test}`
	for _, tt := range []struct{ name, manifests, want string }{
		{"without slices the selector says", webService + webPod, "10.0.0.1:8080 web-1 mtls"},
		{"a slice without endpoints says that there are none", webService + webPod + webSlice("a", "IPv4", port8080, ""), ""},
		{"an endpoint that is not ready is left out", webService + webPod + webSlice("a", "IPv4", port8080, `{addresses: [10.0.0.1], conditions: {ready: false}, `+ref+`}`), ""},
		{"the pod lends its name and its proxy", webService + webPod + webSlice("a", "IPv4", port8080, `{addresses: [10.0.0.1], conditions: {ready: true}, `+ref+`}`), "10.0.0.1:8080 web-1 mtls"},
		{"a terminating one that serves drains", webService + webPod + webSlice("a", "IPv4", port8080, `{addresses: [10.0.0.1], conditions: {ready: false, serving: true, terminating: true}, `+ref+`}`), "10.0.0.1:8080 web-1 mtls draining"},
		{"a terminating one that does not serve is left out", webService + webPod + webSlice("a", "IPv4", port8080, `{addresses: [10.0.0.1], conditions: {ready: false, serving: false, terminating: true}, `+ref+`}`), ""},
		{"a pod that is not seen yet waits", webService + webSlice("a", "IPv4", port8080, `{addresses: [10.0.0.1], `+ref+`}`), ""},
		{"both families of one pod are one endpoint", webService + webPod + webSlice("a", "IPv4", port8080, `{addresses: [10.0.0.1], `+ref+`}`) +
			webSlice("b", "IPv6", port8080, `{addresses: ["fd00::1"], `+ref+`}`), "10.0.0.1:8080 web-1 mtls"},
		{"one pod in two slices is one endpoint", webService + webPod + webSlice("a", "IPv4", port8080, `{addresses: [10.0.0.1], `+ref+`}`) +
			webSlice("b", "IPv4", port8080, `{addresses: [10.0.0.1], `+ref+`}`), "10.0.0.1:8080 web-1 mtls"},
		{"an address without a pod is an endpoint", strings.Replace(webService, "selector: {app: web}, ", "", 1) +
			webSlice("a", "IPv4", port8080, `{addresses: [192.0.2.7], zone: z1}`), "192.0.2.7:8080 /z1/"},
		{"an address that is a pod's is that pod", strings.Replace(webService, "selector: {app: web}, ", "", 1) + webPod +
			webSlice("a", "IPv4", port8080, `{addresses: [10.0.0.1]}`), "10.0.0.1:8080 web-1 mtls"},
		{"a pod on its node's network answers in plain text", webService + strings.NewReplacer("spec: {", "spec: {hostNetwork: true, ", ", security.istio.io/tlsMode: istio", "").Replace(webPod) +
			webSlice("a", "IPv4", port8080, `{addresses: [10.0.0.1], `+ref+`}`), "10.0.0.1:8080 web-1"},
		{"another transport is no port", webService + webPod + webSlice("a", "IPv4", `{name: http, port: 8080, protocol: UDP}`, `{addresses: [10.0.0.1], `+ref+`}`), ""},
		{"published though not ready", strings.Replace(webService, "spec: {", "spec: {publishNotReadyAddresses: true, ", 1) + webPod +
			webSlice("a", "IPv4", port8080, `{addresses: [10.0.0.1], conditions: {ready: false}, `+ref+`}`), "10.0.0.1:8080 web-1 mtls"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := NewBuilder(Options{})
			w, _ := b.Apply(decoded(t, tt.manifests))
			if got := answering(w); got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
			// Object by object, in the opposite order, it comes to the same.
			b = NewBuilder(Options{})
			changes := decoded(t, tt.manifests).Changes
			slices.Reverse(changes)
			for _, c := range changes {
				w, _ = b.Apply(config.Batch{Changes: []config.Change{c}})
			}
			if got := answering(w); got != tt.want {
				t.Errorf("one by one: got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

func TestAChangedSliceTakesTheShortRoad(t *testing.T) {
	b := NewBuilder(Options{})
	up := webSlice("a", "IPv4", port8080, `{addresses: [192.0.2.7]}, {addresses: [192.0.2.8]}`)
	b.Apply(decoded(t, webService+up))
	w, d := b.Apply(decoded(t, webSlice("a", "IPv4", port8080, `{addresses: [192.0.2.8]}`)))
	if want := []string{"web.test.svc.cluster.local|80"}; d.Config || !slices.Equal(d.Endpoints, want) {
		t.Errorf("delta %+v, want endpoints %v alone", d, want)
	}
	if got, want := answering(w), "192.0.2.8:8080"; got != want {
		t.Errorf("answering %q, want %q", got, want)
	}
	if _, d := b.Apply(decoded(t, webSlice("a", "IPv4", port8080, `{addresses: [192.0.2.8]}`))); !d.Empty() {
		t.Errorf("the same slice again: delta %+v", d)
	}
	key := config.Key{Kind: config.EndpointSlice, Namespace: "test", Name: "a"}
	w, _ = b.Apply(config.Batch{Changes: []config.Change{{Key: key}}})
	if got := answering(w); got != "" {
		t.Errorf("without its slice: %q", got)
	}
}

func TestPodsAreWhereTheirNodeIs(t *testing.T) {
	const node = `
---
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: %s, topology.istio.io/subzone: s}}
`
	b := NewBuilder(Options{})
	w, _ := b.Apply(decoded(t, webService+webPod+fmt.Sprintf(node, "z")))
	if got, want := answering(w), "10.0.0.1:8080 web-1 mtls r/z/s"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	w, d := b.Apply(decoded(t, fmt.Sprintf(node, "z2")))
	if got, want := answering(w), "10.0.0.1:8080 web-1 mtls r/z2/s"; got != want {
		t.Errorf("after the node's change: got %q, want %q", got, want)
	}
	if len(d.Endpoints) == 0 {
		t.Error("the endpoints' new place is not told")
	}
	labelled := strings.Replace(webPod, "app: web,", "app: web, istio-locality: a.b.c,", 1)
	w, _ = b.Apply(decoded(t, labelled))
	if got, want := answering(w), "10.0.0.1:8080 web-1 mtls a/b/c"; got != want {
		t.Errorf("with a label of its own: got %q, want %q", got, want)
	}
}
