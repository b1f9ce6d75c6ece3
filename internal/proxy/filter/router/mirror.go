package router

import (
	"bytes"
	"context"
	"io"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
)

const (
	// maxCopies bounds the mirrored requests on their way, and maxCopied the body of
	// one. What is over is not mirrored: the request itself comes first.
	maxCopies = 256
	maxCopied = 1 << 20
	// copyTimeout is for routes without a timeout. Source: Envoy's default for any
	// route.
	copyTimeout = 15 * time.Second
)

// shadow is a copy of a request for a mirror. It is gathered while the request is
// sent, and goes its own way in a goroutine of its own once the body is complete.
type shadow struct {
	x       *exchange.Exchange
	cluster *upstream.Cluster
	rule    plan.Route
	body    []byte
	framed  bool // body is in chunks of HTTP/1
	last    any  // what exchange.Terminal points to
}

// mirror begins the copies that the route asks for.
func (c *call) mirror() {
	q := &c.x.Request
	if q.Upgrade != nil || q.Connect {
		return // a conversation, of which nobody can follow the other half
	}
	for i := range c.rule.Mirrors {
		m := &c.rule.Mirrors[i]
		if (c.r.cfg.Random()>>32)*plan.Million>>32 >= uint64(m.Fraction) {
			continue
		}
		to := c.r.cfg.Clusters.Cluster(m.Cluster)
		if to == nil {
			continue
		}
		if c.r.copies.Add(1) > maxCopies {
			c.r.copies.Add(-1)
			continue
		}
		c.copies = append(c.copies, c.copyFor(m, to))
	}
}

// copyFor copies all of the request but its body.
func (c *call) copyFor(m *plan.Mirror, to *upstream.Cluster) *shadow {
	x, q := c.x, &c.x.Request
	s := &shadow{x: exchange.Get(), cluster: to, rule: plan.Route{Timeout: c.rule.Timeout}}
	s.framed = c.hop == hop(&c.one) && q.Framing == exchange.Chunked
	if s.rule.Timeout <= 0 {
		s.rule.Timeout = copyTimeout
	}
	y := s.x
	y.Conn = &exchange.Conn{
		ID: x.Conn.ID, Remote: x.Conn.Remote, Local: x.Conn.Local, Direction: x.Conn.Direction,
		MTLS: x.Conn.MTLS, PeerID: x.Conn.PeerID, OwnID: x.Conn.OwnID, SNI: x.Conn.SNI, ALPN: x.Conn.ALPN, TLS: x.Conn.TLS,
	}
	y.Client, y.Context, y.Terminal = noClient{}, context.Background(), &s.last
	y.Cluster = m.Cluster
	p := &y.Request
	p.Method, p.Authority, p.Target = bytes.Clone(q.Method), bytes.Clone(q.Authority), bytes.Clone(q.Target)
	p.Path, p.Query, p.HasQuery, p.Scheme = bytes.Clone(q.Path), bytes.Clone(q.Query), q.HasQuery, q.Scheme
	p.Minor, p.Head, p.HTTP2, p.Framing = q.Minor, q.Head, q.HTTP2, q.Framing
	for i := range q.Header.Len() {
		switch f := q.Header.At(i); {
		case f == nil:
		case f.ID == exchange.Expect, f.ID == exchange.TransferEncoding, f.ID == exchange.ContentLength:
			// The copy is sent with its whole body at once.
		default:
			p.Header.Add(f.ID, string(f.Name), bytes.Clone(f.Value))
		}
	}
	if m.Shadow {
		host, port := splitPort(p.Authority)
		name := append(bytes.Clone(host), "-shadow"...)
		if len(port) > 0 {
			name = append(append(name, ':'), port...)
		}
		p.Authority = name
		p.Header.Set(exchange.Host, name)
	}
	return s
}

// sendCopies adds a piece of the body to the copies, and lets them go if it is the
// last.
func (c *call) sendCopies(p []byte, last bool) {
	if len(c.copies) == 0 {
		return
	}
	for i, s := range c.copies {
		if s == nil {
			continue
		}
		if len(s.body)+len(p) > maxCopied {
			c.copies[i] = nil
			c.r.drop(s)
			continue
		}
		s.body = append(s.body, p...)
		if last {
			c.copies[i] = nil
			go s.run(c.r)
		}
	}
}

// dropCopies gives up the copies of a request whose body did not end.
func (c *call) dropCopies() {
	for _, s := range c.copies {
		if s != nil {
			c.r.drop(s)
		}
	}
	clear(c.copies)
	c.copies = c.copies[:0]
}

func (r *Router) drop(s *shadow) {
	r.copies.Add(-1)
	exchange.Put(s.x)
}

// run sends the copy and reads the answer to its end, for nobody.
func (s *shadow) run(r *Router) {
	x := s.x
	defer r.drop(s)
	defer func() {
		if p := recover(); p != nil {
			r.cfg.Log.Error("panic while mirroring a request", "panic", p, "cluster", s.cluster.Name, "stack", string(debug.Stack()))
		}
	}()
	x.Start = r.cfg.Now()
	if q := &x.Request; q.Framing != exchange.NoBody {
		if s.framed {
			s.body = unframe(s.body)
		}
		q.Framing, q.Length = exchange.Length, int64(len(s.body))
		q.Header.SetString(exchange.ContentLength, strconv.Itoa(len(s.body)))
		q.Body = &copied{p: s.body}
	}
	c := newCall()
	c.begin(r, x, s.cluster, &s.rule, nil)
	x.OnFinish(c)
	c.run(nil)
	complete := x.Tunnel == nil
	for b := x.Response.Body; b != nil && complete; {
		if _, err := b.Next(); err != nil {
			complete = err == io.EOF
			break
		}
	}
	x.Finish(complete)
}

// unframe takes a body out of its chunks, in place. They were checked when they were
// read; trailers are left out.
func unframe(b []byte) []byte {
	out := b[:0]
	for {
		line, rest, ok := bytes.Cut(b, []byte("\r\n"))
		size, _, _ := bytes.Cut(line, []byte(";"))
		n, err := strconv.ParseUint(string(bytes.TrimSpace(size)), 16, 31)
		if !ok || err != nil || n == 0 || int(n)+2 > len(rest) {
			return out
		}
		out = append(out, rest[:n]...)
		b = rest[n+2:]
	}
}

// copied is a body that is here as a whole.
type copied struct {
	p     []byte
	taken bool
}

func (b *copied) Next() ([]byte, error) {
	if b.taken || len(b.p) == 0 {
		b.taken = true
		return nil, io.EOF
	}
	b.taken = true
	return b.p, nil
}

func (b *copied) Buffered() ([]byte, bool)   { return b.p, true }
func (b *copied) Take()                      { b.taken = true }
func (b *copied) Raw()                       {}
func (b *copied) Done() bool                 { return b.taken }
func (b *copied) Trailers() *exchange.Header { return nil }
func (b *copied) Size() int64                { return int64(len(b.p)) }

// noClient is the client of a mirrored request: nobody.
type noClient struct{}

func (noClient) Interim(*exchange.Exchange) error { return nil }
func (noClient) Watch(func())                     {}
func (noClient) AbortRead()                       {}
func (noClient) Progress()                        {}
