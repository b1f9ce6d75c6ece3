package tcp

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/meshtest/certs"
	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/mtls"
	"github.com/heddle-mesh/heddle/internal/proxy/socket"
)

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

// pair starts a client's and a server's sidecar with mutual TLS between them, on
// the kernel's sockets, and returns where the client connects.
func pair(t *testing.T, app netip.AddrPort) (src, dst *proxied) {
	ca := certs.New(t, "cluster.local")
	client, db := ca.Source("default", "client"), ca.Source("default", "db")
	dst = start(t, socket.System{}, loopback, cluster(nil), endpointsOf(app), plainChain(), db, func(c *Config) { c.Direction = plan.Inbound },
		mtls.ServerConfig(db, &plan.ServerTLS{Certificate: "default", Roots: "ROOTCA", RequireCert: true, ALPN: []string{"istio"}}))
	src = start(t, socket.System{}, loopback, cluster(func(c *plan.Cluster) {
		c.TLS = &plan.ClientTLS{Certificate: "default", Roots: "ROOTCA", SNI: "db", ALPN: []string{"istio"}}
	}), endpointsOf(dst.listen), plainChain(), client, nil, nil)
	return src, dst
}

// ways runs a test with one proxy on plain sockets, whose bytes stay in the kernel,
// and with a pair of them.
func ways(t *testing.T, test func(t *testing.T, serve func(handle func(net.Conn)) (addr netip.AddrPort, served func() error))) {
	t.Run("plain", func(t *testing.T) {
		test(t, func(handle func(net.Conn)) (netip.AddrPort, func() error) {
			p := start(t, socket.System{}, loopback, cluster(nil), endpointsOf(serve(t, socket.System{}, loopback, handle)), plainChain(), nil, nil, nil)
			return p.listen, func() error { return <-p.served }
		})
	})
	t.Run("mutual TLS", func(t *testing.T) {
		test(t, func(handle func(net.Conn)) (netip.AddrPort, func() error) {
			src, dst := pair(t, serve(t, socket.System{}, loopback, handle))
			return src.listen, func() error { return errors.Join(<-src.served, <-dst.served) }
		})
	})
}

// noise is bytes of which no piece is like another one.
func noise(n int) []byte {
	b := make([]byte, 0, n+sha256.Size)
	for sum := sha256.Sum256(nil); len(b) < n; sum = sha256.Sum256(sum[:]) {
		b = append(b, sum[:]...)
	}
	return b[:n]
}

func TestManyBytesPassBothWaysUnchanged(t *testing.T) {
	ways(t, func(t *testing.T, serve func(func(net.Conn)) (netip.AddrPort, func() error)) {
		up, down := noise(5<<20+1), noise(3<<20+7)
		got := make(chan []byte, 1)
		addr, served := serve(func(c net.Conn) {
			var wg sync.WaitGroup
			wg.Go(func() {
				b, err := io.ReadAll(c)
				if err != nil {
					t.Error(err)
				}
				got <- b
			})
			// Pieces of all sizes around those of buffers and records.
			for rest, n := down, 1; len(rest) > 0; n = n*3%70_001 + 1 {
				m, err := c.Write(rest[:min(n, len(rest))])
				if err != nil {
					t.Error(err)
					break
				}
				rest = rest[m:]
			}
			plain(c).CloseWrite()
			wg.Wait()
		})
		c := dial(t, socket.System{}, addr)
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.Write(up); err != nil {
				t.Error(err)
			}
			plain(c).CloseWrite()
		})
		b, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(b, down) {
			t.Errorf("client got %d bytes, %v, want the server's %d", len(b), err, len(down))
		}
		if b := <-got; !bytes.Equal(b, up) {
			t.Errorf("server got %d bytes, want the client's %d", len(b), len(up))
		}
		wg.Wait()
		if err := served(); err != nil {
			t.Error(err)
		}
	})
}

