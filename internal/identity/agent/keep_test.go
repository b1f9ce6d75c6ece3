package agent_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/identity/agent"
	"github.com/heddle-mesh/heddle/internal/meshtest/certs"
)

type memory struct{ b []byte }

func (m *memory) Load() ([]byte, error) { return m.b, nil }
func (m *memory) Save(b []byte) error   { m.b = bytes.Clone(b); return nil }

// A proxy that is restarted while the authority is away goes on as who it was,
// until its certificate expires. What was kept for somebody else, by another
// authority, or torn, is of no use to it.
func TestRestartedProcessTakesItsIdentityOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := certs.New(t, "cluster.local")
		id := identity.ID{TrustDomain: "cluster.local", Namespace: "a", ServiceAccount: "b"}
		away := func(context.Context, []byte) ([]string, error) { return nil, errors.New("away") }
		there := func(_ context.Context, csr []byte) ([]string, error) { return ca.SignCSR(csr, id, 24*time.Hour) }
		run := func(id identity.ID, keep agent.Keeper, roots []byte, csr func(context.Context, []byte) ([]string, error)) *identity.Material {
			t.Helper()
			a, err := agent.New(agent.Config{ID: id, CSR: csr, RootPEM: roots, Keep: keep, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- a.Run(ctx) }()
			time.Sleep(time.Second)
			m := a.Current()
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			return m
		}
		var keep memory
		first := run(id, &keep, ca.PEM(), there)
		if first == nil || len(keep.b) == 0 {
			t.Fatal("nothing was kept")
		}
		again := run(id, &keep, ca.PEM(), away)
		if again == nil || !again.Certificate.Leaf.Equal(first.Certificate.Leaf) {
			t.Error("the identity was not taken over")
		}
		other := id
		other.ServiceAccount = "c"
		for name, m := range map[string]*identity.Material{
			"another's":               run(other, &keep, ca.PEM(), away),
			"from another authority":  run(id, &keep, certs.New(t, "cluster.local").PEM(), away),
			"torn":                    run(id, &memory{keep.b[:len(keep.b)/3]}, ca.PEM(), away),
			"with the key alone gone": run(id, &memory{keep.b[bytes.Index(keep.b, []byte("-----BEGIN CERT")):]}, ca.PEM(), away),
			"expired in the meantime": func() *identity.Material { time.Sleep(25 * time.Hour); return run(id, &keep, ca.PEM(), away) }(),
		} {
			if m != nil {
				t.Errorf("a kept identity %s was used", name)
			}
		}
	})
}
