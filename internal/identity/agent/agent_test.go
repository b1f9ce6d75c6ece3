package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	"github.com/heddle-mesh/heddle/api/security"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/ca"
	"github.com/heddle-mesh/heddle/internal/meshtest/certs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var reviews = identity.ID{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: "reviews"}

// record collects what the agent's goroutine does, for the test's to read.
type record struct {
	mu    sync.Mutex
	times []time.Time
}

func (r *record) add() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.times = append(r.times, time.Now())
	return len(r.times)
}

func (r *record) all() []time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.times)
}

type signFunc = func(ctx context.Context, csrPEM []byte) ([]string, error)

// signing answers by the authority.
func signing(authority *certs.CA, ttl time.Duration) signFunc {
	return func(_ context.Context, csr []byte) ([]string, error) { return authority.SignCSR(csr, reviews, ttl) }
}

// start runs an agent until the test ends.
func start(t *testing.T, roots []byte, sign signFunc, edit ...func(*Config)) *Agent {
	t.Helper()
	cfg := Config{ID: reviews, CSR: sign, RootPEM: roots, Log: slog.New(slog.DiscardHandler)}
	for _, e := range edit {
		e(&cfg)
	}
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return a
}

func TestFirstCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		authority := certs.New(t, "cluster.local")
		answer := make(chan struct{})
		var csr []byte
		a := start(t, authority.PEM(), func(_ context.Context, asked []byte) ([]string, error) {
			csr = asked
			<-answer
			return authority.SignCSR(asked, reviews, time.Hour)
		})
		synctest.Wait()
		select {
		case <-a.Ready():
			t.Error("ready before there is a certificate")
		default:
		}
		if a.Current() != nil {
			t.Error("material before there is a certificate")
		}
		close(answer)
		<-a.Ready()
		m := a.Current()
		if m == nil || m.ID != reviews || m.Certificate.Leaf.URIs[0].String() != reviews.String() {
			t.Fatalf("material = %+v", m)
		}
		// Peers have the root; sending it is a waste.
		if got := len(m.Certificate.Certificate); got != 1 || !bytes.Equal(m.Certificate.Certificate[0], m.Certificate.Leaf.Raw) {
			t.Errorf("%d certificates are sent", got)
		}
		if !bytes.Equal(m.RootPEM, authority.PEM()) {
			t.Errorf("roots = %s", m.RootPEM)
		}
		key, ok := m.Certificate.PrivateKey.(*ecdsa.PrivateKey)
		if !ok || key.Curve != elliptic.P256() || !key.PublicKey.Equal(m.Certificate.Leaf.PublicKey) {
			t.Errorf("key = %T", m.Certificate.PrivateKey)
		}
		block, _ := pem.Decode(csr)
		request, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if len(request.URIs) != 1 || request.URIs[0].String() != reviews.String() || request.CheckSignature() != nil {
			t.Errorf("request for %v", request.URIs)
		}
	})
}

func TestRenewalIsAtHalfLifeWithANewKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		authority := certs.New(t, "cluster.local")
		var attempts record
		a := start(t, authority.PEM(), func(ctx context.Context, csr []byte) ([]string, error) {
			attempts.add()
			return signing(authority, 24*time.Hour)(ctx, csr)
		})
		<-a.Ready()
		synctest.Wait()
		keys := make(map[string]bool)
		for range 20 {
			n := len(attempts.all())
			keys[string(a.Current().Certificate.Leaf.RawSubjectPublicKeyInfo)] = true
			for len(attempts.all()) == n {
				time.Sleep(time.Minute)
				synctest.Wait()
				if a.Current() == nil {
					t.Fatal("no material in between")
				}
			}
		}
		if len(keys) != 20 {
			t.Errorf("%d keys in 20 certificates", len(keys))
		}
		even, asked := true, attempts.all()
		for i := 1; i < len(asked); i++ {
			life := asked[i].Sub(asked[i-1])
			if life < 12*time.Hour*9/10-time.Second || life > 12*time.Hour*11/10 {
				t.Errorf("renewed after %v", life)
			}
			even = even && life == asked[1].Sub(asked[0])
		}
		if even {
			t.Error("no jitter")
		}
	})
}

