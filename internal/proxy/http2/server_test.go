package http2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	h2 "golang.org/x/net/http2"
)

func TestRequestsAreAnswered(t *testing.T) {
	e := newEvents(replies("hello"))
	p := serverUnderTest(t, Config{Handler: e})
	p.get(1)
	e.want(t, "1 headers END")
	p.want("HEADERS 1 :status=200", "DATA 1 hello END")
	p.post(3)
	p.want("HEADERS 3 :status=200", "DATA 3 hello END")
	p.fr.WriteData(3, false, []byte("abc"))
	p.headers(3, true, "x-sum", "1", "content-length", "7")
	e.want(t, "3 headers", "3 data 3", "3 trailers x-sum: 1")
	if n := p.conn.Streams(); n != 0 {
		t.Errorf("%d streams are open", n)
	}
	if err := p.close(); err != nil {
		t.Error(err)
	}
}

// What the peer allows is what is sent: of a stream's window, of the connection's,
// and of one that shrank below nothing.
func TestDataWaitsForWindows(t *testing.T) {
	e := newEvents(replies(strings.Repeat("x", 30)))
	p := serverUnderTest(t, Config{Handler: e})
	p.fr.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 10})
	p.want("SETTINGS ACK")
	p.get(1)
	e.want(t, "1 headers END")
	p.want("HEADERS 1 :status=200", "DATA 1 xxxxxxxxxx")
	p.fr.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 5})
	p.want("SETTINGS ACK")
	p.fr.WriteWindowUpdate(1, 5) // back to nothing
	p.fr.WriteWindowUpdate(1, 3)
	p.want("DATA 1 xxx")
	e.want(t, "1 window 3")
	p.fr.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 1000})
	p.want("SETTINGS ACK", "DATA 1 xxxxxxxxxxxxxxxxx END")
	e.want(t, "1 window 17")
	p.close()
}

func TestStreamsShareTheConnectionsWindow(t *testing.T) {
	e := newEvents(replies(strings.Repeat("x", 40000)))
	p := serverUnderTest(t, Config{Handler: e})
	p.get(1)
	p.want("HEADERS 1 :status=200", "DATA 1 [16384]", "DATA 1 [16384]", "DATA 1 [7232] END")
	p.get(3)
	p.want("HEADERS 3 :status=200", "DATA 3 [16384]", "DATA 3 [9151]") // 65535 in all
	p.get(5)
	p.want("HEADERS 5 :status=200")
	p.fr.WriteWindowUpdate(0, 20000)
	p.data(3, 14465, true)
	p.data(5, 5535, false)
	p.fr.WriteWindowUpdate(0, 100000)
	p.data(5, 34465, true)
	p.close()
}

func TestTrailersFollowTheDataThatWaits(t *testing.T) {
	e := newEvents(func(b *Batch, s *Stream, what string, _ []byte) {
		if what != "headers" {
			return
		}
		s.SendHead(b, &Head{Status: 200}, false)
		if held, err := s.SendData(b, make([]byte, 30), false); held != 20 || err != nil {
			t.Errorf("%d bytes are kept, %v; want 20", held, err)
		}
		h := section(t, trailerHead, "grpc-status: 0")
		s.SendHead(b, h, true)
		h.reset() // the view is not needed any more
		if _, err := s.SendData(b, []byte("x"), true); err != ErrStreamEnded {
			t.Errorf("data behind trailers: %v", err)
		}
		s.Release(b) // what is kept is sent nevertheless
	})
	p := serverUnderTest(t, Config{Handler: e})
	p.fr.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 10})
	p.want("SETTINGS ACK")
	p.get(1)
	p.want("HEADERS 1 :status=200")
	if d := p.read().(*h2.DataFrame); len(d.Data()) != 10 {
		t.Fatalf("got %v", d)
	}
	p.fr.WriteWindowUpdate(1, 100)
	if d := p.read().(*h2.DataFrame); len(d.Data()) != 20 || d.StreamEnded() {
		t.Fatalf("got %v", d)
	}
	p.want("HEADERS 1 grpc-status=0 END")
	if n := p.conn.Streams(); n != 0 {
		t.Errorf("%d streams are open", n)
	}
	p.close()
}

