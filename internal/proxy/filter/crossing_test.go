package filter

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/http2"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
)

// The tests of this file hold the proxy to net/http on both of its sides, in each
// combination of protocols.

// crossings runs f for each of them. The client has the protocol of its name, and
// addr is the proxy's before h.
func crossings(t *testing.T, h http.HandlerFunc, f func(t *testing.T, c *http.Client, addr string)) {
	for _, in := range []string{"h1", "h2"} {
		for _, out := range []string{"h1", "h2", "same"} {
			t.Run(in+" to "+out, func(t *testing.T) {
				addr := onSockets(t, h, upstream.Config{}, func(c *plan.Cluster, _ *plan.LoadAssignment) {
					c.Protocol = map[string]plan.Protocol{"h1": plan.HTTP1, "h2": plan.HTTP2, "same": plan.ClientProtocol}[out]
				}, nil, nil)
				tr := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true, ExpectContinueTimeout: 10 * time.Second}
				tr.Protocols.SetHTTP1(in == "h1")
				tr.Protocols.SetUnencryptedHTTP2(in == "h2")
				t.Cleanup(tr.CloseIdleConnections)
				f(t, &http.Client{Transport: tr, Timeout: 30 * time.Second}, addr)
			})
		}
	}
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// origin answers in all the ways that a proxy could get wrong.
func origin(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/echo":
		w.Header().Set("Trailer", "X-Sum")
		w.WriteHeader(200)
		sum := sha256.New()
		buf := make([]byte, 8<<10)
		rc := http.NewResponseController(w)
		rc.EnableFullDuplex()
		for {
			n, err := r.Body.Read(buf)
			sum.Write(buf[:n])
			w.Write(buf[:n])
			if err != nil {
				break
			}
			rc.Flush()
		}
		w.Header().Set("X-Sum", fmt.Sprintf("%x", sum.Sum(nil)))
		w.Header().Set(http.TrailerPrefix+"X-Got", r.Trailer.Get("X-End"))
	case "/back":
		// The request's body, framed as the request was.
		b, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("X-Length", fmt.Sprint(r.ContentLength))
		if r.ContentLength >= 0 {
			w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		}
		w.Write(b)
	case "/length":
		b := pattern(100000)
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		w.Write(b)
	case "/204":
		w.WriteHeader(204)
	case "/304":
		w.Header().Set("Etag", `"x"`)
		w.WriteHeader(304)
	case "/hints":
		w.Header().Set("Link", "</a>")
		w.WriteHeader(103)
		w.WriteHeader(200)
	case "/early":
		w.WriteHeader(403)
		io.WriteString(w, "no")
	case "/abort":
		w.Write(pattern(10))
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	default:
		var lines []string
		for name, values := range r.Header {
			if !strings.HasPrefix(name, "X-Forwarded") && !strings.HasPrefix(name, "X-Request") && !strings.HasPrefix(name, "X-Envoy") {
				lines = append(lines, name+"="+strings.Join(values, "|"))
			}
		}
		sort.Strings(lines)
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%s %s %s %d %d\n%s", r.Method, r.Host, r.URL, r.ContentLength, n, strings.Join(lines, "\n"))
	}
}

func TestBodiesAndTrailersCross(t *testing.T) {
	crossings(t, origin, func(t *testing.T, c *http.Client, addr string) {
		echo := func(n int) {
			body := pattern(n)
			req, _ := http.NewRequest("POST", "http://"+addr+"/echo", io.NopCloser(bytes.NewReader(body)))
			req.Trailer = http.Header{"X-End": {"end"}}
			r, err := c.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Body.Close()
			got, err := io.ReadAll(r.Body)
			if err != nil || !bytes.Equal(got, body) {
				t.Errorf("%d of %d bytes, %v", len(got), n, err)
			}
			if got, want := r.Trailer.Get("X-Sum"), fmt.Sprintf("%x", sha256.Sum256(body)); got != want {
				t.Errorf("the trailer of %d bytes is %q", n, got)
			}
			if got := r.Trailer.Get("X-Got"); got != "end" {
				t.Errorf("the request's trailer arrived as %q", got)
			}
		}
		for _, n := range []int{0, 1, 1000, 100_000, 5 << 20} {
			echo(n)
		}
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() { echo(i * 500) })
		}
		wg.Wait()
	})
}

