package filter

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/meshtest/certs"
	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/http1"
	"github.com/heddle-mesh/heddle/internal/proxy/mtls"
	"github.com/heddle-mesh/heddle/internal/proxy/route"
	"github.com/heddle-mesh/heddle/internal/proxy/socket"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
)

// The tests of this file use the kernel's sockets, because what they hold to
// depends on them: waiting without memory, and TLS.

type kernel struct{}

func (kernel) Listen(context.Context, netip.AddrPort) (net.Listener, error) {
	return nil, net.ErrClosed
}

func (kernel) Dial(ctx context.Context, _ netip.Addr, addr netip.AddrPort) (net.Conn, error) {
	return socket.System{}.Dial(ctx, netip.Addr{}, addr)
}

func (kernel) OriginalDst(net.Conn) (netip.AddrPort, bool) { return netip.AddrPort{}, false }

// onSockets starts a proxy before a server of net/http and returns the proxy's
// address. accept may wrap the client's connections.
func onSockets(t *testing.T, h http.HandlerFunc, cfg upstream.Config, edit func(*plan.Cluster, *plan.LoadAssignment),
	serverTLS *tls.Config, accept func(net.Conn) net.Conn) string {
	t.Helper()
	addr, _, _ := proxyOnSockets(t, h, cfg, edit, serverTLS, accept)
	return addr
}

// proxyOnSockets returns the proxy and its route table, too.
func proxyOnSockets(t *testing.T, h http.HandlerFunc, cfg upstream.Config, edit func(*plan.Cluster, *plan.LoadAssignment),
	serverTLS *tls.Config, accept func(net.Conn) net.Conn) (string, *Server, *atomic.Pointer[route.Table]) {
	t.Helper()
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	var wg sync.WaitGroup
	app := &http.Server{Handler: h, Protocols: bothProtocols(), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	// A server's connections outlive Close: it waits before it closes on a client that
	// still sends.
	app.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			wg.Add(1)
		case http.StateClosed, http.StateHijacked:
			wg.Done()
		}
	}
	al := listen()
	addr := al.Addr().(*net.TCPAddr).AddrPort()
	if serverTLS != nil {
		al = tls.NewListener(al, serverTLS)
	}
	wg.Go(func() { app.Serve(al) })

	cfg.Network = kernel{}
	set := upstream.NewSet(cfg)
	c := &plan.Cluster{Name: "c"}
	la := &plan.LoadAssignment{Localities: []plan.LocalityEndpoints{{Endpoints: []plan.Endpoint{{Address: addr}}}}}
	if edit != nil {
		edit(c, la)
	}
	set.Update(map[string]*plan.Cluster{"c": c}, map[string]*plan.LoadAssignment{"c": la})
	table, err := route.NewTable(&plan.RouteConfig{Hosts: []*plan.VirtualHost{{Domains: []string{"*"}, Routes: []*plan.Route{to("c")}}}})
	if err != nil {
		t.Fatal(err)
	}
	current := new(atomic.Pointer[route.Table])
	current.Store(table)
	s := NewServer(Config{Chain: &plan.HTTPChain{}, Routes: current.Load, Clusters: set, Budget: cfg.Budget})
	l := listen()
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn = socket.Wrap(conn)
			if accept != nil {
				conn = accept(conn)
			}
			wg.Go(func() { s.Serve(ctx, conn, &exchange.Conn{Local: addr}) })
		}
	})
	t.Cleanup(func() {
		cancel()
		l.Close()
		set.Close()
		app.Close()
		wg.Wait()
	})
	return l.Addr().String(), s, current
}

