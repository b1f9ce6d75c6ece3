package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// published is a port of a Service of type LoadBalancer.
type published struct {
	Namespace, Service string
	Port               uint16
}

func (p published) String() string {
	return fmt.Sprintf("%s.%s:%d", p.Service, p.Namespace, p.Port)
}

// publisher makes such ports reachable at 127.0.0.1 of the machine. The front
// opens the listener there; connections are accepted here and carried into the
// mesh.
type publisher struct {
	ctx      context.Context
	link     *link
	complain func(string)

	mu sync.Mutex
	// mu guards ports.
	ports map[published]*publishedPort
	wg    sync.WaitGroup
}

// publishedPort is one listener. Its address is zero while there is none.
type publishedPort struct {
	cancel context.CancelFunc

	mu sync.Mutex
	// mu guards the following.
	address netip.AddrPort
	targets []netip.AddrPort
	changed chan struct{}
}

const (
	// Ports below 1024 belong to root; they are published 8000 higher.
	privilegedPorts = 1024
	privilegedShift = 8000
	// publishTries is how many ports after a busy one are tried.
	publishTries = 20
	// targetPatience is how long a connection waits for somebody to take it.
	targetPatience = 5 * time.Second
)

func outsidePort(port uint16) uint16 {
	if port < privilegedPorts {
		return port + privilegedShift
	}
	return port
}

// set says which ports are published from now on, and where they lead.
func (p *publisher) set(want map[published][]netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, port := range p.ports {
		if _, ok := want[key]; !ok {
			port.cancel()
			delete(p.ports, key)
		}
	}
	for key, targets := range want {
		port := p.ports[key]
		if port == nil {
			ctx, cancel := context.WithCancel(p.ctx)
			port = &publishedPort{cancel: cancel, changed: make(chan struct{})}
			p.ports[key] = port
			p.wg.Go(func() { p.serve(ctx, key, port) })
		}
		port.mu.Lock()
		if !slices.Equal(port.targets, targets) {
			port.targets = targets
			close(port.changed)
			port.changed = make(chan struct{})
		}
		port.mu.Unlock()
	}
}

// addresses returns where the published ports are, sorted by their name.
func (p *publisher) addresses() []publishedAt {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []publishedAt
	for key, port := range p.ports {
		port.mu.Lock()
		if port.address.IsValid() {
			out = append(out, publishedAt{key, port.address})
		}
		port.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b publishedAt) int { return strings.Compare(a.String(), b.String()) })
	return out
}

// publishedAt is a published port with its address on the machine.
type publishedAt struct {
	published
	Address netip.AddrPort
}

// ready returns when a listener for each port is open, or ctx ends.
func (p *publisher) ready(ctx context.Context) {
	for {
		p.mu.Lock()
		n := len(p.ports)
		p.mu.Unlock()
		if len(p.addresses()) == n || !sleep(ctx, 5*time.Millisecond) {
			return
		}
	}
}

// wait returns when all listeners and connections have ended.
func (p *publisher) wait() { p.wg.Wait() }

func (p *publisher) serve(ctx context.Context, key published, port *publishedPort) {
	l, err := p.listen(ctx, key)
	if err != nil {
		if ctx.Err() == nil {
			p.complain(fmt.Sprintf("Service %s/%s, port %d, is not published: %v", key.Namespace, key.Service, key.Port, err))
		}
		return
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	port.mu.Lock()
	port.address = l.Addr().(*net.TCPAddr).AddrPort()
	port.mu.Unlock()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			// Out of descriptors, perhaps; it passes.
			if !sleep(ctx, 50*time.Millisecond) {
				return
			}
			continue
		}
		wg.Go(func() { port.carry(ctx, c) })
	}
}

func (p *publisher) listen(ctx context.Context, key published) (net.Listener, error) {
	first := outsidePort(key.Port)
	var firstErr error
	for n := range uint16(publishTries) {
		addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), first+n)
		file, err := p.link.call(ctx, message{Listen: addr.String()})
		if err == nil {
			defer file.Close()
			l, err := net.FileListener(file)
			if err == nil && n > 0 {
				p.complain(fmt.Sprintf("port %d of this machine is in use, so Service %s/%s is published at %s", first, key.Namespace, key.Service, addr))
			}
			return l, err
		}
		if firstErr == nil {
			firstErr = err
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	return nil, firstErr
}

// carry takes one connection to an endpoint, and waits a while for one.
func (port *publishedPort) carry(ctx context.Context, c net.Conn) {
	defer c.Close()
	patience, cancel := context.WithTimeout(ctx, targetPatience)
	defer cancel()
	var inner net.Conn
	for inner == nil {
		port.mu.Lock()
		targets, changed := port.targets, port.changed
		port.mu.Unlock()
		for _, i := range rand.Perm(len(targets)) {
			d := net.Dialer{Timeout: time.Second}
			conn, err := d.DialContext(patience, "tcp", targets[i].String())
			if err == nil {
				inner = conn
				break
			}
		}
		if inner != nil {
			break
		}
		select {
		case <-patience.Done():
			return
		case <-changed:
		case <-time.After(100 * time.Millisecond):
		}
	}
	defer inner.Close()
	splice(ctx, c, inner)
}

// splice copies both ways until both sides are done or ctx ends. Each end of
// one direction is passed on as it comes.
func splice(ctx context.Context, a, b net.Conn) {
	stop := context.AfterFunc(ctx, func() {
		a.Close()
		b.Close()
	})
	defer stop()
	var wg sync.WaitGroup
	one := func(dst, src net.Conn) {
		_, err := io.Copy(dst, src)
		if c, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
			c.CloseWrite()
			return
		}
		// A broken direction breaks the other one: its partner is gone.
		a.Close()
		b.Close()
	}
	wg.Go(func() { one(a, b) })
	wg.Go(func() { one(b, a) })
	wg.Wait()
}
