package inject

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/heddle-mesh/heddle/internal/redirect"
)

// annotation is what one annotation of a pod may hold, or why it has no effect.
type annotation struct {
	check func(value string) error // nil: anything
	inert string                   // why it has no effect; "" if it has one
}

// annotations are all that Istio defines for pods, and act at injection.
func annotations() map[string]annotation {
	const (
		noEnvoy   = "there is no Envoy to configure"
		noAmbient = "it is for ambient mode, and this pod gets a sidecar"
	)
	acts := func(check func(string) error) annotation { return annotation{check: check} }
	inert := func(why string) annotation { return annotation{inert: why} }
	traffic := annotation{} // checked together, by the code that acts on them
	return map[string]annotation{
		injectKey:                                acts(nil),
		statusAnnotation:                         acts(nil),
		overridesAnnotation:                      acts(nil),
		templatesAnnotation:                      acts(nil),
		configAnnotation:                         acts(nil), // checked where it is read
		revisionLabel:                            acts(nil),
		nativeAnnotation:                         acts(isBool),
		"sidecar.istio.io/rewriteAppHTTPProbers": acts(isBool),
		"prometheus.istio.io/merge-metrics":      acts(isBool),
		"sidecar.istio.io/discoveryAddress":      acts(nil),
		"sidecar.istio.io/proxyImage":            acts(nil),
		"sidecar.istio.io/proxyCPU":              acts(isQuantity),
		"sidecar.istio.io/proxyCPULimit":         acts(isQuantity),
		"sidecar.istio.io/proxyMemory":           acts(isQuantity),
		"sidecar.istio.io/proxyMemoryLimit":      acts(isQuantity),
		"sidecar.istio.io/interceptionMode":      acts(isMode),
		"sidecar.istio.io/userVolume":            acts(isVolumes),
		"sidecar.istio.io/userVolumeMount":       acts(isMounts),
		"sidecar.istio.io/logLevel":              acts(nil),
		"sidecar.istio.io/agentLogLevel":         acts(nil),
		"status.sidecar.istio.io/port":           acts(isPortOrZero),

		"readiness.status.sidecar.istio.io/initialDelaySeconds": acts(isNumber),
		"readiness.status.sidecar.istio.io/periodSeconds":       acts(isNumber),
		"readiness.status.sidecar.istio.io/failureThreshold":    acts(isNumber),
		"readiness.status.sidecar.istio.io/applicationPorts":    inert("the proxy's readiness does not wait for the application's ports"),

		"traffic.sidecar.istio.io/includeOutboundIPRanges": traffic,
		"traffic.sidecar.istio.io/excludeOutboundIPRanges": traffic,
		"traffic.sidecar.istio.io/includeInboundPorts":     traffic,
		"traffic.sidecar.istio.io/excludeInboundPorts":     traffic,
		"traffic.sidecar.istio.io/includeOutboundPorts":    traffic,
		"traffic.sidecar.istio.io/excludeOutboundPorts":    traffic,
		"traffic.sidecar.istio.io/excludeInterfaces":       traffic,
		"traffic.sidecar.istio.io/kubevirtInterfaces":      inert("traffic that is routed through the pod is not captured"),
		"istio.io/reroute-virtual-interfaces":              inert("traffic that is routed through the pod is not captured"),

		"sidecar.istio.io/proxyImageType":         inert("there is one image, and it holds nothing but the proxy"),
		"sidecar.istio.io/componentLogLevel":      inert("there is one log level, sidecar.istio.io/agentLogLevel"),
		"sidecar.istio.io/bootstrapOverride":      inert(noEnvoy),
		"sidecar.istio.io/extraStatTags":          inert(noEnvoy),
		"sidecar.istio.io/statsInclusionPrefixes": inert(noEnvoy),
		"sidecar.istio.io/statsInclusionSuffixes": inert(noEnvoy),
		"sidecar.istio.io/statsInclusionRegexps":  inert(noEnvoy),
		"sidecar.istio.io/statsHistogramBuckets":  inert("the buckets are Istio's, and can not be changed"),
		"sidecar.istio.io/statsHistogramBins":     inert(noEnvoy),
		"sidecar.istio.io/statsFlushInterval":     inert("metrics are pulled, and always current"),
		"sidecar.istio.io/statsEvictionInterval":  inert(noEnvoy),
		"sidecar.istio.io/statsCompression":       inert("metrics are not compressed"),

		"ambient.istio.io/redirection":            inert(noAmbient),
		"ambient.istio.io/bypass-inbound-capture": inert(noAmbient),
		"ambient.istio.io/dns-capture":            inert(noAmbient),
	}
}

