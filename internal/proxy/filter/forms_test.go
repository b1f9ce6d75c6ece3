package filter

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/http2"
)

// The tests of this file take requests of HTTP/2 to upstreams of HTTP/2 in both forms:
// with a goroutine for each stream, and without. They must not differ.

// streamsBackend starts a server of the codec's that calls serve for each stream.
func (b *bed) streamsBackend(addr string, cfg http2.Config, serve func(*http2.Conn, *http2.Pipe)) netip.AddrPort {
	return b.backend(addr, func(c net.Conn) {
		cfg := cfg
		cfg.Conn = c
		var conn *http2.Conn
		cfg.Handler = http2.Blocking(func(p *http2.Pipe) { serve(conn, p) })
		conn = http2.NewServer(cfg)
		stop := context.AfterFunc(b.ctx, func() { conn.Close() })
		defer stop()
		conn.Run(context.Background())
	})
}

// dialStreams returns a running connection to the proxy.
func (b *bed) dialStreams() *http2.Conn {
	b.t.Helper()
	c, err := b.client.App().Dial(b.ctx, netip.Addr{}, proxyAddr)
	if err != nil {
		b.t.Fatal(err)
	}
	conn := http2.NewClient(http2.Config{Conn: c})
	b.wg.Go(func() { conn.Run(b.ctx) })
	context.AfterFunc(b.ctx, func() { conn.Close() })
	return conn
}

// saw is what a client saw of a stream.
type saw struct{ head, body, trailers, end string }

func (s saw) String() string { return strings.Join([]string{s.head, s.body, s.trailers, s.end}, " | ") }

// ask sends a request and notes everything that comes back.
func ask(t *testing.T, c *http2.Conn, method, path, body string, fields ...string) (out saw) {
	t.Helper()
	h := new(exchange.Header)
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		h.AddString(exchange.Identify([]byte(name)), name, value)
	}
	head := &http2.Head{Method: []byte(method), Scheme: []byte("http"), Authority: []byte("a.example"), Path: []byte(path), Header: h}
	now := min(len(body), 100<<10)
	p, err := c.OpenPipe(head, []byte(body[:now]), now == len(body))
	if err != nil {
		t.Error(err)
		return out
	}
	defer p.Close()
	if now == len(body) {
		return hear(p)
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		if _, err := io.WriteString(p, body[now:]); err == nil {
			p.CloseWrite()
		}
	}()
	out = hear(p)
	p.SetDeadline(time.Now())
	<-sent
	return out
}

func hear(p *http2.Pipe) (out saw) {
	for {
		h, bare, err := p.ReadHead()
		if err != nil {
			out.end = err.Error()
			return out
		}
		out.head += fmt.Sprintf("%d %s", h.Status, h.Header.AppendTo(nil))
		if h.Status < 200 {
			continue
		}
		if !bare {
			b, err := io.ReadAll(p.Body())
			if len(b) > 0 { // who has nothing to send may say so late
				out.body = fmt.Sprintf("%d bytes %.20q", len(b), b)
			}
			if err != nil {
				out.end = err.Error()
			}
			if t := p.Body().Trailers(); t != nil {
				out.trailers = string(t.AppendTo(nil))
			}
		}
		return out
	}
}

