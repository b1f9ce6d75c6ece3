package http2

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// script is a connection whose peer says what is written, and reads everything.
type script struct {
	in  []byte
	out int
}

func (s *script) Read(p []byte) (int, error) {
	if len(s.in) == 0 {
		return 0, io.EOF
	}
	// In pieces, of which the first byte says how long they are.
	n := copy(p, s.in[:min(len(s.in), 1+int(s.in[0])*16)])
	s.in = s.in[n:]
	return n, nil
}

func (s *script) Write(p []byte) (int, error)      { s.out += len(p); return len(p), nil }
func (*script) Close() error                       { return nil }
func (*script) LocalAddr() net.Addr                { return &net.TCPAddr{} }
func (*script) RemoteAddr() net.Addr               { return &net.TCPAddr{} }
func (*script) SetDeadline(time.Time) error        { return nil }
func (*script) SetReadDeadline(time.Time) error    { return nil }
func (*script) SetWriteDeadline(t time.Time) error { return nil }

// frames for seeds.
func seed(list ...[]byte) []byte { return bytes.Join(list, nil) }

func rawFrame(kind frameType, flags uint8, id uint32, payload ...byte) []byte {
	return append(appendFrame(nil, len(payload), kind, flags, id), payload...)
}

func u32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// checked is a handler that holds the machine to its promises.
type checked struct {
	t    *testing.T
	open map[uint32]bool // heard of, not over; true once it ended
}

func (k *checked) event(s *Stream, end bool) {
	ended, ok := k.open[s.ID()]
	if !ok || ended {
		k.t.Fatalf("event of stream %d, which is over or unknown", s.ID())
	}
	k.open[s.ID()] = end
}

func (k *checked) OnHeaders(b *Batch, s *Stream, h *Head, end bool) {
	if _, ok := k.open[s.ID()]; !ok {
		k.open[s.ID()] = false
	}
	k.event(s, end)
	if h.Method != nil {
		x := exchange.Get()
		s.SendHead(b, &Head{Status: 200}, false)
		s.SendData(b, []byte("some data to be windowed"), false)
		s.SendHead(b, h, true) // the fields come back as trailers
		if why := ReadRequest(x, h, end); why == "" {
			q := &x.Request
			if len(q.Authority) == 0 || len(q.Path) == 0 || len(q.Method) == 0 {
				k.t.Fatalf("request with %q %q %q", q.Method, q.Authority, q.Path)
			}
			lines := q.Header.AppendTo(nil)
			if n := bytes.Count(lines, []byte("\n")); n != bytes.Count(lines, []byte("\r\n")) || bytes.Contains(lines, []byte("\r\n\r\n")) || bytes.IndexByte(lines, 0) >= 0 {
				k.t.Fatalf("header lines %q", lines)
			}
		}
		exchange.Put(x)
	}
}

func (k *checked) OnData(b *Batch, s *Stream, p []byte, end bool) {
	k.event(s, end)
	if len(p)%2 == 0 {
		s.Consume(b, len(p))
	}
}

func (k *checked) OnTrailers(_ *Batch, s *Stream, _ *Head) { k.event(s, true) }

func (k *checked) OnReset(b *Batch, s *Stream, _ Reset) {
	if _, ok := k.open[s.ID()]; !ok {
		k.t.Fatalf("reset of stream %d, which is unknown", s.ID())
	}
	delete(k.open, s.ID())
	s.Release(b)
}

func (k *checked) OnWindow(_ *Batch, _ *Stream, n int) {
	if n <= 0 {
		k.t.Fatalf("window of %d", n)
	}
}

// after checks what must hold of every connection that has ended.
func after(t *testing.T, c *Conn, s *script, given int) {
	switch {
	case c.streams.n != 0:
		t.Fatalf("%d streams are left", c.streams.n)
	case c.account.own.Load() != 0:
		t.Fatalf("%d bytes are still charged", c.account.own.Load())
	case s.out > 1000+200*given:
		t.Fatalf("%d bytes were sent for %d", s.out, given)
	}
}

func FuzzServer(f *testing.F) {
	settings := rawFrame(frameSettings, 0, 0)
	get := []byte{0x82, 0x86, 0x84, 0x41, 0x01, 'a'}
	f.Add(seed(settings, rawFrame(frameHeaders, flagEndHeaders|flagEndStream, 1, get...)))
	f.Add(seed(settings, rawFrame(frameHeaders, flagEndHeaders, 1, get...), rawFrame(frameData, flagEndStream|flagPadded, 1, 2, 'x', 0, 0),
		rawFrame(frameWindowUpdate, 0, 1, u32(10)...)))
	f.Add(seed(rawFrame(frameSettings, 0, 0, 0, 4, 0, 0, 0, 1), rawFrame(frameHeaders, 0, 1, get[:2]...), rawFrame(frameContinuation, flagEndHeaders, 1, get[2:]...),
		rawFrame(frameReset, 0, 1, u32(8)...), rawFrame(framePing, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8), rawFrame(frameGoAway, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)))
	f.Add(seed(settings, rawFrame(frameHeaders, flagEndHeaders|flagPriority, 3, append([]byte{0, 0, 0, 1, 9}, get...)...), rawFrame(framePriority, 0, 3, 0, 0, 0, 1, 5),
		rawFrame(frameHeaders, flagEndHeaders|flagEndStream, 3, 0x40, 1, 'x', 1, 'y'), rawFrame(frameType(0xa), 0xff, 7, 1)))
	f.Add(seed(settings, rawFrame(frameSettings, 0, 0, 0, 1, 0, 0, 0, 0), rawFrame(frameSettings, flagAck, 0), rawFrame(framePushPromise, 4, 1, u32(2)...)))
	f.Fuzz(func(t *testing.T, in []byte) {
		s := &script{in: append([]byte(preface), in...)}
		c := NewServer(Config{Conn: s, Handler: &checked{t: t, open: map[uint32]bool{}}, ExtendedConnect: true, MaxStreams: 20})
		c.Run(context.Background())
		after(t, c, s, len(in))
	})
}

func FuzzClient(f *testing.F) {
	settings := rawFrame(frameSettings, 0, 0)
	f.Add(seed(settings, rawFrame(frameHeaders, flagEndHeaders|flagEndStream, 1, 0x88)))
	f.Add(seed(settings, rawFrame(frameHeaders, flagEndHeaders, 1, 0x08, 3, '1', '0', '3'), rawFrame(frameHeaders, flagEndHeaders, 1, 0x88),
		rawFrame(frameData, 0, 1, 'x'), rawFrame(frameHeaders, flagEndHeaders|flagEndStream, 1, 0x40, 1, 'x', 1, 'y')))
	f.Add(seed(rawFrame(frameSettings, 0, 0, 0, 4, 0, 0, 0, 5, 0, 3, 0, 0, 0, 1), rawFrame(frameWindowUpdate, 0, 3, u32(100)...), rawFrame(frameReset, 0, 3, u32(7)...),
		rawFrame(frameGoAway, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0)))
	f.Fuzz(func(t *testing.T, in []byte) {
		s := &script{in: in}
		k := &checked{t: t, open: map[uint32]bool{}}
		c := NewClient(Config{Conn: s})
		b := new(Batch)
		for range 3 {
			st, err := c.Open(b, request("POST"), false, k)
			if err != nil {
				t.Fatal(err)
			}
			k.open[st.ID()] = false
			st.SendData(b, make([]byte, 1000), true)
		}
		c.Run(context.Background())
		after(t, c, s, len(in)+5000)
	})
}
