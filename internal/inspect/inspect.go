// Package inspect reads what a proxy and the control plane tell of themselves, in
// Envoy's and Istio's forms, and makes tables of it. It knows nothing of how the
// pages were fetched, so that it serves every kind of mesh, and other people's
// proxies too.
package inspect

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Table is text in columns; the first row is the heading.
type Table struct{ Rows [][]string }

func (t *Table) add(cells ...string) { t.Rows = append(t.Rows, cells) }

// sorted orders all rows but the heading.
func (t *Table) sorted() *Table {
	slices.SortStableFunc(t.Rows[1:], func(a, b []string) int { return slices.Compare(a, b) })
	return t
}

// Filter chooses rows; an empty field chooses all.
type Filter struct {
	FQDN, Subset, Direction string
	Port                    int
	Address, Name           string
	Cluster, Status         string
}

// node is a part of a JSON document. Its methods find nothing where nothing is.
type node struct{ v any }

func parse(b []byte) (node, error) {
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return node{}, err
	}
	return node{v}, nil
}

func (n node) at(path ...string) node {
	for _, p := range path {
		m, ok := n.v.(map[string]any)
		if !ok {
			return node{}
		}
		n = node{m[p]}
	}
	return n
}

func (n node) list(path ...string) []node {
	items, _ := n.at(path...).v.([]any)
	out := make([]node, len(items))
	for i, v := range items {
		out[i] = node{v}
	}
	return out
}

func (n node) text(path ...string) string {
	switch v := n.at(path...).v.(type) {
	case nil:
		return ""
	case string:
		return v
	case float64:
		return fmt.Sprint(int64(v))
	default:
		return fmt.Sprint(v)
	}
}

func (n node) has(path ...string) bool { return n.at(path...).v != nil }

// Dump is a proxy's page /config_dump.
type Dump struct{ root node }

// ParseDump reads the page.
func ParseDump(page []byte) (*Dump, error) {
	root, err := parse(page)
	if err != nil {
		return nil, fmt.Errorf("config dump: %w", err)
	}
	if !root.has("configs") {
		return nil, fmt.Errorf("config dump: there are no configs in it")
	}
	return &Dump{root}, nil
}

// section returns the message of a kind: "Clusters", "Listeners", ….
func (d *Dump) section(kind string) node {
	for _, c := range d.root.list("configs") {
		if strings.HasSuffix(c.text("@type"), "."+kind+"ConfigDump") {
			return c
		}
	}
	return node{}
}

// Section returns the message of a kind as it came, for output in full.
func (d *Dump) Section(kind string) any { return d.section(kind).v }

// All returns the whole page.
func (d *Dump) All() any { return d.root.v }

// origin turns "/apis/networking.istio.io/v1/namespaces/NS/virtual-service/NAME"
// into "NAME.NS".
func origin(n node) string {
	parts := strings.Split(n.text("metadata", "filter_metadata", "istio", "config"), "/")
	if len(parts) < 8 {
		return ""
	}
	return parts[7] + "." + parts[5]
}

