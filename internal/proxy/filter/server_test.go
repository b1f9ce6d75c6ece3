package filter

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

func TestRequestGoesThroughAndBack(t *testing.T) {
	inBubble(t, func(b *bed) {
		var got string
		addr := b.backend("10.0.1.1:80", func(c net.Conn) {
			buf := make([]byte, 4096)
			n, _ := c.Read(buf)
			got = string(buf[:n])
			io.WriteString(c, "HTTP/1.1 200 Fine\r\nContent-Length: 5\r\nX-Case: Kept\r\nserver: app\r\n\r\nhello")
		})
		b.cluster("c", addr)
		b.start(to("c"))
		c := b.dial()
		c.get("/a/../b?q=1", "X-Custom: Value", "Connection: keep-alive, x-drop", "X-Drop: 1", "x-request-id: id-1")
		a := c.read("GET")
		a.want(t, 200, "hello")
		if a.Status != "200 Fine" || a.Header.Get("Server") != "envoy" || a.Header.Get("X-Envoy-Upstream-Service-Time") != "0" {
			t.Errorf("head: %q %v", a.Status, a.Header)
		}
		want := "GET /b?q=1 HTTP/1.1\r\nHost: a.example\r\nX-Custom: Value\r\nx-request-id: id-1\r\n" +
			"x-forwarded-proto: http\r\nx-envoy-attempt-count: 1\r\n\r\n"
		if got != want {
			t.Errorf("the upstream got\n%s\nwant\n%s", got, want)
		}
		if log := b.logged(); !strings.Contains(log, `"GET /b?q=1 HTTP/1.1" 200 - via_upstream`) {
			t.Errorf("log: %s", log)
		}
	})
}

func TestConnectionsAreKeptOnBothSides(t *testing.T) {
	inBubble(t, func(b *bed) {
		conns := 0
		serve := reply(ok("x"))
		b.cluster("c", b.backend("10.0.1.1:80", func(c net.Conn) { conns++; serve(c) }))
		b.start(to("c"))
		c := b.dial()
		for range 10 {
			c.get("/")
			c.read("GET").want(t, 200, "x")
		}
		if conns != 1 {
			t.Errorf("%d connections to the upstream", conns)
		}
	})
}

func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.cluster("c", b.httpBackend("10.0.1.1:80", func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %s", r.URL.Path, body)
		}))
		b.start(to("c"))
		c := b.dial()
		c.send("GET /1 HTTP/1.1", "Host: a", "", "POST /2 HTTP/1.1", "Host: a", "Content-Length: 3", "", "twoPOST /3 HTTP/1.1",
			"Host: a", "Transfer-Encoding: chunked", "", "5", "three", "0", "", "GET /4 HTTP/1.1", "Host: a", "", "")
		for _, want := range []string{"/1 ", "/2 two", "/3 three", "/4 "} {
			c.read("GET").want(t, 200, want)
		}
	})
}

func TestHTTP10(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.cluster("c", b.backend("10.0.1.1:80", reply("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")))
		b.start(to("c"))
		c := b.dial()
		c.send("GET / HTTP/1.0", "", "")
		a := c.read("GET")
		a.want(t, 200, "abc")
		if len(a.TransferEncoding) != 0 || a.ContentLength != -1 {
			t.Errorf("an HTTP/1.0 client got chunks: %v", a.Header)
		}
		c.ended()
	})
}

func TestHTTP10KeepAlive(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.cluster("c", b.backend("10.0.1.1:80", reply(ok("abc"))))
		b.start(to("c"))
		c := b.dial()
		for range 3 {
			c.send("GET / HTTP/1.0", "Connection: keep-alive", "", "")
			a := c.read("GET")
			a.want(t, 200, "abc")
			if a.Header.Get("Connection") != "keep-alive" {
				t.Errorf("connection: %q", a.Header.Get("Connection"))
			}
		}
	})
}

func TestResponseUntilCloseIsChunkedForTheClient(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.cluster("c", b.backend("10.0.1.1:80", func(c net.Conn) {
			http.ReadRequest(bufio.NewReader(c))
			io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nfirst")
			time.Sleep(time.Second)
			io.WriteString(c, " second")
		}))
		b.start(to("c"))
		c := b.dial()
		c.get("/")
		c.read("GET").want(t, 200, "first second")
		c.get("/")
		c.read("GET").want(t, 200, "first second")
	})
}

