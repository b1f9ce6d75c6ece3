// Package kubeapi is how the control plane talks to Kubernetes' API server: its
// clients, a watch that keeps no copy of what it sees, and leases, by which one
// of several replicas does what only one should.
package kubeapi

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
)

// Limits of what the control plane asks, as istiod's: an API server serves
// others, too.
const (
	perSecond = 80
	burst     = 160
)

// Clients reach one API server over shared connections.
type Clients struct {
	Core   kubernetes.Interface
	Custom dynamic.Interface
}

// New makes clients. It asks nothing.
func New(c *rest.Config) (Clients, error) {
	base := rest.CopyConfig(c)
	if base.QPS == 0 {
		base.QPS, base.Burst = perSecond, burst
	}
	if base.UserAgent == "" {
		base.UserAgent = "heddled"
	}
	web, err := rest.HTTPClientFor(base)
	if err != nil {
		return Clients{}, fmt.Errorf("kubernetes: %w", err)
	}
	// Objects of the core kinds are half as large in protobuf, and far cheaper to
	// read; custom ones come as JSON only.
	compact := rest.CopyConfig(base)
	compact.ContentType = runtime.ContentTypeProtobuf
	compact.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	core, err := kubernetes.NewForConfigAndClient(compact, web)
	if err != nil {
		return Clients{}, fmt.Errorf("kubernetes: %w", err)
	}
	custom, err := dynamic.NewForConfigAndClient(base, web)
	if err != nil {
		return Clients{}, fmt.Errorf("kubernetes: %w", err)
	}
	return Clients{core, custom}, nil
}

// Logging returns a context in which the client library speaks through log.
func Logging(ctx context.Context, log *slog.Logger) context.Context {
	return klog.NewContext(ctx, logr.FromSlogHandler(log.Handler()))
}

// Lister is the part of a client for one resource that a watch needs.
type Lister[L runtime.Object] interface {
	List(ctx context.Context, opts metav1.ListOptions) (L, error)
	Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error)
}

// Objects are what a watch follows: those of a client for one resource that a
// field selector lets pass.
func Objects[L runtime.Object](c Lister[L], fields string) cache.ListerWatcher {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = fields
			return c.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = fields
			return c.Watch(ctx, o)
		},
	}
}

// Follow lists and watches objects, and tells a store of them from one
// goroutine, until ctx ends. example is of the type that arrives.
func Follow(ctx context.Context, name string, objects cache.ListerWatcher, example runtime.Object, to cache.ReflectorStore) {
	log := klog.FromContext(ctx)
	cache.NewReflectorWithOptions(objects, example, to, cache.ReflectorOptions{
		Name: name, Logger: &log, TypeDescription: name,
	}).RunWithContext(ctx)
}

// Times of a lease, as istiod's: who leads and is not heard of for so long is
// succeeded.
const (
	leaseTime  = 30 * time.Second
	renewTime  = 15 * time.Second
	retryAfter = 5 * time.Second
)

// Lead runs f while this process holds a lease, again each time it gets it back,
// until ctx ends. f must return when its context ends.
func Lead(ctx context.Context, c Clients, namespace, name, who string, f func(context.Context)) error {
	lock := &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: namespace, Name: name},
		Client:     c.Core.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: who},
	}
	for ctx.Err() == nil {
		leading, stopped := make(chan context.Context), make(chan struct{})
		e, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: lock, Name: name, LeaseDuration: leaseTime, RenewDeadline: renewTime, RetryPeriod: retryAfter,
			ReleaseOnCancel: true,
			Callbacks: leaderelection.LeaderCallbacks{
				// The elector calls it in a goroutine that it does not wait for.
				OnStartedLeading: func(ctx context.Context) {
					select {
					case leading <- ctx:
					case <-ctx.Done():
					}
				},
				OnStoppedLeading: func() {},
			},
		})
		if err != nil {
			return fmt.Errorf("lease %s/%s: %w", namespace, name, err)
		}
		go func() {
			defer close(stopped)
			e.Run(ctx)
		}()
		select {
		case ctx := <-leading:
			f(ctx)
		case <-stopped:
		}
		<-stopped
	}
	return nil
}
