package admin

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/snapshot"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
	"github.com/heddle-mesh/heddle/internal/xds/client"
)

// The messages of envoy.admin.v3 are written by hand: linking them would cost
// each proxy their descriptors, for a page that is seldom looked at. What is
// inside of them is the control plane's own message.
const (
	typePrefix   = "type.googleapis.com/"
	adminPrefix  = typePrefix + "envoy.admin.v3."
	listenerType = typePrefix + "envoy.config.listener.v3.Listener"
	routeType    = typePrefix + "envoy.config.route.v3.RouteConfiguration"
	clusterType  = typePrefix + "envoy.config.cluster.v3.Cluster"
	endpointType = typePrefix + "envoy.config.endpoint.v3.ClusterLoadAssignment"
	secretType   = typePrefix + "envoy.extensions.transport_sockets.tls.v3.Secret"
)

// redacted stands for every private key. Source: Envoy, MessageUtil::redact.
const redacted = "[redacted]"

// object is a JSON object; encoding/json sorts its keys.
type object map[string]any

// protoJSON returns m in protobuf's JSON form with the names of the .proto files.
// Of messages inside that are not linked, filters that do nothing here, only the
// type is given.
func protoJSON(m proto.Message) json.RawMessage {
	b, err := protojson.MarshalOptions{UseProtoNames: true, Resolver: lenient{protoregistry.GlobalTypes}}.Marshal(m)
	if err == nil {
		return b
	}
	if b, err = json.Marshal(object{"@error": err.Error()}); err != nil {
		return json.RawMessage("{}")
	}
	return b
}

// lenient finds every message: those that are not linked have no fields.
type lenient struct{ *protoregistry.Types }

// FindMessageByURL implements protojson's resolver.
func (l lenient) FindMessageByURL(url string) (protoreflect.MessageType, error) {
	t, err := l.Types.FindMessageByURL(url)
	if err != nil {
		// Any message without fields will do.
		return (&corev3.AggregatedConfigSource{}).ProtoReflect().Type(), nil
	}
	return t, nil
}

func timestamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// dump is one message of the answer; lists are what ?resource= can ask for.
type dump struct {
	kind  string
	field object
	lists []list
}

type list struct {
	name  string
	kind  string // of an item, behind the dump's
	items []object
}

// configDump writes everything that the proxy was told.
func (s *Server) configDump(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	names, err := regexp.Compile(q.Get("name_regex"))
	if err != nil {
		http.Error(w, "Error while parsing name_regex: "+err.Error(), http.StatusBadRequest)
		return
	}
	_, eds := q["include_eds"]
	dumps := s.dumps(names, eds)

	var configs []object
	if want := q.Get("resource"); want != "" {
		found := false
		for _, d := range s.dumps(names, true) {
			for _, l := range d.lists {
				if l.name != want {
					continue
				}
				found = true
				for _, item := range l.items {
					item["@type"] = adminPrefix + d.kind + "." + l.kind
					configs = append(configs, item)
				}
			}
		}
		if !found {
			http.Error(w, want+" not found in config dump", http.StatusNotFound)
			return
		}
	} else {
		for _, d := range dumps {
			o := d.field
			o["@type"] = adminPrefix + d.kind
			for _, l := range d.lists {
				if len(l.items) > 0 {
					o[l.name] = l.items
				}
			}
			configs = append(configs, o)
		}
	}
	writeJSON(w, object{"configs": configs})
}

