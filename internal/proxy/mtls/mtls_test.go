package mtls

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/test/bufconn"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/meshtest/certs"
	"github.com/heddle-mesh/heddle/internal/plan"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const domain = "cluster.local"

func serverTLS() *plan.ServerTLS {
	return &plan.ServerTLS{Certificate: "default", Roots: "ROOTCA", RequireCert: true, ALPN: []string{"istio-http/1.1", "istio"}}
}

func clientTLS(sans ...string) *plan.ClientTLS {
	return &plan.ClientTLS{Certificate: "default", Roots: "ROOTCA", SNI: "outbound_.9080_._.reviews.default.svc.cluster.local",
		SubjectAltNames: sans, ALPN: []string{"istio", "istio-http/1.1"}}
}

func spiffe(sa string) string { return "spiffe://" + domain + "/ns/default/sa/" + sa }

// dial makes the two ends of a connection.
type dial func(t *testing.T) (client, server net.Conn)

// pipe is in memory and, unlike net.Pipe, has a buffer: a server writes session
// tickets before it reads the client's last message.
func pipe(t *testing.T) (client, server net.Conn) {
	t.Helper()
	return accept(t, bufconn.Listen(1<<16), func(l net.Listener) (net.Conn, error) { return l.(*bufconn.Listener).Dial() })
}

func loopback(t *testing.T) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return accept(t, l, func(l net.Listener) (net.Conn, error) { return net.Dial("tcp", l.Addr().String()) })
}

func accept(t *testing.T, l net.Listener, dial func(net.Listener) (net.Conn, error)) (client, server net.Conn) {
	t.Helper()
	defer l.Close()
	var wg sync.WaitGroup
	var serverErr error
	wg.Go(func() { server, serverErr = l.Accept() })
	client, err := dial(l)
	if err != nil {
		l.Close()
	}
	wg.Wait()
	if err := errors.Join(err, serverErr); err != nil {
		t.Fatal(err)
	}
	return client, server
}

// link is a connection after an attempt at a handshake.
type link struct {
	client, server       *tls.Conn
	clientErr, serverErr error
}

// connect shakes hands and sends a byte each way, so that both sides know of the
// other's verdict and the client has its session ticket.
func connect(t *testing.T, d dial, client, server *tls.Config) *link {
	t.Helper()
	c, s := d(t)
	l := &link{client: tls.Client(c, client), server: tls.Server(s, server)}
	t.Cleanup(func() { c.Close(); s.Close() })
	deadline := time.Now().Add(time.Minute)
	c.SetDeadline(deadline)
	s.SetDeadline(deadline)
	var wg sync.WaitGroup
	wg.Go(func() {
		if l.serverErr = l.server.Handshake(); l.serverErr == nil {
			if _, l.serverErr = l.server.Write([]byte("s")); l.serverErr == nil {
				_, l.serverErr = io.ReadFull(l.server, make([]byte, 1))
			}
		}
		if l.serverErr != nil {
			s.Close()
		}
	})
	wg.Go(func() {
		if l.clientErr = l.client.Handshake(); l.clientErr == nil {
			if _, l.clientErr = io.ReadFull(l.client, make([]byte, 1)); l.clientErr == nil {
				_, l.clientErr = l.client.Write([]byte("c"))
			}
		}
		if l.clientErr != nil {
			c.Close()
		}
	})
	wg.Wait()
	return l
}

func mustConnect(t *testing.T, d dial, client, server *tls.Config) *link {
	t.Helper()
	l := connect(t, d, client, server)
	if l.clientErr != nil || l.serverErr != nil {
		t.Fatalf("handshake: client %v, server %v", l.clientErr, l.serverErr)
	}
	return l
}

func TestSidecarsKnowEachOther(t *testing.T) {
	for name, d := range map[string]dial{"pipe": pipe, "loopback": loopback} {
		t.Run(name, func(t *testing.T) {
			ca := certs.New(t, domain)
			l := mustConnect(t, d,
				ClientConfig(ca.Source("default", "productpage"), clientTLS(spiffe("other"), spiffe("reviews"))),
				ServerConfig(ca.Source("default", "reviews"), serverTLS()))
			cs, ss := l.client.ConnectionState(), l.server.ConnectionState()
			if cs.Version != tls.VersionTLS13 || cs.CurveID != tls.X25519MLKEM768 {
				t.Errorf("version %x, curve %v", cs.Version, cs.CurveID)
			}
			if got := PeerID(cs); got != spiffe("reviews") {
				t.Errorf("client sees %q", got)
			}
			if got := PeerID(ss); got != spiffe("productpage") {
				t.Errorf("server sees %q", got)
			}
			// The server's preference counts.
			if cs.NegotiatedProtocol != "istio-http/1.1" {
				t.Errorf("protocol = %q", cs.NegotiatedProtocol)
			}
			if ss.ServerName != clientTLS().SNI {
				t.Errorf("SNI = %q", ss.ServerName)
			}
		})
	}
}