func TestHeadAndBodilessStatuses(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.cluster("c", b.backend("10.0.1.1:80", func(c net.Conn) {
			r := bufio.NewReader(c)
			for {
				q, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				switch q.URL.Path {
				case "/204":
					io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
				case "/304":
					io.WriteString(c, "HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n")
				default:
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
				}
			}
		}))
		b.start(to("c"))
		c := b.dial()
		c.send("HEAD / HTTP/1.1", "Host: a", "", "")
		if a := c.read("HEAD"); a.StatusCode != 200 || a.ContentLength != 100 {
			t.Errorf("HEAD: %d, length %d", a.StatusCode, a.ContentLength)
		}
		c.get("/204")
		c.read("GET").want(t, 204, "")
		c.get("/304")
		c.read("GET").want(t, 304, "")
		c.get("/204")
		c.read("GET").want(t, 204, "")
		if s := b.set.Status()[0]; s.Counts.CxTotal != 1 {
			t.Errorf("%d upstream connections", s.Counts.CxTotal)
		}
	})
}

func TestTrailersAndChunksPassUnchanged(t *testing.T) {
	inBubble(t, func(b *bed) {
		var got string
		b.cluster("c", b.backend("10.0.1.1:80", func(c net.Conn) {
			r := bufio.NewReader(c)
			for !strings.HasSuffix(got, "\r\n\r\n0\r\nX-Sum: 1\r\n\r\n") {
				p, err := r.ReadByte()
				if err != nil {
					return
				}
				got += string(p)
				if strings.HasSuffix(got, "0\r\nX-Sum: 1\r\n\r\n") {
					break
				}
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-back\r\n\r\n4;ext=1\r\nback\r\n0\r\nX-Back: 2\r\nContent-Length: 7\r\n\r\n")
		}))
		b.start(to("c"))
		c := b.dial()
		c.send("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", "", "3;a=b", "abc", "2", "de", "0", "X-Sum: 1", "Host: evil", "", "")
		a := c.read("POST")
		a.want(t, 200, "back")
		if got := a.Trailer.Get("X-Back"); got != "2" || len(a.Trailer) != 1 {
			t.Errorf("trailers: %v", a.Trailer)
		}
		if _, body, _ := strings.Cut(got, "\r\n\r\n"); body != "3\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 1\r\n\r\n" {
			t.Errorf("the upstream got %q", body)
		}
		c.send("POST / HTTP/1.1", "Host: a", "Content-Length: 0", "", "")
	})
}

func TestContinueIsPassedOn(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.cluster("c", b.httpBackend("10.0.1.1:80", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/no" {
				w.WriteHeader(417)
				return
			}
			body, _ := io.ReadAll(r.Body) // sends the 100
			fmt.Fprintf(w, "got %s", body)
		}))
		b.start(to("c"))
		c := b.dial()
		c.send("POST / HTTP/1.1", "Host: a", "Content-Length: 4", "Expect: 100-continue", "", "")
		line, _ := c.r.ReadString('\n')
		if blank, _ := c.r.ReadString('\n'); line != "HTTP/1.1 100 Continue\r\n" || blank != "\r\n" {
			t.Fatalf("got %q %q", line, blank)
		}
		c.send("body")
		c.read("POST").want(t, 200, "got body")

		c.send("POST /no HTTP/1.1", "Host: a", "Content-Length: 4", "Expect: 100-continue", "", "")
		a := c.read("POST")
		a.want(t, 417, "")
		if !a.Close {
			t.Error("the connection is kept although the body did not come")
		}
		c.ended()
	})
}

