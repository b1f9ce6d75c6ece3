package kube

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/heddle-mesh/heddle/internal/config"
)

// view is what is known of the cluster, and how much of it was handed on. Feeds
// bring events in from their goroutines; Run takes changes out.
type view struct {
	root, mesh string // the root namespace, and the name of the mesh's configuration in it
	news       chan struct{}

	mu sync.Mutex
	// mu guards all below.
	waiting  map[config.Kind]string // feeds that have not read all once, by what they read
	synced   bool                   // the first batch was taken
	entries  map[config.Key]*entry
	dirty    map[config.Key]bool
	reselect bool // namespaces or what selects them changed

	// selectors choose namespaces; none choose all.
	selectors []labels.Selector
	selected  map[string]bool
	// refused are the errors that stand, and were told.
	refused map[config.Key][]config.Fault
	warned  []config.Fault // not told yet
	// due are objects whose status may not say what it should.
	due map[config.Key]bool
}

// entry is what is known of one object.
type entry struct {
	version string
	good    *config.Object // of the newest version without errors; nil if there was none
	errors  []config.Fault // of the newest version
	// warnings are of the newest version, too; status is nil where none is written.
	warnings []config.Fault
	status   *status
	gone     bool
	sent     *config.Object // as handed on; nil if it is out of sight
}

// reading is one version of an object, as a feed read it.
type reading struct {
	key     config.Key
	version string
	object  *config.Object // nil if it has errors
	faults  []config.Fault
	status  *status
}

func newView(root, mesh string) *view {
	return &view{
		root: root, mesh: mesh, news: make(chan struct{}, 1),
		// Custom kinds are known when their definitions are.
		waiting: map[config.Kind]string{definitions: "customresourcedefinitions"},
		entries: map[config.Key]*entry{}, dirty: map[config.Key]bool{},
		selected: map[string]bool{}, refused: map[config.Key][]config.Fault{}, due: map[config.Key]bool{},
	}
}

// definitions stands for the feed of CustomResourceDefinitions.
var definitions = config.Kind{Group: "apiextensions.k8s.io", Name: "CustomResourceDefinition"}

// follow notes a feed that must have read all before the first batch.
func (v *view) follow(f *feed) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.synced {
		v.waiting[f.kind] = f.name
	}
}

// waitsFor names what was not read yet.
func (v *view) waitsFor() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Sorted(maps.Values(v.waiting))
}

// arrived notes that a feed has read all.
func (v *view) arrived(kind config.Kind) {
	v.mu.Lock()
	delete(v.waiting, kind)
	v.mu.Unlock()
	v.wake()
}

func (v *view) wake() {
	select {
	case v.news <- struct{}{}:
	default:
	}
}

// put takes in a version of an object.
func (v *view) put(r reading) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.take1(r)
	v.wake()
}

func (v *view) take1(r reading) {
	e := v.entries[r.key]
	if e == nil {
		e = &entry{}
		v.entries[r.key] = e
	} else if !e.gone && e.version == r.version {
		return // a watch began anew
	}
	e.version, e.gone, e.errors, e.warnings, e.status = r.version, false, nil, nil, r.status
	for _, f := range r.faults {
		if f.Severity == config.Error {
			e.errors = append(e.errors, f)
		} else {
			e.warnings = append(e.warnings, f)
		}
	}
	if r.object != nil && !same(e.good, r.object) {
		v.warned = append(v.warned, e.warnings...)
		e.good = r.object
	}
	v.touch(r.key)
}

// touch notes that a key has news.
func (v *view) touch(k config.Key) {
	v.dirty[k] = true
	if k.Kind == config.Namespace || k == v.meshKey() {
		v.reselect = true
	}
}

func (v *view) meshKey() config.Key {
	return config.Key{Kind: config.ConfigMap, Namespace: v.root, Name: v.mesh}
}

// remove takes in that an object is gone.
func (v *view) remove(k config.Key) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.remove1(k)
	v.wake()
}

func (v *view) remove1(k config.Key) {
	if e := v.entries[k]; e != nil {
		e.gone, e.good, e.errors = true, nil, nil
		v.touch(k)
	}
}

