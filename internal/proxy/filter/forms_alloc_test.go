//go:build !race

package filter

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/http2"
	"github.com/heddle-mesh/heddle/internal/proxy/route"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
	"github.com/heddle-mesh/heddle/internal/telemetry"
)

// unary is both ends of gRPC calls: it answers each request as it ends, and tells when
// a response did. It allocates nothing.
type unary struct {
	head, trailers *http2.Head
	body           []byte
	done           chan string
}

func fieldsOf(list ...string) *exchange.Header {
	h := new(exchange.Header)
	for i := 0; i < len(list); i += 2 {
		h.AddString(exchange.Identify([]byte(list[i])), list[i], list[i+1])
	}
	return h
}

func newUnary(n int) *unary {
	u := &unary{body: make([]byte, 5+n), done: make(chan string, 1)}
	u.body[3], u.body[4] = byte(n>>8), byte(n)
	u.head = &http2.Head{Status: 200, Header: fieldsOf("content-type", "application/grpc", "server", "unary")}
	u.trailers = &http2.Head{Header: fieldsOf("grpc-status", "0")}
	return u
}

func (u *unary) OnHeaders(b *http2.Batch, s *http2.Stream, h *http2.Head, end bool) {
	if h.Status == 0 && end {
		u.answer(b, s)
	} else if end {
		u.ended(b, s, "")
	}
}

func (u *unary) OnData(b *http2.Batch, s *http2.Stream, p []byte, end bool) {
	s.Consume(b, len(p))
	if end {
		u.answer(b, s)
	}
}

func (u *unary) answer(b *http2.Batch, s *http2.Stream) {
	s.SendHead(b, u.head, false)
	s.SendData(b, u.body, false)
	s.SendHead(b, u.trailers, true)
	s.Release(b)
}

func (u *unary) OnTrailers(b *http2.Batch, s *http2.Stream, h *http2.Head) { u.ended(b, s, "") }

func (u *unary) ended(b *http2.Batch, s *http2.Stream, why string) {
	s.Release(b)
	u.done <- why
}

func (u *unary) OnReset(b *http2.Batch, s *http2.Stream, r http2.Reset) {
	if s.ID()%2 == 1 && u.done != nil {
		u.ended(b, s, r.Reason)
	}
}

func (u *unary) OnWindow(*http2.Batch, *http2.Stream, int) {}

func TestStreamsWithoutGoroutinesAllocateNothing(t *testing.T) {
	for _, retry := range []*plan.Retry{nil, defaultRetry} {
		t.Run(fmt.Sprint("retry ", retry != nil), func(t *testing.T) {
			var wg sync.WaitGroup
			ctx, stop := context.WithCancel(t.Context())
			listen := func(serve func(net.Conn)) *net.TCPAddr {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				context.AfterFunc(ctx, func() { l.Close() })
				wg.Go(func() {
					for {
						c, err := l.Accept()
						if err != nil {
							return
						}
						wg.Go(func() { serve(c) })
					}
				})
				return l.Addr().(*net.TCPAddr)
			}
			up := newUnary(1000)
			backend := listen(func(c net.Conn) { http2.NewServer(http2.Config{Conn: c, Handler: up}).Run(ctx) })
			set := upstream.NewSet(upstream.Config{Network: kernel{}})
			set.Update(map[string]*plan.Cluster{"c": {Name: "c", Protocol: plan.HTTP2, Service: plan.ServiceRef{Host: "h", Name: "n"}}},
				map[string]*plan.LoadAssignment{"c": {Localities: []plan.LocalityEndpoints{{Endpoints: []plan.Endpoint{
					{Address: backend.AddrPort(), Workload: plan.Workload{Name: "w"}}}}}}})
			r := to("c")
			r.Retry = retry
			table, err := route.NewTable(&plan.RouteConfig{Hosts: []*plan.VirtualHost{{Domains: []string{"*"}, Routes: []*plan.Route{r}}}})
			if err != nil {
				t.Fatal(err)
			}
			log := telemetry.NewLog(nowhere{})
			s := NewServer(Config{Chain: &plan.HTTPChain{Metrics: true}, Direction: plan.Outbound, Routes: func() *route.Table { return table },
				Clusters: set, Metrics: telemetry.NewRegistry(), Log: log, OwnMetadata: "bWV0YWRhdGE=", OwnMetadataID: "id"})
			proxy := listen(func(c net.Conn) { s.Serve(ctx, c, &exchange.Conn{Local: proxyAddr, Direction: plan.Outbound}) })
			nc, err := net.Dial("tcp", proxy.String())
			if err != nil {
				t.Fatal(err)
			}
			client := http2.NewClient(http2.Config{Conn: nc})
			wg.Go(func() { client.Run(ctx) })
			defer wg.Wait()
			defer set.Close()
			defer client.Close()
			defer stop()

			u := newUnary(1000)
			head := &http2.Head{Method: []byte("POST"), Scheme: []byte("http"), Authority: []byte("h"), Path: []byte("/s.S/M"),
				Header: fieldsOf("content-type", "application/grpc", "te", "trailers", "user-agent", "test", "x-request-id", "7a1d2b0e-0000-4000-8000-000000000000")}
			var b http2.Batch
			one := func() {
				st, err := client.Open(&b, head, false, u)
				if err != nil {
					t.Fatal(err)
				}
				st.SendData(&b, u.body, true)
				b.Flush()
				if why := <-u.done; why != "" {
					t.Fatal(why)
				}
			}
			for range 200 {
				one()
			}
			if n := testing.AllocsPerRun(500, one); n != 0 {
				t.Errorf("%v allocations per call", n)
			}
		})
	}
}
