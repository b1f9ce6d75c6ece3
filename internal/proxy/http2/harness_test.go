package http2

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	h2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// peer is the other side of a connection under test, frame by frame.
type peer struct {
	t      *testing.T
	c      net.Conn
	fr     *h2.Framer
	block  bytes.Buffer
	enc    *hpack.Encoder
	conn   *Conn
	result chan error // what Run returned
}

// newPeer runs conn, and returns the other side of it.
func newPeer(t *testing.T, c net.Conn, conn *Conn) *peer {
	p := &peer{t: t, c: c, fr: h2.NewFramer(c, c), conn: conn, result: make(chan error, 1)}
	p.enc = hpack.NewEncoder(&p.block)
	p.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	p.fr.AllowIllegalWrites = true
	go func() { p.result <- conn.Run(context.Background()) }()
	return p
}

// serverUnderTest runs a server with handler h; the peer has said hello.
func serverUnderTest(t *testing.T, cfg Config) *peer {
	t.Helper()
	a, b := net.Pipe()
	cfg.Conn = a
	p := newPeer(t, b, NewServer(cfg))
	p.hello(preface)
	return p
}

// clientUnderTest runs a client whose server has said hello with these settings.
func clientUnderTest(t *testing.T, cfg Config, settings ...h2.Setting) *peer {
	t.Helper()
	a, b := net.Pipe()
	cfg.Conn = a
	p := newPeer(t, b, NewClient(cfg))
	got := make([]byte, len(preface))
	if _, err := io.ReadFull(b, got); err != nil || string(got) != preface {
		t.Fatalf("the preface is %q, %v", got, err)
	}
	p.hello("", settings...)
	return p
}

// hello exchanges settings.
func (p *peer) hello(first string, settings ...h2.Setting) {
	p.t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() { io.WriteString(p.c, first); p.fr.WriteSettings(settings...) })
	acked, theirs := false, false
	for !acked || !theirs {
		switch f := p.read().(type) {
		case *h2.SettingsFrame:
			if f.IsAck() {
				acked = true
			} else {
				theirs = true
				wg.Wait()
				p.fr.WriteSettingsAck()
			}
		case *h2.WindowUpdateFrame:
		default:
			p.t.Fatalf("got %v in place of settings", f)
		}
	}
	wg.Wait()
}

// read returns the next frame.
func (p *peer) read() h2.Frame {
	p.t.Helper()
	p.c.SetReadDeadline(time.Now().Add(10 * time.Second))
	f, err := p.fr.ReadFrame()
	if err != nil {
		p.t.Fatalf("no frame: %v", err)
	}
	return f
}

// text describes a frame.
func text(f h2.Frame) string {
	switch f := f.(type) {
	case *h2.MetaHeadersFrame:
		var list []string
		for _, h := range f.Fields {
			list = append(list, h.Name+"="+h.Value)
		}
		return fmt.Sprintf("HEADERS %d %s%s", f.StreamID, strings.Join(list, " "), ended(f.StreamEnded()))
	case *h2.DataFrame:
		d := string(f.Data())
		if len(d) > 40 {
			d = fmt.Sprintf("[%d]", len(d))
		}
		return fmt.Sprintf("DATA %d %s%s", f.StreamID, d, ended(f.StreamEnded()))
	case *h2.RSTStreamFrame:
		return fmt.Sprintf("RST_STREAM %d %v", f.StreamID, f.ErrCode)
	case *h2.GoAwayFrame:
		return fmt.Sprintf("GOAWAY %d %v", f.LastStreamID, f.ErrCode)
	case *h2.WindowUpdateFrame:
		return fmt.Sprintf("WINDOW_UPDATE %d %d", f.StreamID, f.Increment)
	case *h2.PingFrame:
		if f.IsAck() {
			return "PING ACK"
		}
		return "PING"
	case *h2.SettingsFrame:
		if f.IsAck() {
			return "SETTINGS ACK"
		}
		return "SETTINGS"
	}
	return f.Header().String()
}

func ended(e bool) string {
	if e {
		return " END"
	}
	return ""
}

// want reads frames and compares them.
func (p *peer) want(lines ...string) {
	p.t.Helper()
	for _, want := range lines {
		if got := text(p.read()); got != want {
			p.t.Fatalf("got %q, want %q", got, want)
		}
	}
}

// data reads n bytes of a stream's data, in whatever frames, and whether they are
// the end.
func (p *peer) data(id uint32, n int, end bool) {
	p.t.Helper()
	for n > 0 {
		f, ok := p.read().(*h2.DataFrame)
		if !ok || f.StreamID != id || len(f.Data()) > n {
			p.t.Fatalf("got %v, want %d bytes of stream %d", f, n, id)
		}
		if n -= len(f.Data()); n == 0 && f.StreamEnded() != end {
			p.t.Fatalf("ended is %v", f.StreamEnded())
		}
	}
}

