package filter

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-mesh/heddle/internal/meshtest/certs"
	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/mtls"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
)

func address(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// defaultRetry is what Istio configures where nobody says anything.
var defaultRetry = &plan.Retry{
	On:       []string{"connect-failure", "refused-stream", "unavailable", "cancelled", "retriable-status-codes"},
	Attempts: 2, HostReopen: 5,
}

func TestSplitFollowsWeights(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.cluster("v1", b.backend("10.0.1.1:80", reply(ok("v1"))))
		b.cluster("v2", b.backend("10.0.1.2:80", reply(ok("v2"))))
		b.start(&plan.Route{Match: plan.RouteMatch{Path: plan.PathMatch{Value: "/"}},
			Clusters: []plan.WeightedCluster{{Cluster: "v1", Weight: 3}, {Cluster: "v2", Weight: 1}}})
		c := b.dial()
		count := map[string]int{}
		for range 2000 {
			c.get("/")
			count[c.read("GET").body]++
		}
		if n := count["v1"]; n < 1400 || n > 1600 || n+count["v2"] != 2000 {
			t.Errorf("%v", count)
		}
	})
}

func TestRefusedConnectIsRetriedElsewhere(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.host("10.0.1.1") // refuses
		b.cluster("c", address("10.0.1.1:80"), b.backend("10.0.1.2:80", reply(ok("x"))))
		r := to("c")
		r.Retry = defaultRetry
		b.start(r)
		c := b.dial()
		begin := time.Now()
		for range 20 {
			c.send("POST / HTTP/1.1", "Host: a", "Content-Length: 4", "", "body")
			c.read("POST").want(t, 200, "x")
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("took %v", took)
		}
		if n := b.set.Status()[0].Endpoints[0].Counts.CxConnectFail; n == 0 {
			t.Error("the first endpoint was never tried")
		}
	})
}

func TestFailuresAreToldAsEnvoyTellsThem(t *testing.T) {
	const prefix = "upstream connect error or disconnect/reset before headers. reset reason: "
	inBubble(t, func(b *bed) {
		b.host("10.0.1.1")
		b.cluster("refused", address("10.0.1.1:80"))
		b.cluster("exhausted", address("10.0.1.1:80"))
		b.cluster("empty")
		b.cluster("closes", b.backend("10.0.1.2:80", reply("")))
		b.cluster("garbage", b.backend("10.0.1.3:80", reply("SSH-2.0\r\n\r\n")))
		b.cluster("smuggles", b.backend("10.0.1.4:80", reply("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n")))
		b.cluster("slow", b.backend("10.0.1.5:80", func(c net.Conn) { io.Copy(io.Discard, c) }))
		dark := b.host("10.0.1.6")
		b.cluster("dark", address("10.0.1.6:80"))
		dark.Crash()

		on := func(cluster string, r plan.Route) *plan.Route {
			r.Match.Path = plan.PathMatch{Value: "/" + cluster}
			r.Clusters = []plan.WeightedCluster{{Cluster: cluster}}
			return &r
		}
		b.start(on("refused", plan.Route{}), on("exhausted", plan.Route{Retry: defaultRetry}), on("empty", plan.Route{}),
			on("closes", plan.Route{}), on("garbage", plan.Route{}), on("smuggles", plan.Route{}),
			on("slow", plan.Route{Timeout: 2 * time.Second}), on("dark", plan.Route{}))
		for _, c := range []struct {
			path        string
			status      int
			body, flags string
			details     string
			after       time.Duration
		}{
			{"/refused", 503, prefix + "remote connection failure, transport failure reason: delayed connect error: Connection refused",
				"UF", "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}", 0},
			{"/exhausted", 503, prefix + "remote connection failure, transport failure reason: delayed connect error: Connection refused",
				"UF,URX", "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}", -1},
			{"/empty", 503, "no healthy upstream", "UH", "no_healthy_upstream", 0},
			{"/closes", 503, prefix + "connection termination", "UC", "upstream_reset_before_response_started{connection_termination}", 0},
			{"/garbage", 502, prefix + "protocol error", "UPE", "upstream_reset_before_response_started{protocol_error}", 0},
			{"/smuggles", 502, prefix + "protocol error", "UPE", "upstream_reset_before_response_started{protocol_error}", 0},
			{"/slow", 504, "upstream request timeout", "UT", "response_timeout", 2 * time.Second},
			{"/dark", 503, prefix + "connection timeout", "UF", "upstream_reset_before_response_started{connection_timeout}", time.Second},
		} {
			begin := time.Now()
			cl := b.dial()
			cl.get(c.path)
			cl.read("GET").want(t, c.status, c.body)
			if took := time.Since(begin); took != c.after && c.after >= 0 {
				t.Errorf("%s took %v, want %v", c.path, took, c.after)
			}
			// The connection survives: the failure is not the client's.
			cl.get("/empty")
			cl.read("GET").want(t, 503, "no healthy upstream")
			want := fmt.Sprintf("\"GET %s HTTP/1.1\" %d %s %s - ", c.path, c.status, c.flags, c.details)
			if log := b.logged(); !strings.Contains(log, want) {
				t.Errorf("no %q in\n%s", want, log)
			}
		}
	})
}