// A response that begins before its request has ended is no reason to close the
// client's connection, and neither is one that comes with the last byte.
func TestConversationsLeaveTheConnectionOpen(t *testing.T) {
	var opened atomic.Int64
	for _, out := range []plan.Protocol{plan.HTTP1, plan.HTTP2} {
		for _, path := range []string{"/echo", "/back"} {
			t.Run(fmt.Sprint(out, path), func(t *testing.T) {
				opened.Store(0)
				addr := onSockets(t, origin, upstream.Config{}, func(c *plan.Cluster, _ *plan.LoadAssignment) { c.Protocol = out }, nil,
					func(c net.Conn) net.Conn { opened.Add(1); return c })
				tr := &http.Transport{DisableCompression: true}
				defer tr.CloseIdleConnections()
				body := pattern(1 << 20)
				for i := range 50 {
					r, err := (&http.Client{Transport: tr}).Post("http://"+addr+path, "text/plain", bytes.NewReader(body))
					if err != nil {
						t.Fatal(i, err)
					}
					got, err := io.ReadAll(r.Body)
					r.Body.Close()
					if err != nil || !bytes.Equal(got, body) || r.Close {
						t.Errorf("%d: %d bytes, to be closed: %v, %v", i, len(got), r.Close, err)
					}
				}
				if n := opened.Load(); n != 1 {
					t.Errorf("%d connections were opened for 50 requests", n)
				}
			})
		}
	}
}

// A body with a length arrives as it is, without the framing that one of unknown
// length gets, and leaves the connection in order.
func TestBodiesOfKnownLengthCross(t *testing.T) {
	crossings(t, origin, func(t *testing.T, c *http.Client, addr string) {
		for range 3 {
			for _, n := range []int{0, 1, 1000, 16 << 10, 100_000, 1 << 20} {
				for _, expect := range []string{"", "100-continue"} {
					body := pattern(n)
					req, _ := http.NewRequest("POST", "http://"+addr+"/back", bytes.NewReader(body))
					if expect != "" {
						req.Header.Set("Expect", expect)
					}
					r, err := c.Do(req)
					if err != nil {
						t.Fatal(n, err)
					}
					got, err := io.ReadAll(r.Body)
					r.Body.Close()
					if r.StatusCode != 200 || err != nil || !bytes.Equal(got, body) || r.Header.Get("X-Length") != fmt.Sprint(n) || r.ContentLength != int64(n) {
						t.Errorf("%d bytes, expect %q: %d, %d bytes of %d, upstream was told %s, %v", n, expect, r.StatusCode, len(got), r.ContentLength, r.Header.Get("X-Length"), err)
					}
				}
			}
		}
	})
}

func TestResponsesWithoutABodyCross(t *testing.T) {
	crossings(t, origin, func(t *testing.T, c *http.Client, addr string) {
		for range 3 { // the connection stays in order
			for _, k := range []struct {
				method, path string
				status       int
				length       int64
				body         int
			}{
				{"GET", "/length", 200, 100000, 100000},
				{"HEAD", "/length", 200, 100000, 0},
				{"GET", "/204", 204, 0, 0},
				{"GET", "/304", 304, -1, 0},
				{"HEAD", "/204", 204, -1, 0},
			} {
				req, _ := http.NewRequest(k.method, "http://"+addr+k.path, nil)
				r, err := c.Do(req)
				if err != nil {
					t.Fatal(k, err)
				}
				b, err := io.ReadAll(r.Body)
				r.Body.Close()
				if r.StatusCode != k.status || k.length >= 0 && r.ContentLength != k.length || len(b) != k.body || err != nil {
					t.Errorf("%s %s: %d, length %d, %d bytes, %v", k.method, k.path, r.StatusCode, r.ContentLength, len(b), err)
				}
			}
		}
	})
}