// outcomes are requests by their path, what the upstream does with them the first
// time, and from then on.
func outcomes(tries *atomic.Int64) func(*http2.Conn, *http2.Pipe) {
	text := func(fields ...string) *exchange.Header {
		h := new(exchange.Header)
		for _, f := range fields {
			name, value, _ := strings.Cut(f, ": ")
			h.AddString(exchange.Identify([]byte(name)), name, value)
		}
		return h
	}
	return func(c *http2.Conn, p *http2.Pipe) {
		path, first := string(p.Request.Path), tries.Add(1) == 1
		head := func(status int, end bool, fields ...string) {
			p.WriteHead(&http2.Head{Status: status, Header: text(fields...)}, end)
		}
		trailers := func(fields ...string) { p.WriteTrailers(&http2.Head{Header: text(fields...)}) }
		switch {
		case path == "/echo":
			head(200, false, "content-type: text/plain", "x-method: "+string(p.Request.Method))
			io.Copy(p, p.Body())
			p.CloseWrite()
		case path == "/empty":
			head(204, true)
		case path == "/hints":
			head(103, false, "link: </a>")
			head(200, true, "x-a: b")
		case path == "/grpc":
			io.Copy(io.Discard, p.Body())
			head(200, false, "content-type: application/grpc")
			p.Write([]byte("\x00\x00\x00\x00\x02hi\x00\x00\x00\x00\x00"))
			trailers("grpc-status: 5", "grpc-message: no")
		case path == "/unavailable" && first:
			head(200, true, "content-type: application/grpc", "grpc-status: 14")
		case path == "/refused" && first, path == "/refuses":
			p.Stream().Reset(nil, http2.RefusedStream)
		case path == "/reset":
			p.Stream().Reset(nil, http2.InternalError)
		case path == "/503" && first:
			head(503, true)
		case path == "/503s":
			head(503, false)
			p.Write([]byte("sorry"))
			p.CloseWrite()
		case path == "/cut":
			head(200, false)
			p.Write([]byte("so far"))
			time.Sleep(time.Second)
			p.Stream().Reset(nil, http2.InternalError)
		case path == "/closes":
			c.Close()
		case path == "/slow":
			io.Copy(io.Discard, p.Body())
			p.Read(make([]byte, 1))
			time.Sleep(time.Minute)
		case path == "/stuck":
			head(200, false)
			p.Write([]byte("so far"))
			time.Sleep(time.Minute)
		default:
			io.Copy(io.Discard, p.Body())
			head(200, false, "x-again: yes")
			p.Write([]byte("second"))
			p.CloseWrite()
		}
	}
}

var (
	times  = regexp.MustCompile(`\[\d{4}[^\]]*\]`)
	ids    = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}`)
	locals = regexp.MustCompile(`10\.0\.0\.1:3\d{4}|10\.0\.0\.9:\d+`)
	// sameLabels are those that do not depend on the request.
	sameLabels = regexp.MustCompile(`(reporter|source_\w+|destination_\w+|connection_\w+)="[^"]*",?`)
	dates      = regexp.MustCompile(`date: [^\r]*`)
)