// raw is a client or server that checks nothing, as an attacker's.
func raw(m *identity.Material) *tls.Config {
	cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"istio"}, ClientAuth: tls.RequestClientCert}
	if m != nil {
		cfg.Certificates = []tls.Certificate{*m.Certificate}
	}
	return cfg
}

// hostile are peer certificates that neither side may accept.
func hostile(t *testing.T, ca *certs.CA) map[string]struct {
	material *identity.Material
	want     Error
} {
	id := identity.ID{TrustDomain: domain, Namespace: "default", ServiceAccount: "reviews"}
	now := time.Now()
	issue := func(s certs.Spec) *identity.Material {
		s.ID = id
		return ca.Issue(s)
	}
	long := issue(certs.Spec{})
	for range maxChain {
		long.Certificate.Certificate = append(long.Certificate.Certificate, ca.Certificate.Raw)
	}
	// A workload signs for another with its own key, which the root did sign.
	workload := issue(certs.Spec{})
	forger := certs.New(t, domain)
	forger.Certificate, forger.Key = workload.Certificate.Leaf, workload.Certificate.PrivateKey.(*ecdsa.PrivateKey)
	forged := forger.Issue(certs.Spec{ID: id, Roots: []*certs.CA{ca}})
	forged.Certificate.Certificate = append(forged.Certificate.Certificate, ca.Certificate.Raw)
	return map[string]struct {
		material *identity.Material
		want     Error
	}{
		"foreign authority":     {certs.New(t, domain).Issue(certs.Spec{ID: id}), ErrUntrusted},
		"expired":               {issue(certs.Spec{NotAfter: now.Add(-time.Minute)}), ErrExpired},
		"not yet valid":         {issue(certs.Spec{NotBefore: now.Add(time.Hour)}), ErrExpired},
		"no name":               {issue(certs.Spec{URIs: []string{}, DNSNames: []string{"reviews"}}), ErrNotSPIFFE},
		"two names":             {issue(certs.Spec{URIs: []string{id.String(), "spiffe://cluster.local/ns/x/sa/y"}}), ErrNotSPIFFE},
		"same name twice":       {issue(certs.Spec{URIs: []string{id.String(), id.String()}}), ErrNotSPIFFE},
		"URL for name":          {issue(certs.Spec{URIs: []string{"https://cluster.local/ns/default/sa/reviews"}}), ErrNotSPIFFE},
		"name with query":       {issue(certs.Spec{URIs: []string{id.String() + "?x=1"}}), ErrNotSPIFFE},
		"name with port":        {issue(certs.Spec{URIs: []string{"spiffe://cluster.local:1/ns/default/sa/reviews"}}), ErrNotSPIFFE},
		"name escaped":          {issue(certs.Spec{URIs: []string{"spiffe://cluster.local/ns/default/sa/%72eviews"}}), ErrNotSPIFFE},
		"name with dots":        {issue(certs.Spec{URIs: []string{"spiffe://cluster.local/ns/x/../default/sa/reviews"}}), ErrNotSPIFFE},
		"trust domain as name":  {issue(certs.Spec{URIs: []string{"spiffe://cluster.local"}}), ErrNotSPIFFE},
		"authority's own":       {issue(certs.Spec{IsCA: true}), ErrSigner},
		"signed by a workload":  {forged, ErrUntrusted},
		"may sign":              {issue(certs.Spec{Edit: func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }}), ErrSigner},
		"usage code signing":    {issue(certs.Spec{Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}}), ErrUsage},
		"usage not for signing": {issue(certs.Spec{Edit: func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }}), ErrUsage},
		"chain too long":        {long, ErrLongChain},
	}
}

func TestServerRefusesClient(t *testing.T) {
	ca := certs.New(t, domain)
	for name, tt := range hostile(t, ca) {
		for _, mode := range []string{"strict", "permissive"} {
			t.Run(name+"/"+mode, func(t *testing.T) {
				p := serverTLS()
				p.RequireCert = mode == "strict"
				l := connect(t, loopback, raw(tt.material), ServerConfig(ca.Source("default", "reviews"), p))
				if !errors.Is(l.serverErr, tt.want) {
					t.Errorf("server: %v, want %v", l.serverErr, tt.want)
				}
				if got := Reason(l.clientErr); got != "TLS_error:remote_bad_certificate" {
					t.Errorf("client: %v, reason %q", l.clientErr, got)
				}
			})
		}
	}
}