func TestHeadersCross(t *testing.T) {
	crossings(t, origin, func(t *testing.T, c *http.Client, addr string) {
		req, _ := http.NewRequest("PUT", "http://"+addr+"/a/b?c=d&e", strings.NewReader("body"))
		req.Host = "some.example:81"
		req.Header = http.Header{
			"User-Agent": {"t"}, "Te": {"trailers"}, "X-Many": {"1", "2"}, "Cookie": {"a=b; c=d"}, "X-Empty": {""},
			"Authorization": {"Bearer x"},
		}
		r, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, _ := io.ReadAll(r.Body)
		want := "PUT some.example:81 /a/b?c=d&e 4 4\nAuthorization=Bearer x\nContent-Length=4\nCookie=a=b; c=d\nTe=trailers\nUser-Agent=t\nX-Empty=\nX-Many=1|2"
		if string(b) != want {
			t.Errorf("got\n%s\nwant\n%s", b, want)
		}
		for _, hop := range []string{"Connection", "Transfer-Encoding", "Keep-Alive", "Upgrade"} {
			if v := r.Header.Get(hop); v != "" {
				t.Errorf("%s: %s came back", hop, v)
			}
		}
	})
}

func TestInterimResponsesCross(t *testing.T) {
	crossings(t, origin, func(t *testing.T, c *http.Client, addr string) {
		var hints []int
		trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			if h.Get("Link") == "</a>" {
				hints = append(hints, code)
			}
			return nil
		}}
		req, _ := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), "GET", "http://"+addr+"/hints", nil)
		r, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != 200 || len(hints) != 1 || hints[0] != 103 {
			t.Errorf("%d after %v", r.StatusCode, hints)
		}
	})
}

func TestExpectationsCross(t *testing.T) {
	crossings(t, origin, func(t *testing.T, c *http.Client, addr string) {
		for path, status := range map[string]int{"/": 200, "/early": 403} {
			req, _ := http.NewRequest("POST", "http://"+addr+path, bytes.NewReader(pattern(10000)))
			req.Header.Set("Expect", "100-continue")
			r, err := c.Do(req)
			if err != nil {
				t.Fatal(path, err)
			}
			b, err := io.ReadAll(r.Body)
			r.Body.Close()
			if r.StatusCode != status || err != nil || status == 200 && !strings.Contains(string(b), " 10000\n") {
				t.Errorf("%s: %d, %d bytes, %v", path, r.StatusCode, len(b), err)
			}
		}
	})
}

func TestBrokenResponsesCross(t *testing.T) {
	crossings(t, origin, func(t *testing.T, c *http.Client, addr string) {
		r, err := c.Get("http://" + addr + "/abort")
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err == nil {
			t.Errorf("%d bytes were taken for all", len(b))
		}
		// Nothing else suffered.
		if r, err = c.Get("http://" + addr + "/204"); err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
	})
}

