package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// serverName is what the peers' certificates are for, beside the SPIFFE id.
const serverName = "mesh.local"

// Files of one certificate that the other proxies, both of a pair, and the
// generators show. It is of the same kind and by the same root as those that
// Heddle's proxies get from their authority.
const (
	certFile = "cert.pem"
	keyFile  = "key.pem"
	bothFile = "both.pem"
	rootFile = "root-cert.pem" // as the authority calls it
	signer   = "root-key.pem"
)

// writeCertificate has the authority in dir sign a certificate, into dir.
func writeCertificate(dir string) error {
	rootPair, err := tls.LoadX509KeyPair(filepath.Join(dir, rootFile), filepath.Join(dir, signer))
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		NotBefore:    now.Add(-time.Minute), NotAfter: now.Add(24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{{Scheme: "spiffe", Host: trustDomain, Path: "/ns/default/sa/other"}},
		DNSNames:    []string{serverName},
	}, rootPair.Leaf, key.Public(), rootPair.PrivateKey)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	for name, b := range map[string][]byte{certFile: certPEM, keyFile: keyPEM, bothFile: append(certPEM, keyPEM...)} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// clientTLS is for a generator that speaks to a proxy as another proxy does. It
// trusts whoever answers: what a client checks costs the proxy nothing.
func clientTLS(dir string) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, certFile), filepath.Join(dir, keyFile))
	if err != nil {
		return nil, fmt.Errorf("certificate of the generator: %w", err)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: serverName, InsecureSkipVerify: true,
		Certificates: []tls.Certificate{cert}, NextProtos: []string{"istio-http/1.1", "http/1.1"},
	}, nil
}
