package inspect

import (
	"encoding/json"
	"fmt"
)

// proxyStatus is one item of the control plane's page /debug/syncz.
type proxyStatus struct {
	Cluster string `json:"cluster_id"`
	Proxy   string `json:"proxy"`
	Type    string `json:"proxy_type"`
	Version string `json:"istio_version"`

	ClusterSent   string `json:"cluster_sent"`
	ClusterAcked  string `json:"cluster_acked"`
	ListenerSent  string `json:"listener_sent"`
	ListenerAcked string `json:"listener_acked"`
	RouteSent     string `json:"route_sent"`
	RouteAcked    string `json:"route_acked"`
	EndpointSent  string `json:"endpoint_sent"`
	EndpointAcked string `json:"endpoint_acked"`
}

// word says how far a proxy is with one type. Source: Istio, proxy-status.
func word(sent, acked string) string {
	switch {
	case sent == "":
		return "NOT SENT"
	case sent == acked:
		return "SYNCED"
	case acked == "":
		return "STALE (Never Acknowledged)"
	}
	return "STALE"
}

// ProxyStatus makes the table of all proxies from the pages /debug/syncz of the
// control plane's instances, by their names.
func ProxyStatus(pages map[string][]byte) (*Table, error) {
	t := &Table{}
	t.add("NAME", "CLUSTER", "CDS", "LDS", "EDS", "RDS", "ISTIOD", "VERSION")
	for instance, page := range pages {
		var list []proxyStatus
		if err := json.Unmarshal(page, &list); err != nil {
			return nil, fmt.Errorf("status from %s: %w", instance, err)
		}
		for _, p := range list {
			t.add(p.Proxy, p.Cluster, word(p.ClusterSent, p.ClusterAcked), word(p.ListenerSent, p.ListenerAcked),
				word(p.EndpointSent, p.EndpointAcked), word(p.RouteSent, p.RouteAcked), instance, dash(p.Version))
		}
	}
	return t.sorted(), nil
}