// The peer gets its window back when bytes are consumed, not when they arrive.
func TestWindowsOpenWithConsumption(t *testing.T) {
	streams := make(chan *Stream, 1)
	e := newEvents(func(b *Batch, s *Stream, what string, _ []byte) {
		if what == "headers" {
			streams <- s
		}
	})
	p := serverUnderTest(t, Config{Handler: e, StreamWindow: 70000, ConnWindow: 150000, MaxHeld: 80000})
	ping := func() {
		p.t.Helper()
		p.fr.WritePing(false, [8]byte{})
		p.want("PING ACK")
	}
	p.post(1)
	s := <-streams
	for range 4 {
		p.fr.WriteDataPadded(1, false, make([]byte, 16000), make([]byte, 200))
	}
	ping() // and no WINDOW_UPDATE, though 804 bytes were padding
	s.Consume(nil, 40000)
	p.want("WINDOW_UPDATE 1 40804")
	s.Consume(nil, 40000) // more than there is
	ping()
	for range 2 {
		p.fr.WriteData(1, false, make([]byte, 16000))
	}
	p.want("WINDOW_UPDATE 0 80804") // though the stream has consumed nothing of it
	s.Consume(nil, 32000)
	p.want("WINDOW_UPDATE 1 56000")

	// Beyond MaxHeld the connection's window stays where it is.
	p.post(3)
	two := <-streams
	for range 4 {
		p.fr.WriteData(3, false, make([]byte, 16000))
	}
	p.post(5)
	<-streams
	for range 3 {
		p.fr.WriteData(5, false, make([]byte, 15000))
	}
	p.want("WINDOW_UPDATE 0 80000") // 16000 and 64000 before it was reached, 29000 held back
	ping()
	two.Consume(nil, 64000)
	p.want("WINDOW_UPDATE 3 64000")
	p.close()
}

func TestDataBeyondTheStreamsWindow(t *testing.T) {
	e := newEvents(nil)
	p := serverUnderTest(t, Config{Handler: e, StreamWindow: 65535, ConnWindow: 1 << 20})
	p.post(1)
	for range 4 {
		p.fr.WriteData(1, false, make([]byte, 16384))
	}
	p.want("RST_STREAM 1 FLOW_CONTROL_ERROR")
	e.want(t, "1 headers", "1 data 16384", "1 data 16384", "1 data 16384", "1 reset FLOW_CONTROL_ERROR")
	p.get(3)
	e.want(t, "3 headers END")
	p.close()
}

func TestDataBeyondTheConnectionsWindow(t *testing.T) {
	p := serverUnderTest(t, Config{Handler: newEvents(nil), StreamWindow: 65535, ConnWindow: 65535, MaxHeld: 1})
	p.post(1)
	p.post(3)
	go func() {
		for id := uint32(1); id <= 3; id += 2 {
			for range 3 {
				p.fr.WriteData(id, false, make([]byte, 16384))
			}
		}
	}()
	p.wantEnd(h2.ErrCodeFlowControl)
}

func TestLengthsAreChecked(t *testing.T) {
	for _, c := range []struct {
		name   string
		length string
		send   func(p *peer)
		reset  bool
	}{
		{"exact", "3", func(p *peer) { p.fr.WriteData(1, true, []byte("abc")) }, false},
		{"in parts", "3", func(p *peer) { p.fr.WriteData(1, false, []byte("a")); p.fr.WriteData(1, true, []byte("bc")) }, false},
		{"end without data", "3", func(p *peer) { p.fr.WriteData(1, false, []byte("abc")); p.fr.WriteData(1, true, nil) }, false},
		{"with trailers", "3", func(p *peer) { p.fr.WriteData(1, false, []byte("abc")); p.headers(1, true, "x", "y") }, false},
		{"too short", "3", func(p *peer) { p.fr.WriteData(1, true, []byte("ab")) }, true},
		{"too long at once", "3", func(p *peer) { p.fr.WriteData(1, false, []byte("abcd")) }, true},
		{"too long", "3", func(p *peer) { p.fr.WriteData(1, false, []byte("abc")); p.fr.WriteData(1, false, []byte("d")) }, true},
		{"too short before trailers", "3", func(p *peer) { p.headers(1, true, "x", "y") }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := serverUnderTest(t, Config{Handler: newEvents(func(b *Batch, s *Stream, what string, p []byte) { s.Consume(b, len(p)) })})
			p.post(1, "content-length", c.length)
			c.send(p)
			p.fr.WritePing(false, [8]byte{})
			if c.reset {
				p.want("RST_STREAM 1 PROTOCOL_ERROR")
			}
			p.want("PING ACK")
			p.close()
		})
	}
}

