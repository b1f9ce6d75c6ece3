package validate

import (
	"fmt"
	"slices"
	"strings"

	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
)

func (c *checker) gateway(g *networkingv1alpha3.Gateway) {
	converted := semantics(c.o, gatewaySemantics)
	if !isLabel(c.o.Name) && !converted {
		c.err("metadata.name", fmt.Sprintf("%q is no name of a Gateway", c.o.Name), "it is a part of route names, and so has no dots")
	}
	if len(g.Servers) == 0 {
		c.err("spec.servers", "missing", "a gateway needs a server with a port and hosts")
	}
	names := map[string]int{}
	for i, s := range g.Servers {
		path := at("spec.servers", i)
		c.server(path, s, converted)
		if s.Port == nil {
			continue
		}
		if first, dup := names[s.Port.Name]; dup {
			c.err(path+".port.name", fmt.Sprintf("there are two ports %q", s.Port.Name), fmt.Sprintf("the first is servers[%d]", first))
		} else {
			names[s.Port.Name] = i
		}
		if p, _ := protocolOf(s.Port.Protocol); !p.http && s.Tls.GetHttpsRedirect() {
			c.warn(path+".tls.httpsRedirect", "only an HTTP server can redirect to HTTPS", "move it to the server with protocol HTTP")
		}
	}
}

func (c *checker) server(path string, s *networkingv1alpha3.Server, converted bool) {
	if len(s.Hosts) == 0 {
		c.err(path+".hosts", "missing", `"*" stands for all`)
	}
	for i, h := range s.Hosts {
		c.namespacedHost(at(path+".hosts", i), h, true, converted)
	}
	p, good := c.serverPort(path, s.Port, s.Bind)
	c.bind(path+".bind", s.Bind, s.Port.GetNumber())
	c.serverTLS(path+".tls", s.Tls)
	switch t := s.Tls; {
	case !good:
	case p.tls && t == nil:
		c.err(path+".tls", "missing", "protocol "+s.Port.Protocol+" needs TLS settings")
	case p.tls || t == nil:
	case !p.http:
		c.err(path+".tls", "protocol "+s.Port.Protocol+" has no TLS", "use protocol TLS or HTTPS")
	case t.Mode != networkingv1alpha3.ServerTLSSettings_PASSTHROUGH && t.Mode != networkingv1alpha3.ServerTLSSettings_AUTO_PASSTHROUGH,
		t.CaCertificates != "", t.PrivateKey != "", t.ServerCertificate != "":
		c.err(path+".tls", "protocol "+s.Port.Protocol+" has no TLS but for httpsRedirect", "use protocol HTTPS")
	}
}

// serverPort checks the port of a gateway's server.
func (c *checker) serverPort(path string, port *networkingv1alpha3.Port, bind string) (protocol, bool) {
	if port == nil {
		c.err(path+".port", "missing", "a server listens on a port: {number: 80, name: http, protocol: HTTP}")
		return protocol{}, false
	}
	before := len(c.faults)
	p, known := protocolOf(port.Protocol)
	if !known {
		c.err(path+".port.protocol", fmt.Sprintf("protocol %q is unknown", port.Protocol), protocolHint)
	}
	if port.Number > 0 || !strings.HasPrefix(bind, unixPrefix) {
		c.port(path+".port.number", port.Number)
	}
	if port.TargetPort > 0 { // deprecated; its use is an error
		c.err(path+".port.targetPort", "it has no meaning for a Gateway", "the gateway's Service maps ports")
	}
	if port.Name == "" {
		c.err(path+".port.name", "missing", "a name tells servers apart, such as http")
	}
	return p, len(c.faults) == before
}

func (c *checker) bind(path, bind string, port uint32) {
	socket, unix := strings.CutPrefix(bind, unixPrefix)
	switch {
	case unix:
		c.unixSocket(path, socket)
		if port != 0 {
			c.err(path, "a Unix socket has no port", "set the port's number to 0")
		}
	case bind != "":
		c.ip(path, bind)
	}
}

// namespacedHost checks "namespace/host" of a Gateway's server, where the
// namespace may be left out, or of a Sidecar.
func (c *checker) namespacedHost(path, host string, gateway, converted bool) {
	ns, name, ok := strings.Cut(host, "/")
	if !ok {
		if !gateway {
			c.err(path, fmt.Sprintf("%q names no namespace", host), `write NAMESPACE/HOST; "*" and "." may stand for the namespace`)
			return
		}
		ns, name = "*", host
	}
	allowed := ns == "*" || ns == "." || isLabel(ns)
	switch rest, excluded := strings.CutPrefix(ns, "~"); {
	case excluded && gateway:
		allowed = converted && rest == ""
	case excluded:
		allowed = rest == "" || isLabel(rest)
	}
	if !allowed {
		c.err(path, fmt.Sprintf("%q is no namespace", ns), `write a namespace, "." for this one, or "*" for all`)
	}
	if name != "*" && !strings.Contains(name, ".") {
		c.err(path, fmt.Sprintf("%q is a short name", name), "write the host in full, such as NAME.NAMESPACE.svc.cluster.local")
	}
	if problem := hostProblem(name, true); problem != "" && !(gateway && isIP(name)) {
		c.err(path, problem, hostHint)
	}
	if strings.Contains(name, "*") && name != "*" && !strings.HasPrefix(name, "*.") {
		c.err(path, fmt.Sprintf("%q has a wildcard inside a label", name), `"*" stands for the whole first label`)
	}
}