// prefixes of annotations that nobody but an injector reads: a name with one of
// these that is not in the list is misspelt.
var injectorPrefixes = []string{
	"sidecar.istio.io/", "status.sidecar.istio.io/", "readiness.status.sidecar.istio.io/", "traffic.sidecar.istio.io/",
	"inject.istio.io/", "proxy.istio.io/", "prometheus.istio.io/", "ambient.istio.io/",
}

// checkAnnotations returns a warning for each annotation without effect, and an
// error for those whose value can not be read.
func checkAnnotations(as map[string]string) (warnings []string, err error) {
	known := annotations()
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(as)) {
		a, ok := known[name]
		switch {
		case !ok && slices.ContainsFunc(injectorPrefixes, func(p string) bool { return strings.HasPrefix(name, p) }):
			warnings = append(warnings, fmt.Sprintf("annotation %s is not known, and has no effect", name))
		case !ok:
		case a.inert != "":
			warnings = append(warnings, fmt.Sprintf("annotation %s has no effect: %s", name, a.inert))
		case a.check != nil:
			if err := a.check(as[name]); err != nil {
				errs = append(errs, fmt.Errorf("annotation %s: %w", name, err))
			}
		}
	}
	if as["sidecar.istio.io/interceptionMode"] == "TPROXY" {
		warnings = append(warnings, "annotation sidecar.istio.io/interceptionMode: TPROXY has no effect: traffic is captured by REDIRECT, and the peer's address is told in x-forwarded-for")
	}
	if _, err := redirect.FromAnnotations(as); err != nil {
		errs = append(errs, err)
	}
	return warnings, errors.Join(errs...)
}

func isBool(v string) error {
	if _, err := strconv.ParseBool(v); err != nil {
		return fmt.Errorf("%q is neither true nor false", v)
	}
	return nil
}

func isQuantity(v string) error {
	if _, err := resource.ParseQuantity(v); err != nil {
		return fmt.Errorf("%q is not a quantity such as 100m or 128Mi", v)
	}
	return nil
}

func isMode(v string) error {
	if !slices.Contains([]string{"REDIRECT", "TPROXY", "NONE"}, v) {
		return fmt.Errorf("%q is not one of REDIRECT, TPROXY, NONE", v)
	}
	return nil
}

func isNumber(v string) error {
	if _, err := strconv.ParseUint(v, 10, 31); err != nil {
		return fmt.Errorf("%q is not a number", v)
	}
	return nil
}

func isPortOrZero(v string) error {
	if _, err := strconv.ParseUint(v, 10, 16); err != nil {
		return fmt.Errorf("%q is not a port, or 0 for none", v)
	}
	return nil
}

// isVolumes checks userVolume: a JSON object of volumes by name.
func isVolumes(v string) error { return isNamed(v, new(map[string]corev1.VolumeSource)) }

func isMounts(v string) error { return isNamed(v, new(map[string]corev1.VolumeMount)) }

func isNamed(v string, into any) error {
	if err := json.Unmarshal([]byte(v), into); err != nil {
		return fmt.Errorf("not a JSON object by name: %w", err)
	}
	return nil
}
