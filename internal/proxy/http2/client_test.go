package http2

import (
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	h2 "golang.org/x/net/http2"
)

// consumes is a handler's reaction that lets data flow.
func consumes(b *Batch, s *Stream, _ string, p []byte) { s.Consume(b, len(p)) }

func open(t *testing.T, c *Conn, method string, end bool, h StreamHandler) *Stream {
	t.Helper()
	s, err := c.Open(nil, request(method), end, h)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestResponsesAreHeard(t *testing.T) {
	p := clientUnderTest(t, Config{})
	e := newEvents(consumes)
	open(t, p.conn, "GET", true, e)
	p.want("HEADERS 1 :method=GET :scheme=http :path=/ :authority=a END")
	p.headers(1, false, ":status", "103")
	p.headers(1, false, ":status", "200")
	p.fr.WriteData(1, false, []byte("abc"))
	p.headers(1, true, "x-sum", "1")
	e.want(t, "1 headers 103", "1 headers 200", "1 data 3", "1 trailers x-sum: 1")
	p.close()
}

func TestWhatTheServerDidNotActOnCanBeRetried(t *testing.T) {
	p := clientUnderTest(t, Config{})
	one, two, three := newEvents(nil), newEvents(nil), newEvents(nil)
	b := new(Batch)
	for _, e := range []*events{one, two, three} {
		if _, err := p.conn.Open(b, request("POST"), true, e); err != nil {
			t.Fatal(err)
		}
	}
	b.Flush()
	p.read()
	p.read()
	p.read()
	p.fr.WriteRSTStream(1, h2.ErrCodeRefusedStream)
	one.want(t, "1 reset REFUSED_STREAM remote retry")
	p.fr.WriteGoAway(maxStreamID, h2.ErrCodeNo, nil)
	p.fr.WriteGoAway(3, h2.ErrCodeNo, nil)
	three.want(t, "5 reset REFUSED_STREAM remote retry")
	if _, err := p.conn.Open(nil, request("GET"), true, one); err != ErrGoingAway {
		t.Errorf("a stream was opened after GOAWAY: %v", err)
	}
	p.headers(3, true, ":status", "200")
	two.want(t, "3 headers 200 END")
	if err := <-p.result; err != nil { // it has nothing left to do
		t.Error(err)
	}
	p.c.Close()
}

func TestACutConnectionCanNotBeRetried(t *testing.T) {
	p := clientUnderTest(t, Config{})
	e := newEvents(nil)
	open(t, p.conn, "GET", true, e)
	p.read()
	p.c.Close()
	e.want(t, "1 reset INTERNAL_ERROR remote")
	if err := <-p.result; err == nil {
		t.Error("nothing was wrong")
	}
}

func TestTheServersLimitOfStreams(t *testing.T) {
	told := make(chan struct{}, 100)
	p := clientUnderTest(t, Config{OnState: func(*Conn) { told <- struct{}{} }}, h2.Setting{ID: h2.SettingMaxConcurrentStreams, Val: 1})
	<-told // the settings
	<-p.conn.Ready()
	if n := p.conn.Room(); n != 1 {
		t.Errorf("room for %d", n)
	}
	e := newEvents(nil)
	open(t, p.conn, "GET", true, e)
	p.read()
	if _, err := p.conn.Open(nil, request("GET"), true, e); err != ErrStreams {
		t.Errorf("a second one: %v", err)
	}
	p.headers(1, true, ":status", "204")
	<-told
	if n := p.conn.Room(); n != 1 {
		t.Errorf("room for %d", n)
	}
	p.close()
}

func TestExtendedConnectIsTheServersChoice(t *testing.T) {
	ws := &Head{Method: []byte("CONNECT"), Protocol: []byte("websocket"), Scheme: []byte("https"), Path: []byte("/"), Authority: []byte("a")}
	p := clientUnderTest(t, Config{})
	if _, err := p.conn.Open(nil, ws, false, newEvents(nil)); err != ErrNoExtendedConnect {
		t.Errorf("got %v", err)
	}
	p.fr.WriteSettings(h2.Setting{ID: h2.SettingEnableConnectProtocol, Val: 1})
	p.want("SETTINGS ACK")
	p.conn.Open(nil, ws, false, newEvents(nil))
	p.want("HEADERS 1 :method=CONNECT :scheme=https :path=/ :authority=a :protocol=websocket")
	p.close()
}

func TestShutdownOfAClient(t *testing.T) {
	p := clientUnderTest(t, Config{})
	e := newEvents(nil)
	open(t, p.conn, "GET", true, e)
	p.read()
	p.conn.Shutdown()
	if _, err := p.conn.Open(nil, request("GET"), true, e); err != ErrGoingAway {
		t.Errorf("got %v", err)
	}
	p.headers(1, true, ":status", "200")
	e.want(t, "1 headers 200 END")
	if err := <-p.result; err != nil {
		t.Error(err)
	}
	p.c.Close()
}

// Servers are not trusted either.
func TestWhatServersMustNotDo(t *testing.T) {
	const stream = "stream"
	for _, c := range []struct {
		name string
		do   func(p *peer)
		code h2.ErrCode
		kind string // "stream", or the connection ends
	}{
		{"push", func(p *peer) {
			p.fr.WritePushPromise(h2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: p.head(":method", "GET"), EndHeaders: true})
		}, h2.ErrCodeProtocol, ""},
		{"stream of its own", func(p *peer) { p.headers(2, true, ":status", "200") }, h2.ErrCodeProtocol, ""},
		{"answer to nothing", func(p *peer) { p.headers(5, true, ":status", "200") }, h2.ErrCodeProtocol, ""},
		{"data before a head", func(p *peer) { p.fr.WriteData(1, true, []byte("x")) }, h2.ErrCodeProtocol, stream},
		{"switching protocols", func(p *peer) { p.headers(1, false, ":status", "101") }, h2.ErrCodeProtocol, stream},
		{"interim response as the end", func(p *peer) { p.headers(1, true, ":status", "103") }, h2.ErrCodeProtocol, stream},
		{"endless interim responses", func(p *peer) {
			for range maxInterim + 1 {
				p.headers(1, false, ":status", "103")
			}
		}, h2.ErrCodeEnhanceYourCalm, stream},
		{"second head", func(p *peer) {
			p.headers(1, false, ":status", "200")
			p.headers(1, false, ":status", "200")
		}, h2.ErrCodeProtocol, stream},
		{"no status", func(p *peer) { p.headers(1, true, "x", "y") }, h2.ErrCodeProtocol, stream},
		{"request as a response", func(p *peer) { p.headers(1, true, ":method", "GET") }, h2.ErrCodeProtocol, stream},
		{"short body", func(p *peer) {
			p.headers(1, false, ":status", "200", "content-length", "5")
			p.fr.WriteData(1, true, []byte("x"))
		}, h2.ErrCodeProtocol, stream},
		{"length without a body", func(p *peer) { p.headers(1, true, ":status", "200", "content-length", "5") }, h2.ErrCodeProtocol, stream},
		{"body of a 204", func(p *peer) {
			p.headers(1, false, ":status", "204")
			p.fr.WriteData(1, true, []byte("x"))
		}, h2.ErrCodeProtocol, stream},
		{"headers too large", func(p *peer) {
			p.headers(1, true, ":status", "200", "x", longValue)
		}, h2.ErrCodeEnhanceYourCalm, stream},
		{"frame size 0", func(p *peer) { p.fr.WriteSettings(h2.Setting{ID: h2.SettingMaxFrameSize, Val: 0}) }, h2.ErrCodeProtocol, ""},
		{"window too large", func(p *peer) {
			p.fr.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 1 << 31})
		}, h2.ErrCodeFlowControl, ""},
		{"push allowed", func(p *peer) { p.fr.WriteSettings(h2.Setting{ID: h2.SettingEnablePush, Val: 1}) }, h2.ErrCodeProtocol, ""},
		{"window update of nothing", func(p *peer) { p.fr.WriteRawFrame(h2.FrameWindowUpdate, 0, 1, make([]byte, 4)) }, h2.ErrCodeProtocol, stream},
		{"window beyond its limit", func(p *peer) { p.fr.WriteWindowUpdate(1, 1<<31-1) }, h2.ErrCodeFlowControl, stream},
		{"connection's window beyond its limit", func(p *peer) { p.fr.WriteWindowUpdate(0, 1<<31-1) }, h2.ErrCodeFlowControl, ""},
		{"undecodable headers", func(p *peer) {
			p.fr.WriteRawFrame(h2.FrameHeaders, h2.FlagHeadersEndHeaders, 1, []byte{0x80})
		}, h2.ErrCodeCompression, ""},
		{"interrupted headers", func(p *peer) {
			p.fr.WriteRawFrame(h2.FrameHeaders, 0, 1, p.head(":status", "200"))
			p.fr.WritePing(false, [8]byte{})
		}, h2.ErrCodeProtocol, ""},
		{"large frame", func(p *peer) { p.fr.WriteRawFrame(h2.FrameData, 0, 1, make([]byte, maxFrame+1)) }, h2.ErrCodeFrameSize, ""},
		{"short GOAWAY", func(p *peer) { p.fr.WriteRawFrame(h2.FrameGoAway, 0, 0, make([]byte, 7)) }, h2.ErrCodeFrameSize, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := clientUnderTest(t, Config{MaxHeaderBytes: 10000})
			e := newEvents(consumes)
			open(t, p.conn, "GET", true, e)
			p.read()
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() { c.do(p) })
			if c.kind != stream {
				err := p.wantEnd(c.code)
				if ce, ok := errors.AsType[*ConnError](err); !ok || uint32(ce.Code) != uint32(c.code) {
					t.Errorf("Run returned %v", err)
				}
				return
			}
			if got, want := text(p.read()), "RST_STREAM 1 "+c.code.String(); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			open(t, p.conn, "GET", true, e)
			p.want("HEADERS 3 :method=GET :scheme=http :path=/ :authority=a END") // the connection lives
			p.close()
		})
	}
}