func TestPerTryTimeoutIsRetried(t *testing.T) {
	inBubble(t, func(b *bed) {
		var tries atomic.Int64
		b.cluster("c", b.httpBackend("10.0.1.1:80", func(w http.ResponseWriter, r *http.Request) {
			if tries.Add(1) < 3 {
				time.Sleep(time.Minute)
			}
			fmt.Fprintf(w, "try %s", r.Header.Get("X-Envoy-Attempt-Count"))
		}))
		r := to("c")
		r.Retry = &plan.Retry{On: []string{"5xx"}, Attempts: 2, PerTry: time.Second}
		r.Timeout = 10 * time.Second
		b.start(r)
		c := b.dial()
		begin := time.Now()
		c.get("/")
		c.read("GET").want(t, 200, "try 3")
		if took := time.Since(begin); took < 2*time.Second || took > 2200*time.Millisecond {
			t.Errorf("took %v", took)
		}
		tries.Store(-2)
		c.get("/")
		c.read("GET").want(t, 504, "upstream request timeout")
		if log := b.logged(); !strings.Contains(log, " 504 UT,URX upstream_per_try_timeout ") {
			t.Errorf("log:\n%s", log)
		}
	})
}

func TestStatusIsRetried(t *testing.T) {
	inBubble(t, func(b *bed) {
		tries, bodies := 0, ""
		b.cluster("c", b.httpBackend("10.0.1.1:80", func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			bodies += string(body) + " "
			if tries++; tries < 3 {
				w.WriteHeader(503)
				io.WriteString(w, "not yet")
				return
			}
			io.WriteString(w, "fine")
		}))
		r := to("c")
		r.Retry = &plan.Retry{On: []string{"retriable-status-codes"}, Codes: []uint32{503}, Attempts: 2}
		b.start(r)
		c := b.dial()
		c.send("POST / HTTP/1.1", "Host: a", "Content-Length: 4", "", "body")
		c.read("POST").want(t, 200, "fine")
		if bodies != "body body body " {
			t.Errorf("bodies: %q", bodies)
		}
		if n := b.set.Status()[0].Counts.CxTotal; n != 1 {
			t.Errorf("%d connections for three attempts", n)
		}
		tries = -1
		c.get("/")
		c.read("GET").want(t, 503, "not yet")
		if log := b.logged(); !strings.Contains(log, " 503 URX via_upstream ") {
			t.Errorf("log:\n%s", log)
		}
	})
}

func TestUpstreamThatClosesIdleConnectionsCostsNothing(t *testing.T) {
	inBubble(t, func(b *bed) {
		delivered := 0
		b.cluster("c", b.backend("10.0.1.1:80", func(c net.Conn) {
			r := bufio.NewReader(c)
			for {
				c.SetReadDeadline(time.Now().Add(5 * time.Second))
				q, err := http.ReadRequest(r)
				if err != nil {
					return // too long idle
				}
				delivered++
				io.Copy(io.Discard, q.Body)
				io.WriteString(c, ok("x"))
			}
		}))
		b.start(to("c"))
		c := b.dial()
		for i := range 50 {
			// Just before, at, and just after the moment at which the upstream closes.
			time.Sleep(5*time.Second + time.Duration(i%3-1)*time.Millisecond)
			c.get("/")
			c.read("GET").want(t, 200, "x")
		}
		if delivered != 50 {
			t.Errorf("%d requests arrived", delivered)
		}
	})
}

