// Package ca is the mesh's certificate authority: it keeps a self-signed root in
// a state directory, signs short-lived certificates for workloads that have
// proved who they are, and answers Istio's certificate service with them. For the
// mesh on one machine, where no Kubernetes hands out service account tokens, it
// also issues and verifies such tokens.
//
// What a certificate says comes from the authenticated identity alone. Of a
// certificate request only the public key is used; a request that names somebody
// else is refused rather than corrected, since it is a mistake or an attack.
package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/internal/identity"
)

const (
	rootKeyFile  = "root-key.pem"
	rootCertFile = "root-cert.pem"

	// rootTTL is Istio's for a self-signed root.
	rootTTL = 10 * 365 * 24 * time.Hour
	// defaultTTL and maxTTL of a workload's certificate are Istio's
	// DEFAULT_WORKLOAD_CERT_TTL and MAX_WORKLOAD_CERT_TTL.
	defaultTTL = 24 * time.Hour
	maxTTL     = 90 * 24 * time.Hour
	// clockSkew is how far a verifier's clock may be behind ours. Source: Istio.
	clockSkew = 2 * time.Minute

	maxCSR     = 32 << 10
	minRSABits = 2048
	maxRSABits = 8192 // crypto/tls refuses longer keys, and verifying them is slow
)

var (
	// ErrRequest is wrapped by errors about a malformed or weak request.
	ErrRequest = errors.New("certificate request refused")
	// ErrIdentity is wrapped when a request names somebody else than who asks.
	ErrIdentity = errors.New("certificate request is for another identity")
)

// Config says where the authority lives and for whom it signs.
type Config struct {
	// StateDir holds root-key.pem and root-cert.pem. It is made if missing.
	StateDir string
	// TrustDomain of every identity that is signed.
	TrustDomain string
	// TTL is the life of a certificate whose request names none; 0 is 24 h.
	TTL time.Duration
	// MaxTTL bounds what a request may name; 0 is 90 days.
	MaxTTL time.Duration
}

// CA signs. It is safe for concurrent use.
type CA struct {
	trustDomain string
	ttl, maxTTL time.Duration
	// now is what is signed with. Replace puts another in its place.
	now atomic.Pointer[signing]
}

// New loads the root from the state directory, and makes one there if it has
// none.
//
// The key is written before its certificate. A crash between the two leaves a
// key that nothing was signed with, which the next start replaces; the other way
// round, a certificate without its key or with another's, is damage that New
// refuses to cover up with a root that no workload knows.
//
// root-cert.pem may hold further certificates after the signing root's own: they
// are trusted, too, so that a root can be exchanged.
func New(cfg Config) (*CA, error) {
	if cfg.StateDir == "" {
		return nil, errors.New("ca: Config.StateDir is missing")
	}
	c, err := unrooted(cfg)
	if err != nil {
		return nil, err
	}
	unlock, err := lockDir(cfg.StateDir)
	if err != nil {
		return nil, fmt.Errorf("ca: state directory: %w", err)
	}
	defer unlock()
	if err := c.load(cfg.StateDir); !errors.Is(err, errNoRoot) {
		if err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
		return c, nil
	}
	if err := createRoot(cfg.StateDir, cfg.TrustDomain); err != nil {
		return nil, fmt.Errorf("ca: making a root: %w", err)
	}
	if err := c.load(cfg.StateDir); err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	return c, nil
}

// unrooted checks what does not depend on where the root is from.
func unrooted(cfg Config) (*CA, error) {
	probe := identity.ID{TrustDomain: cfg.TrustDomain, Namespace: "n", ServiceAccount: "s"}
	if err := probe.Validate(); err != nil {
		return nil, fmt.Errorf("ca: Config.TrustDomain: %w", err)
	}
	c := &CA{trustDomain: cfg.TrustDomain, ttl: cfg.TTL, maxTTL: cfg.MaxTTL}
	if c.ttl == 0 {
		c.ttl = defaultTTL
	}
	if c.maxTTL == 0 {
		c.maxTTL = maxTTL
	}
	if c.ttl < 0 || c.ttl > c.maxTTL {
		return nil, fmt.Errorf("ca: Config.TTL %v is not within 0 and MaxTTL %v", c.ttl, c.maxTTL)
	}
	return c, nil
}

// errNoRoot: the directory holds no root that was ever in use.
var errNoRoot = errors.New("no root")

