package cluster

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/ca"
	"github.com/heddle-mesh/heddle/internal/kubeapi"
	"github.com/heddle-mesh/heddle/internal/meshtest/apiserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests; none takes a tenth of it.
const patience = 30 * time.Second

var discard = slog.New(slog.DiscardHandler)

func clients(t *testing.T, api *apiserver.Server) kubeapi.Clients {
	t.Helper()
	c, err := kubeapi.New(api.Rest())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// run runs f until the test ends.
func run(t *testing.T, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("it ended with %v", err)
		}
	})
}

// eventually asks again until what is said holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: does not come", what)
		}
	}
}

// token has claims that nobody signed: the API server is the judge.
func token(t *testing.T, claims map[string]any) string {
	t.Helper()
	b, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	return "e30." + base64.RawURLEncoding.EncodeToString(b) + ".c2ln"
}

func TestTokensAreJudgedByTheAPIServer(t *testing.T) {
	soon := time.Now().Add(time.Hour).Unix()
	good := map[string]any{"aud": []string{"istio-ca"}, "exp": soon}
	status := func(change map[string]any) apiserver.Object {
		user := map[string]any{"username": "system:serviceaccount:shop:web", "groups": []string{"system:serviceaccounts"},
			"extra": map[string]any{podNameKey: []string{"web-1"}, podUIDKey: []string{"u"}}}
		out := map[string]any{"authenticated": true, "audiences": []string{"istio-ca"}, "user": user}
		for k, v := range change {
			if _, of := user[k]; of {
				user[k] = v
			} else {
				out[k] = v
			}
		}
		return out
	}
	for _, tt := range []struct {
		name   string
		token  string
		answer apiserver.Object
		want   string // in the error
		asks   int
	}{
		{"good", token(t, good), status(nil), "", 1},
		{"good, of one audience as text", token(t, map[string]any{"aud": "istio-ca", "exp": soon}), status(nil), "", 1},
		{"not authenticated", token(t, good), status(map[string]any{"authenticated": false}), "refuses", 1},
		{"with an error", token(t, good), status(map[string]any{"error": "no such pod"}), "no such pod", 1},
		{"for another audience, says the server", token(t, good), status(map[string]any{"audiences": []string{"api"}}), "audience", 1},
		{"of a user", token(t, good), status(map[string]any{"username": "jane"}), "service account", 1},
		{"of a user who is called like one", token(t, good), status(map[string]any{"groups": []string{"people"}}), "service account", 1},
		{"of a strange name", token(t, good), status(map[string]any{"username": "system:serviceaccount:a/b:c"}), "character", 1},
		{"bound to a pod by half", token(t, good), status(map[string]any{"extra": map[string]any{podNameKey: []string{"web-1"}}}), "by half", 1},
		{"expired", token(t, map[string]any{"aud": "istio-ca", "exp": 1}), status(nil), "expired", 0},
		{"without expiry", token(t, map[string]any{"aud": "istio-ca"}), status(nil), "expiry", 0},
		{"for another audience", token(t, map[string]any{"aud": "api", "exp": soon}), status(nil), "audience", 0},
		{"too long", strings.Repeat("x", maxToken+1), status(nil), "too long", 0},
		{"nonsense", "nonsense", status(nil), "three parts", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			api := apiserver.New(t)
			asked := 0
			api.React("authentication.k8s.io/v1/tokenreviews", func(sent apiserver.Object) (int, apiserver.Object) {
				asked++
				if spec := sent["spec"].(apiserver.Object); spec["token"] != tt.token || fmt.Sprint(spec["audiences"]) != "[istio-ca]" {
					t.Errorf("asked about %v", spec)
				}
				return http.StatusCreated, apiserver.Object{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": tt.answer}
			})
			tokens := NewTokens(clients(t, api), "istio-ca")
			for range 2 { // a good one is asked about once
				ns, sa, err := tokens.Verify(tt.token)
				switch {
				case tt.want == "" && (err != nil || ns != "shop" || sa != "web"):
					t.Errorf("got %q %q %v", ns, sa, err)
				case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
					t.Errorf("error %v, want %q", err, tt.want)
				}
			}
			want := tt.asks
			if tt.want != "" {
				want *= 2 // a bad one may be good the next time
			}
			if asked != want {
				t.Errorf("asked %d times, want %d", asked, want)
			}
			tokens.now = func() time.Time { return time.Now().Add(rememberToken) }
			if _, _, err := tokens.Verify(tt.token); tt.want == "" && (err != nil || asked != want+1) {
				t.Errorf("later: %v, asked %d times", err, asked)
			}
		})
	}
}