func TestUpgradeBecomesATunnel(t *testing.T) {
	inBubble(t, func(b *bed) {
		var head string
		b.cluster("c", b.backend("10.0.1.1:80", func(c net.Conn) {
			r := bufio.NewReader(c)
			q, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			head = q.Header.Get("Connection") + " " + q.Header.Get("Upgrade")
			if q.URL.Path == "/refuse" {
				io.WriteString(c, ok("no"))
				return
			}
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly ")
			io.Copy(c, r)
			io.WriteString(c, "bye")
		}))
		b.start(to("c"))
		c := b.dial()
		c.get("/ws", "Connection: Upgrade", "Upgrade: websocket")
		a, err := http.ReadResponse(c.r, nil)
		if err != nil || a.StatusCode != 101 || a.Header.Get("Upgrade") != "websocket" || !strings.EqualFold(a.Header.Get("Connection"), "upgrade") {
			t.Fatalf("got %v, %v", a, err)
		}
		if head != "upgrade websocket" {
			t.Errorf("the upstream saw %q", head)
		}
		c.send("ping")
		buf := make([]byte, 10)
		io.ReadFull(c.r, buf)
		if string(buf) != "early ping" {
			t.Errorf("through the tunnel: %q", buf)
		}
		c.Conn.(closeWriter).CloseWrite()
		if rest, err := io.ReadAll(c.r); string(rest) != "bye" || err != nil {
			t.Errorf("after the half-close: %q, %v", rest, err)
		}
		if log := b.logged(); !strings.Contains(log, " 101 - via_upstream - \"-\" 4 13 ") {
			t.Errorf("log: %s", log)
		}

		c = b.dial()
		c.get("/refuse", "Connection: Upgrade", "Upgrade: websocket")
		c.read("GET").want(t, 200, "no")
		c.ended() // what follows might have been meant for the tunnel
		c = b.dial()
		c.get("/h2c", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
		c.read("GET").StatusCode = 0
		if head != " " {
			t.Errorf("an upgrade to HTTP/2 was passed on: %q", head)
		}
	})
}

// A tunnel would take what comes next past all filters, so nobody gets one who
// was not given a route for it.
func TestConnectIsNoWayAroundTheFilters(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.cluster("c", b.backend("10.0.1.1:80", func(c net.Conn) {
			t.Error("the upstream heard of it")
			c.Close()
		}))
		b.start(to("c"))
		c := b.dial()
		c.send("CONNECT b.example:443 HTTP/1.1", "Host: b.example:443", "", "")
		c.read("CONNECT").want(t, 404, "")
		c.ended()
	})
}

func TestBadRequestsAreRefused(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.cluster("c", b.backend("10.0.1.1:80", reply(ok("x"))))
		b.start(to("c"))
		for head, want := range map[string]int{
			"GET / HTTP/1.1\r\n\r\n":                                                                400,
			"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n":                                          400,
			"GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n":                                            400,
			"GET / HTTP/1.1\nHost: a\n\n":                                                           400,
			"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n":                                                  400,
			"GET / HTTP/3.0\r\nHost: a\r\n\r\n":                                                     505,
			"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx":         400,
			"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n": 400,
			"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n":                501,
			"GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: y\r\n", 101) + "\r\n":              431,
			"GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("y", 61<<10) + "\r\n\r\n":           431,
			"GET /" + strings.Repeat("y", 61<<10) + " HTTP/1.1\r\nHost: a\r\n\r\n":                  414,
			"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n":                400,
		} {
			c := b.dial()
			c.send(head)
			a := c.read("GET")
			if a.StatusCode != want || !a.Close {
				t.Errorf("%.60q: %d, close %v; want %d", head, a.StatusCode, a.Close, want)
			}
			c.ended()
			c.Close()
		}
		if log := b.logged(); strings.Count(log, " DPE ") != 13 {
			t.Errorf("log:\n%s", log)
		}
	})
}

func TestClientThatIsSlowWithItsHead(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.start()
		c := b.dial()
		c.send("GET / HT")
		begin := time.Now()
		c.read("GET").want(t, 408, "request header timeout")
		if took := time.Since(begin); took != time.Minute {
			t.Errorf("after %v", took)
		}
		c.ended()
	})
}

func TestIdleConnectionEnds(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.cluster("c", b.backend("10.0.1.1:80", reply(ok("x"))))
		b.start(to("c"))
		c := b.dial()
		c.get("/")
		c.read("GET").want(t, 200, "x")
		begin := time.Now()
		c.ended()
		if took := time.Since(begin); took < 52*time.Minute || took > time.Hour {
			t.Errorf("after %v", took)
		}
	})
}

