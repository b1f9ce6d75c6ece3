package http2

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
)

// forwarder passes the streams of clients on to one upstream, on the readers of
// the two connections: a proxy without a goroutine for a stream.
type forwarder struct {
	pairs sync.Pool
	up    func() *Conn
}

func newForwarder(up func() *Conn) *forwarder {
	f := &forwarder{up: up}
	f.pairs.New = func() any { return &pair{f: f} }
	return f
}

// pair is a client's stream and the upstream's. Events that come late find their
// stream replaced.
type pair struct {
	f *forwarder

	mu       sync.Mutex
	down, up *Stream
	started  bool // the response's head was sent on
}

type (
	downSide pair
	upSide   pair
)

func (f *forwarder) OnHeaders(b *Batch, s *Stream, h *Head, end bool) {
	p := f.pairs.Get().(*pair)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down, p.started = s, false
	s.Handle((*downSide)(p))
	up, err := f.up().Open(b, h, end, (*upSide)(p))
	if err != nil {
		s.SendHead(b, &Head{Status: 503}, true)
		s.Release(b)
		p.free()
		return
	}
	p.up = up
}

func (f *forwarder) OnData(*Batch, *Stream, []byte, bool) {}
func (f *forwarder) OnTrailers(*Batch, *Stream, *Head)    {}
func (f *forwarder) OnReset(*Batch, *Stream, Reset)       {}
func (f *forwarder) OnWindow(*Batch, *Stream, int)        {}

// free gives the pair back. mu is held: who waits for it will see that the streams
// are others.
func (p *pair) free() {
	p.down, p.up = nil, nil
	p.f.pairs.Put(p)
}

// done releases both streams: the response is complete, or there will be none. mu
// is held.
func (p *pair) done(b *Batch) {
	p.up.Release(b)
	p.down.Release(b)
	p.free()
}

func (d *downSide) OnHeaders(*Batch, *Stream, *Head, bool) {}

func (d *downSide) OnData(b *Batch, s *Stream, data []byte, end bool) {
	p := (*pair)(d)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down != s {
		return
	}
	held, err := p.up.SendData(b, data, end)
	if err != nil {
		p.down.Reset(b, RefusedStream)
		p.done(b)
		return
	}
	s.Consume(b, len(data)-held)
}

func (d *downSide) OnTrailers(b *Batch, s *Stream, h *Head) {
	p := (*pair)(d)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down == s {
		p.up.SendHead(b, h, true)
	}
}

func (d *downSide) OnReset(b *Batch, s *Stream, _ Reset) {
	p := (*pair)(d)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down == s {
		p.done(b)
	}
}

func (d *downSide) OnWindow(b *Batch, s *Stream, n int) {
	p := (*pair)(d)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down == s {
		p.up.Consume(b, n)
	}
}

func (u *upSide) OnHeaders(b *Batch, s *Stream, h *Head, end bool) {
	p := (*pair)(u)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.up != s {
		return
	}
	p.started = h.Status >= 200
	p.down.SendHead(b, h, end)
	p.ended(b, end)
}

// ended ends the pair with its response. mu is held.
func (p *pair) ended(b *Batch, end bool) {
	if end {
		p.done(b)
	}
}

func (u *upSide) OnData(b *Batch, s *Stream, data []byte, end bool) {
	p := (*pair)(u)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.up != s {
		return
	}
	held, err := p.down.SendData(b, data, end)
	if err != nil {
		p.done(b)
		return
	}
	s.Consume(b, len(data)-held)
	p.ended(b, end)
}

func (u *upSide) OnTrailers(b *Batch, s *Stream, h *Head) {
	p := (*pair)(u)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.up == s {
		p.down.SendHead(b, h, true)
		p.ended(b, true)
	}
}

func (u *upSide) OnReset(b *Batch, s *Stream, r Reset) {
	p := (*pair)(u)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.up != s {
		return
	}
	if !p.started {
		p.down.SendHead(b, &Head{Status: 503}, true)
	} else {
		p.down.Reset(b, r.Code)
	}
	p.done(b)
}

func (u *upSide) OnWindow(b *Batch, s *Stream, n int) {
	p := (*pair)(u)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.up == s {
		p.down.Consume(b, n)
	}
}

// listen accepts connections on a real socket until the test ends, and serves each
// with what conn makes of it.
func listen(t testing.TB, conn func(net.Conn) *Conn) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
				return
			}
			h := conn(c)
			wg.Go(func() {
				closed := context.AfterFunc(ctx, func() { h.Close() })
				h.Run(context.Background())
				closed()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		stop()
		wg.Wait()
	})
	return l.Addr().String()
}

// dial returns a running client connection.
func dial(t testing.TB, addr string, cfg Config) *Conn {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Conn = nc
	c := NewClient(cfg)
	var wg sync.WaitGroup
	wg.Go(func() { c.Run(context.Background()) })
	t.Cleanup(func() {
		c.Close()
		wg.Wait()
	})
	<-c.Ready()
	return c
}

// proxyTo returns the address of a proxy before an upstream.
func proxyTo(t testing.TB, upstream string, cfg Config) string {
	t.Helper()
	var mu sync.Mutex
	var up *Conn
	f := newForwarder(func() *Conn {
		mu.Lock()
		defer mu.Unlock()
		if up == nil || up.Err() != nil {
			up = dial(t, upstream, Config{Budget: cfg.Budget})
		}
		return up
	})
	return listen(t, func(c net.Conn) *Conn {
		k := cfg
		k.Conn, k.Handler = c, f
		return NewServer(k)
	})
}
