package simnet

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/heddle-mesh/heddle/internal/proxy/socket"
	"github.com/heddle-mesh/heddle/internal/redirect"
)

var _ socket.Network = (*View)(nil)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var anyAddr netip.Addr

func addr(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// pair is a connection between two hosts.
func pair(t *testing.T, c Config) (client, server *Conn, n *Net, hosts [2]*Host) {
	t.Helper()
	n = New(c)
	a, b := n.Host("a", "10.0.0.1"), n.Host("b", "10.0.0.2")
	client, server = connect(t, a, b)
	return client, server, n, [2]*Host{a, b}
}

func connect(t *testing.T, a, b *Host) (client, server *Conn) {
	t.Helper()
	l, err := b.App().Listen(t.Context(), addr("10.0.0.2:80"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := a.App().Dial(t.Context(), anyAddr, addr("10.0.0.2:80"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c.(*Conn), s.(*Conn)
}

func TestEchoTakesTheLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		c, s, _, _ := pair(t, Config{Latency: 10 * time.Millisecond})
		if d := time.Since(start); d != 20*time.Millisecond {
			t.Errorf("connecting took %v, want one round trip", d)
		}
		if got := c.RemoteAddr().(*net.TCPAddr).String(); got != "10.0.0.2:80" {
			t.Errorf("client's peer is %s", got)
		}
		if c.LocalAddr().String() != s.RemoteAddr().String() || s.LocalAddr().String() != "10.0.0.2:80" {
			t.Errorf("server is %v, its peer %v, the client %v", s.LocalAddr(), s.RemoteAddr(), c.LocalAddr())
		}
		go io.Copy(s, s)
		start = time.Now()
		b := make([]byte, 5)
		c.Write([]byte("hello"))
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" || time.Since(start) != 20*time.Millisecond {
			t.Errorf("%q, %v after %v", b, err, time.Since(start))
		}
		c.Close()
		s.Close()
	})
}

func TestMuchDataKeepsItsOrderAndWritersWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, _, _ := pair(t, Config{Latency: time.Millisecond, Buffer: 1000})
		want := make([]byte, 1<<20)
		for i := range want {
			want[i] = byte(i * i >> 3)
		}
		done := false
		var wg sync.WaitGroup
		wg.Go(func() {
			for b := want; len(b) > 0; b = b[min(777, len(b)):] {
				must(c.Write(b[:min(777, len(b))]))
			}
			c.CloseWrite()
			done = true
		})
		synctest.Wait()
		if done {
			t.Error("a megabyte fitted into a buffer of 1000 bytes")
		}
		got := must(io.ReadAll(s))
		if !bytes.Equal(got, want) {
			t.Errorf("read %d bytes that differ from the %d written", len(got), len(want))
		}
		wg.Wait()
		c.Close()
		s.Close()
	})
}

func TestHalfClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, _, _ := pair(t, Config{Latency: time.Millisecond})
		must(c.Write([]byte("request")))
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if b := must(io.ReadAll(s)); string(b) != "request" {
			t.Errorf("server read %q", b)
		}
		must(s.Write([]byte("answer")))
		s.Close()
		if b := must(io.ReadAll(c)); string(b) != "answer" {
			t.Errorf("client read %q", b)
		}
		if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("writing after CloseWrite: %v", err)
		}
		c.Close()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("reading after Close: %v", err)
		}
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("closing twice: %v", err)
		}
	})
}

func TestCloseRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, _, _ := pair(t, Config{Buffer: 10})
		must(c.Write([]byte("0123456789")))
		s.CloseRead()
		if _, err := s.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("reading after CloseRead: %v", err)
		}
		must(c.Write(make([]byte, 1000))) // nobody is held up
		must(s.Write([]byte("still")))
		s.Close()
		if b := must(io.ReadAll(c)); string(b) != "still" {
			t.Errorf("client read %q", b)
		}
		c.Close()
	})
}