func TestPostIsNotSentTwice(t *testing.T) {
	inBubble(t, func(b *bed) {
		delivered := 0
		b.cluster("c", b.backend("10.0.1.1:80", func(c net.Conn) {
			r := bufio.NewReader(c)
			for i := range 2 {
				q, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				io.Copy(io.Discard, q.Body)
				delivered++
				if i == 1 {
					return // acted on it, and died
				}
				io.WriteString(c, ok("x"))
			}
		}))
		r := to("c")
		r.Retry = defaultRetry
		b.start(r)
		c := b.dial()
		for i, want := range []int{200, 503, 200, 503} {
			c.send("POST / HTTP/1.1", "Host: a", "Content-Length: 4", "", "body")
			if a := c.read("POST"); a.StatusCode != want {
				t.Errorf("request %d: %d, want %d", i, a.StatusCode, want)
			}
		}
		if delivered != 4 {
			t.Errorf("%d requests arrived, want 4", delivered)
		}
	})
}

func TestEndpointLeavesUnderLoad(t *testing.T) {
	inBubble(t, func(b *bed) {
		var addrs []netip.AddrPort
		for i := range 3 {
			addrs = append(addrs, b.httpBackend(fmt.Sprintf("10.0.1.%d:80", i+1), func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(20 * time.Millisecond)
				io.WriteString(w, "x")
			}))
		}
		b.cluster("c", addrs...)
		r := to("c")
		r.Retry = defaultRetry
		b.start(r)
		const clients = 10
		done := make(chan int)
		for i := range clients {
			go func() {
				time.Sleep(time.Duration(i) * 5 * time.Millisecond)
				c, failed := b.dial(), 0
				for range 100 { // 200 requests per second, all clients together
					c.get("/")
					if c.read("GET").StatusCode != 200 {
						failed++
					}
					time.Sleep(30 * time.Millisecond)
				}
				done <- failed
			}()
		}
		// The control plane hears late: first the port is closed, for new connections,
		// then the endpoint leaves, then its last requests end.
		time.Sleep(time.Second)
		b.host("10.0.1.200")
		b.cluster("c", addrs[1], addrs[2], address("10.0.1.200:80")) // refuses
		b.apply(r)
		time.Sleep(time.Second)
		b.cluster("c", addrs[1])
		b.apply(r)
		failed := 0
		for range clients {
			failed += <-done
		}
		if failed > 0 {
			t.Errorf("%d requests failed", failed)
		}
		if n := len(b.set.Status()[0].Endpoints); n != 1 {
			t.Errorf("%d endpoints are left", n)
		}
		synctest.Wait()
		if s := b.set.Status()[0]; s.Counts.CxActive != int64(s.Endpoints[0].Idle) || s.Counts.RqActive != 0 {
			t.Errorf("after the load: %+v, idle %d", s.Counts, s.Endpoints[0].Idle)
		}
	})
}

func TestLargeBodiesStream(t *testing.T) {
	inBubble(t, func(b *bed) {
		const size = 20 << 20
		b.cluster("c", b.httpBackend("10.0.1.1:80", func(w http.ResponseWriter, r *http.Request) {
			// Echo while the request is still coming: the first byte back does not wait
			// for the last one in.
			w.Header().Set("Content-Length", fmt.Sprint(size))
			http.NewResponseController(w).EnableFullDuplex()
			io.Copy(w, r.Body)
		}))
		b.start(to("c"))
		c := b.dial()
		go func() {
			c.send("POST / HTTP/1.1", "Host: a", fmt.Sprintf("Content-Length: %d", size), "", "")
			chunk := strings.Repeat("0123456789abcdef", 4096)
			for range size / len(chunk) {
				io.WriteString(c.Conn, chunk)
			}
		}()
		r, err := http.ReadResponse(c.r, nil)
		if err != nil {
			t.Fatal(err)
		}
		var got, bad int
		buf := make([]byte, 64<<10)
		for {
			n, err := r.Body.Read(buf)
			for i := range n {
				if buf[i] != "0123456789abcdef"[(got+i)%16] {
					bad++
				}
			}
			if got += n; err != nil {
				break
			}
		}
		if got != size || bad > 0 {
			t.Errorf("%d bytes came back, %d of them wrong", got, bad)
		}
		if log := b.logged(); !strings.Contains(log, fmt.Sprintf(" 200 - via_upstream - \"-\" %d %d ", size, size)) {
			t.Errorf("log: %s", log)
		}
	})
}

