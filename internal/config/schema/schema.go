// Package schema is the table of kinds: which exist, in which versions, what Go
// type holds them, and which of their fields Heddle acts on.
//
// It is the one place that says what Heddle does not do yet. A populated field
// that is neither acted on nor listed as quiet makes a warning when an object is
// decoded, so that nothing an operator wrote is ignored in silence. Whoever
// makes a field act adds its path to the table in the same change.
//
// The package knows no other part of Heddle; config reads it while decoding.
package schema

import (
	"slices"
	"strings"
	"sync"
)

// Kind is a row of the table. Rows are shared and never changed.
type Kind struct {
	Group      string // "" for the core kinds
	Name       string // "VirtualService"
	Plural     string // "virtualservices"
	Short      []string
	Versions   []string // all that are served, the storage version first
	Namespaced bool

	// New makes an empty value: a message of istio.io/api, which holds the spec
	// alone, or a whole Kubernetes object. nil: the kind is known by name only,
	// and its objects are accepted but not decoded.
	New func() any

	// Inert is set if Heddle does not act on the kind at all, and says what that
	// means for whoever wrote the object.
	Inert string
	// Guard is true if the kind protects something: that it is inert is then a
	// matter of security.
	Guard bool

	// Acted lists the paths of the fields that act. A path covers what is below
	// it; "[]" stands for any element of a list or map; "path=A|B" restricts a
	// field to values that act, compared without case.
	Acted []string
	// Quiet lists fields that do not act and make no warning, with the reason.
	Quiet []Quiet
	// Guards lists paths that protect something: not acting on a field there is
	// a matter of security.
	Guards []string

	fields *Field
}

// Quiet is a group of fields that may be ignored without a word.
type Quiet struct {
	Why   string
	Paths []string
}

// APIVersion returns the kind's storage version as written in a manifest.
func (k *Kind) APIVersion() string {
	if k.Group == "" {
		return k.Versions[0]
	}
	return k.Group + "/" + k.Versions[0]
}

// Fields returns the tree of fields that need no warning, rooted at the object.
func (k *Kind) Fields() *Field { return k.fields }

// Guarding reports whether a field, given without indexes ("spec.tls.mode"),
// protects something.
func (k *Kind) Guarding(path string) bool {
	for _, g := range k.Guards {
		g = strings.ReplaceAll(g, "[]", "")
		if path == g || strings.HasPrefix(path, g+".") {
			return true
		}
	}
	return false
}

// Field is a node of the tree of fields that act or are quiet.
type Field struct {
	below  map[string]*Field
	whole  bool     // everything below counts
	values []string // if set, only these values act
}

// Everything is the field below which nothing makes a warning.
var Everything = &Field{whole: true}

// Child returns the node of a field, or nil if the field makes a warning.
func (f *Field) Child(name string) *Field {
	if f.whole {
		return f
	}
	return f.below[name]
}

// Acts reports whether a value of the field acts.
func (f *Field) Acts(value string) bool {
	return len(f.values) == 0 || slices.ContainsFunc(f.values, func(v string) bool { return strings.EqualFold(v, value) })
}

// Values returns the values that act, or nil if all do.
func (f *Field) Values() []string { return f.values }

func (f *Field) add(path string) {
	path, values, limited := strings.Cut(path, "=")
	for name := range strings.SplitSeq(strings.ReplaceAll(path, "[]", ""), ".") {
		if f.below == nil {
			f.below = map[string]*Field{}
		}
		next := f.below[name]
		if next == nil {
			next = &Field{}
			f.below[name] = next
		}
		f = next
	}
	f.whole = true
	if limited {
		f.values = strings.Split(values, "|")
	}
}

// All returns the table, Heddle's own order: kinds that act first.
func All() []*Kind { return load().all }

// Find returns the row of a kind, or nil.
func Find(group, name string) *Kind { return load().byName[[2]string{group, name}] }

// Group returns the rows of a group; none means that the group is unknown.
func Group(group string) []*Kind { return load().byGroup[group] }

type table struct {
	all     []*Kind
	byName  map[[2]string]*Kind
	byGroup map[string][]*Kind
}

var load = sync.OnceValue(func() *table {
	t := &table{byName: map[[2]string]*Kind{}, byGroup: map[string][]*Kind{}}
	t.all = slices.Concat(kubernetes(), istio(), gatewayAPI(), undecoded())
	for _, k := range t.all {
		k.fields = &Field{}
		for _, p := range []string{"apiVersion", "kind", "metadata", "status"} {
			k.fields.add(p)
		}
		if k.Inert != "" {
			// One warning for the object says it all.
			k.fields = Everything
		}
		k.index()
		t.byName[[2]string{k.Group, k.Name}] = k
		t.byGroup[k.Group] = append(t.byGroup[k.Group], k)
	}
	return t
})

// index adds the listed paths to the tree.
func (k *Kind) index() {
	for _, p := range k.Acted {
		k.fields.add(p)
	}
	for _, q := range k.Quiet {
		for _, p := range q.Paths {
			k.fields.add(p)
		}
	}
}

// under puts a prefix before each path.
func under(prefix string, paths ...string) []string {
	out := make([]string, len(paths))
	for i, p := range paths {
		out[i] = prefix + "." + p
	}
	return out
}
