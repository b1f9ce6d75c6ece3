package socket

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func listen(t *testing.T, s System, addr string) net.Listener {
	t.Helper()
	l, err := s.Listen(t.Context(), netip.MustParseAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func addrOf(l net.Listener) netip.AddrPort { return l.Addr().(*net.TCPAddr).AddrPort() }

// accepted dials l from source and returns both ends.
func accepted(t *testing.T, s System, l net.Listener, source netip.Addr) (dialled, taken net.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	dialled, err := s.Dial(ctx, source, addrOf(l))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialled.Close() })
	if taken, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { taken.Close() })
	return dialled, taken
}

func TestDialFromTheSourceAskedFor(t *testing.T) {
	for _, test := range []struct{ listen, source, want string }{
		{"127.0.0.1:0", "127.0.0.6", "127.0.0.6"},
		{"127.0.0.1:0", "", "127.0.0.1"},
		{"[::1]:0", "::1", "::1"},
	} {
		t.Run(test.listen+" from "+test.source, func(t *testing.T) {
			var s System
			var source netip.Addr
			if test.source != "" {
				source = netip.MustParseAddr(test.source)
			}
			dialled, taken := accepted(t, s, listen(t, s, test.listen), source)
			got := taken.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
			if got != netip.MustParseAddr(test.want) {
				t.Errorf("the connection comes from %v, want %v", got, test.want)
			}
			if _, err := io.WriteString(dialled, "x"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestConnectionThatWasNotRedirectedHasNoOriginalDestination(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0", "[::]:0"} {
		var s System
		_, taken := accepted(t, s, listen(t, s, addr), netip.Addr{})
		if dst, ok := s.OriginalDst(taken); ok {
			t.Errorf("on %s: OriginalDst = %v, want none", addr, dst)
		}
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if dst, ok := (System{}).OriginalDst(a); ok {
		t.Errorf("of a pipe: OriginalDst = %v, want none", dst)
	}
}

func TestIPv4ListenerLeavesIPv6Alone(t *testing.T) {
	var s System
	l := listen(t, s, "0.0.0.0:0")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if c, err := s.Dial(ctx, netip.Addr{}, netip.AddrPortFrom(netip.IPv6Loopback(), addrOf(l).Port())); err == nil {
		c.Close()
		t.Error("a listener on 0.0.0.0 accepted a connection to ::1")
	}
}

func TestDualStackListenerTakesBoth(t *testing.T) {
	var s System
	l := listen(t, s, "[::]:0")
	for _, to := range []string{"127.0.0.1", "::1"} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		c, err := s.Dial(ctx, netip.Addr{}, netip.AddrPortFrom(netip.MustParseAddr(to), addrOf(l).Port()))
		cancel()
		if err != nil {
			t.Errorf("to %s: %v", to, err)
			continue
		}
		c.Close()
	}
}

func TestReusePortSharesAnAddress(t *testing.T) {
	s := System{ReusePort: true}
	first := listen(t, s, "127.0.0.1:0")
	listen(t, s, first.Addr().String())
	var plain System
	if l, err := plain.Listen(t.Context(), addrOf(first)); err == nil {
		l.Close()
		t.Error("an address in use was shared without ReusePort")
	}
}

func TestMarkIsOnEverySocket(t *testing.T) {
	const mark = 1337
	s := System{Mark: mark}
	l, err := s.Listen(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		// Without CAP_NET_ADMIN the caller has to hear of it: unmarked, the
		// proxy's connections would be redirected to the proxy for ever.
		if unix.Geteuid() == 0 {
			t.Fatal(err)
		}
		return
	}
	defer l.Close()
	dialled, _ := accepted(t, s, l, netip.MustParseAddr("127.0.0.6"))
	raw, err := dialled.(*Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var got int
	raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK) })
	if err != nil || got != mark {
		t.Errorf("SO_MARK = %d, %v, want %d", got, err, mark)
	}
}
