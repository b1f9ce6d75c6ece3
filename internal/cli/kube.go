package cli

import (
	"context"
	"fmt"
	"strings"

	"k8s.io/client-go/rest"

	"github.com/heddle-mesh/heddle/internal/forward"
	"github.com/heddle-mesh/heddle/internal/install"
)

// kube reaches into a mesh on Kubernetes.
type kube struct {
	cfg *rest.Config
	api *install.Cluster
	// namespace is the control plane's.
	namespace string
}

// Ports of the pages, which are Istio's.
const (
	adminPort = 15000
	debugPort = 15014
)

func (k *kube) proxy(ctx context.Context, namespace, pod, method, path string) ([]byte, error) {
	pod, namespace, err := k.find(ctx, pod, namespace)
	if err != nil {
		return nil, err
	}
	return forward.Ask(ctx, k.cfg, namespace, pod, adminPort, method, path)
}

// find takes "pod", "pod.namespace" and "deployment/name".
func (k *kube) find(ctx context.Context, pod, namespace string) (string, string, error) {
	kind, name, isKind := strings.Cut(pod, "/")
	if !isKind {
		kind, name = "pod", pod
	}
	if i := strings.LastIndexByte(name, '.'); i > 0 && namespace == "" {
		name, namespace = name[:i], name[i+1:]
	}
	if namespace == "" {
		namespace = "default"
	}
	switch kind {
	case "pod", "pods", "po":
		return name, namespace, nil
	case "deployment", "deployments", "deploy":
		pods, err := k.api.List(ctx, "v1", "Pod", namespace, "")
		if err != nil {
			return "", "", err
		}
		for _, p := range pods {
			// A ReplicaSet's pods have its name, and that is its Deployment's and a hash.
			if parts := strings.Split(p.Name(), "-"); len(parts) > 2 && strings.Join(parts[:len(parts)-2], "-") == name {
				return p.Name(), namespace, nil
			}
		}
		return "", "", fmt.Errorf("deployment %s.%s has no pods", name, namespace)
	}
	return "", "", fmt.Errorf("%s: name a pod, as NAME.NAMESPACE or deployment/NAME", pod)
}

func (k *kube) control(ctx context.Context, path string) (map[string][]byte, error) {
	pods, err := k.api.List(ctx, "v1", "Pod", k.namespace, "app=istiod")
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	for _, p := range pods {
		status, _ := p["status"].(map[string]any)
		if phase, _ := status["phase"].(string); phase != "Running" {
			continue
		}
		if out[p.Name()], err = forward.Ask(ctx, k.cfg, k.namespace, p.Name(), debugPort, "GET", path); err != nil {
			return nil, err
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no control plane runs in namespace %s: heddle install brings one", k.namespace)
	}
	return out, nil
}
