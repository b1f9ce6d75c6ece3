// Package kube gives tests real Kubernetes clusters on this machine, by the
// kubehost program. A test asks its Host for a cluster, which brings it up if it
// does not run, and the cluster for a namespace, which goes away with the test.
//
// What a test needs of Heddle it takes as a user would: by images and manifests.
// The package therefore imports nothing of Heddle.
package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Config says what a cluster is to be. Two tests that name the same cluster share
// it, and must want the same.
type Config struct {
	Name  string // a small letter and at most 7 more small letters and digits
	Nodes int    // 0 is 1
	Dual  bool   // IPv6 beside IPv4
}

// Host is this machine, as a place for clusters.
type Host struct {
	root string   // of the checkout
	lock *os.File // held: tests of one run have the clusters to themselves

	mu    sync.Mutex
	up    map[string]*Cluster
	began []string // clusters that did not run before
}

// NewHost returns a Host that uses the programs and image archives that make has
// put below bin/ of a checkout. While the tests of another checkout run on this
// machine, which would use clusters of the same names, it waits.
func NewHost(root string) (*Host, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	h := &Host{root: root, up: make(map[string]*Cluster)}
	if _, err := os.Stat(h.program()); err != nil {
		return nil, fmt.Errorf("%w; make kubehost builds it", err)
	}
	state, err := h.kubehost("state")
	if err != nil {
		return nil, err
	}
	if h.lock, err = os.Create(filepath.Join(strings.TrimSpace(state), "tests.lock")); err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(h.lock.Fd()), syscall.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", h.lock.Name(), err)
	}
	return h, nil
}

func (h *Host) program() string { return filepath.Join(h.root, "bin", "kubehost") }

// Cluster returns a running cluster with all images of bin/load in it.
func (h *Host) Cluster(t testing.TB, c Config) *Cluster {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if cl, ok := h.up[c.Name]; ok {
		return cl
	}
	cl, err := h.bringUp(c)
	if err != nil {
		t.Fatal(err)
	}
	h.up[c.Name] = cl
	return cl
}

func (h *Host) bringUp(c Config) (*Cluster, error) {
	list, err := h.kubehost("list")
	if err != nil {
		return nil, err
	}
	ran := false
	for line := range strings.Lines(list) {
		f := strings.Fields(line)
		ran = ran || len(f) > 1 && f[0] == c.Name && f[1] != "0"
	}
	args := []string{"up", "-name", c.Name, "-source", filepath.Join(h.root, "test", "e2e", "host"), "-nodes", fmt.Sprint(max(c.Nodes, 1)), fmt.Sprintf("-dual=%v", c.Dual)}
	if _, err := h.kubehost(args...); err != nil {
		return nil, err
	}
	if !ran {
		h.began = append(h.began, c.Name)
	}
	text, err := h.kubehost("info", "-name", c.Name)
	if err != nil {
		return nil, err
	}
	cl := &Cluster{host: h}
	if err := json.Unmarshal([]byte(text), cl); err != nil {
		return nil, err
	}
	if cl.REST, err = clientcmd.BuildConfigFromFlags("", cl.Kubeconfig); err != nil {
		return nil, err
	}
	if cl.Client, err = kubernetes.NewForConfig(cl.REST); err != nil {
		return nil, err
	}
	archives, err := filepath.Glob(filepath.Join(h.root, "bin", "load", "*.tar"))
	if err != nil {
		return nil, err
	}
	if len(archives) == 0 {
		return nil, fmt.Errorf("no images in %s; make e2e-images builds them", filepath.Join(h.root, "bin", "load"))
	}
	_, err = h.kubehost(append([]string{"load", "-name", c.Name}, archives...)...)
	return cl, err
}

// Down ends a cluster now.
func (h *Host) Down(name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.up, name)
	_, err := h.kubehost("down", "-name", name)
	return err
}

// Close ends the clusters that this Host began; those that ran before go on.
func (h *Host) Close() error {
	var errs []error
	for _, name := range h.began {
		errs = append(errs, h.Down(name))
	}
	errs = append(errs, h.lock.Close())
	return errors.Join(errs...)
}

func (h *Host) kubehost(args ...string) (string, error) {
	return output(exec.Command(h.program(), args...))
}

func output(cmd *exec.Cmd) (string, error) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s", filepath.Base(cmd.Path), strings.Join(cmd.Args[1:], " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// Cluster is a running cluster.
type Cluster struct {
	Name       string   `json:"name"`
	Kubeconfig string   `json:"kubeconfig"`
	Kubectl    string   `json:"kubectl"`
	Logs       string   `json:"logs"` // directory of the components' logs
	Host       []string `json:"host"` // addresses at which pods reach this machine
	Nodes      []Node   `json:"nodes"`

	REST   *rest.Config          `json:"-"`
	Client *kubernetes.Clientset `json:"-"`

	host *Host
}

// Node is a node of a cluster.
type Node struct {
	Name      string   `json:"name"`
	Addresses []string `json:"addresses"`
	Process   int      `json:"process"` // its first one, which holds its namespaces
}

// Run runs kubectl, with input if that is not "", and returns what it prints.
func (c *Cluster) Run(ctx context.Context, input string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.Kubectl, append([]string{"--kubeconfig=" + c.Kubeconfig}, args...)...)
	if input != "" {
		cmd.Stdin = strings.NewReader(input)
	}
	return output(cmd)
}

// Heddle runs the CLI on the cluster, and returns what it prints.
func (c *Cluster) Heddle(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(c.host.root, "bin", "heddle"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig)
	return output(cmd)
}

// Load loads an image archive into all nodes.
func (c *Cluster) Load(t testing.TB, archives ...string) {
	t.Helper()
	if _, err := c.host.kubehost(append([]string{"load", "-name", c.Name}, archives...)...); err != nil {
		t.Fatal(err)
	}
}

// Apply applies manifests that belong to no namespace, or name theirs, and
// deletes them after the test.
func (c *Cluster) Apply(t testing.TB, manifests string) {
	t.Helper()
	t.Cleanup(func() {
		if _, err := c.Run(context.Background(), manifests, "delete", "--ignore-not-found", "--timeout=60s", "-f", "-"); err != nil {
			t.Error(err)
		}
	})
	if _, err := c.Run(t.Context(), manifests, "apply", "--server-side", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// Eventually asks until there is no error, and fails the test with the last one
// after a minute: a busy machine is slow, and what works is not waited for.
func Eventually(t testing.TB, ask func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var err error
	for {
		last := err
		if err = ask(ctx); err == nil {
			return
		}
		if ctx.Err() != nil && last != nil {
			err = last // not that the end of time cut the question short
		}
		select {
		case <-ctx.Done():
			t.Fatalf("still, after a minute: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
