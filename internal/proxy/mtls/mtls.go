// Package mtls secures the connections between sidecars: TLS 1.3 with both sides
// proved by SPIFFE certificates, and Istio's exchange of workload metadata that
// may come first on such a connection.
//
// A tls.Config is built once per listener chain or cluster and lives as long as
// the configuration does. Each handshake reads the workload's current material
// from an [identity.Source], so that a renewed certificate or a changed root
// takes effect at the next handshake and leaves open connections alone. While
// there is no valid material, handshakes fail: nothing falls back to plain text.
//
// A peer is accepted only if
//   - it presents a chain to one of the material's roots, for the right usage,
//   - its leaf has exactly one URI name, which is a SPIFFE id, and can not sign,
//   - and that id is one of those the configuration asks for.
//
// This is checked in tls.Config.VerifyConnection, which, unlike
// VerifyPeerCertificate, runs for resumed sessions too.
package mtls

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/plan"
)

const (
	// OwnCertificate and OwnRoots are the secret names that stand for the
	// workload's own identity, Istio's. No other secret has a source here.
	OwnCertificate = "default"
	OwnRoots       = "ROOTCA"

	// sessionsPerCluster bounds a cluster's store of resumable sessions. The
	// key is the SNI, of which a cluster has one, or else the address.
	sessionsPerCluster = 64

	// fullRecords keeps crypto/tls from cutting the first megabyte of a connection
	// into records of one packet each. That is for browsers far away, which can
	// show the first packet's worth while the second one is on its way.
	fullRecords = true
)

// curves puts the post-quantum hybrid first; the others are for peers without.
func curves() []tls.CurveID {
	return []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256}
}

// material returns the source's material if a handshake may use it.
func material(src identity.Source, now time.Time) (*identity.Material, error) {
	m := src.Current()
	// A pool that is nil would mean the operating system's roots.
	if m == nil || m.Certificate == nil || m.Certificate.Leaf == nil || m.Roots == nil {
		return nil, ErrNoIdentity
	}
	if now.After(m.Certificate.Leaf.NotAfter) {
		return nil, ErrOwnExpired
	}
	return m, nil
}

// ServerConfig returns the accepting side's configuration for t, to be used for
// any number of connections. Clients are asked for a certificate unless t.Roots
// is empty, and must send one if t.RequireCert is set; one that is sent is always
// verified.
//
// If none of the client's protocols is in t.ALPN, none is chosen and the
// handshake goes on, as in Envoy.
func ServerConfig(src identity.Source, t *plan.ServerTLS) *tls.Config {
	s := &server{src: src, tls: *t}
	s.tls.ALPN = slices.Clone(t.ALPN)
	s.tls.TrustDomains = slices.Clone(t.TrustDomains)
	return &tls.Config{MinVersion: s.minVersion(), DynamicRecordSizingDisabled: fullRecords, GetConfigForClient: s.forClient}
}

// server makes the configuration of a handshake, one pair per material.
type server struct {
	src identity.Source
	tls plan.ServerTLS

	mu      sync.Mutex // taken to build, not to read
	current atomic.Pointer[serverPair]
}

// serverPair is what one material's handshakes use: with the protocols, or
// without for clients that offer only others.
type serverPair struct {
	material      *identity.Material
	with, without *tls.Config
}

// minVersion: sidecars speak TLS 1.3 among themselves. A server that asks for no
// certificate serves clients outside of the mesh.
func (s *server) minVersion() uint16 {
	if s.tls.Roots == "" {
		return tls.VersionTLS12
	}
	return tls.VersionTLS13
}

func (s *server) forClient(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if s.tls.Certificate != OwnCertificate || s.tls.Roots != "" && s.tls.Roots != OwnRoots {
		return nil, ErrUnknownSecret
	}
	m, err := material(s.src, time.Now())
	if err != nil {
		return nil, err
	}
	pair := s.current.Load()
	if pair == nil || pair.material != m {
		if pair, err = s.build(m); err != nil {
			return nil, err
		}
	}
	if len(hello.SupportedProtos) == 0 || slices.ContainsFunc(hello.SupportedProtos, func(p string) bool {
		return slices.Contains(s.tls.ALPN, p)
	}) {
		return pair.with, nil
	}
	return pair.without, nil
}

