package lab

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// replica is a Deployment's pod as a rollout sees it.
type replica struct {
	name        string
	hash        string // of the template it was made from
	ready       bool
	terminating bool
}

// templateHash tells templates apart.
func templateHash(t *corev1.PodTemplateSpec) string {
	data, err := json.Marshal(t)
	if err != nil {
		return "" // a template that was decoded can be encoded
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:5])
}

// rollout returns the next steps that bring a Deployment's pods to what it asks
// for: the names of pods to start from the current template, and of those to
// stop. It is asked again after each change of a pod, so each step is small.
//
// New pods come before old ones go, as far as maxSurge and maxUnavailable let
// them; with the strategy Recreate all old ones are gone first.
func rollout(d *appsv1.Deployment, hash string, replicas []replica) (start, stop []string) {
	want := 1
	if d.Spec.Replicas != nil {
		want = int(*d.Spec.Replicas)
	}
	var current, old []replica
	leaving := false
	taken := make(map[string]bool)
	ready := 0
	for _, r := range replicas {
		taken[r.name] = true
		switch {
		case r.terminating:
			leaving = true
			continue
		case r.hash == hash:
			current = append(current, r)
		default:
			old = append(old, r)
		}
		if r.ready {
			ready++
		}
	}

	surge, unavailable := 0, 0
	if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		for _, r := range old {
			stop = append(stop, r.name)
		}
		if len(old) > 0 || leaving && len(current) == 0 {
			return nil, stop
		}
	} else {
		surge, unavailable = rollingLimits(d, want)
	}

	// Start what is missing, within the surge.
	for n := len(current); n < want && n+len(old) < want+surge; n++ {
		name := freeName(d.Name, taken)
		taken[name] = true
		start = append(start, name)
	}
	// Stop what is too much of the current kind: unready ones first, then the
	// highest numbers.
	slices.SortFunc(current, func(a, b replica) int {
		if a.ready != b.ready {
			if b.ready {
				return -1
			}
			return 1
		}
		return number(b.name) - number(a.name)
	})
	for _, r := range current[:max(len(current)-want, 0)] {
		stop = append(stop, r.name)
		if r.ready {
			ready--
		}
	}
	// Stop old ones: an unready one serves nobody, a ready one as others stand in.
	for _, r := range old {
		switch {
		case !r.ready:
			stop = append(stop, r.name)
		case ready-1 >= want-unavailable:
			stop = append(stop, r.name)
			ready--
		}
	}
	return start, stop
}

// number returns the number that freeName gave.
func number(name string) int {
	n, err := strconv.Atoi(name[strings.LastIndexByte(name, '-')+1:])
	if err != nil {
		return 0
	}
	return n
}

// rollingLimits returns maxSurge and maxUnavailable in pods; the defaults are
// 25 % each, the first rounded up and the second down.
func rollingLimits(d *appsv1.Deployment, want int) (surge, unavailable int) {
	quarter := intstr.FromString("25%")
	s, u := &quarter, &quarter
	if r := d.Spec.Strategy.RollingUpdate; r != nil {
		if r.MaxSurge != nil {
			s = r.MaxSurge
		}
		if r.MaxUnavailable != nil {
			u = r.MaxUnavailable
		}
	}
	surge, err := intstr.GetScaledValueFromIntOrPercent(s, want, true)
	if err != nil {
		surge = 1
	}
	unavailable, err = intstr.GetScaledValueFromIntOrPercent(u, want, false)
	if err != nil {
		unavailable = 0
	}
	if surge == 0 && unavailable == 0 {
		unavailable = 1 // or no rollout would ever get on
	}
	return surge, unavailable
}

// freeName returns the Deployment's name with the lowest number not in use.
func freeName(deployment string, taken map[string]bool) string {
	for n := 0; ; n++ {
		name := deployment + "-" + strconv.Itoa(n)
		if !taken[name] {
			return name
		}
	}
}
