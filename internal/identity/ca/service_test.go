package ca

import (
	"context"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/heddle-mesh/heddle/api/security"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/meshtest/certs"
)

// result is one OnResult call.
type result struct {
	id   identity.ID
	code codes.Code
}

// serve runs the certificate service as heddled does and returns a dialler.
func serve(t *testing.T, c *CA, tokens TokenVerifier, creds credentials.TransportCredentials) (func(credentials.TransportCredentials) *grpc.ClientConn, <-chan result) {
	t.Helper()
	results := make(chan result, 16)
	s, err := NewService(ServiceConfig{
		CA:            c,
		Authenticator: FirstOf(PeerCertificate(domain), Bearer(tokens, domain)),
		OnResult:      func(id identity.ID, err error) { results <- result{id, status.Code(err)} },
	})
	if err != nil {
		t.Fatal(err)
	}
	l := bufconn.Listen(1 << 16)
	server := grpc.NewServer(grpc.Creds(creds))
	security.Register(server, s)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return func(creds credentials.TransportCredentials) *grpc.ClientConn {
		cc, err := grpc.NewClient("passthrough:///istiod.istio-system.svc", grpc.WithTransportCredentials(creds),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := cc.Close(); err != nil {
				t.Error(err)
			}
		})
		return cc
	}, results
}

func bearer(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

func TestServiceOverTLSWithToken(t *testing.T) {
	c := newCA(t)
	issuer, verifier := newIssuer(t)
	dial, results := serve(t, c, verifier, credentials.NewTLS(c.ServerTLS(ServerNames("cluster.local"))))
	cc := dial(credentials.NewTLS(&tls.Config{RootCAs: c.Roots()}))
	key := ecKey(t, elliptic.P256())
	resp, err := security.CreateCertificate(bearer(t.Context(), issue(t, issuer, 0)), cc, &security.CertificateRequest{
		Csr: string(request(t, key, named(t, reviews.String()))), ValidityDuration: 3600,
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.CertChain) != 2 {
		t.Fatalf("%d certificates", len(resp.CertChain))
	}
	leaf := parse(t, []byte(resp.CertChain[0]))[0]
	if leaf.URIs[0].String() != reviews.String() || time.Until(leaf.NotAfter) > time.Hour {
		t.Errorf("certificate for %v until %v", leaf.URIs, leaf.NotAfter)
	}
	if got := <-results; got != (result{reviews, codes.OK}) {
		t.Errorf("counted as %+v", got)
	}
}

func TestServiceOverTLSWithCertificate(t *testing.T) {
	c := newCA(t)
	_, verifier := newIssuer(t)
	dial, _ := serve(t, c, verifier, credentials.NewTLS(c.ServerTLS(ServerNames("cluster.local"))))
	key := ecKey(t, elliptic.P256())
	csr := request(t, key, named(t, reviews.String()))
	chain, err := c.Sign(csr, reviews, 0)
	if err != nil {
		t.Fatal(err)
	}
	own := &tls.Config{RootCAs: c.Roots(), Certificates: []tls.Certificate{{Certificate: [][]byte{parse(t, chain[0])[0].Raw}, PrivateKey: key}}}
	if _, err := security.CreateCertificate(t.Context(), dial(credentials.NewTLS(own)), &security.CertificateRequest{Csr: string(csr)}); err != nil {
		t.Error(err)
	}
	other := string(request(t, key, named(t, "spiffe://cluster.local/ns/default/sa/ratings")))
	if _, err := security.CreateCertificate(t.Context(), dial(credentials.NewTLS(own)), &security.CertificateRequest{Csr: other}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("for another: %v", err)
	}

	// A certificate of somebody else's root does not even get a connection.
	foreign := certs.New(t, domain).Material("default", "reviews")
	own = &tls.Config{RootCAs: c.Roots(), GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return foreign.Certificate, nil }}
	if _, err := security.CreateCertificate(t.Context(), dial(credentials.NewTLS(own)), &security.CertificateRequest{Csr: string(csr)}); status.Code(err) != codes.Unavailable {
		t.Errorf("with a foreign certificate: %v", err)
	}
}

func TestServiceRefuses(t *testing.T) {
	c := newCA(t)
	issuer, verifier := newIssuer(t)
	dial, results := serve(t, c, verifier, insecure.NewCredentials())
	cc := dial(insecure.NewCredentials())
	key := ecKey(t, elliptic.P256())
	good := string(request(t, key, named(t, reviews.String())))
	impersonate, err := structpb.NewStruct(map[string]any{"ImpersonatedIdentity": "spiffe://cluster.local/ns/default/sa/ratings"})
	if err != nil {
		t.Fatal(err)
	}
	token := issue(t, issuer, 0)
	for name, tt := range map[string]struct {
		ctx     context.Context
		req     *security.CertificateRequest
		code    codes.Code
		message string
	}{
		"no token":       {t.Context(), &security.CertificateRequest{Csr: good}, codes.Unauthenticated, "no authorization metadata"},
		"bad token":      {bearer(t.Context(), "x.y.z"), &security.CertificateRequest{Csr: good}, codes.Unauthenticated, "malformed token"},
		"two tokens":     {bearer(bearer(t.Context(), token), token), &security.CertificateRequest{Csr: good}, codes.Unauthenticated, "more than one"},
		"basic":          {metadata.AppendToOutgoingContext(t.Context(), "authorization", "Basic "+token), &security.CertificateRequest{Csr: good}, codes.Unauthenticated, "not a bearer"},
		"no request":     {bearer(t.Context(), token), &security.CertificateRequest{}, codes.InvalidArgument, "no certificate request in PEM form"},
		"weak key":       {bearer(t.Context(), token), &security.CertificateRequest{Csr: string(request(t, ecKey(t, elliptic.P224()), named(t)))}, codes.InvalidArgument, "224 bits"},
		"for another":    {bearer(t.Context(), token), &security.CertificateRequest{Csr: string(request(t, key, named(t, "spiffe://cluster.local/ns/default/sa/ratings")))}, codes.PermissionDenied, `it names "spiffe://cluster.local/ns/default/sa/ratings", you are "spiffe://cluster.local/ns/default/sa/reviews"`},
		"in the name of": {bearer(t.Context(), token), &security.CertificateRequest{Csr: good, Metadata: impersonate}, codes.PermissionDenied, "another identity"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := security.CreateCertificate(tt.ctx, cc, tt.req)
			if status.Code(err) != tt.code || !strings.Contains(err.Error(), tt.message) {
				t.Errorf("%v, want %v with %q", err, tt.code, tt.message)
			}
			if got := <-results; got.code != tt.code || (got.id == identity.ID{}) != (tt.code == codes.Unauthenticated) {
				t.Errorf("counted as %+v", got)
			}
		})
	}
}

