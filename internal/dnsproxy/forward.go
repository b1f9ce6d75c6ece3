package dnsproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

var (
	errTooMany    = errors.New("too many queries wait for upstreams")
	errNoUpstream = errors.New("there are no upstreams")
)

// preference is to ask another upstream than the first one first, for a while,
// because that did not answer.
type preference struct {
	index int
	until time.Time
}

// preferFor is how long the first upstream is left alone after it failed. One
// query in that time waits for it in vain.
const preferFor = 30 * time.Second

// forward asks the upstreams one after the other until one answers. It always
// returns a reply to q.
func (s *Server) forward(ctx context.Context, q *query, network string) *dns.Msg {
	n := len(s.config.Upstreams)
	first := 0
	if p := s.preferred.Load(); p != nil && time.Now().Before(p.until) {
		first = p.index
	}
	var refused *dns.Msg // the answer of one that cannot help
	var failure error    // of the last that gave none
	for i := range n {
		at := (first + i) % n
		m, err := s.ask(ctx, s.config.Upstreams[at], q.msg, network)
		if err != nil {
			failure = err
			if ctx.Err() != nil {
				break
			}
			continue
		}
		if failure != nil {
			s.prefer(at)
		}
		switch m.Rcode {
		case dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented:
			refused = m
			continue
		}
		s.report(nil)
		return s.adopt(q, m)
	}
	if refused != nil {
		s.report(nil)
		return s.adopt(q, refused)
	}
	if n == 0 {
		failure = errNoUpstream
	}
	if ctx.Err() == nil {
		s.report(failure)
	}
	return q.failure()
}

// prefer asks an upstream first from now on, because others did not answer.
func (s *Server) prefer(index int) {
	if index == 0 {
		s.preferred.Store(nil)
		return
	}
	s.preferred.Store(&preference{index, time.Now().Add(preferFor)})
}

// adopt makes an upstream's answer one to the client's query.
func (s *Server) adopt(q *query, m *dns.Msg) *dns.Msg {
	m.Id, m.Question = q.msg.Id, q.msg.Question
	m.RecursionAvailable = true
	// A host that only the mesh knows exists for every type of record, or else
	// resolvers conclude from one type that there is no such name at all: RFC 8020.
	if m.Rcode == dns.RcodeNameError && s.table.Load().find(q.msg.Question[0].Name) != nil {
		m.Rcode = dns.RcodeSuccess
	}
	return m
}

// report logs when forwarding begins to fail and when it works again.
func (s *Server) report(err error) {
	if s.failing.Swap(err != nil) == (err != nil) {
		return
	}
	if err != nil {
		s.config.Log.Warn("no DNS upstream answers", "upstreams", s.config.Upstreams, "err", err)
		return
	}
	s.config.Log.Info("DNS upstreams answer again")
}

// ask has one upstream answer.
func (s *Server) ask(ctx context.Context, upstream netip.AddrPort, m *dns.Msg, network string) (*dns.Msg, error) {
	start := time.Now()
	ctx, cancel := context.WithDeadline(ctx, start.Add(s.config.Timeout))
	defer cancel()
	answer, err := s.exchange(ctx, upstream, m, network)
	if err == nil && answer.Truncated && network == "udp" {
		// A truncated answer is better than none.
		if whole, err := s.exchange(ctx, upstream, m, "tcp"); err == nil {
			answer = whole
		}
	}
	s.config.OnForward(time.Since(start), err)
	if err != nil {
		return nil, fmt.Errorf("ask %v: %w", upstream, err)
	}
	return answer, nil
}

func (s *Server) exchange(ctx context.Context, upstream netip.AddrPort, m *dns.Msg, network string) (*dns.Msg, error) {
	// An id of our own and, by a new socket, a port of our own: both must be
	// guessed to forge an answer (RFC 5452).
	sent := m.Copy()
	sent.Id = dns.Id()
	if opt := sent.IsEdns0(); opt != nil {
		opt.SetUDPSize(min(opt.UDPSize(), maxUDP))
	}
	b, err := sent.Pack()
	if err != nil {
		return nil, err
	}
	c, err := s.config.Dial(ctx, network, upstream)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	if network == "tcp" {
		if err := writeFrame(c, b); err != nil {
			return nil, err
		}
		if b, err = readFrame(c); err != nil {
			return nil, err
		}
		return accept(sent, b)
	}
	if _, err := c.Write(b); err != nil {
		return nil, err
	}
	return awaitPacket(c, sent)
}

// awaitPacket reads until the answer comes. What is none is ignored: it may be
// meant to keep the right one away.
func awaitPacket(c net.Conn, sent *dns.Msg) (*dns.Msg, error) {
	b := make([]byte, maxUDP)
	var ignored error
	for {
		n, err := c.Read(b)
		if err != nil {
			return nil, errors.Join(err, ignored)
		}
		m, err := accept(sent, b[:n])
		if err == nil {
			return m, nil
		}
		ignored = fmt.Errorf("ignored a datagram: %w", err)
	}
}