func (c *CA) load(dir string) error {
	certPath, keyPath := filepath.Join(dir, rootCertFile), filepath.Join(dir, rootKeyFile)
	certPEM, err := readFile(certPath)
	if errors.Is(err, fs.ErrNotExist) {
		return errNoRoot
	}
	if err != nil {
		return err
	}
	key, err := readKey(keyPath)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is there but its key %s is not: put the key back, or move the certificate away to begin with a new root that no workload trusts yet", certPath, keyPath)
	}
	if err != nil {
		return err
	}
	roots, err := parseCertificates(certPEM)
	if err != nil {
		return fmt.Errorf("%s: %w", certPath, err)
	}
	root := roots[0]
	if !key.PublicKey.Equal(root.PublicKey) {
		return fmt.Errorf("%s is not the key of %s", keyPath, certPath)
	}
	if !root.IsCA {
		return fmt.Errorf("%s: the first certificate may not sign others", certPath)
	}
	if now := time.Now(); now.After(root.NotAfter) || now.Before(root.NotBefore) {
		return fmt.Errorf("%s is valid from %s to %s only", certPath, root.NotBefore.Format(time.RFC3339), root.NotAfter.Format(time.RFC3339))
	}
	c.now.Store(newSigning(key, root, nil, roots))
	return nil
}

func createRoot(dir, trustDomain string) error {
	key, der, err := newRoot(trustDomain)
	if err != nil {
		return err
	}
	if err := writeKey(filepath.Join(dir, rootKeyFile), key); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, rootCertFile), encodeCertificate(der), 0o644)
}

// newRoot makes a key and its self-signed certificate.
func newRoot(trustDomain string) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{trustDomain}},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(rootTTL),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	return key, der, err
}

// RootPEM returns the certificates that workloads are to trust.
func (c *CA) RootPEM() []byte { return slices.Clone(c.now.Load().bundlePEM) }

// Roots returns the same as a pool.
func (c *CA) Roots() *x509.CertPool { return c.now.Load().bundle.Clone() }

// TrustDomain returns that of the identities that are signed.
func (c *CA) TrustDomain() string { return c.trustDomain }

// Sign answers a certificate request in PEM with a chain in PEM, leaf first and
// root last. id is who asks, authenticated by the caller. A ttl of 0 is the
// configured one; a longer one than allowed is cut.
//
// Errors wrap [ErrRequest] or [ErrIdentity] if it is the request's fault.
func (c *CA) Sign(csrPEM []byte, id identity.ID, ttl time.Duration) ([][]byte, error) {
	if err := id.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIdentity, err)
	}
	if id.TrustDomain != c.trustDomain {
		return nil, fmt.Errorf("%w: this authority signs for trust domain %q, not %q", ErrIdentity, c.trustDomain, id.TrustDomain)
	}
	csr, err := parseCSR(csrPEM)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	for _, u := range csr.URIs {
		if u.String() != id.String() {
			return nil, fmt.Errorf("%w: it names %.200q, you are %q", ErrIdentity, u.String(), id.String())
		}
	}
	if ttl <= 0 {
		ttl = c.ttl
	}
	s := c.now.Load()
	leaf, err := s.issue(&x509.Certificate{
		URIs:        []*url.URL{{Scheme: "spiffe", Host: id.TrustDomain, Path: "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, csr.PublicKey, min(ttl, c.maxTTL))
	if err != nil {
		return nil, err
	}
	chain := [][]byte{encodeCertificate(leaf)}
	for _, between := range s.between {
		chain = append(chain, encodeCertificate(between.Raw))
	}
	return append(chain, encodeCertificate(s.root.Raw)), nil
}

// issue signs template for ttl from now, with a random serial number, which
// crypto/x509 chooses.
func (s *signing) issue(template *x509.Certificate, public crypto.PublicKey, ttl time.Duration) ([]byte, error) {
	now := time.Now()
	if now.After(s.cert.NotAfter) {
		return nil, fmt.Errorf("ca: the signing certificate expired at %s", s.cert.NotAfter.Format(time.RFC3339))
	}
	template.NotBefore = now.Add(-clockSkew)
	template.NotAfter = now.Add(ttl)
	if template.NotAfter.After(s.cert.NotAfter) {
		template.NotAfter = s.cert.NotAfter
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	template.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, template, s.cert, public, s.key)
	if err != nil {
		return nil, fmt.Errorf("ca: signing: %w", err)
	}
	return der, nil
}

// parseCSR reads a request and checks that whoever made it holds the key, and
// that the key is strong enough.
func parseCSR(csrPEM []byte) (*x509.CertificateRequest, error) {
	if len(csrPEM) > maxCSR {
		return nil, fmt.Errorf("%d bytes are more than %d", len(csrPEM), maxCSR)
	}
	block, _ := pem.Decode(csrPEM)
	if block == nil || block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
		return nil, errors.New("no certificate request in PEM form")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	switch key := csr.PublicKey.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return nil, fmt.Errorf("RSA key of %d bits; %d to %d are accepted", bits, minRSABits, maxRSABits)
		}
	case *ecdsa.PublicKey:
		if bits := key.Curve.Params().BitSize; bits < elliptic.P256().Params().BitSize {
			return nil, fmt.Errorf("ECDSA key of %d bits; P-256 or longer is accepted", bits)
		}
	default:
		return nil, fmt.Errorf("key of type %s; RSA and ECDSA are accepted", csr.PublicKeyAlgorithm)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("its signature is not by its key: %w", err)
	}
	return csr, nil
}

func encodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a %q block among certificates", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate in PEM form")
	}
	return certs, nil
}
