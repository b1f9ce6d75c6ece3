// Package admin answers questions about a running proxy, and takes the few orders
// that may be given to one, in the form that Envoy's users and tools know: a copy
// of /config_dump or /clusters can be read by istioctl.
//
// There are four servers. Admin tells everything and takes orders, so it listens
// on the loopback address only. Status, Ready and Prometheus are for kubelets and
// scrapers; the orders that Status takes it takes from the loopback address only.
package admin

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/proxy/snapshot"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
	"github.com/heddle-mesh/heddle/internal/telemetry"
	"github.com/heddle-mesh/heddle/internal/xds/client"
)

// Config is what the pages show and the orders reach. All fields are required but
// Identity, Level, Connections and App.
type Config struct {
	Version string
	Node    *corev3.Node
	// Resources returns what the control plane sent of a type.
	Resources   func(typeURL string) []client.Resource
	Live        *snapshot.Live
	Clusters    *upstream.Set
	Metrics     *telemetry.Registry
	Identity    identity.Source
	Level       *slog.LevelVar
	Connections func() int64
	// App is asked for its health and metrics in the place of others; nil has none.
	App *App
	// Ready returns nil once the proxy can do its work, or why it can not.
	Ready func() error
	// Drain begins to drain, inbound connections only or all; Quit ends the proxy,
	// after its drain.
	Drain func(inboundOnly bool)
	Quit  func()
}

// Server makes the handlers of the four servers.
type Server struct {
	cfg     Config
	started time.Time
	failed  atomic.Bool // by /healthcheck/fail
	drained atomic.Bool

	scrapes, scrapeFailures *telemetry.Counter // of the application
}

// New checks cfg.
func New(cfg Config) (*Server, error) {
	for name, missing := range map[string]bool{
		"Node": cfg.Node == nil, "Resources": cfg.Resources == nil, "Live": cfg.Live == nil, "Clusters": cfg.Clusters == nil,
		"Metrics": cfg.Metrics == nil, "Ready": cfg.Ready == nil, "Drain": cfg.Drain == nil, "Quit": cfg.Quit == nil,
	} {
		if missing {
			return nil, errors.New("admin: Config." + name + " is missing")
		}
	}
	if cfg.Connections == nil {
		cfg.Connections = func() int64 { return 0 }
	}
	s := &Server{cfg: cfg, started: time.Now()}
	s.register()
	return s, nil
}

// page is one path of the admin server.
type page struct {
	path, help string
	post       bool // changes something
	serve      http.HandlerFunc
}

func (s *Server) pages() []page {
	return []page{
		{"/certs", "print certs on machine", false, s.certs},
		{"/clusters", "upstream cluster status (format=json)", false, s.clusters},
		{"/config_dump", "dump current configs (resource, name_regex, include_eds)", false, s.configDump},
		{"/drain_listeners", "drain listeners (inboundonly)", true, s.drain},
		{"/healthcheck/fail", "cause the server to fail health checks", true, s.health(true)},
		{"/healthcheck/ok", "cause the server to pass health checks", true, s.health(false)},
		{"/help", "print out list of admin commands", false, s.help},
		{"/listeners", "print listener info (format=json)", false, s.listeners},
		{"/logging", "query or change the logging level (level)", true, s.logging},
		{"/memory", "print current allocation/heap usage", false, s.memory},
		{"/quitquitquit", "exit the server", true, s.quit},
		{"/ready", "print server state, return 200 if LIVE, otherwise return 503", false, s.ready},
		{"/server_info", "print server version/status information", false, s.serverInfo},
		{"/stats", "print server stats (filter, format=json|prometheus, usedonly)", false, s.stats},
		{"/stats/prometheus", "print server stats in prometheus format", false, s.prometheus},
	}
}

// Admin is the server for people and tools on this machine.
func (s *Server) Admin() http.Handler {
	mux := http.NewServeMux()
	for _, p := range s.pages() {
		mux.HandleFunc(p.path, func(w http.ResponseWriter, r *http.Request) {
			if p.post && r.Method != http.MethodPost {
				// An order must not be something that a link or an image can give.
				http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
				return
			}
			p.serve(w, r)
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprintln(w, "invalid path. admin commands are:")
		}
		s.help(w, r)
	})
	return onlyLocalNames(mux)
}

