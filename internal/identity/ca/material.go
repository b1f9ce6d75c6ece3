package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// Material is what an authority signs with, in PEM, as Kubernetes Secrets hold
// it: a root of its own, or an intermediate that somebody plugs in.
type Material struct {
	Certificate []byte // that signs
	Key         []byte // of Certificate
	// Chain leads from Certificate, which it may begin with, towards a root. It is
	// empty if Certificate is a root.
	Chain []byte
	// Roots are what workloads are to trust; empty if Certificate is the root.
	Roots []byte
}

// Equal reports whether two materials are the same.
func (m Material) Equal(o Material) bool {
	return bytes.Equal(m.Certificate, o.Certificate) && bytes.Equal(m.Key, o.Key) && bytes.Equal(m.Chain, o.Chain) && bytes.Equal(m.Roots, o.Roots)
}

// NewMaterial makes a self-signed root for a trust domain.
func NewMaterial(trustDomain string) (Material, error) {
	key, der, err := newRoot(trustDomain)
	if err != nil {
		return Material{}, fmt.Errorf("ca: making a root: %w", err)
	}
	b, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Material{}, fmt.Errorf("ca: making a root: %w", err)
	}
	return Material{
		Certificate: encodeCertificate(der),
		Key:         pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b}),
	}, nil
}

// NewWith returns an authority that signs with material from elsewhere;
// Config.StateDir is not used.
func NewWith(cfg Config, m Material) (*CA, error) {
	c, err := unrooted(cfg)
	if err != nil {
		return nil, err
	}
	return c, c.Replace(m)
}

// Replace signs with other material from now on. If it is not sound, the old
// stays.
func (c *CA) Replace(m Material) error {
	s, err := signerOf(m)
	if err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	c.now.Store(s)
	return nil
}

// signing is what is signed with at one time. It is immutable.
type signing struct {
	key     crypto.Signer
	cert    *x509.Certificate   // that signs
	between []*x509.Certificate // from the signing one up to below the root; none if that is the root
	root    *x509.Certificate   // at the end of a chain
	// bundle are all roots that are trusted.
	bundlePEM []byte
	bundle    *x509.CertPool
}

func newSigning(key crypto.Signer, cert *x509.Certificate, between, roots []*x509.Certificate) *signing {
	s := &signing{key: key, cert: cert, between: between, root: roots[0], bundle: x509.NewCertPool()}
	for _, r := range roots {
		s.bundle.AddCert(r)
		s.bundlePEM = append(s.bundlePEM, encodeCertificate(r.Raw)...)
	}
	return s
}

func signerOf(m Material) (*signing, error) {
	certs, err := parseCertificates(m.Certificate)
	if err != nil {
		return nil, fmt.Errorf("signing certificate: %w", err)
	}
	cert := certs[0]
	key, err := parseKey(m.Key)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	if public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(cert.PublicKey) {
		return nil, errors.New("the signing key is not that of the signing certificate")
	}
	if !cert.IsCA {
		return nil, errors.New("the signing certificate may not sign others")
	}
	if len(bytes.TrimSpace(m.Roots)) == 0 {
		m.Roots = m.Certificate
	}
	roots, err := parseCertificates(m.Roots)
	if err != nil {
		return nil, fmt.Errorf("root certificates: %w", err)
	}
	var chain []*x509.Certificate
	if len(bytes.TrimSpace(m.Chain)) > 0 {
		if chain, err = parseCertificates(m.Chain); err != nil {
			return nil, fmt.Errorf("certificate chain: %w", err)
		}
	}
	// The chain as a verifier would find it; it also tells whether the times are
	// right.
	pool, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for _, r := range roots {
		pool.AddCert(r)
	}
	for _, c := range chain {
		intermediates.AddCert(c)
	}
	chains, err := cert.Verify(x509.VerifyOptions{
		Roots: pool, Intermediates: intermediates, CurrentTime: time.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, fmt.Errorf("the signing certificate does not lead to a root: %w", err)
	}
	way := chains[0]
	s := newSigning(key, cert, way[:len(way)-1], roots)
	s.root = way[len(way)-1]
	return s, nil
}

// parseKey reads a private key in any of the forms that tools write.
func parseKey(text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no key in PEM form")
	}
	var key any
	var err error
	switch block.Type {
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("a %q block in place of a private key", block.Type)
	}
	if err != nil {
		return nil, err
	}
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		return k, nil
	case *rsa.PrivateKey:
		return k, nil
	case ed25519.PrivateKey:
		return k, nil
	}
	return nil, fmt.Errorf("a key of type %T can not sign", key)
}
