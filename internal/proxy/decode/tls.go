package decode

import (
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	upstreamproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/proxy_protocol/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/heddle-mesh/heddle/internal/plan"
)

const rawBuffer = "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"

func (r *reader) downstreamTLS(path string, s *corev3.TransportSocket) *plan.ServerTLS {
	if s.GetTypedConfig().GetTypeUrl() == rawBuffer {
		return nil
	}
	m := &tlsv3.DownstreamTlsContext{}
	if !r.unpack(path, s.GetTypedConfig(), m) {
		return nil
	}
	r.only(path, m, "common_tls_context", "require_client_certificate",
		// Resumption is the TLS library's affair.
		"disable_stateless_session_resumption", "disable_stateful_session_resumption", "session_timeout", "prefer_client_ciphers")
	out := &plan.ServerTLS{RequireCert: m.GetRequireClientCertificate().GetValue()}
	var v *tlsv3.CertificateValidationContext
	out.Certificate, out.Roots, out.ALPN, v = r.commonTLS(join(path, "common_tls_context"), m.GetCommonTlsContext())
	if out.Certificate == "" {
		r.fail(join(path, "common_tls_context"), "names no certificate")
	}
	if out.RequireCert && out.Roots == "" {
		r.fail(path, "requires a client certificate but names no roots to check it with")
	}
	at := join(path, "validation_context")
	if v.GetTrustChainVerification() != tlsv3.CertificateValidationContext_VERIFY_TRUST_CHAIN {
		r.fail(join(at, "trust_chain_verification"), "is not supported for clients")
	}
	if len(v.GetMatchSubjectAltNames()) > 0 {
		r.fail(join(at, "match_subject_alt_names"), "is not supported for clients")
	}
	if p := m.GetCommonTlsContext().GetTlsParams(); p != nil {
		// The usual bounds are the proxy's own.
		if v := p.GetTlsMinimumProtocolVersion(); v != tlsv3.TlsParameters_TLSv1_2 && v != tlsv3.TlsParameters_TLS_AUTO {
			out.MinVersion = uint16(v-tlsv3.TlsParameters_TLSv1_0) + 0x0301
		}
		if v := p.GetTlsMaximumProtocolVersion(); v != tlsv3.TlsParameters_TLSv1_3 && v != tlsv3.TlsParameters_TLS_AUTO {
			out.MaxVersion = uint16(v-tlsv3.TlsParameters_TLSv1_0) + 0x0301
		}
	}
	for i, san := range v.GetMatchTypedSubjectAltNames() {
		at := index(at, "match_typed_subject_alt_names", i)
		if exact := san.GetMatcher().GetExact(); exact != "" && !san.GetMatcher().GetIgnoreCase() {
			out.SubjectAltNames = append(out.SubjectAltNames, exact)
			continue
		}
		domain, ok := strings.CutPrefix(san.GetMatcher().GetPrefix(), "spiffe://")
		domain, slash := strings.CutSuffix(domain, "/")
		if san.GetSanType() != tlsv3.SubjectAltNameMatcher_URI || !ok || !slash || domain == "" || strings.Contains(domain, "/") {
			r.fail(at, "is not a URI with prefix spiffe://<trust domain>/")
			continue
		}
		out.TrustDomains = append(out.TrustDomains, domain)
	}
	return out
}

const upstreamProxyProtocol = "type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport"

// behindHeader reads which version of the PROXY protocol's header goes before what
// the cluster's sockets send, and puts those that it wraps in the place of the
// wrappers. Of several sockets all must send the same.
func (r *reader) behindHeader(m *clusterv3.Cluster) uint8 {
	if len(m.GetTransportSocketMatches()) == 0 {
		s, version := r.unwrapped("transport_socket", m.GetTransportSocket())
		m.TransportSocket = s
		return version
	}
	var out uint8
	for i, match := range m.GetTransportSocketMatches() {
		at := join(index("", "transport_socket_matches", i), "transport_socket")
		s, version := r.unwrapped(at, match.GetTransportSocket())
		match.TransportSocket = s
		if i > 0 && version != out {
			r.fail(at, "sends another PROXY protocol header than the first")
		}
		out = version
	}
	return out
}

