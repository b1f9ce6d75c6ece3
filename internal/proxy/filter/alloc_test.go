//go:build !race

// The race detector makes pools forget at random.

package filter

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/route"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
	"github.com/heddle-mesh/heddle/internal/telemetry"
)

// pipe is one direction of a connection in memory that allocates nothing.
type pipe struct {
	mu     sync.Mutex
	cond   sync.Cond
	b      []byte
	from   int
	closed bool
	past   bool // the read deadline
}

func newPipe() *pipe {
	p := &pipe{b: make([]byte, 0, 64<<10)}
	p.cond.L = &p.mu
	return p
}

func (p *pipe) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return 0, io.ErrClosedPipe
	}
	p.b = append(p.b, b...)
	p.cond.Broadcast()
	return len(b), nil
}

func (p *pipe) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.from == len(p.b) {
		if p.past {
			return 0, os.ErrDeadlineExceeded
		}
		if p.closed {
			return 0, io.EOF
		}
		p.cond.Wait()
	}
	n := copy(b, p.b[p.from:])
	if p.from += n; p.from == len(p.b) {
		p.b, p.from = p.b[:0], 0
	}
	return n, nil
}

func (p *pipe) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.cond.Broadcast()
}

type pipeConn struct{ in, out *pipe }

func newPipeConn() (a, b *pipeConn) {
	x, y := newPipe(), newPipe()
	return &pipeConn{x, y}, &pipeConn{y, x}
}

func (c *pipeConn) Read(b []byte) (int, error)  { return c.in.Read(b) }
func (c *pipeConn) Write(b []byte) (int, error) { return c.out.Write(b) }
func (c *pipeConn) Close() error                { c.in.close(); c.out.close(); return nil }
func (c *pipeConn) LocalAddr() net.Addr         { return &net.TCPAddr{} }
func (c *pipeConn) RemoteAddr() net.Addr        { return &net.TCPAddr{} }
func (c *pipeConn) SetDeadline(t time.Time) error {
	return c.SetReadDeadline(t)
}
func (c *pipeConn) SetWriteDeadline(time.Time) error { return nil }
func (c *pipeConn) SetReadDeadline(t time.Time) error {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	c.in.past = !t.IsZero() && t.Before(time.Now())
	c.in.cond.Broadcast()
	return nil
}

// pipeNetwork connects to a server that answers every read with the same bytes.
type pipeNetwork struct {
	reply []byte
	wg    *sync.WaitGroup
}

func (n pipeNetwork) Listen(context.Context, netip.AddrPort) (net.Listener, error) {
	return nil, net.ErrClosed
}

func (n pipeNetwork) Dial(context.Context, netip.Addr, netip.AddrPort) (net.Conn, error) {
	a, b := newPipeConn()
	n.wg.Go(func() {
		buf := make([]byte, 32<<10)
		for {
			if _, err := b.Read(buf); err != nil {
				return
			}
			b.Write(n.reply)
		}
	})
	return a, nil
}

func (n pipeNetwork) OriginalDst(net.Conn) (netip.AddrPort, bool) { return netip.AddrPort{}, false }

const benchHead = " HTTP/1.1\r\nHost: reviews.default.svc.cluster.local:9080\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n" +
	"Accept-Encoding: gzip\r\nX-Request-Id: 7a1d2b0e-0000-4000-8000-000000000000\r\nCookie: session=0123456789abcdef\r\n"

// steady is a connection to a proxy that has seen everything before.
type steady struct {
	conn    *pipeConn
	request []byte
	buf     []byte
}

func newSteady(tb testing.TB, direction plan.Direction, request, response string) *steady {
	var wg sync.WaitGroup
	set := upstream.NewSet(upstream.Config{Network: pipeNetwork{[]byte(response), &wg}})
	set.Update(map[string]*plan.Cluster{"c": {Name: "c", Service: plan.ServiceRef{Host: "h", Name: "n"}}},
		map[string]*plan.LoadAssignment{"c": {Localities: []plan.LocalityEndpoints{{Endpoints: []plan.Endpoint{
			{Address: netip.MustParseAddrPort("10.0.1.1:80"), Workload: plan.Workload{Name: "w"}}}}}}})
	table, err := route.NewTable(&plan.RouteConfig{Hosts: []*plan.VirtualHost{{Domains: []string{"*"}, Routes: []*plan.Route{to("c")}}}})
	if err != nil {
		tb.Fatal(err)
	}
	log := telemetry.NewLog(nowhere{})
	s := NewServer(Config{
		Chain: &plan.HTTPChain{Metrics: true}, Direction: direction, Routes: func() *route.Table { return table },
		Clusters: set, Metrics: telemetry.NewRegistry(), Log: log, OwnMetadata: "bWV0YWRhdGE=", OwnMetadataID: "id",
	})
	client, server := newPipeConn()
	wg.Go(func() { s.Serve(context.Background(), server, &exchange.Conn{Local: proxyAddr, Direction: direction}) })
	tb.Cleanup(func() {
		client.Close()
		set.Close()
		wg.Wait()
		log.Flush()
	})
	return &steady{conn: client, request: []byte(request), buf: make([]byte, 64<<10)}
}

type nowhere struct{}

func (nowhere) Write(p []byte) (int, error) { return len(p), nil }
func (nowhere) Close() error                { return nil }

// one makes a request and reads until the response's body is there.
func (s *steady) one(tb testing.TB, end string) {
	if _, err := s.conn.Write(s.request); err != nil {
		tb.Fatal(err)
	}
	for n := 0; ; {
		k, err := s.conn.Read(s.buf[n:])
		if err != nil {
			tb.Fatalf("%v after %q", err, s.buf[:n])
		}
		if n += k; n >= len(end) && string(s.buf[n-len(end):n]) == end {
			return
		}
	}
}

var steadyCases = map[string]struct {
	direction              plan.Direction
	request, response, end string
}{
	"GET": {plan.Outbound, "GET /api/v1/reviews" + benchHead + "\r\n", "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello", "hello"},
	"POST": {plan.Outbound, "POST /api" + benchHead + "Content-Length: 4\r\n\r\nbody",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello"},
	"chunked": {plan.Outbound, "POST /api" + benchHead + "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "0\r\n\r\n"},
	"inbound": {plan.Inbound, "GET /a/../b" + benchHead + "X-Envoy-Peer-Metadata: \r\nX-Envoy-Peer-Metadata-Id: me\r\n\r\n",
		"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello", "hello"},
}

func TestSteadyStateAllocatesNothing(t *testing.T) {
	for name, c := range steadyCases {
		t.Run(name, func(t *testing.T) {
			s := newSteady(t, c.direction, c.request, c.response)
			for range 100 {
				s.one(t, c.end)
			}
			// The access log's buffer grows now and then, which is not per request.
			if n := testing.AllocsPerRun(500, func() { s.one(t, c.end) }); n != 0 {
				t.Errorf("%v allocations per request", n)
			}
		})
	}
}

func BenchmarkExchange(b *testing.B) {
	for name, c := range steadyCases {
		b.Run(name, func(b *testing.B) {
			s := newSteady(b, c.direction, c.request, c.response)
			b.ReportAllocs()
			for b.Loop() {
				s.one(b, c.end)
			}
		})
	}
}