// onlyLocalNames refuses requests for other hosts than this one: a page in a
// browser on this machine could otherwise let its own name resolve to it.
func onlyLocalNames(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
		if host != "localhost" && host != "" && (err != nil || !addr.IsLoopback()) {
			http.Error(w, "the admin interface answers on this machine only", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Status is the server that kubelets and scrapers use.
func (s *Server) Status() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /stats/prometheus", s.merged)
	mux.HandleFunc("GET /metrics", s.merged)
	mux.HandleFunc("GET /healthz/ready", s.healthz)
	mux.HandleFunc("POST /quitquitquit", loopbackOnly(s.quit))
	mux.HandleFunc("POST /drain", loopbackOnly(s.drain))
	if s.cfg.App != nil {
		mux.Handle("GET /app-health/", s.cfg.App)
		mux.Handle("GET /app-lifecycle/", s.cfg.App)
	}
	return mux
}

// Ready is the server that load balancers and probes use.
func (s *Server) Ready() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz/ready", s.healthz)
	return mux
}

// Prometheus is the server for scrapers.
func (s *Server) Prometheus() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /stats/prometheus", s.prometheus)
	return mux
}

func loopbackOnly(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil || !from.Addr().Unmap().IsLoopback() {
			http.Error(w, "Only requests from localhost are allowed", http.StatusForbidden)
			return
		}
		next(w, r)
	}
}

// state is the proxy's, in Envoy's words.
func (s *Server) state() string {
	switch {
	case s.failed.Load() || s.drained.Load():
		return "DRAINING"
	case s.cfg.Ready() != nil:
		return "PRE_INITIALIZING"
	}
	return "LIVE"
}

func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	state := s.state()
	if state != "LIVE" {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	fmt.Fprintln(w, state)
}

// healthz says why, for whoever looks at a probe's events.
func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	err := s.cfg.Ready()
	if s.failed.Load() || s.drained.Load() {
		err = errors.New("draining")
	}
	if err != nil {
		http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
	}
}

func (s *Server) health(failed bool) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		s.failed.Store(failed)
		fmt.Fprintln(w, "OK")
	}
}

// SetDraining makes readiness fail from now on: the proxy is about to end.
func (s *Server) SetDraining() { s.drained.Store(true) }

func (s *Server) drain(w http.ResponseWriter, r *http.Request) {
	inbound := r.URL.Query().Has("inboundonly")
	s.drained.Store(true)
	s.cfg.Drain(inbound)
	fmt.Fprintln(w, "OK")
}

func (s *Server) quit(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprintln(w, "OK")
	if f, ok := w.(http.Flusher); ok {
		f.Flush() // the end may come before the answer is sent
	}
	s.cfg.Quit()
}

func (s *Server) help(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprintln(w, "admin commands are:")
	for _, p := range s.pages() {
		method := ""
		if p.post {
			method = " (POST)"
		}
		fmt.Fprintf(w, "  %s%s: %s\n", p.path, method, p.help)
	}
}

func (s *Server) prometheus(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	s.cfg.Metrics.WritePrometheus(w) // the scraper notices that it is incomplete
}

// merged is prometheus, and after it the application's own metrics. Without
// these the proxy's are still told.
func (s *Server) merged(w http.ResponseWriter, r *http.Request) {
	s.prometheus(w, r)
	if s.cfg.App == nil || s.cfg.App.scrape == nil {
		return
	}
	s.scrapes.Inc()
	if s.cfg.App.metrics(r, w) != nil {
		s.scrapeFailures.Inc()
	}
}

