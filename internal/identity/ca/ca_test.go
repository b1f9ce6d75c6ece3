package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/test/bufconn"

	"github.com/heddle-mesh/heddle/internal/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const domain = "cluster.local"

var reviews = identity.ID{TrustDomain: domain, Namespace: "default", ServiceAccount: "reviews"}

func newCA(t testing.TB, edit ...func(*Config)) *CA {
	t.Helper()
	cfg := Config{StateDir: filepath.Join(t.TempDir(), "state"), TrustDomain: domain}
	for _, e := range edit {
		e(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func ecKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func request(t testing.TB, key crypto.Signer, template *x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func named(t testing.TB, uris ...string) *x509.CertificateRequest {
	t.Helper()
	template := new(x509.CertificateRequest)
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = append(template.URIs, u)
	}
	return template
}

func parse(t testing.TB, texts ...[]byte) []*x509.Certificate {
	t.Helper()
	certs, err := parseCertificates(bytes.Join(texts, nil))
	if err != nil {
		t.Fatal(err)
	}
	return certs
}

func TestLeafSaysWhoAskedAndNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCA(t)
		time.Sleep(time.Hour)
		key := ecKey(t, elliptic.P256())
		template := named(t, reviews.String())
		template.Subject.CommonName = "admin"
		template.DNSNames = []string{"istiod.istio-system.svc"}
		template.IPAddresses = []net.IP{net.IPv4(10, 0, 0, 1)}
		template.EmailAddresses = []string{"root@cluster.local"}
		chain, err := c.Sign(request(t, key, template), reviews, 0)
		if err != nil {
			t.Fatal(err)
		}
		if len(chain) != 2 || !bytes.Equal(chain[1], c.RootPEM()) {
			t.Fatalf("chain of %d, the last of which is not the root", len(chain))
		}
		leaf := parse(t, chain...)[0]
		if len(leaf.URIs) != 1 || leaf.URIs[0].String() != reviews.String() {
			t.Errorf("names = %v", leaf.URIs)
		}
		if len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) != 0 || leaf.Subject.String() != "" {
			t.Errorf("the request's names are in the certificate: %v %v %v %v", leaf.DNSNames, leaf.IPAddresses, leaf.EmailAddresses, leaf.Subject)
		}
		if leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment {
			t.Errorf("authority %v, key usage %b", leaf.IsCA, leaf.KeyUsage)
		}
		if !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}) {
			t.Errorf("extended key usage = %v", leaf.ExtKeyUsage)
		}
		if !key.PublicKey.Equal(leaf.PublicKey) {
			t.Error("another key")
		}
		now := time.Now()
		if got := now.Sub(leaf.NotBefore); got != 2*time.Minute {
			t.Errorf("valid since %v before now", got)
		}
		if got := leaf.NotAfter.Sub(now); got != 24*time.Hour {
			t.Errorf("valid for %v", got)
		}
		if leaf.SerialNumber.BitLen() < 64 {
			t.Errorf("serial number %v is not random", leaf.SerialNumber)
		}
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: c.Roots(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Error(err)
		}
		again, err := c.Sign(request(t, key, template), reviews, 0)
		if err != nil {
			t.Fatal(err)
		}
		if parse(t, again...)[0].SerialNumber.Cmp(leaf.SerialNumber) == 0 {
			t.Error("two certificates with one serial number")
		}
	})
}