func (r *reader) unwrapped(path string, s *corev3.TransportSocket) (*corev3.TransportSocket, uint8) {
	if s.GetTypedConfig().GetTypeUrl() != upstreamProxyProtocol {
		return s, 0
	}
	w := &upstreamproxyv3.ProxyProtocolUpstreamTransport{}
	if !r.unpack(path, s.GetTypedConfig(), w) {
		return nil, 0
	}
	r.only(path, w, "config", "transport_socket",
		"allow_unspecified_address") // an address that is not known is written as such
	r.only(join(path, "config"), w.GetConfig(), "version")
	switch w.GetConfig().GetVersion() {
	case corev3.ProxyProtocolConfig_V1:
		return w.GetTransportSocket(), 1
	case corev3.ProxyProtocolConfig_V2:
		return w.GetTransportSocket(), 2
	}
	r.fail(join(path, "config.version"), "%v is not supported", w.GetConfig().GetVersion())
	return w.GetTransportSocket(), 0
}

// Secret reads an envoy.extensions.transport_sockets.tls.v3.Secret.
func Secret(a *anypb.Any) (*plan.Secret, error) {
	m := &tlsv3.Secret{}
	if err := resource(a, m); err != nil {
		return nil, err
	}
	r := &reader{}
	s := &plan.Secret{Name: m.GetName()}
	bytes := func(path string, d *corev3.DataSource) []byte {
		switch v := d.GetSpecifier().(type) {
		case *corev3.DataSource_InlineBytes:
			return v.InlineBytes
		case *corev3.DataSource_InlineString:
			return []byte(v.InlineString)
		}
		r.fail(path, "is not inline")
		return nil
	}
	switch {
	case m.GetTlsCertificate() != nil:
		c := m.GetTlsCertificate()
		r.only("tls_certificate", c, "certificate_chain", "private_key", "ocsp_staple")
		s.Certificate, s.Key = bytes("tls_certificate.certificate_chain", c.GetCertificateChain()), bytes("tls_certificate.private_key", c.GetPrivateKey())
		if c.GetOcspStaple() != nil {
			s.OCSPStaple = bytes("tls_certificate.ocsp_staple", c.GetOcspStaple())
		}
	case m.GetValidationContext() != nil:
		v := m.GetValidationContext()
		r.only("validation_context", v, "trusted_ca", "crl")
		s.Roots = bytes("validation_context.trusted_ca", v.GetTrustedCa())
		if v.GetCrl() != nil {
			s.CRL = bytes("validation_context.crl", v.GetCrl())
		}
	default:
		r.fail("type", "is neither a certificate nor roots")
	}
	if err := r.done("secret", s.Name); err != nil {
		return nil, err
	}
	return s, nil
}

// clusterTLS reads either form: one socket for all endpoints, or Istio's two of
// which the endpoint's metadata chooses.
func (r *reader) clusterTLS(m *clusterv3.Cluster) *plan.ClientTLS {
	if len(m.GetTransportSocketMatches()) == 0 {
		return r.upstreamTLS("transport_socket", m.GetTransportSocket())
	}
	if m.GetTransportSocket() != nil {
		r.fail("transport_socket", "stands beside transport_socket_matches")
	}
	var out *plan.ClientTLS
	plain := false
	for i, match := range m.GetTransportSocketMatches() {
		at := index("", "transport_socket_matches", i)
		socket := match.GetTransportSocket()
		want := match.GetMatch().GetFields()
		switch {
		case plain:
			r.fail(at, "stands behind the match for all endpoints")
		case len(want) == 1 && want["tlsMode"].GetStringValue() == "istio":
			out = r.upstreamTLS(join(at, "transport_socket"), socket)
			if out == nil {
				r.fail(at, "is not TLS")
				continue
			}
			out.Auto = true
		case len(want) == 0 && socket.GetTypedConfig().GetTypeUrl() == rawBuffer:
			plain = true
		default:
			r.fail(at, "%q is neither TLS for tlsMode=istio nor plain text for all", match.GetName())
		}
	}
	if out == nil || !plain {
		r.fail("transport_socket_matches", "are not TLS for tlsMode=istio and plain text for all others")
	}
	return out
}