// Names that crypto/x509 would not write, made by hand.
func TestHandmadeNamesAreRefused(t *testing.T) {
	ca := certs.New(t, domain)
	const tagURI, tagOther = 0x86, 0xa0
	uri := func(s string) []byte { return append([]byte{tagURI, byte(len(s))}, s...) }
	// otherName { 1.3.6.1.5.5.7.8.7, [0] UTF8String }
	other := func(s string) []byte {
		oid := []byte{0x06, 8, 0x2b, 6, 1, 5, 5, 7, 8, 7}
		value := append([]byte{0xa0, byte(len(s) + 2), 0x0c, byte(len(s))}, s...)
		return append([]byte{tagOther, byte(len(oid) + len(value))}, append(oid, value...)...)
	}
	for name, names := range map[string][]byte{
		"good":              uri(spiffe("reviews")), // the hand can write what is accepted
		"NUL":               uri(spiffe("reviews") + "\x00.evil"),
		"NUL in the domain": uri("spiffe://cluster.local\x00.evil/ns/default/sa/reviews"),
		"line break":        uri(spiffe("reviews") + "\n"),
		"not ASCII":         uri(spiffe("revi\xffews")),
		"other name":        other(spiffe("reviews")),
		"no name":           {},
		"cut":               {tagURI, 100, 's'},
	} {
		t.Run(name, func(t *testing.T) {
			m := ca.Material("default", "reviews")
			der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
				NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
				ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
				ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true,
					Value: append([]byte{0x30, byte(len(names))}, names...)}},
			}, ca.Certificate, m.Certificate.Leaf.PublicKey, ca.Key)
			if err != nil {
				t.Fatal(err)
			}
			peer := raw(nil)
			peer.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: m.Certificate.PrivateKey}, nil
			}
			peer.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return peer.GetCertificate(nil) }
			own := ca.Source("default", "a")
			l := connect(t, loopback, peer, ServerConfig(own, serverTLS()))
			if refused := strings.HasPrefix(Reason(l.serverErr), "TLS_error:"); refused != (name != "good") {
				t.Errorf("server: %v", l.serverErr)
			}
			l = connect(t, loopback, ClientConfig(own, clientTLS(spiffe("reviews"))), peer)
			if refused := strings.HasPrefix(Reason(l.clientErr), "TLS_error:"); refused != (name != "good") {
				t.Errorf("client: %v", l.clientErr)
			}
		})
	}
}

func TestClientRefusesServer(t *testing.T) {
	ca := certs.New(t, domain)
	for name, tt := range hostile(t, ca) {
		t.Run(name, func(t *testing.T) {
			l := connect(t, loopback, ClientConfig(ca.Source("default", "productpage"), clientTLS()), raw(tt.material))
			if !errors.Is(l.clientErr, tt.want) {
				t.Errorf("client: %v, want %v", l.clientErr, tt.want)
			}
			if got, want := Reason(l.clientErr), "TLS_error:"+strings.ReplaceAll(string(tt.want), " ", "_"); got != want {
				t.Errorf("reason = %q, want %q", got, want)
			}
		})
	}
}