func TestClientThatLeavesEndsTheUpstreamRequest(t *testing.T) {
	inBubble(t, func(b *bed) {
		gone := make(chan time.Duration, 1)
		b.cluster("c", b.httpBackend("10.0.1.1:80", func(w http.ResponseWriter, r *http.Request) {
			begin := time.Now()
			<-r.Context().Done()
			gone <- time.Since(begin)
		}))
		b.start(to("c"))
		c := b.dial()
		c.get("/")
		time.Sleep(time.Second)
		c.Close()
		if after := <-gone; after != time.Second {
			t.Errorf("the upstream heard after %v", after)
		}
		if log := b.logged(); !strings.Contains(log, "\"GET / HTTP/1.1\" 0 DC downstream_remote_disconnect downstream_remote_disconnect ") {
			t.Errorf("log: %s", log)
		}
		if n := b.set.Status()[0].Counts.RqActive; n != 0 {
			t.Errorf("%d requests in flight", n)
		}
	})
}

func TestClientThatLeavesWhileUploading(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.cluster("c", b.backend("10.0.1.1:80", func(c net.Conn) { io.Copy(io.Discard, c) }))
		b.start(to("c"))
		c := b.dial()
		c.send("POST / HTTP/1.1", "Host: a", "Content-Length: 100", "", "some")
		time.Sleep(time.Second)
		c.Close()
		if log := b.logged(); !strings.Contains(log, " 0 DC downstream_remote_disconnect ") {
			t.Errorf("log: %s", log)
		}
	})
}

func TestClientThatLeavesWhileItsResponseIsWritten(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.cluster("c", b.httpBackend("10.0.1.1:80", func(w http.ResponseWriter, r *http.Request) {
			for range 1000 {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
				time.Sleep(time.Millisecond)
			}
		}))
		b.start(to("c"))
		c := b.dial()
		c.get("/")
		io.ReadFull(c.r, make([]byte, 100<<10))
		c.Close()
		time.Sleep(time.Minute)
		if log := b.logged(); !strings.Contains(log, " 200 DC downstream_remote_disconnect ") {
			t.Errorf("log: %s", log)
		}
	})
}

func TestUpstreamThatDiesInItsResponse(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.cluster("c", b.backend("10.0.1.1:80", reply("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this")))
		b.cluster("d", b.backend("10.0.1.2:80", func(c net.Conn) {
			http.ReadRequest(bufio.NewReader(c))
			io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nonly this")
		}))
		first := to("c")
		first.Match.Path.Value = "/c"
		first.Timeout = time.Second
		b.start(first, to("d"))
		c := b.dial()
		c.get("/c")
		if a := c.read("GET"); a.err == nil || a.body != "only this" {
			t.Errorf("got %q, %v: the client can not tell that it was cut short", a.body, a.err)
		}
		c.ended()
		c = b.dial()
		c.get("/d")
		if a := c.read("GET"); a.err == nil {
			t.Errorf("got %q, %v: the client can not tell that it was cut short", a.body, a.err)
		}
		log := b.logged()
		for _, want := range []string{" 200 UT response_timeout ", " 200 UC upstream_reset_after_response_started{connection_termination} "} {
			if !strings.Contains(log, want) {
				t.Errorf("no %q in\n%s", want, log)
			}
		}
	})
}

func TestTimeoutBeginsAfterTheUpload(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.cluster("c", b.httpBackend("10.0.1.1:80", func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			time.Sleep(500 * time.Millisecond)
			fmt.Fprintf(w, "%d", len(body))
		}))
		r := to("c")
		r.Timeout = time.Second
		b.start(r)
		c := b.dial()
		c.send("POST / HTTP/1.1", "Host: a", "Content-Length: 10", "", "")
		for range 10 {
			time.Sleep(time.Second)
			c.send("x")
		}
		c.read("POST").want(t, 200, "10")
	})
}

func TestRewrites(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.cluster("c", b.httpBackend("10.0.1.1:80", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s %s %s", r.Host, r.RequestURI, r.Header.Get("X-Envoy-Original-Path"))
		}))
		rewrite := func(kind plan.PathKind, match, with, host string) *plan.Route {
			r := to("c")
			r.Match.Path = plan.PathMatch{Kind: kind, Value: match}
			r.PrefixRewrite, r.HostRewrite = with, host
			return r
		}
		b.start(rewrite(plan.PathPrefix, "/p/", "/", ""), rewrite(plan.PathSegmentPrefix, "/s", "/t/", "h.example"),
			rewrite(plan.PathExact, "/e", "/x", ""), rewrite(plan.PathRegex, "/r.*", "/y", ""), rewrite(plan.PathPrefix, "/q", "/", ""))
		c := b.dial()
		for path, want := range map[string]string{
			"/p/a?b":  "a.example /a?b /p/a?b",
			"/s/a":    "h.example /t/a /s/a",
			"/s":      "h.example /t/ /s",
			"/e":      "a.example /x /e",
			"/rest/a": "a.example /y /rest/a",
			"/qa":     "a.example /a /qa",
		} {
			c.get(path)
			c.read("GET").want(t, 200, want)
		}
	})
}