func TestManyRequestsOverSockets(t *testing.T) {
	ca := certs.New(t, "cluster.local")
	serverTLS := mtls.ServerConfig(ca.Source("s", "server"), &plan.ServerTLS{Certificate: "default", Roots: "ROOTCA", RequireCert: true, ALPN: []string{"http/1.1"}})
	clientTLS := func(p *plan.ClientTLS) *tls.Config { return mtls.ClientConfig(ca.Source("c", "client"), p) }
	front := mtls.ServerConfig(ca.Source("p", "proxy"), &plan.ServerTLS{Certificate: "default", Roots: "ROOTCA"})
	for name, secure := range map[string]bool{"plain": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			echo := func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				fmt.Fprintf(w, "%s %d", r.URL.Path, len(body))
			}
			var at string
			client := &http.Transport{}
			scheme := "http"
			if secure {
				scheme = "https"
				at = onSockets(t, echo, upstream.Config{TLS: clientTLS}, func(c *plan.Cluster, la *plan.LoadAssignment) {
					c.TLS = &plan.ClientTLS{Auto: true, Certificate: "default", Roots: "ROOTCA"}
					la.Localities[0].Endpoints[0].MTLS = true
				}, serverTLS, func(c net.Conn) net.Conn { return tls.Server(c, front) })
				client.TLSClientConfig = mtls.ClientConfig(ca.Source("c", "client"), &plan.ClientTLS{Certificate: "default", Roots: "ROOTCA", ALPN: []string{"http/1.1"}})
			} else {
				at = onSockets(t, echo, upstream.Config{}, nil, nil, nil)
			}
			defer client.CloseIdleConnections()
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					for j := range 50 {
						body := strings.Repeat("x", (i*j*997)%100_000)
						r, err := (&http.Client{Transport: client}).Post(fmt.Sprintf("%s://%s/%d/%d", scheme, at, i, j), "text/plain", strings.NewReader(body))
						if err != nil {
							t.Error(err)
							return
						}
						got, err := io.ReadAll(r.Body)
						r.Body.Close()
						if want := fmt.Sprintf("/%d/%d %d", i, j, len(body)); string(got) != want || err != nil {
							t.Errorf("got %q, %v, want %q", got, err, want)
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

func TestIdleConnectionsHoldNoBuffers(t *testing.T) {
	at := onSockets(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "x") }, upstream.Config{}, nil, nil, nil)
	const n = 300
	var conns []*bufio.ReadWriter
	heap := func() uint64 {
		for range 3 { // pools let go of their memory at the second
			runtime.GC()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for range n {
		c, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		rw := bufio.NewReadWriter(bufio.NewReaderSize(c, 16), bufio.NewWriterSize(c, 16))
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		r, err := http.ReadResponse(rw.Reader, nil)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, r.Body)
		conns = append(conns, rw)
	}
	// Both ends of each connection and the test's own reader are in this.
	const most = 6 << 10
	if per := (int64(heap()) - int64(before)) / n; per > most {
		t.Errorf("%d bytes for each idle connection, want at most %d", per, most)
	}
	runtime.KeepAlive(conns)
}

func TestLargeBodiesInFlatMemory(t *testing.T) {
	const size = 64 << 20
	at := onSockets(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		io.CopyBuffer(w, struct{ io.Reader }{r.Body}, make([]byte, 64<<10))
	}, upstream.Config{}, nil, nil, nil)
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	chunk := make([]byte, 64<<10)
	go func() {
		fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
		for range size / len(chunk) {
			fmt.Fprintf(c, "%x\r\n", len(chunk))
			c.Write(chunk)
			io.WriteString(c, "\r\n")
		}
		io.WriteString(c, "0\r\n\r\n")
	}()
	r, err := http.ReadResponse(bufio.NewReaderSize(c, 64<<10), nil)
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	n, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{r.Body}, make([]byte, 64<<10))
	runtime.ReadMemStats(&after)
	if n != size || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	if grown := after.TotalAlloc - before.TotalAlloc; grown > size/16 {
		t.Errorf("%d bytes were allocated for %d", grown, size)
	}
}

// bothProtocols are HTTP/1 and HTTP/2 without and with TLS.
func bothProtocols() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	p.SetHTTP2(true)
	p.SetUnencryptedHTTP2(true)
	return p
}

func TestBytesThatAreNotHTTPAreHandedBack(t *testing.T) {
	s := NewServer(Config{Chain: &plan.HTTPChain{}, Routes: func() *route.Table { return nil }, Clusters: upstream.NewSet(upstream.Config{Network: kernel{}})})
	for _, in := range []string{"\x16\x03\x01\x02\x00\x01\x00\x01", "\x00\x00"} {
		client, server := net.Pipe()
		go io.WriteString(client, in)
		err := s.Serve(t.Context(), server, &exchange.Conn{})
		e, ok := errors.AsType[*http1.NotHTTPError](err)
		if !ok || string(e.Read) != in || e.HTTP2 {
			t.Errorf("%q: %v, read %q", in, err, e.Read)
		}
		go server.Write([]byte("x")) // still open
		if _, err := io.ReadFull(client, make([]byte, 1)); err != nil {
			t.Errorf("%q: the connection: %v", in, err)
		}
		client.Close()
		server.Close()
	}
}

// peeked is a connection whose first bytes someone has read.
type peeked struct {
	net.Conn
	first []byte
}

func (p *peeked) Detach() (net.Conn, []byte) { return p.Conn, p.first }

func TestBytesReadBeforeAreServed(t *testing.T) {
	at := onSockets(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.URL.Path) }, upstream.Config{}, nil, nil, func(c net.Conn) net.Conn {
		first := make([]byte, 10)
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, _ := io.ReadFull(c, first)
		c.SetReadDeadline(time.Time{})
		return &peeked{c, first[:n]}
	})
	r, err := http.Get("http://" + at + "/path")
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	body, _ := io.ReadAll(r.Body)
	r.Body.Close()
	if string(body) != "/path" {
		t.Errorf("got %q", body)
	}
}