func (s *Server) dumps(names *regexp.Regexp, eds bool) []dump {
	each := func(typeURL string, make func(r client.Resource) object) []object {
		var items []object
		for _, r := range s.cfg.Resources(typeURL) {
			if names.MatchString(r.Name) {
				items = append(items, make(r))
			}
		}
		return items
	}
	plain := func(field string) func(r client.Resource) object {
		return func(r client.Resource) object {
			return object{"version_info": r.Version, "last_updated": timestamp(r.Updated), field: protoJSON(r.Body)}
		}
	}
	listeners := each(listenerType, func(r client.Resource) object {
		return object{"name": r.Name, "active_state": plain("listener")(r)}
	})
	out := []dump{
		{"BootstrapConfigDump", object{
			"bootstrap":    object{"node": protoJSON(s.cfg.Node)},
			"last_updated": timestamp(s.started),
		}, nil},
		{"ClustersConfigDump", object{"version_info": s.version(clusterType)}, []list{
			{"dynamic_active_clusters", "DynamicCluster", each(clusterType, plain("cluster"))}}},
		{"ListenersConfigDump", object{"version_info": s.version(listenerType)}, []list{
			{"dynamic_listeners", "DynamicListener", listeners}}},
		{"ScopedRoutesConfigDump", object{}, nil},
		{"RoutesConfigDump", object{}, []list{
			{"dynamic_route_configs", "DynamicRouteConfig", each(routeType, plain("route_config"))}}},
		{"SecretsConfigDump", object{}, []list{
			{"dynamic_active_secrets", "DynamicSecret", s.secrets(names)}}},
	}
	if eds {
		out = slices.Insert(out, 2, dump{"EndpointsConfigDump", object{}, []list{
			{"dynamic_endpoint_configs", "DynamicEndpointConfig", each(endpointType, plain("endpoint_config"))}}})
	}
	return out
}

// version stands for the version of a whole type, which the incremental protocol
// does not have: that of the resource that came last.
func (s *Server) version(typeURL string) string {
	var newest client.Resource
	for _, r := range s.cfg.Resources(typeURL) {
		if r.Updated.After(newest.Updated) {
			newest = r
		}
	}
	return newest.Version
}

// secrets shows the workload's own identity under the names that clusters and
// listeners use for it. Keys are never shown.
func (s *Server) secrets(names *regexp.Regexp) []object {
	if s.cfg.Identity == nil {
		return nil
	}
	m := s.cfg.Identity.Current()
	if m == nil {
		return nil
	}
	var chain []byte
	for _, der := range m.Certificate.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	inline := func(b []byte) object { return object{"inline_bytes": base64.StdEncoding.EncodeToString(b)} }
	since := timestamp(m.Certificate.Leaf.NotBefore)
	item := func(name string, field string, value object) object {
		return object{"name": name, "version_info": m.Certificate.Leaf.SerialNumber.String(), "last_updated": since,
			"secret": object{"@type": secretType, "name": name, field: value}}
	}
	all := []object{
		item("default", "tls_certificate", object{"certificate_chain": inline(chain), "private_key": inline([]byte(redacted))}),
		item("ROOTCA", "validation_context", object{"trusted_ca": inline(m.RootPEM)}),
	}
	return slices.DeleteFunc(all, func(o object) bool { return !names.MatchString(o["name"].(string)) })
}

// certs tells of the workload's certificates.
func (s *Server) certs(w http.ResponseWriter, _ *http.Request) {
	certificates := []object{}
	if s.cfg.Identity != nil {
		if m := s.cfg.Identity.Current(); m != nil {
			leaf := m.Certificate.Leaf
			names := []object{}
			for _, u := range leaf.URIs {
				names = append(names, object{"uri": u.String()})
			}
			certificates = append(certificates, object{"cert_chain": []object{{
				"path":                  "<inline>",
				"serial_number":         leaf.SerialNumber.Text(16),
				"subject_alt_names":     names,
				"days_until_expiration": fmt.Sprint(int64(time.Until(leaf.NotAfter).Hours() / 24)),
				"valid_from":            leaf.NotBefore.UTC().Format(time.RFC3339),
				"expiration_time":       leaf.NotAfter.UTC().Format(time.RFC3339),
			}}})
		}
	}
	writeJSON(w, object{"certificates": certificates})
}

func address(a netip.AddrPort) object {
	return object{"socket_address": object{"address": a.Addr().String(), "port_value": a.Port()}}
}

