package file

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/heddle-mesh/heddle/internal/config"
)

// view is what was last applied, and what was said about it.
type view struct {
	clock  clock
	synced bool

	applied map[config.Key]*entry
	warned  map[warning]uint64
	dated   map[config.Key]time.Time // first sight

	// objects and faults of the last update, for ReadAll.
	objects []*config.Object
	faults  []config.Fault
}

type entry struct {
	object *config.Object // as handed on
	read   *config.Object // as last decoded; equal to object but for its place
	print  uint64         // of its content, not of its place
}

// warning is said once for an object in one state.
type warning struct {
	object         config.Key
	file           string // for those without an object
	field, problem string
}

func newView(now func() time.Time) *view {
	return &view{clock: clock{now: now}, applied: map[config.Key]*entry{}, warned: map[warning]uint64{}, dated: map[config.Key]time.Time{}}
}

// update compares the files with what was applied. It returns the batch of
// changes and the faults to be reported now; ok is false if there are errors,
// which leave everything as it was.
func (v *view) update(files []*manifest, faults []config.Fault) (batch config.Batch, report []config.Fault, ok bool) {
	faults = slices.Clone(faults)
	v.objects = v.objects[:0]
	next := map[config.Key]*entry{}
	var order []config.Key
	for _, m := range files {
		broken := map[config.Key]bool{}
		for _, f := range m.faults {
			broken[f.Object] = broken[f.Object] || f.Severity == config.Error
		}
		faults = append(faults, m.faults...)
		for _, o := range m.objects {
			if first := next[o.Key]; first != nil {
				faults = append(faults, config.Fault{Pos: o.Pos, Object: o.Key, Problem: "the object is there twice",
					Hint: fmt.Sprintf("the first is at %s", first.object.Pos)})
				continue
			}
			next[o.Key] = &entry{object: o, read: o}
			order = append(order, o.Key)
			if !broken[o.Key] {
				v.objects = append(v.objects, o)
			}
		}
	}
	ok = !slices.ContainsFunc(faults, func(f config.Fault) bool { return f.Severity == config.Error })
	v.faults = faults
	for _, k := range order {
		e := next[k]
		if old := v.applied[k]; old != nil && old.read == e.read {
			e.object, e.print = old.object, old.print
			continue
		}
		e.print = fingerprint(e.object)
		v.date(e.object)
	}
	report = v.unsaid(faults, next)
	if !ok {
		return config.Batch{}, report, false
	}

	for _, k := range slices.SortedFunc(maps.Keys(v.applied), compareKeys) {
		if next[k] == nil {
			batch.Changes = append(batch.Changes, config.Change{Key: k})
		}
	}
	for _, k := range order {
		old, e := v.applied[k], next[k]
		// An object that only moved is a change too: what is said about it later
		// names its lines.
		if old == nil || old.print != e.print || old.object.Pos != e.object.Pos || !maps.Equal(old.object.Lines, e.object.Lines) {
			batch.Changes = append(batch.Changes, config.Change{Key: k, Object: e.object})
		} else {
			e.object = old.object
		}
	}
	batch.Synced = !v.synced
	v.synced = true
	v.applied = next
	maps.DeleteFunc(v.dated, func(k config.Key, _ time.Time) bool { return next[k] == nil })
	return batch, report, true
}

// date gives an object its place among equals.
func (v *view) date(o *config.Object) {
	if !o.Created.IsZero() {
		return
	}
	t, seen := v.dated[o.Key]
	if !seen {
		t = v.clock.next()
		v.dated[o.Key] = t
	}
	o.Created = t
}

// unsaid leaves out the warnings that were given before for the same state of
// the object.
func (v *view) unsaid(faults []config.Fault, next map[config.Key]*entry) []config.Fault {
	var out []config.Fault
	said := map[warning]uint64{}
	for _, f := range faults {
		if f.Severity == config.Error {
			out = append(out, f)
			continue
		}
		w := warning{object: f.Object, field: f.Field, problem: f.Problem}
		if f.Object.Name == "" {
			w.file = f.Pos.String()
		}
		var print uint64
		if e := next[f.Object]; e != nil {
			print = e.print
		}
		if before, ok := v.warned[w]; !ok || before != print {
			if _, now := said[w]; !now {
				out = append(out, f)
			}
		}
		said[w] = print
	}
	v.warned = said
	return out
}

// fingerprint is equal for objects that say the same.
func fingerprint(o *config.Object) uint64 {
	h := fnv.New64a()
	enc := json.NewEncoder(h)
	spec := o.Spec
	if m, ok := spec.(proto.Message); ok {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			b = []byte(err.Error())
		}
		spec = b
	}
	created := o.Created // if given: an object is dated after this
	if err := enc.Encode([]any{o.APIVersion, o.Labels, o.Annotations, created, spec}); err != nil {
		// A value that cannot be encoded is at least equal to itself.
		fmt.Fprintf(h, "%p", o)
	}
	return h.Sum64()
}

func compareKeys(a, b config.Key) int {
	switch as, bs := fmt.Sprint(a.Kind, a.Namespace, "/", a.Name), fmt.Sprint(b.Kind, b.Namespace, "/", b.Name); {
	case as < bs:
		return -1
	case as > bs:
		return 1
	}
	return 0
}
