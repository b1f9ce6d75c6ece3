package analyze

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/config"
)

// See testdata/README.md.
func TestIstiosFindings(t *testing.T) {
	data, err := os.ReadFile("testdata/analyzers.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Analyzer, Name string
		Files          []string
		Expected       []struct{ Code, Origin string }
	}
	if err := json.Unmarshal(data, &cases); err != nil {
		t.Fatal(err)
	}
	checks := map[string]func(*analysis){
		"virtualservice.DestinationHostAnalyzer":             (*analysis).destinations,
		"virtualservice.GatewayAnalyzer":                     (*analysis).gatewayReferences,
		"virtualservice.ConflictingMeshGatewayHostsAnalyzer": (*analysis).sameHosts,
	}
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			var objects []*config.Object
			for _, file := range c.Files {
				objects = append(objects, decode(t, read(t, file))...)
			}
			var want, got []string
			for _, e := range c.Expected {
				want = append(want, e.Code+" "+strings.Replace(e.Origin, " default/", " ", 1))
			}
			a := newAnalysis(objects)
			checks[c.Analyzer](a)
			for _, f := range a.sorted() {
				got = append(got, f.Code+" "+strings.Replace(f.Object.String(), " default/", " ", 1))
			}
			slices.Sort(want)
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("got  %q\nwant %q\n%s", got, want, show(a.faults))
			}
		})
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func decode(t *testing.T, text string) []*config.Object {
	t.Helper()
	objects, faults := config.Decode("mesh.yaml", []byte(text))
	for _, f := range faults {
		if f.Severity == config.Error {
			t.Fatal(f)
		}
	}
	return objects
}

func show(faults []config.Fault) string {
	var b strings.Builder
	for _, f := range faults {
		b.WriteString(f.Error() + "\n")
	}
	return b.String()
}

// base is a small mesh in which nothing is wrong.
const base = `apiVersion: v1
kind: Service
metadata: {name: reviews}
spec:
  selector: {app: reviews}
  ports: [{name: http, port: 9080, targetPort: web}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: reviews-v1}
spec:
  selector: {matchLabels: {app: reviews, version: v1}}
  template:
    metadata: {labels: {app: reviews, version: v1}}
    spec: {containers: [{name: reviews, ports: [{name: web, containerPort: 9080}]}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets: [{name: v1, labels: {version: v1}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http: [{route: [{destination: {host: reviews, subset: v1}}]}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
`

func TestFindings(t *testing.T) {
	for _, c := range []struct {
		name, added string
		want        []string // a part of each fault, in order; none: nothing is wrong
	}{
		{"a mesh without mistakes", ``, nil},
		{"route to an unknown host", `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: x}
spec:
  hosts: [x]
  http:
  - route:
    - destination:
        host: review`,
			[]string{"mesh.yaml:44 VirtualService default/x spec.http[0].route[0].destination.host: there is no service review.default.svc.cluster.local, services there are reviews"}},
		{"route to a missing subset", `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: x}
spec:
  hosts: [x]
  http: [{route: [{destination: {host: reviews, subset: v2}}]}]`,
			[]string{"destination.subset: reviews.default.svc.cluster.local has no subset v2, its subsets are v1"}},
		{"route to a port that the service lacks", `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: x}
spec:
  hosts: [x]
  tcp: [{route: [{destination: {host: reviews, port: {number: 1}}}]}]`,
			[]string{"spec.tcp[0].route[0].destination.port.number: service reviews.default.svc.cluster.local has no port 1, its ports are 9080"}},
		{"a host claimed twice: the first of two of one age is the one with the lesser name", `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: again}
spec:
  hosts: [reviews.default.svc.cluster.local]
  http: [{route: [{destination: {host: reviews}}]}]`,
			[]string{
				"VirtualService default/reviews spec.hosts[0]: VirtualService default/again also has routes for reviews.default.svc.cluster.local, sidecars follow VirtualService default/again",
				"VirtualService default/again spec.hosts[0]: VirtualService default/reviews also has routes",
			}},
		{"a gateway that does not exist", `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front}
spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*.example.com"]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: x}
spec:
  hosts: [a.example.com]
  gateways: [front]
  http:
  - match: [{gateways: [fromt]}]
    route: [{destination: {host: reviews}}]`,
			[]string{"spec.http[0].match[0].gateways[0]: there is no Gateway fromt, gateways are front"}},
		{"a rule for nothing", `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: x}
spec: {host: rewiews}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: z}
spec: {host: "*.example.com"}`,
			[]string{"spec.host: there is no service rewiews.default.svc.cluster.local", "spec.host: no service is within *.example.com"}},
		{"a subset twice, and one without workloads", `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: z}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v9, labels: {version: v9}}]}`,
			[]string{
				"spec.subsets[0].name: DestinationRule default/reviews has subset v1 of the host too, and is older",
				"spec.subsets[1].labels: no workload of reviews.default.svc.cluster.local has labels version=v9, its workloads are app=reviews,version=v1",
			}},
		{"a service without workloads, and a port without name", `
apiVersion: v1
kind: Service
metadata: {name: ratings}
spec: {selector: {app: ratings}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: reviews2}
spec: {selector: {app: reviews}, ports: [{port: 80, targetPort: http}]}`,
			[]string{
				"Service default/ratings spec.selector: no workload in namespace default has labels app=ratings",
				"Service default/reviews2 spec.ports[0].targetPort: no container has a port http, ports are web",
			}},
		{"a gateway without proxy", `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front}
spec: {selector: {app: front}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]}`,
			[]string{"Gateway default/front spec.selector: no workload has labels app=front"}},
		{"two policies of one reach", `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: weak}
spec: {mtls: {mode: DISABLE}}`,
			[]string{"PeerAuthentication default/weak spec: PeerAuthentication default/strict is for the whole namespace too, and is older"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := base
			if c.added != "" {
				text += "---" + c.added + "\n"
			}
			faults := Check(decode(t, text))
			for i, f := range faults {
				if f.Severity != config.Warning {
					t.Errorf("%v is no warning", f)
				}
				if i < len(c.want) && !strings.Contains(f.Error(), c.want[i]) {
					t.Errorf("fault %d is\n%s\nwant\n%s", i, f.Error(), c.want[i])
				}
			}
			if len(faults) != len(c.want) {
				t.Errorf("%d faults, want %d:\n%s", len(faults), len(c.want), show(faults))
			}
		})
	}
}

func TestAPartOfAMeshIsNotBlamedForItsWorkloads(t *testing.T) {
	objects := decode(t, `apiVersion: v1
kind: Service
metadata: {name: a}
spec: {selector: {app: a}, ports: [{port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front}
spec: {selector: {app: front}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]}
`)
	if faults := Check(objects); len(faults) > 0 {
		t.Errorf("faults:\n%s", show(faults))
	}
}
