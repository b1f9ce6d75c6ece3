package plan

// Secret is what the control plane gives a proxy to prove itself with, or to
// judge others by, beside the workload's own identity: at a gateway, for names
// that the outside world knows. ServerTLS and ClientTLS refer to it by Name. All
// fields are in PEM form but for OCSPStaple.
//
// Either Certificate and Key are set, or Roots is: a secret that holds both is
// two for a proxy, of which the one with the roots has the suffix "-cacert".
type Secret struct {
	Name        string // "kubernetes://httpbin-credential"
	Certificate []byte // chain, leaf first
	Key         []byte
	OCSPStaple  []byte // DER
	Roots       []byte
	CRL         []byte
}

// String returns the secret without what is secret.
func (s *Secret) String() string {
	w := words{"secret", s.Name}
	w.addIf(len(s.Key) > 0, "certificate")
	w.addIf(len(s.Roots) > 0, "roots")
	w.addIf(len(s.CRL) > 0, "revoked")
	return w.String()
}
