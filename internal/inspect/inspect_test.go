package inspect

import (
	"strings"
	"testing"
)

const dump = `{"configs": [
 {"@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump", "dynamic_active_clusters": [
  {"cluster": {"name": "outbound|9080|v1|reviews.default.svc.cluster.local", "type": "EDS",
   "metadata": {"filter_metadata": {"istio": {"config": "/apis/networking.istio.io/v1/namespaces/default/destination-rule/reviews"}}}}},
  {"cluster": {"name": "inbound|80||", "type": "ORIGINAL_DST"}},
  {"cluster": {"name": "PassthroughCluster", "cluster_type": {"name": "x.custom"}}}]},
 {"@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump", "dynamic_listeners": [
  {"active_state": {"listener": {"address": {"socket_address": {"address": "0.0.0.0", "port_value": 9080}},
   "filter_chains": [
    {"filter_chain_match": {"transport_protocol": "tls", "server_names": ["a.b", "c"], "prefix_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}]},
     "filters": [{"typed_config": {"cluster": "outbound|443||a.b"}}]},
    {"filters": [{"typed_config": {}}, {"typed_config": {"rds": {"route_config_name": "9080"}}}]}],
   "default_filter_chain": {"filters": [{"typed_config": {"weighted_clusters": {"clusters": [{"name": "x", "weight": 1}, {"name": "y", "weight": 3}]}}}]}}}},
  {"active_state": {"listener": {"address": {"socket_address": {"address": "::", "port_value": 15006}},
   "filter_chains": [{"filters": [{"typed_config": {"route_config": {"virtual_hosts": [{"routes": [{"match": {"prefix": "/"}}]}]}}}]}]}}}]},
 {"@type": "type.googleapis.com/envoy.admin.v3.RoutesConfigDump", "dynamic_route_configs": [
  {"route_config": {"name": "9080", "virtual_hosts": [
   {"name": "reviews", "domains": ["a", "b", "c", "d", "e"], "routes": [
     {"match": {"path": "/x"}, "metadata": {"filter_metadata": {"istio": {"config": "/apis/networking.istio.io/v1/namespaces/ns/virtual-service/vs"}}}},
     {"match": {"safe_regex": {"regex": "/a+"}}}, {"match": {"prefix": "/p/"}}]},
   {"name": "empty", "domains": ["z"]}]}}]},
 {"@type": "type.googleapis.com/envoy.admin.v3.SecretsConfigDump", "dynamic_active_secrets": [
  {"name": "bad", "secret": {"tls_certificate": {"certificate_chain": {"inline_bytes": "AAAA"}}}}],
  "dynamic_warming_secrets": [{"name": "late"}]}]}`

func rows(t *Table) string {
	var out []string
	for _, r := range t.Rows[1:] {
		out = append(out, strings.Join(r, " | "))
	}
	return strings.Join(out, "\n")
}

func TestDumpsBecomeTables(t *testing.T) {
	d, err := ParseDump([]byte(dump))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		got  *Table
		want string
	}{
		{"clusters", d.Clusters(Filter{}), ` | 80 | - | inbound | ORIGINAL_DST | 
PassthroughCluster | - | - | - | x.custom | 
reviews.default.svc.cluster.local | 9080 | v1 | outbound | EDS | reviews.default`},
		{"clusters of a service", d.Clusters(Filter{FQDN: "reviews.default.svc.cluster.local", Port: 9080}), `reviews.default.svc.cluster.local | 9080 | v1 | outbound | EDS | reviews.default`},
		{"clusters of another port", d.Clusters(Filter{Port: 1}), ``},
		{"listeners", d.Listeners(Filter{}), `0.0.0.0 | 9080 | SNI: a.b,c; Trans: tls; Addr: 10.0.0.0/8 | Cluster: outbound|443||a.b
0.0.0.0 | 9080 | ALL | Route: 9080
0.0.0.0 | 9080 | ALL | Cluster: x (1), y (3)
:: | 15006 | ALL | Inline Route: /*`},
		{"listeners of a port", d.Listeners(Filter{Port: 15006}), `:: | 15006 | ALL | Inline Route: /*`},
		{"routes", d.Routes(Filter{}), `9080 | reviews | a, b, c + 2 more... | /x | vs.ns
9080 | reviews | a, b, c + 2 more... | regex /a+ | -
9080 | reviews | a, b, c + 2 more... | /p/* | -
9080 | empty | z | - | 404`},
		{"routes of another name", d.Routes(Filter{Name: "80"}), ``},
		{"secrets", d.Secrets(), `bad | Cert Chain | ACTIVE | - | - | - | -
late | - | WARMING | - | - | - | -`},
	} {
		if got := rows(c.got); got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, got, c.want)
		}
	}
}

func TestPagesThatAreNone(t *testing.T) {
	for _, in := range []string{"", "null", "[]", `{"other": 1}`} {
		if d, err := ParseDump([]byte(in)); err == nil {
			t.Errorf("%q is %v", in, d)
		}
	}
	if _, err := Endpoints([]byte("x"), Filter{}); err == nil {
		t.Error("no error for endpoints")
	}
	if _, err := ProxyStatus(map[string][]byte{"istiod-0": []byte("x")}); err == nil || !strings.Contains(err.Error(), "istiod-0") {
		t.Errorf("error for status: %v", err)
	}
}

func TestEndpoints(t *testing.T) {
	page := `{"cluster_statuses": [{"name": "b", "host_statuses": [
  {"address": {"socket_address": {"address": "10.0.0.1", "port_value": 80}}, "health_status": {"eds_health_status": "UNHEALTHY", "failed_outlier_check": true}},
  {"address": {"socket_address": {"address": "fd00::1", "port_value": 81}}},
  {"address": {"pipe": {"path": "/x"}}}]}, {"name": "a"}]}`
	all, err := Endpoints([]byte(page), Filter{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := rows(all), "10.0.0.1:80 | UNHEALTHY | FAILED | b\n[fd00::1]:81 | HEALTHY | OK | b\nunix:///x | HEALTHY | OK | b"; got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	some, err := Endpoints([]byte(page), Filter{Status: "healthy", Port: 81})
	if err != nil || rows(some) != "[fd00::1]:81 | HEALTHY | OK | b" {
		t.Errorf("%v %v", some, err)
	}
}

func TestProxyStatusSaysHowFarEachIs(t *testing.T) {
	got, err := ProxyStatus(map[string][]byte{
		"istiod-1": []byte(`[{"proxy": "b.ns", "cluster_id": "c", "istio_version": "1", "cluster_sent": "2", "cluster_acked": "2", "listener_sent": "2", "listener_acked": "1", "endpoint_sent": "1"}]`),
		"istiod-0": []byte(`[{"proxy": "a.ns"}]`),
	})
	want := `a.ns |  | NOT SENT | NOT SENT | NOT SENT | NOT SENT | istiod-0 | -
b.ns | c | SYNCED | STALE | STALE (Never Acknowledged) | NOT SENT | istiod-1 | 1`
	if err != nil || rows(got) != want {
		t.Errorf("%s\n%v", rows(got), err)
	}
}
