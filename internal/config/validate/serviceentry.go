package validate

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
)

const (
	// codeNoAddress is Istio's analysis code for TCP ports without an address.
	codeNoAddress = "IST0134"

	autoAddress = "networking.istio.io/enable-autoallocate-ip"
	useWaypoint = "istio.io/use-waypoint"
)

func (c *checker) serviceEntry(e *networkingv1alpha3.ServiceEntry) {
	c.networkSelector("spec.workloadSelector", e.WorkloadSelector)
	if e.WorkloadSelector != nil && len(e.Endpoints) > 0 {
		c.err("spec.endpoints", "endpoints and workloadSelector exclude each other", "keep one of them")
	}
	if len(e.Hosts) == 0 {
		c.err("spec.hosts", "missing", "a service needs a host")
	}
	for i, h := range e.Hosts {
		field := at("spec.hosts", i)
		if h == "*" {
			c.err(field, `"*" is no host of a service`, "name a host, or a domain such as *.example.com")
			continue
		}
		if c.wildcardHost(field, h) && strings.HasPrefix(h, "*") && !strings.HasPrefix(h, "*.") {
			c.warn(field, fmt.Sprintf("%q has a wildcard inside a label", h), `"*" stands for the whole first label`)
		}
	}
	blocks := false
	for i, a := range e.Addresses {
		c.cidr(at("spec.addresses", i), a)
		blocks = blocks || strings.Contains(a, "/")
	}
	if blocks && e.Resolution != networkingv1alpha3.ServiceEntry_NONE && e.Resolution != networkingv1alpha3.ServiceEntry_STATIC {
		c.err("spec.addresses", "a CIDR block cannot be resolved", "use resolution NONE or STATIC, or single addresses")
	}
	c.entryPorts(e)
	c.resolution(e)
	if e.Resolution != networkingv1alpha3.ServiceEntry_NONE && len(e.Hosts) > 1 {
		for i, p := range e.Ports {
			if known, _ := protocolOf(p.Protocol); !known.http && !known.tls {
				c.err(at("spec.ports", i)+".protocol", "with several hosts, the host of a connection cannot be told", "use one host, or an HTTP or TLS protocol")
				break
			}
		}
	}
	c.exportTo(e.ExportTo, true, false)
}

func (c *checker) entryPorts(e *networkingv1alpha3.ServiceEntry) {
	names, numbers := map[string]int{}, map[uint32]int{}
	for i, p := range e.Ports {
		field := at("spec.ports", i)
		if first, dup := names[p.Name]; dup {
			c.err(field+".name", fmt.Sprintf("there are two ports %q", p.Name), fmt.Sprintf("the first is ports[%d]", first))
		} else {
			names[p.Name] = i
		}
		if first, dup := numbers[p.Number]; dup {
			c.err(field+".number", fmt.Sprintf("there are two ports %d", p.Number), fmt.Sprintf("the first is ports[%d]", first))
		} else {
			numbers[p.Number] = i
		}
		c.portName(field+".name", p.Name)
		c.protocol(field+".protocol", p.Protocol)
		c.port(field+".number", p.Number)
		if p.TargetPort != 0 {
			c.port(field+".targetPort", p.TargetPort)
		}
		if len(e.Addresses) == 0 && !c.autoAllocated(e) && (p.Protocol == "" || strings.EqualFold(p.Protocol, "TCP")) {
			c.coded(codeNoAddress, field, "every connection to the port is taken for this service", "give addresses, an HTTP or TLS protocol, or a resolution")
		}
	}
}

// autoAllocated reports whether the control plane gives the service a virtual
// address.
func (c *checker) autoAllocated(e *networkingv1alpha3.ServiceEntry) bool {
	if strings.EqualFold(c.o.Labels[autoAddress], "false") ||
		e.Resolution == networkingv1alpha3.ServiceEntry_NONE || e.Resolution == networkingv1alpha3.ServiceEntry_DYNAMIC_DNS {
		return false
	}
	return !slices.ContainsFunc(e.Hosts, func(h string) bool { return strings.HasPrefix(h, "*") })
}

func (c *checker) resolution(e *networkingv1alpha3.ServiceEntry) {
	mode := e.Resolution.String()
	ports := map[string]bool{}
	for _, p := range e.Ports {
		ports[p.Name] = true
	}
	switch e.Resolution {
	case networkingv1alpha3.ServiceEntry_NONE:
		if len(e.Endpoints) > 0 {
			c.err("spec.endpoints", "resolution NONE goes where the client dialled", "remove the endpoints, or use resolution STATIC or DNS")
		}
	case networkingv1alpha3.ServiceEntry_STATIC:
		for i, p := range e.Endpoints {
			c.workload(at("spec.endpoints", i), p, ports, false)
		}
	case networkingv1alpha3.ServiceEntry_DNS, networkingv1alpha3.ServiceEntry_DNS_ROUND_ROBIN:
		c.resolved(e, ports)
	case networkingv1alpha3.ServiceEntry_DYNAMIC_DNS:
		c.dynamicDNS(e)
	}
	if e.WorkloadSelector != nil && e.Resolution != networkingv1alpha3.ServiceEntry_STATIC {
		c.warn("spec.workloadSelector", "workloads have addresses, and resolution "+mode+" uses none", "use resolution STATIC")
	}
}

