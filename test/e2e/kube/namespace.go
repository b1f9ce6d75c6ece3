package kube

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
)

// Namespace is a namespace of one test.
type Namespace struct {
	*Cluster
	Name string

	t testing.TB
}

// Namespace makes a namespace with labels, given as "key=value". When the test
// ends it is deleted with all in it; when the test failed, what its pods did is
// printed first.
func (c *Cluster) Namespace(t testing.TB, labels ...string) *Namespace {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-", Labels: make(map[string]string)}}
	for _, l := range labels {
		k, v, _ := strings.Cut(l, "=")
		ns.Labels[k] = v
	}
	made, err := c.Client.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n := &Namespace{Cluster: c, Name: made.Name, t: t}
	t.Cleanup(n.remove)
	// A pod that is made before its ServiceAccount is refused.
	Eventually(t, func(ctx context.Context) error {
		_, err := c.Client.CoreV1().ServiceAccounts(n.Name).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	return n
}

func (n *Namespace) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if n.t.Failed() {
		n.t.Log(n.describe(ctx))
	}
	now := int64(0)
	err := n.Client.CoreV1().Namespaces().Delete(ctx, n.Name, metav1.DeleteOptions{GracePeriodSeconds: &now})
	if err == nil {
		err = wait.PollUntilContextCancel(ctx, 100*time.Millisecond, true, func(ctx context.Context) (bool, error) {
			_, err := n.Client.CoreV1().Namespaces().Get(ctx, n.Name, metav1.GetOptions{})
			return err != nil, nil
		})
	}
	if err != nil {
		n.t.Errorf("namespace %s: %v", n.Name, err)
	}
}

// describe says what is and was in the namespace. Errors are part of the answer.
func (n *Namespace) describe(ctx context.Context) string {
	var b strings.Builder
	for _, args := range [][]string{
		{"get", "pods,services,endpointslices", "-o", "wide"},
		{"get", "events", "--sort-by=.metadata.creationTimestamp"},
	} {
		out, err := n.Run(ctx, "", append([]string{"--namespace=" + n.Name}, args...)...)
		fmt.Fprintf(&b, "$ kubectl %s\n%s", strings.Join(args, " "), out)
		if err != nil {
			fmt.Fprintln(&b, err)
		}
	}
	pods, err := n.Client.CoreV1().Pods(n.Name).List(ctx, metav1.ListOptions{})
	if err != nil {
		return b.String() + err.Error()
	}
	for _, p := range pods.Items {
		out, err := n.Run(ctx, "", "--namespace="+n.Name, "logs", p.Name, "--all-containers", "--prefix", "--tail=40")
		fmt.Fprintf(&b, "$ kubectl logs %s\n%s", p.Name, out)
		if err != nil {
			fmt.Fprintln(&b, err)
		}
	}
	fmt.Fprintf(&b, "logs of the cluster itself are in %s\n", n.Logs)
	return b.String()
}

// Do runs kubectl in the namespace and returns what it prints; failure ends the test.
func (n *Namespace) Do(args ...string) string {
	n.t.Helper()
	out, err := n.Run(n.t.Context(), "", append([]string{"--namespace=" + n.Name}, args...)...)
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

// Apply applies manifests in the namespace.
func (n *Namespace) Apply(manifests string) {
	n.t.Helper()
	if _, err := n.Run(n.t.Context(), manifests, "--namespace="+n.Name, "apply", "--server-side", "-f", "-"); err != nil {
		n.t.Fatal(err)
	}
}

// WaitReady waits until Deployments ("deployment/x") are rolled out and pods ("pod/x") are ready.
func (n *Namespace) WaitReady(objects ...string) {
	n.t.Helper()
	for _, o := range objects {
		if strings.HasPrefix(o, "pod/") {
			n.Do("wait", "--for=condition=Ready", "--timeout=90s", o)
		} else {
			n.Do("rollout", "status", "--timeout=90s", o)
		}
	}
}

// Exec runs a program in a pod ("pod/x", "deployment/x") and returns what it
// prints. Its failure is the caller's to judge.
func (n *Namespace) Exec(ctx context.Context, pod, container string, command ...string) (string, error) {
	args := []string{"--namespace=" + n.Name, "exec", pod}
	if container != "" {
		args = append(args, "--container="+container)
	}
	return n.Run(ctx, "", append(append(args, "--"), command...)...)
}

// LogsOf returns what a container of a pod has logged.
func (n *Namespace) LogsOf(pod, container string) string {
	n.t.Helper()
	return n.Do("logs", pod, "--container="+container)
}

// PodIPs returns a pod's addresses; this machine has routes to them.
func (n *Namespace) PodIPs(pod string) []string {
	n.t.Helper()
	p, err := n.Client.CoreV1().Pods(n.Name).Get(n.t.Context(), pod, metav1.GetOptions{})
	if err != nil {
		n.t.Fatal(err)
	}
	var ips []string
	for _, ip := range p.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	return ips
}

// ServiceIPs returns a Service's cluster addresses; this machine has routes to them.
func (n *Namespace) ServiceIPs(service string) []string {
	n.t.Helper()
	s, err := n.Client.CoreV1().Services(n.Name).Get(n.t.Context(), service, metav1.GetOptions{})
	if err != nil {
		n.t.Fatal(err)
	}
	return s.Spec.ClusterIPs
}
