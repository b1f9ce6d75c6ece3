package encode

import (
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rawbufferv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/heddle-mesh/heddle/internal/plan"
)

func downstreamTLS(t *plan.ServerTLS, forGRPC bool) *corev3.TransportSocket {
	common := commonTLS(t.Certificate, t.Roots, t.ALPN, forGRPC, &tlsv3.CertificateValidationContext{
		MatchTypedSubjectAltNames: append(trustDomains(t.TrustDomains), exactNames(t.SubjectAltNames)...),
	})
	if common.TlsParams != nil {
		common.TlsParams.TlsMinimumProtocolVersion = tlsVersion(t.MinVersion, common.TlsParams.TlsMinimumProtocolVersion)
		common.TlsParams.TlsMaximumProtocolVersion = tlsVersion(t.MaxVersion, common.TlsParams.TlsMaximumProtocolVersion)
	}
	out := &tlsv3.DownstreamTlsContext{CommonTlsContext: common}
	if t.RequireCert {
		out.RequireClientCertificate = wrapperspb.Bool(true)
	}
	return tlsSocket(out)
}

// trustDomains accepts the SPIFFE ids of some trust domains.
func trustDomains(domains []string) []*tlsv3.SubjectAltNameMatcher {
	var out []*tlsv3.SubjectAltNameMatcher
	for _, d := range domains {
		out = append(out, &tlsv3.SubjectAltNameMatcher{
			SanType: tlsv3.SubjectAltNameMatcher_URI,
			Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: "spiffe://" + d + "/"}},
		})
	}
	return out
}

// exactNames accepts certificates with one of some names, of either kind.
func exactNames(names []string) []*tlsv3.SubjectAltNameMatcher {
	var out []*tlsv3.SubjectAltNameMatcher
	for _, n := range names {
		kind := tlsv3.SubjectAltNameMatcher_DNS
		if strings.Contains(n, "://") {
			kind = tlsv3.SubjectAltNameMatcher_URI
		}
		out = append(out, &tlsv3.SubjectAltNameMatcher{
			SanType: kind, Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: n}},
		})
	}
	return out
}

// tlsVersion translates a version as on the wire.
func tlsVersion(v uint16, otherwise tlsv3.TlsParameters_TlsProtocol) tlsv3.TlsParameters_TlsProtocol {
	if v < 0x0301 || v > 0x0304 {
		return otherwise
	}
	return tlsv3.TlsParameters_TLSv1_0 + tlsv3.TlsParameters_TlsProtocol(v-0x0301)
}

func upstreamTLS(t *plan.ClientTLS, forGRPC bool) *corev3.TransportSocket {
	validation := &tlsv3.CertificateValidationContext{}
	if t.Unverified {
		validation.TrustChainVerification = tlsv3.CertificateValidationContext_ACCEPT_UNTRUSTED
	}
	for _, san := range t.SubjectAltNames {
		// The field is deprecated, but it is the one that Istio sets and gRPC reads.
		validation.MatchSubjectAltNames = append(validation.MatchSubjectAltNames,
			&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: san}})
	}
	return tlsSocket(&tlsv3.UpstreamTlsContext{
		CommonTlsContext: commonTLS(t.Certificate, t.Roots, t.ALPN, forGRPC, validation),
		Sni:              t.SNI,
	})
}

// commonTLS names the secrets. Envoy fetches them by SDS; gRPC finds them at the
// certificate provider that Istio's bootstrap calls "default", and refuses
// TLS parameters.
func commonTLS(certificate, roots string, alpn []string, forGRPC bool, v *tlsv3.CertificateValidationContext) *tlsv3.CommonTlsContext {
	out := &tlsv3.CommonTlsContext{AlpnProtocols: alpn}
	if forGRPC {
		if certificate != "" {
			out.TlsCertificateProviderInstance = &tlsv3.CertificateProviderPluginInstance{InstanceName: "default", CertificateName: certificate}
		}
		if roots != "" {
			v.CaCertificateProviderInstance = &tlsv3.CertificateProviderPluginInstance{InstanceName: "default", CertificateName: roots}
			out.ValidationContextType = &tlsv3.CommonTlsContext_CombinedValidationContext{
				CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{DefaultValidationContext: v},
			}
		}
		return out
	}
	out.TlsParams = &tlsv3.TlsParameters{
		TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2,
		TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
	}
	if certificate != "" {
		out.TlsCertificateSdsSecretConfigs = []*tlsv3.SdsSecretConfig{secret(certificate)}
	}
	if v.TrustChainVerification != tlsv3.CertificateValidationContext_VERIFY_TRUST_CHAIN {
		out.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: v}
	}
	if roots != "" {
		out.ValidationContextType = &tlsv3.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext:         v,
				ValidationContextSdsSecretConfig: secret(roots),
			},
		}
	}
	return out
}

// secret names a secret and where to get it: the workload's own from the agent
// beside the proxy, a gateway's from the control plane.
func secret(name string) *tlsv3.SdsSecretConfig {
	source := overADS()
	if !strings.HasPrefix(name, "kubernetes") {
		source.ConfigSourceSpecifier = &corev3.ConfigSource_ApiConfigSource{ApiConfigSource: &corev3.ApiConfigSource{
			ApiType:                   corev3.ApiConfigSource_GRPC,
			SetNodeOnFirstMessageOnly: true,
			TransportApiVersion:       corev3.ApiVersion_V3,
			GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
				EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: "sds-grpc"},
			}}},
		}}
		source.InitialFetchTimeout = durationpb.New(0)
	}
	return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: source}
}

func tlsSocket(context proto.Message) *corev3.TransportSocket {
	return &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(context)},
	}
}

func rawSocket() *corev3.TransportSocket {
	return &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.raw_buffer",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(&rawbufferv3.RawBuffer{})},
	}
}