func TestReset(t *testing.T) {
	// Each ends the server's side; then the client has read what came before, and
	// finds out.
	for _, test := range []struct {
		name        string
		end         func(c, s *Conn)
		read, write error
	}{
		{"linger 0", func(c, s *Conn) { s.SetLinger(0); s.Close() }, syscall.ECONNRESET, syscall.ECONNRESET},
		{"closed with bytes unread", func(c, s *Conn) { s.Close() }, syscall.ECONNRESET, syscall.ECONNRESET},
		{"closed", func(c, s *Conn) { s.Read(make([]byte, 100)); s.Close() }, io.EOF, nil},
		{"closed and written to", func(c, s *Conn) {
			s.Read(make([]byte, 100))
			s.Close()
			time.Sleep(10 * time.Millisecond)
			must(c.Write([]byte("x"))) // the first one cannot know
		}, io.EOF, syscall.EPIPE},
		{"closed while bytes were under way", func(c, s *Conn) {
			s.Read(make([]byte, 100))
			must(c.Write([]byte("late")))
			s.Close()
		}, io.EOF, syscall.EPIPE},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s, _, _ := pair(t, Config{Latency: time.Millisecond})
				must(c.Write([]byte("request")))
				must(s.Write([]byte("part")))
				time.Sleep(10 * time.Millisecond)
				test.end(c, s)
				time.Sleep(10 * time.Millisecond)
				b := make([]byte, 100)
				if n, err := c.Read(b); err != nil || string(b[:n]) != "part" {
					t.Errorf("first read: %q, %v", b[:n], err)
				}
				if _, err := c.Read(b); !errors.Is(err, test.read) {
					t.Errorf("read: %v, want %v", err, test.read)
				}
				if _, err := c.Write([]byte("x")); !errors.Is(err, test.write) {
					t.Errorf("write: %v, want %v", err, test.write)
				}
				c.Close()
			})
		})
	}
}

func TestResetWakesReaderAndWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, _, _ := pair(t, Config{Latency: 5 * time.Millisecond, Buffer: 10})
		start := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.Write(make([]byte, 100)); !errors.Is(err, syscall.ECONNRESET) || time.Since(start) != 1005*time.Millisecond {
				t.Errorf("write: %v after %v", err, time.Since(start))
			}
		})
		wg.Go(func() {
			if _, err := c.Read(make([]byte, 100)); !errors.Is(err, syscall.ECONNRESET) || time.Since(start) != 1005*time.Millisecond {
				t.Errorf("read: %v after %v", err, time.Since(start))
			}
		})
		time.Sleep(time.Second)
		s.SetLinger(0)
		s.Close()
		wg.Wait()
		c.Close()
	})
}

func TestCloseWakesOwnReaderAndWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, _, _ := pair(t, Config{Buffer: 10})
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.Write(make([]byte, 100)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("write: %v", err)
			}
		})
		wg.Go(func() {
			if _, err := c.Read(make([]byte, 100)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("read: %v", err)
			}
		})
		synctest.Wait()
		c.Close()
		wg.Wait()
		s.Close()
	})
}

func TestDeadlinesAreExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, _, _ := pair(t, Config{Buffer: 10})
		start := time.Now()
		c.SetDeadline(start.Add(3 * time.Second))
		if n, err := c.Write(make([]byte, 100)); n != 10 || !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != 3*time.Second {
			t.Errorf("write: %d, %v after %v", n, err, time.Since(start))
		}
		var nerr net.Error
		if _, err := c.Read(make([]byte, 1)); !errors.As(err, &nerr) || !nerr.Timeout() {
			t.Errorf("read past the deadline: %v", err)
		}
		c.SetReadDeadline(time.Time{})
		go func() {
			time.Sleep(4 * time.Second)
			c.SetReadDeadline(time.Unix(1, 0)) // what net/http does to stop a reader
		}()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != 7*time.Second {
			t.Errorf("read: %v after %v", err, time.Since(start))
		}
		c.Close()
		s.Close()
	})
}

func TestDialFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{Latency: time.Millisecond})
		a, b := n.Host("a", "10.0.0.1"), n.Host("b", "10.0.0.2")
		crashed := n.Host("crashed", "10.0.0.3")
		crashed.Crash()
		removed := n.Host("removed", "10.0.0.4")
		n.Remove(removed)
		for _, test := range []struct {
			name   string
			source string
			addr   string
			limit  time.Duration
			want   error
			after  time.Duration
		}{
			{"nobody listens", "", "10.0.0.2:80", 0, syscall.ECONNREFUSED, 2 * time.Millisecond},
			{"nobody listens on loopback", "", "127.0.0.1:80", 0, syscall.ECONNREFUSED, 0},
			{"no such host", "", "10.9.9.9:80", 0, syscall.EHOSTUNREACH, 0},
			{"removed", "", "10.0.0.4:80", 0, syscall.EHOSTUNREACH, 0},
			{"no IPv6 address", "", "[2001:db8::1]:80", 0, syscall.ENETUNREACH, 0},
			{"not its own source", "10.0.0.2", "10.0.0.2:80", 0, syscall.EADDRNOTAVAIL, 0},
			{"crashed, with a deadline", "", "10.0.0.3:80", 2 * time.Second, context.DeadlineExceeded, 2 * time.Second},
			{"crashed", "", "10.0.0.3:80", 0, syscall.ETIMEDOUT, synTimeout},
		} {
			start := time.Now()
			var source netip.Addr
			if test.source != "" {
				source = netip.MustParseAddr(test.source)
			}
			ctx, cancel := t.Context(), func() {}
			if test.limit > 0 {
				ctx, cancel = context.WithTimeout(ctx, test.limit)
			}
			_, err := a.App().Dial(ctx, source, addr(test.addr))
			cancel()
			if !errors.Is(err, test.want) || time.Since(start) != test.after {
				t.Errorf("%s: %v after %v, want %v after %v", test.name, err, time.Since(start), test.want, test.after)
			}
		}
		l := must(b.App().Listen(t.Context(), addr("0.0.0.0:80")))
		for _, taken := range []string{"10.0.0.2:80", "127.0.0.1:80", "[::]:80"} {
			if _, err := b.Proxy().Listen(t.Context(), addr(taken)); !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("second listener at %s: %v", taken, err)
			}
		}
		if _, err := b.App().Listen(t.Context(), addr("10.0.0.1:80")); !errors.Is(err, syscall.EADDRNOTAVAIL) {
			t.Errorf("listening at another's address: %v", err)
		}
		l.Close()
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept after close: %v", err)
		}
	})
}

func TestListenerClosedBeforeAccept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{})
		a := n.Host("a", "10.0.0.1")
		l := must(a.App().Listen(t.Context(), addr("127.0.0.1:0")))
		c := must(a.App().DialContext(t.Context(), "tcp", l.Addr().String()))
		l.Close()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read: %v", err)
		}
		c.Close()
	})
}

// Port 0 gives distinct ports, and the IPv6 wildcard hears IPv4, which it then
// reports in IPv6 form as the kernel does.
func TestListenEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{})
		a, b := n.Host("a", "10.0.0.1", "2001:db8::1"), n.Host("b", "10.0.0.2", "2001:db8::2")
		l1 := must(b.App().Listen(t.Context(), addr("[::]:0")))
		l2 := must(b.App().Listen(t.Context(), addr("[::]:0")))
		port := l1.Addr().(*net.TCPAddr).Port
		if port == l2.Addr().(*net.TCPAddr).Port {
			t.Error("two listeners have one port")
		}
		for _, host := range []string{"10.0.0.2", "[2001:db8::2]"} {
			c := must(a.App().DialContext(t.Context(), "tcp", fmt.Sprintf("%s:%d", host, port)))
			s := must(l1.Accept())
			if ip := s.LocalAddr().(*net.TCPAddr).IP; len(ip) != net.IPv6len {
				t.Errorf("local address %v has %d bytes", ip, len(ip))
			}
			if s.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap() != c.LocalAddr().(*net.TCPAddr).AddrPort().Addr() {
				t.Errorf("server's peer is %v, the client %v", s.RemoteAddr(), c.LocalAddr())
			}
			c.Close()
			s.Close()
		}
		l1.Close()
		l2.Close()
	})
}

func TestKillEndsConnectionsAsTheKernelDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, _, hosts := pair(t, Config{})
		l := must(hosts[1].Proxy().Listen(t.Context(), addr("10.0.0.2:81")))
		hosts[1].Kill()
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("peer of a killed host reads %v", err)
		}
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("killed host reads %v", err)
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("killed host accepts: %v", err)
		}
		c.Close()
		// It can start again.
		c, s = connect(t, hosts[0], hosts[1])
		hosts[1].Proxy().Kill()
		must(c.Write([]byte("x")))
		if _, err := s.Read(make([]byte, 1)); err != nil {
			t.Errorf("killing the proxy ended the application's connection: %v", err)
		}
		c.Close()
		s.Close()
	})
}

func TestCrashIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, _, hosts := pair(t, Config{Buffer: 10})
		hosts[1].Crash()
		c.SetDeadline(time.Now().Add(time.Hour))
		if _, err := c.Write([]byte("x")); err != nil {
			t.Errorf("write: %v", err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: %v, want silence", err)
		}
		c.Close()
	})
}

func TestPartitionHoldsBytesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, n, hosts := pair(t, Config{Latency: time.Millisecond})
		must(c.Write([]byte("before ")))
		time.Sleep(time.Second)
		n.Partition(hosts[0], hosts[1])
		must(c.Write([]byte("during")))
		c.CloseWrite()
		start := time.Now()
		go func() {
			time.Sleep(10 * time.Second)
			n.Heal(hosts[0], hosts[1])
		}()
		b := make([]byte, 100)
		if n, err := s.Read(b); string(b[:n]) != "before " || time.Since(start) != 0 {
			t.Errorf("%q, %v after %v", b[:n], err, time.Since(start))
		}
		l := must(hosts[1].App().Listen(t.Context(), addr("10.0.0.2:81")))
		var wg sync.WaitGroup
		wg.Go(func() {
			c := must(hosts[0].App().Dial(t.Context(), anyAddr, addr("10.0.0.2:81")))
			if d := time.Since(start); d != 10*time.Second+2*time.Millisecond {
				t.Errorf("connected after %v", d)
			}
			c.Close()
		})
		if b, err := io.ReadAll(s); string(b) != "during" || err != nil || time.Since(start) != 10*time.Second {
			t.Errorf("%q, %v after %v", b, err, time.Since(start))
		}
		wg.Wait()
		l.Close()
		c.Close()
		s.Close()
	})
}

// pod is a host with an application on 8080 and a sidecar's ports, all of which
// say who they are and what they were called as.
func pod(t *testing.T, n *Net, name string, addrs ...string) *Host {
	h := n.Host(name, addrs...)
	c := redirect.Default()
	c.DNS = true
	h.Redirect(redirect.Rules(c))
	serve(t, h.App(), "app", ":8080")
	serve(t, h.Proxy(), "outbound", ":15001")
	serve(t, h.Proxy(), "inbound", ":15006")
	serve(t, h.Proxy(), "metrics", ":15090")
	return h
}

func serve(t *testing.T, v *View, name, port string) {
	l := must(v.Listen(t.Context(), addr("[::]"+port)))
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			dst, ok := v.OriginalDst(c)
			if !ok {
				dst = netip.AddrPort{}
			}
			fmt.Fprintf(c, "%s %s %v", v.host.Name, name, dst)
			c.Close()
		}
	}()
}