func TestLimitsOverflow(t *testing.T) {
	inBubble(t, func(b *bed) {
		p := b.cluster("c", b.httpBackend("10.0.1.1:80", func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
			io.WriteString(w, "x")
		}))
		p.MaxConnections, p.MaxPending = 1, 1
		b.start(to("c"))
		got := make(chan string, 5)
		for range 5 {
			go func() {
				c := b.dial()
				begin := time.Now()
				c.get("/")
				a := c.read("GET")
				got <- fmt.Sprint(a.StatusCode, time.Since(begin), a.Header.Get("X-Envoy-Overloaded"))
			}()
			time.Sleep(time.Millisecond) // one is served, one waits, the others are too many
		}
		count := map[string]int{}
		for range 5 {
			count[<-got]++
		}
		if count["200 1s"] != 1 || count["200 1.999s"] != 1 || count["503 0strue"] != 3 {
			t.Errorf("%v", count)
		}
		if log := b.logged(); strings.Count(log, " 503 UO upstream_reset_before_response_started{overflow} ") != 3 {
			t.Errorf("log:\n%s", log)
		}
	})
}

func TestClientThatStopsSendingItsBody(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.cluster("c", b.backend("10.0.1.1:80", func(c net.Conn) { io.Copy(io.Discard, c) }))
		b.start(to("c"))
		c := b.dial()
		c.send("POST / HTTP/1.1", "Host: a", "Content-Length: 100", "", "some")
		for range 3 {
			time.Sleep(4 * time.Minute) // slow is not stalled
			c.send("x")
		}
		begin := time.Now()
		c.read("POST").want(t, 408, "stream timeout")
		if took := time.Since(begin); took < 150*time.Second || took > 5*time.Minute {
			t.Errorf("after %v", took)
		}
		c.ended()
		if log := b.logged(); !strings.Contains(log, " 408 SI stream_idle_timeout ") {
			t.Errorf("log: %s", log)
		}
	})
}

func TestClientThatStopsReading(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.cluster("c", b.httpBackend("10.0.1.1:80", func(w http.ResponseWriter, r *http.Request) {
			for {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		}))
		b.start(to("c"))
		c := b.dial()
		c.get("/")
		time.Sleep(time.Hour)
		if log := b.logged(); !strings.Contains(log, " 200 SI stream_idle_timeout stream_idle_timeout ") {
			t.Errorf("log: %s", log)
		}
		if s := b.set.Status()[0].Counts; s.CxActive != 0 || s.RqActive != 0 {
			t.Errorf("the upstream is still held: %+v", s)
		}
	})
}

func TestSlowUpstreamIsNoStall(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.cluster("c", b.httpBackend("10.0.1.1:80", func(w http.ResponseWriter, r *http.Request) {
			for i := range 3 {
				time.Sleep(30 * time.Minute)
				fmt.Fprintf(w, "event %d ", i)
				http.NewResponseController(w).Flush()
			}
		}))
		b.start(to("c"))
		c := b.dial()
		c.get("/")
		c.read("GET").want(t, 200, "event 0 event 1 event 2 ")
		c.get("/")
		c.read("GET").want(t, 200, "event 0 event 1 event 2 ")
	})
}

func TestBodyThatTurnsBad(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.cluster("c", b.httpBackend("10.0.1.1:80", func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }))
		b.start(to("c"))
		c := b.dial()
		c.send("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", "", "3", "abc", "")
		time.Sleep(time.Second)
		c.send("xyz\r\n")
		c.read("POST").want(t, 400, "")
		c.ended()
		if log := b.logged(); !strings.Contains(log, " 400 DPE http1.codec_error ") {
			t.Errorf("log: %s", log)
		}
	})
}

