//go:build heddle_e2e

package e2e

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/test/e2e/kube"
)

func TestStrictAcrossNamespaces(t *testing.T) {
	n := meshed(t)
	other := n.Cluster.Namespace(t, "istio-injection=enabled")
	other.Apply(client + outsider)
	other.WaitReady("pod/client", "pod/outsider")
	url := "http://echo." + n.Name + "/"
	asked(t, other, "pod/outsider", url)
	n.Apply(`{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: default}, spec: {mtls: {mode: STRICT}}}`)
	kube.Eventually(t, func(ctx context.Context) error {
		all, err := requests(ctx, other, "pod/outsider", "-no-reuse", url)
		if err == nil && (len(all) != 1 || all[0].ok()) {
			err = fmt.Errorf("%s serves a client without sidecar: %v", url, all)
		}
		return err
	})
	want := ";URI=spiffe://cluster.local/ns/" + other.Name + "/sa/client"
	if xfcc := asked(t, other, "pod/client", url)[0].Reply.Header["x-forwarded-client-cert"]; !strings.HasSuffix(xfcc, want) {
		t.Errorf("the server was told %q, want …%s", xfcc, want)
	}
}

// background asks while do runs, 200 times a second, and returns all answers.
func background(t *testing.T, n *kube.Namespace, url string, do func()) []answer {
	t.Helper()
	type result struct {
		all []answer
		err error
	}
	finish := make(chan struct{})
	done := make(chan result, 1)
	go func() {
		var r result
		for r.err == nil {
			select {
			case <-finish:
				done <- r
				return
			default:
			}
			var some []answer
			some, r.err = requests(t.Context(), n, "pod/client", "-rps", "200", "-for", "5s", "-timeout", "5s", url)
			r.all = append(r.all, some...)
		}
		done <- r
	}()
	ended := false
	end := func() result { ended = true; close(finish); return <-done }
	defer func() { // do may end the test
		if !ended {
			end()
		}
	}()
	do()
	r := end()
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.all
}

func TestRestartsFailNoRequest(t *testing.T) {
	n := meshed(t)
	asked(t, n, "pod/client", "-n", "50", "http://echo/")
	for _, restart := range []struct{ namespace, deployment, pods string }{
		{n.Name, "deployment/echo-v1", "version=v1"}, {"istio-system", "deployment/istiod", "app=istiod"}, {n.Name, "deployment/echo-v2", "version=v2"},
	} {
		all := background(t, n, "http://echo/", func() {
			run := func(args ...string) string {
				t.Helper()
				out, err := n.Run(t.Context(), "", append([]string{"--namespace=" + restart.namespace}, args...)...)
				if err != nil {
					t.Fatal(err)
				}
				return out
			}
			before := strings.Fields(run("get", "pods", "-o", "name", "--selector="+restart.pods))
			run("rollout", "restart", restart.deployment)
			run("rollout", "status", "--timeout=90s", restart.deployment)
			run(append([]string{"wait", "--for=delete", "--timeout=90s"}, before...)...)
		})
		t.Logf("%s: %d requests", restart.deployment, len(all))
		if bad := failed(all); len(bad) > 0 || len(all) < 500 {
			t.Errorf("while %s restarted, of %d requests failed %v", restart.deployment, len(all), bad)
		}
	}
}