func TestRedirect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{})
		a := pod(t, n, "a", "10.0.0.1", "2001:db8::1")
		pod(t, n, "b", "10.0.0.2", "2001:db8::2")
		n.Host("bare", "10.0.0.3")
		pass := netip.MustParseAddr("127.0.0.6")
		for _, test := range []struct {
			from     *View
			source   netip.Addr
			to, want string
		}{
			{from: a.App(), to: "10.96.0.1:80", want: "a outbound 10.96.0.1:80"},
			{from: a.App(), to: "10.0.0.2:8080", want: "a outbound 10.0.0.2:8080"},
			{from: a.App(), to: "[2001:db8::2]:8080", want: "a outbound [2001:db8::2]:8080"},
			{from: a.App(), to: "127.0.0.1:8080", want: "a app invalid AddrPort"},
			{from: a.App(), to: "10.0.0.1:8080", want: "a app invalid AddrPort"},
			{from: a.Proxy(), to: "10.0.0.2:8080", want: "b inbound 10.0.0.2:8080"},
			{from: a.Proxy(), to: "[2001:db8::2]:8080", want: "b inbound [2001:db8::2]:8080"},
			{from: a.Proxy(), to: "10.0.0.2:15090", want: "b metrics invalid AddrPort"},
			{from: a.Proxy(), to: "10.0.0.1:8080", want: "a inbound 10.0.0.1:8080"},
			{from: a.Proxy(), source: pass, to: "10.0.0.1:8080", want: "a app invalid AddrPort"},
		} {
			c, err := test.from.Dial(t.Context(), test.source, addr(test.to))
			if err != nil {
				t.Errorf("%s: %v", test.to, err)
				continue
			}
			if got := string(must(io.ReadAll(c))); got != test.want {
				t.Errorf("uid %d to %s: %q, want %q", test.from.uid, test.to, got, test.want)
			}
			if c.RemoteAddr().String() != test.to {
				t.Errorf("to %s: the client sees %v", test.to, c.RemoteAddr())
			}
			c.Close()
		}
		a.Redirect(redirect.Ruleset{})
		if _, err := a.App().Dial(t.Context(), anyAddr, addr("10.0.0.3:80")); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("without redirection: %v", err)
		}
	})
}

func TestPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{Latency: 5 * time.Millisecond})
		a, b := n.Host("a", "10.0.0.1"), n.Host("b", "10.0.0.2")
		s := must(b.App().ListenPacket(t.Context(), addr("[::]:53")))
		go func() {
			buf := make([]byte, 100)
			for {
				n, from, err := s.ReadFrom(buf)
				if err != nil {
					return
				}
				s.WriteTo(bytes.ToUpper(buf[:n]), from)
			}
		}()
		c := must(a.App().DialContext(t.Context(), "udp", "10.0.0.2:53"))
		if _, ok := c.(net.PacketConn); !ok {
			t.Error("a UDP socket is no net.PacketConn")
		}
		start := time.Now()
		must(c.Write([]byte("hello")))
		buf := make([]byte, 3)
		if n, err := c.Read(buf); string(buf[:n]) != "HEL" || err != nil || time.Since(start) != 10*time.Millisecond {
			t.Errorf("%q, %v after %v", buf[:n], err, time.Since(start))
		}
		n.Partition(a, b)
		must(c.Write([]byte("lost")))
		n.Heal(a, b)
		c.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := c.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("after a loss: %v", err)
		}
		c.SetDeadline(time.Time{})
		s.Close()
		must(c.Write([]byte("nobody")))
		if _, err := c.Read(buf); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("where nobody listens: %v", err)
		}
		go func() {
			time.Sleep(time.Second)
			c.Close()
		}()
		if _, err := c.Read(buf); !errors.Is(err, net.ErrClosed) {
			t.Errorf("closed: %v", err)
		}
	})
}

// One socket asks two servers, both of which are the sidecar: each answer comes
// from the one that was asked.
func TestRedirectedPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{})
		a := pod(t, n, "a", "10.0.0.1")
		dns := must(a.Proxy().ListenPacket(t.Context(), addr("127.0.0.1:15053")))
		app := must(a.App().ListenPacket(t.Context(), addr("0.0.0.0:0")))
		servers := []string{"10.96.0.10:53", "10.96.0.11:53", "127.0.0.1:53"}
		for _, server := range servers {
			must(app.WriteTo([]byte(server), net.UDPAddrFromAddrPort(addr(server))))
		}
		buf := make([]byte, 100)
		for range servers {
			n, from, err := dns.ReadFrom(buf)
			if err != nil {
				t.Fatal(err)
			}
			must(dns.WriteTo(buf[:n], from))
		}
		for range servers {
			n, from, err := app.ReadFrom(buf)
			if err != nil || from.String() != string(buf[:n]) {
				t.Errorf("answer of %s comes from %v (%v)", buf[:n], from, err)
			}
		}
		app.Close()
		dns.Close()
	})
}

