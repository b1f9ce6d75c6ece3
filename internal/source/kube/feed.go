package kube

import (
	"context"
	"encoding/json"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	kschema "k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/config/schema"
	"github.com/heddle-mesh/heddle/internal/config/validate"
	"github.com/heddle-mesh/heddle/internal/kubeapi"
)

// feed watches one kind and hands what it reads to the view. It stands where a
// cache of the client library would.
type feed struct {
	view    *view
	kind    config.Kind
	name    string // for people: "services"
	objects cache.ListerWatcher
	example runtime.Object // of the type that arrives
	// read makes a reading of what arrived; false leaves it out of the view.
	read func(runtime.Object) (reading, bool)
	// trim drops what nobody reads.
	trim func(runtime.Object)
}

// run follows the kind until ctx ends.
func (f *feed) run(ctx context.Context) {
	kubeapi.Follow(ctx, f.name, f.objects, f.example, kubeapi.Handler[runtime.Object]{
		Trim: f.trim,
		All: func(objects []runtime.Object) {
			var all []reading
			for _, o := range objects {
				if r, ok := f.read(o); ok {
					all = append(all, r)
				}
			}
			f.view.replace(f.kind, all)
			f.view.arrived(f.kind)
		},
		Put: func(o runtime.Object) {
			if r, ok := f.read(o); ok {
				f.view.put(r)
			} else {
				f.view.remove(f.key(o))
			}
		},
		Gone: func(o runtime.Object) { f.view.remove(f.key(o)) },
	})
}

func (f *feed) key(o runtime.Object) config.Key {
	m := o.(metav1.Object)
	return config.Key{Kind: f.kind, Namespace: m.GetNamespace(), Name: m.GetName()}
}

// typed reads an object of a core kind. The API server checked it, in all but
// what the mesh relies on beyond that.
func (s *Source) typed(kind config.Kind, apiVersion string) func(runtime.Object) (reading, bool) {
	return func(o runtime.Object) (reading, bool) {
		m := o.(metav1.Object)
		out := &config.Object{
			Key:        config.Key{Kind: kind, Namespace: m.GetNamespace(), Name: m.GetName()},
			APIVersion: apiVersion, Labels: m.GetLabels(), Annotations: m.GetAnnotations(), Created: m.GetCreationTimestamp().Time,
			Spec: o, Pos: config.Position{File: s.cfg.Name},
		}
		r := reading{key: out.Key, version: m.GetResourceVersion()}
		// Two versions that say the same are equal.
		m.SetResourceVersion("")
		r.faults = validate.Object(out)
		if out.Key == s.view.meshKey() && out.Namespace != validate.MeshNamespace {
			_, faults := config.MeshConfig(out)
			r.faults = append(r.faults, faults...)
		}
		if !refuses(r.faults) {
			r.object = out
		}
		return r, true
	}
}

func refuses(faults []config.Fault) bool {
	return slices.ContainsFunc(faults, func(f config.Fault) bool { return f.Severity == config.Error })
}

// revisionLabel names the control plane that an object is for.
const revisionLabel = "istio.io/rev"

// custom reads an object of a custom kind as if it stood in a file.
func (s *Source) custom(kind config.Kind) func(runtime.Object) (reading, bool) {
	return func(o runtime.Object) (reading, bool) {
		u := o.(*unstructured.Unstructured)
		if rev := u.GetLabels()[revisionLabel]; rev != "" && rev != s.cfg.Revision {
			return reading{}, false
		}
		r := reading{
			key:     config.Key{Kind: kind, Namespace: u.GetNamespace(), Name: u.GetName()},
			version: u.GetResourceVersion(),
			status:  statusOf(kind, u),
		}
		r.object, r.faults = s.decode(r.key, u)
		return r, true
	}
}

func (s *Source) decode(key config.Key, u *unstructured.Unstructured) (*config.Object, []config.Fault) {
	at := config.Position{File: s.cfg.Name}
	text, err := json.Marshal(u.Object)
	if err != nil {
		return nil, []config.Fault{{Pos: at, Object: key, Problem: "it can not be read: " + err.Error()}}
	}
	objects, faults := config.Decode(s.cfg.Name, text)
	for _, o := range objects {
		faults = append(faults, validate.Object(o)...)
	}
	// It is one line of JSON, and nobody ever saw it so.
	for i := range faults {
		faults[i].Pos = at
	}
	if len(objects) != 1 || refuses(faults) {
		return nil, faults
	}
	o := objects[0]
	o.Pos, o.Lines = at, nil
	return o, faults
}

// customFeed is the feed of a kind that is there only while its definition is.
type customFeed struct {
	feed
	version string
	stop    context.CancelFunc
	ended   chan struct{}
}

func (s *Source) customFeed(k *schema.Kind, version string) *customFeed {
	kind := config.Kind{Group: k.Group, Name: k.Name}
	resource := kschema.GroupVersionResource{Group: k.Group, Version: version, Resource: k.Plural}
	return &customFeed{version: version, feed: feed{
		view: s.view, kind: kind, name: k.Plural + "." + k.Group,
		objects: kubeapi.Objects(s.cfg.Clients.Custom.Resource(resource), ""), example: exampleOf(kind, version),
		read: s.custom(kind), trim: trimCustom,
	}}
}

func exampleOf(kind config.Kind, version string) runtime.Object {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(kschema.GroupVersionKind{Group: kind.Group, Version: version, Kind: kind.Name})
	return u
}
