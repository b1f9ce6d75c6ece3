package install

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// oldest is the oldest Kubernetes that the manifests are fit for: the CRDs' rules
// are in CEL.
const oldest = 25

// native is the first Kubernetes with native sidecars.
const native = 29

// MinorVersion is the second number of a version such as "v1.34.4".
func MinorVersion(version string) int {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(parts) < 2 {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimRight(parts[1], "+"))
	if err != nil {
		return 0
	}
	return n
}

// Finding is one thing that an installation will meet.
type Finding struct {
	Error bool // it can not succeed
	Text  string
}

// Precheck looks whether an installation can succeed. It changes nothing.
func (i *Installer) Precheck(ctx context.Context, namespace string) ([]Finding, error) {
	var out []Finding
	bad := func(format string, args ...any) { out = append(out, Finding{true, fmt.Sprintf(format, args...)}) }
	note := func(format string, args ...any) { out = append(out, Finding{false, fmt.Sprintf(format, args...)}) }

	version, err := i.Cluster.Version(ctx)
	if err != nil {
		return nil, err
	}
	switch minor := MinorVersion(version); {
	case minor < oldest:
		bad("Kubernetes %s is too old: 1.%d is the oldest that the CRDs are fit for", version, oldest)
	case minor < native:
		note("Kubernetes %s has no native sidecars: Jobs with a proxy must call /quitquitquit to end", version)
	}
	for _, k := range owned {
		group, _, core := strings.Cut(k.apiVersion, "/")
		if !core {
			group = ""
		}
		r, err := i.Cluster.resource(ctx, k.apiVersion, k.kind)
		if err != nil {
			bad("%s %s: %v", k.apiVersion, k.kind, err)
			continue
		}
		ns := namespace
		if !r.Namespaced {
			ns = ""
		}
		for _, verb := range []string{"create", "patch", "delete"} {
			ok, err := i.Cluster.may(ctx, verb, group, r.Name, ns)
			if err != nil {
				return nil, err
			}
			if !ok {
				bad("you may not %s %s", verb, strings.TrimSuffix(r.Name+"."+group, "."))
			}
		}
	}
	deployments, err := i.Cluster.List(ctx, "apps/v1", "Deployment", "", "app=istiod")
	if err != nil {
		return nil, err
	}
	for _, d := range deployments {
		if d.Labels()[ownerLabel] != "heddle" {
			note("%s is another control plane: choose a revision of your own with --revision, or namespaces will have two", d)
		}
	}
	for _, kind := range []string{"MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"} {
		list, err := i.Cluster.List(ctx, "admissionregistration.k8s.io/v1", kind, "", "")
		if err != nil {
			return nil, err
		}
		for _, o := range list {
			hooks, _ := o["webhooks"].([]any)
			for _, h := range hooks {
				m, _ := h.(map[string]any)
				ns, _ := at(m, "clientConfig", "service", "namespace").(string)
				name, _ := at(m, "clientConfig", "service", "name").(string)
				if name == "" {
					continue
				}
				if _, err := i.Cluster.Get(ctx, "v1", "Service", ns, name); IsNotFound(err) {
					note("%s calls Service %s/%s, which is not there", o, ns, name)
					break
				}
			}
		}
	}
	return out, nil
}

// may asks whether the caller may do something.
func (c *Cluster) may(ctx context.Context, verb, group, resource, namespace string) (bool, error) {
	body, err := json.Marshal(map[string]any{
		"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
		"spec": map[string]any{"resourceAttributes": map[string]any{"verb": verb, "group": group, "resource": resource, "namespace": namespace}},
	})
	if err != nil {
		return false, err
	}
	var answer struct {
		Status struct {
			Allowed bool `json:"allowed"`
		} `json:"status"`
	}
	err = c.do(ctx, http.MethodPost, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", nil, "application/json", body, &answer)
	return answer.Status.Allowed, err
}

// NativeSidecars says whether a version of Kubernetes has them.
func NativeSidecars(version string) bool { return MinorVersion(version) >= native }
