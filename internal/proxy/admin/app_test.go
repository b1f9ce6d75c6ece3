package admin

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/grpc"
	grpchealth "google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

func TestProbesAskTheApplication(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ok":
			fmt.Fprint(w, r.Host, " ", r.Header.Get("X-A"), " ", r.URL.RawQuery, " ", r.UserAgent())
		case "/moved":
			http.Redirect(w, r, "/ok", http.StatusFound)
		case "/away":
			http.Redirect(w, r, "http://other.example/", http.StatusFound)
		default:
			http.Error(w, "ill", http.StatusServiceUnavailable)
		}
	}))
	defer web.Close()
	secure := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer secure.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g, checks := grpc.NewServer(), grpchealth.NewServer()
	checks.SetServingStatus("well", healthv1.HealthCheckResponse_SERVING)
	checks.SetServingStatus("ill", healthv1.HealthCheckResponse_NOT_SERVING)
	healthv1.RegisterHealthServer(g, checks)
	served := make(chan struct{})
	go func() {
		defer close(served)
		g.Serve(l) // until Stop
	}()
	defer func() { g.Stop(); <-served }()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := port(closed.Addr().(*net.TCPAddr).Port)
	closed.Close()

	number := func(a net.Addr) int { return a.(*net.TCPAddr).Port }
	get := func(path string) string {
		return fmt.Sprintf(`{"httpGet":{"path":%q,"port":%d,"httpHeaders":[{"name":"Host","value":"web.example"},{"name":"X-A","value":"b"}]}}`, path, number(web.Listener.Addr()))
	}
	app, err := ReadApp(`{"/app-health/web/livez":`+get("/ok?x=1")+`,"/app-health/web/readyz":`+get("/ill")+
		`,"/app-health/web/startupz":`+get("/moved")+`,"/app-lifecycle/web/prestopz":`+get("/away")+
		fmt.Sprintf(`,"/app-health/tls/livez":{"httpGet":{"port":%d,"scheme":"HTTPS"}}`, number(secure.Listener.Addr()))+
		fmt.Sprintf(`,"/app-health/tcp/livez":{"tcpSocket":{"port":"%d"}}`, number(l.Addr()))+
		fmt.Sprintf(`,"/app-health/tcp/readyz":{"tcpSocket":{"port":%d}}`, nobody)+
		fmt.Sprintf(`,"/app-health/grpc/livez":{"grpc":{"port":%d,"service":"well"}}`, number(l.Addr()))+
		fmt.Sprintf(`,"/app-health/grpc/readyz":{"grpc":{"port":%d,"service":"ill"},"timeoutSeconds":3}`, number(l.Addr()))+`}`, "")
	if err != nil {
		t.Fatal(err)
	}
	app.Address = netip.MustParseAddr("127.0.0.1")
	dialed := 0
	app.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		dialed++
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	}
	for _, c := range []struct {
		path   string
		status int
		body   string
	}{
		{"/app-health/web/livez", 200, "web.example b x=1 kube-probe/1.34"},
		{"/app-health/web/readyz", 503, "ill"},
		{"/app-health/web/startupz", 200, "web.example"},
		{"/app-lifecycle/web/prestopz", 302, ""},
		{"/app-health/tls/livez", 200, ""},
		{"/app-health/tcp/livez", 200, ""},
		{"/app-health/tcp/readyz", 500, "refused"},
		{"/app-health/grpc/livez", 200, ""},
		{"/app-health/grpc/readyz", 500, "NOT_SERVING"},
		{"/app-health/nobody/livez", 404, ""},
	} {
		r := httptest.NewRequest(http.MethodGet, c.path, nil)
		r.Header.Set("User-Agent", "kube-probe/1.34")
		w := httptest.NewRecorder()
		app.ServeHTTP(w, r)
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.body) {
			t.Errorf("%s: %d %q, want %d with %q", c.path, w.Code, w.Body, c.status, c.body)
		}
	}
	if dialed < 9 {
		t.Errorf("%d connections were made by Dial", dialed)
	}
}

func TestApplicationMetricsFollowOurs(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/m" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, "app_total 7\n")
	}))
	defer web.Close()
	port := web.Listener.Addr().(*net.TCPAddr).Port
	for _, c := range []struct {
		path string
		want bool
	}{{"/m", true}, {"/wrong", false}} {
		app, err := ReadApp("", fmt.Sprintf(`{"scrape":"true","path":%q,"port":"%d"}`, c.path, port))
		if err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		err = app.metrics(httptest.NewRequest(http.MethodGet, "/stats/prometheus", nil), w)
		if got := strings.Contains(w.Body.String(), "app_total 7"); got != c.want || (err == nil) != c.want {
			t.Errorf("%s: %q, %v", c.path, w.Body, err)
		}
	}
}

func TestReadAppNamesTheFault(t *testing.T) {
	for _, c := range []struct{ probers, metrics, want string }{
		{`{"/a": {"httpGet": {"port": "http"}}}`, "", `"http" is not a port`},
		{`{"/a": {}}`, "", "/a: a probe is one of"},
		{`[`, "", "ISTIO_KUBE_APP_PROBERS"},
		{"", `{"scrape":"true","port":"x"}`, `"x" is not a port`},
		{"", `{`, "ISTIO_PROMETHEUS_ANNOTATIONS"},
	} {
		if _, err := ReadApp(c.probers, c.metrics); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: %v, want %s", c.probers, c.metrics, err, c.want)
		}
	}
}

func FuzzReadApp(f *testing.F) {
	f.Add(`{"/a": {"httpGet": {"path": "/", "port": 1}}}`, `{"scrape":"true","port":"1"}`)
	f.Fuzz(func(t *testing.T, probers, metrics string) {
		a, err := ReadApp(probers, metrics)
		if err != nil {
			return
		}
		for path, p := range a.probers {
			if p.HTTPGet == nil && p.TCPSocket == nil && p.GRPC == nil {
				t.Errorf("%s asks nothing", path)
			}
		}
	})
}