func TestTooLargeHeadersAreAnswered(t *testing.T) {
	e := newEvents(replies(""))
	p := serverUnderTest(t, Config{Handler: e, MaxHeaderBytes: 2000})
	p.headers(1, true, ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a", "x", strings.Repeat("v", 2000))
	p.want("HEADERS 1 :status=431 END")
	p.post(3, "x", strings.Repeat("v", 2000))
	p.want("HEADERS 3 :status=431 END", "RST_STREAM 3 NO_ERROR")
	p.get(5)
	p.want("HEADERS 5 :status=200 END")
	e.want(t, "5 headers END")
	p.close()
}

func TestStreamsBeyondTheLimitAreRefused(t *testing.T) {
	e := newEvents(nil)
	p := serverUnderTest(t, Config{Handler: e, MaxStreams: 2})
	p.get(1)
	p.get(3)
	p.get(5)
	p.want("RST_STREAM 5 REFUSED_STREAM")
	e.want(t, "1 headers END", "3 headers END")
	p.close()
}

// A client that forgets its streams does not get new ones while their handlers are
// busy with the old.
func TestForgottenStreamsCountUntilTheyAreReleased(t *testing.T) {
	var all []*Stream
	e := newEvents(func(b *Batch, s *Stream, what string, _ []byte) {
		if what == "headers" {
			all = append(all, s)
		}
		if s.ID() == 11 {
			for _, s := range all {
				s.Release(b)
			}
		}
	})
	p := serverUnderTest(t, Config{Handler: e, MaxStreams: 2})
	for id := uint32(1); id <= 7; id += 2 {
		p.get(id)
		p.fr.WriteRSTStream(id, h2.ErrCodeCancel)
		e.want(t, fmt.Sprint(id, " headers END"), fmt.Sprint(id, " reset CANCEL remote"))
	}
	p.get(9)
	p.want("RST_STREAM 9 REFUSED_STREAM")
	p.conn.mu.Lock()
	p.conn.live = 3
	p.conn.mu.Unlock()
	p.get(11)
	e.want(t, "11 headers END")
	p.want("RST_STREAM 11 CANCEL")
	p.conn.mu.Lock()
	if p.conn.live != -1 {
		t.Errorf("%d streams are counted as live", p.conn.live)
	}
	p.conn.mu.Unlock()
	p.close()
}

func TestShutdownLetsStreamsFinish(t *testing.T) {
	var first *Stream
	started := make(chan struct{})
	e := newEvents(func(b *Batch, s *Stream, what string, p []byte) {
		if s.ID() == 1 && what == "headers" {
			first = s
			close(started)
			return
		}
		replies("")(b, s, what, p)
	})
	p := serverUnderTest(t, Config{Handler: e})
	p.post(1)
	<-started
	p.conn.Shutdown()
	p.want("GOAWAY 2147483647 NO_ERROR", "PING")
	p.get(3) // it was on its way
	p.want("HEADERS 3 :status=200 END")
	p.fr.WritePing(true, drainPing)
	p.want("GOAWAY 3 NO_ERROR")
	p.get(5) // it was not: ignored
	p.fr.WriteData(1, true, []byte("x"))
	first.SendHead(nil, &Head{Status: 204}, true)
	p.want("HEADERS 1 :status=204 END")
	if _, err := p.fr.ReadFrame(); err != io.EOF {
		t.Errorf("the connection is still there: %v", err)
	}
	if err := <-p.result; err != nil {
		t.Error(err)
	}
	p.c.Close()
}

func TestPanicsEndOneStream(t *testing.T) {
	var panics atomic.Int32
	e := newEvents(func(b *Batch, s *Stream, what string, p []byte) {
		if s.ID() == 1 {
			panic("on purpose")
		}
		replies("")(b, s, what, p)
	})
	p := serverUnderTest(t, Config{Handler: e, OnPanic: func(v any, stack []byte) {
		if v == "on purpose" && bytes.Contains(stack, []byte("server_test")) {
			panics.Add(1)
		}
	}})
	p.get(1)
	p.want("RST_STREAM 1 INTERNAL_ERROR")
	p.get(3)
	p.want("HEADERS 3 :status=200 END")
	if n := panics.Load(); n != 1 {
		t.Errorf("%d panics were told", n)
	}
	p.close()
}

// countingConn counts writes.
type countingConn struct {
	net.Conn
	writes atomic.Int32
}

func (c *countingConn) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(b)
}

