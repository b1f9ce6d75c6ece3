package encode

import (
	"crypto/sha256"
	"encoding/hex"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// Secret encodes a secret. The encoder's cache has no part in it: a key should
// stand in memory no longer than it is asked for.
func Secret(s *plan.Secret) *Resource {
	out := &tlsv3.Secret{Name: s.Name}
	if len(s.Roots) > 0 {
		v := &tlsv3.CertificateValidationContext{TrustedCa: inline(s.Roots)}
		if len(s.CRL) > 0 {
			v.Crl = inline(s.CRL)
		}
		out.Type = &tlsv3.Secret_ValidationContext{ValidationContext: v}
	} else {
		c := &tlsv3.TlsCertificate{CertificateChain: inline(s.Certificate), PrivateKey: inline(s.Key)}
		if len(s.OCSPStaple) > 0 {
			c.OcspStaple = inline(s.OCSPStaple)
		}
		out.Type = &tlsv3.Secret_TlsCertificate{TlsCertificate: c}
	}
	body := marshal(out)
	sum := sha256.Sum256(body)
	return &Resource{Name: s.Name, Version: hex.EncodeToString(sum[:8]), Body: &anypb.Any{TypeUrl: SecretType, Value: body}}
}

func inline(b []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
}
