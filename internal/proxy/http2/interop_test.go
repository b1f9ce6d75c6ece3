package http2

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// origin is net/http's server. It echoes bodies with a trailer that sums them up.
func origin(t testing.TB) *httptest.Server {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/echo":
			w.Header().Set("Trailer", "X-Sum")
			w.Header().Set("X-Method", r.Method)
			w.WriteHeader(200)
			sum := sha256.New()
			buf := make([]byte, 8<<10)
			rc := http.NewResponseController(w)
			for {
				n, err := r.Body.Read(buf)
				sum.Write(buf[:n])
				w.Write(buf[:n])
				if err != nil {
					break
				}
				rc.Flush()
			}
			w.Header().Set("X-Sum", fmt.Sprintf("%x %s", sum.Sum(nil), r.Trailer.Get("X-End")))
		case "/big":
			n := 0
			fmt.Sscan(r.URL.Query().Get("n"), &n)
			w.Write(pattern(n))
		case "/hints":
			w.Header().Set("Link", "</a>")
			w.WriteHeader(103)
			w.WriteHeader(200)
		case "/abort":
			w.Write([]byte("x"))
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		default:
			fmt.Fprintf(w, "%s %s %s", r.Method, r.Host, r.URL)
		}
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Config.Protocols.SetHTTP2(true)
	s.Config.ErrorLog = nil
	return s
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// client is net/http's client, over one connection.
func client(t testing.TB) *http.Client {
	tr := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true}
	tr.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

func TestForwardingBetweenOthers(t *testing.T) {
	o := origin(t)
	o.Start()
	defer o.Close()
	addr := proxyTo(t, o.Listener.Addr().String(), Config{})
	c := client(t)

	t.Run("small", func(t *testing.T) {
		r, err := c.Get("http://" + addr + "/a?b=c")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		if b, _ := io.ReadAll(r.Body); string(b) != "GET "+addr+" /a?b=c" || r.ProtoMajor != 2 {
			t.Errorf("got %q", b)
		}
	})
	t.Run("large download", func(t *testing.T) {
		const n = 20 << 20
		r, err := c.Get(fmt.Sprintf("http://%s/big?n=%d", addr, n))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil || !bytes.Equal(b, pattern(n)) {
			t.Errorf("%d bytes, %v", len(b), err)
		}
	})
	t.Run("large echo with trailers", func(t *testing.T) { echo(t, c, addr, 8<<20) })
	t.Run("many streams", func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() { echo(t, c, addr, i*1000) })
		}
		wg.Wait()
	})
	t.Run("interim response", func(t *testing.T) {
		r, err := c.Get("http://" + addr + "/hints")
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
	})
	t.Run("aborted response", func(t *testing.T) {
		r, err := c.Get("http://" + addr + "/abort")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		if _, err := io.ReadAll(r.Body); err == nil {
			t.Error("the end was taken as regular")
		}
	})
	t.Run("client that leaves", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+addr+"/big?n=50000000", nil)
		r, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		io.ReadFull(r.Body, make([]byte, 1000))
		cancel()
		r.Body.Close()
		echo(t, c, addr, 100000)
	})
}

// echo sends n bytes with a trailer and checks what comes back.
func echo(t *testing.T, c *http.Client, addr string, n int) {
	t.Helper()
	body := pattern(n)
	req, _ := http.NewRequest("POST", "http://"+addr+"/echo", io.NopCloser(bytes.NewReader(body)))
	req.Trailer = http.Header{"X-End": {"end"}}
	r, err := c.Do(req)
	if err != nil {
		t.Error(err)
		return
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || !bytes.Equal(b, body) {
		t.Errorf("%d of %d bytes, %v", len(b), n, err)
	}
	if got, want := r.Trailer.Get("X-Sum"), fmt.Sprintf("%x end", sha256.Sum256(body)); got != want {
		t.Errorf("the trailer is %q, want %q", got, want)
	}
}

// Blocking code on both sides, with a proxy between.
func TestPipesThroughAProxy(t *testing.T) {
	addr := proxyTo(t, listen(t, func(c net.Conn) *Conn {
		return NewServer(Config{Conn: c, Handler: Blocking(func(p *Pipe) {
			if string(p.Request.Path) == "/interim" {
				p.WriteHead(&Head{Status: 103}, false)
			}
			p.WriteHead(&Head{Status: 200}, false)
			io.Copy(p, p.Body())
			h := &Head{Header: new(exchange.Header)}
			h.Header.AddString(exchange.Other, "x-size", fmt.Sprint(p.Body().Size()))
			p.WriteTrailers(h)
		})})
	}), Config{})
	c := dial(t, addr, Config{})
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			req := request("POST")
			if i%2 == 0 {
				req.Path = []byte("/interim")
			}
			p, err := c.OpenPipe(req, nil, false)
			if err != nil {
				t.Error(err)
				return
			}
			defer p.Close()
			body := pattern(i * 20000)
			var up sync.WaitGroup
			up.Go(func() {
				if _, err := p.Write(body); err != nil {
					t.Error(err)
				}
				p.CloseWrite()
			})
			defer up.Wait()
			if i%2 == 0 {
				if h, _, err := p.ReadHead(); err != nil || h.Status != 103 {
					t.Errorf("got %v, %v", h, err)
				}
			}
			h, _, err := p.ReadHead()
			if err != nil || h.Status != 200 {
				t.Errorf("got %v, %v", h, err)
				return
			}
			got, err := io.ReadAll(p.Body())
			if err != nil || !bytes.Equal(got, body) {
				t.Errorf("%d of %d bytes, %v", len(got), len(body), err)
				return
			}
			if tr := p.Body().Trailers(); tr == nil {
				t.Error("no trailers")
			} else if v, _ := tr.Find("x-size", 0); string(v) != fmt.Sprint(len(body)) {
				t.Errorf("the trailer says %q", v)
			}
		})
	}
	wg.Wait()
}

