package listener

import (
	"container/list"
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/internal/telemetry"
)

const (
	// maxHandshakes bounds the handshakes that go on at the same time. A waiting
	// one costs memory for keys and records before its client is known.
	maxHandshakes = 1024
	// maxWaiting bounds how many more clients wait for one to end.
	maxWaiting = 4096
	// patience is what a handshake may take when others wait for its place: much
	// more than an honest client needs.
	patience = time.Second
)

var (
	errHandshakes = errors.New("too many handshakes at a time")
	errWaiting    = errors.New("too many clients wait for a handshake")
)

// handshakes bounds how many go on and how many wait. Clients that take their time
// do not keep the others out: when all places are taken, the one that has been at it
// for longest, and for longer than an honest client needs, has to go.
type handshakes struct {
	places, queue int
	evicted       *telemetry.Counter

	mu sync.Mutex // guards what follows
	// under are the *handshake that have a place, oldest first; waiting the chan
	// struct{} by which those who wait for one are told to look again.
	under, waiting list.List
}

// handshake is one that has a place.
type handshake struct {
	began time.Time
	conn  net.Conn
	at    *list.Element // nil once it has lost its place
}

// begin waits for a place for c, at most until the deadline or the end of ctx.
func (h *handshakes) begin(ctx context.Context, c net.Conn, deadline time.Time) (*handshake, error) {
	h.mu.Lock()
	if h.waiting.Len() == 0 {
		if p := h.take(c); p != nil {
			h.mu.Unlock()
			return p, nil
		}
	}
	if h.waiting.Len() >= h.queue {
		h.mu.Unlock()
		return nil, errWaiting
	}
	turn := make(chan struct{}, 1)
	at := h.waiting.PushBack(turn)
	h.wake()
	next := h.next()
	h.mu.Unlock()

	timer := time.NewTimer(min(next, time.Until(deadline)))
	defer timer.Stop()
	var err error
	for err == nil {
		select {
		case <-turn: // a place may be free
		case <-timer.C:
			if !time.Now().Before(deadline) {
				err = errHandshakes
			}
		case <-ctx.Done():
			err = ctx.Err()
		}
		h.mu.Lock()
		if err == nil {
			if p := h.take(c); p != nil {
				h.waiting.Remove(at)
				h.wake() // of two that left, the second may have found us awake
				h.mu.Unlock()
				return p, nil
			}
		} else {
			h.waiting.Remove(at)
			h.wake() // in case the turn had come
		}
		timer.Reset(min(h.next(), time.Until(deadline)))
		h.mu.Unlock()
	}
	return nil, err
}

// take returns a place if one is free or can be made so.
func (h *handshakes) take(c net.Conn) *handshake {
	now := time.Now()
	if h.under.Len() >= h.places {
		oldest := h.under.Front().Value.(*handshake)
		if now.Sub(oldest.began) < patience {
			return nil
		}
		h.leave(oldest)
		h.evicted.Inc()
		oldest.conn.Close()
	}
	p := &handshake{began: now, conn: c}
	p.at = h.under.PushBack(p)
	return p
}

// next is when the oldest has been at it for long enough.
func (h *handshakes) next() time.Duration {
	if h.under.Len() == 0 {
		return 0
	}
	return patience - time.Since(h.under.Front().Value.(*handshake).began)
}

func (h *handshakes) leave(p *handshake) {
	if p.at != nil {
		h.under.Remove(p.at)
		p.at = nil
	}
}

// wake tells the first who waits if a place is free.
func (h *handshakes) wake() {
	if first := h.waiting.Front(); first != nil && h.under.Len() < h.places {
		select {
		case first.Value.(chan struct{}) <- struct{}{}:
		default:
		}
	}
}

// end gives a place back.
func (h *handshakes) end(p *handshake) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.leave(p)
	h.wake()
}
