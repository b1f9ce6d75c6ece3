package router

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

func TestBackoffGrowsAndIsBounded(t *testing.T) {
	for n, longest := range map[int]time.Duration{1: 25, 2: 75, 3: 175, 4: 250, 5: 250, 100: 250} {
		longest *= time.Millisecond
		most := time.Duration(0)
		for i := range uint64(1000) {
			d := backoff(n, 25*time.Millisecond, i*(math.MaxUint64/1000))
			if d < 0 || d >= longest {
				t.Fatalf("before retry %d: %v", n, d)
			}
			most = max(most, d)
		}
		if most < longest/2 {
			t.Errorf("before retry %d: never more than %v", n, most)
		}
	}
}

func TestGuardTellsTheFirstCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		watched := 0
		g := &guard{now: time.Now, watch: func() { watched++ }}
		for range 3 { // one after the other, on one timer
			g.begin()
			now := time.Now()
			g.limit(now.Add(watchAfter), now.Add(time.Second))
			if !g.sleep(100 * time.Millisecond) {
				t.Error("interrupted before its time")
			}
			if g.sleep(time.Hour) || time.Since(now) != time.Second {
				t.Errorf("slept for %v", time.Since(now))
			}
			g.interrupt(clientGone)
			if why := g.end(); why != allTimeout {
				t.Errorf("cause %d", why)
			}
		}
		if watched != 3 {
			t.Errorf("watched %d times", watched)
		}
		// A request that is over is not interrupted.
		g.begin()
		g.limit(time.Now().Add(watchAfter), time.Now().Add(time.Second))
		g.end()
		time.Sleep(time.Hour)
		if g.interrupt(clientGone); g.reason() != none || watched != 3 {
			t.Errorf("cause %d, watched %d times", g.reason(), watched)
		}
	})
}

func TestRedirects(t *testing.T) {
	for _, c := range []struct {
		scheme, authority, path, query string
		r                              plan.Redirect
		want                           string
	}{
		{"http", "a", "/x", "q", plan.Redirect{}, "http://a/x?q"},
		{"http", "a:8080", "/x", "", plan.Redirect{}, "http://a:8080/x"},
		{"http", "a:8080", "/x", "", plan.Redirect{Host: "b"}, "http://b/x"},
		{"http", "a:8080", "/x", "", plan.Redirect{Port: 9090}, "http://a:9090/x"},
		{"http", "a:80", "/x", "", plan.Redirect{Scheme: "https"}, "https://a/x"},
		{"http", "a", "/x", "", plan.Redirect{Scheme: "https", Port: 443}, "https://a/x"},
		{"http", "a", "/x", "", plan.Redirect{Scheme: "https", Port: 8443}, "https://a:8443/x"},
		{"https", "a:443", "/x", "", plan.Redirect{Scheme: "http"}, "http://a/x"},
		{"http", "[::1]:81", "/x", "", plan.Redirect{}, "http://[::1]:81/x"},
		{"http", "a", "/x", "q", plan.Redirect{Path: "/y"}, "http://a/y?q"},
		{"http", "a", "/x", "q", plan.Redirect{Path: "/y?z"}, "http://a/y?z"},
		{"http", "a", "/old/x", "", plan.Redirect{PrefixRewrite: "/new"}, "http://a/new/x"},
	} {
		x := exchange.Get()
		q := &x.Request
		q.Scheme, q.Authority, q.Path = c.scheme, []byte(c.authority), []byte(c.path)
		q.Query, q.HasQuery = []byte(c.query), c.query != ""
		redirect(x, &plan.Route{Match: plan.RouteMatch{Path: plan.PathMatch{Value: "/old"}}, Redirect: &c.r})
		if got := string(x.Response.Header.Get(exchange.Location)); got != c.want || x.Response.Status != 301 {
			t.Errorf("%s %s %+v: %d %q, want %q", c.authority, c.path, c.r, x.Response.Status, got, c.want)
		}
		exchange.Put(x)
	}
}