func TestUsageIsOfTheRightSide(t *testing.T) {
	ca := certs.New(t, domain)
	id := identity.ID{TrustDomain: domain, Namespace: "default", ServiceAccount: "reviews"}
	onlyServer := ca.Issue(certs.Spec{ID: id, Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	onlyClient := ca.Issue(certs.Spec{ID: id, Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	mustConnect(t, loopback, ClientConfig(certs.NewSource(onlyClient), clientTLS()), ServerConfig(certs.NewSource(onlyServer), serverTLS()))

	l := connect(t, loopback, ClientConfig(ca.Source("default", "a"), clientTLS()), ServerConfig(certs.NewSource(onlyClient), serverTLS()))
	if !errors.Is(l.clientErr, ErrUsage) {
		t.Errorf("client: %v, want %v", l.clientErr, ErrUsage)
	}
	l = connect(t, loopback, ClientConfig(certs.NewSource(onlyServer), clientTLS()), ServerConfig(ca.Source("default", "a"), serverTLS()))
	if !errors.Is(l.serverErr, ErrUsage) {
		t.Errorf("server: %v, want %v", l.serverErr, ErrUsage)
	}
}

func TestClientAcceptsOnlyTheExpectedIdentity(t *testing.T) {
	ca := certs.New(t, domain)
	server := ServerConfig(ca.Source("default", "reviews"), serverTLS())
	for name, sans := range map[string][]string{
		"another":   {spiffe("ratings")},
		"prefix":    {spiffe("review")},
		"longer":    {spiffe("reviews2")},
		"pattern":   {"spiffe://cluster.local/ns/default/sa/.*"},
		"wildcard":  {"spiffe://*", "*"},
		"other dom": {"spiffe://cluster2.local/ns/default/sa/reviews"},
	} {
		t.Run(name, func(t *testing.T) {
			l := connect(t, loopback, ClientConfig(ca.Source("default", "productpage"), clientTLS(sans...)), server)
			if !errors.Is(l.clientErr, ErrServerName) {
				t.Errorf("client: %v, want %v", l.clientErr, ErrServerName)
			}
			if !strings.Contains(l.clientErr.Error(), spiffe("reviews")) {
				t.Errorf("error does not name who answered: %v", l.clientErr)
			}
			if got := Reason(l.clientErr); got != "TLS_error:peer_identity_not_expected" {
				t.Errorf("reason = %q", got)
			}
			if got := Reason(l.serverErr); got != "TLS_error:remote_bad_certificate" {
				t.Errorf("server's reason = %q (%v)", got, l.serverErr)
			}
		})
	}
}

func TestServerAcceptsOnlyItsTrustDomains(t *testing.T) {
	ca := certs.New(t, domain)
	foreign := ca.Issue(certs.Spec{ID: identity.ID{TrustDomain: "elsewhere.example", Namespace: "default", ServiceAccount: "a"}})
	for _, tt := range []struct {
		domains []string
		ok      bool
	}{{nil, true}, {[]string{domain}, false}, {[]string{"example"}, false}, {[]string{domain, "elsewhere.example"}, true}} {
		p := serverTLS()
		p.TrustDomains = tt.domains
		l := connect(t, loopback, ClientConfig(certs.NewSource(foreign), clientTLS()), ServerConfig(ca.Source("default", "reviews"), p))
		if tt.ok && (l.clientErr != nil || l.serverErr != nil) {
			t.Errorf("%q: client %v, server %v", tt.domains, l.clientErr, l.serverErr)
		}
		if !tt.ok && !errors.Is(l.serverErr, ErrTrustDomain) {
			t.Errorf("%q: server %v, want %v", tt.domains, l.serverErr, ErrTrustDomain)
		}
	}
}

func TestClientWithoutCertificate(t *testing.T) {
	ca := certs.New(t, domain)
	source := ca.Source("default", "reviews")

	l := connect(t, loopback, raw(nil), ServerConfig(source, serverTLS()))
	if l.serverErr == nil || Reason(l.clientErr) != "TLS_error:remote_certificate_required" {
		t.Errorf("strict: server %v, client %v", l.serverErr, l.clientErr)
	}

	p := serverTLS()
	p.RequireCert = false
	l = mustConnect(t, loopback, raw(nil), ServerConfig(source, p))
	if got := PeerID(l.server.ConnectionState()); got != "" {
		t.Errorf("permissive: peer %q", got)
	}

	// Without roots nobody is asked, not even who could answer.
	p.Roots = ""
	m := ca.Material("default", "a")
	l = mustConnect(t, loopback, raw(m), ServerConfig(source, p))
	if got := len(l.server.ConnectionState().PeerCertificates); got != 0 {
		t.Errorf("without roots: %d certificates", got)
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	ca := certs.New(t, domain)
	old := raw(ca.Material("default", "a"))
	old.MaxVersion = tls.VersionTLS12
	l := connect(t, loopback, old, ServerConfig(ca.Source("default", "reviews"), serverTLS()))
	if l.serverErr == nil {
		t.Error("a TLS 1.2 client was accepted")
	}
	l = connect(t, loopback, ClientConfig(ca.Source("default", "a"), clientTLS()), old)
	if got := Reason(l.clientErr); got != "TLS_error:remote_protocol_version_not_supported" {
		t.Errorf("a TLS 1.2 server: %v, reason %q", l.clientErr, got)
	}
}

func TestPeersWithoutPostQuantum(t *testing.T) {
	ca := certs.New(t, domain)
	for _, curve := range []tls.CurveID{tls.X25519, tls.CurveP256} {
		c := raw(ca.Material("default", "a"))
		c.CurvePreferences = []tls.CurveID{curve}
		l := mustConnect(t, loopback, c, ServerConfig(ca.Source("default", "reviews"), serverTLS()))
		if got := l.client.ConnectionState().CurveID; got != curve {
			t.Errorf("curve = %v, want %v", got, curve)
		}
	}
}

func TestNoMaterialNoHandshake(t *testing.T) {
	ca := certs.New(t, domain)
	whole := ca.Material("default", "a")
	noRoots, noLeaf := *whole, *whole
	noRoots.Roots = nil
	noLeaf.Certificate = &tls.Certificate{Certificate: whole.Certificate.Certificate, PrivateKey: whole.Certificate.PrivateKey}
	expired := ca.Issue(certs.Spec{ID: whole.ID, NotAfter: time.Now().Add(-time.Second)})
	for name, tt := range map[string]struct {
		material *identity.Material
		want     Error
	}{
		"none":     {nil, ErrNoIdentity},
		"no roots": {&noRoots, ErrNoIdentity},
		"no leaf":  {&noLeaf, ErrNoIdentity},
		"no pair":  {&identity.Material{Roots: whole.Roots}, ErrNoIdentity},
		"expired":  {expired, ErrOwnExpired},
	} {
		t.Run(name, func(t *testing.T) {
			l := connect(t, loopback, ClientConfig(ca.Source("default", "a"), clientTLS()), ServerConfig(certs.NewSource(tt.material), serverTLS()))
			if !errors.Is(l.serverErr, tt.want) || l.clientErr == nil {
				t.Errorf("server: %v, want %v; client: %v", l.serverErr, tt.want, l.clientErr)
			}
			l = connect(t, loopback, ClientConfig(certs.NewSource(tt.material), clientTLS()), ServerConfig(ca.Source("default", "a"), serverTLS()))
			if !errors.Is(l.clientErr, tt.want) || l.serverErr == nil {
				t.Errorf("client: %v, want %v; server: %v", l.clientErr, tt.want, l.serverErr)
			}
		})
	}
}

// A server that never asks for a certificate must not get a connection from a
// workload without identity either.
func TestNoMaterialAndNobodyAsks(t *testing.T) {
	ca := certs.New(t, domain)
	server := raw(ca.Material("default", "reviews"))
	server.ClientAuth = tls.NoClientCert
	l := connect(t, loopback, ClientConfig(certs.NewSource(nil), clientTLS()), server)
	if !errors.Is(l.clientErr, ErrNoIdentity) {
		t.Errorf("client: %v, want %v", l.clientErr, ErrNoIdentity)
	}
}

func TestUnknownSecretsFail(t *testing.T) {
	ca := certs.New(t, domain)
	good := ca.Source("default", "a")
	for _, p := range []*plan.ServerTLS{
		{Certificate: "kubernetes://shop", ALPN: []string{"istio"}},
		{Certificate: "", ALPN: []string{"istio"}},
		{Certificate: "default", Roots: "kubernetes://shop-cacert"},
	} {
		l := connect(t, loopback, ClientConfig(good, clientTLS()), ServerConfig(good, p))
		if !errors.Is(l.serverErr, ErrUnknownSecret) {
			t.Errorf("%+v: %v", p, l.serverErr)
		}
	}
	for _, p := range []*plan.ClientTLS{
		{Certificate: "file-cert:a~b", Roots: "ROOTCA"}, {Certificate: "default", Roots: "file-root:ca"},
		{Certificate: "default"}, {Roots: "ROOTCA"},
	} {
		l := connect(t, loopback, ClientConfig(good, p), ServerConfig(good, serverTLS()))
		if !errors.Is(l.clientErr, ErrUnknownSecret) {
			t.Errorf("%+v: %v", p, l.clientErr)
		}
	}
}

func TestProtocols(t *testing.T) {
	ca := certs.New(t, domain)
	source := ca.Source("default", "a")
	for _, tt := range []struct {
		server, client []string
		want           string
	}{
		{[]string{"istio-peer-exchange", "istio"}, []string{"istio", "istio-peer-exchange"}, "istio-peer-exchange"},
		{[]string{"istio"}, []string{"istio-peer-exchange", "istio"}, "istio"},
		{[]string{"istio"}, []string{"h2", "http/1.1"}, ""}, // goes on without
		{[]string{"istio"}, nil, ""},
		{nil, []string{"istio"}, ""},
	} {
		sp, cp := serverTLS(), clientTLS()
		sp.ALPN, cp.ALPN = tt.server, tt.client
		l := mustConnect(t, loopback, ClientConfig(source, cp), ServerConfig(source, sp))
		if got := l.server.ConnectionState().NegotiatedProtocol; got != tt.want {
			t.Errorf("server %q, client %q: %q, want %q", tt.server, tt.client, got, tt.want)
		}
	}
}

// counted wraps verification on both sides and notes the resumed ones.
func counted(t *testing.T, client, server *tls.Config) (c, s *tls.Config, verified func() (client, server int)) {
	var mu sync.Mutex
	var nc, ns int
	c = client.Clone()
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if cs.DidResume {
			mu.Lock()
			nc++
			mu.Unlock()
		}
		return client.VerifyConnection(cs)
	}
	s = &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		inner, err := server.GetConfigForClient(h)
		if err != nil {
			return nil, err
		}
		inner = inner.Clone()
		verify := inner.VerifyConnection
		inner.VerifyConnection = func(cs tls.ConnectionState) error {
			if cs.DidResume {
				mu.Lock()
				ns++
				mu.Unlock()
			}
			return verify(cs)
		}
		return inner, nil
	}}
	return c, s, func() (int, int) { mu.Lock(); defer mu.Unlock(); return nc, ns }
}

func TestResumedSessionsAreVerified(t *testing.T) {
	ca := certs.New(t, domain)
	client, server, verified := counted(t,
		ClientConfig(ca.Source("default", "productpage"), clientTLS(spiffe("reviews"))),
		ServerConfig(ca.Source("default", "reviews"), serverTLS()))
	mustConnect(t, loopback, client, server)
	l := mustConnect(t, loopback, client, server)
	if !l.client.ConnectionState().DidResume {
		t.Fatal("the second handshake did not resume")
	}
	if c, s := verified(); c != 1 || s != 1 {
		t.Errorf("verified %d times by the client, %d by the server; want 1, 1", c, s)
	}
	if got := PeerID(l.server.ConnectionState()); got != spiffe("productpage") {
		t.Errorf("server sees %q", got)
	}
	if got := PeerID(l.client.ConnectionState()); got != spiffe("reviews") {
		t.Errorf("client sees %q", got)
	}
}

// Two clusters with other expectations of the same server share nothing; but
// even with a stolen session store the expectation is checked.
func TestResumptionDoesNotBypassTheExpectedIdentity(t *testing.T) {
	ca := certs.New(t, domain)
	source := ca.Source("default", "productpage")
	server := ServerConfig(ca.Source("default", "reviews"), serverTLS())
	first := ClientConfig(source, clientTLS(spiffe("reviews")))
	second := ClientConfig(source, clientTLS(spiffe("ratings")))
	second.ClientSessionCache = first.ClientSessionCache
	mustConnect(t, loopback, first, server)
	if l := connect(t, loopback, second, server); !errors.Is(l.clientErr, ErrServerName) {
		t.Errorf("client: %v, want %v", l.clientErr, ErrServerName)
	}
}

func TestRenewalEndsResumption(t *testing.T) {
	ca := certs.New(t, domain)
	cs, ss := ca.Source("default", "productpage"), ca.Source("default", "reviews")
	client, server := ClientConfig(cs, clientTLS()), ServerConfig(ss, serverTLS())
	serial := func(l *link) (client, server string) {
		return l.server.ConnectionState().PeerCertificates[0].SerialNumber.String(), l.client.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	mustConnect(t, loopback, client, server)
	if l := mustConnect(t, loopback, client, server); !l.client.ConnectionState().DidResume {
		t.Fatal("no resumption before the renewal")
	}
	for name, source := range map[string]*certs.Source{"client": cs, "server": ss} {
		source.Set(ca.Material("default", source.Current().ID.ServiceAccount))
		l := mustConnect(t, loopback, client, server)
		if l.client.ConnectionState().DidResume {
			t.Errorf("%s renewed, and the session was resumed", name)
		}
		c, s := serial(l)
		if c != cs.Current().Certificate.Leaf.SerialNumber.String() || s != ss.Current().Certificate.Leaf.SerialNumber.String() {
			t.Errorf("%s renewed, and an old certificate was shown", name)
		}
		if l := mustConnect(t, loopback, client, server); !l.client.ConnectionState().DidResume {
			t.Errorf("%s renewed, and sessions are no longer resumed", name)
		}
	}
}

func TestSessionIsOfNoUseOnceTheRootIsGone(t *testing.T) {
	old, fresh := certs.New(t, domain), certs.New(t, domain)
	cs, ss := old.Source("default", "productpage"), old.Source("default", "reviews")
	client, server := ClientConfig(cs, clientTLS()), ServerConfig(ss, serverTLS())
	mustConnect(t, loopback, client, server)
	// The server leaves the old root; the client knows both and keeps its name.
	ss.Set(fresh.Material("default", "reviews"))
	m := *cs.Current()
	m.Roots, m.RootPEM = certs.Bundle(old, fresh)
	cs.Set(&m)
	for range 2 {
		if l := connect(t, loopback, client, server); !errors.Is(l.serverErr, ErrUntrusted) {
			t.Errorf("server: %v, want %v", l.serverErr, ErrUntrusted)
		}
	}
}

func TestRotationKeepsConnections(t *testing.T) {
	ca := certs.New(t, domain)
	cs, ss := ca.Source("default", "productpage"), ca.Source("default", "reviews")
	client, server := ClientConfig(cs, clientTLS(spiffe("reviews"))), ServerConfig(ss, serverTLS())
	l := mustConnect(t, loopback, client, server)
	for i := range 20 {
		cs.Set(ca.Material("default", "productpage"))
		ss.Set(ca.Material("default", "reviews"))
		text := bytes.Repeat([]byte{byte(i)}, 40_000)
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := l.client.Write(text); err != nil {
				t.Errorf("rotation %d: %v", i, err)
			}
		})
		got := make([]byte, len(text))
		if _, err := io.ReadFull(l.server, got); err != nil || !bytes.Equal(got, text) {
			t.Fatalf("rotation %d: %v", i, err)
		}
		wg.Wait()
		mustConnect(t, loopback, client, server)
	}
	cs.Set(nil)
	ss.Set(nil)
	if _, err := l.client.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(l.server, make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

// Roots change in four steps, workload by workload: trust the new one as well,
// sign by the new one, forget the old one. Neighbouring steps must get along.
func TestRootRotation(t *testing.T) {
	old, fresh := certs.New(t, domain), certs.New(t, domain)
	id := identity.ID{TrustDomain: domain, Namespace: "default", ServiceAccount: "a"}
	steps := []*identity.Material{
		old.Issue(certs.Spec{ID: id}),
		old.Issue(certs.Spec{ID: id, Roots: []*certs.CA{old, fresh}}),
		fresh.Issue(certs.Spec{ID: id, Roots: []*certs.CA{old, fresh}}),
		fresh.Issue(certs.Spec{ID: id}),
	}
	for i, c := range steps {
		for j, s := range steps {
			l := connect(t, loopback, ClientConfig(certs.NewSource(c), clientTLS()), ServerConfig(certs.NewSource(s), serverTLS()))
			if near := max(i, j)-min(i, j) <= 1; near != (l.clientErr == nil && l.serverErr == nil) {
				t.Errorf("steps %d and %d: client %v, server %v", i, j, l.clientErr, l.serverErr)
			}
		}
	}
}

func TestMaterialExpiresInPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := certs.New(t, domain)
		cs, ss := ca.Source("default", "a"), ca.Source("default", "b") // 24 hours
		client, server := ClientConfig(cs, clientTLS()), ServerConfig(ss, serverTLS())
		mustConnect(t, pipe, client, server)
		time.Sleep(24 * time.Hour)
		mustConnect(t, pipe, client, server)
		time.Sleep(time.Second + time.Nanosecond)
		l := connect(t, pipe, client, server)
		if !errors.Is(l.serverErr, ErrOwnExpired) {
			t.Errorf("server: %v, want %v", l.serverErr, ErrOwnExpired)
		}
		ss.Set(ca.Material("default", "b"))
		l = connect(t, pipe, client, server)
		if !errors.Is(l.clientErr, ErrOwnExpired) {
			t.Errorf("client: %v, want %v", l.clientErr, ErrOwnExpired)
		}
		cs.Set(ca.Material("default", "a"))
		mustConnect(t, pipe, client, server)
	})
}