func TestRenewalTime(t *testing.T) {
	now := time.Unix(0, 0)
	for _, tt := range []struct {
		life   time.Duration
		random float64
		want   time.Duration
	}{
		{24 * time.Hour, 0.5, 12 * time.Hour},
		{24 * time.Hour, 0, 648 * time.Minute},
		{24 * time.Hour, 1, 792 * time.Minute},
		{time.Millisecond, 0.5, shortestWait},
		{-time.Hour, 0.5, shortestWait},
	} {
		got := renewalTime(now, now.Add(tt.life), tt.random).Sub(now)
		if diff := got - tt.want; diff < -time.Microsecond || diff > time.Microsecond {
			t.Errorf("%v, %v: after %v, want %v", tt.life, tt.random, got, tt.want)
		}
	}
}

// Certificates that live two seconds, for ten minutes: at no moment is there no
// valid one.
func TestQuickRotationHasNoGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		authority := certs.New(t, "cluster.local")
		var renewals record
		a := start(t, authority.PEM(), signing(authority, 2*time.Second), func(c *Config) {
			c.OnAttempt = func(err error) {
				if err != nil {
					t.Error(err)
				}
				renewals.add()
			}
		})
		<-a.Ready()
		for range 6000 {
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
			m := a.Current()
			if m == nil {
				t.Fatalf("no material after %d renewals", len(renewals.all()))
			}
			if _, err := m.Certificate.Leaf.Verify(x509.VerifyOptions{Roots: m.Roots}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if n := len(renewals.all()); n < 500 {
			t.Errorf("%d renewals", n)
		}
	})
}

// logBuffer is a writer for one goroutine and a reader for another.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestAuthorityIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		authority := certs.New(t, "cluster.local")
		var away atomic.Bool
		var failures record
		log := new(logBuffer)
		a := start(t, authority.PEM(), func(ctx context.Context, csr []byte) ([]string, error) {
			if away.Load() {
				return nil, errors.New("connection refused")
			}
			return signing(authority, 24*time.Hour)(ctx, csr)
		}, func(c *Config) {
			c.Log = slog.New(slog.NewTextHandler(log, nil))
			c.OnAttempt = func(err error) {
				if err != nil {
					failures.add()
				}
			}
		})
		<-a.Ready()
		first := a.Current()
		expiry := first.Certificate.Leaf.NotAfter
		away.Store(true)

		// Until the last second the old material serves.
		time.Sleep(time.Until(expiry))
		synctest.Wait()
		if a.Current() != first {
			t.Error("the old material is not kept until its expiry")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if a.Current() != nil {
			t.Error("expired material is handed out")
		}
		failed := failures.all()
		if len(failed) < 20 {
			t.Fatalf("%d attempts", len(failed))
		}
		for i := 1; i < len(failed); i++ {
			wait := failed[i].Sub(failed[i-1])
			most := min(lastRetry, firstRetry<<min(i-1, 20))
			if wait > most || wait < most/2 {
				t.Errorf("attempt %d after %v, want %v to %v", i, wait, most/2, most)
			}
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := log.String(); !strings.Contains(got, "level=ERROR") || !strings.Contains(got, "certificate expired and not renewed") {
			t.Error("no alert after expiry")
		}

		away.Store(false)
		time.Sleep(lastRetry)
		synctest.Wait()
		if m := a.Current(); m == nil || m == first {
			t.Error("not recovered when the authority is back")
		}
	})
}

func TestAuthorityThatNeverAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		authority := certs.New(t, "cluster.local")
		calls := 0
		begin := time.Now()
		a := start(t, authority.PEM(), func(ctx context.Context, csr []byte) ([]string, error) {
			if calls++; calls == 1 {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return signing(authority, time.Hour)(ctx, csr)
		})
		<-a.Ready()
		if got := time.Since(begin); got < attemptTimeout || got > attemptTimeout+firstRetry {
			t.Errorf("second attempt succeeded after %v", got)
		}
	})
}

