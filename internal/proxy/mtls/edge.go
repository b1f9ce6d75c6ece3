package mtls

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// Secrets are keys, certificates and roots from the control plane, by name. A change
// acts on the next handshake; connections that are there stay. The zero value is
// empty.
type Secrets struct {
	current atomic.Pointer[map[string]*loaded]
}

// loaded is a secret that was read.
type loaded struct {
	plan        *plan.Secret
	certificate *tls.Certificate // nil in roots
	roots       *x509.CertPool
	revoked     []*x509.RevocationList
	authorities []*x509.Certificate
}

// Set replaces all secrets. One that can not be read keeps what it was before, and is
// named in the error.
func (s *Secrets) Set(all map[string]*plan.Secret) error {
	old := map[string]*loaded{}
	if m := s.current.Load(); m != nil {
		old = *m
	}
	next := make(map[string]*loaded, len(all))
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(all)) {
		before := old[name]
		if before != nil && before.plan == all[name] {
			next[name] = before
			continue
		}
		l, err := load(all[name])
		if err != nil {
			errs = append(errs, fmt.Errorf("secret %s: %w", name, err))
			if l = before; l == nil {
				continue
			}
		}
		next[name] = l
	}
	s.current.Store(&next)
	return errors.Join(errs...)
}

func (s *Secrets) get(name string) *loaded {
	if m := s.current.Load(); m != nil {
		return (*m)[name]
	}
	return nil
}

// load reads PEM. Errors do not quote it.
func load(p *plan.Secret) (*loaded, error) {
	l := &loaded{plan: p}
	if len(p.Roots) == 0 {
		c, err := tls.X509KeyPair(p.Certificate, p.Key)
		if err != nil {
			return nil, errors.New("its certificate and key can not be read, or do not belong together")
		}
		c.OCSPStaple = p.OCSPStaple
		l.certificate = &c
		return l, nil
	}
	l.roots = x509.NewCertPool()
	for rest := p.Roots; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, errors.New("one of its roots is no certificate")
		}
		l.roots.AddCert(c)
		l.authorities = append(l.authorities, c)
	}
	if len(l.authorities) == 0 {
		return nil, errors.New("it has no roots")
	}
	for rest := p.CRL; len(bytes.TrimSpace(rest)) > 0; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			return nil, errors.New("its list of revoked certificates can not be read")
		}
		r, err := x509.ParseRevocationList(b.Bytes)
		if err != nil || !slices.ContainsFunc(l.authorities, func(c *x509.Certificate) bool { return r.CheckSignatureFrom(c) == nil }) {
			return nil, errors.New("its list of revoked certificates is by none of its roots")
		}
		l.revoked = append(l.revoked, r)
	}
	return l, nil
}

// EdgeConfig returns the accepting side's configuration of a gateway's server, whose
// certificate and roots are secrets. While they are not there, handshakes fail.
func EdgeConfig(secrets *Secrets, t *plan.ServerTLS) *tls.Config {
	e := &edge{secrets: secrets, tls: *t}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: e.forClient}
}

type edge struct {
	secrets *Secrets
	tls     plan.ServerTLS

	mu sync.Mutex
	// mu guards what current was made of.
	certificate, roots *loaded
	current            *tls.Config
}

func (e *edge) forClient(*tls.ClientHelloInfo) (*tls.Config, error) {
	certificate := e.secrets.get(e.tls.Certificate)
	if certificate == nil || certificate.certificate == nil {
		return nil, ErrUnknownSecret
	}
	var roots *loaded
	if e.tls.Roots != "" {
		if roots = e.secrets.get(e.tls.Roots); roots == nil || roots.roots == nil {
			return nil, ErrUnknownSecret
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.current != nil && e.certificate == certificate && e.roots == roots {
		return e.current, nil
	}
	c := &tls.Config{
		MinVersion: max(e.tls.MinVersion, tls.VersionTLS10), MaxVersion: e.tls.MaxVersion,
		CurvePreferences: curves(),
		Certificates:     []tls.Certificate{*certificate.certificate},
		NextProtos:       e.tls.ALPN,
	}
	if e.tls.MinVersion == 0 {
		c.MinVersion = tls.VersionTLS12
	}
	if roots != nil {
		c.ClientAuth = tls.RequestClientCert
		if e.tls.RequireCert {
			c.ClientAuth = tls.RequireAnyClientCert
		}
		c.ClientCAs = roots.roots // names them to the client
		c.VerifyConnection = func(cs tls.ConnectionState) error { return e.verify(roots, cs, time.Now()) }
	}
	// Tickets end with what they were made under: a client that was admitted under
	// other roots shows its certificate again.
	var key [32]byte
	if _, err := rand.Read(key[:]); err != nil {
		return nil, err
	}
	c.SetSessionTicketKeys([][32]byte{key})
	e.certificate, e.roots, e.current = certificate, roots, c
	return c, nil
}

// verify judges a client's certificate, which need not name a workload.
func (e *edge) verify(roots *loaded, cs tls.ConnectionState, now time.Time) error {
	chain := cs.PeerCertificates
	switch {
	case len(chain) == 0 && !e.tls.RequireCert:
		return nil
	case len(chain) == 0:
		return ErrNoCertificate
	case len(chain) > maxChain:
		return ErrLongChain
	}
	o := x509.VerifyOptions{Roots: roots.roots, Intermediates: x509.NewCertPool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, c := range chain[1:] {
		o.Intermediates.AddCert(c)
	}
	if _, err := chain[0].Verify(o); err != nil {
		return reasonOf(err)
	}
	for _, list := range roots.revoked {
		for _, c := range chain {
			if bytes.Equal(c.RawIssuer, list.RawIssuer) && slices.ContainsFunc(list.RevokedCertificateEntries, func(r x509.RevocationListEntry) bool {
				return r.SerialNumber.Cmp(c.SerialNumber) == 0
			}) {
				return ErrRevoked
			}
		}
	}
	if names := e.tls.SubjectAltNames; len(names) > 0 && !slices.ContainsFunc(names, func(n string) bool {
		return slices.Contains(chain[0].DNSNames, n) || len(chain[0].URIs) == 1 && chain[0].URIs[0].String() == n
	}) {
		return ErrServerName
	}
	return nil
}
