package mtls

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// authority signs certificates of the outside world, which name hosts.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	next int64
}

func newAuthority(t *testing.T, name string) *authority {
	a := &authority{t: t, next: 1}
	a.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	a.cert, _ = x509.ParseCertificate(der)
	return a
}

func (a *authority) issue(name string) (certificate, key []byte, leaf *x509.Certificate) {
	a.next++
	k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{SerialNumber: big.NewInt(a.next), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &k.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf, _ = x509.ParseCertificate(der)
	private, _ := x509.MarshalPKCS8PrivateKey(k)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), leaf
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

func (a *authority) revoke(c *x509.Certificate) []byte {
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour),
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: c.SerialNumber, RevocationTime: time.Now()}}}, a.cert, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// greet opens a connection to a server with cfg and returns it with what it shows, or the server's error.
func greet(t *testing.T, cfg *tls.Config, client *tls.Config) (shown string, keep *tls.Conn, err error) {
	t.Helper()
	// Sockets have buffers: a refusal in TLS 1.3 comes when the client has finished.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	server := tls.Server(b, cfg)
	failed := make(chan error, 1)
	go func() {
		if err := server.Handshake(); err != nil {
			failed <- err
			b.Close()
			return
		}
		failed <- nil
		io.Copy(server, server)
	}()
	client.InsecureSkipVerify = true
	c := tls.Client(a, client)
	t.Cleanup(func() { a.Close(); b.Close() })
	clientErr := c.Handshake()
	if err := <-failed; err != nil {
		return "", nil, err
	}
	if clientErr != nil {
		return "", nil, clientErr
	}
	return c.ConnectionState().PeerCertificates[0].DNSNames[0], c, nil
}

func TestSecretsRotateAtTheNextHandshake(t *testing.T) {
	a := newAuthority(t, "a")
	var secrets Secrets
	cfg := EdgeConfig(&secrets, &plan.ServerTLS{Certificate: "kubernetes://shop", ALPN: []string{"http/1.1"}})
	if _, _, err := greet(t, cfg, &tls.Config{}); !errors.Is(err, ErrUnknownSecret) {
		t.Errorf("without the secret: %v", err)
	}
	set := func(certificate, key []byte) error {
		return secrets.Set(map[string]*plan.Secret{"kubernetes://shop": {Name: "kubernetes://shop", Certificate: certificate, Key: key}})
	}
	one, key, _ := a.issue("one")
	if err := set(one, key); err != nil {
		t.Fatal(err)
	}
	shown, open, err := greet(t, cfg, &tls.Config{})
	if err != nil || shown != "one" {
		t.Fatalf("%s %v", shown, err)
	}
	two, key2, _ := a.issue("two")
	if err := set(two, key); err == nil {
		t.Error("a certificate with another's key is taken")
	}
	if shown, _, err := greet(t, cfg, &tls.Config{}); err != nil || shown != "one" {
		t.Errorf("after a bad secret: %s %v", shown, err)
	}
	if err := set(two, key2); err != nil {
		t.Fatal(err)
	}
	if shown, _, err := greet(t, cfg, &tls.Config{}); err != nil || shown != "two" {
		t.Errorf("after a good secret: %s %v", shown, err)
	}
	echo := make([]byte, 2)
	if _, err := open.Write([]byte("hi")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(open, echo); err != nil || string(echo) != "hi" {
		t.Errorf("the connection that was open: %q %v", echo, err)
	}
}

func TestClientsOfAGateway(t *testing.T) {
	a, b := newAuthority(t, "a"), newAuthority(t, "b")
	certificate, key, _ := a.issue("shop")
	good, goodKey, _ := a.issue("me")
	other, otherKey, _ := a.issue("you")
	bad, badKey, gone := a.issue("me")
	foreign, foreignKey, _ := b.issue("me")
	pair := func(c, k []byte) []tls.Certificate {
		p, err := tls.X509KeyPair(c, k)
		if err != nil {
			t.Fatal(err)
		}
		return []tls.Certificate{p}
	}
	var secrets Secrets
	if err := secrets.Set(map[string]*plan.Secret{
		"c": {Name: "c", Certificate: certificate, Key: key}, "r": {Name: "r", Roots: a.pem(), CRL: a.revoke(gone)},
	}); err != nil {
		t.Fatal(err)
	}
	mutual := &plan.ServerTLS{Certificate: "c", Roots: "r", RequireCert: true, SubjectAltNames: []string{"me"}}
	optional := &plan.ServerTLS{Certificate: "c", Roots: "r"}
	for _, c := range []struct {
		name   string
		tls    *plan.ServerTLS
		client *tls.Config
		want   error
	}{
		{"its certificate", mutual, &tls.Config{Certificates: pair(good, goodKey)}, nil},
		{"another's", mutual, &tls.Config{Certificates: pair(other, otherKey)}, ErrServerName},
		{"a revoked one", mutual, &tls.Config{Certificates: pair(bad, badKey)}, ErrRevoked},
		{"of another authority", mutual, &tls.Config{GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair(foreign, foreignKey)[0], nil }}, ErrUntrusted},
		{"none, where one may be", optional, &tls.Config{}, nil},
		{"a bad one, where one may be", optional, &tls.Config{Certificates: pair(bad, badKey)}, ErrRevoked},
	} {
		if _, _, err := greet(t, EdgeConfig(&secrets, c.tls), c.client); !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if _, _, err := greet(t, EdgeConfig(&secrets, mutual), &tls.Config{}); err == nil {
		t.Error("none, where one must be, is accepted")
	}
	if _, _, err := greet(t, EdgeConfig(&secrets, &plan.ServerTLS{Certificate: "c", MinVersion: tls.VersionTLS13}), &tls.Config{MaxVersion: tls.VersionTLS12}); err == nil {
		t.Error("an old version is accepted")
	}
	if err := secrets.Set(map[string]*plan.Secret{"r": {Name: "r", Roots: b.pem(), CRL: a.revoke(gone)}}); err == nil {
		t.Error("a list of another authority's is taken")
	}
}
