// Package dnsproxy answers the DNS queries that redirection takes from a
// workload: names of the mesh from a name table, without asking anybody, and all
// others by forwarding them.
//
// A host of the table is answered with A and AAAA records of its addresses, or
// with an empty answer if it has none of the family asked for. Kubernetes
// services answer to their short forms too, and every host to the form that the
// workload's resolver makes by appending its first search domain, so that it
// gets its answer with the first of its tries.
//
// [New] takes open sockets; [Server.Run] serves and closes them.
package dnsproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// Config describes a Server. Packet, Stream and Dial are required.
type Config struct {
	// Packet and Stream are bound to 127.0.0.1:15053; Packet6 and Stream6, if IPv6
	// is captured, to [::1]:15053. A UDP socket bound to all addresses would
	// answer from one that a redirected client does not expect.
	Packet, Packet6 net.PacketConn
	Stream, Stream6 net.Listener

	// Upstreams are asked what the table does not know, in this order; Search are
	// the workload's search domains, the first of which is its namespace's, such
	// as "default.svc.cluster.local". See [ParseResolvConf].
	Upstreams []netip.AddrPort
	Search    []string

	// Zones are domains, such as "cluster.local", of which the table is all there
	// is: what it lacks below them does not exist, and nobody is asked. A
	// cluster's own DNS server sets them.
	Zones []string

	// Dial opens a connection to an upstream; network is "udp" or "tcp". What it
	// opens must not be redirected.
	Dial func(ctx context.Context, network string, addr netip.AddrPort) (net.Conn, error)

	// Timeout for one upstream's answer; 0 is 5 s.
	Timeout time.Duration
	// MaxForwards is how many queries may wait for upstreams; further ones fail at
	// once. 0 is 256.
	MaxForwards int

	// OnRequest is called for each query, OnForward after each exchange with an
	// upstream, with its error if it gave no usable answer. Both may be nil, are
	// called from many goroutines, and must not block.
	OnRequest func()
	OnForward func(took time.Duration, err error)

	Log *slog.Logger // nil discards
}

const (
	// defaultTimeout is resolv.conf's, RES_TIMEOUT of resolv.h.
	defaultTimeout     = 5 * time.Second
	defaultMaxForwards = 256
	// maxStreams is how many TCP connections are served; further ones are closed.
	maxStreams = 256
	// streamIdle is how long a TCP connection may send nothing. RFC 7766, section
	// 6.2.3, asks for some seconds.
	streamIdle = 10 * time.Second
	// maxUDP is the largest message sent or asked for over UDP, whatever the other
	// side offers.
	maxUDP = 4096
	// firstRetry and lastRetry bound the wait after a socket's error.
	firstRetry, lastRetry = 5 * time.Millisecond, time.Second
)

// Server answers queries. Make it with New.
type Server struct {
	config Config

	table     atomic.Pointer[table]
	preferred atomic.Pointer[preference]
	failing   atomic.Bool   // the last forward got no answer from anybody
	forwards  chan struct{} // one element for each that is under way
	streams   chan struct{} // one element for each TCP connection
}

// New makes a Server, which does nothing before Run.
func New(c Config) (*Server, error) {
	if c.Packet == nil || c.Stream == nil || c.Dial == nil {
		return nil, errors.New("dnsproxy: Packet, Stream and Dial are required")
	}
	for _, u := range c.Upstreams {
		for _, own := range []net.Addr{c.Packet.LocalAddr(), c.Stream.Addr()} {
			if own.String() == u.String() {
				return nil, fmt.Errorf("dnsproxy: upstream %v is this server itself", u)
			}
		}
	}
	if c.Timeout == 0 {
		c.Timeout = defaultTimeout
	}
	if c.MaxForwards == 0 {
		c.MaxForwards = defaultMaxForwards
	}
	if c.OnRequest == nil {
		c.OnRequest = func() {}
	}
	if c.OnForward == nil {
		c.OnForward = func(time.Duration, error) {}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		config:   c,
		forwards: make(chan struct{}, c.MaxForwards),
		streams:  make(chan struct{}, maxStreams),
	}
	s.SetTable(nil)
	return s, nil
}