// A client that has said all it has to say may go on listening. If it then breaks
// off, nobody reads from it, and the server has to hear all the same.
func TestResetAfterTheEndOfOneDirectionIsPassedOn(t *testing.T) {
	for _, first := range []string{"client", "server"} {
		t.Run(first+" ends, then resets", func(t *testing.T) {
			ways(t, func(t *testing.T, serve func(func(net.Conn)) (netip.AddrPort, func() error)) {
				held := make(chan net.Conn, 1)
				ended, over := make(chan struct{}), make(chan struct{})
				defer close(over)
				addr, served := serve(func(c net.Conn) {
					held <- c
					<-over
				})
				client := dial(t, socket.System{}, addr)
				if _, err := io.WriteString(client, "x"); err != nil { // the way to the server is open
					t.Fatal(err)
				}
				server := <-held
				if _, err := io.ReadFull(server, make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
				breaks, hears := client, server
				if first == "server" {
					breaks, hears = server, client
				}
				go func() {
					defer close(ended)
					if n, err := hears.Read(make([]byte, 1)); n != 0 || err != io.EOF {
						t.Errorf("read %d bytes, %v, want the end", n, err)
					}
				}()
				plain(breaks).CloseWrite()
				<-ended
				plain(breaks).SetLinger(0)
				breaks.Close()
				if err := broken(plain(hears)); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("the other side sees %v, want a reset", err)
				}
				if served() == nil {
					t.Error("Serve = nil, want an error")
				}
			})
		})
	}
}

func TestResetPassesThroughMutualTLS(t *testing.T) {
	held := make(chan net.Conn, 1)
	over := make(chan struct{})
	defer close(over)
	src, dst := pair(t, serve(t, socket.System{}, loopback, func(c net.Conn) {
		held <- c
		<-over
	}))
	for _, side := range []string{"client", "server"} {
		client := dial(t, socket.System{}, src.listen)
		io.WriteString(client, "x")
		server := <-held
		io.ReadFull(server, make([]byte, 1))
		breaks, hears := client, server
		if side == "server" {
			breaks, hears = server, client
		}
		plain(breaks).SetLinger(0)
		breaks.Close()
		if _, err := hears.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("reset by the %s: the other side sees %v, want a reset", side, err)
		}
		if <-src.served == nil || <-dst.served == nil {
			t.Errorf("reset by the %s: Serve = nil, want an error", side)
		}
	}
}

func TestIdleTimeoutEndsHalfClosedConnections(t *testing.T) {
	over := make(chan struct{})
	defer close(over)
	server := serve(t, socket.System{}, loopback, func(c net.Conn) {
		io.Copy(io.Discard, c)
		<-over
	})
	chain := plainChain()
	chain.IdleTimeout = 30 * time.Millisecond
	p := start(t, socket.System{}, loopback, cluster(nil), endpointsOf(server), chain, nil, nil, nil)
	c := dial(t, socket.System{}, p.listen)
	plain(c).CloseWrite()
	if b, err := io.ReadAll(c); err != nil || len(b) > 0 {
		t.Errorf("got %q, %v, want an orderly end", b, err)
	}
	if err := <-p.served; !errors.Is(err, errIdle) {
		t.Errorf("Serve = %v, want the idle timeout", err)
	}
}

// Where no pipe is to be had, bytes take the way through the process.
func TestWithoutPipesBytesAreCopied(t *testing.T) {
	a, b := sockets(t)
	c, d := sockets(t)
	client, server := newEnd(b), newEnd(c)
	if client.socket == nil || server.socket == nil {
		t.Fatal("no sockets were found")
	}
	r := &relay{client: client, server: server, idle: time.Hour, count: func(int64, int64) {}}
	want := noise(1 << 20)
	var wg sync.WaitGroup
	wg.Go(func() {
		a.Write(want)
		a.CloseWrite()
	})
	wg.Go(func() {
		if err := r.through(&r.client, &r.server, func(int64) {}); err != nil {
			t.Error(err)
		}
		c.CloseWrite()
	})
	got, err := io.ReadAll(d)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, %v, want %d", len(got), err, len(want))
	}
	wg.Wait()
}

func TestPipesAreKeptUpToABound(t *testing.T) {
	var l pipeList
	var all []pipe
	for range idlePipes + 3 {
		p, err := l.get()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	for _, p := range all {
		l.put(p)
	}
	if len(l.free) != idlePipes {
		t.Errorf("%d pipes are kept, want %d", len(l.free), idlePipes)
	}
	for _, p := range all[idlePipes:] {
		if _, err := syscall.Write(p.w, []byte("x")); err != syscall.EBADF {
			t.Errorf("a pipe too many is open: %v", err)
		}
	}
	for _, p := range l.free {
		p.close()
	}
}

// plain returns the net package's connection of a socket.
func plain(c net.Conn) *net.TCPConn {
	if p, ok := c.(interface{ Plain() *net.TCPConn }); ok {
		return p.Plain()
	}
	return c.(*net.TCPConn)
}

// sockets returns both ends of a connection.
func sockets(t *testing.T) (dialled, accepted *net.TCPConn) {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(loopback))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialled, err = net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	accepted, err = l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialled.Close(); accepted.Close() })
	return dialled, accepted
}
