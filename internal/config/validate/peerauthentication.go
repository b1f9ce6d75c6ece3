package validate

import (
	"fmt"
	"maps"
	"slices"

	securityv1beta1 "istio.io/api/security/v1beta1"
)

func (c *checker) peerAuthentication(p *securityv1beta1.PeerAuthentication) {
	const ports = "spec.portLevelMtls"
	c.workloadSelector("spec.selector", p.Selector)
	if len(p.PortLevelMtls) > 0 && len(p.Selector.GetMatchLabels()) == 0 {
		c.err(ports, "ports belong to workloads, and none are selected", "name labels in selector.matchLabels")
	}
	if len(p.PortLevelMtls) == 0 && c.written(ports) {
		c.err(ports, "empty", "name a port, or leave the field out")
	}
	for _, n := range slices.Sorted(maps.Keys(p.PortLevelMtls)) {
		c.port(key(ports, fmt.Sprint(n)), n)
	}
}
