package http2

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// attacker speaks to a proxy as no client would.
type attacker struct {
	c     net.Conn
	w     *bufio.Writer
	fr    *h2.Framer
	block bytes.Buffer
	enc   *hpack.Encoder
}

func newAttacker(t *testing.T, addr string, settings ...h2.Setting) *attacker {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	a := &attacker{c: c, w: bufio.NewWriterSize(c, 16<<10)}
	a.fr = h2.NewFramer(a.w, c)
	a.fr.AllowIllegalWrites = true
	a.fr.SetMaxReadFrameSize(1 << 20)
	a.enc = hpack.NewEncoder(&a.block)
	io.WriteString(a.w, preface)
	a.fr.WriteSettings(settings...)
	a.fr.WriteSettingsAck()
	a.w.Flush()
	return a
}

func (a *attacker) head(end bool, id uint32, pairs ...string) error {
	a.block.Reset()
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", "/"}, {":authority", "a"}} {
		a.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	for i := 0; i < len(pairs); i += 2 {
		a.enc.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return a.fr.WriteHeaders(h2.HeadersFrameParam{StreamID: id, BlockFragment: a.block.Bytes(), EndStream: end, EndHeaders: true})
}

// heap returns the bytes in use.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Each of these asks for work without end. The proxy ends the connection, the work
// that reaches the upstream is bounded, memory stays where it was, and a client
// that uses the same proxy and upstream connection is served meanwhile.
func TestAttacks(t *testing.T) {
	const rounds = 1 << 20
	var dynamic []byte // one field of 4000 bytes, and references to it
	{
		var b bytes.Buffer
		enc := hpack.NewEncoder(&b)
		for range 16000 {
			enc.WriteField(hpack.HeaderField{Name: "cookie", Value: strings.Repeat("c", 4000)})
		}
		dynamic = b.Bytes()
	}
	bomb := hpack.AppendHuffmanString(nil, strings.Repeat("0", 16000)) // 5 bits for a byte
	for _, c := range []struct {
		name string
		// step sends a little; i counts the calls.
		step func(a *attacker, i int) error
		code h2.ErrCode
	}{
		{"rapid reset", func(a *attacker, i int) error {
			a.head(true, uint32(2*i+1))
			return a.fr.WriteRSTStream(uint32(2*i+1), h2.ErrCodeCancel)
		}, h2.ErrCodeEnhanceYourCalm},
		{"resets that the proxy is made to send: window update of nothing", func(a *attacker, i int) error {
			a.head(false, uint32(2*i+1))
			return a.fr.WriteRawFrame(h2.FrameWindowUpdate, 0, uint32(2*i+1), make([]byte, 4))
		}, h2.ErrCodeEnhanceYourCalm},
		{"resets that the proxy is made to send: window beyond its limit", func(a *attacker, i int) error {
			a.head(false, uint32(2*i+1))
			return a.fr.WriteWindowUpdate(uint32(2*i+1), 1<<31-1)
		}, h2.ErrCodeEnhanceYourCalm},
		{"resets that the proxy is made to send: wrong length", func(a *attacker, i int) error {
			a.head(false, uint32(2*i+1), "content-length", "1")
			return a.fr.WriteData(uint32(2*i+1), true, []byte("two"))
		}, h2.ErrCodeEnhanceYourCalm},
		{"resets that the proxy is made to send: malformed requests", func(a *attacker, i int) error {
			return a.head(true, uint32(2*i+1), "connection", "close")
		}, h2.ErrCodeEnhanceYourCalm},
		{"more streams than allowed", func(a *attacker, i int) error {
			return a.head(false, uint32(2*i+1))
		}, h2.ErrCodeEnhanceYourCalm},
		{"endless continuations", func(a *attacker, i int) error {
			if i == 0 {
				return a.fr.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82}})
			}
			return a.fr.WriteContinuation(1, false, append([]byte{0, 1, 'a', 0x80 | 0x7f, 0x80 | 10001&0x7f, 10001 >> 7 & 0x7f}, bomb[:10000]...))
		}, h2.ErrCodeEnhanceYourCalm},
		{"endless empty continuations", func(a *attacker, i int) error {
			if i == 0 {
				return a.fr.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82}})
			}
			return a.fr.WriteContinuation(1, false, nil)
		}, h2.ErrCodeEnhanceYourCalm},
		{"cookie crumbs that expand", func(a *attacker, i int) error {
			first := dynamic
			if i > 0 {
				first = bytes.Repeat([]byte{0xbe}, 16000) // the entry is there already
			}
			return a.fr.WriteHeaders(h2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: first[:min(len(first), maxFrame)], EndStream: true, EndHeaders: true})
		}, h2.ErrCodeEnhanceYourCalm},
		{"unknown frames", func(a *attacker, i int) error {
			return a.fr.WriteRawFrame(h2.FrameType(10+i%200), h2.Flags(i), uint32(i), make([]byte, i%100))
		}, h2.ErrCodeEnhanceYourCalm},
		{"settings", func(a *attacker, i int) error {
			return a.fr.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: uint32(i)})
		}, h2.ErrCodeEnhanceYourCalm},
		{"pings", func(a *attacker, _ int) error { return a.fr.WritePing(false, [8]byte{}) }, h2.ErrCodeEnhanceYourCalm},
		{"priorities", func(a *attacker, i int) error {
			return a.fr.WritePriority(uint32(2*i+1), h2.PriorityParam{StreamDep: 0, Weight: uint8(i)})
		}, h2.ErrCodeEnhanceYourCalm},
		{"empty data", func(a *attacker, i int) error {
			if i == 0 {
				return a.head(false, 1)
			}
			return a.fr.WriteData(1, false, nil)
		}, h2.ErrCodeEnhanceYourCalm},
		{"data of padding", func(a *attacker, i int) error {
			if i == 0 {
				return a.head(false, 1)
			}
			return a.fr.WriteDataPadded(1, false, nil, make([]byte, 20))
		}, h2.ErrCodeEnhanceYourCalm},
		{"window updates", func(a *attacker, i int) error { return a.fr.WriteWindowUpdate(0, 1) }, h2.ErrCodeEnhanceYourCalm},
		{"data of streams that are gone", func(a *attacker, i int) error {
			if i == 0 {
				a.head(false, 1)
				return a.fr.WriteRSTStream(1, h2.ErrCodeCancel)
			}
			return a.fr.WriteData(1, false, []byte("x"))
		}, h2.ErrCodeEnhanceYourCalm},
		{"goaways", func(a *attacker, i int) error {
			if i == 0 {
				a.head(false, 1)
			}
			return a.fr.WriteGoAway(0, h2.ErrCodeNo, nil)
		}, h2.ErrCodeEnhanceYourCalm},
	} {
		t.Run(c.name, func(t *testing.T) {
			var reached atomic.Int64
			up := listen(t, func(nc net.Conn) *Conn {
				return NewServer(Config{Conn: nc, Resets: Rate{1e6, 1e6}, Handler: newSlow(&reached)})
			})
			addr := proxyTo(t, up, Config{MaxStreams: 100})
			stop := innocent(t, addr)

			before := heap()
			a := newAttacker(t, addr)
			code := make(chan h2.ErrCode, 1)
			go func() {
				got := h2.ErrCode(0xffff)
				for {
					f, err := a.fr.ReadFrame()
					if err != nil {
						code <- got
						return
					}
					if g, ok := f.(*h2.GoAwayFrame); ok {
						got = g.ErrCode
					}
				}
			}()
			i := 0
			for ; i < rounds; i++ {
				if c.step(a, i) != nil || a.w.Buffered() > 8<<10 && a.w.Flush() != nil {
					break
				}
			}
			if i == rounds {
				t.Errorf("%d rounds, and no end", i)
			}
			grown := heap() - before
			a.c.Close()
			// The GOAWAY may be lost with what it overtook; a wrong one may not come.
			if got := <-code; got != c.code && got != 0xffff {
				t.Errorf("ended with %v", got)
			}
			if served := stop(); served == 0 {
				t.Error("the innocent client was not served")
			}
			if n := reached.Load(); n > 1000 {
				t.Errorf("%d requests reached the upstream", n)
			}
			if grown > 16<<20 {
				t.Errorf("%d bytes of memory", grown)
			}
		})
	}
}

