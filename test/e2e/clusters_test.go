//go:build heddle_e2e

package e2e

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/test/e2e/kube"
)

// While a cluster comes and goes, two others keep answering, each with its own pods.
func TestClustersDoNotDisturbEachOther(t *testing.T) {
	var spaces []*kube.Namespace
	for _, c := range []kube.Config{single, dual} {
		n := host.Cluster(t, c).Namespace(t)
		n.Apply(strings.ReplaceAll(echoes(n.Cluster, "", 0, 0), "name: server", "name: server-"+n.Cluster.Name))
		n.WaitReady("pod/server-"+n.Cluster.Name, "pod/client")
		spaces = append(spaces, n)
	}
	answers := func(when string) {
		t.Helper()
		for _, n := range spaces {
			name := "server-" + n.Cluster.Name
			wantPod(t, name, func(ctx context.Context) (reply, error) {
				return ask(ctx, n, "pod/client", "http://"+n.PodIPs(name)[0]+":8080/")
			})
			wantPod(t, name, func(ctx context.Context) (reply, error) { return askFromHost(ctx, n.PodIPs(name)[0], "8080") })
			if got := strings.Fields(n.Do("get", "nodes", "-o", "name")); len(got) != len(n.Nodes) {
				t.Errorf("%s: cluster %s has the nodes %v", when, n.Cluster.Name, got)
			}
		}
	}
	processes := func() []int {
		var all []int
		for _, n := range spaces {
			for _, node := range n.Nodes {
				all = append(all, node.Process)
			}
		}
		return all
	}
	answers("before")
	third := host.Cluster(t, kube.Config{Name: "e2ethird"})
	answers("beside a third")
	for _, n := range spaces {
		if n.Host[0] == third.Host[0] || n.Nodes[0].Addresses[0] == third.Nodes[0].Addresses[0] {
			t.Errorf("clusters %s and %s have the same addresses", n.Cluster.Name, third.Name)
		}
	}
	if err := host.Down(third.Name); err != nil {
		t.Fatal(err)
	}
	answers("after the third")
	for _, pid := range processes() {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil {
			t.Error("a node of another cluster ended:", err)
		}
	}
}

// What is there of a cluster can be told by its name and by its namespaces, so the
// test does not mind what else the machine does.
func TestDownLeavesNothing(t *testing.T) {
	before := directories(t)
	c := host.Cluster(t, kube.Config{Name: "e2egone", Nodes: 2, Dual: true})
	// In no namespace of the test's: the pods are to run when the cluster ends.
	if _, err := c.Run(t.Context(), echoes(c, "", 0, 1), "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Run(t.Context(), "", "wait", "--for=condition=Ready", "--timeout=90s", "pod/server", "pod/client"); err != nil {
		t.Fatal(err)
	}
	clusterDir := filepath.Dir(c.Logs)
	var spaces []string
	for _, node := range c.Nodes {
		for _, kind := range []string{"pid", "mnt"} {
			ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", node.Process, kind))
			if err != nil {
				t.Fatal(err)
			}
			spaces = append(spaces, ns)
		}
	}
	traces := func() map[string][]string {
		found := map[string][]string{
			"processes": processesIn(t, spaces),
			"links":     glob(t, "/sys/class/net/hk-e2egone*"),
			"cgroups":   glob(t, "/sys/fs/cgroup/*/heddle-e2e/e2egone"),
			"files":     slices.DeleteFunc(glob(t, clusterDir+"/*"), func(f string) bool { return slices.Contains([]string{"log", "lock"}, filepath.Base(f)) }),
			"mounts":    lines(t, "/proc/self/mountinfo", clusterDir),
			"routes":    lines(t, "/proc/net/route", "hk-e2egone"),
			"routes6":   lines(t, "/proc/net/ipv6_route", "hk-e2egone"),
		}
		maps.DeleteFunc(found, func(_ string, v []string) bool { return len(v) == 0 })
		return found
	}
	for _, kind := range []string{"processes", "links", "cgroups", "files", "routes", "routes6"} {
		if len(traces()[kind]) == 0 {
			t.Errorf("a running cluster shows no %s: the test looks in the wrong place", kind)
		}
	}
	if err := host.Down(c.Name); err != nil {
		t.Fatal(err)
	}
	for kind, left := range traces() {
		t.Errorf("down leaves %s: %s", kind, strings.Join(left, "\n\t"))
	}
	if after := directories(t); !slices.Equal(before, after) {
		t.Errorf("directories of nodes on the machine itself: before %v, after %v", before, after)
	}
	if logs := glob(t, c.Logs+"/*/kubelet.log"); len(logs) != 2 {
		t.Errorf("the logs are to stay, and there are %v", logs)
	}
}

// directories are those that a kubelet or a network plugin makes where it is not kept from it.
func directories(t *testing.T) []string {
	var found []string
	for _, d := range []string{"/var/lib/kubelet", "/var/lib/cni", "/etc/cni/net.d", "/opt/cni", "/run/containerd", "/var/log/pods", "/var/log/containers", "/run/netns"} {
		if _, err := os.Stat(d); err == nil {
			found = append(found, d)
			found = append(found, glob(t, d+"/*")...)
		}
	}
	return found
}

func processesIn(t *testing.T, namespaces []string) []string {
	var found []string
	for _, dir := range glob(t, "/proc/[0-9]*") {
		for _, kind := range []string{"pid", "mnt"} {
			ns, err := os.Readlink(dir + "/ns/" + kind)
			if err == nil && slices.Contains(namespaces, ns) {
				cmd, _ := os.ReadFile(dir + "/cmdline") // it may have ended
				found = append(found, filepath.Base(dir)+" "+strings.ReplaceAll(string(cmd), "\x00", " "))
				break
			}
		}
	}
	return found
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func lines(t *testing.T, file, with string) []string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for l := range strings.Lines(string(b)) {
		if strings.Contains(l, with) {
			found = append(found, strings.TrimSpace(l))
		}
	}
	return found
}