func (r *reader) upstreamTLS(path string, s *corev3.TransportSocket) *plan.ClientTLS {
	if s == nil || s.GetTypedConfig().GetTypeUrl() == rawBuffer {
		return nil
	}
	m := &tlsv3.UpstreamTlsContext{}
	if !r.unpack(path, s.GetTypedConfig(), m) {
		return nil
	}
	r.only(path, m, "common_tls_context", "sni", "max_session_keys")
	out := &plan.ClientTLS{SNI: m.GetSni()}
	var v *tlsv3.CertificateValidationContext
	out.Certificate, out.Roots, out.ALPN, v = r.commonTLS(join(path, "common_tls_context"), m.GetCommonTlsContext())
	at := join(path, "validation_context")
	out.Unverified = v.GetTrustChainVerification() == tlsv3.CertificateValidationContext_ACCEPT_UNTRUSTED
	if out.Unverified && out.Roots != "" {
		r.fail(at, "has roots, and takes what they did not sign")
	}
	for i, san := range v.GetMatchSubjectAltNames() {
		at := index(at, "match_subject_alt_names", i)
		exact, ok := san.GetMatchPattern().(*matcherv3.StringMatcher_Exact)
		if !ok || san.GetIgnoreCase() {
			r.fail(at, "is not an exact name")
			continue
		}
		out.SubjectAltNames = append(out.SubjectAltNames, exact.Exact)
	}
	for i, san := range v.GetMatchTypedSubjectAltNames() {
		at := index(at, "match_typed_subject_alt_names", i)
		exact, ok := san.GetMatcher().GetMatchPattern().(*matcherv3.StringMatcher_Exact)
		if !ok || san.GetMatcher().GetIgnoreCase() {
			r.fail(at, "is not an exact name")
			continue
		}
		out.SubjectAltNames = append(out.SubjectAltNames, exact.Exact)
	}
	if len(out.SubjectAltNames) > 0 && out.Roots == "" {
		r.fail(path, "names who the server must be, but no roots to check it with")
	}
	return out
}

// commonTLS reads the names of secrets, in any of the forms in which Istio sends
// them: by SDS, or by certificate provider.
func (r *reader) commonTLS(path string, m *tlsv3.CommonTlsContext) (certificate, roots string, alpn []string, v *tlsv3.CertificateValidationContext) {
	if m == nil {
		r.fail(path, "is missing")
		return "", "", nil, nil
	}
	r.only(path, m, "alpn_protocols", "tls_certificate_sds_secret_configs", "tls_certificate_provider_instance",
		"combined_validation_context", "validation_context_sds_secret_config", "validation_context",
		"tls_certificate_certificate_provider_instance", // the older form of the provider, sent with the newer
		"tls_params") // the TLS library's own choice is at least as strict
	switch certs := m.GetTlsCertificateSdsSecretConfigs(); {
	case len(certs) > 1:
		r.fail(join(path, "tls_certificate_sds_secret_configs"), "names %d certificates, one is supported", len(certs))
	case len(certs) == 1:
		certificate = certs[0].GetName()
	default:
		certificate = m.GetTlsCertificateProviderInstance().GetCertificateName()
	}
	if s := m.GetValidationContextSdsSecretConfig(); s != nil {
		roots = s.GetName()
	}
	if v = m.GetValidationContext(); v != nil {
		r.only(join(path, "validation_context"), v, "trust_chain_verification")
	}
	if c := m.GetCombinedValidationContext(); c != nil {
		at := join(path, "combined_validation_context")
		r.only(at, c, "default_validation_context", "validation_context_sds_secret_config",
			"validation_context_certificate_provider_instance") // the older form
		v = c.GetDefaultValidationContext()
		r.only(join(at, "default_validation_context"), v, "match_subject_alt_names", "match_typed_subject_alt_names",
			"ca_certificate_provider_instance")
		roots = c.GetValidationContextSdsSecretConfig().GetName()
		if roots == "" {
			roots = v.GetCaCertificateProviderInstance().GetCertificateName()
		}
		if roots == "" {
			r.fail(at, "names no roots")
		}
	}
	return certificate, roots, m.GetAlpnProtocols(), v
}
