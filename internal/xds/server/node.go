package server

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/heddle-mesh/heddle/internal/compile"
)

// proxyOf reads what a proxy says of itself.
//
// Source: Istio pkg/model/proxy.go. The id is TYPE~IP~POD.NAMESPACE~DNSDOMAIN,
// the rest is metadata.
func proxyOf(n *corev3.Node) (*compile.Proxy, error) {
	if n.GetId() == "" {
		return nil, fmt.Errorf("the first request has no node id")
	}
	parts := strings.Split(n.GetId(), "~")
	if len(parts) != 4 {
		return nil, fmt.Errorf("node id %q is not of the form type~ip~pod.namespace~domain", n.GetId())
	}
	meta := n.GetMetadata().GetFields()
	text := func(key string) string { return meta[key].GetStringValue() }
	p := &compile.Proxy{
		ID:             parts[2],
		DNSDomain:      parts[3],
		Namespace:      text("NAMESPACE"),
		ServiceAccount: text("SERVICE_ACCOUNT"),
		ClusterID:      text("CLUSTER_ID"),
		Labels:         labels(meta["LABELS"]),
		DNSCapture:     isTrue(meta["DNS_CAPTURE"]),
	}
	topology := meta["PROXY_CONFIG"].GetStructValue().GetFields()["gatewayTopology"].GetStructValue().GetFields()
	p.ProxyProtocol = topology["proxyProtocol"].GetStructValue() != nil
	switch {
	case text("GENERATOR") == "grpc":
		p.Class = compile.GRPC
	case text("GENERATOR") != "":
		return nil, fmt.Errorf("node %q: GENERATOR %q is not supported", n.GetId(), text("GENERATOR"))
	case parts[0] == "sidecar":
		p.Class = compile.Sidecar
	case parts[0] == "router":
		p.Class = compile.Gateway
	default:
		return nil, fmt.Errorf("node %q: type %q is not supported, want sidecar or router", n.GetId(), parts[0])
	}
	at := strings.LastIndexByte(parts[2], '.')
	if at <= 0 || at == len(parts[2])-1 {
		return nil, fmt.Errorf("node %q: %q is not pod.namespace", n.GetId(), parts[2])
	}
	if p.Namespace == "" {
		p.Namespace = parts[2][at+1:]
	}
	if p.Namespace != parts[2][at+1:] {
		return nil, fmt.Errorf("node %q: NAMESPACE %q is another than in the id", n.GetId(), p.Namespace)
	}
	var err error
	p.IPs, err = addresses(parts[1], text("INSTANCE_IPS"))
	if err != nil {
		return nil, fmt.Errorf("node %q: %w", n.GetId(), err)
	}
	return p, nil
}

// addresses joins the address of the id with the list in the metadata, which is
// in order of preference and usually has the former first.
func addresses(id, list string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, s := range append(strings.Split(list, ","), id) {
		if s == "" {
			continue
		}
		ip, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("%q is not an IP address", s)
		}
		if !slices.Contains(out, ip) {
			out = append(out, ip)
		}
	}
	return out, nil
}

func labels(v *structpb.Value) map[string]string {
	fields := v.GetStructValue().GetFields()
	out := make(map[string]string, len(fields))
	for k, f := range fields {
		out[k] = f.GetStringValue()
	}
	return out
}

// isTrue reads a flag that is written as text, as Istio's agent does, or as such.
func isTrue(v *structpb.Value) bool { return v.GetBoolValue() || v.GetStringValue() == "true" }