func TestRunEndsWithItsContext(t *testing.T) {
	authority := func(t *testing.T) *certs.CA { return certs.New(t, "cluster.local") }
	for name, sign := range map[string]func(t *testing.T) signFunc{
		"while asking": func(*testing.T) signFunc {
			return func(ctx context.Context, _ []byte) ([]string, error) { <-ctx.Done(); return nil, ctx.Err() }
		},
		"while waiting to ask again": func(*testing.T) signFunc {
			return func(context.Context, []byte) ([]string, error) { return nil, errors.New("away") }
		},
		"while all is well": func(t *testing.T) signFunc { return signing(authority(t), time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, err := New(Config{ID: reviews, CSR: sign(t), RootPEM: authority(t).PEM(), Log: slog.New(slog.DiscardHandler)})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- a.Run(ctx) }()
				time.Sleep(50 * time.Millisecond)
				synctest.Wait()
				at := time.Now()
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
				if took := time.Since(at); took != 0 {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

func certPEM(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

// leafFor signs the request's key with an authority, after an edit.
func leafFor(t *testing.T, authority *certs.CA, csrPEM []byte, id identity.ID, edit func(*x509.Certificate)) string {
	t.Helper()
	chain, err := authority.SignCSR(csrPEM, id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(chain[0]))
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		NotBefore: cert.NotBefore, NotAfter: cert.NotAfter, KeyUsage: cert.KeyUsage, ExtKeyUsage: cert.ExtKeyUsage, URIs: cert.URIs,
		SerialNumber: big.NewInt(1),
	}
	edit(template)
	der, err := x509.CreateCertificate(rand.Reader, template, authority.Certificate, cert.PublicKey, authority.Key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func TestBadAnswersAreNotUsed(t *testing.T) {
	authority, foreign := certs.New(t, "cluster.local"), certs.New(t, "cluster.local")
	ratings := identity.ID{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: "ratings"}
	same := func(*x509.Certificate) {}
	root := string(authority.PEM())
	for name, tt := range map[string]struct {
		answer func(csr []byte) []string
		want   string
	}{
		"nothing":     {func([]byte) []string { return nil }, "no certificate"},
		"empty texts": {func([]byte) []string { return []string{"", "\n"} }, "no certificate"},
		"text":        {func([]byte) []string { return []string{"sorry", root} }, "no certificate in PEM form"},
		"text after":  {func(csr []byte) []string { return []string{leafFor(t, authority, csr, reviews, same) + "x", root} }, "no certificate in PEM form"},
		"a request":   {func(csr []byte) []string { return []string{string(csr), root} }, "among certificates"},
		"no root":     {func(csr []byte) []string { return []string{leafFor(t, authority, csr, reviews, same)} }, "no root"},
		"root first":  {func(csr []byte) []string { return []string{root, leafFor(t, authority, csr, reviews, same)} }, "another key"},
		"another key": {func([]byte) []string {
			return []string{certPEM(authority.Material("default", "reviews").Certificate.Leaf), root}
		}, "another key"},
		"another name": {func(csr []byte) []string { return []string{leafFor(t, authority, csr, ratings, same), root} }, "ratings"},
		"no name": {func(csr []byte) []string {
			return []string{leafFor(t, authority, csr, reviews, func(c *x509.Certificate) { c.URIs = nil }), root}
		}, "names"},
		"two names": {func(csr []byte) []string {
			return []string{leafFor(t, authority, csr, reviews, func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }), root}
		}, "names"},
		"may sign": {func(csr []byte) []string {
			return []string{leafFor(t, authority, csr, reviews, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), root}
		}, "sign others"},
		"expired": {func(csr []byte) []string {
			return []string{leafFor(t, authority, csr, reviews, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), root}
		}, "expired"},
		"not yet valid": {func(csr []byte) []string {
			return []string{leafFor(t, authority, csr, reviews, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), root}
		}, "not yet valid"},
		"for servers only": {func(csr []byte) []string {
			return []string{leafFor(t, authority, csr, reviews, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }), root}
		}, "incompatible key usage"},
		"for clients only": {func(csr []byte) []string {
			return []string{leafFor(t, authority, csr, reviews, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }), root}
		}, "incompatible key usage"},
		"foreign authority": {func(csr []byte) []string {
			return []string{leafFor(t, foreign, csr, reviews, same), string(foreign.PEM())}
		}, "unknown authority"},
		"foreign, our root": {func(csr []byte) []string { return []string{leafFor(t, foreign, csr, reviews, same), root} }, "unknown authority"},
		"ours, foreign root": {func(csr []byte) []string {
			return []string{leafFor(t, authority, csr, reviews, same), string(foreign.PEM())}
		}, "not pinned"},
		"leaf for root": {func(csr []byte) []string { l := leafFor(t, authority, csr, reviews, same); return []string{l, l} }, "does not end with a root"},
		"endless": {func(csr []byte) []string {
			return []string{leafFor(t, authority, csr, reviews, same), strings.Repeat(root, maxCertificates)}
		}, "more than 10 certificates"},
		"huge": {func(csr []byte) []string {
			return []string{leafFor(t, authority, csr, reviews, same), strings.Repeat("\n", maxAnswer)}
		}, "bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := New(Config{
				ID: reviews, RootPEM: authority.PEM(), Log: slog.New(slog.DiscardHandler),
				CSR: func(_ context.Context, csr []byte) ([]string, error) { return tt.answer(csr), nil },
			})
			if err != nil {
				t.Fatal(err)
			}
			m, failure := a.attempt(t.Context())
			if failure == nil || m != nil || !strings.Contains(failure.Error(), tt.want) {
				t.Errorf("err = %v, want %q", failure, tt.want)
			}
		})
	}
}