// ciphers that Envoy knows by these names.
var ciphers = []string{"ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384",
	"ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-CHACHA20-POLY1305", "ECDHE-ECDSA-AES128-SHA",
	"ECDHE-RSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA", "ECDHE-RSA-AES256-SHA", "AES128-GCM-SHA256", "AES256-GCM-SHA384",
	"AES128-SHA", "AES256-SHA", "DES-CBC3-SHA"}

func (c *checker) serverTLS(path string, t *networkingv1alpha3.ServerTLSSettings) {
	if t == nil {
		return
	}
	old := t.MinProtocolVersion == networkingv1alpha3.ServerTLSSettings_TLSV1_0 || t.MinProtocolVersion == networkingv1alpha3.ServerTLSSettings_TLSV1_1
	if old && len(t.CipherSuites) == 0 {
		c.warn(path+".minProtocolVersion", "the default ciphers are none of "+t.MinProtocolVersion.String(), "name cipherSuites")
	}
	for i, s := range t.CipherSuites {
		field := at(path+".cipherSuites", i)
		switch {
		case s != "" && s != "ALL" && alphanumeric(s[0]) && !slices.Contains(ciphers, s):
			c.warn(field, fmt.Sprintf("cipher %s is unknown, and left out", s), "")
		case slices.Contains(t.CipherSuites[:i], s):
			c.warn(field, fmt.Sprintf("cipher %s stands twice", s), "")
		}
	}
	c.credentials(path, t)

	switch t.Mode {
	case networkingv1alpha3.ServerTLSSettings_ISTIO_MUTUAL:
		for field, v := range map[string]string{"serverCertificate": t.ServerCertificate, "privateKey": t.PrivateKey,
			"caCertificates": t.CaCertificates, "credentialName": t.CredentialName} {
			if v != "" {
				c.err(path+"."+field, "mode ISTIO_MUTUAL uses the workload's own certificate", "remove it, or use mode MUTUAL")
			}
		}
		return
	case networkingv1alpha3.ServerTLSSettings_PASSTHROUGH, networkingv1alpha3.ServerTLSSettings_AUTO_PASSTHROUGH:
		if t.CaCrl != "" || t.ServerCertificate != "" || t.PrivateKey != "" || t.CaCertificates != "" || t.CredentialName != "" {
			c.warn(path, "mode "+t.Mode.String()+" uses no certificates", "they are ignored")
		}
		return
	}
	if t.CredentialName != "" || len(t.CredentialNames) > 0 || len(t.TlsCertificates) > 0 {
		return
	}
	const hint = "give serverCertificate and privateKey, or credentialName"
	if t.ServerCertificate == "" {
		c.err(path+".serverCertificate", "missing", hint)
	}
	if t.PrivateKey == "" {
		c.err(path+".privateKey", "missing", hint)
	}
	if t.Mode != networkingv1alpha3.ServerTLSSettings_SIMPLE && t.CaCertificates == "" {
		c.err(path+".caCertificates", "missing", "mode "+t.Mode.String()+" checks clients against it")
	}
	if t.CaCrl != "" && t.Mode == networkingv1alpha3.ServerTLSSettings_SIMPLE {
		c.err(path+".caCrl", "mode SIMPLE checks no client certificate", "remove it, or use mode MUTUAL")
	}
}

// credentials checks the ways to name more than one certificate.
func (c *checker) credentials(path string, t *networkingv1alpha3.ServerTLSSettings) {
	set := 0
	for _, have := range []bool{t.CredentialName != "", len(t.CredentialNames) > 0, len(t.TlsCertificates) > 0} {
		if have {
			set++
		}
	}
	if set > 1 {
		c.err(path, "credentialName, credentialNames and tlsCertificates exclude each other", "keep one of them")
	}
	const most = 2 // one for each kind of key, RSA and ECDSA
	if n := len(t.CredentialNames); n > most {
		c.err(path+".credentialNames", fmt.Sprintf("%d names", n), "the most is 2, an RSA and an ECDSA key")
	}
	if n := len(t.TlsCertificates); n > most {
		c.err(path+".tlsCertificates", fmt.Sprintf("%d certificates", n), "the most is 2, an RSA and an ECDSA key")
	}
}