// While there is no control plane, traffic goes on, pods that would need it wait,
// and what has nothing to do with the mesh is not disturbed.
func TestWithoutControlPlane(t *testing.T) {
	n := meshed(t)
	n.Apply(split)
	routed(t, n, "client")
	system := []string{"--namespace=istio-system"}
	run := func(args ...string) string {
		t.Helper()
		out, err := n.Run(t.Context(), "", args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	// Configuration is checked by then.
	kube.Eventually(t, func(ctx context.Context) error {
		policy, err := n.Run(ctx, "", "get", "validatingwebhookconfiguration", "istiod-default-validator", "-o", "jsonpath={.webhooks[0].failurePolicy}")
		if err == nil && policy != "Fail" {
			err = fmt.Errorf("checks fail to %s", policy)
		}
		return err
	})
	run(append(system, "delete", "deployment/istiod", "--wait=true")...)
	back := func() { installed(t, n.Cluster) }
	t.Cleanup(func() {
		if t.Failed() {
			n.Cluster.Heddle(context.Background(), "install", "-y", "--set", "hub=ghcr.io/heddle-mesh", "--set", "tag=dev")
		}
	})
	run(append(system, "wait", "--for=delete", "pod", "--selector=app=istiod", "--timeout=90s")...)

	all := background(t, n, "http://echo/", func() {
		// A pod of the mesh is not made.
		n.Do("rollout", "restart", "deployment/echo-v1")
		kube.Eventually(t, func(ctx context.Context) error {
			events, err := n.Run(ctx, "", "--namespace="+n.Name, "get", "events", "--field-selector=reason=FailedCreate", "-o", "jsonpath={.items[*].message}")
			if err == nil && !strings.Contains(events, "istio.io") {
				err = fmt.Errorf("no pod was refused for want of the webhook: %s", events)
			}
			return err
		})
		// One of the system is, and one that has nothing to do with the mesh.
		plain := n.Cluster.Namespace(t)
		for _, ns := range []string{"kube-system", plain.Name} {
			pod := strings.ReplaceAll(outsider, `, sidecar.istio.io/inject: "false"`, "")
			if _, err := n.Run(t.Context(), pod, "--namespace="+ns, "apply", "--server-side", "-f", "-"); err != nil {
				t.Errorf("a pod in %s: %v", ns, err)
				continue
			}
			run("--namespace="+ns, "wait", "--for=condition=Ready", "--timeout=60s", "pod/outsider")
			run("--namespace="+ns, "delete", "--now", "pod/outsider")
		}
		// The configuration can not be checked, so it is not taken.
		if out, err := n.Run(t.Context(), strings.ReplaceAll(split, "80", "70"), "--namespace="+n.Name, "apply", "--server-side", "-f", "-"); err == nil {
			t.Errorf("configuration was taken unchecked: %s", out)
		}
	})
	if bad := failed(all); len(bad) > 0 || len(all) < 500 {
		t.Errorf("without control plane, of %d requests failed %v", len(all), bad)
	}
	back()
	n.Do("rollout", "status", "--timeout=120s", "deployment/echo-v1")
	asked(t, n, "pod/client", "-n", "50", "http://echo/")
}

func TestJobsComplete(t *testing.T) {
	n := meshed(t)
	n.Apply(`
apiVersion: batch/v1
kind: Job
metadata: {name: once}
spec:
  backoffLimit: 2
  template:
    spec:
      restartPolicy: Never
      containers:
      - name: client
        image: ghcr.io/heddle-mesh/meshecho:dev
        args: [get, "http://echo/"]
`)
	n.Do("wait", "--for=condition=Complete", "--timeout=60s", "job/once")
	if out := n.Do("logs", "job/once", "--container=client"); !strings.Contains(out, "x-forwarded-client-cert") {
		t.Errorf("the Job's request did not go through the mesh: %s", out)
	}
}

// An installation and its removal leave a cluster with the objects it had.
func TestPurgeLeavesNothing(t *testing.T) {
	c := host.Cluster(t, kube.Config{Name: "e2ebare"})
	t.Cleanup(func() {
		if err := host.Down(c.Name); err != nil {
			t.Error(err)
		}
	})
	objects := func(ctx context.Context) (map[string]bool, error) {
		kinds, err := c.Run(ctx, "", "api-resources", "--verbs=list,delete", "-o", "name")
		if err != nil {
			return nil, err
		}
		// What comes and goes by itself.
		list := slices.DeleteFunc(strings.Fields(kinds), func(k string) bool { return strings.HasPrefix(k, "events") })
		out, err := c.Run(ctx, "", "get", "--all-namespaces", "-o", `jsonpath={range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name}{"\n"}{end}`, strings.Join(list, ","))
		all := make(map[string]bool)
		for l := range strings.Lines(out) {
			if !strings.HasPrefix(l, "Lease kube-node-lease/") { // a node's, which comes when it likes
				all[strings.TrimSpace(l)] = true
			}
		}
		return all, err
	}
	before, err := objects(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	installed(t, c)
	for _, step := range []struct {
		input string
		args  []string
	}{
		{`{apiVersion: v1, kind: Namespace, metadata: {name: used, labels: {istio-injection: enabled}}}`, []string{"apply", "-f", "-"}},
		{split, []string{"--namespace=used", "apply", "-f", "-"}},
		{"", []string{"delete", "namespace", "used", "--timeout=90s"}},
	} {
		if _, err := c.Run(t.Context(), step.input, step.args...); err != nil {
			t.Fatal(err)
		}
	}
	t.Log(must(t, c, "uninstall", "--purge", "-y"))
	kube.Eventually(t, func(ctx context.Context) error {
		after, err := objects(ctx)
		maps.DeleteFunc(after, func(o string, _ bool) bool { return before[o] })
		if err == nil && len(after) > 0 {
			err = fmt.Errorf("left: %s", strings.Join(slices.Sorted(maps.Keys(after)), ", "))
		}
		return err
	})
	if out, err := c.Heddle(t.Context(), "uninstall", "--purge", "-y"); err == nil {
		t.Errorf("there was more to remove: %s", out)
	}
}
