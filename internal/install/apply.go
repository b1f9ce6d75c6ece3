package install

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Progress hears how a component gets on: once for each word, the last time with
// done.
type Progress func(component, word string, done bool)

// Installer installs into a cluster.
type Installer struct {
	Cluster  *Cluster
	Progress Progress
	// Timeout is how long a component may take to run; 0 does not wait.
	Timeout time.Duration
}

// title is a component as people call it.
func title(c Component) string {
	switch c.Name {
	case Base:
		return "Base (CRDs and checks)"
	case Pilot:
		return "Control plane " + c.Release
	case Ingress:
		return "Ingress gateway " + c.Release
	case Egress:
		return "Egress gateway " + c.Release
	}
	return c.Release
}

// Install applies the components one after the other, each when the one before
// runs: a gateway is made by the control plane's webhook. What a former
// installation of the same revision had, and this one has not, is removed.
func (i *Installer) Install(ctx context.Context, p *Plan, components []Component) error {
	namespaces := []string{p.Namespace()}
	for _, c := range components {
		namespaces = append(namespaces, c.Namespace)
	}
	slices.Sort(namespaces)
	for _, ns := range slices.Compact(namespaces) {
		if err := i.namespace(ctx, ns); err != nil {
			return err
		}
	}
	var kept []Object
	for _, c := range components {
		name := title(c)
		i.Progress(name, "applying", false)
		if err := i.apply(ctx, c.Objects); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := i.wait(ctx, name, c.Objects); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		i.Progress(name, fmt.Sprintf("installed, %d objects", len(c.Objects)), true)
		kept = append(kept, c.Objects...)
	}
	removed, err := i.prune(ctx, cmp.Or(p.Revision(), "default"), kept)
	if removed > 0 {
		i.Progress("What is no longer wanted", fmt.Sprintf("removed, %d objects", removed), true)
	}
	return err
}

func (i *Installer) namespace(ctx context.Context, name string) error {
	_, err := i.Cluster.Get(ctx, "v1", "Namespace", "", name)
	if !IsNotFound(err) {
		return err
	}
	_, err = i.Cluster.Apply(ctx, Object{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{
		"name": name, "labels": map[string]any{ownerLabel: "heddle"},
	}}, false)
	return err
}

