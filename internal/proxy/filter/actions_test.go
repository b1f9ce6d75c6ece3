package filter

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// seen notes the requests that a backend gets.
type seen struct {
	mu   sync.Mutex
	list []string
}

func (s *seen) handler(delay time.Duration) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		s.mu.Lock()
		s.list = append(s.list, fmt.Sprintf("%s %s%s %d %s", r.Method, r.Host, r.URL, len(body), r.Header.Get("x-a")))
		s.mu.Unlock()
		select {
		case <-time.After(delay):
		case <-r.Context().Done():
		}
	}
}

func (s *seen) all() []string {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.list
}

func TestMirrorsGetCopiesAndHoldNothingUp(t *testing.T) {
	inBubble(t, func(b *bed) {
		var copies seen
		b.cluster("c", b.backend("10.0.1.1:80", reply(ok("answer"))))
		b.cluster("slow", b.httpBackend("10.0.1.2:80", copies.handler(time.Minute)))
		b.host("10.0.1.3") // refuses
		b.cluster("refuses", address("10.0.1.3:80"))
		r := to("c")
		r.PrefixRewrite = "/inner/"
		r.Headers = &plan.Headers{Request: plan.HeaderEdit{Put: []plan.HeaderValue{{Name: "x-a", Value: "edited"}}}}
		r.Mirrors = []plan.Mirror{
			{Cluster: "slow", Fraction: plan.Million, Shadow: true}, {Cluster: "refuses", Fraction: plan.Million},
			{Cluster: "gone", Fraction: plan.Million}, {Cluster: "slow", Fraction: 0},
		}
		b.start(r)
		c := b.dial()
		begin := time.Now()
		c.get("/x", "X-A: sent")
		c.read("GET").want(t, 200, "answer")
		c.send("POST /y HTTP/1.1", "Host: a.example:81", "Content-Length: 5", "", "whole")
		c.read("POST").want(t, 200, "answer")
		c.send("POST /z HTTP/1.1", "Host: a.example", "Transfer-Encoding: chunked", "", "3", "one", "")
		synctest.Wait()
		c.send("5", strings.Repeat("x", 5), "0", "", "")
		c.read("POST").want(t, 200, "answer")
		if took := time.Since(begin); took != 0 {
			t.Errorf("the client waited %s", took)
		}
		// Too long to be copied, and it is not.
		c.send("POST /long HTTP/1.1", "Host: a.example", "Content-Length: 2000000", "", strings.Repeat("x", 2_000_000))
		c.read("POST").want(t, 200, "answer")
		// A body that does not come to its end has no copy.
		d := b.dial()
		d.send("POST /short HTTP/1.1", "Host: a.example", "Content-Length: 100", "", "x")
		synctest.Wait()
		d.Close()
		want := []string{"GET a.example-shadow/inner/x 0 edited", "POST a.example-shadow:81/inner/y 5 edited", "POST a.example-shadow/inner/z 8 edited"}
		got := copies.all()
		slices.Sort(want)
		slices.Sort(got) // each goes its own way
		if !slices.Equal(got, want) {
			t.Errorf("the mirror got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		time.Sleep(time.Hour)
	})
}

func TestAPartOfTheRequestsIsMirrored(t *testing.T) {
	inBubble(t, func(b *bed) {
		var copies seen
		b.cluster("c", b.backend("10.0.1.1:80", reply(ok("answer"))))
		b.cluster("mirror", b.httpBackend("10.0.1.2:80", copies.handler(0)))
		r := to("c")
		r.Mirrors = []plan.Mirror{{Cluster: "mirror", Fraction: plan.Million / 4}}
		b.start(r)
		c := b.dial()
		for range 1000 {
			c.get("/")
			c.read("GET").want(t, 200, "answer")
		}
		if n := len(copies.all()); n < 190 || n > 310 {
			t.Errorf("%d of 1000 were mirrored", n)
		}
	})
}

func TestADelayIsNoPartOfTheTimeout(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.cluster("c", b.backend("10.0.1.1:80", reply(ok("answer"))))
		r := to("c")
		r.Timeout = time.Second
		r.Fault = &plan.Fault{Delay: 5 * time.Second, DelayFraction: plan.Million}
		b.start(r)
		c := b.dial()
		begin := time.Now()
		c.get("/")
		c.read("GET").want(t, 200, "answer")
		if took := time.Since(begin); took != 5*time.Second {
			t.Errorf("took %s", took)
		}
		c.send("POST / HTTP/1.1", "Host: a", "Content-Length: 4", "", "body")
		c.read("POST").want(t, 200, "answer")
		// Who does not wait is not waited for.
		gone := b.dial()
		gone.get("/")
		time.Sleep(time.Second)
		gone.Close()
		time.Sleep(10 * time.Second)
		if log := b.logged(); !strings.Contains(log, " DI ") || !strings.Contains(log, "DI,DC") {
			t.Errorf("the log says\n%s", log)
		}
	})
}

