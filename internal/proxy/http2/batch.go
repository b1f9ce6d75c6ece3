package http2

import (
	"sync"
	"time"
)

// Batch collects the connections that something was sent on, so that each is
// written to once. One goroutine uses it.
type Batch struct {
	dirty []*Conn
	notes []note
	time  time.Time
}

// note is an OnWindow that is due.
type note struct {
	s *Stream
	n int
}

// Flush writes what was sent. The Batch can be used again.
func (b *Batch) Flush() {
	// Callbacks may send: the list grows while it is worked through.
	for i := 0; i < len(b.dirty); i++ {
		c := b.dirty[i]
		b.dirty[i] = nil
		c.flush(b)
	}
	b.dirty = b.dirty[:0]
	b.time = time.Time{}
}

// Now returns the time, which is asked for once in a batch. Of what a connection's
// reader handles, it is when it came.
func (b *Batch) Now() time.Time { return b.now() }

// now is Now; without a batch it is the time itself.
func (b *Batch) now() time.Time {
	if b == nil {
		return time.Now()
	}
	if b.time.IsZero() {
		b.time = time.Now()
	}
	return b.time
}

var batches = sync.Pool{New: func() any { return new(Batch) }}

func getBatch() *Batch { return batches.Get().(*Batch) }

func (b *Batch) free() { batches.Put(b) }