// listeners lists all listeners, also those without a socket.
func (s *Server) listeners(w http.ResponseWriter, r *http.Request) {
	var all []*snapshot.Listener
	if live := s.cfg.Live.Current(); live != nil {
		for _, l := range live.Listeners {
			all = append(all, l)
		}
	}
	slices.SortFunc(all, func(a, b *snapshot.Listener) int { return strings.Compare(a.Plan.Name, b.Plan.Name) })
	if r.URL.Query().Get("format") != "json" {
		for _, l := range all {
			fmt.Fprintf(w, "%s::%s\n", l.Plan.Name, l.Plan.Address)
		}
		return
	}
	statuses := []object{}
	for _, l := range all {
		statuses = append(statuses, object{"name": l.Plan.Name, "local_address": address(l.Plan.Address)})
	}
	writeJSON(w, object{"listener_statuses": statuses})
}

// clusters tells of all clusters and their endpoints.
func (s *Server) clusters(w http.ResponseWriter, r *http.Request) {
	all := s.cfg.Clusters.Status()
	if r.URL.Query().Get("format") == "json" {
		statuses := []object{}
		for i := range all {
			statuses = append(statuses, clusterStatus(&all[i]))
		}
		writeJSON(w, object{"cluster_statuses": statuses})
		return
	}
	for i := range all {
		clusterText(w, &all[i])
	}
}

// limit is a circuit breaker's; Istio's unlimited is the largest number.
func limit(n uint32) uint32 {
	if n == 0 {
		return math.MaxUint32
	}
	return n
}

func health(e *upstream.EndpointStatus) (eds, flags string) {
	if e.Healthy {
		return "HEALTHY", "healthy"
	}
	return "UNHEALTHY", "/failed_eds_health"
}

func clusterStatus(c *upstream.ClusterStatus) object {
	p := c.Plan
	hosts := []object{}
	for i := range c.Endpoints {
		e := &c.Endpoints[i]
		stats := []object{}
		for _, st := range endpointStats(e) {
			stat := object{"name": st.name, "value": fmt.Sprint(st.value)}
			if st.gauge {
				stat["type"] = "GAUGE"
			}
			stats = append(stats, stat)
		}
		eds, _ := health(e)
		hosts = append(hosts, object{"address": address(e.Address), "stats": stats, "health_status": object{"eds_health_status": eds}, "weight": 1, "locality": object{}})
	}
	o := object{
		"name": c.Name, "observability_name": c.Name, "added_via_api": true,
		"circuit_breakers": object{"thresholds": []object{{
			"max_connections": limit(p.MaxConnections), "max_pending_requests": limit(p.MaxPending), "max_requests": limit(p.MaxRequests),
		}}},
	}
	if len(hosts) > 0 {
		o["host_statuses"] = hosts
	}
	if p.Discovery == plan.EDS && p.ServiceName != "" {
		o["eds_service_name"] = p.ServiceName
	}
	return o
}

// stat is one number of an endpoint under Envoy's name.
type stat struct {
	name  string
	value int64
	gauge bool
}

func endpointStats(e *upstream.EndpointStatus) []stat {
	return []stat{
		{"cx_active", e.Counts.CxActive, true},
		{"cx_connect_fail", e.Counts.CxConnectFail, false},
		{"cx_total", e.Counts.CxTotal, false},
		{"rq_active", e.Counts.RqActive, true},
		{"rq_error", e.Counts.RqError, false},
		{"rq_success", e.Counts.RqSuccess, false},
		{"rq_total", e.Counts.RqTotal, false},
	}
}

func clusterText(w http.ResponseWriter, c *upstream.ClusterStatus) {
	p := c.Plan
	fmt.Fprintf(w, "%s::observability_name::%s\n", c.Name, c.Name)
	for _, l := range []struct {
		name  string
		value uint32
	}{{"max_connections", p.MaxConnections}, {"max_pending_requests", p.MaxPending}, {"max_requests", p.MaxRequests}} {
		fmt.Fprintf(w, "%s::default_priority::%s::%d\n", c.Name, l.name, limit(l.value))
	}
	fmt.Fprintf(w, "%s::added_via_api::true\n", c.Name)
	for i := range c.Endpoints {
		e := &c.Endpoints[i]
		for _, st := range endpointStats(e) {
			fmt.Fprintf(w, "%s::%s::%s::%d\n", c.Name, e.Address, st.name, st.value)
		}
		_, flags := health(e)
		fmt.Fprintf(w, "%s::%s::health_flags::%s\n", c.Name, e.Address, flags)
	}
}
