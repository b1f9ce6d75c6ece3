package validate_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/config/validate"
)

// Each fault stands at the line of the very field, and says what would be right.
func TestFaultsSayWhereAndWhat(t *testing.T) {
	for _, c := range []struct {
		name, manifest string
		want           []string
	}{
		{"VirtualService", `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a}
spec:
  hosts: [a]
  http:
  - match:
    - headers:
        "x y": {exact: a}
      uri: {regex: "("}
    route:
    - destination: {host: a b}
      weight: -1
    - destination: {host: a, port: {number: 0}}
      weight: 2
    timeout: 0s
  - redirect: {redirectCode: 404, uri: /}
    rewrite: {}
`, []string{
			`m.yaml:9 VirtualService default/a spec.http[0].match[0].headers[x y]: "x y" is no header name`,
			`m.yaml:10 VirtualService default/a spec.http[0].match[0].uri.regex: error parsing regexp`,
			`m.yaml:12 VirtualService default/a spec.http[0].route[0].destination.host: "a b" is no host: label "a b" is wrong`,
			`m.yaml:13 VirtualService default/a spec.http[0].route[0].weight: -1 is negative`,
			`m.yaml:14 VirtualService default/a spec.http[0].route[1].destination.port.number: 0 is no port, a port goes from 1 to 65535`,
			`m.yaml:16 VirtualService default/a spec.http[0].timeout: 0s is too short, the least is 1ms; leave the field out for none`,
			`m.yaml:17 VirtualService default/a spec.http[1].redirect.redirectCode: 404 does not redirect`,
			`m.yaml:18 VirtualService default/a spec.http[1].rewrite: redirect and rewrite exclude each other`,
			`m.yaml:18 VirtualService default/a spec.http[1].rewrite: the rewrite changes nothing`,
		}},
		{"what only Heddle knows", `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: a, annotations: {heddle.dev/load-balancer: fastest}}
spec: {host: a}
`, []string{
			`m.yaml:3 DestinationRule default/a metadata.annotations[heddle.dev/load-balancer]: "fastest" is no way of balancing, there is peak-ewma`,
		}},
		{"headers of the framing", `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a}
spec:
  hosts: [a]
  http:
  - route: [{destination: {host: a}}]
    headers: {response: {remove: [Content-Length]}}
`, []string{
			`m.yaml:8 VirtualService default/a spec.http[0].headers.response.remove[0]: "Content-Length" says where a message ends`,
		}},
		{"retries and faults", `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a}
spec:
  hosts: [a]
  http:
  - route: [{destination: {host: a}}]
    retries:
      attempts: 3
      retryOn: "5xx,sometimes,503"
    fault:
      abort: {percentage: {value: 101}, grpcStatus: SOSO}
    corsPolicy: {allowMethods: [GRAB], maxAge: 1.5s}
`, []string{
			`m.yaml:10 VirtualService default/a spec.http[0].retries.retryOn: "sometimes" is no condition`,
			`m.yaml:12 VirtualService default/a spec.http[0].fault.abort.grpcStatus: "SOSO" is no gRPC status`,
			`m.yaml:12 VirtualService default/a spec.http[0].fault.abort.percentage.value: 101 is no percentage`,
			`m.yaml:13 VirtualService default/a spec.http[0].corsPolicy.allowMethods[0]: "GRAB" is no method`,
			`m.yaml:13 VirtualService default/a spec.http[0].corsPolicy.maxAge: finer than a second`,
		}},
		{"DestinationRule", `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: a, namespace: n}
spec:
  host: a
  exportTo: [".", n]
  trafficPolicy:
    loadBalancer:
      consistentHash: {useSourceIp: true, maglev: {tableSize: 100}}
    portLevelSettings:
    - tls: {mode: MUTUAL}
  subsets:
  - name: v1
  - name: v1
    trafficPolicy: {}
`, []string{
			`m.yaml:6 DestinationRule n/a spec.exportTo[1]: "n" stands twice`,
			`m.yaml:9 DestinationRule n/a spec.trafficPolicy.loadBalancer.consistentHash.maglev.tableSize: 100 is no prime number`,
			`m.yaml:11 DestinationRule n/a spec.trafficPolicy.portLevelSettings[0].port: missing`,
			`m.yaml:11 DestinationRule n/a spec.trafficPolicy.portLevelSettings[0].tls.clientCertificate: missing`,
			`m.yaml:11 DestinationRule n/a spec.trafficPolicy.portLevelSettings[0].tls.privateKey: missing`,
			`m.yaml:14 DestinationRule n/a spec.subsets[1].name: there are two subsets "v1", the first is subsets[0]`,
			`m.yaml:15 DestinationRule n/a spec.subsets[1].trafficPolicy: the policy is empty`,
		}},
		{"locality", `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: a}
spec:
  host: a
  trafficPolicy:
    loadBalancer:
      localityLbSetting:
        distribute:
        - from: r/z
          to: {"r/z/*": 70, "r/*": 40}
    outlierDetection: {}
`, []string{
			`spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to: "r/*" and "r/z/*" overlap`,
			`spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to: the shares come to 110, they must come to 100`,
		}},
		{"Gateway", `apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: a.b}
spec:
  servers:
  - port: {number: 80, name: a, protocol: HTTPS}
    hosts: [short]
  - port: {number: 81, name: a, protocol: HTP}
    hosts: ["*"]
    bind: 1.2.3
`, []string{
			`m.yaml:3 Gateway default/a.b metadata.name: "a.b" is no name of a Gateway`,
			`m.yaml:6 Gateway default/a.b spec.servers[0].tls: missing, protocol HTTPS needs TLS settings`,
			`m.yaml:7 Gateway default/a.b spec.servers[0].hosts[0]: "short" is a short name`,
			`m.yaml:8 Gateway default/a.b spec.servers[1].port.name: there are two ports "a"`,
			`m.yaml:8 Gateway default/a.b spec.servers[1].port.protocol: protocol "HTP" is unknown`,
			`m.yaml:10 Gateway default/a.b spec.servers[1].bind: "1.2.3" is no IP address`,
		}},
		{"ServiceEntry", `apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: a}
spec:
  hosts: [a.com, "*"]
  resolution: STATIC
  ports:
  - {number: 80, name: tcp, protocol: TCP}
  endpoints:
  - {address: a.com, ports: {http: 1}}
`, []string{
			`m.yaml:5 ServiceEntry default/a spec.hosts[1]: "*" is no host of a service`,
			`m.yaml:8 ServiceEntry default/a spec.ports[0]: every connection to the port`,
			`m.yaml:8 ServiceEntry default/a spec.ports[0].protocol: with several hosts`,
			`m.yaml:10 ServiceEntry default/a spec.endpoints[0].address: "a.com" is no IP address, use resolution DNS for names`,
			`m.yaml:10 ServiceEntry default/a spec.endpoints[0].ports[http]: the service has no port "http", it has tcp`,
		}},
		{"PeerAuthentication", `apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: a}
spec:
  selector:
    matchLabels: {}
  portLevelMtls:
    0: {mode: STRICT}
`, []string{
			`m.yaml:5 PeerAuthentication default/a spec.selector: the selector has no labels`,
			`m.yaml:7 PeerAuthentication default/a spec.portLevelMtls: ports belong to workloads`,
			`m.yaml:8 PeerAuthentication default/a spec.portLevelMtls[0]: 0 is no port`,
		}},
		{"metadata", `apiVersion: v1
kind: Namespace
metadata:
  name: Ab
  labels:
    "a b": x
    c: "-"
  annotations:
    "/x": y
`, []string{
			`m.yaml:4 Namespace Ab metadata.name: "Ab" is no name of an object`,
			`m.yaml:6 Namespace Ab metadata.labels[a b]: "a b" is no label key`,
			`m.yaml:7 Namespace Ab metadata.labels[c]: "-" is no label value`,
			`m.yaml:9 Namespace Ab metadata.annotations[/x]: "/x" is no annotation key`,
		}},
		{"Service", `apiVersion: v1
kind: Service
metadata: {name: a}
spec:
  type: Balanced
  ports:
  - port: 80
    protocol: HTTP
  - name: b
    port: 0
    targetPort: "8080"
`, []string{
			`m.yaml:5 Service default/a spec.type: type "Balanced" is unknown`,
			`m.yaml:7 Service default/a spec.ports[0].name: missing`,
			`m.yaml:8 Service default/a spec.ports[0].protocol: "HTTP" is no transport`,
			`m.yaml:10 Service default/a spec.ports[1].port: 0 is no port`,
			`m.yaml:11 Service default/a spec.ports[1].targetPort: "8080" is no name of a port`,
		}},
		{"Deployment", `apiVersion: apps/v1
kind: Deployment
metadata: {name: a}
spec:
  selector: {matchLabels: {app: a}}
  template:
    metadata: {labels: {app: b}}
    spec:
      containers:
      - name: a
        volumeMounts: [{name: v, mountPath: /v}]
      - name: a
`, []string{
			`m.yaml:5 Deployment default/a spec.selector: it does not select the pods of its own template`,
			`m.yaml:11 Deployment default/a spec.template.spec.containers[0].volumeMounts[0].name: the pod has no volume "v"`,
			`m.yaml:12 Deployment default/a spec.template.spec.containers[1].name: there are two containers "a"`,
		}},
		{"the mesh's configuration", `apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    trustDomain: "a b"
    accesLogFile: x
`, []string{
			`m.yaml:7 ConfigMap istio-system/istio data[mesh]: accesLogFile: unknown field of MeshConfig, did you mean "accessLogFile"?`,
		}},
		{"the mesh's configuration: meaning", `apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    trustDomain: "a b"
    connectTimeout: 2h
`, []string{
			`m.yaml:5 ConfigMap istio-system/istio data[mesh]: connectTimeout: 2h0m0s is too long`,
			`m.yaml:5 ConfigMap istio-system/istio data[mesh]: trustDomain: "a b" is no trust domain`,
		}},
		{"other ConfigMaps hold what they like", `apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: default}
data: {mesh: "no: mesh"}
`, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			objects, faults := config.Decode("m.yaml", []byte(c.manifest))
			for _, f := range faults {
				if f.Severity == config.Error {
					t.Fatal(f)
				}
			}
			for _, o := range objects {
				for _, f := range validate.Object(o) {
					got = append(got, f.Error())
				}
			}
			for i := range max(len(got), len(c.want)) {
				switch {
				case i >= len(got):
					t.Errorf("missing: %s", c.want[i])
				case i >= len(c.want):
					t.Errorf("unexpected: %s", got[i])
				case !strings.Contains(got[i], c.want[i]):
					t.Errorf("got  %s\nwant %s", got[i], c.want[i])
				}
			}
		})
	}
}