// SetTable replaces the names. Queries under way keep the table they began with.
// Until the first call everything is forwarded.
func (s *Server) SetTable(t *plan.NameTable) {
	domain := ""
	if len(s.config.Search) > 0 {
		domain = s.config.Search[0]
	}
	s.table.Store(newTable(t, domain))
}

// Run serves until ctx ends or a socket fails, and returns when nothing of it
// runs any more. The sockets are closed then.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var sockets []io.Closer
	var wg sync.WaitGroup
	for _, p := range []net.PacketConn{s.config.Packet, s.config.Packet6} {
		if p != nil {
			sockets = append(sockets, p)
			wg.Go(func() { cancel(s.servePackets(ctx, p, &wg)) })
		}
	}
	for _, l := range []net.Listener{s.config.Stream, s.config.Stream6} {
		if l != nil {
			sockets = append(sockets, l)
			wg.Go(func() { cancel(s.serveStreams(ctx, l, &wg)) })
		}
	}
	wg.Go(func() {
		<-ctx.Done()
		for _, c := range sockets {
			c.Close()
		}
	})
	wg.Wait()
	var failure *socketError
	if errors.As(context.Cause(ctx), &failure) {
		return fmt.Errorf("dnsproxy: %w", failure)
	}
	return nil
}

// socketError tells a socket that failed from a context that ended.
type socketError struct{ err error }

func (e *socketError) Error() string { return e.err.Error() }
func (e *socketError) Unwrap() error { return e.err }

// retry waits after an error of a socket that may go away, such as a lack of
// descriptors. It returns an error when there is no use in going on.
func retry(ctx context.Context, err error, wait *time.Duration) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, net.ErrClosed) {
		return &socketError{err}
	}
	*wait = min(max(*wait*2, firstRetry), lastRetry)
	t := time.NewTimer(*wait)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
	return nil
}

// servePackets answers from the table at once, and forwards in goroutines of wg.
func (s *Server) servePackets(ctx context.Context, p net.PacketConn, wg *sync.WaitGroup) error {
	b := make([]byte, 64<<10)
	var wait time.Duration
	for {
		n, from, err := p.ReadFrom(b)
		if err != nil {
			if err := retry(ctx, err, &wait); err != nil {
				return err
			}
			continue
		}
		wait = 0
		q := s.read(b[:n])
		if q == nil {
			continue
		}
		if reply := s.answer(q); reply != nil {
			p.WriteTo(q.pack(reply, udpSize(q.msg)), from)
			continue
		}
		select {
		case s.forwards <- struct{}{}:
			wg.Go(func() {
				defer func() { <-s.forwards }()
				p.WriteTo(q.pack(s.forward(ctx, q, "udp"), udpSize(q.msg)), from)
			})
		default:
			s.config.OnForward(0, errTooMany)
			p.WriteTo(q.pack(q.failure(), udpSize(q.msg)), from)
		}
	}
}

func (s *Server) serveStreams(ctx context.Context, l net.Listener, wg *sync.WaitGroup) error {
	var wait time.Duration
	for {
		c, err := l.Accept()
		if err != nil {
			if err := retry(ctx, err, &wait); err != nil {
				return err
			}
			continue
		}
		wait = 0
		select {
		case s.streams <- struct{}{}:
			wg.Go(func() {
				defer func() { <-s.streams }()
				s.serveStream(ctx, c)
			})
		default:
			c.Close()
		}
	}
}

// serveStream answers the queries of one TCP connection one after the other.
func (s *Server) serveStream(ctx context.Context, c net.Conn) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		c.SetDeadline(time.Now().Add(streamIdle))
		if ctx.Err() != nil {
			return // the deadline just set may have undone AfterFunc's
		}
		b, err := readFrame(c)
		if err != nil {
			return
		}
		q := s.read(b)
		if q == nil {
			return
		}
		reply := s.answer(q)
		if reply == nil {
			select {
			case s.forwards <- struct{}{}:
				reply = s.forward(ctx, q, "tcp")
				<-s.forwards
			default:
				s.config.OnForward(0, errTooMany)
				reply = q.failure()
			}
			c.SetDeadline(time.Now().Add(streamIdle)) // upstreams took some of it
		}
		if err := writeFrame(c, q.pack(reply, maxFrame)); err != nil {
			return
		}
	}
}