// slow answers innocent requests, and keeps those of attackers.
type slow struct {
	ignore
	reached *atomic.Int64
}

func newSlow(reached *atomic.Int64) slow { return slow{reached: reached} }

func (k slow) OnHeaders(b *Batch, s *Stream, h *Head, end bool) {
	if string(h.Path) == "/innocent" {
		s.SendHead(b, &Head{Status: 200}, false)
		s.SendData(b, make([]byte, 10000), true)
		s.Release(b)
		return
	}
	k.reached.Add(1)
	if string(h.Path) == "/big" {
		s.SendHead(b, &Head{Status: 200}, false)
		s.SendData(b, make([]byte, 1<<20), true)
	}
}

func (slow) OnReset(b *Batch, s *Stream, _ Reset) { s.Release(b) }

// innocent is a client that asks again and again, until stop; each answer must
// come, whole. stop returns how many there were.
func innocent(t *testing.T, addr string) (stop func() int) {
	c := client(t)
	one := func() bool {
		r, err := c.Get("http://" + addr + "/innocent")
		if err != nil {
			t.Errorf("the innocent client: %v", err)
			return false
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil || len(b) != 10000 || r.StatusCode != http.StatusOK {
			t.Errorf("the innocent client: %d, %d bytes, %v", r.StatusCode, len(b), err)
			return false
		}
		return true
	}
	one()
	done := make(chan struct{})
	n := 0
	var wg sync.WaitGroup
	wg.Go(func() {
		for one() {
			n++
			select {
			case <-done:
				return
			default:
			}
		}
	})
	return func() int {
		one()
		close(done)
		wg.Wait()
		return n
	}
}

// Large answers are asked for and never taken: what is kept of them is bounded, and
// others go on, over the same upstream connection.
func TestAnswersThatAreNotTaken(t *testing.T) {
	var reached atomic.Int64
	budget := NewBudget(64 << 20)
	up := listen(t, func(nc net.Conn) *Conn {
		return NewServer(Config{Conn: nc, MaxQueued: 4 << 20, Resets: Rate{1e6, 1e6}, Handler: newSlow(&reached)})
	})
	addr := proxyTo(t, up, Config{MaxStreams: 1000, Budget: budget})
	stop := innocent(t, addr)
	var all []*attacker
	for range 3 {
		a := newAttacker(t, addr, h2.Setting{ID: h2.SettingInitialWindowSize, Val: 0})
		all = append(all, a)
		go io.Copy(io.Discard, a.c)
		for i := range 300 {
			a.block.Reset()
			for _, f := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":path", "/big"}, {":authority", "a"}} {
				a.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
			}
			a.fr.WriteHeaders(h2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: a.block.Bytes(), EndStream: true, EndHeaders: true})
		}
		a.w.Flush()
	}
	for end := time.Now().Add(20 * time.Second); (reached.Load() < 500 || budget.Used() < 16<<20) && time.Now().Before(end); {
		runtime.Gosched()
	}
	if n := reached.Load(); n < 500 {
		t.Errorf("only %d requests reached the upstream", n)
	}
	if n := budget.Used(); n < 16<<20 || n > 64<<20 {
		t.Errorf("%d bytes are kept", n)
	}
	if served := stop(); served == 0 {
		t.Error("the innocent client was not served")
	}
	for _, a := range all {
		a.c.Close()
	}
	for end := time.Now().Add(20 * time.Second); budget.Used() > 0 && time.Now().Before(end); {
		runtime.Gosched()
	}
	if n := budget.Used(); n != 0 {
		t.Errorf("%d bytes are kept for nobody", n)
	}
}

