package control_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	opponent "github.com/envoyproxy/go-control-plane/pkg/client/sotw/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/xds"

	"github.com/heddle-mesh/heddle/internal/encode"
)

// The opponents are programs that others wrote: gRPC's own xDS client and the
// client of go-control-plane. What they accept, others will.

// backend is a server that says its name.
type backend struct {
	healthpb.UnimplementedHealthServer
	name string
}

func (b backend) Check(ctx context.Context, _ *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	return &healthpb.HealthCheckResponse{}, grpc.SetHeader(ctx, metadata.Pairs("backend", b.name))
}

// backends starts one server on each of some loopback addresses, all on one port.
func backends(t *testing.T, hosts map[string]string) (port int) {
	t.Helper()
	var listeners []net.Listener
	var names []string
	for range 10 {
		for _, l := range listeners {
			l.Close()
		}
		listeners, names, port = nil, nil, 0
		for host, name := range hosts {
			l, err := net.Listen("tcp", net.JoinHostPort(host, fmt.Sprint(port)))
			if err != nil {
				break // the port is taken there: try another
			}
			port = l.Addr().(*net.TCPAddr).Port
			listeners, names = append(listeners, l), append(names, name)
		}
		if len(listeners) == len(hosts) {
			break
		}
	}
	if len(listeners) != len(hosts) {
		t.Fatal("no port is free on all addresses")
	}
	for i, l := range listeners {
		s := grpc.NewServer()
		healthpb.RegisterHealthServer(s, backend{name: names[i]})
		done := make(chan error, 1)
		go func() { done <- s.Serve(l) }()
		t.Cleanup(func() {
			s.Stop()
			<-done
		})
	}
	return port
}

// echo is a service with a pod for each version, at 127.0.1.1 and so on.
func echo(port int, versions ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: default}
spec:
  selector: {app: echo}
  ports: [{name: grpc, port: 7070, targetPort: %d}]
`, port)
	for _, v := range versions {
		fmt.Fprintf(&b, `
---
apiVersion: v1
kind: Pod
metadata: {name: echo-%[1]s, namespace: default, labels: {app: echo, version: %[1]s}}
spec: {containers: [{name: app}]}
status: {phase: Running, podIP: 127.0.1.%[2]s, conditions: [{type: Ready, status: "True"}]}
`, v, strings.TrimPrefix(v, "v"))
	}
	return b.String()
}

func split(v1, v2 int) string {
	return fmt.Sprintf(`
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo, namespace: default}
spec: {host: echo, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: echo, namespace: default}
spec:
  hosts: [echo]
  http:
  - route:
    - {destination: {host: echo, subset: v1}, weight: %d}
    - {destination: {host: echo, subset: v2}, weight: %d}
