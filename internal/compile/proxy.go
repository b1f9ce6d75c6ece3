package compile

import "net/netip"

// Class says what a proxy is for. It comes from the first part of the xDS node
// id ("sidecar", "router") and, for proxyless gRPC, from GENERATOR=grpc.
type Class uint8

const (
	Sidecar Class = iota
	Gateway
	GRPC
)

// Proxy is what a proxy says of itself in its xDS node, checked against its
// authenticated identity: an input of ViewOf.
// Source: Istio pkg/model/proxy.go (node id and metadata).
type Proxy struct {
	Class          Class
	ID             string // "reviews-v1-0.default": pod and namespace
	IPs            []netip.Addr
	Namespace      string
	Labels         map[string]string
	ServiceAccount string
	ClusterID      string
	DNSDomain      string // "default.svc.cluster.local"
	DNSCapture     bool
	// ProxyProtocol says that what its callers send begins with the PROXY
	// protocol's header: gatewayTopology of its own configuration.
	ProxyProtocol bool
	// Asked holds, for GRPC only, the listener names the client subscribed to.
	Asked []string
}