// wantEnd reads until the connection is closed, expects GOAWAY with a code, and
// returns what Run did.
func (p *peer) wantEnd(code h2.ErrCode) error {
	p.t.Helper()
	got := h2.ErrCode(0xffff)
	for {
		p.c.SetReadDeadline(time.Now().Add(10 * time.Second))
		f, err := p.fr.ReadFrame()
		if err != nil {
			if os.IsTimeout(err) {
				p.t.Fatal("the connection was not closed")
			}
			break
		}
		if g, ok := f.(*h2.GoAwayFrame); ok {
			got = g.ErrCode
		}
	}
	if got != code {
		p.t.Errorf("closed with %v, want %v", got, code)
	}
	p.c.Close()
	return <-p.result
}

// close ends the test.
func (p *peer) close() error {
	p.c.Close()
	return <-p.result
}

// head encodes "name", "value" pairs.
func (p *peer) head(pairs ...string) []byte {
	p.block.Reset()
	for i := 0; i < len(pairs); i += 2 {
		p.enc.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return bytes.Clone(p.block.Bytes())
}

func (p *peer) headers(id uint32, end bool, pairs ...string) {
	p.t.Helper()
	if err := p.fr.WriteHeaders(h2.HeadersFrameParam{StreamID: id, BlockFragment: p.head(pairs...), EndStream: end, EndHeaders: true}); err != nil {
		p.t.Error(err)
	}
}

func (p *peer) get(id uint32) {
	p.t.Helper()
	p.headers(id, true, ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a")
}

func (p *peer) post(id uint32, more ...string) {
	p.t.Helper()
	p.headers(id, false, append([]string{":method", "POST", ":scheme", "http", ":path", "/", ":authority", "a"}, more...)...)
}

// request is the head of a request to send.
func request(method string) *Head {
	return &Head{Method: []byte(method), Scheme: []byte("http"), Path: []byte("/"), Authority: []byte("a")}
}

// events is a handler that tells what it hears, and does what do says.
type events struct {
	ch chan string
	do func(b *Batch, s *Stream, what string, p []byte)
}

func newEvents(do func(b *Batch, s *Stream, what string, p []byte)) *events {
	return &events{ch: make(chan string, 1000), do: do}
}

func (e *events) tell(b *Batch, s *Stream, what, detail string, p []byte) {
	e.ch <- fmt.Sprintf("%d %s%s", s.ID(), what, detail)
	if e.do != nil {
		e.do(b, s, what, p)
	}
}

func (e *events) OnHeaders(b *Batch, s *Stream, h *Head, end bool) {
	d := ""
	if h.Status != 0 {
		d = fmt.Sprintf(" %d", h.Status)
	}
	e.tell(b, s, "headers", d+ended(end), nil)
}

func (e *events) OnData(b *Batch, s *Stream, p []byte, end bool) {
	e.tell(b, s, "data", fmt.Sprintf(" %d%s", len(p), ended(end)), p)
}

func (e *events) OnTrailers(b *Batch, s *Stream, h *Head) {
	e.tell(b, s, "trailers", " "+strings.ReplaceAll(strings.TrimSpace(string(h.Header.AppendTo(nil))), "\r\n", ","), nil)
}

func (e *events) OnReset(b *Batch, s *Stream, r Reset) {
	d := " " + r.Code.String()
	if r.Remote {
		d += " remote"
	}
	if r.Retry {
		d += " retry"
	}
	e.tell(b, s, "reset", d, nil)
}

func (e *events) OnWindow(b *Batch, s *Stream, n int) {
	e.tell(b, s, "window", fmt.Sprintf(" %d", n), nil)
}

// want waits for events.
func (e *events) want(t *testing.T, lines ...string) {
	t.Helper()
	for _, want := range lines {
		select {
		case got := <-e.ch:
			if got != want {
				t.Fatalf("event %q, want %q", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("no event; want %q", want)
		}
	}
}

// replies answers every request at its head with a status, and consumes.
func replies(body string) func(b *Batch, s *Stream, what string, p []byte) {
	return func(b *Batch, s *Stream, what string, p []byte) {
		switch what {
		case "headers":
			s.SendHead(b, &Head{Status: 200}, body == "")
			if body != "" {
				s.SendData(b, []byte(body), true)
			}
		case "data":
			s.Consume(b, len(p))
		}
	}
}
