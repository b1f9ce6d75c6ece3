package model

import (
	"bytes"

	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/internal/config"
)

// Secret is what a Secret holds for TLS at a gateway, in PEM form. Fields that it
// does not have are nil.
type Secret struct {
	Certificate, Key []byte
	OCSPStaple       []byte
	Roots            []byte
	CRL              []byte
}

// secretKey names a Secret.
type secretKey struct{ namespace, name string }

// Secret returns the Secret of a name for TLS, or nil if there is none that has
// anything to do with it.
func (w *World) Secret(namespace, name string) *Secret {
	return w.secrets[secretKey{namespace, name}]
}

// fromSecret reads the keys of Kubernetes' own type for TLS, and those of Istio's
// older form. It returns nil if there are none.
func fromSecret(o *config.Object) *Secret {
	in := o.Spec.(*corev1.Secret)
	get := func(keys ...string) []byte {
		for _, k := range keys {
			if v := in.Data[k]; len(v) > 0 {
				return v
			}
			// An API server moves these into data; in a file they stay.
			if v := in.StringData[k]; v != "" {
				return []byte(v)
			}
		}
		return nil
	}
	s := &Secret{
		Certificate: get("tls.crt", "cert"), Key: get("tls.key", "key"), OCSPStaple: get("tls.ocsp-staple"),
		Roots: get("ca.crt", "cacert"), CRL: get("ca.crl", "crl"),
	}
	if s.Certificate == nil && s.Key == nil && s.Roots == nil {
		return nil
	}
	return s
}

func (s *Secret) equal(o *Secret) bool {
	if s == nil || o == nil {
		return s == o
	}
	return bytes.Equal(s.Certificate, o.Certificate) && bytes.Equal(s.Key, o.Key) && bytes.Equal(s.OCSPStaple, o.OCSPStaple) &&
		bytes.Equal(s.Roots, o.Roots) && bytes.Equal(s.CRL, o.CRL)
}

// secret notes the change of a Secret, if it is one for TLS.
func (b *Builder) secret(c config.Change, changed map[secretKey]*Secret) {
	k := secretKey{c.Key.Namespace, c.Key.Name}
	var next *Secret
	if c.Object != nil {
		next = fromSecret(c.Object)
	}
	if next.equal(b.world.secrets[k]) {
		delete(changed, k)
		return
	}
	changed[k] = next
}
