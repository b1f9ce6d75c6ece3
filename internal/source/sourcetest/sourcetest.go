// Package sourcetest is the contract of a source of configuration, as tests that
// every source must pass: it shows its complete first view in one synced batch,
// then each change, in batches that are right as a whole; what has an error
// never gets through, and takes nothing away that was there before.
//
// A source's own tests call [Run] with a way to make a source and to change what
// it reads.
package sourcetest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/config"
)

// Editor changes what a source reads.
type Editor interface {
	// Put creates or replaces the single manifest that is known by a name.
	Put(t *testing.T, name, manifest string)
	// Remove takes it away.
	Remove(t *testing.T, name string)
}

// Handlers are what a source is to call.
type Handlers struct {
	OnBatch  func(config.Batch)
	OnFaults func([]config.Fault)
}

// Maker makes a source that reads nothing yet but what the editor puts there,
// and the function that runs it until the context ends.
type Maker func(t *testing.T, h Handlers) (Editor, func(context.Context) error)

// patience is how long a test waits for what must come. Nothing waits it out
// unless the test fails.
const patience = 20 * time.Second

// Run runs the contract.
func Run(t *testing.T, maker Maker) {
	t.Run("an empty first view is a synced batch", func(t *testing.T) {
		r := start(t, maker)
		b := r.batch()
		if !b.Synced || len(b.Changes) != 0 {
			t.Errorf("first batch is %s", show(b))
		}
	})
	t.Run("the first view is complete", func(t *testing.T) {
		r := prepare(t, maker)
		r.edit.Put(t, "a", service("a", 80))
		r.edit.Put(t, "b", service("b", 80))
		r.run()
		want(t, r.batch(), true, "+a", "+b")
	})
	t.Run("changes follow, and only they", func(t *testing.T) {
		r := prepare(t, maker)
		r.edit.Put(t, "a", service("a", 80))
		r.edit.Put(t, "b", service("b", 80))
		r.run()
		first := r.batch()
		want(t, first, true, "+a", "+b")

		r.edit.Put(t, "c", service("c", 80))
		want(t, r.batch(), false, "+c")

		r.edit.Put(t, "a", service("a", 81))
		changed := r.batch()
		want(t, changed, false, "+a")
		if changed.Changes[0].Object == first.Changes[0].Object {
			t.Error("the object was changed in place")
		}
		if got := first.Changes[0].Object.Spec; fmt.Sprint(got) == fmt.Sprint(changed.Changes[0].Object.Spec) {
			t.Error("the changed object says the same as before")
		}

		r.edit.Remove(t, "b")
		want(t, r.batch(), false, "-b")
	})
	t.Run("putting the same again is no change", func(t *testing.T) {
		r := prepare(t, maker)
		r.edit.Put(t, "a", service("a", 80))
		r.run()
		r.batch()
		r.edit.Put(t, "a", service("a", 80))
		r.edit.Put(t, "b", service("b", 80))
		got := r.until("b")
		if slices.Contains(got, "+a") {
			t.Errorf("changes are %v; a is as it was", got)
		}
	})
	t.Run("what has an error does not get through", func(t *testing.T) {
		r := prepare(t, maker)
		r.edit.Put(t, "a", service("a", 80))
		r.run()
		r.batch()
		r.edit.Put(t, "a", service("a", 70000))
		if f := r.error(); f.Object.Name != "a" || !strings.Contains(f.Field, "port") {
			t.Errorf("the fault does not name the object and its field: %v", f)
		}
		// The next batch that comes is the one of the repaired object.
		r.edit.Put(t, "a", service("a", 82))
		b := r.batch()
		want(t, b, false, "+a")
	})
	t.Run("objects keep their order", func(t *testing.T) {
		r := prepare(t, maker)
		r.edit.Put(t, "a", service("a", 80))
		r.run()
		a := r.batch().Changes[0].Object
		r.edit.Put(t, "b", service("b", 80))
		b := r.batch().Changes[0].Object
		if a.Created.IsZero() || !a.Created.Before(b.Created) {
			t.Errorf("a was created %v, b %v", a.Created, b.Created)
		}
		r.edit.Put(t, "a", service("a", 81))
		if again := r.batch().Changes[0].Object; !again.Created.Equal(a.Created) {
			t.Errorf("a was created %v, and after an edit %v", a.Created, again.Created)
		}
	})
	t.Run("Run ends with its context", func(t *testing.T) {
		r := start(t, maker)
		r.batch()
		r.stop()
	})
}

func service(name string, port int) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Service
metadata:
  name: %s
  namespace: test
spec:
  selector:
    app: %s
  ports:
  - name: http
    port: %d
`, name, name, port)
}

// rig is one running source.
type rig struct {
	t       *testing.T
	edit    Editor
	batches chan config.Batch
	faults  chan []config.Fault
	run     func()
	stop    func()
}

func prepare(t *testing.T, maker Maker) *rig {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &rig{t: t, batches: make(chan config.Batch, 64), faults: make(chan []config.Fault, 64)}
	edit, run := maker(t, Handlers{
		OnBatch:  func(b config.Batch) { r.batches <- b },
		OnFaults: func(f []config.Fault) { r.faults <- f },
	})
	r.edit = edit
	done := make(chan error, 1)
	running := false
	r.run = func() {
		running = true
		go func() { done <- run(ctx) }()
	}
	r.stop = func() {
		cancel()
		if !running {
			return
		}
		running = false
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run returned %v", err)
			}
		case <-time.After(patience):
			t.Error("Run did not return")
		}
	}
	t.Cleanup(r.stop)
	return r
}

func start(t *testing.T, maker Maker) *rig {
	t.Helper()
	r := prepare(t, maker)
	r.run()
	return r
}

func (r *rig) batch() config.Batch {
	r.t.Helper()
	select {
	case b := <-r.batches:
		return b
	case <-time.After(patience):
		r.t.Fatal("no batch came")
		return config.Batch{}
	}
}

// error waits for the first fault that is an error. Warnings may come before it,
// as of a write that was caught in the middle.
func (r *rig) error() config.Fault {
	r.t.Helper()
	late := time.After(patience)
	for {
		select {
		case faults := <-r.faults:
			for _, f := range faults {
				if f.Severity == config.Error {
					return f
				}
			}
		case b := <-r.batches:
			r.t.Fatalf("a batch came in place of an error: %s", show(b))
		case <-late:
			r.t.Fatal("no error came")
		}
	}
}

// until collects changes up to the one of an object.
func (r *rig) until(name string) []string {
	r.t.Helper()
	var all []string
	for !slices.Contains(all, "+"+name) {
		all = append(all, changes(r.batch())...)
	}
	return all
}

func changes(b config.Batch) []string {
	var out []string
	for _, c := range b.Changes {
		sign := "+"
		if c.Object == nil {
			sign = "-"
		}
		out = append(out, sign+c.Key.Name)
	}
	return out
}

func show(b config.Batch) string { return fmt.Sprintf("synced=%v %v", b.Synced, changes(b)) }

func want(t *testing.T, b config.Batch, synced bool, names ...string) {
	t.Helper()
	if b.Source == "" {
		t.Error("the batch does not name its source")
	}
	got := changes(b)
	slices.Sort(got)
	slices.Sort(names)
	if b.Synced != synced || !slices.Equal(got, names) {
		t.Fatalf("batch is %s, want synced=%v %v", show(b), synced, names)
	}
	for _, c := range b.Changes {
		if c.Object != nil && c.Object.Key != c.Key {
			t.Errorf("change of %v bears object %v", c.Key, c.Object.Key)
		}
	}
}
