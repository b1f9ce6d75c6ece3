package server

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"

	"github.com/heddle-mesh/heddle/internal/encode"
	"github.com/heddle-mesh/heddle/internal/identity"
)

// proven takes every caller for one service account.
type proven struct{ id identity.ID }

func (p proven) Authenticate(context.Context) (identity.ID, error) { return p.id, nil }

var gatewayID = proven{identity.ID{TrustDomain: "td", Namespace: "default", ServiceAccount: "gw"}}

// serverWhere runs a server whose accounts may read secrets while *may is set.
func serverWhere(t *testing.T, may *bool) *Server {
	t.Helper()
	s, err := New(Config{Log: slog.New(slog.DiscardHandler), MaySecrets: func(_ context.Context, namespace, account string) (bool, error) {
		return *may && namespace == "default" && account == "gw", nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return s
}

// secretsOf asks for one secret, and returns how many of them came since.
func secretsOf(p *peer, delta bool) func() int {
	const name = "kubernetes://one"
	r := &request{typeURL: encode.SecretType, names: []string{name}}
	if delta {
		r = &request{typeURL: encode.SecretType, subscribe: []string{name}}
	}
	p.ask(r)
	return func() int {
		synctest.Wait()
		n := 0
		for {
			select {
			case r := <-p.wire.out:
				n += len(r.resources)
				p.wire.in <- &request{typeURL: r.typeURL, nonce: r.nonce, names: []string{name}}
				synctest.Wait()
			default:
				return n
			}
		}
	}
}

func TestSecretsAreForThoseWhoMayReadThem(t *testing.T) {
	for _, tt := range []struct {
		name string
		may  bool
		auth Authenticator
		want int
	}{
		{"may read", true, gatewayID, 1},
		{"may not read", false, gatewayID, 0},
		{"did not prove itself", true, nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bothVariants(t, func(t *testing.T, delta bool, m machine) {
				s := serverWhere(t, &tt.may)
				w := small(1)
				w.secrets = 1
				s.Update(w, true, nil)
				got := secretsOf(connect(t, s, m, sidecar, tt.auth), delta)
				if n := got(); n != tt.want {
					t.Errorf("%d secrets came, want %d", n, tt.want)
				}
			})
		})
	}
}

func TestAChangedSecretIsSentAtOnce(t *testing.T) {
	bothVariants(t, func(t *testing.T, delta bool, m machine) {
		may := true
		s := serverWhere(t, &may)
		s.Update(small(1), true, nil)
		got := secretsOf(connect(t, s, m, sidecar, gatewayID), delta)
		if n := got(); n != 0 {
			t.Fatalf("%d secrets came before there are any", n)
		}
		for version := 1; version <= 2; version++ {
			w := small(1)
			w.secrets = version
			s.Update(w, false, nil)
			s.SecretsDiffer()
			if n := got(); n != 1 {
				t.Fatalf("version %d: %d secrets came, want 1", version, n)
			}
		}
		s.SecretsDiffer()
		if n := got(); n != 0 {
			t.Errorf("%d secrets came though none differs", n)
		}
		// Access that was taken away: nothing new is given.
		may = false
		w := small(1)
		w.secrets = 3
		s.Update(w, false, nil)
		s.SecretsDiffer()
		if n := got(); n != 0 {
			t.Errorf("%d secrets came to one that may not read them any more", n)
		}
	})
}