var longValue = strings.Repeat("v", 12000)

// Trailers and data of a stream that was reset here may still be on their way: they
// are ignored, and the tables stay alike.
func TestFramesOfAResetStreamAreIgnored(t *testing.T) {
	p := clientUnderTest(t, Config{})
	e := newEvents(consumes)
	s := open(t, p.conn, "GET", true, e)
	p.read()
	p.headers(1, false, ":status", "200")
	e.want(t, "1 headers 200")
	s.Reset(nil, Cancel)
	p.want("RST_STREAM 1 CANCEL")
	p.fr.WriteData(1, false, []byte("abc"))
	p.headers(1, true, "x-learned", "value")
	s.Release(nil)
	open(t, p.conn, "GET", true, e)
	p.read()
	p.headers(3, true, ":status", "200", "x-learned", "value")
	e.want(t, "3 headers 200 END")
	p.close()
}

func TestRequestsBeforeRun(t *testing.T) {
	a, b := net.Pipe()
	c := NewClient(Config{Conn: a})
	e := newEvents(nil)
	batch := new(Batch)
	if _, err := c.Open(batch, request("GET"), true, e); err != nil {
		t.Fatal(err)
	}
	p := newPeer(t, b, c)
	got := make([]byte, len(preface))
	if _, err := io.ReadFull(b, got); err != nil {
		t.Fatal(err)
	}
	for {
		f := p.read()
		if _, ok := f.(*h2.MetaHeadersFrame); ok {
			break
		}
	}
	p.close()
	e.want(t, "1 reset INTERNAL_ERROR remote")
}

// A connection that fails before anything of a request left can be replaced.
func TestWhatNeverLeftCanBeRetried(t *testing.T) {
	a, b := net.Pipe()
	b.Close()
	c := NewClient(Config{Conn: a})
	e := newEvents(nil)
	batch := new(Batch)
	if _, err := c.Open(batch, request("POST"), true, e); err != nil {
		t.Fatal(err)
	}
	p := newPeer(t, b, c)
	<-p.result
	e.want(t, "1 reset INTERNAL_ERROR remote retry")
}
