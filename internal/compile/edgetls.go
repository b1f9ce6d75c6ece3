package compile

import (
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/heddle-mesh/heddle/internal/host"
	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/plan"
)

// terminates reports whether a server ends TLS in a way that is served: by one
// secret, or by the workload's own certificate.
func terminates(t *networking.ServerTLSSettings) bool {
	switch t.GetMode() {
	case networking.ServerTLSSettings_SIMPLE, networking.ServerTLSSettings_MUTUAL, networking.ServerTLSSettings_OPTIONAL_MUTUAL:
		return t.CredentialName != "" && !strings.Contains(t.CredentialName, "://") && len(t.CredentialNames) == 0 && len(t.TlsCertificates) == 0
	case networking.ServerTLSSettings_ISTIO_MUTUAL:
		return true
	}
	return false
}

// edgeTLS is how a server ends TLS.
func (e *edge) edgeTLS(t *networking.ServerTLSSettings, http bool) *plan.ServerTLS {
	out := &plan.ServerTLS{SubjectAltNames: t.SubjectAltNames, MinVersion: tlsVersion(t.MinProtocolVersion), MaxVersion: tlsVersion(t.MaxProtocolVersion)}
	if http {
		out.ALPN = []string{"h2", "http/1.1"}
	}
	switch t.Mode {
	case networking.ServerTLSSettings_ISTIO_MUTUAL:
		return &plan.ServerTLS{
			Certificate: ownCertificate, Roots: meshRoots, RequireCert: true, ALPN: out.ALPN,
			TrustDomains: append([]string{e.mesh.TrustDomain}, e.mesh.TrustDomainAliases...),
		}
	case networking.ServerTLSSettings_MUTUAL, networking.ServerTLSSettings_OPTIONAL_MUTUAL:
		out.Roots = secretScheme + t.CredentialName + rootsSuffix
		if t.CaCertCredentialName != "" {
			out.Roots = secretScheme + t.CaCertCredentialName + rootsSuffix
		}
		out.RequireCert = t.Mode == networking.ServerTLSSettings_MUTUAL
	}
	out.Certificate = secretScheme + t.CredentialName
	return out
}

// tlsVersion returns 0 for what is the proxy's own choice.
func tlsVersion(v networking.ServerTLSSettings_TLSProtocol) uint16 {
	switch v {
	case networking.ServerTLSSettings_TLSV1_0:
		return 0x0301
	case networking.ServerTLSSettings_TLSV1_1:
		return 0x0302
	case networking.ServerTLSSettings_TLSV1_2:
		return 0x0303
	case networking.ServerTLSSettings_TLSV1_3:
		return 0x0304
	}
	return 0
}

// tlsChains makes the chains of one server that ends TLS: by SNI, for its hosts
// only. A request for another host, which a client may send where it believes that
// one connection is as good as another, is told that it came to the wrong place.
func (v *View) tlsChains(s server, address string) ([]*plan.FilterChain, *plan.RouteConfig) {
	var names []string
	for _, h := range s.spec.Hosts {
		if _, name, ok := strings.Cut(h, "/"); ok {
			h = name
		}
		names = append(names, h)
	}
	sni := serverNames(names)
	if s.kind == tlsServer {
		t := v.edge.edgeTLS(s.spec.Tls, false)
		chains := v.gatewayChains([]server{s}, func(r rules, vs *model.VirtualService, _ []host.Name) []*plan.FilterChain {
			chains, _ := r.tcpChains(vs, nil)
			return chains
		})
		for _, c := range chains {
			c.TLS, c.Match.ServerNames, c.Match.Transport = t, sni, plan.TLSTransport
		}
		return distinct(chains), nil
	}
	rc := v.gatewayRoutes(s.port, []server{s})
	rc.Name = strings.Join([]string{"https", strconv.Itoa(int(s.number)), s.spec.Port.GetName(), s.gateway.Name, s.gateway.Namespace}, ".")
	if sni != nil {
		for _, h := range rc.Hosts {
			if len(h.Domains) == 1 && h.Domains[0] == "*" {
				return v.httpsChain(s, sni, rc, address), rc // it has no routes: 404 for all
			}
		}
		rc.Hosts = append(rc.Hosts, &plan.VirtualHost{Name: "misdirected:" + strconv.Itoa(int(s.number)), Domains: []string{"*"}, Routes: []*plan.Route{{
			Name: "misdirected", Match: routeMatch(nil), Direct: &plan.DirectResponse{Status: 421},
		}}})
	}
	return v.httpsChain(s, sni, rc, address), rc
}

func (v *View) httpsChain(s server, sni []string, rc *plan.RouteConfig, address string) []*plan.FilterChain {
	return []*plan.FilterChain{{
		Match: plan.ChainMatch{ServerNames: sni, Transport: plan.TLSTransport},
		TLS:   v.edge.edgeTLS(s.spec.Tls, true),
		HTTP:  v.edgeHTTP(address, rc.Name),
	}}
}

// edgeHTTP is how a gateway handles requests, with and without TLS.
func (v *View) edgeHTTP(address, routes string) *plan.HTTPChain {
	return &plan.HTTPChain{
		StatPrefix:        "outbound_" + address,
		RouteName:         routes,
		ForwardClientCert: edgeClientCert(v.scope.mesh.GatewayClientCert),
		UseRemoteAddress:  true,
		TrustedHops:       v.scope.mesh.GatewayHops,
		AccessLog:         v.scope.mesh.AccessLogFile,
		Metrics:           true,
	}
}