func (i *Installer) apply(ctx context.Context, objects []Object) error {
	var errs []error
	for _, o := range sortObjects(objects) {
		if _, err := i.Cluster.Apply(ctx, o, false); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// look is how often the state of what was applied is asked for.
const look = 250 * time.Millisecond

// wait returns when all that was applied runs.
func (i *Installer) wait(ctx context.Context, name string, objects []Object) error {
	if i.Timeout == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, i.Timeout)
	defer cancel()
	last := ""
	for {
		missing, err := i.Missing(ctx, objects)
		if err == nil && len(missing) == 0 {
			return nil
		}
		if word := "waiting for " + strings.Join(missing, ", "); err == nil && word != last {
			last = word
			i.Progress(name, word, false)
		}
		if settle(ctx, look) != nil {
			if err == nil {
				err = fmt.Errorf("not ready after %v: %s", i.Timeout, strings.Join(missing, ", "))
			}
			return err
		}
	}
}

// Missing names the objects that do not run yet, with what they lack.
func (i *Installer) Missing(ctx context.Context, objects []Object) ([]string, error) {
	var out []string
	for _, o := range objects {
		switch o.Kind() {
		case "Deployment", "DaemonSet", "CustomResourceDefinition":
		default:
			continue
		}
		live, err := i.Cluster.Get(ctx, o.APIVersion(), o.Kind(), o.Namespace(), o.Name())
		if IsNotFound(err) {
			out = append(out, o.String()+" (not there)")
			continue
		}
		if err != nil {
			return nil, err
		}
		if lack := lacks(live); lack != "" {
			out = append(out, o.String()+" ("+lack+")")
		}
	}
	return out, nil
}

// lacks says what an object lacks until it runs, "" if nothing.
func lacks(o Object) string {
	number := func(keys ...string) int {
		n, _ := at(o, keys...).(float64)
		return int(n)
	}
	if number("status", "observedGeneration") < number("metadata", "generation") && o.Kind() != "CustomResourceDefinition" {
		return "not taken up yet"
	}
	switch o.Kind() {
	case "Deployment":
		want := 1
		if at(o, "spec", "replicas") != nil {
			want = number("spec", "replicas")
		}
		updated, available := number("status", "updatedReplicas"), number("status", "availableReplicas")
		if updated < want || available < want || number("status", "replicas") > updated {
			return fmt.Sprintf("%d of %d replicas", min(updated, available), want)
		}
	case "DaemonSet":
		want := number("status", "desiredNumberScheduled")
		if got := min(number("status", "updatedNumberScheduled"), number("status", "numberAvailable")); got < want {
			return fmt.Sprintf("%d of %d nodes", got, want)
		}
	case "CustomResourceDefinition":
		conditions, _ := at(o, "status", "conditions").([]any)
		for _, c := range conditions {
			m, _ := c.(map[string]any)
			if m["type"] == "Established" && m["status"] == "True" {
				return ""
			}
		}
		return "not established"
	}
	return ""
}

// owned are the kinds that installations make, but CRDs: with those go all
// objects of their kinds.
var owned = []struct{ apiVersion, kind string }{
	{"admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"},
	{"admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration"},
	{"autoscaling/v2", "HorizontalPodAutoscaler"},
	{"policy/v1", "PodDisruptionBudget"},
	{"networking.k8s.io/v1", "NetworkPolicy"},
	{"apps/v1", "Deployment"},
	{"apps/v1", "DaemonSet"},
	{"v1", "Service"},
	{"v1", "ConfigMap"},
	{"v1", "ServiceAccount"},
	{"rbac.authorization.k8s.io/v1", "RoleBinding"},
	{"rbac.authorization.k8s.io/v1", "Role"},
	{"rbac.authorization.k8s.io/v1", "ClusterRoleBinding"},
	{"rbac.authorization.k8s.io/v1", "ClusterRole"},
}

// find lists what installations have made, of one revision or, with "", of all.
func (i *Installer) find(ctx context.Context, revision string) ([]Object, error) {
	selector := ownerLabel + "=heddle"
	if revision != "" {
		selector += "," + revisionLabel + "=" + revision
	}
	var out []Object
	for _, k := range owned {
		list, err := i.Cluster.List(ctx, k.apiVersion, k.kind, "", selector)
		if err != nil {
			return nil, err
		}
		out = append(out, list...)
	}
	return out, nil
}

// prune removes what a revision's installation made before and is not kept. Tags
// are not part of an installation: people set them.
func (i *Installer) prune(ctx context.Context, revision string, kept []Object) (int, error) {
	keep := make(map[string]bool)
	for _, o := range kept {
		keep[o.key()] = true
	}
	found, err := i.find(ctx, revision)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, o := range found {
		if keep[o.key()] || o.Labels()[tagLabel] != "" {
			continue
		}
		if err := i.Cluster.Delete(ctx, o); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// Uninstall lists what the removal of a revision's installation, or of everything
// with purge, takes away: with purge the CRDs with all configuration, what control
// planes have written, the authority's key with it, and the namespaces that
// installations made. Webhooks go first, so that none is asked that nobody
// answers; what control planes write goes after their right to write it again.
func (i *Installer) Uninstall(ctx context.Context, revision string, purge bool) ([]Object, error) {
	if purge {
		revision = ""
	}
	found, err := i.find(ctx, revision)
	if err != nil || !purge {
		return found, err
	}
	written, err := i.written(ctx, found)
	if err != nil {
		return nil, err
	}
	found = append(found, written...)
	for _, k := range []struct{ apiVersion, kind string }{{"apiextensions.k8s.io/v1", "CustomResourceDefinition"}, {"v1", "Namespace"}} {
		list, err := i.Cluster.List(ctx, k.apiVersion, k.kind, "", ownerLabel+"=heddle")
		if err != nil {
			return nil, err
		}
		found = append(found, list...)
	}
	return found, nil
}

// written lists what the control planes among objects have written while they ran.
func (i *Installer) written(ctx context.Context, objects []Object) ([]Object, error) {
	var out []Object
	var seen []string
	for _, o := range objects {
		ns := o.Namespace()
		if o.Kind() != "Deployment" || o.Labels()[componentLabel] != Pilot || slices.Contains(seen, ns) {
			continue
		}
		seen = append(seen, ns)
		leases, err := i.Cluster.List(ctx, "coordination.k8s.io/v1", "Lease", ns, "")
		if err != nil {
			return nil, err
		}
		for _, l := range leases {
			if n := l.Name(); n == "istio-status-leader" || n == "istio-namespace-controller-election" || strings.HasPrefix(n, "istio-webhook-registration-") {
				out = append(out, l)
			}
		}
		key, err := i.Cluster.Get(ctx, "v1", "Secret", ns, "istio-ca-secret")
		if err == nil {
			out = append(out, key)
		} else if !IsNotFound(err) {
			return nil, err
		}
	}
	if len(seen) == 0 {
		return nil, nil
	}
	roots, err := i.Cluster.List(ctx, "v1", "ConfigMap", "", "istio.io/config=true")
	if err != nil {
		return nil, err
	}
	return append(out, slices.DeleteFunc(roots, func(o Object) bool { return o.Name() != "istio-ca-root-cert" })...), nil
}

// Remove deletes objects, in their order.
func (i *Installer) Remove(ctx context.Context, objects []Object) error {
	var errs []error
	for _, o := range objects {
		errs = append(errs, i.Cluster.Delete(ctx, o))
	}
	return errors.Join(errs...)
}

// Verify checks what installations have made, of one revision or of all: whether
// it runs, and whether its webhooks can be called. It returns the faults, and
// how many objects there are.
func (i *Installer) Verify(ctx context.Context, revision string) (faults []string, objects int, err error) {
	found, err := i.find(ctx, revision)
	if err != nil {
		return nil, 0, err
	}
	if !slices.ContainsFunc(found, func(o Object) bool { return o.Labels()[componentLabel] == Pilot && o.Kind() == "Deployment" }) {
		faults = append(faults, "there is no control plane")
	}
	missing, err := i.Missing(ctx, found)
	if err != nil {
		return nil, 0, err
	}
	faults = append(faults, missing...)
	for _, o := range found {
		hooks, _ := o["webhooks"].([]any)
		for _, h := range hooks {
			m, _ := h.(map[string]any)
			if at(m, "clientConfig", "service") != nil && at(m, "clientConfig", "caBundle") == nil {
				faults = append(faults, fmt.Sprintf("%s: webhook %v has no certificate authority yet", o, m["name"]))
			}
		}
	}
	return faults, len(found), nil
}
