package server

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// wire is one stream as it travels, in either variant. recv and send may be
// called from two goroutines.
type wire interface {
	recv() (*request, error)
	send(*response) error
}

type sotwWire struct {
	rpc discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer
}

func (w sotwWire) recv() (*request, error) {
	m, err := w.rpc.Recv()
	if err != nil {
		return nil, err
	}
	return &request{
		typeURL: m.GetTypeUrl(),
		node:    m.GetNode(),
		nonce:   m.GetResponseNonce(),
		nack:    m.GetErrorDetail() != nil,
		refused: m.GetErrorDetail().GetMessage(),
		names:   m.GetResourceNames(),
		version: m.GetVersionInfo(),
	}, nil
}

func (w sotwWire) send(r *response) error {
	m := &discoveryv3.DiscoveryResponse{
		TypeUrl:     r.typeURL,
		Nonce:       r.nonce,
		VersionInfo: r.version,
		Resources:   make([]*anypb.Any, 0, len(r.resources)),
	}
	if r.identifier != "" {
		m.ControlPlane = &corev3.ControlPlane{Identifier: r.identifier}
	}
	for _, one := range r.resources {
		m.Resources = append(m.Resources, one.Body)
	}
	return w.rpc.Send(m)
}

type deltaWire struct {
	rpc discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
}

func (w deltaWire) recv() (*request, error) {
	m, err := w.rpc.Recv()
	if err != nil {
		return nil, err
	}
	return &request{
		typeURL:     m.GetTypeUrl(),
		node:        m.GetNode(),
		nonce:       m.GetResponseNonce(),
		nack:        m.GetErrorDetail() != nil,
		refused:     m.GetErrorDetail().GetMessage(),
		subscribe:   m.GetResourceNamesSubscribe(),
		unsubscribe: m.GetResourceNamesUnsubscribe(),
		initial:     m.GetInitialResourceVersions(),
	}, nil
}

func (w deltaWire) send(r *response) error {
	m := &discoveryv3.DeltaDiscoveryResponse{
		TypeUrl:           r.typeURL,
		Nonce:             r.nonce,
		SystemVersionInfo: r.version,
		Resources:         make([]*discoveryv3.Resource, 0, len(r.resources)),
		RemovedResources:  r.removed,
	}
	for _, one := range r.resources {
		m.Resources = append(m.Resources, &discoveryv3.Resource{Name: one.Name, Version: one.Version, Resource: one.Body})
	}
	return w.rpc.Send(m)
}