func TestConfigIsBuiltOncePerMaterial(t *testing.T) {
	ca := certs.New(t, domain)
	source := ca.Source("default", "a")
	server := ServerConfig(source, serverTLS())
	hello := &tls.ClientHelloInfo{SupportedProtos: []string{"istio"}}
	const many = 16
	built := make([]*tls.Config, many)
	var wg sync.WaitGroup
	for i := range many {
		wg.Go(func() {
			var err error
			if built[i], err = server.GetConfigForClient(hello); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if slices.ContainsFunc(built, func(c *tls.Config) bool { return c != built[0] }) {
		t.Error("one material has more than one configuration")
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = server.GetConfigForClient(hello) }); n != 0 {
		t.Errorf("%v allocations per handshake", n)
	}
	source.Set(ca.Material("default", "a"))
	after, err := server.GetConfigForClient(hello)
	if err != nil {
		t.Fatal(err)
	}
	if after == built[0] {
		t.Error("the old material's configuration is used for the new one")
	}
}

func TestHandshakesWhileMaterialChanges(t *testing.T) {
	ca := certs.New(t, domain)
	cs, ss := ca.Source("default", "a"), ca.Source("default", "b")
	client, server := ClientConfig(cs, clientTLS(spiffe("b"))), ServerConfig(ss, serverTLS())
	stop := make(chan struct{})
	var changer, callers sync.WaitGroup
	changer.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				cs.Set(ca.Material("default", "a"))
				ss.Set(ca.Material("default", "b"))
			}
		}
	})
	for range 4 {
		callers.Go(func() {
			for range 10 {
				if l := connect(t, loopback, client, server); l.clientErr != nil || l.serverErr != nil {
					t.Errorf("client %v, server %v", l.clientErr, l.serverErr)
				}
			}
		})
	}
	callers.Wait()
	close(stop)
	changer.Wait()
}

