package schema

import (
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

const gatewayAPIGroup = "gateway.networking.k8s.io"

// gatewayAPI lists the kinds of the Kubernetes Gateway API. All versions of a
// kind decode into the type of v1, of which the older ones are subsets.
func gatewayAPI() []*Kind {
	const noRoute = "no traffic is routed by it"
	return []*Kind{
		{Group: gatewayAPIGroup, Name: "HTTPRoute", Plural: "httproutes", Versions: []string{"v1", "v1beta1"}, Namespaced: true,
			New: func() any { return &gatewayv1.HTTPRoute{} }, Inert: noRoute},
		{Group: gatewayAPIGroup, Name: "GRPCRoute", Plural: "grpcroutes", Versions: []string{"v1", "v1alpha2"}, Namespaced: true,
			New: func() any { return &gatewayv1.GRPCRoute{} }, Inert: noRoute},
		{Group: gatewayAPIGroup, Name: "TLSRoute", Plural: "tlsroutes", Versions: []string{"v1", "v1alpha3", "v1alpha2"}, Namespaced: true,
			New: func() any { return &gatewayv1.TLSRoute{} }, Inert: noRoute},
		{Group: gatewayAPIGroup, Name: "TCPRoute", Plural: "tcproutes", Versions: []string{"v1", "v1alpha2"}, Namespaced: true,
			New: func() any { return &gatewayv1.TCPRoute{} }, Inert: noRoute},
		{Group: gatewayAPIGroup, Name: "UDPRoute", Plural: "udproutes", Versions: []string{"v1", "v1alpha2"}, Namespaced: true,
			New: func() any { return &gatewayv1.UDPRoute{} }, Inert: noRoute},
		{Group: gatewayAPIGroup, Name: "Gateway", Plural: "gateways", Short: []string{"gtw"}, Versions: []string{"v1", "v1beta1"}, Namespaced: true,
			New: func() any { return &gatewayv1.Gateway{} }, Inert: "no port is opened for it"},
		{Group: gatewayAPIGroup, Name: "GatewayClass", Plural: "gatewayclasses", Short: []string{"gc"}, Versions: []string{"v1", "v1beta1"},
			New: func() any { return &gatewayv1.GatewayClass{} }, Inert: "no controller takes it up"},
		{Group: gatewayAPIGroup, Name: "ListenerSet", Plural: "listenersets", Versions: []string{"v1"}, Namespaced: true,
			New: func() any { return &gatewayv1.ListenerSet{} }, Inert: "no port is opened for it"},
		{Group: gatewayAPIGroup, Name: "ReferenceGrant", Plural: "referencegrants", Short: []string{"refgrant"}, Versions: []string{"v1", "v1beta1"}, Namespaced: true,
			New: func() any { return &gatewayv1.ReferenceGrant{} }, Inert: "no reference needs it"},
		{Group: gatewayAPIGroup, Name: "BackendTLSPolicy", Plural: "backendtlspolicies", Short: []string{"btlspolicy"}, Versions: []string{"v1", "v1alpha3"}, Namespaced: true, Guard: true,
			New: func() any { return &gatewayv1.BackendTLSPolicy{} }, Inert: "connections to the backend are not secured by it"},
	}
}

// undecoded lists kinds of the groups above that exist, so that their names are
// no spelling mistakes, but which have no meaning for a mesh.
func undecoded() []*Kind {
	var out []*Kind
	add := func(group, version string, names ...string) {
		for _, name := range names {
			out = append(out, &Kind{Group: group, Name: name, Versions: []string{version}, Namespaced: true, Inert: "it has no meaning for the mesh"})
		}
	}
	add("", "v1", "Endpoints", "Event", "LimitRange", "PersistentVolumeClaim", "PodTemplate", "ReplicationController", "ResourceQuota",
		"Binding", "PersistentVolume", "ComponentStatus")
	for _, k := range out {
		switch k.Name {
		case "PersistentVolume", "ComponentStatus":
			k.Namespaced = false
		}
	}
	add("apps", "v1", "StatefulSet", "DaemonSet", "ReplicaSet", "ControllerRevision")
	for _, k := range out {
		switch k.Name {
		case "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController":
			k.Inert = "no pods are made of it"
		}
	}
	return out
}
