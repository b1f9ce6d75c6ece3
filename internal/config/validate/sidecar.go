package validate

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
)

func (c *checker) sidecar(s *networkingv1alpha3.Sidecar) {
	c.networkSelector("spec.workloadSelector", s.WorkloadSelector)
	if len(s.Egress) == 0 && len(s.Ingress) == 0 && s.OutboundTrafficPolicy == nil && s.InboundConnectionPool == nil {
		c.err("spec", "the object says nothing", "give egress, ingress, outboundTrafficPolicy or inboundConnectionPool")
		return
	}
	ports := map[uint32]bool{}
	for i, l := range s.Ingress {
		c.ingressListener(at("spec.ingress", i), l, ports)
	}
	c.connectionPool("spec.inboundConnectionPool", s.InboundConnectionPool)
	c.egressListeners(s.Egress)
	c.outboundPolicy("spec.outboundTrafficPolicy", s.OutboundTrafficPolicy)
}

func (c *checker) ingressListener(path string, l *networkingv1alpha3.IstioIngressListener, seen map[uint32]bool) {
	if l.Port == nil {
		c.err(path+".port", "missing", "a listener needs a port: {number: 9080, name: http, protocol: HTTP}")
		return
	}
	c.sidecarPort(path, l.Port, l.Bind)
	if seen[l.Port.Number] {
		c.err(path+".port.number", fmt.Sprintf("there are two listeners on port %d", l.Port.Number), "")
	}
	seen[l.Port.Number] = true
	c.defaultEndpoint(path+".defaultEndpoint", l.DefaultEndpoint)
	if t := l.Tls; t != nil {
		const hint = "a sidecar's listener takes serverCertificate, privateKey and caCertificates"
		if len(t.SubjectAltNames) > 0 {
			c.err(path+".tls.subjectAltNames", "not possible in a sidecar", hint)
		}
		if t.HttpsRedirect {
			c.err(path+".tls.httpsRedirect", "not possible in a sidecar", hint)
		}
		if t.CredentialName != "" {
			c.err(path+".tls.credentialName", "not possible in a sidecar", hint)
		}
		if t.Mode == networkingv1alpha3.ServerTLSSettings_ISTIO_MUTUAL || t.Mode == networkingv1alpha3.ServerTLSSettings_AUTO_PASSTHROUGH {
			c.err(path+".tls.mode", "mode "+t.Mode.String()+" is not possible in a sidecar", "PeerAuthentication asks for mutual TLS inside the mesh")
		}
		c.serverTLS(path+".tls", t)
		if p, known := protocolOf(l.Port.Protocol); known && !p.tls {
			c.err(path+".tls", "protocol "+l.Port.Protocol+" has no TLS", "use protocol HTTPS or TLS")
		}
	}
	c.connectionPool(path+".connectionPool", l.ConnectionPool)
	if p, _ := protocolOf(l.Port.Protocol); l.ConnectionPool.GetHttp() != nil && !p.http {
		c.warn(path+".connectionPool.http", fmt.Sprintf("port %d is not HTTP, so that only the tcp settings act", l.Port.Number), "")
	}
}

func (c *checker) sidecarPort(path string, p *networkingv1alpha3.SidecarPort, bind string) {
	if p.TargetPort > 0 { // deprecated; its use is an error
		c.err(path+".port.targetPort", "it has no meaning for a Sidecar", "use defaultEndpoint")
	}
	if p.Name != "" {
		c.portName(path+".port.name", p.Name)
	}
	c.protocol(path+".port.protocol", p.Protocol)
	c.port(path+".port.number", p.Number)
	if bind != "" {
		c.ip(path+".bind", bind)
	}
}

// defaultEndpoint checks where a listener hands connections on to: a port of the
// workload itself, or a Unix socket.
func (c *checker) defaultEndpoint(path, endpoint string) {
	if endpoint == "" {
		return
	}
	if socket, unix := strings.CutPrefix(endpoint, unixPrefix); unix {
		c.unixSocket(path, socket)
		return
	}
	const hint = "write 127.0.0.1:PORT, 0.0.0.0:PORT, [::1]:PORT, [::]:PORT or unix:///PATH"
	host, port, err := net.SplitHostPort(endpoint)
	if err != nil {
		c.err(path, err.Error(), hint)
		return
	}
	switch host {
	case "", "127.0.0.1", "0.0.0.0", "::1", "::":
	default:
		c.err(path, fmt.Sprintf("%s is not the workload itself", host), hint)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		c.err(path, fmt.Sprintf("%q is no port", port), hint)
	}
}

