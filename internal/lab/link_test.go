package lab

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// joined returns a node's and a front's end of a link, both at work.
func joined(t *testing.T) (node, front *link) {
	t.Helper()
	a, b, err := linkPair()
	if err != nil {
		t.Fatal(err)
	}
	node, err = newLink(a)
	if err != nil {
		t.Fatal(err)
	}
	front, err = newLink(b)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { node.follow() })
	wg.Go(func() { front.serve(context.Background(), openOutside) })
	t.Cleanup(func() {
		node.conn.Close()
		front.conn.Close()
		wg.Wait()
	})
	return node, front
}

func TestNodeGetsListenersAndConnectionsFromTheFront(t *testing.T) {
	node, _ := joined(t)
	file, err := node.call(t.Context(), message{Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.FileListener(file)
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		io.WriteString(c, "hello")
	})
	c, err := node.dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if b, err := io.ReadAll(c); err != nil || string(b) != "hello" {
		t.Errorf("read %q, %v", b, err)
	}
	if _, err := node.call(t.Context(), message{Listen: l.Addr().String()}); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a busy port gives %v, want EADDRINUSE", err)
	}
}

func TestCallsEndWithTheFront(t *testing.T) {
	node, front := joined(t)
	front.conn.Close()
	if _, err := node.call(t.Context(), message{Listen: "127.0.0.1:0"}); err == nil {
		t.Error("a call without front succeeded")
	}
}

// A busy port is passed over, with a word about it; a connection waits for an
// endpoint; what comes back is what the endpoint sent.
func TestPublishedPort(t *testing.T) {
	node, _ := joined(t)
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	port := busy.Addr().(*net.TCPAddr).AddrPort().Port()

	var mu sync.Mutex
	var said []string
	ctx, cancel := context.WithCancel(t.Context())
	p := &publisher{ctx: ctx, link: node, ports: make(map[published]*publishedPort), complain: func(s string) {
		mu.Lock()
		defer mu.Unlock()
		said = append(said, s)
	}}
	defer p.wait()
	defer cancel()
	key := published{"shop", "web", port}
	p.set(map[published][]netip.AddrPort{key: nil})
	p.ready(t.Context())
	at := p.addresses()
	if len(at) != 1 || at[0].Address.Port() == port {
		t.Fatalf("published at %v, want another port than %d", at, port)
	}
	mu.Lock()
	if len(said) != 1 {
		t.Errorf("said %q, want a word on the busy port", said)
	}
	mu.Unlock()

	c, err := net.Dial("tcp", at[0].Address.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	endpoint, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer endpoint.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		c, err := endpoint.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		b, err := io.ReadAll(c)
		if err != nil {
			t.Error(err)
		}
		c.Write(append([]byte("you said "), b...))
	})
	p.set(map[published][]netip.AddrPort{key: {endpoint.Addr().(*net.TCPAddr).AddrPort()}})
	io.WriteString(c, "hi")
	c.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(c); err != nil || string(b) != "you said hi" {
		t.Errorf("read %q, %v", b, err)
	}

	p.set(nil)
	if at := p.addresses(); len(at) != 0 {
		t.Errorf("still published: %v", at)
	}
}

func TestPublishedPortsOfRoot(t *testing.T) {
	for port, want := range map[uint16]uint16{80: 8080, 443: 8443, 1023: 9023, 1024: 1024, 9080: 9080} {
		if got := outsidePort(port); got != want {
			t.Errorf("outsidePort(%d) = %d, want %d", port, got, want)
		}
	}
}
