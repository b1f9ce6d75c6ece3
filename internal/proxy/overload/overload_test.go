package overload

import (
	"context"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/heddle-mesh/heddle/internal/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestWorkIsGivenUpStepByStepAndTakenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var used atomic.Int64
		g := New(Config{Limit: 1000, InUse: used.Load, Metrics: telemetry.NewRegistry(), Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- g.Run(ctx) }()
		for i, c := range []struct {
			used         int64
			shed, refuse bool
		}{
			{100, false, false},
			{870, false, false},
			{880, true, false},
			{940, true, true},
			{900, true, true}, // it does not alternate
			{850, true, false},
			{839, false, false},
			{870, false, false},
			{2000, true, true},
			{0, false, false},
		} {
			used.Store(c.used)
			time.Sleep(2 * seldom)
			if shed, refuse := g.Shed(), g.Refuse(); shed != c.shed || refuse != c.refuse {
				t.Errorf("step %d, %d of 1000 in use: shed %v, refuse %v; want %v, %v", i, c.used, shed, refuse, c.shed, c.refuse)
			}
		}
		if g.shed.Value() != 5 || g.refused.Value() != 3 {
			t.Errorf("counted %d shed, %d refused", g.shed.Value(), g.refused.Value())
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestWithoutLimitNothingIsGivenUp(t *testing.T) {
	g := New(Config{InUse: func() int64 { return 1 << 60 }, Metrics: telemetry.NewRegistry()})
	if err := g.Run(t.Context()); err != nil || g.Shed() || g.Refuse() {
		t.Errorf("%v", err)
	}
}

func TestTheRuntimeIsAsked(t *testing.T) {
	read := inUse()
	before := read()
	held := make([]byte, 64<<20)
	for i := range held {
		held[i] = 1
	}
	if after := read(); before <= 0 || after-before < 60<<20 {
		t.Errorf("%d bytes before, %d after holding 64 MiB more", before, after)
	}
	if held[0] != 1 {
		t.Error("gone")
	}
}

func BenchmarkLook(b *testing.B) {
	g := New(Config{Limit: 1 << 40, Metrics: telemetry.NewRegistry()})
	for b.Loop() {
		g.look()
	}
}
