package router

import (
	"net"
	"testing"
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
	c.upload.stop()
	if wire.set {
		t.Error("a deadline was left on a connection that can be used again")
	}
}
