// Package encode turns a plan into Envoy's xDS v3 resources. Equal plans give
// equal bytes, so a resource's version is the hash of its bytes; each distinct
// resource is encoded once, and all proxies that see it share the bytes.
package encode

import "google.golang.org/protobuf/types/known/anypb"

// The resource types served; the short names are the ones people use.
const (
	ListenerType  = "type.googleapis.com/envoy.config.listener.v3.Listener"
	RouteType     = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	ClusterType   = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	EndpointType  = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	NameTableType = "type.googleapis.com/istio.networking.nds.v1.NameTable"
)

// Resource is one encoded resource. It is immutable and shared.
type Resource struct {
	Name    string
	Version string // hash of Body, short
	Body    *anypb.Any
}

// Set holds a proxy's resources by type, each list sorted by name.
type Set map[string][]*Resource