// TLS has no reads and writes that do not wait: the same must hold for it.
func TestOverTLS(t *testing.T) {
	o := origin(t)
	o.EnableHTTP2 = true
	o.StartTLS()
	defer o.Close()
	pool := o.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs

	up, err := tls.Dial("tcp", o.Listener.Addr().String(), &tls.Config{RootCAs: pool, ServerName: "example.com", NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	conn := NewClient(Config{Conn: up})
	var wg sync.WaitGroup
	wg.Go(func() { conn.Run(context.Background()) })
	defer wg.Wait()
	defer conn.Close()
	<-conn.Ready()
	f := newForwarder(func() *Conn { return conn })
	server := &tls.Config{Certificates: o.TLS.Certificates, NextProtos: []string{"h2"}}
	addr := listen(t, func(c net.Conn) *Conn { return NewServer(Config{Conn: tls.Server(c, server), Handler: f}) })

	tr := &http.Transport{ForceAttemptHTTP2: true, DisableCompression: true,
		TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "example.com"}}
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr, Timeout: 30 * time.Second}
	for range 3 {
		body := pattern(5 << 20)
		r, err := c.Post("https://"+addr+"/echo", "", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil || !bytes.Equal(b, body) || r.ProtoMajor != 2 {
			t.Errorf("%d bytes, %v", len(b), err)
		}
	}
}

// An exchange goes through a Pipe as it goes through a connection of HTTP/1.1.
func TestExchangesThroughPipes(t *testing.T) {
	addr := listen(t, func(c net.Conn) *Conn {
		return NewServer(Config{Conn: c, Handler: Blocking(func(p *Pipe) {
			x := exchange.Get()
			defer exchange.Put(x)
			x.Start = time.Now()
			if why := ReadRequest(x, p.Request, p.Bare); why != "" {
				x.Reply(400, "", why)
				p.Send(x)
				return
			}
			if x.Request.Framing != exchange.NoBody {
				x.Request.Body = p.Body()
			}
			switch string(x.Request.Path) {
			case "/chunks":
				x.Request.Body.Raw()
				b := new(bytes.Buffer)
				if first, whole := x.Request.Body.Buffered(); len(first) > 0 {
					b.Write(first)
					x.Request.Body.Take()
					_ = whole
				}
				for !x.Request.Body.Done() {
					piece, err := x.Request.Body.Next()
					if err != nil {
						t.Error(err)
						break
					}
					b.Write(piece)
				}
				x.Reply(200, b.String(), "")
			case "/body":
				x.Response.Status = 201
				x.Response.Framing = exchange.Chunked
				x.Response.Body = x.Request.Body
			default:
				x.Reply(404, "nothing here", "")
			}
			if err := p.Send(x); err != nil {
				t.Error(err)
			}
		})})
	})
	c := client(t)
	post := func(path, body string) *http.Response {
		req, _ := http.NewRequest("POST", "http://"+addr+path, io.NopCloser(strings.NewReader(body)))
		req.Trailer = http.Header{"X-End": {"yes"}}
		r, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := post("/chunks", strings.Repeat("a", 40000))
	b, _ := io.ReadAll(r.Body)
	r.Body.Close()
	// Unframed by another reader of HTTP/1.1, with its trailer.
	back, err := http.ReadRequest(bufio.NewReader(strings.NewReader("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + string(b))))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(back.Body)
	if err != nil || len(got) != 40000 || back.Trailer.Get("X-End") != "yes" {
		t.Errorf("%d bytes, trailer %v, %v; it ends with %q", len(got), back.Trailer, err, b[max(0, len(b)-60):])
	}
	r = post("/body", "hello")
	b, _ = io.ReadAll(r.Body)
	r.Body.Close()
	if string(b) != "hello" || r.StatusCode != 201 || r.Trailer.Get("X-End") != "yes" {
		t.Errorf("got %d %q %v", r.StatusCode, b, r.Trailer)
	}
	r, err = c.Get("http://" + addr + "/x")
	if err != nil {
		t.Fatal(err)
	}
	b, _ = io.ReadAll(r.Body)
	r.Body.Close()
	if string(b) != "nothing here" || r.StatusCode != 404 || r.Header.Get("Date") == "" || r.ContentLength != 12 {
		t.Errorf("got %d %q %v", r.StatusCode, b, r.Header)
	}
}