func TestHeaderValues(t *testing.T) {
	for value, want := range map[string]bool{
		"":                         true,
		"plain":                    true,
		"tab\tinside":              true,
		"100%%":                    true,
		"%HOSTNAME%":               true,
		"a %REQ(X-A?X-B):10% b":    false, // after the arguments comes the end
		"%REQ(X-A)%":               true,
		"%START_TIME(%s)%":         true,
		`%META(["a", "b"])%`:       true,
		`%META( [ "a\"b" ] ) % x`:  true,
		`%META(["a" "b"])%`:        false,
		`%META(["a)%`:              true,
		`%META([a])%`:              false,
		"abc%123":                  false,
		"%START_TIME%%":            false,
		"%":                        false,
		"%REQ(X-A%":                false,
		"line\nbreak":              false,
		"delete\x7f":               false,
		"%DYNAMIC_METADATA(a:b:c)": false,
	} {
		text := fmt.Sprintf(`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"a"},
"spec":{"hosts":["a"],"http":[{"route":[{"destination":{"host":"a"}}],"headers":{"request":{"set":{"x":%q}}}}]}}`, value)
		objects, faults := config.Decode("h.json", []byte(text))
		if len(objects) != 1 {
			t.Fatalf("%q: %v", value, faults)
		}
		if got := validate.Object(objects[0]); (len(got) == 0) != want {
			t.Errorf("%q: %v", value, got)
		}
	}
}

func TestFaultsComeInOneOrder(t *testing.T) {
	manifest := `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a}
spec: {hosts: [a], http: [{route: [{destination: {host: a}, headers: {request: {set: {":p": "%", "": "%"}, add: {":q": "%"}}, response: {set: {host: "%"}}}}]}]}
`
	first := ""
	for range 20 {
		objects, _ := config.Decode("m.yaml", []byte(manifest))
		all := fmt.Sprint(validate.Object(objects[0]))
		if first == "" {
			first = all
		}
		if all != first {
			t.Fatalf("%s\n%s", first, all)
		}
	}
}
