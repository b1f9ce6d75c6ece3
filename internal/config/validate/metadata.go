package validate

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	securityv1beta1 "istio.io/api/security/v1beta1"

	"github.com/heddle-mesh/heddle/internal/config"
)

const (
	dryRun       = "istio.io/dry-run"
	alwaysReject = "internal.istio.io/webhook-always-reject"
)

// metadata checks what all kinds have.
func (c *checker) metadata() {
	if c.o.Name != "" && !isObjectName(c.o.Name) {
		c.err("metadata.name", fmt.Sprintf("%q is no name of an object", c.o.Name),
			"a name is at most 253 lower-case letters, digits, '-' and '.'")
	}
	if ns := c.o.Namespace; ns != "" && (!isLabel(ns) || strings.ToLower(ns) != ns) {
		c.err("metadata.namespace", fmt.Sprintf("%q is no name of a namespace", ns),
			"a name is at most 63 lower-case letters, digits and inner hyphens")
	}
	c.labels("metadata.labels", c.o.Labels)
	for _, k := range slices.Sorted(maps.Keys(c.o.Annotations)) {
		if !isLabelKey(k) {
			c.err(key("metadata.annotations", k), fmt.Sprintf("%q is no annotation key", k),
				"a key is [prefix/]name of letters, digits, '-', '_' and '.'")
		}
	}
	c.dryRun()
	if _, ok := c.o.Annotations[alwaysReject]; ok {
		c.err(key("metadata.annotations", alwaysReject), "the annotation asks for the object to be refused", "")
	}
}

// dryRun checks the annotation that makes an AuthorizationPolicy report what it
// would do. On other kinds of Istio's it would raise a false hope.
func (c *checker) dryRun() {
	v, ok := c.o.Annotations[dryRun]
	if !ok || !strings.HasSuffix(c.o.Kind.Group, ".istio.io") {
		return
	}
	field := key("metadata.annotations", dryRun)
	policy, ok := c.o.Spec.(*securityv1beta1.AuthorizationPolicy)
	if !ok {
		c.err(field, "only an AuthorizationPolicy can be run dry", "remove the annotation")
		return
	}
	switch policy.Action {
	case securityv1beta1.AuthorizationPolicy_ALLOW, securityv1beta1.AuthorizationPolicy_DENY:
		if _, err := strconv.ParseBool(v); err != nil {
			c.err(field, fmt.Sprintf("%q is no boolean", v), `write "true" or "false"`)
		}
	default:
		c.err(field, fmt.Sprintf("a policy with action %s cannot be run dry", policy.Action), "only ALLOW and DENY can")
	}
}

// isObjectName reports whether s is a DNS subdomain in lower case.
func isObjectName(s string) bool {
	if len(s) > 253 || strings.ToLower(s) != s {
		return false
	}
	for l := range strings.SplitSeq(s, ".") {
		if l == "" || l[0] == '-' || l[len(l)-1] == '-' || strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return false
		}
	}
	return true
}

// semantics reports whether the object was made from one of the Gateway API,
// whose rules are wider. Annotation and value are Istio's internal contract.
func semantics(o *config.Object, annotation string) bool {
	return o.Annotations[annotation] == "gateway"
}

const (
	gatewaySemantics = "internal.istio.io/gateway-semantics"
	routeSemantics   = "internal.istio.io/route-semantics"
)
