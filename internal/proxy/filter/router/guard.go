package router

import (
	"sync"
	"time"
)

// cause is why a request was interrupted.
type cause uint8

const (
	none       cause = iota
	tryTimeout       // one attempt took too long
	allTimeout       // the whole request did
	clientGone
	badUpload // the client's body is no HTTP
	stalled   // the client stopped sending its body
)

// watchAfter is when the guard begins to look whether the client hangs up: most
// requests are over before. The timer fires this often on a connection that is in
// use, and each time may wake a processor that has nothing else to do.
const watchAfter = 250 * time.Millisecond

// past is a deadline that makes blocked reads and writes return.
var past = time.Unix(1, 0)

// deadliner is what can be made to return from waiting.
type deadliner interface{ SetDeadline(t time.Time) error }

// guard interrupts a request that waits for its upstream: when time is up, or
// when the client leaves. It needs no goroutine while nothing happens, only one
// timer, which is left running from one request to the next because requests are
// mostly shorter than it.
type guard struct {
	now   func() time.Time
	watch func() // begins to look for the client hanging up

	mu sync.Mutex
	// mu guards
	timer   *time.Timer
	fires   time.Time // zero: the timer is not running
	active  bool
	why     cause         // the first one
	way     deadliner     // what is waited for
	wake    chan struct{} // closed by an interruption; nil unless someone waits
	watchAt time.Time     // zero: not to be watched, or no more
	tryAt   time.Time
	allAt   time.Time
}

// begin starts to guard a request.
func (g *guard) begin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.active, g.why, g.way, g.wake = true, none, nil, nil
	g.watchAt, g.tryAt, g.allAt = time.Time{}, time.Time{}, time.Time{}
}

// limit sets when to begin to look for the client hanging up, and when the whole
// request has to be over. A zero time means never.
func (g *guard) limit(watchAt, allAt time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.active {
		g.watchAt, g.allAt = watchAt, allAt
		g.schedule()
	}
}

// attach guards the use of a way, until at if that is not zero.
func (g *guard) attach(way deadliner, at time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.way, g.tryAt = way, at
	if g.why != none {
		way.SetDeadline(past)
		return
	}
	if !at.IsZero() {
		g.schedule()
	}
}

// detach ends the guarding of the way and returns why it was interrupted.
// A timeout of this attempt alone is forgotten.
func (g *guard) detach() cause {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.way, g.tryAt = nil, time.Time{}
	why := g.why
	if why == tryTimeout {
		g.why = none
	}
	return why
}

// end ends the guarding of the request. No callback comes after it.
func (g *guard) end() cause {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.active, g.way = false, nil
	return g.why
}

// reason returns why the request was interrupted, if it was.
func (g *guard) reason() cause {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.why
}

// interrupt makes whatever the request waits for return.
func (g *guard) interrupt(why cause) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.interruptLocked(why)
}

func (g *guard) interruptLocked(why cause) {
	if !g.active || g.why != none {
		return
	}
	g.why = why
	if g.way != nil {
		g.way.SetDeadline(past)
	}
	if g.wake != nil {
		close(g.wake)
		g.wake = nil
	}
}

// sleep waits for d, or less if the request is interrupted, and reports whether
// it was not.
func (g *guard) sleep(d time.Duration) bool {
	g.mu.Lock()
	if g.why != none {
		g.mu.Unlock()
		return false
	}
	wake := make(chan struct{})
	g.wake = wake
	g.mu.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-wake:
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wake = nil
	return g.why == none
}

// schedule lets the timer fire at the next moment that matters. The caller holds
// mu.
func (g *guard) schedule() {
	next := g.next()
	if next.IsZero() || !g.fires.IsZero() && !g.fires.After(next) {
		return // it fires early enough, and will be set anew then
	}
	d := next.Sub(g.now())
	if g.timer == nil {
		g.timer = time.AfterFunc(d, g.fire)
	} else {
		g.timer.Reset(d)
	}
	g.fires = next
}

func (g *guard) next() time.Time {
	var next time.Time
	for _, t := range [...]time.Time{g.watchAt, g.tryAt, g.allAt} {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	return next
}

// fire does what is due.
func (g *guard) fire() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fires = time.Time{}
	if !g.active {
		return
	}
	now := g.now()
	due := func(t time.Time) bool { return !t.IsZero() && !now.Before(t) }
	if due(g.watchAt) {
		g.watchAt = time.Time{}
		g.watch()
	}
	if due(g.allAt) {
		g.allAt = time.Time{}
		g.interruptLocked(allTimeout)
	}
	if due(g.tryAt) {
		g.tryAt = time.Time{}
		g.interruptLocked(tryTimeout)
	}
	g.schedule()
}