func TestRequestForAnotherIdentityIsRefused(t *testing.T) {
	c := newCA(t)
	key := ecKey(t, elliptic.P256())
	for name, uris := range map[string][]string{
		"another account":   {"spiffe://cluster.local/ns/default/sa/ratings"},
		"another namespace": {"spiffe://cluster.local/ns/other/sa/reviews"},
		"another domain":    {"spiffe://td/ns/default/sa/reviews"},
		"own and another":   {reviews.String(), "spiffe://cluster.local/ns/default/sa/ratings"},
		"own with query":    {reviews.String() + "?"},
		"own, escaped":      {"spiffe://cluster.local/ns/default/sa/%72eviews"},
	} {
		t.Run(name, func(t *testing.T) {
			chain, err := c.Sign(request(t, key, named(t, uris...)), reviews, 0)
			if !errors.Is(err, ErrIdentity) || chain != nil {
				t.Errorf("%v", err)
			}
			if !strings.Contains(err.Error(), reviews.String()) {
				t.Errorf("the message does not say who asked: %v", err)
			}
		})
	}
	for name, uris := range map[string][]string{"own": {reviews.String()}, "none": nil, "own twice": {reviews.String(), reviews.String()}} {
		if _, err := c.Sign(request(t, key, named(t, uris...)), reviews, 0); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestIdentityIsChecked(t *testing.T) {
	c := newCA(t)
	csr := request(t, ecKey(t, elliptic.P256()), named(t))
	for _, id := range []identity.ID{
		{},
		{TrustDomain: "td", Namespace: "default", ServiceAccount: "reviews"},
		{TrustDomain: domain, Namespace: "default", ServiceAccount: "a/sa/b"},
		{TrustDomain: domain, Namespace: "", ServiceAccount: "b"},
		{TrustDomain: domain, Namespace: "default", ServiceAccount: "b?"},
	} {
		if _, err := c.Sign(csr, id, 0); !errors.Is(err, ErrIdentity) {
			t.Errorf("%+v: %v", id, err)
		}
	}
}

func TestRequestKeys(t *testing.T) {
	c := newCA(t)
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey := func(bits int) crypto.Signer {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	for name, tt := range map[string]struct {
		key crypto.Signer
		ok  bool
	}{
		"P-224":    {ecKey(t, elliptic.P224()), false},
		"P-256":    {ecKey(t, elliptic.P256()), true},
		"P-384":    {ecKey(t, elliptic.P384()), true},
		"P-521":    {ecKey(t, elliptic.P521()), true},
		"RSA 1024": {rsaKey(1024), false},
		"RSA 2047": {rsaKey(2047), false},
		"RSA 2048": {rsaKey(2048), true},
		"Ed25519":  {edKey, false},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.Sign(request(t, tt.key, named(t, reviews.String())), reviews, 0)
			if tt.ok && err != nil || !tt.ok && !errors.Is(err, ErrRequest) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestBadRequests(t *testing.T) {
	c := newCA(t)
	good := request(t, ecKey(t, elliptic.P256()), named(t, reviews.String()))
	block, _ := pem.Decode(good)
	forged := bytes.Clone(block.Bytes)
	forged[len(forged)-1] ^= 1
	for name, csr := range map[string][]byte{
		"nothing":         nil,
		"text":            []byte("please"),
		"DER":             block.Bytes,
		"a certificate":   c.RootPEM(),
		"cut":             pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: block.Bytes[:40]}),
		"trailing":        pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: append(bytes.Clone(block.Bytes), 0)}),
		"signature wrong": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: forged}),
		"too long":        append(bytes.Repeat([]byte("\n"), maxCSR), good...),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := c.Sign(csr, reviews, 0); !errors.Is(err, ErrRequest) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestTimeToLive(t *testing.T) {
	for name, tt := range map[string]struct {
		edit func(*Config)
		ask  time.Duration
		want time.Duration
	}{
		"default":           {func(*Config) {}, 0, 24 * time.Hour},
		"negative":          {func(*Config) {}, -time.Hour, 24 * time.Hour},
		"asked":             {func(*Config) {}, time.Hour, time.Hour},
		"cut":               {func(*Config) {}, 1000 * time.Hour * 24, 90 * 24 * time.Hour},
		"configured":        {func(c *Config) { c.TTL = time.Minute }, 0, time.Minute},
		"configured to cut": {func(c *Config) { c.TTL, c.MaxTTL = time.Minute, time.Hour }, 2 * time.Hour, time.Hour},
		"not past the root": {func(c *Config) { c.MaxTTL = 2 * rootTTL }, 2 * rootTTL, rootTTL},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCA(t, tt.edit)
				chain, err := c.Sign(request(t, ecKey(t, elliptic.P256()), named(t)), reviews, tt.ask)
				if err != nil {
					t.Fatal(err)
				}
				if got := time.Until(parse(t, chain...)[0].NotAfter); got != tt.want {
					t.Errorf("valid for %v, want %v", got, tt.want)
				}
			})
		})
	}
	for _, edit := range []func(*Config){
		func(c *Config) { c.TTL = -1 }, func(c *Config) { c.TTL, c.MaxTTL = 2, 1 },
		func(c *Config) { c.TrustDomain = "" }, func(c *Config) { c.TrustDomain = "a/b" }, func(c *Config) { c.StateDir = "" },
	} {
		cfg := Config{StateDir: t.TempDir(), TrustDomain: domain}
		edit(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v is accepted", cfg)
		}
	}
}

func TestRootIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "state")
	cfg := Config{StateDir: dir, TrustDomain: domain}
	first, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, rootKeyFile): 0o600} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", path, got, want)
		}
	}
	second, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.RootPEM(), second.RootPEM()) {
		t.Error("another root after a restart")
	}
	chain, err := second.Sign(request(t, ecKey(t, elliptic.P256()), named(t)), reviews, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parse(t, chain...)[0].Verify(x509.VerifyOptions{Roots: first.Roots()}); err != nil {
		t.Errorf("signed after a restart: %v", err)
	}
	root := parse(t, first.RootPEM())[0]
	if got := root.NotAfter.Sub(root.NotBefore); got < rootTTL || !root.IsCA || root.Subject.Organization[0] != domain {
		t.Errorf("root for %v, authority %v, subject %v", got, root.IsCA, root.Subject)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 2 {
		t.Errorf("left behind: %v", entries)
	}
}

// The first start is cut after each of its steps; the next one must come up with
// a key and a certificate that belong together.
func TestCrashDuringTheFirstStart(t *testing.T) {
	complete := t.TempDir()
	if _, err := New(Config{StateDir: complete, TrustDomain: domain}); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(filepath.Join(complete, rootKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := os.ReadFile(filepath.Join(complete, rootCertFile))
	if err != nil {
		t.Fatal(err)
	}
	for name, files := range map[string]map[string][]byte{
		"directory only":      {},
		"empty new key":       {rootKeyFile + ".new": nil},
		"half a new key":      {rootKeyFile + ".new": key[:20]},
		"whole new key":       {rootKeyFile + ".new": key},
		"key":                 {rootKeyFile: key},
		"key, half a cert":    {rootKeyFile: key, rootCertFile + ".new": cert[:50]},
		"key, whole new cert": {rootKeyFile: key, rootCertFile + ".new": cert},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, data := range files {
				if err := os.WriteFile(filepath.Join(dir, file), data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			cfg := Config{StateDir: dir, TrustDomain: domain}
			c, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Sign(request(t, ecKey(t, elliptic.P256()), named(t)), reviews, 0); err != nil {
				t.Error(err)
			}
			if again, err := New(cfg); err != nil || !bytes.Equal(again.RootPEM(), c.RootPEM()) {
				t.Errorf("after another start: %v", err)
			}
		})
	}
}

func TestDamageIsNotCoveredUp(t *testing.T) {
	other := t.TempDir()
	if _, err := New(Config{StateDir: other, TrustDomain: domain}); err != nil {
		t.Fatal(err)
	}
	otherKey, err := os.ReadFile(filepath.Join(other, rootKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	write := func(file string, data []byte) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, file), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, tt := range map[string]struct {
		damage func(*testing.T, string)
		want   string
	}{
		"key gone": {func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, rootKeyFile)); err != nil {
				t.Fatal(err)
			}
		}, "put the key back"},
		"key of another":   {write(rootKeyFile, otherKey), "is not the key of"},
		"key empty":        {write(rootKeyFile, nil), "no EC private key"},
		"cert empty":       {write(rootCertFile, nil), "no certificate"},
		"cert is a key":    {write(rootCertFile, otherKey), "among certificates"},
		"cert is too long": {write(rootCertFile, bytes.Repeat([]byte("x"), maxFile+1)), "longer than"},
		"key readable": {func(t *testing.T, dir string) {
			if err := os.Chmod(filepath.Join(dir, rootKeyFile), 0o640); err != nil {
				t.Fatal(err)
			}
		}, "may be read by others"},
		"directory writable": {func(t *testing.T, dir string) {
			if err := os.Chmod(dir, 0o770); err != nil {
				t.Fatal(err)
			}
		}, "may be written to by others"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := Config{StateDir: filepath.Join(t.TempDir(), "state"), TrustDomain: domain}
			if _, err := New(cfg); err != nil {
				t.Fatal(err)
			}
			tt.damage(t, cfg.StateDir)
			if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("err = %v, want %q", err, tt.want)
			}
		})
	}
}

func TestStartsAtTheSameTimeAgreeOnARoot(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	roots := make([][]byte, 8)
	var wg sync.WaitGroup
	for i := range roots {
		wg.Go(func() {
			c, err := New(Config{StateDir: dir, TrustDomain: domain})
			if err != nil {
				t.Error(err)
				return
			}
			roots[i] = c.RootPEM()
		})
	}
	wg.Wait()
	for i := range roots {
		if !bytes.Equal(roots[i], roots[0]) {
			t.Errorf("start %d has another root", i)
		}
	}
}