func TestBothFormsOfAStreamAreTheSame(t *testing.T) {
	retry := &plan.Retry{On: []string{"connect-failure", "refused-stream", "unavailable", "cancelled", "retriable-status-codes"}, Codes: []uint32{503}, Attempts: 2, HostReopen: 5}
	for _, k := range []struct {
		name, method, path string
		size               int
		fields             []string
		route              plan.Route
	}{
		{name: "small", method: "GET", path: "/echo"},
		{name: "body", method: "POST", path: "/echo", size: 1000},
		{name: "large body", method: "POST", path: "/echo", size: 3 << 20},
		{name: "no body", method: "GET", path: "/empty"},
		{name: "head", method: "HEAD", path: "/echo"},
		{name: "interim", method: "GET", path: "/hints"},
		{name: "gRPC", method: "POST", path: "/grpc", size: 205, fields: []string{"content-type: application/grpc", "te: trailers"}},
		{name: "gRPC tried again", method: "POST", path: "/unavailable", size: 205, fields: []string{"content-type: application/grpc"}, route: plan.Route{Retry: retry}},
		{name: "refused, tried again", method: "POST", path: "/refused", size: 100, route: plan.Route{Retry: retry}},
		{name: "refused for ever", method: "GET", path: "/refuses", route: plan.Route{Retry: retry}},
		{name: "refused, no policy", method: "GET", path: "/refuses"},
		{name: "reset", method: "GET", path: "/reset"},
		{name: "reset, gRPC", method: "POST", path: "/reset", size: 5, fields: []string{"content-type: application/grpc"}},
		{name: "503, tried again", method: "POST", path: "/503", size: 10, route: plan.Route{Retry: retry}},
		{name: "503 for ever", method: "GET", path: "/503s", route: plan.Route{Retry: retry}},
		{name: "503, no policy", method: "GET", path: "/503s"},
		{name: "cut short", method: "GET", path: "/cut"},
		{name: "closed", method: "POST", path: "/closes", size: 1},
		{name: "timeout", method: "GET", path: "/slow", route: plan.Route{Timeout: time.Second}},
		{name: "timeout of gRPC's own", method: "POST", path: "/slow", size: 5, fields: []string{"content-type: application/grpc", "grpc-timeout: 300m"}, route: plan.Route{Timeout: time.Second}},
		{name: "timeout of each try", method: "GET", path: "/slow", route: plan.Route{Retry: &plan.Retry{On: []string{"5xx"}, Attempts: 1, PerTry: time.Second}}},
		{name: "timeout in the body", method: "GET", path: "/stuck", route: plan.Route{Timeout: time.Second}},
		{name: "direct", method: "GET", path: "/direct", route: plan.Route{Direct: &plan.DirectResponse{Status: 418, Body: "short and stout"}}},
		{name: "bad path", method: "GET", path: "/a%00"},
		{name: "rewritten, tried again", method: "GET", path: "/old/503", route: plan.Route{Retry: retry, PrefixRewrite: "/"}},
		{name: "panic", method: "GET", path: "/panic"},
	} {
		t.Run(k.name, func(t *testing.T) {
			var seen [2]string
			for form, blocking := range []bool{true, false} {
				inBubble(t, func(b *bed) {
					var tries atomic.Int64
					c := b.cluster("c", b.streamsBackend("10.0.1.1:80", http2.Config{}, outcomes(&tries)))
					c.Protocol = plan.HTTP2
					r := k.route
					r.Name = "r"
					r.Match.Path = plan.PathMatch{Value: "/"}
					if k.route.PrefixRewrite != "" {
						r.Match.Path.Value = "/old/"
					}
					if r.Direct == nil {
						r.Clusters = to("c").Clusters
					}
					warm := to("c")
					warm.Match.Path = plan.PathMatch{Kind: plan.PathExact, Value: "/warm"}
					b.config = func(c *Config) { c.Random = func() uint64 { return 1 } }
					b.start(warm, &r)
					b.server.chain.waits = []func() bool{func() bool { return blocking }}
					b.server.chain.filters = append(b.server.chain.filters, Filter{Request: func(x *exchange.Exchange) {
						if string(x.Request.Path) == "/panic" {
							panic("test")
						}
					}})
					client := b.dialStreams()
					ask(t, client, "GET", "/warm", "") // there is a connection to the upstream
					synctest.Wait()
					tries.Store(0)
					before := time.Now()
					out := ask(t, client, k.method, k.path, strings.Repeat("x", k.size), append(k.fields, "x-request-id: 1", "user-agent: t")...)
					took := time.Since(before)
					log := b.logged()
					log = log[strings.Index(log, "\n")+1:]
					log = regexp.MustCompile(` \d+ "`).ReplaceAllString(log, ` ms "`)
					var metrics strings.Builder
					b.metrics.WritePrometheus(&metrics)
					var counted []string
					for _, l := range strings.Split(metrics.String(), "\n") {
						if strings.HasPrefix(l, "istio_") && !strings.Contains(l, "milliseconds") && !strings.Contains(l, "_bucket") {
							counted = append(counted, sameLabels.ReplaceAllString(l, ""))
						}
					}
					e := b.set.Status()[0].Endpoints[0].Counts
					text := fmt.Sprintf("%s\ntook %v, %d tries\n%s\n%s\n%+v active %d", dates.ReplaceAllString(out.String(), "date"), took, tries.Load(), log, strings.Join(counted, "\n"), e.RqError, e.RqActive)
					for _, re := range []*regexp.Regexp{times, ids, locals} {
						text = re.ReplaceAllString(text, "…")
					}
					text = regexp.MustCompile(`x-envoy-upstream-service-time: \d+`).ReplaceAllString(text, "service-time")
					seen[form] = text
					if n := b.server.Panics(); (n > 0) != (k.path == "/panic") {
						t.Errorf("%d panics", n)
					}
				})
			}
			if seen[0] != seen[1] {
				t.Errorf("with a goroutine:\n%s\nwithout:\n%s", seen[0], seen[1])
			}
		})
	}
}
