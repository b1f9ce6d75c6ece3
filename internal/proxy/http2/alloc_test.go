//go:build !race

// The race detector makes pools forget at random.

package http2

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// bare is a client that allocates nothing: it sends the same block for each
// request, under the next number, and reads frames until the last stream has ended.
type bare struct {
	c     net.Conn
	block []byte
	body  []byte
	id    uint32
	n     int // streams at once
	out   []byte
	in    []byte
	r, w  int
}

func newBare(t *testing.T, addr string, n, body int) *bare {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	b := &bare{c: c, id: 1, n: n, in: make([]byte, 64<<10), body: make([]byte, body)}
	b.out = append(b.out, preface...)
	b.out = appendFrame(b.out, 0, frameSettings, 0, 0)
	b.out = appendFrame(b.out, 0, frameSettings, flagAck, 0)
	// A window that lasts for the whole test.
	b.out = binary.BigEndian.AppendUint32(appendFrame(b.out, 4, frameWindowUpdate, 0, 0), 1<<30)
	c.Write(b.out)
	b.block = []byte{0x80 | staticPOST, 0x80 | staticHTTP}
	for _, f := range [][2]string{{":path", "/api/v1/reviews"}, {":authority", "reviews:9080"}, {"user-agent", "a client of some length/1.0"},
		{"content-type", "application/grpc"}, {"te", "trailers"}, {"x-request-id", "6f1e5f0a-52a5-4a0e-8d34-0123456789ab"}} {
		b.block = append(b.block, 0)
		b.block = appendString(appendString(b.block, []byte(f[0])), []byte(f[1]))
	}
	return b
}

// round makes n requests at once.
func (b *bare) round(t *testing.T) {
	b.out = b.out[:0]
	for range b.n {
		end := byte(flagEndStream)
		if len(b.body) > 0 {
			end = 0
		}
		b.out = append(appendFrame(b.out, len(b.block), frameHeaders, flagEndHeaders|end, b.id), b.block...)
		if len(b.body) > 0 {
			b.out = append(appendFrame(b.out, len(b.body), frameData, flagEndStream, b.id), b.body...)
		}
		b.id += 2
	}
	if _, err := b.c.Write(b.out); err != nil {
		t.Fatal(err)
	}
	for left := b.n; left > 0; {
		f, _, ok := parseFrame(b.in[b.r:b.w])
		if !ok {
			b.w = copy(b.in, b.in[b.r:b.w])
			b.r = 0
			n, err := b.c.Read(b.in[b.w:])
			if err != nil {
				t.Fatal(err)
			}
			b.w += n
			continue
		}
		b.r += frameHeader + len(f.payload)
		switch {
		case f.kind == frameReset || f.kind == frameGoAway:
			t.Fatalf("got frame %d with %x", f.kind, f.payload)
		case (f.kind == frameHeaders || f.kind == frameData) && f.has(flagEndStream):
			left--
		}
	}
}

// fixed answers each request with the same head, body and trailers.
type fixed struct {
	ignore
	head, trailers *Head
	body           []byte
}

func newFixed() *fixed {
	k := &fixed{body: make([]byte, 1000)}
	k.head = &Head{Status: 200, Header: new(exchange.Header)}
	k.head.Header.AddString(exchange.ContentType, "content-type", "application/grpc")
	k.head.Header.AddString(exchange.Server, "server", "fixed")
	k.trailers = &Head{Header: new(exchange.Header)}
	k.trailers.Header.AddString(exchange.GRPCStatus, "grpc-status", "0")
	return k
}

func (k *fixed) answer(b *Batch, s *Stream) {
	s.SendHead(b, k.head, false)
	s.SendData(b, k.body, false)
	s.SendHead(b, k.trailers, true)
	s.Release(b)
}

func (k *fixed) OnHeaders(b *Batch, s *Stream, _ *Head, end bool) {
	if end {
		k.answer(b, s)
	}
}

func (k *fixed) OnData(b *Batch, s *Stream, p []byte, end bool) {
	s.Consume(b, len(p))
	if end {
		k.answer(b, s)
	}
}

func (k *fixed) OnReset(b *Batch, s *Stream, _ Reset) { s.Release(b) }

func TestNothingIsAllocatedForARequest(t *testing.T) {
	origin := func(t *testing.T) string {
		k := newFixed()
		return listen(t, func(c net.Conn) *Conn { return NewServer(Config{Conn: c, Handler: k}) })
	}
	for _, c := range []struct {
		name string
		addr func(t *testing.T) string
	}{
		{"answered here", origin},
		{"forwarded", func(t *testing.T) string { return proxyTo(t, origin(t), Config{}) }},
	} {
		for _, n := range []int{1, 10, 50} {
			for _, body := range []int{0, 100} {
				t.Run(fmt.Sprintf("%s, %d at once, %d bytes", c.name, n, body), func(t *testing.T) {
					b := newBare(t, c.addr(t), n, body)
					for range 50 { // pools and tables fill
						b.round(t)
					}
					if got := testing.AllocsPerRun(200, func() { b.round(t) }); got > 0 {
						t.Errorf("%v allocations", got)
					}
				})
			}
		}
	}
}

// Data that passes costs no memory either, whatever its length.
func TestNothingIsAllocatedForData(t *testing.T) {
	k := newFixed()
	k.body = make([]byte, 200<<10)
	up := listen(t, func(c net.Conn) *Conn { return NewServer(Config{Conn: c, Handler: k}) })
	addr := proxyTo(t, up, Config{})
	c := dial(t, addr, Config{})
	d := &drains{done: make(chan struct{}, 1)}
	head := request("GET")
	b := new(Batch)
	one := func() {
		if _, err := c.Open(b, head, true, d); err != nil {
			t.Fatal(err)
		}
		b.Flush()
		<-d.done
	}
	for range 100 {
		one()
	}
	if got := testing.AllocsPerRun(100, one); got > 1 {
		t.Errorf("%v allocations for 200 KiB", got) // a goroutine for what a socket does not take
	}
	if d.n != 201*int64(len(k.body)) {
		t.Errorf("%d bytes came", d.n)
	}
}

// drains consumes a response.
type drains struct {
	ignore
	n    int64
	done chan struct{}
}

func (d *drains) OnData(b *Batch, s *Stream, p []byte, _ bool) {
	d.n += int64(len(p))
	s.Consume(b, len(p))
}

func (d *drains) OnTrailers(b *Batch, s *Stream, _ *Head) {
	s.Release(b)
	d.done <- struct{}{}
}

// A connection that is idle holds no buffers.
func TestIdleConnectionsHoldNoBuffers(t *testing.T) {
	var conn *Conn
	made := make(chan struct{})
	addr := listen(t, func(c net.Conn) *Conn {
		conn = NewServer(Config{Conn: c, Handler: newFixed()})
		close(made)
		return conn
	})
	c := dial(t, addr, Config{})
	p, err := c.OpenPipe(request("GET"), nil, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(p.Body()); err != nil {
		t.Fatal(err)
	}
	p.Close()
	<-made
	conn.mu.Lock()
	defer conn.mu.Unlock()
	if conn.out != nil {
		t.Error("there is a buffer for output")
	}
}
