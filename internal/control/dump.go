package control

import (
	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/heddle-mesh/heddle/internal/encode"
)

// dumpOf writes resources as an envoy.admin.v3.ConfigDump, which is what tools
// that know Envoy's admin page read.
func dumpOf(set encode.Set) ([]byte, error) {
	clusters := &adminv3.ClustersConfigDump{}
	for _, r := range set[encode.ClusterType] {
		clusters.DynamicActiveClusters = append(clusters.DynamicActiveClusters,
			&adminv3.ClustersConfigDump_DynamicCluster{VersionInfo: r.Version, Cluster: r.Body})
	}
	endpoints := &adminv3.EndpointsConfigDump{}
	for _, r := range set[encode.EndpointType] {
		endpoints.DynamicEndpointConfigs = append(endpoints.DynamicEndpointConfigs,
			&adminv3.EndpointsConfigDump_DynamicEndpointConfig{VersionInfo: r.Version, EndpointConfig: r.Body})
	}
	listeners := &adminv3.ListenersConfigDump{}
	for _, r := range set[encode.ListenerType] {
		listeners.DynamicListeners = append(listeners.DynamicListeners, &adminv3.ListenersConfigDump_DynamicListener{
			Name:        r.Name,
			ActiveState: &adminv3.ListenersConfigDump_DynamicListenerState{VersionInfo: r.Version, Listener: r.Body},
		})
	}
	routes := &adminv3.RoutesConfigDump{}
	for _, r := range set[encode.RouteType] {
		routes.DynamicRouteConfigs = append(routes.DynamicRouteConfigs,
			&adminv3.RoutesConfigDump_DynamicRouteConfig{VersionInfo: r.Version, RouteConfig: r.Body})
	}
	dump := &adminv3.ConfigDump{}
	for _, part := range []proto.Message{clusters, endpoints, listeners, routes} {
		a, err := anypb.New(part)
		if err != nil {
			return nil, err
		}
		dump.Configs = append(dump.Configs, a)
	}
	return protojson.MarshalOptions{Multiline: true}.Marshal(dump)
}
