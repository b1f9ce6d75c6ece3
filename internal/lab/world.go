package lab

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/lab/network"
	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/plan"
)

// endpointsOf returns where a Service's port leads: ready pods that stay.
func endpointsOf(w *model.World, s *model.Service, port uint16) []netip.AddrPort {
	var out []netip.AddrPort
	for _, e := range w.Endpoints(s).ByPort[port] {
		if e.Address.IsValid() && !e.Draining {
			out = append(out, netip.AddrPortFrom(e.Address, e.Port))
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

// clusterIPs returns what the node translates: each cluster IP with its ports.
func clusterIPs(w *model.World, objects *snapshot) map[netip.Addr][]network.ServicePort {
	out := make(map[netip.Addr][]network.ServicePort)
	for _, s := range w.Services() {
		if !s.Kubernetes || s.Headless {
			continue
		}
		for _, vip := range s.Addresses {
			if vip == dnsAddress {
				continue // the node's own
			}
			var ports []network.ServicePort
			for _, p := range s.Ports {
				endpoints := slices.DeleteFunc(endpointsOf(w, s, p.Number), func(a netip.AddrPort) bool { return a.Addr().Is6() != vip.Is6() })
				ports = append(ports, network.ServicePort{Protocol: network.TCP, Port: p.Number, Endpoints: endpoints})
			}
			out[vip] = append(ports, datagramPorts(w, s, vip, objects)...)
		}
	}
	return out
}

// datagramPorts returns a Service's UDP ports, of which the mesh itself knows
// nothing.
func datagramPorts(w *model.World, s *model.Service, vip netip.Addr, objects *snapshot) []network.ServicePort {
	svc, ok := lookUp[*corev1.Service](objects, config.Key{Kind: config.Service, Namespace: s.Namespace, Name: s.Name})
	if !ok {
		return nil
	}
	var out []network.ServicePort
	for _, p := range svc.Spec.Ports {
		if p.Protocol != corev1.ProtocolUDP {
			continue
		}
		target := uint16(p.TargetPort.IntValue())
		if target == 0 {
			target = uint16(p.Port)
		}
		port := network.ServicePort{Protocol: network.UDP, Port: uint16(p.Port)}
		for _, wl := range w.Workloads() {
			if !s.Selects(wl) || !wl.Ready && !s.NotReady || wl.Draining {
				continue
			}
			for _, ip := range wl.IPs {
				if ip.Is6() == vip.Is6() {
					port.Endpoints = append(port.Endpoints, netip.AddrPortFrom(ip, target))
				}
			}
		}
		slices.SortFunc(port.Endpoints, netip.AddrPort.Compare)
		out = append(out, port)
	}
	return out
}

// names returns what the cluster's DNS server answers: the addresses of
// Services, and those of their pods for headless ones.
func names(w *model.World) *plan.NameTable {
	t := &plan.NameTable{}
	for _, s := range w.Services() {
		if !s.Kubernetes {
			continue // ServiceEntries are known to sidecars alone, as in a cluster
		}
		// Without the short forms: those are for the resolver of a pod to try.
		e := plan.NameEntry{Host: string(s.Host), IPs: s.Addresses}
		if s.Headless {
			for _, p := range s.Ports {
				for _, ep := range w.Endpoints(s).ByPort[p.Number] {
					if !ep.Address.IsValid() {
						continue
					}
					if !slices.Contains(e.IPs, ep.Address) {
						e.IPs = append(e.IPs, ep.Address)
					}
					if ep.Hostname != "" && ep.Subdomain == s.Name {
						t.Names = append(t.Names, plan.NameEntry{Host: ep.Hostname + "." + string(s.Host), IPs: []netip.Addr{ep.Address}})
					}
				}
			}
		}
		t.Names = append(t.Names, e)
	}
	slices.SortFunc(t.Names, func(a, b plan.NameEntry) int { return strings.Compare(a.Host, b.Host) })
	t.Names = slices.CompactFunc(t.Names, func(a, b plan.NameEntry) bool { return a.Host == b.Host })
	return t
}

// publishedPorts returns the ports of Services of type LoadBalancer.
func publishedPorts(w *model.World, objects *snapshot) map[published][]netip.AddrPort {
	out := make(map[published][]netip.AddrPort)
	for _, s := range w.Services() {
		if !s.Kubernetes {
			continue
		}
		svc, ok := lookUp[*corev1.Service](objects, config.Key{Kind: config.Service, Namespace: s.Namespace, Name: s.Name})
		if !ok || svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
			continue
		}
		for _, p := range s.Ports {
			out[published{s.Namespace, s.Name, p.Number}] = endpointsOf(w, s, p.Number)
		}
	}
	return out
}
