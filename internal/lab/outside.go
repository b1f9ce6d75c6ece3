package lab

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/internal/lab/network"
)

// outsidePatience bounds a connection attempt to the outside.
const outsidePatience = 10 * time.Second

// outside carries TCP connections of pods to the machine's own network: the
// node catches them, and the front connects to where they were going.
type outside struct {
	listener net.Listener
	link     *link
}

func newOutside(ground *network.Node, l *link) (*outside, error) {
	listener, err := net.Listen("tcp4", ":0")
	if err != nil {
		return nil, err
	}
	port := listener.Addr().(*net.TCPAddr).AddrPort().Port()
	if err := ground.CatchOutside(port); err != nil {
		listener.Close()
		return nil, err
	}
	return &outside{listener, l}, nil
}

// run serves until ctx ends.
func (o *outside) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { o.listener.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := o.listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if !sleep(ctx, 50*time.Millisecond) { // out of descriptors, perhaps
				return nil
			}
			continue
		}
		wg.Go(func() { o.carry(ctx, c.(*net.TCPConn)) })
	}
}

func (o *outside) carry(ctx context.Context, c *net.TCPConn) {
	defer c.Close()
	to, err := network.OriginalDst(c)
	if err == nil {
		var outer net.Conn
		if outer, err = o.link.dial(ctx, "tcp", to.String()); err == nil {
			defer outer.Close()
			splice(ctx, c, outer)
			return
		}
	}
	c.SetLinger(0) // the nearest thing to a refusal
}

// dial connects from the machine's own network.
func (l *link) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, outsidePatience)
	defer cancel()
	file, err := l.call(ctx, message{Dial: addr, Network: network})
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return net.FileConn(file)
}
