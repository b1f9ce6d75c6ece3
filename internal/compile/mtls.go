package compile

import (
	"slices"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/plan"
)

// Names of the secrets that every workload has: its own key and certificate, and
// the roots that peers are checked against. Source: Istio, SDS names.
const (
	ownCertificate = "default"
	meshRoots      = "ROOTCA"
)

// ALPN by which sidecars tell each other that a TLS connection is theirs, and
// what is in it: requests that proxies handle as such, or bytes.
// Source: Istio, util.ALPNInMesh and istio.alpn.
var (
	meshHTTP = []string{"istio-http/1.0", "istio-http/1.1", "istio-h2"}
	meshTCP  = []string{"istio-peer-exchange", "istio"}
	meshAny  = slices.Concat(meshTCP, meshHTTP)
	// meshTCPWithHTTP2 is what Envoy offers before it knows which of a cluster's
	// connections will carry what, for clusters of HTTP/2.
	meshTCPWithHTTP2 = append(slices.Clone(meshTCP), "h2")
)

// option is one way in which callers may reach a port.
type option struct {
	transport plan.Transport
	alpn      []string
	terminate bool // mutual TLS ends here
	http      bool
}

// inboundOptions lists how callers may reach a port of the workload, given how
// the port is handled and what policy demands.
//
// A permissive port takes three kinds of connections, told apart by their first
// bytes: a sidecar's, by its ALPN; plain text; and TLS of the application's own,
// which is passed on as it is, except on HTTP ports, where it would be an error.
// Source: Istio, getFilterChainMatchOptions.
func inboundOptions(h handling, mode model.MTLSMode) []option {
	mutual := func(alpn []string, http bool) option { return option{plan.TLSTransport, alpn, true, http} }
	plainHTTP := option{plan.RawBuffer, httpALPN, false, true}
	plainTCP := option{plan.RawBuffer, nil, false, false}
	foreignTLS := option{plan.TLSTransport, nil, false, false}
	anything := option{plan.AnyTransport, nil, false, h == asHTTP}

	switch mode {
	case model.Strict:
		if h == asAuto {
			return []option{mutual(meshHTTP, true), mutual(nil, false)}
		}
		return []option{mutual(nil, h == asHTTP)}
	case model.Permissive:
		switch h {
		case asHTTP:
			return []option{mutual(meshAny, true), {plan.RawBuffer, nil, false, true}}
		case asAuto:
			return []option{mutual(meshHTTP, true), plainHTTP, mutual(meshTCP, false), plainTCP, foreignTLS}
		}
		return []option{mutual(meshAny, false), foreignTLS, plainTCP}
	}
	if h == asAuto {
		return []option{plainHTTP, anything}
	}
	return []option{anything}
}

// serverTLS ends a caller's mutual TLS. The protocols named are all that a
// caller may offer on such a chain: an offer without any in common ends the
// handshake in some libraries.
func (in *inbound) serverTLS(http bool) *plan.ServerTLS {
	t := &plan.ServerTLS{
		Certificate:  ownCertificate,
		Roots:        meshRoots,
		RequireCert:  true,
		TrustDomains: append([]string{in.mesh.TrustDomain}, in.mesh.TrustDomainAliases...),
	}
	if http {
		t.ALPN = []string{"istio-h2", "h2", "istio-http/1.1", "istio-http/1.0", "http/1.1", "istio"}
	} else {
		t.ALPN = append(slices.Clone(meshAny), "h2", "http/1.1")
	}
	return t
}

// clientTLS decides how a cluster secures its connections: as a rule says, or by
// mutual TLS to those endpoints that have a sidecar. It returns nil for plain
// text.
func (s *scope) clientTLS(d *destination, p *model.Port, subset string, policy *networking.TrafficPolicy) *plan.ClientTLS {
	in := policy.GetTls()
	if in == nil {
		return s.autoTLS(d, p, subset)
	}
	switch in.Mode {
	case networking.ClientTLSSettings_DISABLE:
		return nil
	case networking.ClientTLSSettings_ISTIO_MUTUAL:
		t := s.mutualTLS(d, p, subset)
		if in.Sni != "" {
			t.SNI = in.Sni
		}
		if len(in.SubjectAltNames) > 0 {
			t.SubjectAltNames = in.SubjectAltNames
		}
		return t
	}
	// The rule's own certificates. The names are those by which Istio asks for
	// files; a proxy that cannot get them must refuse to connect.
	t := &plan.ClientTLS{
		Roots:           "file-root:system",
		SNI:             in.Sni,
		SubjectAltNames: in.SubjectAltNames,
	}
	if in.CaCertificates != "" {
		t.Roots = "file-root:" + in.CaCertificates
	}
	if in.CredentialName != "" {
		t.Roots = "kubernetes://" + in.CredentialName + "-cacert"
	}
	if in.InsecureSkipVerify.GetValue() {
		t.Roots, t.SubjectAltNames, t.Unverified = "", nil, true
	}
	if t.SNI == "" && !d.Host.IsWildcard() {
		t.SNI = string(d.Host)
	}
	if in.Mode == networking.ClientTLSSettings_MUTUAL {
		t.Certificate = "file-cert:" + in.ClientCertificate + "~" + in.PrivateKey
		if in.CredentialName != "" {
			t.Certificate = "kubernetes://" + in.CredentialName
		}
	}
	return t
}

// autoTLS is mutual TLS wherever it can be. For services whose callers choose
// the address there is no telling endpoints apart: all must have a sidecar.
func (s *scope) autoTLS(d *destination, p *model.Port, subset string) *plan.ClientTLS {
	// A gRPC client without a sidecar does what a rule tells it, and no more.
	if d.External || !s.mesh.AutoMTLS || s.class == GRPC {
		return nil
	}
	if d.Resolution == model.ByEndpoints {
		if d.mode == model.Disable {
			return nil
		}
		t := s.mutualTLS(d, p, subset)
		t.Auto = true
		return t
	}
	list := d.endpoints.ByPort[p.Number]
	if len(list) == 0 || d.mode == model.Disable {
		return nil
	}
	for _, e := range list {
		if !e.MTLS {
			return nil
		}
	}
	return s.mutualTLS(d, p, subset)
}

func (s *scope) mutualTLS(d *destination, p *model.Port, subset string) *plan.ClientTLS {
	t := &plan.ClientTLS{
		Certificate:     ownCertificate,
		Roots:           meshRoots,
		SNI:             serverName(p.Number, subset, d.Host),
		SubjectAltNames: d.accounts,
		ALPN:            meshTCP,
	}
	if len(d.SubjectAltNames) > 0 {
		t.SubjectAltNames = slices.Concat(d.accounts, d.SubjectAltNames)
	}
	return t
}
