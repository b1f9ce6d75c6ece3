package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"net"
	"slices"
	"sync"
	"time"
)

// ServerNames are the names by which workloads reach the control plane: Istio's,
// so that existing proxies find it, ours, and this machine's.
func ServerNames(clusterDomain string) []string {
	var names []string
	for _, service := range []string{"istiod.istio-system", "heddled.istio-system"} {
		names = append(names, service+".svc", service+".svc."+clusterDomain)
	}
	return append(names, "localhost", "127.0.0.1", "::1")
}

// ServerCertificate is the control plane's own certificate. It renews itself
// when it is asked for after half of its life, so it needs no goroutine.
type ServerCertificate struct {
	ca    *CA
	names []string

	mu sync.Mutex // guards following
	// current is made at the first use, and again when its signing is replaced.
	current *tls.Certificate
	by      *signing
	renewAt time.Time
}

// ServerCertificate makes the certificate for names, which are DNS names and IP
// addresses.
func (c *CA) ServerCertificate(names []string) *ServerCertificate {
	return &ServerCertificate{ca: c, names: slices.Clone(names)}
}

// GetCertificate is for tls.Config.
func (s *ServerCertificate) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, by := time.Now(), s.ca.now.Load()
	if s.current != nil && s.by == by && now.Before(s.renewAt) {
		return s.current, nil
	}
	cert, err := s.issue(by)
	if err != nil {
		if s.current != nil && now.Before(s.current.Leaf.NotAfter) {
			return s.current, nil
		}
		return nil, err
	}
	s.current, s.by = cert, by
	// Round strips the monotonic reading: what counts is the calendar.
	s.renewAt = now.Round(0).Add(cert.Leaf.NotAfter.Sub(now) / 2)
	return cert, nil
}

func (s *ServerCertificate) issue(by *signing) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, name := range s.names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := by.issue(template, &key.PublicKey, s.ca.ttl)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	chain := [][]byte{der}
	for _, c := range by.between {
		chain = append(chain, c.Raw)
	}
	return &tls.Certificate{Certificate: append(chain, by.root.Raw), PrivateKey: key, Leaf: leaf}, nil
}

// ServerTLS is the configuration of the control plane's port for workloads: they
// may show a certificate of this authority, and prove themselves by token if
// they have none yet.
func (c *CA) ServerTLS(names []string) *tls.Config {
	base := &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: c.ServerCertificate(names).GetCertificate,
		ClientAuth:     tls.VerifyClientCertIfGiven,
		ClientCAs:      c.Roots(),
		NextProtos:     []string{"h2"},
		// Streams live long; a session store would only be one more thing that
		// remembers who a client was.
		SessionTicketsDisabled: true,
	}
	// Roots may be replaced; a handshake goes by those of its time.
	first := c.now.Load()
	out := base.Clone()
	out.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		now := c.now.Load()
		if now == first {
			return nil, nil // as given
		}
		later := base.Clone()
		later.ClientCAs = now.bundle
		return later, nil
	}
	return out
}
