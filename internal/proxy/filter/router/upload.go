package router

import (
	"errors"
	"io"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/http1"
)

// upload sends a request's body while the response may already be on its way.
type upload struct {
	call *call
	done chan struct{} // closed when the goroutine ends; nil if there is none
	// stopped is set before the goroutine is made to end.
	stopped atomic.Bool
	// panicked is what the goroutine panicked with. It is raised again where the
	// exchange's own goroutine waits.
	panicked any
}

func (u *upload) start(to hop, body exchange.Body) {
	u.done = make(chan struct{})
	u.stopped.Store(false)
	u.call.x.Client.Progress()
	go u.run(to, body, u.done)
}

func (u *upload) run(to hop, body exchange.Body, done chan<- struct{}) {
	defer close(done)
	defer func() {
		if p := recover(); p != nil {
			u.panicked = p
			u.call.guard.interrupt(badUpload)
		}
	}()
	for {
		p, err := body.Next()
		if err != nil {
			if errors.Is(err, io.EOF) {
				u.call.x.Uploading.Store(false) // before the answer to the end
				u.call.sendCopies(nil, true)
				if to.end() != nil {
					return
				}
			}
			u.ended(err)
			return
		}
		u.call.x.Client.Progress()
		u.call.sendCopies(p, false)
		if body.Done() {
			// The answer to this piece may be sent before write has returned, and
			// does not leave the rest of a body on the client's connection.
			u.call.x.Uploading.Store(false)
		}
		if err := to.write(p); err != nil {
			return // reading the response tells why, or is the response
		}
	}
}

// ended says how the body ended.
func (u *upload) ended(err error) {
	c := u.call
	if errors.Is(err, io.EOF) {
		c.x.Uploading.Store(false)
		c.uploaded(c.r.cfg.Now())
		return
	}
	if _, ok := errors.AsType[*http1.Error](err); ok {
		c.guard.interrupt(badUpload)
		return
	}
	if t, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err); ok && t.Timeout() {
		if !u.stopped.Load() {
			c.guard.interrupt(stalled)
		}
		return
	}
	c.guard.interrupt(clientGone)
}

// lastPiece is how long the last piece of a body may take to leave when the answer is
// over. An upstream that answers without reading may never take it.
const lastPiece = 100 * time.Millisecond

// stop ends the goroutine and waits for it. It reports whether the body was sent to its
// end, which leaves the way fit for another request.
func (u *upload) stop() (sent bool) {
	if u.done == nil {
		return true
	}
	if sent = !u.call.x.Uploading.Load(); sent {
		// There is nothing to wait for but the last piece, and a deadline would
		// spoil the connection for the next request.
		sent = u.ends(lastPiece)
	} else {
		u.stopped.Store(true)
		u.call.x.Client.AbortRead()
	}
	if !sent {
		u.call.hop.SetDeadline(past)
	}
	<-u.done
	u.done = nil
	if p := u.panicked; p != nil {
		u.panicked = nil
		panic(p)
	}
	return sent
}

// ends waits for the goroutine, but not longer than d.
func (u *upload) ends(d time.Duration) bool {
	select {
	case <-u.done:
		return true
	default:
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-u.done:
		return true
	case <-t.C:
		return false
	}
}
