package h2spec

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/summerwind/h2spec"
	"github.com/summerwind/h2spec/config"

	"github.com/heddle-mesh/heddle/internal/proxy/http2"
)

// answer answers each request, once it is complete, with a few bytes.
type answer struct{}

func (answer) OnHeaders(b *http2.Batch, s *http2.Stream, _ *http2.Head, end bool) {
	if end {
		reply(b, s)
	}
}

func (answer) OnData(b *http2.Batch, s *http2.Stream, p []byte, end bool) {
	s.Consume(b, len(p))
	if end {
		reply(b, s)
	}
}

func (answer) OnTrailers(b *http2.Batch, s *http2.Stream, _ *http2.Head) { reply(b, s) }

func (answer) OnReset(b *http2.Batch, s *http2.Stream, _ http2.Reset) { s.Release(b) }

func (answer) OnWindow(*http2.Batch, *http2.Stream, int) {}

func reply(b *http2.Batch, s *http2.Stream) {
	s.SendHead(b, &http2.Head{Status: 200}, false)
	s.SendData(b, []byte("the suite wants some bytes here"), true)
	s.Release(b)
}

// TestSuite runs the generic, http2 and hpack suites, strictly.
func TestSuite(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			h := http2.NewServer(http2.Config{Conn: c, Handler: answer{}, MaxStreams: 100})
			wg.Go(func() { h.Run(ctx) }) // the suite does its best to make it fail
		}
	})
	ok, err := h2spec.Run(&config.Config{
		Host:         "127.0.0.1",
		Port:         l.Addr().(*net.TCPAddr).Port,
		Path:         "/",
		Timeout:      2 * time.Second,
		MaxHeaderLen: 4000,
		Strict:       true,
	})
	if err != nil {
		t.Error(err)
	}
	if !ok {
		t.Error("not all cases passed; see above")
	}
	l.Close()
	stop()
	wg.Wait()
}