`, v1, v2)
}

// call asks once and returns who answered.
func call(t *testing.T, conn *grpc.ClientConn) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var header metadata.MD
	_, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Header(&header), grpc.WaitForReady(true))
	if err != nil {
		return "", err
	}
	return strings.Join(header.Get("backend"), ","), nil
}

// count calls while nothing changes: every call must succeed.
func count(t *testing.T, conn *grpc.ClientConn, calls int) map[string]int {
	t.Helper()
	got := map[string]int{}
	for range calls {
		name, err := call(t, conn)
		if err != nil {
			t.Fatal(err)
		}
		got[name]++
	}
	return got
}

// during counts calls while the configuration changes. gRPC puts new routes in
// force a moment before the balancer hears of their clusters, and a call that
// falls in between fails with "unknown cluster": that is its own affair.
func during(t *testing.T, conn *grpc.ClientConn, calls int) map[string]int {
	t.Helper()
	got := map[string]int{}
	for range calls {
		switch name, err := call(t, conn); {
		case err == nil:
			got[name]++
		case !strings.Contains(err.Error(), "unknown cluster selected for RPC"):
			t.Fatal(err)
		}
	}
	return got
}

// TestGRPCWithoutProxy lets gRPC's own client follow the control plane:
// "xds:///host:port", with weights and endpoints that change.
func TestGRPCWithoutProxy(t *testing.T) {
	port := backends(t, map[string]string{"127.0.1.1": "v1", "127.0.1.2": "v2"})
	p := start(t, echo(port, "v1", "v2"))
	bootstrap := fmt.Sprintf(`{
		"xds_servers": [{"server_uri": %q, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}],
		"node": {"id": "sidecar~127.0.0.1~client-1.default~default.svc.cluster.local", "metadata": {"GENERATOR": "grpc", "NAMESPACE": "default"}}
	}`, p.addresses().Plain)
	resolver, err := xds.NewXDSResolverWithConfigForTesting([]byte(bootstrap))
	if err != nil {
		t.Fatal(err)
	}
	dial := func(target string) *grpc.ClientConn {
		conn, err := grpc.NewClient("xds:///"+target, grpc.WithResolvers(resolver), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	conn := dial("echo.default.svc.cluster.local:7070")
	if got := count(t, conn, 200); got["v1"] < 50 || got["v2"] < 50 {
		t.Errorf("without weights the answers came from %v", got)
	}
	short := dial("echo:7070")
	if got := count(t, short, 10); got["v1"]+got["v2"] != 10 {
		t.Errorf("by its short name the answers came from %v", got)
	}

	p.write(echo(port, "v1", "v2") + split(80, 20))
	eventually(t, "v1 answers most calls", func() bool { return during(t, conn, 200)["v1"] > 140 })
	got := count(t, conn, 2000)
	// Six standard deviations of 2000 draws are 107.
	if d := got["v2"] - 400; d < -107 || d > 107 || got["v1"]+got["v2"] != 2000 {
		t.Errorf("of 2000 calls %d went to v2, which has a weight of 20%%: %v", got["v2"], got)
	}

	p.write(echo(port, "v1", "v2") + split(0, 100))
	eventually(t, "only v2 answers", func() bool { return during(t, conn, 20)["v2"] == 20 })
	if got := count(t, conn, 1000); got["v2"] != 1000 {
		t.Errorf("with all weight on v2 the answers came from %v", got)
	}

	// Endpoints come and go.
	p.write(echo(port, "v1"))
	eventually(t, "only v1 answers", func() bool { return during(t, conn, 20)["v1"] == 20 })
	p.write(echo(port, "v1", "v2"))
	eventually(t, "both answer", func() bool { return len(during(t, conn, 20)) == 2 })
	if _, body := p.get("/metrics"); !strings.Contains(body, "pilot_total_xds_rejects 0\n") {
		t.Errorf("gRPC refused something:\n%s", body)
	}
}

// TestGoControlPlaneClient follows the clusters with the client of the project
// whose server most others use, which speaks the state-of-the-world variant.
func TestGoControlPlaneClient(t *testing.T) {
	p := start(t, mesh)
	conn, err := p.plain()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c := opponent.NewADSClient(ctx, node("reviews-v1", nil), encode.ClusterType)
	if err := c.InitConnect(conn); err != nil {
		t.Fatal(err)
	}
	fetch := func() []string {
		t.Helper()
		r, err := c.Fetch()
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, a := range r.Resources {
			m := &clusterv3.Cluster{}
			if err := a.UnmarshalTo(m); err != nil {
				t.Fatal(err)
			}
			if err := m.ValidateAll(); err != nil {
				t.Errorf("cluster %s breaks Envoy's rules: %v", m.GetName(), err)
			}
			names = append(names, m.GetName())
		}
		return names
	}
	if got := fetch(); !slices.Contains(got, eds) {
		t.Errorf("clusters %v", got)
	}
	if err := c.Nack("not today"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the refusal is shown", func() bool {
		_, body := p.get("/debug/syncz")
		return strings.Contains(body, "not today")
	})
	// The next thing that comes is the next change, not the same again.
	p.write(mesh + toV1)
	if got := fetch(); !slices.Contains(got, edsV1) || !slices.Contains(got, eds) {
		t.Errorf("clusters %v", got)
	}
	if err := c.Ack(); err != nil {
		t.Fatal(err)
	}
	p.write(mesh)
	for slices.Contains(fetch(), edsV1) { // the last to go
		if err := c.Ack(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestIncrementalSession walks through a session of the incremental variant with
// the bare stubs.
func TestIncrementalSession(t *testing.T) {
	p := start(t, mesh+rule)
	open := func() (discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient, func()) {
		conn, err := p.plain()
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return s, func() {
			cancel()
			conn.Close()
		}
	}
	s, end := open()
	send := func(r *discoveryv3.DeltaDiscoveryRequest) {
		t.Helper()
		if err := s.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	recv := func() (*discoveryv3.DeltaDiscoveryResponse, map[string]string) {
		t.Helper()
		r, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		versions := map[string]string{}
		for _, one := range r.GetResources() {
			versions[one.GetName()] = one.GetVersion()
		}
		send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
		return r, versions
	}
	send(&discoveryv3.DeltaDiscoveryRequest{Node: node("reviews-v1", nil), TypeUrl: encode.ClusterType})
	_, has := recv()
	if has[eds] == "" {
		t.Fatalf("clusters %v", has)
	}
	send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: encode.EndpointType, ResourceNamesSubscribe: []string{eds, "outbound|1||nobody"}})
	r, versions := recv()
	if versions[eds] == "" || !slices.Equal(r.GetRemovedResources(), []string{"outbound|1||nobody"}) {
		t.Errorf("endpoints %v, removed %v", versions, r.GetRemovedResources())
	}
	p.write(mesh + rule + reviewsV2)
	if r, next := recv(); r.GetTypeUrl() != encode.EndpointType || len(next) != 1 || next[eds] == versions[eds] {
		t.Errorf("after a new pod came %s %v", r.GetTypeUrl(), next)
	}
	p.write(mesh + reviewsV2 + toV1)
	r, next := recv()
	if r.GetTypeUrl() != encode.ClusterType || len(next) != 1 || next[edsV1] == "" {
		t.Errorf("after a new subset came %s %v", r.GetTypeUrl(), next)
	}
	end()

	// A new stream goes on where the old one ended, though things changed.
	has[edsV1] = next[edsV1]
	p.write(mesh + rule + reviewsV2)
	eventually(t, "the subset is gone", func() bool {
		_, body := p.get("/debug/configz")
		return !strings.Contains(body, "VirtualService")
	})
	s, end = open()
	defer end()
	send(&discoveryv3.DeltaDiscoveryRequest{Node: node("reviews-v1", nil), TypeUrl: encode.ClusterType, InitialResourceVersions: has})
	// The publication may be a moment behind the page.
	for {
		r, next = recv()
		if len(next) > 0 {
			t.Errorf("unchanged clusters were sent again: %v", next)
		}
		if slices.Equal(r.GetRemovedResources(), []string{edsV1}) {
			break
		}
		if len(r.GetRemovedResources()) > 0 {
			t.Fatalf("removed %v", r.GetRemovedResources())
		}
	}
}

// refusal opens a stream for a node and returns how it ends.
func refusal(t *testing.T, conn *grpc.ClientConn, n *corev3.Node) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	if err := s.Send(&discoveryv3.DeltaDiscoveryRequest{Node: n, TypeUrl: encode.ClusterType}); err != nil {
		_, err = s.Recv()
		return err
	}
	_, err = s.Recv()
	return err
}
