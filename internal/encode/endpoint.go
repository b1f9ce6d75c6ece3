package encode

import (
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/heddle-mesh/heddle/internal/plan"
)

func loadAssignment(l *plan.LoadAssignment) *endpointv3.ClusterLoadAssignment {
	out := &endpointv3.ClusterLoadAssignment{ClusterName: l.Cluster}
	for _, group := range l.Localities {
		g := &endpointv3.LocalityLbEndpoints{
			// gRPC refuses a group without locality, and skips one without weight.
			Locality: &corev3.Locality{
				Region: group.Locality.Region, Zone: group.Locality.Zone, SubZone: group.Locality.SubZone,
			},
			Priority:            group.Priority,
			LoadBalancingWeight: wrapperspb.UInt32(localityWeight(group)),
		}
		for _, e := range group.Endpoints {
			g.LbEndpoints = append(g.LbEndpoints, lbEndpoint(e))
		}
		out.Endpoints = append(out.Endpoints, g)
	}
	return out
}

// localityWeight is the sum of the endpoints' weights where none was decided on.
func localityWeight(g plan.LocalityEndpoints) uint32 {
	if g.Weight > 0 {
		return g.Weight
	}
	var sum uint32
	for _, e := range g.Endpoints {
		sum += max(e.Weight, 1)
	}
	return max(sum, 1)
}

func lbEndpoint(e plan.Endpoint) *endpointv3.LbEndpoint {
	out := &endpointv3.LbEndpoint{
		HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address(e.Address)}},
		HealthStatus:   healths[e.Health],
		Metadata:       endpointMetadata(e),
	}
	if e.Weight > 0 {
		out.LoadBalancingWeight = wrapperspb.UInt32(e.Weight)
	}
	return out
}

var healths = map[plan.Health]corev3.HealthStatus{
	plan.Healthy:   corev3.HealthStatus_HEALTHY,
	plan.Unhealthy: corev3.HealthStatus_UNHEALTHY,
	plan.Draining:  corev3.HealthStatus_DRAINING,
}

func endpointMetadata(e plan.Endpoint) *corev3.Metadata {
	m := map[string]*structpb.Struct{}
	if e.MTLS {
		m["envoy.transport_socket_match"] = structOf(fields{"tlsMode": "istio"})
	}
	if w := e.Workload; w != (plan.Workload{}) {
		m["istio"] = structOf(fields{"workload": strings.Join(
			[]string{w.Name, w.Namespace, w.CanonicalName, w.CanonicalRevision, w.ClusterID}, ";")})
	}
	if len(m) == 0 {
		return nil
	}
	return &corev3.Metadata{FilterMetadata: m}
}
