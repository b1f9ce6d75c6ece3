package http2

import (
	"sync"
	"sync/atomic"
)

// Budget bounds the memory for data that can not be passed on at once, across the
// connections that share it. Data that passes without waiting costs nothing. A
// stream that needs more than there is must be reset; the others go on. Above half
// of the budget only connections with little of it get more, so that those which
// keep the most are the first to lose streams.
type Budget struct {
	max  int64
	used atomic.Int64
}

// little is the part of a budget that a connection gets in any case.
const little = 16

// NewBudget returns a budget of so many bytes.
func NewBudget(bytes int64) *Budget { return &Budget{max: bytes} }

// Used returns how much of the budget is in use.
func (b *Budget) Used() int64 { return b.used.Load() }

// account is a connection's part of a Budget.
type account struct {
	budget *Budget // nil: no bound
	own    atomic.Int64
}

func (a *account) take(n int) bool {
	own := a.own.Add(int64(n))
	b := a.budget
	if b == nil {
		return true
	}
	if used := b.used.Add(int64(n)); used > b.max || used > b.max/2 && own > b.max/little {
		a.give(n)
		return false
	}
	return true
}

func (a *account) give(n int) {
	a.own.Add(-int64(n))
	if a.budget != nil {
		a.budget.used.Add(-int64(n))
	}
}

const (
	smallChunk = 2 << 10
	largeChunk = 16 << 10
)

// chunk is a piece of a queue, from a pool. There is no third size.
type chunk struct {
	b    []byte
	r, w int
	next *chunk
}

var (
	smallChunks = sync.Pool{New: func() any { return &chunk{b: make([]byte, smallChunk)} }}
	largeChunks = sync.Pool{New: func() any { return &chunk{b: make([]byte, largeChunk)} }}
)

func (c *chunk) free() {
	c.r, c.w, c.next = 0, 0, nil
	if len(c.b) == smallChunk {
		smallChunks.Put(c)
	} else {
		largeChunks.Put(c)
	}
}

// queue is bytes that wait. The zero value is empty.
type queue struct {
	first, last *chunk
	n           int
}

// append copies p to the end. It reports false, and keeps what it had, if the
// budget does not allow it.
func (q *queue) append(a *account, p []byte) bool {
	need := len(p)
	if q.last != nil {
		need -= len(q.last.b) - q.last.w
	}
	if need > 0 {
		// Charged is what is taken, not what is filled: one byte in a chunk costs a
		// chunk.
		var list, tail *chunk
		for charged := 0; charged < need; {
			var c *chunk
			if q.first == nil && list == nil && need <= smallChunk {
				c = smallChunks.Get().(*chunk)
			} else {
				c = largeChunks.Get().(*chunk)
			}
			if !a.take(len(c.b)) {
				c.free()
				freeChunks(a, list)
				return false
			}
			charged += len(c.b)
			if tail == nil {
				list = c
			} else {
				tail.next = c
			}
			tail = c
		}
		q.fill(&p, q.last)
		if q.last == nil {
			q.first = list
		} else {
			q.last.next = list
		}
		for c := list; c != nil; c = c.next {
			q.fill(&p, c)
			q.last = c
		}
		return true
	}
	q.fill(&p, q.last)
	return true
}

func (q *queue) fill(p *[]byte, c *chunk) {
	if c == nil {
		return
	}
	n := copy(c.b[c.w:], *p)
	c.w += n
	q.n += n
	*p = (*p)[n:]
}

// peek returns the first bytes, as many as lie together.
func (q *queue) peek() []byte {
	if q.first == nil {
		return nil
	}
	return q.first.b[q.first.r:q.first.w]
}

// skip removes n bytes, which lie together.
func (q *queue) skip(a *account, n int) {
	if n == 0 {
		return
	}
	c := q.first
	c.r += n
	q.n -= n
	if c.r < c.w {
		return
	}
	if q.first = c.next; q.first == nil {
		q.last = nil
	}
	a.give(len(c.b))
	c.free()
}

// clear removes everything.
func (q *queue) clear(a *account) {
	freeChunks(a, q.first)
	*q = queue{}
}

func freeChunks(a *account, c *chunk) {
	for c != nil {
		next := c.next
		a.give(len(c.b))
		c.free()
		c = next
	}
}
