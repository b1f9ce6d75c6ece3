package upstream

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/socket"
)

// sockets is the kernel's network.
type sockets struct{}

func (sockets) Listen(context.Context, netip.AddrPort) (net.Listener, error) {
	return nil, net.ErrClosed
}

func (sockets) Dial(ctx context.Context, _ netip.Addr, addr netip.AddrPort) (net.Conn, error) {
	return socket.System{}.Dial(ctx, netip.Addr{}, addr)
}

func (sockets) OriginalDst(net.Conn) (netip.AddrPort, bool) { return netip.AddrPort{}, false }

// TestStaleSocketsAreFoundBeforeUse closes, and speaks up on, real sockets while
// they are idle.
func TestStaleSocketsAreFoundBeforeUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := NewSet(Config{Network: sockets{}})
	defer s.Close()
	a := l.Addr().(*net.TCPAddr).AddrPort()
	s.Update(map[string]*plan.Cluster{"c": {Name: "c"}}, map[string]*plan.LoadAssignment{"c": assignment(a)})
	c := s.Cluster("c")
	for name, disturb := range map[string]func(net.Conn){
		"quiet":  func(net.Conn) {},
		"closed": func(s net.Conn) { s.Close() },
		"reset":  func(s net.Conn) { s.(*net.TCPConn).SetLinger(0); s.Close() },
		"bytes":  func(s net.Conn) { s.Write([]byte("HTTP/1.1 408 Request Timeout\r\n\r\n")) },
	} {
		conn, err := c.Acquire(t.Context(), Want{Fresh: true})
		if err != nil {
			t.Fatal(err)
		}
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		disturb(server)
		if name != "quiet" {
			// Until the kernel has delivered it.
			raw, _ := conn.Conn.(*socket.Conn).SyscallConn()
			raw.Read(func(uintptr) bool { return conn.stale() })
		}
		c.Release(conn, true)
		again := c.reuse(conn.Endpoint, &Want{})
		if reused := again == conn; reused != (name == "quiet") {
			t.Errorf("%s: reused %v", name, reused)
		}
		if again != nil {
			if n := testing.AllocsPerRun(100, func() { again.stale() }); n != 0 {
				t.Errorf("a look costs %v allocations", n)
			}
			again.discard()
		}
		server.Close()
	}
	if n := c.Stats.CxActive.Load(); n != 0 {
		t.Errorf("%d connections are open", n)
	}
}
