// Package life owns goroutines. A [Group] starts them and returns when all have
// ended; a [Drain] ends work in two phases, first asking and then insisting.
//
// Who starts a goroutine starts it in a Group and waits for the Group, so that a
// function named Run has, when it returns, ended everything it began.
package life

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Group is a set of goroutines that live and end together. Its zero value is not
// usable: see NewGroup.
type Group struct {
	ctx    context.Context
	cancel context.CancelFunc

	wg sync.WaitGroup

	mu sync.Mutex
	// mu guards
	errs []error
}

// NewGroup returns a group whose context ends with ctx, or when one of its
// goroutines fails.
func NewGroup(ctx context.Context) *Group {
	ctx, cancel := context.WithCancel(ctx)
	return &Group{ctx: ctx, cancel: cancel}
}

// Context is what the group's goroutines get.
func (g *Group) Context() context.Context { return g.ctx }

// Go starts run. If it returns an error, the group's context ends, and Wait
// returns the error with name before it; the end of the context is no error. A
// goroutine that returns nil leaves the others alone.
func (g *Group) Go(name string, run func(ctx context.Context) error) {
	g.wg.Go(func() {
		err := run(g.ctx)
		if err == nil || g.ctx.Err() != nil && errors.Is(err, context.Canceled) {
			return
		}
		g.mu.Lock()
		g.errs = append(g.errs, fmt.Errorf("%s: %w", name, err))
		g.mu.Unlock()
		g.cancel()
	})
}

// Stop ends the group's context.
func (g *Group) Stop() { g.cancel() }

// Wait returns when all goroutines have, with their errors.
func (g *Group) Wait() error {
	g.wg.Wait()
	g.cancel()
	g.mu.Lock()
	defer g.mu.Unlock()
	return errors.Join(g.errs...)
}

// Drain ends pieces of work, such as connections, in two phases: Soft ends, and
// each piece finishes what it has begun; when the time is over Hard ends, and it
// stops at once. Its zero value is not usable: see NewDrain.
type Drain struct {
	soft, hard       context.Context
	endSoft, endHard context.CancelFunc
	active           atomic.Int64
	idle             chan struct{} // cap 1: active fell to zero
}

// NewDrain returns a drain whose both phases end at the latest with ctx.
func NewDrain(ctx context.Context) *Drain {
	d := &Drain{idle: make(chan struct{}, 1)}
	d.hard, d.endHard = context.WithCancel(ctx)
	d.soft, d.endSoft = context.WithCancel(d.hard)
	return d
}

// Soft ends when work should finish.
func (d *Drain) Soft() context.Context { return d.soft }

// Hard ends when work must stop.
func (d *Drain) Hard() context.Context { return d.hard }

// Enter counts a piece of work; leave, called once, discounts it. Work may still
// begin in the first phase, as what came too late to hear of it. In the second,
// Enter returns false and no leave.
func (d *Drain) Enter() (leave func(), ok bool) {
	d.active.Add(1)
	if d.hard.Err() != nil {
		d.leave()
		return nil, false
	}
	return d.leave, true
}

func (d *Drain) leave() {
	if d.active.Add(-1) == 0 {
		select {
		case d.idle <- struct{}{}:
		default:
		}
	}
}

// Active returns how many pieces of work go on.
func (d *Drain) Active() int64 { return d.active.Load() }

// Begin starts the first phase.
func (d *Drain) Begin() { d.endSoft() }

// Shut starts the first phase, waits until no work is left or the timeout is
// over, starts the second phase and waits for the rest. It returns how much work
// was cut off. It is called once.
func (d *Drain) Shut(timeout time.Duration) (cut int64) {
	d.endSoft()
	t := time.NewTimer(timeout)
	defer t.Stop()
	for wait := true; wait && d.active.Load() > 0; {
		select {
		case <-d.idle:
		case <-t.C:
			wait = false
		case <-d.hard.Done():
			wait = false
		}
	}
	cut = d.active.Load()
	d.endHard()
	for d.active.Load() > 0 {
		<-d.idle
	}
	return cut
}