// register adds what this room knows to the metrics.
func (s *Server) register() {
	m := s.cfg.Metrics
	s.scrapes = m.Counter("istio_agent_scrapes_total", "The total number of scrapes.")
	s.scrapeFailures = m.Counter("istio_agent_scrape_failures_total", "The total number of failed scrapes.", telemetry.Label{Name: "type", Value: "application"})
	m.Gauge("istio_build", "Istio component build info", telemetry.Label{Name: "component", Value: "proxy"}, telemetry.Label{Name: "tag", Value: s.cfg.Version}).Set(1)
	m.GaugeFunc("envoy_server_live", "1 if the server is not draining.", func() float64 {
		if s.failed.Load() || s.drained.Load() {
			return 0
		}
		return 1
	})
	m.GaugeFunc("envoy_server_state", "0 live, 1 draining, 2 before initialization.", func() float64 { return float64(stateNumber(s.state())) })
	m.GaugeFunc("envoy_server_uptime", "Seconds since the start.", func() float64 { return float64(int64(time.Since(s.started).Seconds())) })
	m.GaugeFunc("envoy_server_total_connections", "Connections open.", func() float64 { return float64(s.cfg.Connections()) })
	m.GaugeFunc("envoy_server_memory_heap_size", "Bytes obtained from the operating system.", func() float64 {
		var mem runtime.MemStats
		runtime.ReadMemStats(&mem)
		return float64(mem.Sys)
	})
	m.GaugeFunc("envoy_server_days_until_first_cert_expiring", "Days until the workload's certificate expires.", func() float64 {
		if left, ok := s.certLeft(); ok {
			return float64(int64(left.Hours() / 24))
		}
		return 0
	})
	m.GaugeFunc("istio_agent_cert_expiry_seconds", "The time remaining, in seconds, before the certificate chain will expire.", func() float64 {
		left, _ := s.certLeft()
		return left.Seconds()
	}, telemetry.Label{Name: "resource_name", Value: "default"})
	// Only clusters in use: a large mesh has thousands of which a proxy calls few.
	for _, c := range clusterStats {
		m.Collect("envoy_cluster_"+c.name, c.help, c.kind, func(yield func(float64, ...telemetry.Label)) {
			for _, st := range s.cfg.Clusters.Status() {
				if st.Counts.CxTotal > 0 || st.Counts.CxConnectFail > 0 {
					yield(float64(c.value(&st.Counts)), telemetry.Label{Name: "cluster_name", Value: st.Name})
				}
			}
		})
	}
}

func stateNumber(state string) int {
	return max(0, slices.Index([]string{"LIVE", "DRAINING", "PRE_INITIALIZING"}, state))
}

// certLeft is how long the workload's certificate is still valid.
func (s *Server) certLeft() (time.Duration, bool) {
	if s.cfg.Identity == nil {
		return 0, false
	}
	m := s.cfg.Identity.Current()
	if m == nil {
		return 0, false
	}
	return time.Until(m.Certificate.Leaf.NotAfter), true
}

// clusterStats are the counts of a cluster under Envoy's names.
var clusterStats = []struct {
	name, help, kind string
	value            func(*upstream.Counts) int64
}{
	{"upstream_cx_active", "Connections open.", "gauge", func(c *upstream.Counts) int64 { return c.CxActive }},
	{"upstream_cx_connect_fail", "Connections that could not be made.", "counter", func(c *upstream.Counts) int64 { return c.CxConnectFail }},
	{"upstream_cx_total", "Connections made.", "counter", func(c *upstream.Counts) int64 { return c.CxTotal }},
	{"upstream_rq_active", "Requests in flight.", "gauge", func(c *upstream.Counts) int64 { return c.RqActive }},
	{"upstream_rq_total", "Requests begun.", "counter", func(c *upstream.Counts) int64 { return c.RqTotal }},
}