func TestDrainFinishesWhatBegan(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.cluster("c", b.httpBackend("10.0.1.1:80", func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
			io.WriteString(w, "done")
		}))
		b.start(to("c"))
		idle, busy := b.dial(), b.dial()
		idle.get("/")
		idle.read("GET").want(t, 200, "done")
		busy.get("/")
		synctest.Wait()
		go func() { time.Sleep(100 * time.Millisecond); b.drain() }()
		a := busy.read("GET")
		a.want(t, 200, "done")
		if !a.Close {
			t.Error("the response does not announce the end")
		}
		busy.ended()
		// What was idle gets an answer to its next request, and hears it then.
		idle.get("/")
		a = idle.read("GET")
		a.want(t, 200, "done")
		if !a.Close {
			t.Error("the response on the idle connection does not announce the end")
		}
		idle.ended()
		// So does one that was accepted meanwhile.
		late := b.dial()
		late.get("/")
		a = late.read("GET")
		a.want(t, 200, "done")
		if !a.Close {
			t.Error("the response on a new connection does not announce the end")
		}
		late.ended()
	})
}

func TestRequestsAreShedWhileMemoryIsShort(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.cluster("c", b.backend("10.0.1.1:80", reply(ok("x"))))
		short := false
		b.config = func(cfg *Config) { cfg.Overloaded = func() bool { return short } }
		b.start(to("c"))
		c := b.dial()
		c.get("/")
		c.read("GET").want(t, 200, "x")
		short = true
		c.get("/")
		c.read("GET").want(t, 503, "proxy overloaded")
		c.ended()
		if log := b.logged(); !strings.Contains(log, " 503 OM overload ") {
			t.Errorf("logged %q", log)
		}
		short = false
		c = b.dial()
		c.get("/")
		c.read("GET").want(t, 200, "x")
	})
}

func TestPanicEndsOneConnectionOnly(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.cluster("c", b.backend("10.0.1.1:80", reply(ok("x"))))
		b.start(to("c"))
		b.server.chain.filters = append(b.server.chain.filters, Filter{Request: func(x *exchange.Exchange) {
			if string(x.Request.Path) == "/panic" {
				panic("test")
			}
		}})
		other, c := b.dial(), b.dial()
		other.get("/")
		other.read("GET").want(t, 200, "x")
		c.get("/panic")
		c.read("GET").want(t, 500, "")
		c.ended()
		other.get("/")
		other.read("GET").want(t, 200, "x")
		if n := b.server.Panics(); n != 1 {
			t.Errorf("%d panics counted", n)
		}
	})
}

func TestDirectResponseRedirectAndNoRoute(t *testing.T) {
	inBubble(t, func(b *bed) {
		path := func(p string) plan.RouteMatch {
			return plan.RouteMatch{Path: plan.PathMatch{Kind: plan.PathPrefix, Value: p}}
		}
		b.start(
			&plan.Route{Name: "direct", Match: path("/direct"), Direct: &plan.DirectResponse{Status: 418, Body: "tea"}},
			&plan.Route{Match: path("/moved"), Redirect: &plan.Redirect{Host: "new.example", PrefixRewrite: "/to", Status: 308}},
			&plan.Route{Match: path("/secure"), Redirect: &plan.Redirect{Scheme: "https", Port: 443}},
			&plan.Route{Match: path("/nowhere"), Clusters: []plan.WeightedCluster{{Cluster: "unknown"}}},
			&plan.Route{Match: path("/blackhole"), Direct: &plan.DirectResponse{Status: 502}},
		)
		c := b.dial()
		c.get("/direct")
		c.read("GET").want(t, 418, "tea")
		c.send("POST /direct HTTP/1.1", "Host: a", "Content-Length: 4", "", "body")
		c.read("POST").want(t, 418, "tea")
		c.get("/moved/x?q")
		a := c.read("GET")
		a.want(t, 308, "")
		if got := a.Header.Get("Location"); got != "http://new.example/to/x?q" {
			t.Errorf("Location: %q", got)
		}
		c.get("/secure")
		a = c.read("GET")
		if got := a.Header.Get("Location"); got != "https://a.example/secure" || a.StatusCode != 301 {
			t.Errorf("%d Location: %q", a.StatusCode, got)
		}
		c.get("/nowhere")
		c.read("GET").want(t, 503, "")
		c.get("/other")
		c.read("GET").want(t, 404, "")
		c.get("/blackhole")
		c.read("GET").want(t, 502, "")
		log := b.logged()
		for _, want := range []string{` 418 - direct_response `, ` 503 NC cluster_not_found `, ` 404 NR route_not_found `} {
			if !strings.Contains(log, want) {
				t.Errorf("no %q in\n%s", want, log)
			}
		}
	})
}
