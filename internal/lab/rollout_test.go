package lab

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// replicas reads "name:hash[:flags]" with the flags r for ready, t for
// terminating.
func replicas(texts ...string) []replica {
	var out []replica
	for _, s := range texts {
		p := append(strings.Split(s, ":"), "")
		out = append(out, replica{name: p[0], hash: p[1], ready: strings.Contains(p[2], "r"), terminating: strings.Contains(p[2], "t")})
	}
	return out
}

func TestRolloutSteps(t *testing.T) {
	for _, c := range []struct {
		name     string
		want     int32
		strategy appsv1.DeploymentStrategyType
		have     []replica
		start    string
		stop     string
	}{
		{name: "from nothing", want: 2, start: "web-0 web-1"},
		{name: "as it should be", want: 2, have: replicas("web-0:new:r", "web-1:new")},
		{name: "one is missing", want: 2, have: replicas("web-1:new:r"), start: "web-0"},
		{name: "a name is free only when its pod is gone", want: 1, have: replicas("web-0:new:t"), start: "web-1"},
		{name: "scaled down: the highest number goes", want: 1, have: replicas("web-0:new:r", "web-2:new:r", "web-10:new:r"), stop: "web-10 web-2"},
		{name: "scaled down: an unready one goes first", want: 1, have: replicas("web-0:new", "web-1:new:r"), stop: "web-0"},
		{name: "scaled to nothing", want: 0, have: replicas("web-0:new:r"), stop: "web-0"},
		{name: "changed: the new one first", want: 1, have: replicas("web-0:old:r"), start: "web-1"},
		{name: "changed: the old one stays until the new one is ready", want: 1, have: replicas("web-0:old:r", "web-1:new")},
		{name: "changed: then the old one goes", want: 1, have: replicas("web-0:old:r", "web-1:new:r"), stop: "web-0"},
		{name: "changed: an unready old one goes at once", want: 1, have: replicas("web-0:old"), start: "web-1", stop: "web-0"},
		{name: "changed: one after the other", want: 3, have: replicas("web-0:old:r", "web-1:old:r", "web-2:old:r"), start: "web-3"},
		{name: "recreate: all old ones go first", want: 2, strategy: appsv1.RecreateDeploymentStrategyType, have: replicas("web-0:old:r", "web-1:old:r"), stop: "web-0 web-1"},
		{name: "recreate: and are gone", want: 2, strategy: appsv1.RecreateDeploymentStrategyType, have: replicas("web-0:old:t", "web-1:old:t")},
		{name: "recreate: before new ones come", want: 2, strategy: appsv1.RecreateDeploymentStrategyType, start: "web-0 web-1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web"}}
			d.Spec.Replicas = &c.want
			d.Spec.Strategy.Type = c.strategy
			start, stop := rollout(d, "new", c.have)
			if got := strings.Join(start, " "); got != c.start {
				t.Errorf("start %q, want %q", got, c.start)
			}
			if got := strings.Join(stop, " "); got != c.stop {
				t.Errorf("stop %q, want %q", got, c.stop)
			}
		})
	}
}

// A rollout from any state, with every new pod becoming ready, ends with the
// wanted pods, and never has fewer ready ones than it may.
func TestRolloutGetsThere(t *testing.T) {
	want := int32(3)
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web"}}
	d.Spec.Replicas = &want
	have := replicas("web-0:old:r", "web-1:old:r", "web-2:old:r")
	for step := range 30 {
		start, stop := rollout(d, "new", have)
		if len(start) == 0 && len(stop) == 0 && !slices.ContainsFunc(have, func(r replica) bool { return !r.ready }) {
			break
		}
		for _, s := range stop {
			have = slices.DeleteFunc(have, func(r replica) bool { return r.name == s })
		}
		ready := 0
		for _, r := range have {
			if r.ready {
				ready++
			}
		}
		if ready < int(want) {
			t.Fatalf("step %d: only %d ready of %d: %+v", step, ready, want, have)
		}
		if len(have)+len(start) > int(want)+1 {
			t.Fatalf("step %d: %d pods, want at most one more than %d", step, len(have)+len(start), want)
		}
		for i := range have {
			have[i].ready = true
		}
		for _, s := range start {
			have = append(have, replica{name: s, hash: "new"})
		}
	}
	for _, r := range have {
		if r.hash != "new" {
			t.Errorf("an old pod is left: %+v", have)
		}
	}
	if len(have) != int(want) {
		t.Errorf("%d pods, want %d", len(have), want)
	}
}

func TestTemplateHashTellsTemplatesApart(t *testing.T) {
	template := func(command string) *corev1.PodTemplateSpec {
		return &corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Command: []string{command}}}}}
	}
	a, again, b := templateHash(template("a")), templateHash(template("a")), templateHash(template("b"))
	if a != again {
		t.Error("equal templates differ")
	}
	if a == b {
		t.Error("different templates are equal")
	}
}

func TestPodNamesCountFromZero(t *testing.T) {
	taken := make(map[string]bool)
	for i := range 12 {
		name := freeName("web", taken)
		if want := fmt.Sprintf("web-%d", i); name != want || number(name) != i {
			t.Fatalf("name %d = %s (number %d), want %s", i, name, number(name), want)
		}
		taken[name] = true
	}
	delete(taken, "web-3")
	if got := freeName("web", taken); got != "web-3" {
		t.Errorf("the lowest free name is %s, want web-3", got)
	}
}