func TestAbortsAnswerInTheClientsTongue(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.cluster("c", b.backend("10.0.1.1:80", reply(ok("answer"))))
		r := to("c")
		r.Fault = &plan.Fault{AbortStatus: 7, AbortGRPC: true, AbortFraction: plan.Million}
		b.start(r)
		c := b.dial()
		c.get("/")
		c.read("GET").want(t, 403, "fault filter abort")
		c.get("/", "Content-Type: application/grpc+proto")
		if a := c.read("GET"); a.StatusCode != 200 || a.Header.Get("grpc-status") != "7" {
			t.Errorf("got %d %v", a.StatusCode, a.Header)
		}
	})
}

func TestHeadersAreEditedOnTheWay(t *testing.T) {
	inBubble(t, func(b *bed) {
		var got http.Header
		b.cluster("c", b.httpBackend("10.0.1.1:80", func(w http.ResponseWriter, r *http.Request) {
			got = r.Header.Clone()
			w.Header().Set("x-removed", "1")
			w.Header().Add("x-many", "1")
		}))
		r := to("c")
		r.Clusters[0].Headers = &plan.Headers{
			Request:  plan.HeaderEdit{Put: []plan.HeaderValue{{Name: "x-both", Value: "share"}, {Name: "x-share", Value: "1"}}},
			Response: plan.HeaderEdit{Put: []plan.HeaderValue{{Name: "x-many", Value: "2", Append: true}}},
		}
		r.Clusters[0].HostRewrite = "share.example"
		r.Headers = &plan.Headers{
			Request: plan.HeaderEdit{Remove: []string{"x-gone"}, Put: []plan.HeaderValue{
				{Name: "x-both", Value: "route"}, {Name: "user-agent", Value: "heddle"}, {Name: "x-nothing", Value: "%REQ(x-absent)%"},
				{Name: "x-alt", Value: "%REQ(x-absent?:path)% %DOWNSTREAM_LOCAL_PORT%"}, {Name: "x-percent", Value: "5%%, %NONE%, 7%"},
			}},
			Response: plan.HeaderEdit{Remove: []string{"x-removed"}, Put: []plan.HeaderValue{{Name: "x-cluster", Value: "%UPSTREAM_CLUSTER%"}}},
		}
		b.start(r)
		c := b.dial()
		c.get("/p?q", "X-Gone: 1", "User-Agent: curl", "X-Both: client")
		a := c.read("GET")
		for name, want := range map[string]string{
			"x-both": "route", "x-share": "1", "x-gone": "", "user-agent": "heddle", "x-nothing": "", "x-alt": "/p?q 8080",
			"x-percent": "5%, %NONE%, 7%",
		} {
			if v := strings.Join(got.Values(name), ","); v != want {
				t.Errorf("request %s is %q, want %q", name, v, want)
			}
		}
		for name, want := range map[string]string{"x-removed": "", "x-many": "1,2", "x-cluster": "c"} {
			if v := strings.Join(a.Header.Values(name), ","); v != want {
				t.Errorf("response %s is %q, want %q", name, v, want)
			}
		}
	})
}

