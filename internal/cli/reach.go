package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/heddle-mesh/heddle/internal/install"
	"github.com/heddle-mesh/heddle/internal/lab"
)

// reach is the way to the pages that proxies and the control plane show on their
// own loopback.
type reach interface {
	// proxy asks a proxy's admin server. pod is as the user named it.
	proxy(ctx context.Context, namespace, pod, method, path string) ([]byte, error)
	// control asks each instance of the control plane for a page, by its name.
	control(ctx context.Context, path string) (map[string][]byte, error)
}

// local reaches into the mesh on this machine, with a program that it runs in the
// pod.
type local struct {
	client *lab.Client
	errs   *os.File
}

func (l local) proxy(ctx context.Context, namespace, pod, method, path string) ([]byte, error) {
	if i := strings.LastIndexByte(pod, '.'); i > 0 && namespace == "" {
		pod, namespace = pod[:i], pod[i+1:]
	}
	return l.run(ctx, lab.ExecRequest{Namespace: namespace, Pod: pod, Command: []string{"heddle-proxy", "request", method, path}})
}

func (l local) control(ctx context.Context, path string) (map[string][]byte, error) {
	pods, err := l.client.Pods(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	for _, p := range pods {
		if !strings.HasPrefix(p.Name, "istiod-") || !slices.ContainsFunc(p.Containers, func(c lab.ContainerStatus) bool { return c.Name == "discovery" }) {
			continue
		}
		if out[p.Name], err = l.run(ctx, lab.ExecRequest{Namespace: p.Namespace, Pod: p.Name, Command: []string{"heddle-proxy", "request", "-debug-port", "15014", "GET", path}}); err != nil {
			return nil, err
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("there is no control plane in this mesh")
	}
	return out, nil
}

// run returns what a program in a pod prints.
func (l local) run(ctx context.Context, r lab.ExecRequest) ([]byte, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	out, outDone, err := collect()
	if err != nil {
		return nil, err
	}
	errs, errsDone, err := collect()
	if err != nil {
		out.Close()
		outDone()
		return nil, err
	}
	status, err := l.client.Exec(ctx, r, null, out, errs, nil)
	out.Close()
	errs.Close()
	text, said := outDone(), outText(errsDone())
	switch {
	case err != nil:
		return nil, err
	case status != 0:
		return nil, fmt.Errorf("%s: %s", r.Pod, said)
	}
	return text, nil
}

func outText(b []byte) string { return strings.TrimSpace(string(b)) }

// collect returns a file, and a function that returns what was written to it once
// all have closed it.
func collect() (*os.File, func() []byte, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	done := make(chan []byte, 1)
	go func() {
		var b bytes.Buffer
		_, _ = io.Copy(&b, r) // what was cut off shows where it is read
		r.Close()
		done <- b.Bytes()
	}()
	return w, func() []byte { return <-done }, nil
}

// where is the choice of a mesh by flags, on this machine or on Kubernetes.
type where struct {
	mesh
	cluster
	istioNamespace string
}

func (w *where) flags(c *cobra.Command) {
	w.mesh.flags(c)
	w.cluster.flags(c)
	c.Flags().StringVarP(&w.istioNamespace, "istioNamespace", "i", "istio-system", "namespace of the control plane, on Kubernetes")
}

// reach returns the way into the chosen mesh: one on this machine if it was named
// or if one runs, unless a cluster was chosen.
func (w *where) reach(s Streams) (reach, error) {
	chosen := w.kubeconfig != "" || w.context != ""
	here := w.name != "" || w.stateDir != "" || len(lab.Running()) > 0
	if !chosen && (here || !hasCluster()) {
		client, err := w.client()
		if err != nil {
			return nil, err
		}
		return local{client, s.Err}, nil
	}
	cfg, err := install.Kubeconfig(w.kubeconfig, w.context)
	if err != nil {
		return nil, err
	}
	api, err := install.NewCluster(cfg)
	if err != nil {
		return nil, err
	}
	return &kube{cfg: cfg, api: api, namespace: w.istioNamespace}, nil
}