func TestEarlyAnswerToALargeUpload(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.cluster("c", b.backend("10.0.1.1:80", func(c net.Conn) {
			c.Read(make([]byte, 1000))
			io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
			c.(closeWriter).CloseWrite()
			io.Copy(io.Discard, c)
		}))
		b.start(to("c"))
		c := b.dial()
		b.wg.Go(func() {
			c.send("POST / HTTP/1.1", "Host: a", "Content-Length: 100000000", "", "")
			for range 1000 {
				if _, err := c.Write(make([]byte, 10_000)); err != nil {
					return
				}
				time.Sleep(time.Millisecond)
			}
		})
		a := c.read("POST")
		a.want(t, 413, "big")
		if !a.Close {
			t.Error("the connection is kept in the middle of a body")
		}
	})
}

func TestNoClusterConnectionIsLostOrLeaked(t *testing.T) {
	inBubble(t, func(b *bed) {
		// Servers of every temper, clients of every temper.
		b.cluster("c",
			b.httpBackend("10.0.1.1:80", func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }),
			b.backend("10.0.1.2:80", reply("")),
			b.backend("10.0.1.3:80", func(c net.Conn) { time.Sleep(3 * time.Second) }),
			b.backend("10.0.1.4:80", reply("HTTP/1.1 200 OK\r\n\r\nx")),
			b.backend("10.0.1.5:80", reply("nonsense\r\n\r\n")),
			address("10.0.1.6:80"))
		r := to("c")
		r.Timeout = 2 * time.Second
		r.Retry = defaultRetry
		b.start(r)
		done := make(chan bool)
		for i := range 40 {
			go func() {
				defer func() { done <- true }()
				for j := range 20 {
					c := b.dial()
					switch (i + j) % 4 {
					case 0:
						c.get("/")
						http.ReadResponse(c.r, nil)
					case 1:
						c.send("POST / HTTP/1.1", "Host: a", "Content-Length: 100000", "", "half")
						time.Sleep(time.Duration(j) * 30 * time.Millisecond)
					case 2:
						c.send("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", "", "4", "body", "0", "", "")
						http.ReadResponse(c.r, nil)
					case 3:
						c.get("/")
						c.get("/")
						time.Sleep(time.Duration(j) * 10 * time.Millisecond)
					}
					c.Close()
				}
			}()
		}
		for range 40 {
			<-done
		}
		time.Sleep(time.Minute)
		s := b.set.Status()[0]
		idle := 0
		for _, e := range s.Endpoints {
			idle += e.Idle
		}
		if s.Counts.RqActive != 0 || s.Counts.CxActive != int64(idle) || s.Pending != 0 {
			t.Errorf("%+v with %d idle", s, idle)
		}
		if n := b.server.Panics(); n != 0 {
			t.Errorf("%d panics", n)
		}
	})
}

func TestServerThatRefusesOurCertificate(t *testing.T) {
	inBubble(t, func(b *bed) {
		ours, theirs := certs.New(b.t, "cluster.local"), certs.New(b.t, "cluster.local")
		both, pem := certs.Bundle(ours, theirs)
		// The client trusts the server, but not the other way round.
		me := *ours.Material("clients", "me")
		me.Roots, me.RootPEM = both, pem
		server := mtls.ServerConfig(theirs.Source("servers", "s"), &plan.ServerTLS{Certificate: "default", Roots: "ROOTCA", RequireCert: true, ALPN: []string{"istio"}})
		b.set = upstream.NewSet(upstream.Config{Network: b.proxy.Proxy(), Log: slog.New(slog.DiscardHandler),
			TLS: func(p *plan.ClientTLS) *tls.Config { return mtls.ClientConfig(certs.NewSource(&me), p) }})
		p := b.cluster("c", b.backend("10.0.1.1:80", func(c net.Conn) {
			tc := tls.Server(c, server)
			tc.Handshake()
			io.Copy(io.Discard, tc)
		}))
		p.TLS = &plan.ClientTLS{Certificate: "default", Roots: "ROOTCA", ALPN: []string{"istio"}}
		b.start(to("c"))
		c := b.dial()
		c.send("POST / HTTP/1.1", "Host: a", "Content-Length: 4", "", "body")
		a := c.read("POST")
		if a.StatusCode != 503 || !strings.Contains(a.body, "remote connection failure, transport failure reason: TLS_error:remote_") {
			t.Errorf("%d %q", a.StatusCode, a.body)
		}
		if log := b.logged(); !strings.Contains(log, " 503 UF upstream_reset_before_response_started{remote_connection_failure|TLS_error:remote_") {
			t.Errorf("log: %s", log)
		}
	})
}