// stats prints numbers as Envoy's flat list of names.
func (s *Server) stats(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if q.Get("format") == "prometheus" {
		s.prometheus(w, r)
		return
	}
	filter, err := regexp.Compile(q.Get("filter"))
	if err != nil {
		http.Error(w, "Invalid filter: "+err.Error(), http.StatusBadRequest)
		return
	}
	all := map[string]int64{
		"server.live":                               1 - int64(min(1, stateNumber(s.state()))),
		"server.state":                              int64(stateNumber(s.state())),
		"server.uptime":                             int64(time.Since(s.started).Seconds()),
		"server.total_connections":                  s.cfg.Connections(),
		"listener_manager.workers_started":          boolean(s.cfg.Live.Current() != nil),
		"listener_manager.total_listeners_active":   0,
		"cluster_manager.active_clusters":           0,
		"cluster_manager.cds.update_success":        boolean(len(s.cfg.Resources(clusterType)) > 0),
		"listener_manager.lds.update_success":       boolean(len(s.cfg.Resources(listenerType)) > 0),
		"cluster_manager.cds.update_rejected":       0,
		"listener_manager.lds.update_rejected":      0,
		"listener_manager.total_listeners_draining": 0,
		"cluster_manager.warming_clusters":          0,
		"listener_manager.total_listeners_warming":  0,
	}
	if live := s.cfg.Live.Current(); live != nil {
		all["listener_manager.total_listeners_active"] = int64(len(live.Listeners))
	}
	for _, st := range s.cfg.Clusters.Status() {
		all["cluster_manager.active_clusters"]++
		if q.Has("usedonly") && st.Counts.CxTotal == 0 {
			continue
		}
		for _, c := range clusterStats {
			all["cluster."+st.Name+"."+c.name] = c.value(&st.Counts)
		}
	}
	maps.DeleteFunc(all, func(name string, _ int64) bool { return !filter.MatchString(name) })
	names := slices.Sorted(maps.Keys(all))
	if q.Get("format") == "json" {
		list := make([]any, 0, len(names))
		for _, n := range names {
			list = append(list, map[string]any{"name": n, "value": all[n]})
		}
		writeJSON(w, map[string]any{"stats": list})
		return
	}
	for _, n := range names {
		fmt.Fprintf(w, "%s: %d\n", n, all[n])
	}
}

func boolean(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// memory tells the runtime's view under Envoy's names.
func (s *Server) memory(w http.ResponseWriter, _ *http.Request) {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	text := func(n uint64) string { return strconv.FormatUint(n, 10) }
	writeJSON(w, map[string]string{
		"allocated": text(m.HeapAlloc), "heap_size": text(m.Sys), "pageheap_unmapped": text(m.HeapReleased),
		"pageheap_free": text(m.HeapIdle - m.HeapReleased), "total_physical_bytes": text(m.Sys - m.HeapReleased),
	})
}

// levels are Envoy's names for slog's.
var levels = []struct {
	name  string
	level slog.Level
}{
	{"trace", slog.LevelDebug - 4},
	{"debug", slog.LevelDebug},
	{"info", slog.LevelInfo},
	{"warning", slog.LevelWarn},
	{"error", slog.LevelError},
	{"critical", slog.LevelError + 4},
	{"off", slog.LevelError + 8},
}

func (s *Server) logging(w http.ResponseWriter, r *http.Request) {
	if s.cfg.Level == nil {
		http.Error(w, "the level can not be changed", http.StatusNotImplemented)
		return
	}
	q := r.URL.Query()
	name := q.Get("level")
	if name == "" { // tools name loggers one by one; we have one for all
		name = q.Get("heddle")
	}
	if name != "" {
		i := slices.IndexFunc(levels, func(l struct {
			name  string
			level slog.Level
		}) bool {
			return l.name == name || l.name == "warning" && name == "warn"
		})
		if i < 0 {
			http.Error(w, "error: unknown logger level", http.StatusBadRequest)
			return
		}
		s.cfg.Level.Set(levels[i].level)
	}
	now := "off"
	for _, l := range slices.Backward(levels) {
		if s.cfg.Level.Level() <= l.level {
			now = l.name
		}
	}
	fmt.Fprintf(w, "active loggers:\n  heddle: %s\n", now)
}

func (s *Server) serverInfo(w http.ResponseWriter, _ *http.Request) {
	uptime := fmt.Sprintf("%ds", int64(time.Since(s.started).Seconds()))
	writeJSON(w, map[string]any{
		"version":              cmp.Or(s.cfg.Version, "dev"),
		"state":                s.state(),
		"uptime_current_epoch": uptime,
		"uptime_all_epochs":    uptime,
		"hot_restart_version":  "disabled",
		"command_line_options": map[string]any{"service_node": s.cfg.Node.GetId(), "service_cluster": s.cfg.Node.GetCluster()},
		"node":                 protoJSON(s.cfg.Node),
	})
}

func writeJSON(w http.ResponseWriter, v any) {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(append(b, '\n'))
}