func TestTheAnswerAboutATokenIsForgottenWhenThereAreTooMany(t *testing.T) {
	tokens := NewTokens(kubeapi.Clients{}, "istio-ca")
	now := time.Now()
	for i := range maxRemembered + 10 {
		tokens.remember([32]byte{byte(i), byte(i >> 8), byte(i >> 16)}, verdict{until: now.Add(time.Minute)}, now)
	}
	if n := len(tokens.known); n > maxRemembered {
		t.Errorf("%d answers are remembered", n)
	}
}

func TestAccessToSecretsIsAskedForOnceAMinute(t *testing.T) {
	api := apiserver.New(t)
	asked := 0
	api.React("authorization.k8s.io/v1/subjectaccessreviews", func(sent apiserver.Object) (int, apiserver.Object) {
		asked++
		spec := sent["spec"].(apiserver.Object)
		of := spec["resourceAttributes"].(apiserver.Object)
		if of["resource"] != "secrets" || of["namespace"] != "edge" || of["verb"] != "list" {
			t.Errorf("asked about %v", of)
		}
		return http.StatusCreated, apiserver.Object{"status": apiserver.Object{"allowed": spec["user"] == "system:serviceaccount:edge:gateway"}}
	})
	a := NewAccess(clients(t, api))
	for range 2 {
		for who, want := range map[string]bool{"gateway": true, "app": false} {
			if may, err := a.MayReadSecrets(t.Context(), "edge", who); err != nil || may != want {
				t.Errorf("%s: %v %v", who, may, err)
			}
		}
	}
	if asked != 2 {
		t.Errorf("asked %d times", asked)
	}
	a.now = func() time.Time { return time.Now().Add(rememberAccess) }
	if _, err := a.MayReadSecrets(t.Context(), "edge", "app"); err != nil || asked != 3 {
		t.Errorf("a minute later: asked %d times, %v", asked, err)
	}
}

func open(t *testing.T, api *apiserver.Server, changed func()) *Authority {
	t.Helper()
	a, err := Open(t.Context(), AuthorityConfig{Clients: clients(t, api), Namespace: "istio-system", CA: ca.Config{TrustDomain: "td"}, Log: discard, OnChange: changed})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// signsFor returns the chain of a certificate that an authority signs, checked
// against the roots that it names.
func signsFor(t *testing.T, a *Authority) []*x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.Sign(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), identity.ID{TrustDomain: "td", Namespace: "n", ServiceAccount: "s"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out []*x509.Certificate
	between := x509.NewCertPool()
	for _, text := range chain {
		block, _ := pem.Decode(text)
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, c)
		between.AddCert(c)
	}
	if _, err := out[0].Verify(x509.VerifyOptions{Roots: a.Roots(), Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestReplicasSignWithOneRoot(t *testing.T) {
	api := apiserver.New(t)
	first, second := open(t, api, nil), open(t, api, nil)
	if string(first.RootPEM()) != string(second.RootPEM()) {
		t.Error("two replicas have two roots")
	}
	s := api.Get("/v1/secrets", "istio-system", ownSecret)
	if s == nil || s["type"] != ownType {
		t.Errorf("the secret is %v", s)
	}
	if n := len(signsFor(t, second)); n != 2 {
		t.Errorf("a chain of %d, want leaf and root", n)
	}
}

// plugged is a Secret with an intermediate below a root.
func plugged(t *testing.T, resource string) (manifest string, root []byte) {
	t.Helper()
	m, err := ca.NewMaterial("corp")
	if err != nil {
		t.Fatal(err)
	}
	parse := func(text []byte) []byte {
		block, _ := pem.Decode(text)
		return block.Bytes
	}
	rootCert, err := x509.ParseCertificate(parse(m.Certificate))
	if err != nil {
		t.Fatal(err)
	}
	rootKey, err := x509.ParsePKCS8PrivateKey(parse(m.Key))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := *rootCert
	template.Subject.CommonName = "intermediate"
	template.RawSubject, template.SubjectKeyId, template.SerialNumber = nil, nil, nil
	der, err := x509.CreateCertificate(rand.Reader, &template, rootCert, &key.PublicKey, rootKey)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	encode := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: %s, namespace: istio-system}\ndata: {ca-cert.pem: %s, ca-key.pem: %s, cert-chain.pem: %s, root-cert.pem: %s}\n", resource,
		encode(cert), encode(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})), encode(cert), encode(m.Certificate)), m.Certificate
}