func TestClientsThatLeaveCross(t *testing.T) {
	arrived, left := make(chan struct{}, 1), make(chan struct{}, 1)
	wait := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/wait" {
			origin(w, r)
			return
		}
		io.Copy(io.Discard, r.Body)
		arrived <- struct{}{}
		<-r.Context().Done()
		left <- struct{}{}
	}
	crossings(t, wait, func(t *testing.T, c *http.Client, addr string) {
		ctx, cancel := context.WithCancel(t.Context())
		req, _ := http.NewRequestWithContext(ctx, "POST", "http://"+addr+"/wait", strings.NewReader("x"))
		done := make(chan error, 1)
		go func() {
			_, err := c.Do(req)
			done <- err
		}()
		<-arrived
		cancel()
		<-left // the upstream hears of it
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// upgraded serves WebSocket's handshake by HTTP/1.1, and echoes.
func upgraded(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Connection") != "upgrade" || len(r.Header.Get("Sec-Websocket-Key")) != 24 {
		http.Error(w, fmt.Sprint("no upgrade in ", r.Header), 400)
		return
	}
	w.Header().Set("Connection", "upgrade")
	w.Header().Set("Upgrade", "websocket")
	w.Header().Set("Sec-Websocket-Accept", "checked by nobody here")
	w.WriteHeader(101)
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	io.Copy(c, rw)
}

// TestWebSocketCrosses upgrades by the means of each version: net/http's server for
// HTTP/1.1, and the codec itself for extended CONNECT, which net/http does not do.
func TestWebSocketCrosses(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	defer wg.Wait()
	defer stop()
	defer inner.Close()
	wg.Go(func() {
		for {
			c, err := inner.Accept()
			if err != nil {
				return
			}
			conn := http2.NewServer(http2.Config{Conn: c, ExtendedConnect: true, Handler: http2.Blocking(func(p *http2.Pipe) {
				if string(p.Request.Method) != "CONNECT" || string(p.Request.Protocol) != "websocket" {
					p.WriteHead(&http2.Head{Status: 400}, true)
					return
				}
				if v, _ := p.Request.Header.Find("sec-websocket-key", 0); v != nil {
					p.WriteHead(&http2.Head{Status: 417}, true)
					return
				}
				p.WriteHead(&http2.Head{Status: 200}, false)
				io.Copy(p, p)
				p.CloseWrite()
			})})
			wg.Go(func() { conn.Run(ctx) })
		}
	})
	for _, in := range []string{"h1", "h2"} {
		for _, out := range []string{"h1", "h2"} {
			t.Run(in+" to "+out, func(t *testing.T) {
				addr := onSockets(t, upgraded, upstream.Config{}, func(c *plan.Cluster, la *plan.LoadAssignment) {
					if out == "h2" {
						c.Protocol = plan.HTTP2
						la.Localities[0].Endpoints[0].Address = inner.Addr().(*net.TCPAddr).AddrPort()
					}
				}, nil, nil)
				c, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				var rw io.ReadWriter
				if in == "h1" {
					io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
						"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")
					b := bufio.NewReader(c)
					r, err := http.ReadResponse(b, nil)
					if err != nil {
						t.Fatal(err)
					}
					accept := r.Header.Get("Sec-Websocket-Accept")
					if r.StatusCode != 101 || r.Header.Get("Upgrade") != "websocket" || out == "h2" && accept != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
						t.Fatalf("%d %v", r.StatusCode, r.Header)
					}
					rw = struct {
						io.Reader
						io.Writer
					}{b, c}
				} else {
					conn := http2.NewClient(http2.Config{Conn: c})
					var reader sync.WaitGroup
					reader.Go(func() { conn.Run(ctx) })
					defer reader.Wait()
					defer conn.Close()
					<-conn.Ready()
					h := new(exchange.Header)
					h.AddString(exchange.Other, "sec-websocket-version", "13")
					p, err := conn.OpenPipe(&http2.Head{Method: []byte("CONNECT"), Protocol: []byte("websocket"), Scheme: []byte("http"),
						Authority: []byte("a"), Path: []byte("/ws"), Header: h}, nil, false)
					if err != nil {
						t.Fatal(err)
					}
					defer p.Close()
					r, _, err := p.ReadHead()
					if err != nil || r.Status != 200 {
						t.Fatalf("%+v %v", r, err)
					}
					rw = p
				}
				for i := range 20 {
					msg := fmt.Sprintf("message %d %s", i, strings.Repeat("x", i*1000))
					if _, err := io.WriteString(rw, msg); err != nil {
						t.Fatal(err)
					}
					got := make([]byte, len(msg))
					if _, err := io.ReadFull(rw, got); err != nil || string(got) != msg {
						t.Fatalf("%d: %v", i, err)
					}
				}
			})
		}
	}
}
