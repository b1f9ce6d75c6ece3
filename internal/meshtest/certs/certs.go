// Package certs makes certificate authorities and workload identities in memory,
// for tests. Every certificate is valid from an hour before now by the clock the
// test runs on, so that it also works in a synctest bubble.
package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/identity"
)

// CA signs for the workloads of one trust domain.
type CA struct {
	TrustDomain string
	Certificate *x509.Certificate
	Key         *ecdsa.PrivateKey
	tb          testing.TB
}

// New makes a self-signed authority.
func New(tb testing.TB, trustDomain string) *CA {
	tb.Helper()
	now := time.Now()
	key := newKey(tb)
	template := &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{trustDomain}},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(10 * 365 * 24 * time.Hour),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	root, err := sign(template, template, &key.PublicKey, key)
	if err != nil {
		tb.Fatalf("certs: %v", err)
	}
	return &CA{TrustDomain: trustDomain, Certificate: root, Key: key, tb: tb}
}

// PEM returns the root certificate.
func (ca *CA) PEM() []byte { return encode(ca.Certificate) }

// Spec describes a certificate in every detail that a test may want wrong.
type Spec struct {
	ID identity.ID // of the Material; also the URI name unless URIs is set
	// URIs are the URI names; an empty, non-nil slice makes a certificate without.
	URIs      []string
	DNSNames  []string
	NotBefore time.Time               // zero: an hour ago
	NotAfter  time.Time               // zero: in 24 hours
	Usages    []x509.ExtKeyUsage      // nil: server and client
	IsCA      bool                    // a leaf that may sign
	Roots     []*CA                   // whom the Material trusts; nil: its own CA
	Edit      func(*x509.Certificate) // last word on the template
}

// Material makes a workload's identity, valid for 24 hours.
func (ca *CA) Material(namespace, serviceAccount string) *identity.Material {
	ca.tb.Helper()
	return ca.Issue(Spec{ID: identity.ID{TrustDomain: ca.TrustDomain, Namespace: namespace, ServiceAccount: serviceAccount}})
}

// Source is Material as a source that can be changed.
func (ca *CA) Source(namespace, serviceAccount string) *Source {
	ca.tb.Helper()
	return NewSource(ca.Material(namespace, serviceAccount))
}

// Issue makes a Material as specified.
func (ca *CA) Issue(spec Spec) *identity.Material {
	ca.tb.Helper()
	now := time.Now()
	template := &x509.Certificate{
		NotBefore:   now.Add(-time.Hour),
		NotAfter:    now.Add(24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    spec.DNSNames,
	}
	if !spec.NotBefore.IsZero() {
		template.NotBefore = spec.NotBefore
	}
	if !spec.NotAfter.IsZero() {
		template.NotAfter = spec.NotAfter
	}
	if spec.Usages != nil {
		template.ExtKeyUsage = spec.Usages
	}
	if spec.IsCA {
		template.IsCA = true
		template.BasicConstraintsValid = true
		template.KeyUsage |= x509.KeyUsageCertSign
	}
	uris := spec.URIs
	if uris == nil {
		uris = []string{spec.ID.String()}
	}
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil {
			ca.tb.Fatalf("certs: %v", err)
		}
		template.URIs = append(template.URIs, u)
	}
	if spec.Edit != nil {
		spec.Edit(template)
	}
	key := newKey(ca.tb)
	leaf, err := sign(template, ca.Certificate, &key.PublicKey, ca.Key)
	if err != nil {
		ca.tb.Fatalf("certs: %v", err)
	}
	roots := spec.Roots
	if roots == nil {
		roots = []*CA{ca}
	}
	pool, rootPEM := Bundle(roots...)
	return &identity.Material{
		ID: spec.ID,
		Certificate: &tls.Certificate{
			Certificate: [][]byte{leaf.Raw, ca.Certificate.Raw},
			PrivateKey:  key,
			Leaf:        leaf,
		},
		Roots:   pool,
		RootPEM: rootPEM,
	}
}

// SignCSR answers a certificate request for id as Istio's CA does: leaf first,
// root last.
func (ca *CA) SignCSR(csrPEM []byte, id identity.ID, ttl time.Duration) ([]string, error) {
	block, _ := pem.Decode(csrPEM)
	if block == nil {
		return nil, errors.New("certs: no PEM in the request")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(id.String())
	if err != nil {
		return nil, err
	}
	now := time.Now()
	leaf, err := sign(&x509.Certificate{
		NotBefore:   now.Add(-2 * time.Minute),
		NotAfter:    now.Add(ttl),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{u},
	}, ca.Certificate, csr.PublicKey, ca.Key)
	if err != nil {
		return nil, err
	}
	return []string{string(encode(leaf)), string(ca.PEM())}, nil
}

// Bundle returns the roots of some authorities.
func Bundle(cas ...*CA) (*x509.CertPool, []byte) {
	pool := x509.NewCertPool()
	var text []byte
	for _, ca := range cas {
		pool.AddCert(ca.Certificate)
		text = append(text, ca.PEM()...)
	}
	return pool, text
}

// Source is an identity.Source that a test sets.
type Source struct {
	current atomic.Pointer[identity.Material]
}

// NewSource returns a source of m, which may be nil.
func NewSource(m *identity.Material) *Source {
	s := new(Source)
	s.Set(m)
	return s
}

// Current implements identity.Source.
func (s *Source) Current() *identity.Material { return s.current.Load() }

// Set replaces the material; nil takes it away.
func (s *Source) Set(m *identity.Material) { s.current.Store(m) }

// newKey is not cached: a P-256 key costs some ten microseconds, less than the
// signature over its certificate.
func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatalf("certs: %v", err)
	}
	return key
}

func sign(template, parent *x509.Certificate, public any, signer crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func encode(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}