func TestAPluggedInAuthorityGoesFirst(t *testing.T) {
	api := apiserver.New(t)
	open(t, api, nil) // leaves a root of its own
	manifest, root := plugged(t, pluggedSecret)
	api.Apply(t, manifest)
	a := open(t, api, nil)
	run(t, a.Run)
	if string(a.RootPEM()) != string(root) {
		t.Error("the root is not the one that is plugged in")
	}
	if chain := signsFor(t, a); len(chain) != 3 || chain[1].Subject.CommonName != "intermediate" {
		t.Errorf("a chain of %d, want leaf, intermediate and root", len(chain))
	}
}

func TestTheAuthorityIsReplacedWhileItRuns(t *testing.T) {
	api := apiserver.New(t)
	changed := make(chan struct{}, 10)
	a := open(t, api, func() { changed <- struct{}{} })
	own := string(a.RootPEM())
	run(t, a.Run)
	await := func() {
		t.Helper()
		select {
		case <-changed:
		case <-time.After(patience):
			t.Fatal("nothing changed")
		}
	}
	// What is not sound changes nothing.
	api.Apply(t, "apiVersion: v1\nkind: Secret\nmetadata: {name: cacerts, namespace: istio-system}\ndata: {ca-cert.pem: eA==, ca-key.pem: eA==}\n")
	manifest, root := plugged(t, pluggedSecret)
	api.Apply(t, manifest)
	await()
	if string(a.RootPEM()) != string(root) {
		t.Error("the root is not the one that was plugged in")
	}
	if chain := signsFor(t, a); len(chain) != 3 {
		t.Errorf("a chain of %d", len(chain))
	}
	api.Delete(t, "/v1/secrets", "istio-system", pluggedSecret)
	again, root2 := plugged(t, pluggedSecret)
	api.Apply(t, again)
	await()
	if got := string(a.RootPEM()); got != string(root2) || got == own {
		t.Error("the root is not the newest")
	}
}

func TestEveryNamespaceHasTheRoots(t *testing.T) {
	api := apiserver.New(t)
	pem := "ROOT"
	r := NewRoots(RootsConfig{Clients: clients(t, api), Namespace: "istio-system", Identity: "one", PEM: func() []byte { return []byte(pem) }, Log: discard})
	r.SetNamespaces([]string{"a", "kube-system"})
	at := func(ns string) string {
		data, _ := api.Get("/v1/configmaps", ns, rootsConfigMap)["data"].(apiserver.Object)
		s, _ := data[rootsKey].(string)
		return s
	}
	run(t, r.Run)
	eventually(t, "the first", func() bool { return at("a") == "ROOT" })
	r.SetNamespaces([]string{"a", "b", "kube-system"})
	eventually(t, "a new namespace's", func() bool { return at("b") == "ROOT" })
	api.Apply(t, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio-ca-root-cert, namespace: a}\ndata: {root-cert.pem: FORGED}\n")
	eventually(t, "a repaired one", func() bool { return at("a") == "ROOT" })
	api.Delete(t, "/v1/configmaps", "b", rootsConfigMap)
	eventually(t, "one that was deleted", func() bool { return at("b") == "ROOT" })
	if at("kube-system") != "" {
		t.Error("kube-system has it, too")
	}
}

func TestOneReplicaWrites(t *testing.T) {
	api := apiserver.New(t)
	c := clients(t, api)
	led := make(chan string, 10)
	lead := func(ctx context.Context, who string) error {
		return kubeapi.Lead(ctx, c, "istio-system", "lease", who, func(ctx context.Context) {
			led <- who
			<-ctx.Done()
		})
	}
	ctx, cancel := context.WithCancel(kubeapi.Logging(t.Context(), discard))
	done := make(chan error, 1)
	go func() { done <- lead(ctx, "one") }()
	if who := <-led; who != "one" {
		t.Fatalf("%s leads", who)
	}
	run(t, func(ctx context.Context) error { return lead(kubeapi.Logging(ctx, discard), "two") })
	eventually(t, "the other's interest", func() bool {
		return slices.Contains(api.Requests(), "GET /apis/coordination.k8s.io/v1/namespaces/istio-system/leases/lease")
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	select {
	case who := <-led:
		if who != "two" {
			t.Errorf("%s leads", who)
		}
	case <-time.After(patience):
		t.Error("nobody leads after the first gave up the lease")
	}
}
