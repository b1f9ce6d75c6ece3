package life

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFailureOfOneEndsTheOthers(t *testing.T) {
	cause := errors.New("no such thing")
	g := NewGroup(t.Context())
	ended := false
	g.Go("waiter", func(ctx context.Context) error {
		<-ctx.Done()
		ended = true
		return ctx.Err()
	})
	g.Go("failing", func(context.Context) error { return cause })
	err := g.Wait()
	if !errors.Is(err, cause) || !strings.HasPrefix(err.Error(), "failing: ") {
		t.Errorf("Wait() = %v, want the failing goroutine's error under its name, and only it", err)
	}
	if !ended {
		t.Error("Wait returned before the other goroutine had ended")
	}
}

func TestSuccessOfOneLeavesTheOthersAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := NewGroup(t.Context())
		g.Go("short", func(context.Context) error { return nil })
		g.Go("long", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		synctest.Wait()
		if g.Context().Err() != nil {
			t.Fatal("the group ended when one goroutine returned nil")
		}
		g.Stop()
		if err := g.Wait(); err != nil {
			t.Errorf("Wait() = %v, want nil: ending with the context is no error", err)
		}
	})
}

func TestCancelledOnItsOwnIsAFailure(t *testing.T) {
	g := NewGroup(t.Context())
	g.Go("odd", func(context.Context) error { return context.Canceled })
	if err := g.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait() = %v, want context.Canceled, because the group's context had not ended", err)
	}
}

func TestDrainReturnsWhenTheLastWorkEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := NewDrain(t.Context())
		for _, after := range []time.Duration{time.Second, 3 * time.Second} {
			leave, ok := d.Enter()
			if !ok {
				t.Fatal("Enter refused before the drain began")
			}
			go func() {
				<-d.Soft().Done()
				time.Sleep(after)
				leave()
			}()
		}
		start := time.Now()
		cut := d.Shut(5 * time.Second)
		if took := time.Since(start); cut != 0 || took != 3*time.Second {
			t.Errorf("Shut cut %d after %v, want 0 after 3s", cut, took)
		}
		if _, ok := d.Enter(); ok {
			t.Error("Enter was allowed in the second phase")
		}
	})
}

func TestDrainCutsWhatDoesNotEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := NewDrain(t.Context())
		for range 2 {
			leave, _ := d.Enter()
			go func() {
				<-d.Hard().Done()
				leave()
			}()
		}
		start := time.Now()
		cut := d.Shut(5 * time.Second)
		if took := time.Since(start); cut != 2 || took != 5*time.Second {
			t.Errorf("Shut cut %d after %v, want 2 after 5s", cut, took)
		}
		if n := d.Active(); n != 0 {
			t.Errorf("Active() = %d after Shut, want 0", n)
		}
	})
}

func TestApartRaisesWhatPanics(t *testing.T) {
	ran := false
	Apart(func() { ran = true })
	if !ran {
		t.Error("returned before it ran")
	}
	defer func() {
		if p, _ := recover().(string); !strings.HasPrefix(p, "boom\n") || !strings.Contains(p, "TestApartRaises") {
			t.Errorf("panicked with %q", p)
		}
	}()
	Apart(func() { panic("boom") })
}