// clusterName takes "outbound|9080|v1|reviews.default.svc.cluster.local" apart.
func clusterName(name string) (direction, port, subset, fqdn string, ok bool) {
	parts := strings.Split(name, "|")
	if len(parts) != 4 {
		return "", "", "", name, false
	}
	return parts[0], parts[1], parts[2], parts[3], true
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// Clusters lists the groups of endpoints that the proxy can call.
func (d *Dump) Clusters(f Filter) *Table {
	t := &Table{}
	t.add("SERVICE FQDN", "PORT", "SUBSET", "DIRECTION", "TYPE", "DESTINATION RULE")
	s := d.section("Clusters")
	for _, c := range append(s.list("dynamic_active_clusters"), s.list("static_clusters")...) {
		c = c.at("cluster")
		direction, port, subset, fqdn, _ := clusterName(c.text("name"))
		kind := c.text("type")
		if kind == "" {
			kind = c.text("cluster_type", "name")
		}
		if f.FQDN != "" && fqdn != f.FQDN || f.Subset != "" && subset != f.Subset || f.Direction != "" && direction != f.Direction ||
			f.Port != 0 && port != fmt.Sprint(f.Port) {
			continue
		}
		t.add(fqdn, dash(port), dash(subset), dash(direction), dash(kind), origin(c))
	}
	return t.sorted()
}

// Listeners lists what the proxy accepts, a row for each filter chain.
func (d *Dump) Listeners(f Filter) *Table {
	t := &Table{}
	t.add("ADDRESSES", "PORT", "MATCH", "DESTINATION")
	s := d.section("Listeners")
	var all []node
	for _, l := range s.list("dynamic_listeners") {
		all = append(all, l.at("active_state", "listener"))
	}
	for _, l := range s.list("static_listeners") {
		all = append(all, l.at("listener"))
	}
	for _, l := range all {
		address, port := l.text("address", "socket_address", "address"), l.text("address", "socket_address", "port_value")
		if f.Address != "" && address != f.Address || f.Port != 0 && port != fmt.Sprint(f.Port) {
			continue
		}
		chains := l.list("filter_chains")
		for _, c := range chains {
			t.add(dash(address), dash(port), chainMatch(c.at("filter_chain_match")), destination(c))
		}
		if l.has("default_filter_chain") {
			t.add(dash(address), dash(port), "ALL", destination(l.at("default_filter_chain")))
		}
	}
	slices.SortStableFunc(t.Rows[1:], func(a, b []string) int { return slices.Compare(a[:2], b[:2]) })
	return t
}

func chainMatch(m node) string {
	var out []string
	add := func(word string, values ...string) {
		if len(values) > 0 && values[0] != "" {
			out = append(out, word+": "+strings.Join(values, ","))
		}
	}
	texts := func(list []node) (s []string) {
		for _, n := range list {
			s = append(s, n.text())
		}
		return s
	}
	add("SNI", texts(m.list("server_names"))...)
	add("Trans", m.text("transport_protocol"))
	add("App", texts(m.list("application_protocols"))...)
	var prefixes []string
	for _, p := range m.list("prefix_ranges") {
		prefixes = append(prefixes, p.text("address_prefix")+"/"+or(p.text("prefix_len"), "0"))
	}
	add("Addr", prefixes...)
	if port := m.text("destination_port"); port != "" {
		out = append(out, "Addr: *:"+port)
	}
	if len(out) == 0 {
		return "ALL"
	}
	return strings.Join(out, "; ")
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// destination says where a filter chain leads.
func destination(chain node) string {
	for _, f := range chain.list("filters") {
		c := f.at("typed_config")
		switch {
		case c.has("rds"):
			return "Route: " + c.text("rds", "route_config_name")
		case c.has("route_config"):
			return "Inline Route: " + inline(c.at("route_config"))
		case c.has("cluster"):
			return "Cluster: " + c.text("cluster")
		case c.has("weighted_clusters"):
			var all []string
			for _, w := range c.list("weighted_clusters", "clusters") {
				all = append(all, w.text("name")+" ("+w.text("weight")+")")
			}
			return "Cluster: " + strings.Join(all, ", ")
		}
	}
	return "Non-HTTP/Non-TCP"
}

func inline(config node) string {
	var all []string
	for _, h := range config.list("virtual_hosts") {
		for _, r := range h.list("routes") {
			all = append(all, path(r.at("match")))
		}
	}
	return strings.Join(all, ", ")
}

func path(m node) string {
	switch {
	case m.has("prefix"):
		return strings.TrimSuffix(m.text("prefix"), "/") + "/*"
	case m.has("path"):
		return m.text("path")
	case m.has("path_separated_prefix"):
		return "PathPrefix:" + m.text("path_separated_prefix")
	case m.has("safe_regex"):
		return "regex " + m.text("safe_regex", "regex")
	}
	return "/*"
}

// domainsShown is how many domains of a virtual host are named.
const domainsShown = 3

// Routes lists the routes by name, virtual host and match.
func (d *Dump) Routes(f Filter) *Table {
	t := &Table{}
	t.add("NAME", "VHOST NAME", "DOMAINS", "MATCH", "VIRTUAL SERVICE")
	s := d.section("Routes")
	for _, c := range append(s.list("dynamic_route_configs"), s.list("static_route_configs")...) {
		c = c.at("route_config")
		if f.Name != "" && c.text("name") != f.Name {
			continue
		}
		for _, h := range c.list("virtual_hosts") {
			var domains []string
			for _, n := range h.list("domains") {
				domains = append(domains, n.text())
			}
			shown := domains[:min(len(domains), domainsShown)]
			text := strings.Join(shown, ", ")
			if more := len(domains) - len(shown); more > 0 {
				text += fmt.Sprintf(" + %d more...", more)
			}
			for _, r := range h.list("routes") {
				t.add(c.text("name"), h.text("name"), text, path(r.at("match")), or(origin(r), "-"))
			}
			if len(h.list("routes")) == 0 {
				t.add(c.text("name"), h.text("name"), text, "-", "404")
			}
		}
	}
	slices.SortStableFunc(t.Rows[1:], func(a, b []string) int { return strings.Compare(a[0], b[0]) })
	return t
}

// Secrets lists the certificates that the proxy has.
func (d *Dump) Secrets() *Table {
	t := &Table{}
	t.add("RESOURCE NAME", "TYPE", "STATUS", "VALID CERT", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE")
	s := d.section("Secrets")
	for _, item := range s.list("dynamic_active_secrets") {
		secretRows(t, item, "ACTIVE")
	}
	for _, item := range s.list("dynamic_warming_secrets") {
		t.add(item.text("name"), "-", "WARMING", "-", "-", "-", "-")
	}
	return t
}

// Endpoints reads a proxy's page /clusters?format=json.
func Endpoints(page []byte, f Filter) (*Table, error) {
	root, err := parse(page)
	if err != nil {
		return nil, fmt.Errorf("clusters: %w", err)
	}
	t := &Table{}
	t.add("ENDPOINT", "STATUS", "OUTLIER CHECK", "CLUSTER")
	for _, c := range root.list("cluster_statuses") {
		name := c.text("name")
		for _, h := range c.list("host_statuses") {
			address := h.text("address", "socket_address", "address")
			port := h.text("address", "socket_address", "port_value")
			if pipe := h.text("address", "pipe", "path"); pipe != "" {
				address = "unix://" + pipe
			} else if strings.Contains(address, ":") {
				address = "[" + address + "]:" + port
			} else {
				address += ":" + port
			}
			status, outlier := or(h.text("health_status", "eds_health_status"), "HEALTHY"), "OK"
			if h.text("health_status", "failed_outlier_check") == "true" {
				outlier = "FAILED"
			}
			if f.Cluster != "" && name != f.Cluster || f.Status != "" && !strings.EqualFold(status, f.Status) ||
				f.Port != 0 && port != fmt.Sprint(f.Port) || f.Address != "" && h.text("address", "socket_address", "address") != f.Address {
				continue
			}
			t.add(address, status, outlier, name)
		}
	}
	return t.sorted(), nil
}
