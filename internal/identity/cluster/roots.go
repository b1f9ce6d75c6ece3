package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"

	"github.com/heddle-mesh/heddle/internal/kubeapi"
)

// writeAgain is how long the writer waits after something could not be written.
const writeAgain = 2 * time.Second

// without are namespaces that get no ConfigMap: no pod there is of the mesh.
// Source: Istio, inject.IgnoredNamespaces.
var without = []string{"kube-system", "kube-public", "kube-node-lease", "local-path-storage"}

// RootsConfig is what Roots needs.
type RootsConfig struct {
	Clients   kubeapi.Clients
	Namespace string // of the lease
	Identity  string // of this replica
	PEM       func() []byte
	Log       *slog.Logger
}

// Roots keeps the root certificates in a ConfigMap of every namespace. Of several
// replicas the one with the lease writes.
type Roots struct {
	cfg  RootsConfig
	news chan struct{}

	mu sync.Mutex
	// mu guards all below.
	namespaces []string
	have       map[string]string // of each namespace, what stands there
	read       bool              // all ConfigMaps, once
}

// NewRoots starts nothing.
func NewRoots(cfg RootsConfig) *Roots {
	return &Roots{cfg: cfg, news: make(chan struct{}, 1), have: map[string]string{}}
}

// SetNamespaces says which namespaces there are.
func (r *Roots) SetNamespaces(names []string) {
	r.change(func() { r.namespaces = names })
}

// Changed says that PEM gives something else now.
func (r *Roots) Changed() { r.change(func() {}) }

func (r *Roots) change(f func()) {
	r.mu.Lock()
	f()
	r.mu.Unlock()
	select {
	case r.news <- struct{}{}:
	default:
	}
}

// Run writes until ctx ends, while this replica holds the lease.
func (r *Roots) Run(ctx context.Context) error {
	ctx = kubeapi.Logging(ctx, r.cfg.Log)
	return kubeapi.Lead(ctx, r.cfg.Clients, r.cfg.Namespace, rootsLease, r.cfg.Identity, r.lead)
}

func (r *Roots) lead(ctx context.Context) {
	var watch sync.WaitGroup
	defer watch.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.change(func() { r.read = false })
	objects := kubeapi.Objects(r.cfg.Clients.Core.CoreV1().ConfigMaps(metav1.NamespaceAll), fields.OneTermEqualSelector(metav1.ObjectNameField, rootsConfigMap).String())
	put := func(cm *corev1.ConfigMap) { r.have[cm.Namespace] = cm.Data[rootsKey] }
	watch.Go(func() {
		kubeapi.Follow(ctx, "configmaps "+rootsConfigMap, objects, &corev1.ConfigMap{}, kubeapi.Handler[*corev1.ConfigMap]{
			Put:  func(cm *corev1.ConfigMap) { r.change(func() { put(cm) }) },
			Gone: func(cm *corev1.ConfigMap) { r.change(func() { delete(r.have, cm.Namespace) }) },
			All: func(all []*corev1.ConfigMap) {
				r.change(func() {
					clear(r.have)
					for _, cm := range all {
						put(cm)
					}
					r.read = true
				})
			},
		})
	})
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.news:
		case <-again.C:
		}
		if !r.write(ctx) {
			again.Reset(writeAgain)
		}
	}
}

// write brings all ConfigMaps up to date. It returns false if one could not be
// written.
func (r *Roots) write(ctx context.Context) bool {
	want := string(r.cfg.PEM())
	r.mu.Lock()
	var create, update []string
	if r.read {
		for _, ns := range r.namespaces {
			if is, there := r.have[ns]; slices.Contains(without, ns) || is == want {
				continue
			} else if there {
				update = append(update, ns)
			} else {
				create = append(create, ns)
			}
		}
	}
	r.mu.Unlock()
	ok := true
	for _, ns := range create {
		ok = r.told(ns, r.create(ctx, ns, want)) && ok
	}
	for _, ns := range update {
		ok = r.told(ns, r.update(ctx, ns, want)) && ok
	}
	return ok
}

func (r *Roots) create(ctx context.Context, ns, pem string) error {
	_, err := r.cfg.Clients.Core.CoreV1().ConfigMaps(ns).Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: rootsConfigMap, Namespace: ns, Labels: map[string]string{"istio.io/config": "true"}},
		Data:       map[string]string{rootsKey: pem},
	}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return r.update(ctx, ns, pem)
	}
	return err
}

func (r *Roots) update(ctx context.Context, ns, pem string) error {
	patch, err := json.Marshal(map[string]any{"data": map[string]string{rootsKey: pem}})
	if err != nil {
		return err
	}
	_, err = r.cfg.Clients.Core.CoreV1().ConfigMaps(ns).Patch(ctx, rootsConfigMap, types.MergePatchType, bytes.TrimSpace(patch), metav1.PatchOptions{})
	return err
}

// told reports the outcome of one write. A namespace that is going away takes
// nothing new, and that is no fault.
func (r *Roots) told(ns string, err error) bool {
	switch {
	case err == nil:
		return true
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause), apierrors.IsNotFound(err):
		return true
	}
	r.cfg.Log.Warn("the root certificates can not be written", "namespace", ns, "err", err)
	return false
}
