package control

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/config/analyze"
	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/model"
)

// register remembers what operators and tools ask for: the objects in force, the
// faults that stand, and a few counts.
type register struct {
	log      *slog.Logger
	onFaults func([]config.Fault)
	// alone says that an error concerns one object, and not all of a batch.
	alone   bool
	began   time.Time
	changed chan struct{} // of size 1: objects in force changed

	mu sync.Mutex
	// mu guards all below.
	world    *model.World // nil before the first
	objects  map[config.Key]*config.Object
	errors   []config.Fault                // they keep the last good configuration in force
	warnings map[config.Key][]config.Fault // about objects in force
	fresh    map[config.Key]bool           // whose warnings came with the batch that is about to come
	odd      []config.Fault                // what does not fit together in the objects in force
	plans    []PlanFault
	refused  uint64 // batches that were refused
	csrs     uint64
	issued   uint64
	unproven uint64 // callers who could not show who they are
}

// PlanFault is a plan that could not be made.
type PlanFault struct {
	Time    time.Time `json:"time"`
	Problem string    `json:"problem"`
}

// maxPlanFaults bounds how many of them are remembered: the newest.
const maxPlanFaults = 100

func newRegister(log *slog.Logger, onFaults func([]config.Fault)) *register {
	if onFaults == nil {
		onFaults = func([]config.Fault) {}
	}
	return &register{
		log: log, onFaults: onFaults, began: time.Now(), changed: make(chan struct{}, 1),
		objects:  map[config.Key]*config.Object{},
		warnings: map[config.Key][]config.Fault{},
		fresh:    map[config.Key]bool{},
	}
}

// heard takes faults in from a source: all errors that stand, and the warnings
// that are new. Those about objects that change come before the batch with the
// change.
func (r *register) heard(faults []config.Fault) {
	r.tell(r.unheard(faults))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.errors = nil
	clear(r.fresh)
	for _, f := range faults {
		if f.Severity == config.Error {
			r.errors = append(r.errors, f)
			continue
		}
		if !r.fresh[f.Object] {
			r.fresh[f.Object] = true
			r.warnings[f.Object] = nil
		}
		r.warnings[f.Object] = append(r.warnings[f.Object], f)
	}
	if len(r.errors) > 0 {
		r.refused++
	}
}

// unheard leaves out the errors that stood before, object for object: where each
// object stands alone, they are named again whenever another one changes.
func (r *register) unheard(faults []config.Fault) []config.Fault {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.alone {
		return faults
	}
	return slices.DeleteFunc(slices.Clone(faults), func(f config.Fault) bool {
		return f.Severity == config.Error && slices.Contains(r.errors, f)
	})
}

// accepted takes in a batch. Errors that stand are of objects that are not in it.
func (r *register) accepted(b config.Batch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range b.Changes {
		if c.Object == nil {
			delete(r.objects, c.Key)
			delete(r.warnings, c.Key)
			continue
		}
		r.objects[c.Key] = c.Object
		if !r.fresh[c.Key] {
			delete(r.warnings, c.Key)
		}
	}
	clear(r.fresh)
	select {
	case r.changed <- struct{}{}:
	default: // it will be seen
	}
}

// analyse looks, after each change, for objects that are right by themselves and
// wrong together, and tells what was not told before. It stands beside the pipe:
// no proxy waits for it.
func (r *register) analyse(ctx context.Context) error {
	told := map[string]bool{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.changed:
		}
		began := time.Now()
		_, objects := r.inForce()
		odd := analyze.Check(objects)
		took := time.Since(began)
		r.mu.Lock()
		r.odd = odd
		r.mu.Unlock()
		now := make(map[string]bool, len(odd))
		var fresh []config.Fault
		for _, f := range odd {
			now[f.Error()] = true
			if !told[f.Error()] {
				fresh = append(fresh, f)
			}
		}
		told = now
		if len(fresh) > 0 {
			r.tell(fresh)
		}
		// In a large cluster something changes all the time.
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(analysisRest * took):
		}
	}
}

// analysisRest bounds how much of the time is spent on analysis.
const analysisRest = 10

// tell logs faults and hands them on.
func (r *register) tell(faults []config.Fault) {
	for _, f := range faults {
		level := slog.LevelWarn
		if f.Severity == config.Error {
			level = slog.LevelError
		}
		r.log.Log(context.Background(), level, "fault", "in", f.Pos.String(), "object", f.Object.String(), "field", f.Field, "problem", f.Problem, "hint", f.Hint)
	}
	r.onFaults(faults)
}

// inForceNow takes in the world that proxies are told of from now on, and reports
// whether it is the first.
func (r *register) inForceNow(w *model.World) (first bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	first = r.world == nil
	r.world = w
	return first
}

// unplanned takes in that a plan could not be made. The server has logged it.
func (r *register) unplanned(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.plans = append(r.plans, PlanFault{time.Now(), err.Error()})
	if over := len(r.plans) - maxPlanFaults; over > 0 {
		r.plans = slices.Delete(r.plans, 0, over)
	}
}

// signed takes in the outcome of a request for a certificate.
func (r *register) signed(id identity.ID, err error) {
	if err != nil {
		r.log.Warn("certificate refused", "identity", id.String(), "err", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.csrs++
	switch {
	case err == nil:
		r.issued++
	case status.Code(err) == codes.Unauthenticated:
		r.unproven++
	}
}

// faults returns what stands: errors first, then warnings by place.
func (r *register) faults() (all []config.Fault, plans []PlanFault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all = slices.Clone(r.errors)
	warnings := slices.Clone(r.odd)
	for _, list := range r.warnings {
		warnings = append(warnings, list...)
	}
	slices.SortFunc(warnings, func(a, b config.Fault) int {
		if c := strings.Compare(a.Pos.File, b.Pos.File); c != 0 {
			return c
		}
		if a.Pos.Line != b.Pos.Line {
			return a.Pos.Line - b.Pos.Line
		}
		return strings.Compare(a.Error(), b.Error())
	})
	return append(all, warnings...), slices.Clone(r.plans)
}

// inForce returns the world and the objects in force, in the order of their keys.
func (r *register) inForce() (*model.World, []*config.Object) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.world, slices.SortedFunc(maps.Values(r.objects), func(a, b *config.Object) int {
		return strings.Compare(a.Kind.String()+"/"+a.Key.String(), b.Kind.String()+"/"+b.Key.String())
	})
}

func (r *register) ready() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.world != nil
}
