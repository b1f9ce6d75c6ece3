package router

import (
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
)

// spoilt notes whether a deadline was set.
type spoilt struct {
	net.Conn
	set bool
}

func (s *spoilt) SetDeadline(time.Time) error { s.set = true; return nil }

// The body's goroutine has said that all is sent, and is about to end: the
// connection goes back to the pool, and must be as it was.
func TestConnectionIsUnspoiltByAnUploadThatEnded(t *testing.T) {
	x := &exchange.Exchange{}
	wire := &spoilt{}
	c := newCall()
	c.x, c.hop, c.one.Conn = x, &c.one, &upstream.Conn{Conn: wire}
	c.upload.done = make(chan struct{})
	x.Uploading.Store(false)
	go close(c.upload.done)
	if !c.upload.stop() || wire.set {
		t.Error("a deadline was left on a connection that can be used again")
	}
}

// blocked is a connection whose writes wait for a deadline.
type blocked struct {
	spoilt
	passed chan struct{}
}

func (b *blocked) SetDeadline(time.Time) error { close(b.passed); return nil }

// An upstream that answers, and never takes the last piece of the body, does not hold
// up the client's next request; its connection is not used again.
func TestLastPieceIsNotWaitedForForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wire := &blocked{passed: make(chan struct{})}
		c := newCall()
		c.x, c.hop, c.one.Conn = &exchange.Exchange{}, &c.one, &upstream.Conn{Conn: wire}
		done := make(chan struct{})
		c.upload.done = done
		go func() {
			<-wire.passed
			close(done)
		}()
		if c.upload.stop() {
			t.Error("a connection that takes nothing is to be used again")
		}
	})
}
