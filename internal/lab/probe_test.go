package lab

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// verdict is what watchProbe said, and when.
type verdict struct {
	at time.Duration
	ok bool
}

// watch runs a probe for a minute of virtual time against a program that is well
// in the given spans.
func watch(t *testing.T, probe corev1.Probe, well func(at time.Duration) bool) []verdict {
	t.Helper()
	var got []verdict
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		watchProbe(ctx, &probe, func(context.Context) error {
			if well(time.Since(begin)) {
				return nil
			}
			return errors.New("no")
		}, func(ok bool, err error) {
			if ok != (err == nil) {
				t.Errorf("ok = %v with error %v", ok, err)
			}
			got = append(got, verdict{time.Since(begin), ok})
		})
	})
	return got
}

func TestProbeSeesAQuickStartQuickly(t *testing.T) {
	got := watch(t, corev1.Probe{PeriodSeconds: 10}, func(at time.Duration) bool { return at >= 30*time.Millisecond })
	if len(got) != 1 || !got[0].ok || got[0].at > 100*time.Millisecond {
		t.Errorf("verdicts = %v, want ready within 100 ms", got)
	}
}

func TestProbeWaitsForItsInitialDelay(t *testing.T) {
	got := watch(t, corev1.Probe{InitialDelaySeconds: 5}, func(time.Duration) bool { return true })
	if len(got) != 1 || got[0].at != 5*time.Second {
		t.Errorf("verdicts = %v, want ready after 5 s", got)
	}
}

func TestProbeForgivesFailuresUpToItsThreshold(t *testing.T) {
	// Two failures in a row are forgiven, three are not.
	got := watch(t, corev1.Probe{PeriodSeconds: 1, FailureThreshold: 3}, func(at time.Duration) bool {
		return at < 5*time.Second || at > 6*time.Second && at < 10*time.Second || at > 20*time.Second
	})
	want := []verdict{{0, true}, {12 * time.Second, false}, {21 * time.Second, true}}
	if len(got) != len(want) {
		t.Fatalf("verdicts = %v, want %v", got, want)
	}
	for i := range want {
		if got[i].ok != want[i].ok || (got[i].at-want[i].at).Abs() > time.Second {
			t.Errorf("verdict %d = %v, want %v", i, got[i], want[i])
		}
	}
}

func TestProbeNeedsSuccessesInARow(t *testing.T) {
	got := watch(t, corev1.Probe{PeriodSeconds: 1, SuccessThreshold: 3}, func(at time.Duration) bool { return at > time.Second })
	if len(got) != 1 || !got[0].ok || got[0].at < time.Second {
		t.Errorf("verdicts = %v", got)
	}
}

// A program that never gets well is reported once its threshold has passed, so
// that a liveness probe can act on it.
func TestProbeReportsAProgramThatNeverStarts(t *testing.T) {
	got := watch(t, corev1.Probe{PeriodSeconds: 2, FailureThreshold: 3}, func(time.Duration) bool { return false })
	if len(got) != 1 || got[0].ok || got[0].at < 4*time.Second || got[0].at > 5*time.Second {
		t.Errorf("verdicts = %v, want one failure after 4 s", got)
	}
}

func TestProbePort(t *testing.T) {
	c := &corev1.Container{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}}
	for _, tc := range []struct {
		port intstr.IntOrString
		want uint16
		ok   bool
	}{
		{intstr.FromInt32(9080), 9080, true},
		{intstr.FromString("web"), 8080, true},
		{intstr.FromString("9090"), 9090, true},
		{intstr.FromString("nope"), 0, false},
	} {
		got, err := probePort(c, tc.port)
		if got != tc.want || (err == nil) != tc.ok {
			t.Errorf("probePort(%v) = %d, %v", tc.port, got, err)
		}
	}
}

func TestCrashesAreAnsweredByGrowingPauses(t *testing.T) {
	var b backoff
	var got []time.Duration
	for range 10 {
		got = append(got, b.next(time.Second))
	}
	for i, want := range []time.Duration{200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000} {
		if got[i] != want*time.Millisecond {
			t.Fatalf("pauses = %v", got)
		}
	}
	if got := b.next(2 * time.Minute); got != backoffFirst {
		t.Errorf("after two healthy minutes the pause is %s, want %s", got, backoffFirst)
	}
}
