package upstream

import (
	"context"
	"slices"
	"sync"
)

// slots limits the open connections of a cluster, and queues those that want one
// when there is none left. A slot belongs to a connection from before it is
// dialled until after it is closed.
type slots struct {
	mu sync.Mutex
	// mu guards
	max   uint32 // 0: no limit
	used  uint32
	queue []*waiter // first come, first served
}

// waiter is one request in the queue.
type waiter struct {
	// granted gets a connection, or nil for the permission to dial. cap 1.
	granted chan *Conn
	// dials is true if only a new connection will do, and only is the one endpoint
	// whose connections will, or nil for any.
	dials bool
	only  *Endpoint
}

func (w *waiter) suits(c *Conn) bool {
	return !w.dials && (w.only == nil || w.only == c.Endpoint)
}

// limit sets the number of slots. If there are more now, the queue moves.
func (s *slots) limit(max uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.max = max
	for len(s.queue) > 0 && s.room() {
		s.used++
		s.pop(0) <- nil
	}
}

func (s *slots) room() bool { return s.max == 0 || s.used < s.max }

func (s *slots) pop(i int) chan *Conn {
	w := s.queue[i]
	s.queue = slices.Delete(s.queue, i, i+1)
	return w.granted
}

// take gets a slot at once, or puts w into the queue if there is none.
func (s *slots) take(w *waiter) (ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.room() {
		s.used++
		return true
	}
	s.queue = append(s.queue, w)
	return false
}

// try gets a slot if there is one, or in any case with force, and reports whether it
// did.
func (s *slots) try(force bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !force && !s.room() {
		return false
	}
	s.used++
	return true
}

// newWaiter makes a request for the queue.
func newWaiter(only *Endpoint, dials bool) *waiter {
	return &waiter{granted: make(chan *Conn, 1), only: only, dials: dials}
}

// free gives a slot back, or on to the first in the queue.
func (s *slots) free() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) > 0 && (s.max == 0 || s.used <= s.max) {
		s.pop(0) <- nil
		return
	}
	s.used--
}

// offer hands a connection with its slot to the first that it suits.
func (s *slots) offer(c *Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, w := range s.queue {
		if w.suits(c) {
			s.pop(i) <- c
			return true
		}
	}
	return false
}

// leave takes w out of the queue. If it was granted something meanwhile, ok is
// true and what was granted is the caller's.
func (s *slots) leave(w *waiter) (c *Conn, ok bool) {
	s.mu.Lock()
	i := slices.Index(s.queue, w)
	if i >= 0 {
		s.queue = slices.Delete(s.queue, i, i+1)
	}
	s.mu.Unlock()
	if i >= 0 {
		return nil, false
	}
	return <-w.granted, true
}

// wait blocks until something is granted: a connection, or nil for the permission
// to dial.
func (s *slots) wait(ctx context.Context, w *waiter) (c *Conn, ok bool) {
	select {
	case c := <-w.granted:
		return c, true
	case <-ctx.Done():
		return s.leave(w)
	}
}