// The answers to all requests that came together leave together.
func TestOneWriteForABatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		cc := &countingConn{Conn: a}
		e := newEvents(replies("hello"))
		p := newPeer(t, b, NewServer(Config{Conn: cc, Handler: e}))
		p.hello(preface)
		synctest.Wait()
		before := cc.writes.Load()

		var batch bytes.Buffer
		fr := h2.NewFramer(&batch, nil)
		for id := uint32(1); id < 100; id += 2 {
			fr.WriteHeaders(h2.HeadersFrameParam{StreamID: id, BlockFragment: p.head(":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a"), EndStream: true, EndHeaders: true})
		}
		p.c.Write(batch.Bytes())
		for id := 1; id < 100; id += 2 {
			p.read()
			p.read()
		}
		if n := cc.writes.Load() - before; n != 1 {
			t.Errorf("%d writes for 50 answers", n)
		}
		p.close()
	})
}

func TestClientsThatDoNotSpeakHTTP2(t *testing.T) {
	for _, first := range []string{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSX", "\x16\x03\x01"} {
		a, b := net.Pipe()
		p := newPeer(t, b, NewServer(Config{Conn: a, Handler: newEvents(nil)}))
		go io.WriteString(b, first)
		err := p.wantEnd(h2.ErrCodeProtocol)
		if ce, ok := errors.AsType[*ConnError](err); !ok || ce.Code != ProtocolError {
			t.Errorf("%q: %v", first, err)
		}
	}
}

// Bytes that the listener read come first.
func TestBytesThatWereReadBefore(t *testing.T) {
	for _, n := range []int{1, 10, len(preface), len(preface) + 5, len(preface) + 9} {
		a, b := net.Pipe()
		all := []byte(preface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00")
		p := newPeer(t, b, NewServer(Config{Conn: a, Handler: newEvents(nil), First: all[:n]}))
		go b.Write(all[n:])
		for {
			if f, ok := p.read().(*h2.SettingsFrame); ok && f.IsAck() {
				break
			}
		}
		p.close()
	}
}

func TestContinuations(t *testing.T) {
	e := newEvents(replies(""))
	p := serverUnderTest(t, Config{Handler: e})
	block := p.head(":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a", "x", strings.Repeat("v", 20000))
	p.fr.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:10], EndStream: true})
	p.fr.WriteContinuation(1, false, nil)
	p.fr.WriteContinuation(1, false, block[10:8000])
	p.fr.WriteContinuation(1, true, block[8000:])
	e.want(t, "1 headers END")
	p.want("HEADERS 1 :status=200 END")
	p.close()
}

func TestLongHeadsAreSentInContinuations(t *testing.T) {
	long := strings.Repeat("v", 40000)
	e := newEvents(func(b *Batch, s *Stream, _ string, _ []byte) {
		h := headOf(nil)
		h.Status = 200
		h.Header.AddString(0, "x", long)
		s.SendHead(b, h, true)
	})
	p := serverUnderTest(t, Config{Handler: e})
	p.get(1)
	f := p.read().(*h2.MetaHeadersFrame)
	if v := f.Fields[1].Value; v != long || !f.StreamEnded() {
		t.Errorf("%d bytes came", len(v))
	}
	p.close()
}

func TestMemoryBudgetEndsStreamsThatNeedMore(t *testing.T) {
	budget := NewBudget(100 << 10)
	e := newEvents(func(b *Batch, s *Stream, what string, _ []byte) {
		if what != "headers" {
			return
		}
		s.SendHead(b, &Head{Status: 200}, false)
		if _, err := s.SendData(b, make([]byte, 30<<10), true); err != nil {
			if err != ErrBudget {
				t.Errorf("got %v", err)
			}
			s.Reset(b, EnhanceYourCalm)
		}
	})
	p := serverUnderTest(t, Config{Handler: e, Budget: budget})
	p.fr.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 0})
	p.want("SETTINGS ACK")
	p.get(1)
	p.want("HEADERS 1 :status=200")
	p.get(3)
	p.want("HEADERS 3 :status=200", "RST_STREAM 3 ENHANCE_YOUR_CALM")
	p.fr.WriteWindowUpdate(1, 1<<20)
	p.data(1, 30<<10, true)
	p.get(5)
	p.want("HEADERS 5 :status=200")
	p.close()
	if n := budget.Used(); n != 0 {
		t.Errorf("%d bytes are still charged", n)
	}
}
