package kube

import (
	"context"
	"maps"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kschema "k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/config/schema"
	"github.com/heddle-mesh/heddle/internal/kubeapi"
)

// served knows which custom kinds the cluster serves. A watch of their
// definitions says so, and Run starts and ends the kinds' feeds accordingly.
type served struct {
	source *Source
	feeds  map[config.Kind]*customFeed // owned by Run

	mu sync.Mutex
	// mu guards all below.
	versions map[config.Kind]string // of each kind, the one to read
	read     bool                   // all definitions, once
}

// run follows the definitions until ctx ends.
func (k *served) run(ctx context.Context) {
	crds := kschema.GroupVersionResource{Group: definitions.Group, Version: "v1", Resource: "customresourcedefinitions"}
	kubeapi.Follow(ctx, "customresourcedefinitions", kubeapi.Objects(k.source.cfg.Clients.Custom.Resource(crds), ""), exampleOf(definitions, "v1"),
		kubeapi.Handler[*unstructured.Unstructured]{
			Trim: trimDefinition, // of the schemas, which are nearly all of a definition
			All: func(all []*unstructured.Unstructured) {
				k.change(func() {
					clear(k.versions)
					for _, u := range all {
						k.learn(u, true)
					}
					k.read = true
				})
			},
			Put:  func(u *unstructured.Unstructured) { k.change(func() { k.learn(u, true) }) },
			Gone: func(u *unstructured.Unstructured) { k.change(func() { k.learn(u, false) }) },
		})
}

func (k *served) change(f func()) {
	k.mu.Lock()
	f()
	k.mu.Unlock()
	k.source.view.wake()
}

// learn takes in one definition. k.mu is held.
func (k *served) learn(u *unstructured.Unstructured, there bool) {
	row, version := rowOf(u)
	if row == nil {
		return
	}
	kind := config.Kind{Group: row.Group, Name: row.Name}
	if version == "" || !there {
		delete(k.versions, kind)
	} else {
		k.versions[kind] = version
	}
}

// rowOf returns the row of a defined kind, if we have one that is decoded, and
// the version to read it in: "" if it is not served.
func rowOf(u *unstructured.Unstructured) (*schema.Kind, string) {
	group, _, _ := unstructured.NestedString(u.Object, "spec", "group")
	name, _, _ := unstructured.NestedString(u.Object, "spec", "names", "kind")
	row := schema.Find(group, name)
	if row == nil || row.New == nil {
		return nil, ""
	}
	if u.GetDeletionTimestamp() != nil || !established(u) {
		return row, ""
	}
	versions, _, _ := unstructured.NestedSlice(u.Object, "spec", "versions")
	for _, want := range row.Versions {
		for _, v := range versions {
			if m, ok := v.(map[string]any); ok && m["name"] == want && m["served"] == true {
				return row, want
			}
		}
	}
	return row, ""
}

func established(u *unstructured.Unstructured) bool {
	conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	return slices.ContainsFunc(conditions, func(c any) bool {
		m, ok := c.(map[string]any)
		return ok && m["type"] == "Established" && m["status"] == "True"
	})
}

// follow starts the feeds of kinds that appeared, and ends those of kinds that
// went.
func (k *served) follow(ctx context.Context, watches *sync.WaitGroup) {
	k.mu.Lock()
	read, want := k.read, maps.Clone(k.versions)
	k.mu.Unlock()
	if !read {
		return
	}
	v := k.source.view
	for kind, f := range k.feeds {
		if want[kind] != f.version {
			f.stop()
			<-f.ended
			delete(k.feeds, kind)
			v.replace(kind, nil)
			v.arrived(kind)
			k.source.cfg.Log.Info("a kind is no longer served", "kind", f.name, "version", f.version)
		}
	}
	for kind, version := range want {
		if k.feeds[kind] != nil {
			continue
		}
		f := k.source.customFeed(schema.Find(kind.Group, kind.Name), version)
		own, stop := context.WithCancel(ctx)
		f.stop, f.ended = stop, make(chan struct{})
		k.feeds[kind] = f
		v.follow(&f.feed)
		watches.Go(func() {
			defer close(f.ended)
			f.run(own)
		})
	}
	v.arrived(definitions)
}