func TestFurtherRootsAreTrusted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if _, err := New(Config{StateDir: dir, TrustDomain: domain}); err != nil {
		t.Fatal(err)
	}
	old := newCA(t)
	f, err := os.OpenFile(filepath.Join(dir, rootCertFile), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(old.RootPEM()); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	c, err := New(Config{StateDir: dir, TrustDomain: domain})
	if err != nil {
		t.Fatal(err)
	}
	if got := len(parse(t, c.RootPEM())); got != 2 {
		t.Errorf("%d roots", got)
	}
	chain, err := c.Sign(request(t, ecKey(t, elliptic.P256()), named(t)), reviews, 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(chain) != 2 || bytes.Equal(chain[1], old.RootPEM()) {
		t.Error("the chain does not end with the signing root")
	}
}

func TestExpiredRootIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := Config{StateDir: t.TempDir(), TrustDomain: domain}
		c, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(rootTTL + time.Second)
		if _, err := c.Sign(request(t, ecKey(t, elliptic.P256()), named(t)), reviews, 0); err == nil || errors.Is(err, ErrRequest) {
			t.Errorf("signing: %v", err)
		}
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "is valid from") {
			t.Errorf("starting: %v", err)
		}
	})
}

func TestServerCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCA(t)
		names := ServerNames("cluster.local")
		server := c.ServerTLS(names)
		shake := func(name string, roots *x509.CertPool) (*x509.Certificate, error) {
			l := bufconn.Listen(1 << 16)
			defer l.Close()
			var wg sync.WaitGroup
			wg.Go(func() {
				conn, err := l.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				_ = tls.Server(conn, server).Handshake() // the client's word counts
			})
			conn, err := l.Dial()
			if err != nil {
				t.Fatal(err)
			}
			client := tls.Client(conn, &tls.Config{RootCAs: roots, ServerName: name})
			err = client.Handshake()
			conn.Close()
			wg.Wait()
			if err != nil {
				return nil, err
			}
			return client.ConnectionState().PeerCertificates[0], nil
		}
		for _, name := range []string{
			"istiod.istio-system.svc", "istiod.istio-system.svc.cluster.local",
			"heddled.istio-system.svc", "heddled.istio-system.svc.cluster.local", "localhost", "127.0.0.1", "::1",
		} {
			if _, err := shake(name, c.Roots()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := shake("evil.istio-system.svc", c.Roots()); err == nil {
			t.Error("valid for any name")
		}
		if _, err := shake("localhost", newCA(t).Roots()); err == nil {
			t.Error("valid under another root")
		}

		first, err := shake("localhost", c.Roots())
		if err != nil {
			t.Fatal(err)
		}
		if len(first.URIs) != 0 || slices.Contains(first.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
			t.Error("the server's certificate is good for a workload")
		}
		time.Sleep(12*time.Hour - time.Second)
		if again, err := shake("localhost", c.Roots()); err != nil || !again.Equal(first) {
			t.Errorf("before half of its life: %v", err)
		}
		time.Sleep(2 * time.Second)
		renewed, err := shake("localhost", c.Roots())
		if err != nil || renewed.Equal(first) {
			t.Errorf("not renewed after half of its life: %v", err)
		}
		time.Sleep(1000 * time.Hour)
		if _, err := shake("localhost", c.Roots()); err != nil {
			t.Errorf("after a long silence: %v", err)
		}
	})
}

// FuzzSign: no request panics the authority, and none gets a certificate with
// another name than the caller's.
func FuzzSign(f *testing.F) {
	c := newCA(f)
	key := ecKey(f, elliptic.P256())
	f.Add(request(f, key, named(f, reviews.String())))
	f.Add(request(f, key, named(f, "spiffe://cluster.local/ns/default/sa/ratings")))
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\n"))
	f.Fuzz(func(t *testing.T, csr []byte) {
		chain, err := c.Sign(csr, reviews, 0)
		if err != nil {
			if !errors.Is(err, ErrRequest) && !errors.Is(err, ErrIdentity) {
				t.Errorf("blames itself: %v", err)
			}
			return
		}
		if leaf := parse(t, chain...)[0]; len(leaf.URIs) != 1 || leaf.URIs[0].String() != reviews.String() || leaf.IsCA {
			t.Errorf("signed %v", leaf.URIs)
		}
	})
}