func TestAClientComesBackWithItsCookie(t *testing.T) {
	inBubble(t, func(b *bed) {
		c := b.cluster("c", b.backend("10.0.1.1:80", reply(ok("1"))), b.backend("10.0.1.2:80", reply(ok("2"))), b.backend("10.0.1.3:80", reply(ok("3"))))
		c.Balancing = plan.Maglev
		r := to("c")
		r.Hash = []plan.HashPolicy{{Kind: plan.HashCookie, Name: "id", Generate: true, TTL: time.Hour, Path: "/p",
			Attributes: []plan.CookieAttribute{{Name: "SameSite", Value: "Lax"}, {Name: "Secure"}}}}
		b.start(r)
		conn := b.dial()
		used := map[string]bool{}
		for range 30 {
			conn.get("/")
			first := conn.read("GET")
			cookies := first.Cookies()
			if len(cookies) != 1 || cookies[0].Name != "id" || cookies[0].MaxAge != 3600 || cookies[0].Path != "/p" ||
				!cookies[0].HttpOnly || !cookies[0].Secure || cookies[0].SameSite != http.SameSiteLaxMode {
				t.Fatalf("cookies %v", first.Header["Set-Cookie"])
			}
			used[first.body] = true
			for range 3 {
				conn.get("/", "Cookie: a=b; id="+cookies[0].Value)
				if again := conn.read("GET"); again.body != first.body || again.Header["Set-Cookie"] != nil {
					t.Fatalf("first %s, then %s %v", first.body, again.body, again.Header)
				}
			}
		}
		if len(used) != 3 {
			t.Errorf("all went to %v", used)
		}
	})
}

func TestAFailingEndpointIsEjected(t *testing.T) {
	inBubble(t, func(b *bed) {
		for name, serve := range map[string]string{
			"errors": "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", "closes": "", "garbage": "SSH-2.0\r\n\r\n",
		} {
			bad := map[string]string{"errors": "10.0.2.1:80", "closes": "10.0.2.2:80", "garbage": "10.0.2.3:80"}[name]
			good := strings.Replace(bad, "10.0.2", "10.0.3", 1)
			c := b.cluster(name, b.backend(bad, reply(serve)), b.backend(good, reply(ok("good"))))
			c.Outlier = &plan.Outlier{Consecutive5xx: 3, Interval: time.Second, BaseEjection: time.Minute, MaxPercent: 50}
		}
		b.host("10.0.2.4")
		c := b.cluster("refuses", address("10.0.2.4:80"), b.backend("10.0.3.4:80", reply(ok("good"))))
		c.Outlier = &plan.Outlier{Consecutive5xx: 3, Interval: time.Second, BaseEjection: time.Minute, MaxPercent: 50}
		c = b.cluster("slow", b.backend("10.0.2.5:80", func(c net.Conn) { io.Copy(io.Discard, c) }), b.backend("10.0.3.5:80", reply(ok("good"))))
		c.Outlier = &plan.Outlier{ConsecutiveGateway: 3, Interval: time.Second, BaseEjection: time.Hour, MaxPercent: 50}
		routes := []*plan.Route{}
		for _, name := range []string{"errors", "closes", "garbage", "refuses", "slow"} {
			r := to(name)
			r.Match.Path.Value = "/" + name
			r.Timeout = time.Second
			routes = append(routes, r)
		}
		b.start(routes...)
		conn := b.dial()
		for _, r := range routes {
			failed := 0
			for range 40 {
				conn.get(r.Match.Path.Value)
				if conn.read("GET").body != "good" {
					failed++
				}
			}
			if failed != 3 {
				t.Errorf("%s: %d requests failed before it was ejected", r.Name, failed)
			}
		}
	})
}

func TestRetriesObeyTheClustersLimit(t *testing.T) {
	inBubble(t, func(b *bed) {
		c := b.cluster("c", b.httpBackend("10.0.1.1:80", func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("x-envoy-attempt-count") != "1" {
				time.Sleep(time.Minute)
			}
			w.WriteHeader(503)
		}))
		c.MaxRetries = 1
		r := to("c")
		r.Retry = &plan.Retry{On: []string{"5xx"}, Attempts: 1}
		b.start(r)
		first, second := b.dial(), b.dial()
		first.get("/")
		time.Sleep(time.Second)
		begin := time.Now()
		second.get("/")
		second.read("GET").want(t, 503, "")
		if took := time.Since(begin); took != 0 {
			t.Errorf("it was tried again: %s", took)
		}
		first.read("GET").want(t, 503, "")
		second.get("/") // the first has ended
		time.Sleep(time.Second)
		begin = time.Now()
		second.read("GET").want(t, 503, "")
		if took := time.Since(begin); took < 50*time.Second {
			t.Errorf("it was not tried again: %s", took)
		}
	})
}