func TestABadAnswerDoesNotReplaceGoodMaterial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		authority, foreign := certs.New(t, "cluster.local"), certs.New(t, "cluster.local")
		var calls record
		a := start(t, authority.PEM(), func(ctx context.Context, csr []byte) ([]string, error) {
			if calls.add() > 1 {
				return signing(foreign, 24*time.Hour)(ctx, csr)
			}
			return signing(authority, 24*time.Hour)(ctx, csr)
		})
		<-a.Ready()
		first := a.Current()
		time.Sleep(20 * time.Hour)
		synctest.Wait()
		if n := len(calls.all()); a.Current() != first || n < 10 {
			t.Errorf("material %p, want %p, after %d calls", a.Current(), first, n)
		}
	})
}

func TestSeveralPinnedRoots(t *testing.T) {
	old, fresh := certs.New(t, "cluster.local"), certs.New(t, "cluster.local")
	_, both := certs.Bundle(old, fresh)
	for name, authority := range map[string]*certs.CA{"old": old, "new": fresh} {
		a, err := New(Config{ID: reviews, RootPEM: both, Log: slog.New(slog.DiscardHandler), CSR: signing(authority, time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		m, err := a.attempt(t.Context())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for peer, ca := range map[string]*certs.CA{"old": old, "new": fresh} {
			if _, err := ca.Material("default", "a").Certificate.Leaf.Verify(x509.VerifyOptions{Roots: m.Roots}); err != nil {
				t.Errorf("signed by %s, peer by %s: %v", name, peer, err)
			}
		}
		if !bytes.Equal(m.RootPEM, both) {
			t.Errorf("%s: roots = %s", name, m.RootPEM)
		}
	}
}

// The new root comes with the old one's signature: whoever pinned the old one
// accepts the new one's workloads, and is accepted by those who pinned either.
func TestNewRootThatThePinnedOneVouchesFor(t *testing.T) {
	old, fresh := certs.New(t, "cluster.local"), certs.New(t, "cluster.local")
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"cluster.local"}},
		NotBefore: fresh.Certificate.NotBefore, NotAfter: fresh.Certificate.NotAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: fresh.Certificate.SubjectKeyId,
	}, old.Certificate, &fresh.Key.PublicKey, old.Key)
	if err != nil {
		t.Fatal(err)
	}
	cross := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	a, err := New(Config{ID: reviews, RootPEM: old.PEM(), Log: slog.New(slog.DiscardHandler), CSR: func(_ context.Context, csr []byte) ([]string, error) {
		chain, err := fresh.SignCSR(csr, reviews, time.Hour)
		return []string{chain[0], cross}, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	m, err := a.attempt(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, peer := range map[string]*certs.CA{"old": old, "new": fresh} {
		if _, err := peer.Material("default", "a").Certificate.Leaf.Verify(x509.VerifyOptions{Roots: m.Roots}); err != nil {
			t.Errorf("peer of the %s root: %v", name, err)
		}
		pool, _ := certs.Bundle(peer)
		between := x509.NewCertPool()
		for _, der := range m.Certificate.Certificate[1:] {
			c, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			between.AddCert(c)
		}
		if _, err := m.Certificate.Leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: between}); err != nil {
			t.Errorf("to a peer with the %s root: %v", name, err)
		}
	}
}

func TestNewChecksItsConfig(t *testing.T) {
	authority := certs.New(t, "cluster.local")
	for name, edit := range map[string]func(*Config){
		"id":         func(c *Config) { c.ID.Namespace = "a/b" },
		"csr":        func(c *Config) { c.CSR = nil },
		"log":        func(c *Config) { c.Log = nil },
		"no root":    func(c *Config) { c.RootPEM = nil },
		"text":       func(c *Config) { c.RootPEM = []byte("root") },
		"leaf":       func(c *Config) { c.RootPEM = []byte(certPEM(authority.Material("a", "b").Certificate.Leaf)) },
		"text after": func(c *Config) { c.RootPEM = append(c.RootPEM, "junk"...) },
	} {
		cfg := Config{ID: reviews, CSR: signing(authority, time.Hour), RootPEM: authority.PEM(), Log: slog.New(slog.DiscardHandler)}
		edit(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// The whole road: agent, gRPC, token, certificate service.
func TestAgainstTheAuthority(t *testing.T) {
	dir := t.TempDir() + "/state"
	authority, err := ca.New(ca.Config{StateDir: dir, TrustDomain: "cluster.local"})
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := ca.NewIssuer(dir + "/token-key.pem")
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := ca.NewVerifier(issuer.PublicKeyPath(), ca.Audience)
	if err != nil {
		t.Fatal(err)
	}
	var cluster atomic.Value
	service, err := ca.NewService(ca.ServiceConfig{CA: authority, Authenticator: ca.AuthenticatorFunc(func(ctx context.Context) (identity.ID, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		cluster.Store(strings.Join(md.Get("ClusterID"), ","))
		return ca.Bearer(verifier, "cluster.local").Authenticate(ctx)
	})})
	if err != nil {
		t.Fatal(err)
	}
	l := bufconn.Listen(1 << 16)
	server := grpc.NewServer()
	security.Register(server, service)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	defer func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	cc, err := grpc.NewClient("passthrough:///mem", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()

	ask := func(token func() (string, error)) (*identity.Material, error) {
		a, err := New(Config{ID: reviews, RootPEM: authority.RootPEM(), Log: slog.New(slog.DiscardHandler), CSR: Client(ClientConfig{
			Conn: cc, Token: token, ClusterID: "Kubernetes", TTL: time.Hour,
		})})
		if err != nil {
			t.Fatal(err)
		}
		return a.attempt(t.Context())
	}
	m, err := ask(func() (string, error) {
		token, err := issuer.Issue("default", "reviews", 0)
		return token + "\n", err // as a file may end
	})
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(m.Certificate.Leaf.NotAfter); left > time.Hour || left < 50*time.Minute {
		t.Errorf("valid for %v", left)
	}
	if got := cluster.Load(); got != "Kubernetes" {
		t.Errorf("cluster = %v", got)
	}
	for name, token := range map[string]func() (string, error){
		"of another": func() (string, error) { return issuer.Issue("default", "ratings", 0) },
		"unreadable": func() (string, error) { return "", errors.New("no such file") },
		"bad":        func() (string, error) { return "x", nil },
		"none":       nil,
	} {
		if _, err := ask(token); err == nil {
			t.Errorf("token %s: accepted", name)
		}
	}
}

// FuzzAccept: no answer panics the agent, and none is used that is not for its
// key and name.
func FuzzAccept(f *testing.F) {
	authority := certs.New(f, "cluster.local")
	a, err := New(Config{ID: reviews, RootPEM: authority.PEM(), Log: slog.New(slog.DiscardHandler), CSR: signing(authority, time.Hour)})
	if err != nil {
		f.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	csr, err := a.request(key)
	if err != nil {
		f.Fatal(err)
	}
	chain, err := authority.SignCSR(csr, reviews, time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(chain[0], chain[1])
	f.Add("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n", "")
	f.Fuzz(func(t *testing.T, first, last string) {
		m, err := a.accept(key, []string{first, last})
		if err == nil && (!key.PublicKey.Equal(m.Certificate.Leaf.PublicKey) || m.Certificate.Leaf.URIs[0].String() != reviews.String()) {
			t.Errorf("accepted %v", m.Certificate.Leaf.URIs)
		}
	})
}
