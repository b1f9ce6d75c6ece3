package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/internal/compile"
	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/webhook"
	"github.com/heddle-mesh/heddle/internal/xds/server"
)

// pages are what the HTTP port shows.
type pages struct {
	cfg   Config
	reg   *register
	xds   *server.Server
	hooks *webhook.Server // nil outside of a cluster
}

// handler returns the handler of the HTTP port. Paths and forms are Istio's where
// it has them.
func (p *pages) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", p.metrics)
	mux.HandleFunc("GET /version", p.version)
	mux.HandleFunc("GET /ready", p.ready)
	for path, page := range p.debugPages() {
		mux.HandleFunc("GET /debug/"+path, p.local(page))
	}
	return mux
}

// debugPages are the pages below /debug/.
func (p *pages) debugPages() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"config_dump": p.configDump,
		"configz":     p.configz,
		"faults":      p.faults,
		"registryz":   p.registryz,
		"syncz":       p.syncz,
	}
}

// local answers only callers from this machine: debug pages show everybody's
// configuration. A tool elsewhere comes through a forwarded port.
func (p *pages) local(page http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !p.cfg.DebugFromAnywhere {
			from, err := netip.ParseAddrPort(r.RemoteAddr)
			if err != nil || !from.Addr().Unmap().IsLoopback() {
				http.Error(w, "debug pages are for callers from this machine", http.StatusForbidden)
				return
			}
		}
		page(w, r)
	}
}

func (p *pages) metrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_ = writeMetrics(w, p.cfg.Version, p.reg, p.xds) // fails only if the caller is gone
	if p.hooks != nil {
		p.hooks.WriteMetrics(w)
	}
}

func (p *pages) version(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, p.cfg.Version) }