// pourer sends frames until some are kept, and then its last one.
type pourer struct {
	ignore
	sent chan int // frames, or -1
}

func (k pourer) OnHeaders(b *Batch, s *Stream, _ *Head, _ bool) {
	s.SendHead(nil, &Head{Status: 200}, false)
	frame := make([]byte, maxFrame)
	for n := 1; ; n++ {
		held, err := s.SendData(nil, frame, false)
		if err != nil || n*maxFrame > 1<<28 {
			k.sent <- -1
			return
		}
		if held > 0 {
			k.sent <- n
			s.SendData(nil, nil, true)
			s.Release(b)
			return
		}
	}
}

// A client that allows much and reads late is told by its socket, not by the end of
// its connection: what it does not take yet is kept, and its sender is told so.
func TestLargeWindowsAreNoReasonToQueueWithoutEnd(t *testing.T) {
	k := pourer{sent: make(chan int, 1)}
	addr := listen(t, func(nc net.Conn) *Conn { return NewServer(Config{Conn: nc, Handler: k}) })
	a := newAttacker(t, addr, h2.Setting{ID: h2.SettingInitialWindowSize, Val: 1 << 30})
	defer a.c.Close()
	a.fr.WriteWindowUpdate(0, 1<<30)
	a.head(true, 1)
	a.w.Flush()
	frames := <-k.sent
	if frames < 0 {
		t.Fatal("nothing was kept of what the client does not read")
	}
	got := 0
	for {
		f, err := a.fr.ReadFrame()
		if err != nil {
			t.Fatalf("after %d of %d bytes: %v", got, frames*maxFrame, err)
		}
		if d, ok := f.(*h2.DataFrame); ok {
			got += len(d.Data())
			if d.StreamEnded() {
				break
			}
		}
	}
	if got != frames*maxFrame {
		t.Errorf("%d bytes, want %d", got, frames*maxFrame)
	}
}