func TestServiceTakesAnyDuration(t *testing.T) {
	c := newCA(t)
	s, err := NewService(ServiceConfig{CA: c, Authenticator: AuthenticatorFunc(func(context.Context) (identity.ID, error) { return reviews, nil })})
	if err != nil {
		t.Fatal(err)
	}
	csr := string(request(t, ecKey(t, elliptic.P256()), named(t)))
	for asked, want := range map[int64]time.Duration{0: defaultTTL, -1: defaultTTL, math.MinInt64: defaultTTL, 60: time.Minute, math.MaxInt64: maxTTL} {
		resp, err := s.CreateCertificate(t.Context(), &security.CertificateRequest{Csr: csr, ValidityDuration: asked})
		if err != nil {
			t.Errorf("%d: %v", asked, err)
			continue
		}
		got := time.Until(parse(t, []byte(resp.CertChain[0]))[0].NotAfter)
		if got > want || got < want-10*time.Second {
			t.Errorf("%d: valid for %v, want %v", asked, got, want)
		}
	}
}

func TestServiceNeedsItsParts(t *testing.T) {
	if _, err := NewService(ServiceConfig{CA: newCA(t)}); err == nil {
		t.Error("without authenticator")
	}
	if _, err := NewService(ServiceConfig{Authenticator: FirstOf()}); err == nil {
		t.Error("without authority")
	}
}

func TestFirstOfDoesNotPassOverABadCredential(t *testing.T) {
	none := AuthenticatorFunc(func(context.Context) (identity.ID, error) { return identity.ID{}, ErrNoCredential })
	bad := AuthenticatorFunc(func(context.Context) (identity.ID, error) { return identity.ID{}, errors.New("forged") })
	good := AuthenticatorFunc(func(context.Context) (identity.ID, error) { return reviews, nil })
	for name, tt := range map[string]struct {
		all []Authenticator
		ok  bool
	}{
		"nobody": {nil, false}, "none": {[]Authenticator{none, none}, false}, "second": {[]Authenticator{none, good}, true},
		"bad first": {[]Authenticator{bad, good}, false}, "good first": {[]Authenticator{good, bad}, true},
	} {
		id, err := FirstOf(tt.all...).Authenticate(t.Context())
		if tt.ok != (err == nil && id == reviews) {
			t.Errorf("%s: %v, %v", name, id, err)
		}
	}
}

// A TLS layer that asks for certificates without verifying them must not make
// anybody who they claim to be.
func TestUnverifiedPeerCertificateIsWorthNothing(t *testing.T) {
	c := newCA(t)
	_, verifier := newIssuer(t)
	cfg := c.ServerTLS(ServerNames("cluster.local"))
	cfg.ClientAuth = tls.RequestClientCert
	dial, _ := serve(t, c, verifier, credentials.NewTLS(cfg))
	forged := certs.New(t, domain).Material("default", "reviews")
	cc := dial(credentials.NewTLS(&tls.Config{RootCAs: c.Roots(), GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return forged.Certificate, nil }}))
	_, err := security.CreateCertificate(t.Context(), cc, &security.CertificateRequest{})
	if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "not verified") {
		t.Errorf("%v", err)
	}
}

func TestPeerCertificateOfAnotherTrustDomain(t *testing.T) {
	c := newCA(t)
	_, verifier := newIssuer(t)
	foreign := certs.New(t, "elsewhere")
	cfg := c.ServerTLS(ServerNames("cluster.local"))
	cfg.ClientCAs = x509.NewCertPool()
	cfg.ClientCAs.AddCert(foreign.Certificate)
	dial, _ := serve(t, c, verifier, credentials.NewTLS(cfg))
	for name, m := range map[string]*identity.Material{
		"trust domain": foreign.Material("default", "reviews"),
		"single":       foreign.Issue(certs.Spec{URIs: []string{}}),
		"form":         foreign.Issue(certs.Spec{URIs: []string{"spiffe://cluster.local/reviews"}}),
	} {
		cc := dial(credentials.NewTLS(&tls.Config{RootCAs: c.Roots(), Certificates: []tls.Certificate{*m.Certificate}}))
		_, err := security.CreateCertificate(t.Context(), cc, &security.CertificateRequest{})
		if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