func certificate(t *testing.T) tls.Certificate {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestHTTPAndTap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{Latency: time.Millisecond})
		a, b := n.Host("a", "10.0.0.1"), n.Host("b", "10.0.0.2")
		tap, other := n.Tap(b, nil), n.Tap(a, a)
		handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				<-r.Context().Done()
				return
			}
			io.Copy(w, r.Body)
		})
		// Two servers, because one sets HTTP/2 up for the first listener only.
		server := &http.Server{Handler: handler}
		tlsServer := &http.Server{Handler: handler, TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate(t)}}}
		plain := must(b.App().Listen(t.Context(), addr("10.0.0.2:80")))
		secure := must(b.App().Listen(t.Context(), addr("10.0.0.2:443")))
		var wg sync.WaitGroup
		wg.Go(func() { server.Serve(plain) })
		wg.Go(func() { tlsServer.ServeTLS(secure, "", "") })
		transport := &http.Transport{
			DialContext:       a.App().DialContext,
			ForceAttemptHTTP2: true,
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		}
		client := &http.Client{Transport: transport, Timeout: 15 * time.Second}
		body := strings.Repeat("a secret ", 100_000)
		for _, url := range []string{"https://10.0.0.2:443/", "http://10.0.0.2:80/"} {
			r := must(client.Post(url, "text/plain", strings.NewReader(body)))
			if got := must(io.ReadAll(r.Body)); string(got) != body {
				t.Errorf("%s: %d bytes came back, want %d", url, len(got), len(body))
			}
			r.Body.Close()
		}
		start := time.Now()
		if _, err := client.Get("https://10.0.0.2:443/slow"); !os.IsTimeout(err) || time.Since(start) != 15*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		transport.CloseIdleConnections()
		server.Close()
		tlsServer.Close()
		wg.Wait()
		time.Sleep(time.Second) // for the client to see that its server is gone

		streams := tap.Streams()
		if len(streams) != 4 || len(other.Streams()) != 0 {
			t.Fatalf("%d and %d streams, want 4 and 0", len(streams), len(other.Streams()))
		}
		for i, s := range streams {
			encrypted := i < 2
			if s.OnlyTLS() != encrypted || bytes.Contains(s.Data, []byte("secret")) == encrypted {
				t.Errorf("%v to %v: TLS %v, the secret shows %v", s.From, s.To, s.OnlyTLS(), !encrypted)
			}
		}
		if streams[0].To != addr("10.0.0.2:443") || streams[1].From != addr("10.0.0.2:443") {
			t.Errorf("first streams go to %v and come from %v", streams[0].To, streams[1].From)
		}
	})
}

func TestGRPC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{Latency: time.Millisecond})
		a, b := n.Host("a", "10.0.0.1"), n.Host("b", "10.0.0.2")
		start := func() *grpc.Server {
			server := grpc.NewServer()
			healthpb.RegisterHealthServer(server, health.NewServer())
			go server.Serve(must(b.App().Listen(t.Context(), addr("10.0.0.2:15012"))))
			return server
		}
		server := start()
		cc := must(grpc.NewClient("passthrough:///10.0.0.2:15012",
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
				return a.App().DialContext(ctx, "tcp", addr)
			})))
		client := healthpb.NewHealthClient(cc)
		if _, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil {
			t.Error(err)
		}
		stream := must(client.Watch(t.Context(), &healthpb.HealthCheckRequest{}))
		must(stream.Recv())
		b.Kill()
		if _, err := stream.Recv(); err == nil {
			t.Error("the stream outlives its server")
		}
		server.Stop()
		server = start()
		if _, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true)); err != nil {
			t.Error("after the server came back:", err)
		}
		cc.Close()
		server.Stop()
	})
}

func TestOnlyTLS(t *testing.T) {
	for data, want := range map[string]bool{
		"":                               false,
		"\x16\x03\x01\x00\x01x":          true,
		"\x16\x03\x01\x00\x05x":          true,
		"\x16\x03\x01\x00\x01xGET / HT":  false,
		"\x16\x03\x01\x00\x01x\x17\x03":  true,
		"GET / HTTP/1.1\r\n":             false,
		"\x16\x02\x01\x00\x01x":          false,
		"\x16\x03\x01\x00\x01x\x16\x03G": true,
	} {
		if got := (Stream{Data: []byte(data)}).OnlyTLS(); got != want {
			t.Errorf("%q: %v, want %v", data, got, want)
		}
	}
}