func (c *checker) resolved(e *networkingv1alpha3.ServiceEntry, ports map[string]bool) {
	mode := e.Resolution.String()
	if len(e.Endpoints) == 0 {
		for i, h := range e.Hosts {
			if hostProblem(h, false) != "" {
				c.err(at("spec.hosts", i), fmt.Sprintf("%q cannot be resolved", h), "name a host, or give endpoints")
			}
		}
	}
	if e.Resolution == networkingv1alpha3.ServiceEntry_DNS_ROUND_ROBIN && len(e.Endpoints) > 1 {
		c.err("spec.endpoints", fmt.Sprintf("%d endpoints", len(e.Endpoints)), "resolution "+mode+" takes one at the most")
	}
	for i, p := range e.Endpoints {
		field := at("spec.endpoints", i)
		if !isIP(p.Address) && hostProblem(p.Address, false) != "" {
			c.err(field+".address", fmt.Sprintf("%q is neither a host nor an IP address", p.Address), "")
		}
		c.labels(field+".labels", p.Labels)
		c.workloadPorts(field+".ports", p.Ports, ports)
	}
	if len(e.Addresses) > 0 && len(e.Hosts) > 1 {
		for i, p := range e.Ports {
			if known, _ := protocolOf(p.Protocol); known.tcp {
				c.warn(at("spec.ports", i), "several hosts share the address and a TCP port", "give each host its own ServiceEntry")
				break
			}
		}
	}
}

func (c *checker) dynamicDNS(e *networkingv1alpha3.ServiceEntry) {
	for i, h := range e.Hosts {
		if !strings.HasPrefix(h, "*") {
			c.err(at("spec.hosts", i), fmt.Sprintf("%q is no wildcard", h), "resolution DYNAMIC_DNS is for wildcards, DNS for names")
		}
	}
	if len(e.Addresses) > 0 {
		c.err("spec.addresses", "resolution DYNAMIC_DNS goes by the name that a request bears", "remove the addresses")
	}
	if len(e.Endpoints) > 0 {
		c.err("spec.endpoints", "resolution DYNAMIC_DNS goes by the name that a request bears", "remove the endpoints")
	}
	for i, p := range e.Ports {
		switch strings.ToLower(p.Protocol) {
		case "http", "http2", "grpc", "tls":
		default:
			c.err(at("spec.ports", i)+".protocol", fmt.Sprintf("a connection with protocol %q bears no name", p.Protocol), "use HTTP, HTTP2, GRPC or TLS")
		}
	}
	_, annotated := c.o.Annotations[useWaypoint]
	_, labelled := c.o.Labels[useWaypoint]
	if e.Location == networkingv1alpha3.ServiceEntry_MESH_INTERNAL && (annotated || labelled) {
		c.err("spec.location", "a waypoint takes DYNAMIC_DNS for services outside the mesh only", "use location MESH_EXTERNAL")
	}
}

// workload checks an endpoint, or a WorkloadEntry, for which ports is nil.
func (c *checker) workload(path string, w *networkingv1alpha3.WorkloadEntry, ports map[string]bool, names bool) {
	socket, unix := strings.CutPrefix(w.Address, unixPrefix)
	switch {
	case w.Address == "" && w.Network == "":
		c.err(path+".address", "missing", "")
		return
	case w.Address == "":
		c.warn(path+".address", fmt.Sprintf("without an address, the workload is reached by the gateway of network %q", w.Network), "")
	case unix:
		c.unixSocket(path+".address", socket)
		if len(w.Ports) > 0 {
			c.err(path+".ports", "a Unix socket has no ports", "remove them")
		}
		if ports != nil && len(ports) != 1 {
			c.err(path+".address", fmt.Sprintf("a Unix socket serves one port, and the service has %d", len(ports)), "")
		}
	case isIP(w.Address):
	case !names:
		c.err(path+".address", fmt.Sprintf("%q is no IP address", w.Address), "use resolution DNS for names")
	case hostProblem(w.Address, false) != "":
		c.err(path+".address", fmt.Sprintf("%q is neither a host nor an IP address", w.Address), "")
	}
	c.workloadPorts(path+".ports", w.Ports, ports)
	c.labels(path+".labels", w.Labels)
}

func (c *checker) workloadPorts(path string, of map[string]uint32, service map[string]bool) {
	for _, name := range slices.Sorted(maps.Keys(of)) {
		field := key(path, name)
		if service != nil && !service[name] {
			c.err(field, fmt.Sprintf("the service has no port %q", name), "it has "+strings.Join(slices.Sorted(maps.Keys(service)), ", "))
		}
		c.portName(field, name)
		c.port(field, of[name])
	}
}