// build makes the pair for m, once even if many handshakes ask at the same time.
func (s *server) build(m *identity.Material) (*serverPair, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if pair := s.current.Load(); pair != nil && pair.material == m {
		return pair, nil
	}
	without := &tls.Config{
		MinVersion:       s.minVersion(),
		CurvePreferences: curves(),
		Certificates:     []tls.Certificate{*m.Certificate},

		DynamicRecordSizingDisabled: fullRecords,
	}
	if s.tls.Roots != "" {
		// The two modes in which crypto/tls only collects: the judgement is
		// VerifyConnection's alone, with and without resumption.
		without.ClientAuth = tls.RequestClientCert
		if s.tls.RequireCert {
			without.ClientAuth = tls.RequireAnyClientCert
		}
		without.VerifyConnection = func(cs tls.ConnectionState) error { return s.verify(m, cs) }
	}
	// Tickets are of no use beyond this material: with a new key, a client that
	// was admitted under the old roots has to show its certificate again.
	var ticketKey [32]byte
	if _, err := rand.Read(ticketKey[:]); err != nil {
		return nil, err
	}
	without.SetSessionTicketKeys([][32]byte{ticketKey})
	with := without.Clone()
	with.NextProtos = s.tls.ALPN
	pair := &serverPair{material: m, with: with, without: without}
	s.current.Store(pair)
	return pair, nil
}

func (s *server) verify(m *identity.Material, cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 && !s.tls.RequireCert {
		return nil
	}
	id, err := verifyPeer(m.Roots, cs.PeerCertificates, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return err
	}
	if len(s.tls.TrustDomains) > 0 && !slices.Contains(s.tls.TrustDomains, id.trustDomain) {
		return refuse(ErrTrustDomain, id.uri)
	}
	return nil
}

// ClientConfig returns the dialling side's configuration for t, to be used for
// any number of connections to one cluster. The server must present one of
// t.SubjectAltNames, or, if there are none, any id that the roots sign for.
func ClientConfig(src identity.Source, t *plan.ClientTLS) *tls.Config {
	c := &client{src: src, tls: *t}
	c.tls.SubjectAltNames = slices.Clone(t.SubjectAltNames)
	return &tls.Config{
		MinVersion:       tls.VersionTLS13,
		CurvePreferences: curves(),
		ServerName:       t.SNI,
		NextProtos:       slices.Clone(t.ALPN),
		// crypto/tls would compare ServerName with the certificate's DNS names,
		// of which a workload's has none. VerifyConnection does all of its work.
		InsecureSkipVerify:   true,
		VerifyConnection:     c.verify,
		GetClientCertificate: c.certificate,
		ClientSessionCache:   &sessions{src: src},

		DynamicRecordSizingDisabled: fullRecords,
	}
}

type client struct {
	src identity.Source
	tls plan.ClientTLS
}

func (c *client) material() (*identity.Material, error) {
	if c.tls.Certificate != OwnCertificate || c.tls.Roots != OwnRoots {
		return nil, ErrUnknownSecret
	}
	return material(c.src, time.Now())
}

func (c *client) certificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	m, err := c.material()
	if err != nil {
		return nil, err
	}
	return m.Certificate, nil
}

func (c *client) verify(cs tls.ConnectionState) error {
	m, err := c.material()
	if err != nil {
		return err
	}
	id, err := verifyPeer(m.Roots, cs.PeerCertificates, x509.ExtKeyUsageServerAuth)
	if err != nil {
		return err
	}
	if len(c.tls.SubjectAltNames) > 0 && !slices.Contains(c.tls.SubjectAltNames, id.uri) {
		return refuse(ErrServerName, id.uri)
	}
	return nil
}

// sessions is a store of resumable sessions that forgets all when the material
// changes: a session carries the certificates of the handshake that began it, so
// that without this a renewed identity would not be shown to known servers.
type sessions struct {
	src identity.Source

	mu sync.Mutex // guards following
	// material the sessions in lru belong to.
	material *identity.Material
	lru      tls.ClientSessionCache
}

func (s *sessions) Get(key string) (*tls.ClientSessionState, bool) {
	return s.now().Get(key)
}

func (s *sessions) Put(key string, state *tls.ClientSessionState) {
	s.now().Put(key, state)
}

func (s *sessions) now() tls.ClientSessionCache {
	m := s.src.Current()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lru == nil || s.material != m {
		s.material, s.lru = m, tls.NewLRUClientSessionCache(sessionsPerCluster)
	}
	return s.lru
}

// PeerID returns the SPIFFE id of the other side of a connection made with a
// configuration of this package, or "" if the other side showed no certificate
// or the handshake is not complete.
func PeerID(cs tls.ConnectionState) string {
	if !cs.HandshakeComplete || len(cs.PeerCertificates) == 0 || len(cs.PeerCertificates[0].URIs) != 1 {
		return ""
	}
	return cs.PeerCertificates[0].URIs[0].String()
}
