package http2

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	h2 "golang.org/x/net/http2"
)

// The times here are virtual.

func TestAPeerThatSaysNothing(t *testing.T) {
	for _, client := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			a, b := net.Pipe()
			var c *Conn
			if client {
				c = NewClient(Config{Conn: a})
			} else {
				c = NewServer(Config{Conn: a, Handler: newEvents(nil)})
			}
			start := time.Now()
			p := newPeer(t, b, c)
			if client {
				io.ReadFull(b, make([]byte, len(preface)))
			}
			go io.Copy(io.Discard, b)
			err := <-p.result
			if ce, ok := errors.AsType[*ConnError](err); !ok || ce.Code != SettingsTimeout {
				t.Errorf("got %v", err)
			}
			if d := time.Since(start); d < defaultSettingsTimeout || d > defaultSettingsTimeout+2*time.Second {
				t.Errorf("it took %v", d)
			}
			b.Close()
		})
	}
}

func TestSettingsThatAreNotAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		p := newPeer(t, b, NewServer(Config{Conn: a, Handler: newEvents(nil)}))
		go func() { io.WriteString(b, preface); p.fr.WriteSettings() }()
		p.c.SetReadDeadline(time.Time{})
		for {
			f, err := p.fr.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if g, ok := f.(*h2.GoAwayFrame); ok {
				if g.ErrCode != h2.ErrCodeSettingsTimeout {
					t.Errorf("got %v", g)
				}
				break
			}
		}
		b.Close()
		<-p.result
	})
}

func TestIdleConnectionsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEvents(nil)
		streams := make(chan *Stream, 1)
		e.do = func(_ *Batch, s *Stream, _ string, _ []byte) { streams <- s }
		p := serverUnderTest(t, Config{Handler: e, IdleTimeout: time.Minute})
		p.get(1)
		s := <-streams
		time.Sleep(10 * time.Minute) // a stream is open
		s.SendHead(nil, &Head{Status: 200}, true)
		p.want("HEADERS 1 :status=200 END")
		start := time.Now()
		p.c.SetReadDeadline(time.Time{})
		f, err := p.fr.ReadFrame()
		if err != nil || text(f) != "GOAWAY 1 NO_ERROR" {
			t.Fatalf("got %v, %v", f, err)
		}
		if d := time.Since(start); d != time.Minute {
			t.Errorf("it took %v", d)
		}
		if _, err := p.fr.ReadFrame(); err != io.EOF {
			t.Errorf("got %v", err)
		}
		if err := <-p.result; err != nil {
			t.Error(err)
		}
		b := p.c
		b.Close()
	})
}

// A byte now and then does not hold a connection.
func TestFramesThatNeverEnd(t *testing.T) {
	for name, begin := range map[string]func(p *peer){
		"part of a frame": func(p *peer) { p.c.Write([]byte{0, 1, 0, 1, 4, 0, 0, 0, 1}) },
		"header section": func(p *peer) {
			p.fr.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: p.head(":method", "GET")})
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := serverUnderTest(t, Config{Handler: newEvents(nil)})
			start := time.Now()
			begin(p)
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					time.Sleep(10 * time.Second)
					if name == "header section" {
						if p.fr.WriteContinuation(1, false, []byte{0x80 | staticGET}) != nil {
							return
						}
					} else if _, err := p.c.Write([]byte{0}); err != nil {
						return
					}
				}
			})
			p.c.SetReadDeadline(time.Time{})
			f, err := p.fr.ReadFrame()
			if err != nil || text(f) != "GOAWAY 0 ENHANCE_YOUR_CALM" {
				t.Errorf("%s: got %v, %v", name, f, err)
			}
			if d := time.Since(start); d != defaultFrameTimeout {
				t.Errorf("%s: it took %v", name, d)
			}
			p.c.Close()
			<-p.result
			wg.Wait()
		})
	}
}

// A peer that gives no window loses the stream; the connection goes on.
func TestStalledStreamsAreReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEvents(replies("hello"))
		p := serverUnderTest(t, Config{Handler: e})
		p.fr.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 1})
		p.want("SETTINGS ACK")
		p.get(1)
		p.want("HEADERS 1 :status=200", "DATA 1 h")
		time.Sleep(4 * time.Minute)
		p.fr.WriteWindowUpdate(1, 1) // life
		p.want("DATA 1 e")
		p.get(3)
		p.want("HEADERS 3 :status=200", "DATA 3 h")
		start := time.Now()
		p.c.SetReadDeadline(time.Time{})
		f, err := p.fr.ReadFrame()
		if err != nil || text(f) != "RST_STREAM 1 CANCEL" && text(f) != "RST_STREAM 3 CANCEL" {
			t.Fatalf("got %v, %v", f, err)
		}
		if d := time.Since(start); d != defaultStallTimeout {
			t.Errorf("it took %v", d)
		}
		p.read()
		e.want(t, "1 headers END", "1 window 1", "3 headers END")
		p.get(5)
		p.want("HEADERS 5 :status=200", "DATA 5 h")
		p.close()
	})
}

// A peer that takes nothing off the socket is cut off; what was sent to it did not
// hold up the reader.
func TestPeersThatDoNotReadAreCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEvents(replies("hello"))
		p := serverUnderTest(t, Config{Handler: e})
		synctest.Wait()
		start := time.Now()
		p.get(1)
		p.get(3)
		e.want(t, "1 headers END", "3 headers END")
		err := <-p.result
		if ce, ok := errors.AsType[*ConnError](err); !ok || ce.Code != EnhanceYourCalm {
			t.Errorf("got %v", err)
		}
		if d := time.Since(start); d < defaultWriteTimeout || d > defaultWriteTimeout+2*time.Second {
			t.Errorf("it took %v", d)
		}
		p.c.Close()
	})
}

func TestClientsThatDoNotAnswerTheFirstGoAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEvents(nil)
		p := serverUnderTest(t, Config{Handler: e})
		p.get(1)
		e.want(t, "1 headers END")
		p.conn.Shutdown()
		p.want("GOAWAY 2147483647 NO_ERROR", "PING")
		start := time.Now()
		p.want("GOAWAY 1 NO_ERROR")
		if d := time.Since(start); d != defaultDrainTimeout {
			t.Errorf("it took %v", d)
		}
		p.close()
	})
}

func TestUpstreamsThatAreGoneAreFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := clientUnderTest(t, Config{PingInterval: time.Minute})
		e := newEvents(nil)
		open(t, p.conn, "GET", true, e)
		p.read()
		p.c.SetReadDeadline(time.Time{})
		start := time.Now()
		for range 3 { // it is there
			f, err := p.fr.ReadFrame()
			if err != nil || text(f) != "PING" {
				t.Fatalf("got %v, %v", f, err)
			}
			p.fr.WritePing(true, f.(*h2.PingFrame).Data)
		}
		if d := time.Since(start); d != 3*time.Minute {
			t.Errorf("three pings took %v", d)
		}
		go io.Copy(io.Discard, p.c) // and now it is not
		start = time.Now()
		<-p.result
		if d := time.Since(start); d < time.Minute+defaultPingTimeout || d > time.Minute+defaultPingTimeout+2*time.Second {
			t.Errorf("it took %v", d)
		}
		e.want(t, "1 reset NO_ERROR")
		p.c.Close()
	})
}
