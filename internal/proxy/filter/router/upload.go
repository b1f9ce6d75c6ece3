package router

import (
	"errors"
	"io"
	"sync/atomic"

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

// stop ends the goroutine and waits for it.
func (u *upload) stop() {
	if u.done == nil {
		return
	}
	if u.call.x.Uploading.Load() {
		u.stopped.Store(true)
		u.call.x.Client.AbortRead()
		u.call.hop.SetDeadline(past)
	}
	// A body that was sent to its end leaves nothing to wait for, and a deadline
	// would spoil the connection for the next request.
	<-u.done
	u.done = nil
	if p := u.panicked; p != nil {
		u.panicked = nil
		panic(p)
	}
}
