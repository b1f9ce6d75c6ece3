package admin

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/heddle-mesh/heddle/internal/meshtest/certs"
	"github.com/heddle-mesh/heddle/internal/meshtest/simnet"
	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/snapshot"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
	"github.com/heddle-mesh/heddle/internal/telemetry"
	"github.com/heddle-mesh/heddle/internal/xds/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func packed(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// server is an admin server whose orders are recorded.
type server struct {
	*Server
	t        *testing.T
	notReady atomic.Pointer[error]
	level    slog.LevelVar
	ca       *certs.CA
	id       *certs.Source
	drained  []bool
	quits    int
}

func start(t *testing.T) *server {
	t.Helper()
	h := simnet.New(simnet.Config{}).Host("pod", "10.0.0.1")
	set := upstream.NewSet(upstream.Config{Network: h.Proxy()})
	set.Update(map[string]*plan.Cluster{
		"outbound|9080||reviews": {Name: "outbound|9080||reviews", MaxConnections: 7, ServiceName: "eds-name"},
		"PassthroughCluster":     {Name: "PassthroughCluster", Discovery: plan.OriginalDst},
	}, map[string]*plan.LoadAssignment{"eds-name": {Localities: []plan.LocalityEndpoints{{Endpoints: []plan.Endpoint{
		{Address: netip.MustParseAddrPort("10.0.0.7:9080")},
		{Address: netip.MustParseAddrPort("[fd00::7]:9080"), Health: plan.Unhealthy},
	}}}}})
	t.Cleanup(set.Close)
	// One call, so that something was counted.
	if _, err := set.Cluster("outbound|9080||reviews").Connect(t.Context(), upstream.Want{}); err == nil {
		t.Fatal("connected to nobody")
	}

	metadata, err := structpb.NewStruct(map[string]any{"CLUSTER_ID": "Kubernetes"})
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 11, 21, 1, 2, 3, 4_000_000, time.UTC)
	resources := map[string][]client.Resource{
		clusterType: {{Name: "outbound|9080||reviews", Version: "c1", Updated: at, Body: packed(t, &clusterv3.Cluster{Name: "outbound|9080||reviews"})}},
		listenerType: {
			{Name: "0.0.0.0_9080", Version: "l1", Updated: at, Body: packed(t, &listenerv3.Listener{Name: "0.0.0.0_9080", FilterChains: []*listenerv3.FilterChain{{
				Filters: []*listenerv3.Filter{{Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: packed(t, &hcmv3.HttpConnectionManager{StatPrefix: "x"})}}},
			}}})},
			{Name: "virtualInbound", Version: "l2", Updated: at.Add(time.Second), Body: packed(t, &listenerv3.Listener{Name: "virtualInbound"})},
		},
		routeType:    {{Name: "9080", Version: "r1", Updated: at, Body: packed(t, &routev3.RouteConfiguration{Name: "9080"})}},
		endpointType: {{Name: "eds-name", Version: "e1", Updated: at, Body: packed(t, &endpointv3.ClusterLoadAssignment{ClusterName: "eds-name"})}},
	}
	s := &server{t: t, ca: certs.New(t, "cluster.local")}
	s.id = s.ca.Source("default", "reviews")
	live := &snapshot.Live{}
	live.Publish(&snapshot.Snapshot{Listeners: map[string]*snapshot.Listener{
		"virtualInbound": {Plan: &plan.Listener{Name: "virtualInbound", Address: netip.MustParseAddrPort("0.0.0.0:15006")}},
		"0.0.0.0_9080":   {Plan: &plan.Listener{Name: "0.0.0.0_9080", Address: netip.MustParseAddrPort("0.0.0.0:9080")}},
	}})
	s.Server, err = New(Config{
		Version:   "1.2.3",
		Node:      &corev3.Node{Id: "sidecar~10.0.0.1~reviews-1.default~default.svc.cluster.local", Metadata: metadata},
		Resources: func(u string) []client.Resource { return slices.Clone(resources[u]) },
		Live:      live, Clusters: set, Metrics: telemetry.NewRegistry(), Identity: s.id, Level: &s.level,
		Connections: func() int64 { return 3 },
		Ready: func() error {
			if err := s.notReady.Load(); err != nil {
				return *err
			}
			return nil
		},
		Drain: func(inbound bool) { s.drained = append(s.drained, inbound) },
		Quit:  func() { s.quits++ },
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ask sends a request and returns the answer.
func ask(h http.Handler, method, target, from string) (int, string) {
	r := httptest.NewRequestWithContext(context.Background(), method, "http://localhost:15000"+target, nil)
	if from != "" {
		r.RemoteAddr = from
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

func (s *server) get(target string) string {
	s.t.Helper()
	code, body := ask(s.Admin(), http.MethodGet, target, "")
	if code != http.StatusOK {
		s.t.Fatalf("GET %s: %d %s", target, code, body)
	}
	return body
}

// TestConfigDumpIsEnvoys reads the answer with Envoy's own messages, as istioctl
// does.
func TestConfigDumpIsEnvoys(t *testing.T) {
	s := start(t)
	var dump adminv3.ConfigDump
	if err := protojson.Unmarshal([]byte(s.get("/config_dump?include_eds")), &dump); err != nil {
		t.Fatal(err)
	}
	got := map[string]proto.Message{}
	for _, c := range dump.Configs {
		m, err := c.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		got[string(m.ProtoReflect().Descriptor().Name())] = m
	}
	for _, name := range []string{"BootstrapConfigDump", "ClustersConfigDump", "EndpointsConfigDump", "ListenersConfigDump", "ScopedRoutesConfigDump", "RoutesConfigDump", "SecretsConfigDump"} {
		if got[name] == nil {
			t.Fatalf("no %s", name)
		}
	}
	node := got["BootstrapConfigDump"].(*adminv3.BootstrapConfigDump).Bootstrap.Node
	if node.Id != "sidecar~10.0.0.1~reviews-1.default~default.svc.cluster.local" || node.Metadata.Fields["CLUSTER_ID"].GetStringValue() != "Kubernetes" {
		t.Errorf("node %v", node)
	}
	clusters := got["ClustersConfigDump"].(*adminv3.ClustersConfigDump)
	var cluster clusterv3.Cluster
	if len(clusters.DynamicActiveClusters) != 1 || clusters.DynamicActiveClusters[0].Cluster.UnmarshalTo(&cluster) != nil || cluster.Name != "outbound|9080||reviews" || clusters.VersionInfo != "c1" {
		t.Errorf("clusters %v", clusters)
	}
	listeners := got["ListenersConfigDump"].(*adminv3.ListenersConfigDump)
	if len(listeners.DynamicListeners) != 2 || listeners.VersionInfo != "l2" {
		t.Fatalf("listeners %v", listeners)
	}
	var listener listenerv3.Listener
	var hcm hcmv3.HttpConnectionManager
	active := listeners.DynamicListeners[0].ActiveState
	if err := active.Listener.UnmarshalTo(&listener); err != nil || listeners.DynamicListeners[0].Name != "0.0.0.0_9080" || active.VersionInfo != "l1" {
		t.Errorf("listener %v, %v", active, err)
	}
	if err := listener.FilterChains[0].Filters[0].GetTypedConfig().UnmarshalTo(&hcm); err != nil || hcm.StatPrefix != "x" {
		t.Errorf("filter %v, %v", &hcm, err)
	}
	if !active.LastUpdated.AsTime().Equal(time.Date(2026, 11, 21, 1, 2, 3, 4_000_000, time.UTC)) {
		t.Errorf("last_updated %v", active.LastUpdated.AsTime())
	}
	if routes := got["RoutesConfigDump"].(*adminv3.RoutesConfigDump).DynamicRouteConfigs; len(routes) != 1 || routes[0].VersionInfo != "r1" {
		t.Errorf("routes %v", routes)
	}
	if eds := got["EndpointsConfigDump"].(*adminv3.EndpointsConfigDump).DynamicEndpointConfigs; len(eds) != 1 {
		t.Errorf("endpoints %v", eds)
	}
}

func TestSecretsAreShownWithoutKeys(t *testing.T) {
	s := start(t)
	body := s.get("/config_dump?resource=dynamic_active_secrets")
	var dump adminv3.ConfigDump
	if err := protojson.Unmarshal([]byte(body), &dump); err != nil {
		t.Fatal(err)
	}
	secrets := map[string]*tlsv3.Secret{}
	for _, c := range dump.Configs {
		var d adminv3.SecretsConfigDump_DynamicSecret
		var secret tlsv3.Secret
		if err := errors.Join(c.UnmarshalTo(&d), d.Secret.UnmarshalTo(&secret)); err != nil {
			t.Fatal(err)
		}
		secrets[d.Name] = &secret
	}
	own := secrets["default"].GetTlsCertificate()
	if got := string(own.GetPrivateKey().GetInlineBytes()); got != "[redacted]" {
		t.Errorf("private key %q", got)
	}
	block, _ := pem.Decode(own.GetCertificateChain().GetInlineBytes())
	if block == nil || string(block.Bytes) != string(s.id.Current().Certificate.Certificate[0]) {
		t.Error("the chain does not begin with the leaf")
	}
	if got := secrets["ROOTCA"].GetValidationContext().GetTrustedCa().GetInlineBytes(); string(got) != string(s.ca.PEM()) {
		t.Error("the roots are not the CA's")
	}

	s.id.Set(nil)
	for _, path := range []string{"/config_dump", "/certs", "/stats/prometheus"} {
		s.get(path)
	}
}

func TestConfigDumpIsFiltered(t *testing.T) {
	s := start(t)
	if body := s.get("/config_dump"); strings.Contains(body, "EndpointsConfigDump") {
		t.Error("endpoints are there though nobody asked")
	}
	body := s.get("/config_dump?resource=dynamic_listeners&name_regex=virtual")
	if !strings.Contains(body, "virtualInbound") || strings.Contains(body, "0.0.0.0_9080") {
		t.Errorf("%s", body)
	}
	for target, want := range map[string]int{"/config_dump?resource=nothing": 404, "/config_dump?name_regex=(": 400} {
		if code, _ := ask(s.Admin(), http.MethodGet, target, ""); code != want {
			t.Errorf("GET %s: %d, want %d", target, code, want)
		}
	}
}

func TestMessageOfUnknownTypeDoesNotHideTheOthers(t *testing.T) {
	inside := &listenerv3.Listener{Name: "l", ListenerFilters: []*listenerv3.ListenerFilter{{Name: "f", ConfigType: &listenerv3.ListenerFilter_TypedConfig{
		TypedConfig: &anypb.Any{TypeUrl: "type.googleapis.com/not.Linked", Value: []byte{0x0a, 1, 'x'}}}}}}
	b := protoJSON(inside)
	var got struct {
		Name    string
		Filters []struct {
			Config map[string]any `json:"typed_config"`
		} `json:"listener_filters"`
	}
	err := json.Unmarshal(b, &got)
	if err != nil || got.Name != "l" || len(got.Filters) != 1 || len(got.Filters[0].Config) != 1 || got.Filters[0].Config["@type"] != "type.googleapis.com/not.Linked" {
		t.Errorf("%s, %v", b, err)
	}
}

func TestClustersAreEnvoys(t *testing.T) {
	s := start(t)
	var clusters adminv3.Clusters
	if err := protojson.Unmarshal([]byte(s.get("/clusters?format=json")), &clusters); err != nil {
		t.Fatal(err)
	}
	if len(clusters.ClusterStatuses) != 2 {
		t.Fatalf("%d clusters, want 2", len(clusters.ClusterStatuses))
	}
	c := clusters.ClusterStatuses[1]
	if c.Name != "outbound|9080||reviews" || c.EdsServiceName != "eds-name" || c.CircuitBreakers.Thresholds[0].MaxConnections.Value != 7 {
		t.Errorf("%v", c)
	}
	var addresses []string
	for _, h := range c.HostStatuses {
		a := h.Address.GetSocketAddress()
		addresses = append(addresses, a.Address+" "+h.HealthStatus.EdsHealthStatus.String())
		if a.GetPortValue() != 9080 {
			t.Errorf("port %d", a.GetPortValue())
		}
	}
	slices.Sort(addresses)
	if !slices.Equal(addresses, []string{"10.0.0.7 HEALTHY", "fd00::7 UNHEALTHY"}) {
		t.Errorf("endpoints %v", addresses)
	}
	text := s.get("/clusters")
	for _, want := range []string{
		"outbound|9080||reviews::default_priority::max_connections::7\n",
		"outbound|9080||reviews::default_priority::max_requests::4294967295\n",
		"outbound|9080||reviews::10.0.0.7:9080::cx_connect_fail::1\n",
		"outbound|9080||reviews::[fd00::7]:9080::health_flags::/failed_eds_health\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func TestListenersAndStats(t *testing.T) {
	s := start(t)
	if got, want := s.get("/listeners"), "0.0.0.0_9080::0.0.0.0:9080\nvirtualInbound::0.0.0.0:15006\n"; got != want {
		t.Errorf("/listeners = %q, want %q", got, want)
	}
	var listeners adminv3.Listeners
	if err := protojson.Unmarshal([]byte(s.get("/listeners?format=json")), &listeners); err != nil || len(listeners.ListenerStatuses) != 2 {
		t.Errorf("/listeners?format=json: %v, %v", &listeners, err)
	}
	if got, want := s.get("/stats?filter=^cluster.outbound.*fail|total_conn"), "cluster.outbound|9080||reviews.upstream_cx_connect_fail: 1\nserver.total_connections: 3\n"; got != want {
		t.Errorf("/stats = %q, want %q", got, want)
	}
	var stats struct{ Stats []struct{ Name string } }
	if err := json.Unmarshal([]byte(s.get("/stats?format=json&filter=server.live")), &stats); err != nil || len(stats.Stats) != 1 {
		t.Errorf("/stats?format=json: %v, %v", stats, err)
	}
	for _, text := range []string{s.get("/stats/prometheus"), s.get("/stats?format=prometheus")} {
		for _, want := range []string{`istio_build{component="proxy",tag="1.2.3"} 1`, "envoy_server_state 0", "envoy_server_live 1",
			`envoy_cluster_upstream_cx_connect_fail{cluster_name="outbound|9080||reviews"} 1`, `istio_agent_cert_expiry_seconds{resource_name="default"} 8`} {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in\n%s", want, text)
			}
		}
		if strings.Contains(text, "PassthroughCluster") {
			t.Error("a cluster that was never used is in the metrics")
		}
	}
	var info adminv3.ServerInfo
	if err := protojson.Unmarshal([]byte(s.get("/server_info")), &info); err != nil || info.State != adminv3.ServerInfo_LIVE || info.Version != "1.2.3" || info.Node.Id == "" {
		t.Errorf("/server_info: %v, %v", &info, err)
	}
	var certificates adminv3.Certificates
	if err := protojson.Unmarshal([]byte(s.get("/certs")), &certificates); err != nil ||
		certificates.Certificates[0].CertChain[0].SubjectAltNames[0].GetUri() != "spiffe://cluster.local/ns/default/sa/reviews" {
		t.Errorf("/certs: %v, %v", &certificates, err)
	}
	var memory adminv3.Memory
	if err := protojson.Unmarshal([]byte(s.get("/memory")), &memory); err != nil || memory.Allocated == 0 {
		t.Errorf("/memory: %v, %v", &memory, err)
	}
}

func TestReadinessFollowsTheProxy(t *testing.T) {
	s := start(t)
	check := func(when string, code int, state string) {
		t.Helper()
		if got, body := ask(s.Admin(), http.MethodGet, "/ready", ""); got != code || body != state+"\n" {
			t.Errorf("%s: /ready = %d %q, want %d %q", when, got, body, code, state)
		}
		for name, h := range map[string]http.Handler{"15020": s.Status(), "15021": s.Ready()} {
			if got, _ := ask(h, http.MethodGet, "/healthz/ready", ""); got != code {
				t.Errorf("%s: /healthz/ready on %s = %d, want %d", when, name, got, code)
			}
		}
	}
	cause := errors.New("no certificate yet")
	s.notReady.Store(&cause)
	check("before", 503, "PRE_INITIALIZING")
	if _, body := ask(s.Ready(), http.MethodGet, "/healthz/ready", ""); !strings.Contains(body, "no certificate yet") {
		t.Errorf("the probe does not say why: %q", body)
	}
	s.notReady.Store(nil)
	check("after", 200, "LIVE")
	ask(s.Admin(), http.MethodPost, "/healthcheck/fail", "")
	check("failed", 503, "DRAINING")
	ask(s.Admin(), http.MethodPost, "/healthcheck/ok", "")
	check("recovered", 200, "LIVE")
	s.SetDraining()
	check("draining", 503, "DRAINING")
}

func TestOrdersAreNotGivenByAccident(t *testing.T) {
	s := start(t)
	for _, p := range s.pages() {
		if !p.post {
			continue
		}
		if code, _ := ask(s.Admin(), http.MethodGet, p.path, ""); code != http.StatusMethodNotAllowed {
			t.Errorf("GET %s: %d, want 405", p.path, code)
		}
	}
	r := httptest.NewRequest(http.MethodPost, "http://evil.example/quitquitquit", nil)
	w := httptest.NewRecorder()
	s.Admin().ServeHTTP(w, r)
	if w.Code != http.StatusForbidden {
		t.Errorf("by a foreign name: %d, want 403", w.Code)
	}
	for _, path := range []string{"/quitquitquit", "/drain"} {
		if code, _ := ask(s.Status(), http.MethodPost, path, "10.0.0.9:4000"); code != http.StatusForbidden {
			t.Errorf("POST %s from another machine: %d, want 403", path, code)
		}
	}
	for name, h := range map[string]http.Handler{"15021": s.Ready(), "15090": s.Prometheus()} {
		if code, _ := ask(h, http.MethodPost, "/quitquitquit", "127.0.0.1:1"); code != http.StatusNotFound {
			t.Errorf("POST /quitquitquit on %s: %d, want 404", name, code)
		}
		if code, _ := ask(h, http.MethodGet, "/config_dump", "127.0.0.1:1"); code != http.StatusNotFound {
			t.Errorf("GET /config_dump on %s: %d, want 404", name, code)
		}
	}
	if s.quits != 0 || len(s.drained) != 0 {
		t.Errorf("%d quits and %d drains, want none", s.quits, len(s.drained))
	}

	ask(s.Admin(), http.MethodPost, "/drain_listeners?inboundonly&graceful", "")
	ask(s.Status(), http.MethodPost, "/drain", "127.0.0.1:4000")
	ask(s.Status(), http.MethodPost, "/quitquitquit", "[::1]:4000")
	ask(s.Admin(), http.MethodPost, "/quitquitquit", "")
	if s.quits != 2 || !slices.Equal(s.drained, []bool{true, false}) {
		t.Errorf("%d quits, drains %v, want 2 and [true false]", s.quits, s.drained)
	}
}

func TestLogLevelIsChanged(t *testing.T) {
	s := start(t)
	for _, test := range []struct {
		query string
		code  int
		level slog.Level
		text  string
	}{
		{"", 200, slog.LevelInfo, "info"},
		{"?level=debug", 200, slog.LevelDebug, "debug"},
		{"?level=warn", 200, slog.LevelWarn, "warning"},
		{"?level=loud", 400, slog.LevelWarn, ""},
		{"?heddle=off", 200, slog.LevelError + 8, "off"},
	} {
		code, body := ask(s.Admin(), http.MethodPost, "/logging"+test.query, "")
		if code != test.code || s.level.Level() != test.level || test.text != "" && body != "active loggers:\n  heddle: "+test.text+"\n" {
			t.Errorf("POST /logging%s: %d %q, level %v, want %d, %v", test.query, code, body, s.level.Level(), test.code, test.level)
		}
	}
}

func TestHelpNamesEveryPage(t *testing.T) {
	s := start(t)
	text := s.get("/help")
	for _, p := range s.pages() {
		if !strings.Contains(text, "  "+p.path) {
			t.Errorf("%s is not in /help", p.path)
		}
	}
	if code, body := ask(s.Admin(), http.MethodGet, "/nothing", ""); code != 404 || !strings.Contains(body, "/config_dump") {
		t.Errorf("GET /nothing: %d %q, want 404 with the list", code, body)
	}
}
