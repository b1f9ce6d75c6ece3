package model

import (
	"maps"
	"slices"

	security "istio.io/api/security/v1beta1"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/match"
)

// MTLSMode is how much a workload insists on mutual TLS.
type MTLSMode uint8

const (
	Unset MTLSMode = iota // inherit
	Disable
	Permissive
	Strict
)

func (m MTLSMode) String() string {
	return [...]string{"unset", "disable", "permissive", "strict"}[m]
}

// MTLS is the policy in force for one workload; no mode in it is Unset.
type MTLS struct {
	Mode  MTLSMode
	Ports map[uint16]MTLSMode // by the workload's own port numbers
}

// Port returns the mode of one of the workload's ports.
func (m MTLS) Port(port uint16) MTLSMode {
	if mode, ok := m.Ports[port]; ok {
		return mode
	}
	return m.Mode
}

// authentication is the index of PeerAuthentications by precedence.
type authentication struct {
	root       string
	mesh       MTLSMode
	namespaces map[string]MTLSMode
	// workloads lists, for each namespace, those with a selector, oldest first.
	workloads map[string][]*peerAuthentication
}

type peerAuthentication struct {
	Meta
	spec *security.PeerAuthentication
}

func fromPeerAuthentication(o *config.Object) *peerAuthentication {
	in := o.Spec.(*security.PeerAuthentication)
	return &peerAuthentication{meta(o, in), in}
}

func mtlsMode(m *security.PeerAuthentication_MutualTLS) MTLSMode {
	switch m.GetMode() {
	case security.PeerAuthentication_MutualTLS_DISABLE:
		return Disable
	case security.PeerAuthentication_MutualTLS_PERMISSIVE:
		return Permissive
	case security.PeerAuthentication_MutualTLS_STRICT:
		return Strict
	}
	return Unset
}

// newAuthentication indexes policies that stand in the order of precedence.
//
// A policy without a selector is for its namespace, or for the mesh if that is
// the root namespace; the oldest one counts, also if it sets nothing. One with a
// selector in the root namespace has no effect.
// Source: Istio, ComposePeerAuthentication.
func newAuthentication(policies []*peerAuthentication, root string) *authentication {
	x := &authentication{root: root, namespaces: map[string]MTLSMode{}, workloads: map[string][]*peerAuthentication{}}
	for _, p := range policies {
		if len(p.spec.GetSelector().GetMatchLabels()) > 0 {
			if p.Namespace != root {
				x.workloads[p.Namespace] = append(x.workloads[p.Namespace], p)
			}
		} else if _, ok := x.namespaces[p.Namespace]; !ok {
			x.namespaces[p.Namespace] = mtlsMode(p.spec.Mtls)
		}
	}
	x.mesh = x.namespaces[root]
	if x.mesh == Unset {
		x.mesh = Permissive
	}
	return x
}

// NamespaceMTLS returns what workloads of a namespace do unless a policy selects
// them.
func (w *World) NamespaceMTLS(namespace string) MTLSMode {
	if m := w.auth.namespaces[namespace]; m != Unset {
		return m
	}
	return w.auth.mesh
}

// MTLS returns the policy for a workload: that of the oldest policy selecting
// it, which inherits what it leaves unset.
func (w *World) MTLS(namespace string, labels map[string]string) MTLS {
	out := MTLS{Mode: w.NamespaceMTLS(namespace)}
	for _, p := range w.auth.workloads[namespace] {
		if !match.Labels(p.spec.Selector.MatchLabels, labels) {
			continue
		}
		if m := mtlsMode(p.spec.Mtls); m != Unset {
			out.Mode = m
		}
		for port, m := range p.spec.PortLevelMtls {
			mode := mtlsMode(m)
			if mode == Unset {
				mode = out.Mode
			}
			if out.Ports == nil {
				out.Ports = make(map[uint16]MTLSMode, len(p.spec.PortLevelMtls))
			}
			out.Ports[uint16(port)] = mode
		}
		break
	}
	return out
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