// A server can attack too.
func TestAttacksOnClients(t *testing.T) {
	for name, step := range map[string]func(fr *h2.Framer, i int) error{
		"settings": func(fr *h2.Framer, i int) error {
			return fr.WriteSettings(h2.Setting{ID: h2.SettingHeaderTableSize, Val: uint32(i)})
		},
		"pings":          func(fr *h2.Framer, i int) error { return fr.WritePing(false, [8]byte{}) },
		"unknown frames": func(fr *h2.Framer, i int) error { return fr.WriteRawFrame(h2.FrameType(10+i%100), 0, 1, nil) },
		"empty data":     func(fr *h2.Framer, i int) error { return fr.WriteData(1, false, nil) },
		"window updates": func(fr *h2.Framer, i int) error { return fr.WriteWindowUpdate(1, 1) },
		"continuations": func(fr *h2.Framer, i int) error {
			return fr.WriteRawFrame(h2.FrameContinuation, 0, 1, make([]byte, 1000))
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := clientUnderTest(t, Config{})
			e := newEvents(consumes)
			open(t, p.conn, "GET", true, e)
			p.read()
			if name == "continuations" {
				p.fr.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: p.head(":status", "200")})
			} else {
				p.headers(1, false, ":status", "200")
			}
			go io.Copy(io.Discard, p.c)
			i := 0
			for i < 1<<20 && step(p.fr, i) == nil {
				i++
			}
			if i > 10000 {
				t.Errorf("it took %d rounds", i)
			}
			err := <-p.result
			if ce, ok := err.(*ConnError); !ok || ce.Code != EnhanceYourCalm {
				t.Errorf("ended with %v", err)
			}
			p.c.Close()
		})
	}
}