func TestReason(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{io.EOF, ""},
		{&net.OpError{Op: "dial", Err: errors.New("connection refused")}, ""},
		{ErrNoIdentity, "TLS_error:no_own_certificate"},
		{refuse(ErrTrustDomain, "spiffe://x/y"), "TLS_error:peer_trust_domain_not_allowed"},
		{errors.New("tls: whatever it says next time"), "TLS_error:handshake_failed"},
		{tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}, "TLS_error:peer_does_not_speak_TLS"},
	} {
		if got := Reason(tt.err); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.err, got, tt.want)
		}
	}
}

func TestPlainTextPeerHasAReason(t *testing.T) {
	ca := certs.New(t, domain)
	c, s := loopback(t)
	defer c.Close()
	defer s.Close()
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = s.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) })
	err := tls.Client(c, ClientConfig(ca.Source("default", "a"), clientTLS())).Handshake()
	wg.Wait()
	if got := Reason(err); got != "TLS_error:peer_does_not_speak_TLS" {
		t.Errorf("%v: %q", err, got)
	}
}

func TestPeerIDOfAnUnfinishedHandshake(t *testing.T) {
	m := certs.New(t, domain).Material("default", "a")
	cs := tls.ConnectionState{PeerCertificates: []*x509.Certificate{m.Certificate.Leaf}}
	if got := PeerID(cs); got != "" {
		t.Errorf("peer = %q before the handshake is complete", got)
	}
}