// ready says whether proxies are answered: after the first good view of the
// configuration.
func (p *pages) ready(w http.ResponseWriter, _ *http.Request) {
	if !p.reg.ready() {
		http.Error(w, "there is no configuration yet", http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ready")
}

func show(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(v) // fails only if the caller is gone
}

// faultJSON is a fault as tools read it.
type faultJSON struct {
	Severity string `json:"severity"`
	Kind     string `json:"kind,omitempty"`
	Object   string `json:"object,omitempty"` // "namespace/name"
	File     string `json:"file,omitempty"`
	Line     int    `json:"line,omitempty"`
	Field    string `json:"field,omitempty"`
	Problem  string `json:"problem"`
	Hint     string `json:"hint,omitempty"`
	Text     string `json:"text"` // all of it, as the log has it
}

// faults shows what is wrong with the configuration and could not be compiled.
// While there are errors, "inForce" is the last configuration without.
func (p *pages) faults(w http.ResponseWriter, _ *http.Request) {
	faults, plans := p.reg.faults()
	out := struct {
		Config []faultJSON `json:"config"`
		Plans  []PlanFault `json:"plans"`
	}{Config: []faultJSON{}, Plans: append([]PlanFault{}, plans...)}
	for _, f := range faults {
		j := faultJSON{
			Severity: "error", Kind: f.Object.Kind.Name, File: f.Pos.File, Line: f.Pos.Line,
			Field: f.Field, Problem: f.Problem, Hint: f.Hint, Text: f.Error(),
		}
		if f.Severity == config.Warning {
			j.Severity = "warning"
		}
		if f.Object.Name != "" {
			j.Object = strings.TrimPrefix(f.Object.Namespace+"/"+f.Object.Name, "/")
		}
		out.Config = append(out.Config, j)
	}
	show(w, out)
}

// syncStatus is Istio's form of /debug/syncz.
type syncStatus struct {
	ClusterID     string `json:"cluster_id,omitempty"`
	Proxy         string `json:"proxy"`
	ProxyType     string `json:"proxy_type"`
	IstioVersion  string `json:"istio_version,omitempty"`
	ClusterSent   string `json:"cluster_sent,omitempty"`
	ClusterAcked  string `json:"cluster_acked,omitempty"`
	ListenerSent  string `json:"listener_sent,omitempty"`
	ListenerAcked string `json:"listener_acked,omitempty"`
	RouteSent     string `json:"route_sent,omitempty"`
	RouteAcked    string `json:"route_acked,omitempty"`
	EndpointSent  string `json:"endpoint_sent,omitempty"`
	EndpointAcked string `json:"endpoint_acked,omitempty"`
	// The rest is ours.
	NameTableSent  string            `json:"nametable_sent,omitempty"`
	NameTableAcked string            `json:"nametable_acked,omitempty"`
	Connected      time.Time         `json:"connected"`
	Synced         bool              `json:"synced"`
	Refused        map[string]string `json:"refused,omitempty"` // the proxy's reason, by short type
}

func (p *pages) syncz(w http.ResponseWriter, _ *http.Request) {
	out := []syncStatus{}
	for _, one := range p.xds.Proxies() {
		s := syncStatus{
			ClusterID: one.Proxy.ClusterID, Proxy: one.Proxy.ID, IstioVersion: one.Version,
			ProxyType: map[compile.Class]string{compile.Sidecar: "sidecar", compile.Gateway: "router", compile.GRPC: "grpc"}[one.Proxy.Class],
			Connected: one.Connected, Synced: true,
		}
		sent := map[string][2]*string{
			"cds": {&s.ClusterSent, &s.ClusterAcked}, "lds": {&s.ListenerSent, &s.ListenerAcked},
			"rds": {&s.RouteSent, &s.RouteAcked}, "eds": {&s.EndpointSent, &s.EndpointAcked},
			"nds": {&s.NameTableSent, &s.NameTableAcked},
		}
		for _, t := range shortTypes {
			status, ok := one.Types[t.url]
			if !ok {
				continue
			}
			*sent[t.short][0], *sent[t.short][1] = status.Sent, status.Acked
			s.Synced = s.Synced && status.Synced()
			if status.Refused != "" {
				if s.Refused == nil {
					s.Refused = map[string]string{}
				}
				s.Refused[t.short] = status.Refused
			}
		}
		out = append(out, s)
	}
	show(w, out)
}

// registryz shows the services, with the addresses that Heddle chose for them.
func (p *pages) registryz(w http.ResponseWriter, _ *http.Request) {
	type port struct {
		Name     string `json:"name,omitempty"`
		Port     uint16 `json:"port"`
		Protocol string `json:"protocol"`
	}
	type service struct {
		Hostname   string       `json:"hostname"`
		Name       string       `json:"name"`
		Namespace  string       `json:"namespace"`
		Kubernetes bool         `json:"kubernetes"`
		External   bool         `json:"external,omitempty"`
		Headless   bool         `json:"headless,omitempty"`
		Addresses  []netip.Addr `json:"addresses"`
		Ports      []port       `json:"ports"`
		Endpoints  int          `json:"endpoints"` // of all ports together
	}
	out := []service{}
	if world, _ := p.reg.inForce(); world != nil {
		for _, s := range world.Services() {
			one := service{
				Hostname: string(s.Host), Name: s.Name, Namespace: s.Namespace, Kubernetes: s.Kubernetes,
				External: s.External, Headless: s.Headless, Addresses: append([]netip.Addr{}, s.Addresses...), Ports: []port{},
			}
			for _, q := range s.Ports {
				one.Ports = append(one.Ports, port{q.Name, q.Number, q.Protocol.String()})
				one.Endpoints += len(endpointsOn(world, s, q.Number))
			}
			out = append(out, one)
		}
	}
	show(w, out)
}

func endpointsOn(w *model.World, s *model.Service, port uint16) []*model.Endpoint {
	return w.Endpoints(s).ByPort[port]
}

// configz shows the objects in force. Of Kubernetes' own kinds it shows that they
// are there, and nothing inside: some are secrets.
func (p *pages) configz(w http.ResponseWriter, _ *http.Request) {
	type metadata struct {
		Name        string            `json:"name"`
		Namespace   string            `json:"namespace,omitempty"`
		Labels      map[string]string `json:"labels,omitempty"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	type object struct {
		APIVersion string          `json:"apiVersion"`
		Kind       string          `json:"kind"`
		Metadata   metadata        `json:"metadata"`
		Spec       json.RawMessage `json:"spec,omitempty"`
		Source     string          `json:"source,omitempty"`
	}
	out := []object{}
	_, objects := p.reg.inForce()
	for _, o := range objects {
		one := object{
			APIVersion: o.APIVersion, Kind: o.Kind.Name, Source: o.Pos.String(),
			Metadata: metadata{o.Name, o.Namespace, o.Labels, o.Annotations},
		}
		if spec, ok := o.Spec.(proto.Message); ok && strings.HasSuffix(o.Kind.Group, ".istio.io") {
			if b, err := protojson.Marshal(spec); err == nil {
				one.Spec = b
			}
		}
		out = append(out, one)
	}
	show(w, out)
}

// configDump shows what a proxy should have, in the form of Envoy's own page.
func (p *pages) configDump(w http.ResponseWriter, r *http.Request) {
	id := r.URL.Query().Get("proxyID")
	set, ok := p.xds.Resources(id)
	if !ok {
		http.Error(w, fmt.Sprintf("no proxy %q is connected; proxyID is pod.namespace", id), http.StatusNotFound)
		return
	}
	dump, err := dumpOf(set)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(dump) // fails only if the caller is gone
}

// serveHTTP is as serveGRPC.
func serveHTTP(h http.Handler, l net.Listener) func(context.Context) error {
	return func(ctx context.Context) error {
		if l == nil {
			return nil
		}
		s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
		over := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			defer close(over)
			ctx, cancel := context.WithTimeout(context.Background(), farewell)
			defer cancel()
			if s.Shutdown(ctx) != nil {
				_ = s.Close()
			}
		})
		err := s.Serve(l)
		if stop() {
			_ = s.Close() // it ended by itself, with requests still open
			return err
		}
		<-over
		if errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		return err
	}
}
