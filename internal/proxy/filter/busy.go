package filter

import (
	"crypto/tls"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/socket"
)

// busyTime is how long a connection may be without a request before it counts as
// idle.
const busyTime = 500 * time.Millisecond

// busy is a connection while requests follow each other. They are served inside one
// wait of the socket, so that each of them costs one read: see socket.Conn.Await.
//
// Nobody may wait for input in there. So a request of which not all has come, or that
// turns the connection into something else, is served outside.
type busy struct {
	d      *downstream
	sock   *socket.Conn // below d.c; nil if there is none
	turn   func() bool  // made once
	inside bool

	// burst is serve, made once, and over gets a value at its end. What it left:
	burst  func()
	over   chan struct{} // cap 1
	again  bool
	last   error
	fault  any
	bursts int

	// What a turn left.
	x    *exchange.Exchange // to be served outside; its head was read
	rest bool               // no request is here
	more bool
	err  error

	stop chan struct{} // closed to end hungUp
}

func (b *busy) init(d *downstream, s *socket.Conn) {
	b.d, b.sock, b.turn, b.burst, b.over = d, s, b.take, b.serve, make(chan struct{}, 1)
}

// serveSocket handles one request after the other. While the connection is idle it
// waits on the socket alone, with no buffer and with the smallest of stacks: this
// function and those above it allocate nothing and call nothing that needs much, since
// a stack that has grown stays.
func (d *downstream) serveSocket() error {
	b := &d.busy
	for {
		go b.burst()
		<-b.over
		if b.fault != nil {
			panic(b.fault)
		}
		if !b.again {
			return b.last
		}
		if err := b.sock.Wait(); err != nil {
			return d.ended(err)
		}
	}
}

// serve is one burst of requests.
func (b *busy) serve() {
	done := false
	defer func() {
		if p := recover(); !done {
			b.fault = fmt.Sprintf("%v\n%s", p, debug.Stack())
		}
		b.over <- struct{}{}
	}()
	d := b.d
	if b.again, b.last = d.requests(); b.again {
		b.bursts++
		idle := d.s.cfg.IdleTimeout
		if !b.rest {
			idle = max(idle-busyTime, time.Millisecond) // some of it is over
		}
		d.readUntil(d.s.cfg.Now().Add(idle))
		if r, ok := d.terminal.(rester); ok && r.Rest() {
			d.terminal = nil
		}
	}
	done = true
}

// rester is what can be thrown away while a connection is idle.
type rester interface {
	// Rest reports whether it holds nothing any more.
	Rest() bool
}

// requests serves requests until none has come for a while. It reports whether there
// may be more.
func (d *downstream) requests() (more bool, err error) {
	b := &d.busy
	if c, ok := d.c.(*tls.Conn); ok {
		// Usually over. A read that gives up inside it would be its end.
		if err := c.Handshake(); err != nil {
			return false, d.ended(err)
		}
	}
	for {
		d.readUntil(d.s.cfg.Now().Add(min(busyTime, d.s.cfg.IdleTimeout)))
		b.x, b.rest, b.more, b.err, b.inside = nil, false, true, nil, true
		if err := b.await(); isTimeout(err) {
			return true, nil
		} else if err != nil {
			return false, d.ended(err)
		}
		if !b.more {
			return false, b.err
		}
		if b.rest {
			return true, nil
		}
		d.readUntil(time.Time{})
		if x := b.x; x != nil {
			b.x = nil
			more = d.respond(x)
		} else {
			more, err = d.one()
		}
		if !more {
			return false, err
		}
	}
}

func (b *busy) await() error {
	defer func() { b.inside = false }()
	return b.sock.Await(b.turn)
}

// take serves what is here. It returns false if nothing is any more, and true if the
// wait is to be left: with an exchange that was begun, with an end, or with more set
// for a request that is to be read outside.
func (b *busy) take() bool {
	d := b.d
	for {
		if err := d.rd.Wait(); err != nil {
			if errors.Is(err, socket.ErrAgain) {
				// Many connections carry one request, or one now and then. They are not
				// waited for with all that is at hand here.
				b.rest = b.bursts == 0
				return b.rest
			}
			b.more, b.err = false, d.ended(err)
			return true
		}
		if !d.rd.Whole() || !d.served && !d.looksLikeHTTP() {
			return true
		}
		x := d.begin()
		if d.until.Sub(x.Start) < busyTime/2 {
			d.readUntil(x.Start.Add(busyTime))
		}
		if err := d.read(x); err != nil {
			b.more, b.err = false, d.refuse(x, err)
			d.end(x)
			return true
		}
		if !contained(x) {
			b.x = x
			return true
		}
		if b.more = d.respond(x); !b.more {
			return true
		}
	}
}

// contained reports whether nothing has to be read for x.
func contained(x *exchange.Exchange) bool {
	q := &x.Request
	if q.Connect || q.Upgrade != nil {
		return false
	}
	b, ok := q.Body.(interface{ Whole() bool })
	return q.Body == nil || ok && b.Whole()
}

const (
	// How often hungUp looks, from the first look to the last: the longer a request
	// has lasted, the less a moment matters.
	minLook = 10 * time.Millisecond
	maxLook = time.Second
)

// hungUp waits until the client hangs up or stop is closed, and reports which. The
// reading side belongs to the wait that the request is served in, so all that can be
// done is to look, again and again.
func (b *busy) hungUp(stop <-chan struct{}) bool {
	wait := minLook
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-stop:
			return false
		case <-t.C:
		}
		if b.sock.HungUp() {
			return true
		}
		t.Reset(wait)
		wait = min(wait+wait/4, maxLook)
	}
}
