// Package validate checks the meaning of one object: what its type alone cannot
// express. An object passes exactly if Istio's admission webhook and the rules
// in its CRDs let it pass, so that a manifest works here if it works there.
//
// There is one file for each kind. Names of hosts, ports and labels, selectors
// and the settings that several kinds share have files of their own.
//
// Sources: Istio pkg/config/validation and pkg/config/security; the CRDs'
// x-kubernetes-validations.
package validate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	extensionsv1alpha1 "istio.io/api/extensions/v1alpha1"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
	networkingv1beta1 "istio.io/api/networking/v1beta1"
	securityv1beta1 "istio.io/api/security/v1beta1"
	telemetryv1alpha1 "istio.io/api/telemetry/v1alpha1"

	"google.golang.org/protobuf/types/known/durationpb"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/internal/config"
)

// Object returns everything wrong with o, in the order of its lines. Objects of
// kinds without rules of their own are checked for their metadata alone.
func Object(o *config.Object) []config.Fault {
	c := &checker{o: o}
	c.metadata()
	switch spec := o.Spec.(type) {
	case *networkingv1alpha3.VirtualService:
		c.virtualService(spec)
	case *networkingv1alpha3.DestinationRule:
		c.destinationRule(spec)
	case *networkingv1alpha3.Gateway:
		c.gateway(spec)
	case *networkingv1alpha3.ServiceEntry:
		c.serviceEntry(spec)
	case *networkingv1alpha3.Sidecar:
		c.sidecar(spec)
	case *networkingv1alpha3.WorkloadEntry:
		c.workloadEntry(spec)
	case *networkingv1alpha3.WorkloadGroup:
		c.workloadGroup(spec)
	case *networkingv1alpha3.EnvoyFilter:
		c.envoyFilter(spec)
	case *networkingv1beta1.ProxyConfig:
		c.proxyConfig(spec)
	case *securityv1beta1.PeerAuthentication:
		c.peerAuthentication(spec)
	case *securityv1beta1.RequestAuthentication:
		c.requestAuthentication(spec)
	case *securityv1beta1.AuthorizationPolicy:
		c.authorizationPolicy(spec)
	case *telemetryv1alpha1.Telemetry:
		c.telemetry(spec)
	case *extensionsv1alpha1.WasmPlugin:
		c.wasmPlugin(spec)
	case *extensionsv1alpha1.TrafficExtension:
		c.trafficExtension(spec)
	case *corev1.ConfigMap:
		c.meshConfig()
	case *corev1.Service:
		c.service(spec)
	case *corev1.Pod:
		c.pod(&spec.Spec, "spec")
	case *appsv1.Deployment:
		c.deployment(spec)
	}
	slices.SortStableFunc(c.faults, func(a, b config.Fault) int {
		return cmp.Or(a.Pos.Line-b.Pos.Line, strings.Compare(a.Field, b.Field), strings.Compare(a.Problem, b.Problem))
	})
	return c.faults
}

// checker collects the faults of one object. Its methods take the path of the
// field that they check.
type checker struct {
	o      *config.Object
	faults []config.Fault
}

func (c *checker) err(path, problem, hint string) {
	c.faults = append(c.faults, config.Fault{Pos: c.o.At(path), Object: c.o.Key, Field: path, Problem: problem, Hint: hint})
}

func (c *checker) warn(path, problem, hint string) {
	c.faults = append(c.faults, config.Fault{Pos: c.o.At(path), Object: c.o.Key, Field: path, Problem: problem, Hint: hint,
		Severity: config.Warning})
}

// written reports whether the author wrote the field, be it empty: proto3 does
// not tell an empty value from none.
func (c *checker) written(path string) bool {
	_, ok := c.o.Lines[path]
	return ok
}

// at is the path of an element of a list.
func at(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }

// key is the path of an entry of a map.
func key(path, k string) string { return path + "[" + k + "]" }

// duration checks a duration that Envoy takes in milliseconds.
func (c *checker) duration(path string, d *durationpb.Duration) {
	if d == nil {
		return
	}
	switch v := d.AsDuration(); {
	case v < time.Millisecond:
		c.err(path, fmt.Sprintf("%v is too short", v), "the least is 1ms; leave the field out for none")
	case v%time.Millisecond != 0:
		c.err(path, fmt.Sprintf("%v is finer than a millisecond", v), fmt.Sprintf("write %v", v.Round(time.Millisecond)))
	}
}

// port checks a port number.
func (c *checker) port(path string, n uint32) {
	if n < 1 || n > 65535 {
		c.err(path, fmt.Sprintf("%d is no port", n), "a port goes from 1 to 65535")
	}
}

// nonNegative checks numbers of which Istio takes any but negative ones.
func (c *checker) nonNegative(path string, n int32) {
	if n < 0 {
		c.err(path, fmt.Sprintf("%d is negative", n), "0 stands for the default")
	}
}

// percent checks a whole percentage.
func (c *checker) percent(path string, n int32) {
	if n < 0 || n > 100 {
		c.err(path, fmt.Sprintf("%d is no percentage", n), "it goes from 0 to 100")
	}
}

// notEmpty checks a text that may be left out, but not be empty.
func (c *checker) notEmpty(path, value string) {
	if value == "" && c.written(path) {
		c.err(path, "empty", "leave the field out, or give it a value")
	}
}
