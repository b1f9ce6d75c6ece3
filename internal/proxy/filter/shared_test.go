package filter

import (
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/http2"
)

// The tests of this file are of connections to upstreams that many requests share.

// sharing starts a proxy before a server of HTTP/2 that takes a second for each
// request and remembers its connections.
func (b *bed) sharing(cfg http2.Config, edit func(*plan.Cluster)) (conns func() []*http2.Conn) {
	var mu sync.Mutex
	var seen []*http2.Conn
	c := b.cluster("c", b.streamsBackend("10.0.1.1:80", cfg, func(conn *http2.Conn, p *http2.Pipe) {
		mu.Lock()
		known := false
		for _, s := range seen {
			known = known || s == conn
		}
		if !known {
			seen = append(seen, conn)
		}
		mu.Unlock()
		time.Sleep(time.Second)
		p.WriteHead(&http2.Head{Status: 200, Header: new(exchange.Header)}, false)
		io.WriteString(p, "x")
		p.CloseWrite()
	}))
	c.Protocol = plan.HTTP2
	if edit != nil {
		edit(c)
	}
	b.start(to("c"))
	return func() []*http2.Conn {
		mu.Lock()
		defer mu.Unlock()
		return append([]*http2.Conn(nil), seen...)
	}
}

// many makes n requests at a time, and returns how many had each status, and how long
// it took.
func (b *bed) many(n int) (map[string]int, time.Duration) {
	client := b.dialStreams()
	<-client.Ready()
	var mu sync.Mutex
	count := map[string]int{}
	begin := time.Now()
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			out := ask(b.t, client, "GET", "/", "")
			mu.Lock()
			defer mu.Unlock()
			count[strings.SplitN(out.head+out.end, " ", 2)[0]]++
		})
	}
	wg.Wait()
	return count, time.Since(begin)
}

func TestAHerdOfRequestsMakesOneConnection(t *testing.T) {
	inBubble(t, func(b *bed) {
		conns := b.sharing(http2.Config{}, nil)
		if count, took := b.many(90); count["200"] != 90 || took != time.Second || len(conns()) != 1 {
			t.Errorf("%v after %v over %d connections", count, took, len(conns()))
		}
		if count, _ := b.many(900); count["200"] != 900 || len(conns()) != 1 {
			t.Errorf("%v over %d connections", count, len(conns()))
		}
	})
}

func TestMoreStreamsThanOneConnectionTakes(t *testing.T) {
	inBubble(t, func(b *bed) {
		conns := b.sharing(http2.Config{MaxStreams: 10}, nil)
		b.many(1) // the limit is known
		if count, took := b.many(40); count["200"] != 40 || took != time.Second || len(conns()) != 4 {
			t.Errorf("%v after %v over %d connections", count, took, len(conns()))
		}
	})
}

func TestStreamsWaitForOneAnotherAtTheLimitOfConnections(t *testing.T) {
	inBubble(t, func(b *bed) {
		conns := b.sharing(http2.Config{MaxStreams: 10}, func(c *plan.Cluster) { c.MaxConnections = 1 })
		b.many(1)
		if count, took := b.many(40); count["200"] != 40 || took != 4*time.Second || len(conns()) != 1 {
			t.Errorf("%v after %v over %d connections", count, took, len(conns()))
		}
	})
}

func TestLimitsCountStreams(t *testing.T) {
	for name, edit := range map[string]func(*plan.Cluster){
		"requests": func(c *plan.Cluster) { c.MaxRequests = 10 },
		"pending":  func(c *plan.Cluster) { c.MaxPending, c.MaxConnections = 0, 1; c.MaxRequests = 10 },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(b *bed) {
				b.sharing(http2.Config{}, edit)
				b.many(1)
				if count, _ := b.many(30); count["200"] != 10 || count["503"] != 20 {
					t.Errorf("%v", count)
				}
				if log := b.logged(); strings.Count(log, " 503 UO upstream_reset_before_response_started{overflow} ") != 20 {
					t.Errorf("logged %s", log)
				}
			})
		})
	}
}

func TestAConnectionHasSoManyRequestsAndNoMore(t *testing.T) {
	inBubble(t, func(b *bed) {
		conns := b.sharing(http2.Config{}, func(c *plan.Cluster) { c.MaxPerConn = 3 })
		for range 3 {
			if count, _ := b.many(10); count["200"] != 10 {
				t.Errorf("%v", count)
			}
		}
		if n := len(conns()); n < 10 || n > 12 {
			t.Errorf("30 requests over %d connections", n)
		}
		synctest.Wait()
		if n := b.set.Status()[0].Counts.CxActive; n > 1 {
			t.Errorf("%d connections are open", n)
		}
	})
}

func TestUpstreamsThatGoAwayCostNothing(t *testing.T) {
	inBubble(t, func(b *bed) {
		conns := b.sharing(http2.Config{}, nil)
		var failed atomic.Int64
		client := b.dialStreams()
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				for range 5 {
					if out := ask(t, client, "POST", "/", "body"); !strings.HasPrefix(out.head, "200 ") {
						failed.Add(1)
						t.Error(out)
					}
				}
			})
		}
		for range 4 {
			time.Sleep(1100 * time.Millisecond)
			list := conns()
			list[len(list)-1].Shutdown()
		}
		wg.Wait()
		if n := len(conns()); n < 4 {
			t.Errorf("%d connections", n)
		}
	})
}

func TestEndpointsThatLeaveFinishTheirStreams(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.sharing(http2.Config{}, nil)
		done := make(chan map[string]int)
		go func() {
			count, _ := b.many(10)
			done <- count
		}()
		time.Sleep(500 * time.Millisecond)
		b.endpoints["c"] = &plan.LoadAssignment{Cluster: "c"}
		b.apply(to("c"))
		if count := <-done; count["200"] != 10 {
			t.Errorf("%v", count)
		}
		synctest.Wait()
		if n := b.set.Cluster("c").Stats.CxActive.Load(); n != 0 {
			t.Errorf("%d connections are open", n)
		}
		if count, _ := b.many(1); count["503"] != 1 {
			t.Errorf("%v", count)
		}
	})
}