// FuzzVerifyPeer: whatever a peer sends, verification ends without a panic, and
// nothing that the root did not sign gets through. The input is a list of edits
// to a good certificate, three bytes each, since keys differ from run to run; a
// certificate of the input's own comes along as the rest of the chain.
func FuzzVerifyPeer(f *testing.F) {
	ca := certs.New(f, domain)
	good := ca.Material("default", "a")
	f.Add([]byte{}, ca.Certificate.Raw)
	f.Add([]byte{0, 200, 1}, []byte{})
	f.Add([]byte{1, 10, 0xff, 0, 30, 2}, good.Certificate.Certificate[0])
	f.Fuzz(func(t *testing.T, edits, otherDER []byte) {
		der := bytes.Clone(good.Certificate.Certificate[0])
		for edit := range slices.Chunk(edits, 3) {
			if len(edit) == 3 {
				der[(int(edit[0])<<8|int(edit[1]))%len(der)] ^= edit[2]
			}
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		chain := []*x509.Certificate{leaf}
		if other, err := x509.ParseCertificate(otherDER); err == nil {
			chain = append(chain, other)
		}
		id, err := verifyPeer(good.Roots, chain, x509.ExtKeyUsageClientAuth)
		if err != nil {
			if _, ok := errors.AsType[Error](err); !ok || id != (peer{}) {
				t.Errorf("%v is not one of the stable errors, or came with %v", err, id)
			}
			return
		}
		if !bytes.Equal(leaf.RawTBSCertificate, good.Certificate.Leaf.RawTBSCertificate) || id.uri != good.ID.String() {
			t.Errorf("accepted a certificate that was never signed: %v", id)
		}
	})
}