func (c *checker) egressListeners(listeners []*networkingv1alpha3.IstioEgressListener) {
	ports, sockets := map[uint32]bool{}, map[string]bool{}
	for i, l := range listeners {
		path := at("spec.egress", i)
		switch p := l.Port; {
		case p == nil:
			if i != len(listeners)-1 {
				c.err(path, "a listener without port catches all, and so stands last", "")
			}
		case p.Number == 0:
			c.socketListener(path, l)
			if sockets[l.Bind] {
				c.err(path+".bind", fmt.Sprintf("there are two listeners on %s", l.Bind), "")
			}
			sockets[l.Bind] = true
		default:
			c.sidecarPort(path, p, l.Bind)
			if ports[p.Number] {
				c.err(path+".port.number", fmt.Sprintf("there are two listeners on port %d", p.Number), "")
			}
			ports[p.Number] = true
		}
		c.egressHosts(path+".hosts", l.Hosts)
	}
}

// socketListener checks a listener with port 0, which is on a Unix socket.
func (c *checker) socketListener(path string, l *networkingv1alpha3.IstioEgressListener) {
	if l.Port.TargetPort > 0 { // deprecated; its use is an error
		c.err(path+".port.targetPort", "it has no meaning for a Sidecar", "")
	}
	if l.Port.Name != "" {
		c.portName(path+".port.name", l.Port.Name)
	}
	c.protocol(path+".port.protocol", l.Port.Protocol)
	socket, unix := strings.CutPrefix(l.Bind, unixPrefix)
	if !unix {
		c.err(path+".bind", "port 0 is no port but of a Unix socket", "give a port, or bind to unix:///PATH")
	} else {
		c.unixSocket(path+".bind", socket)
	}
	if m := l.CaptureMode; m != networkingv1alpha3.CaptureMode_DEFAULT && m != networkingv1alpha3.CaptureMode_NONE {
		c.err(path+".captureMode", "connections to a Unix socket are not captured", "use DEFAULT or NONE")
	}
}

func (c *checker) egressHosts(path string, hosts []string) {
	if len(hosts) == 0 {
		c.err(path, "missing", `"*/*" stands for all`)
	}
	seen := map[string]map[string]bool{}
	for i, h := range hosts {
		c.namespacedHost(at(path, i), h, false, false)
		ns, name, ok := strings.Cut(h, "/")
		if !ok {
			continue
		}
		if ns == "." {
			ns = c.o.Namespace
		}
		of := seen[ns]
		if of == nil {
			of = map[string]bool{}
			seen[ns] = of
		}
		if of["*"] && name != "*" || of[name] || name == "*" && len(of) > 0 {
			c.warn(at(path, i), fmt.Sprintf("%s is imported twice", h), "keep the wider one")
		}
		of[name] = true
	}
	if seen["*"]["*"] {
		for ns := range seen {
			if ns != "*" && !strings.HasPrefix(ns, "~") {
				c.warn(path, "*/* imports everything", "leave the others out")
				break
			}
		}
	}
}

func (c *checker) outboundPolicy(path string, p *networkingv1alpha3.OutboundTrafficPolicy) {
	proxy := p.GetEgressProxy()
	switch {
	case proxy == nil:
	case p.Mode != networkingv1alpha3.OutboundTrafficPolicy_ALLOW_ANY:
		c.err(path+".egressProxy", "unknown destinations are not let out at all", "use mode ALLOW_ANY")
	case proxy.Port == nil:
		c.fqdn(path+".egressProxy.host", proxy.Host)
		c.err(path+".egressProxy.port", "missing", "")
	default:
		if c.fqdn(path+".egressProxy.host", proxy.Host) {
			c.destination(path+".egressProxy", proxy)
		}
	}
}