// replace takes in all objects of a kind.
func (v *view) replace(kind config.Kind, all []reading) {
	now := make(map[config.Key]bool, len(all))
	for _, r := range all {
		now[r.key] = true
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for k := range v.entries {
		if k.Kind == kind && !now[k] {
			v.remove1(k)
		}
	}
	for _, r := range all {
		v.take1(r)
	}
	v.wake()
}

// outcome is what Run hands on.
type outcome struct {
	batch      config.Batch
	report     bool // faults are to be told, be there none left
	faults     []config.Fault
	namespaces []string // nil if they are as before
}

// take returns what changed since the last time; ok is false while something was
// not read yet.
func (v *view) take() (out outcome, ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.waiting) > 0 {
		return outcome{}, false
	}
	if v.reselect || !v.synced {
		out.namespaces = v.selectNamespaces()
	}
	out.batch.Synced = !v.synced
	v.synced = true
	for k := range v.dirty {
		e := v.entries[k]
		var show *config.Object
		var errs []config.Fault
		if v.visible(k) {
			show, errs = e.good, e.errors
		}
		if show != e.sent {
			out.batch.Changes = append(out.batch.Changes, config.Change{Key: k, Object: show})
			e.sent = show
		}
		if len(errs) > 0 || len(v.refused[k]) > 0 {
			out.report = out.report || !slices.Equal(errs, v.refused[k])
			v.refused[k] = errs
			if len(errs) == 0 {
				delete(v.refused, k)
			}
		}
		if e.due() {
			v.due[k] = true
		} else {
			delete(v.due, k)
		}
		if e.gone {
			delete(v.entries, k)
		}
	}
	clear(v.dirty)
	for _, f := range v.warned {
		if v.visible(f.Object) {
			out.faults = append(out.faults, f)
			out.report = true
		}
	}
	v.warned = nil
	if out.report {
		for _, errs := range v.refused {
			out.faults = append(out.faults, errs...)
		}
		slices.SortStableFunc(out.faults, func(a, b config.Fault) int {
			return cmp.Or(int(a.Severity)-int(b.Severity), compareKeys(a.Object, b.Object))
		})
	}
	slices.SortFunc(out.batch.Changes, func(a, b config.Change) int { return compareKeys(a.Key, b.Key) })
	return out, true
}

func compareKeys(a, b config.Key) int {
	return cmp.Or(strings.Compare(a.Kind.Group, b.Kind.Group), strings.Compare(a.Kind.Name, b.Kind.Name),
		strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// visible reports whether an object is in sight.
func (v *view) visible(k config.Key) bool {
	switch {
	case k.Kind == config.Namespace:
		return v.sees(k.Name)
	case k.Namespace == "":
		return true
	}
	return v.sees(k.Namespace)
}

func (v *view) sees(namespace string) bool {
	// The mesh's own namespace is always part of it.
	return len(v.selectors) == 0 || namespace == v.root || v.selected[namespace]
}

// selectNamespaces brings the set of namespaces in sight up to date, and touches
// all objects of those that come or go. It returns the set if it differs.
func (v *view) selectNamespaces() []string {
	v.reselect = false
	before, had := v.selected, len(v.selectors) > 0
	// While what selects can not be read, what selected before does.
	if e := v.entries[v.meshKey()]; e == nil || e.gone {
		v.selectors = nil
	} else if e.good != nil {
		v.selectors = selectorsOf(e.good)
	}
	v.selected = map[string]bool{}
	for k, e := range v.entries {
		if k.Kind == config.Namespace && !e.gone && e.good != nil && v.chosen(e.good) {
			v.selected[k.Name] = true
		}
	}
	if had != (len(v.selectors) > 0) || len(v.selectors) > 0 && !maps.Equal(before, v.selected) {
		for k := range v.entries {
			v.dirty[k] = true
		}
	}
	if v.synced && maps.Equal(before, v.selected) {
		return nil
	}
	return append([]string{}, slices.Sorted(maps.Keys(v.selected))...)
}

func (v *view) chosen(namespace *config.Object) bool {
	return len(v.selectors) == 0 || namespace.Name == v.root ||
		slices.ContainsFunc(v.selectors, func(s labels.Selector) bool { return s.Matches(labels.Set(namespace.Labels)) })
}

// selectorsOf reads the discovery selectors of the mesh's configuration. The
// configuration was checked when it was read.
func selectorsOf(mesh *config.Object) []labels.Selector {
	m, _ := config.MeshConfig(mesh)
	var out []labels.Selector
	for _, in := range m.GetDiscoverySelectors() {
		s := &metav1.LabelSelector{MatchLabels: in.GetMatchLabels()}
		for _, e := range in.GetMatchExpressions() {
			s.MatchExpressions = append(s.MatchExpressions, metav1.LabelSelectorRequirement{
				Key: e.GetKey(), Operator: metav1.LabelSelectorOperator(e.GetOperator()), Values: e.GetValues(),
			})
		}
		if sel, err := metav1.LabelSelectorAsSelector(s); err == nil {
			out = append(out, sel)
		}
	}
	return out
}

// same reports whether two versions of an object say the same of what is read.
func same(a, b *config.Object) bool {
	if a == nil || a.APIVersion != b.APIVersion || !a.Created.Equal(b.Created) || !maps.Equal(a.Labels, b.Labels) || !maps.Equal(a.Annotations, b.Annotations) {
		return false
	}
	if x, ok := a.Spec.(proto.Message); ok {
		y, ok := b.Spec.(proto.Message)
		return ok && proto.Equal(x, y)
	}
	return reflect.DeepEqual(a.Spec, b.Spec)
}
