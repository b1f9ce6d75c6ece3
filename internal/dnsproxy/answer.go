package dnsproxy

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"

	"github.com/miekg/dns"
)

// ttl of answers from the table, in seconds. It is Istio's: short, as the table
// changes, but not so short that resolvers ask all the time.
const ttl = 30

// maxFrame is the longest message over TCP: RFC 1035, section 4.2.2.
const maxFrame = 65535

// query is a client's message.
type query struct {
	msg *dns.Msg
	// bad is the return code for a message that is no query to answer, or 0.
	bad int
}

// read takes a client's message apart. It returns nil for what deserves no
// answer: noise, and answers, lest two servers keep each other busy.
func (s *Server) read(b []byte) *query {
	const header, response = 12, 0x80
	if len(b) < header || b[2]&response != 0 {
		return nil
	}
	s.config.OnRequest()
	m := &dns.Msg{}
	if err := m.Unpack(b); err != nil {
		m = &dns.Msg{MsgHdr: dns.MsgHdr{Id: binary.BigEndian.Uint16(b), Opcode: int(b[2]>>3) & 0xf}}
		return &query{m, dns.RcodeFormatError}
	}
	q := &query{msg: m}
	switch {
	case m.Opcode != dns.OpcodeQuery:
		q.bad = dns.RcodeNotImplemented
	case len(m.Question) != 1:
		q.bad = dns.RcodeFormatError
	case m.Question[0].Qtype == dns.TypeAXFR || m.Question[0].Qtype == dns.TypeIXFR:
		// A zone takes many messages, which forwarding does not carry.
		q.bad = dns.RcodeRefused
	}
	return q
}

// answer returns the reply to a query, or nil if it is to be forwarded.
func (s *Server) answer(q *query) *dns.Msg {
	if q.bad != 0 {
		reply := q.reply(q.bad)
		reply.Authoritative = false
		return reply
	}
	question := q.msg.Question[0]
	r := s.table.Load().find(question.Name)
	if question.Qclass != dns.ClassINET || question.Qtype != dns.TypeA && question.Qtype != dns.TypeAAAA {
		if r != nil && s.inZone(question.Name) {
			return q.reply(dns.RcodeSuccess) // it exists, without such a record
		}
		r = nil
	}
	if r == nil {
		if s.inZone(question.Name) {
			return q.reply(dns.RcodeNameError)
		}
		return nil
	}
	reply := q.reply(dns.RcodeSuccess)
	h := dns.RR_Header{Name: question.Name, Rrtype: question.Qtype, Class: dns.ClassINET, Ttl: ttl}
	if question.Qtype == dns.TypeA {
		for _, ip := range r.v4.rotated() {
			reply.Answer = append(reply.Answer, &dns.A{Hdr: h, A: ip.AsSlice()})
		}
		return reply
	}
	for _, ip := range r.v6.rotated() {
		reply.Answer = append(reply.Answer, &dns.AAAA{Hdr: h, AAAA: ip.AsSlice()})
	}
	return reply
}

// inZone reports whether nobody but this server can know a name.
func (s *Server) inZone(name string) bool {
	return slices.ContainsFunc(s.config.Zones, func(z string) bool { return dns.IsSubDomain(dns.Fqdn(z), name) })
}

func (q *query) reply(rcode int) *dns.Msg {
	reply := &dns.Msg{}
	reply.SetRcode(q.msg, rcode)
	reply.Authoritative, reply.RecursionAvailable = true, true
	if opt := q.msg.IsEdns0(); opt != nil {
		reply.SetEdns0(maxUDP, opt.Do())
	}
	return reply
}

func (q *query) failure() *dns.Msg {
	reply := q.reply(dns.RcodeServerFailure)
	reply.Authoritative = false
	return reply
}

// pack makes a reply's bytes, cut to size with the truncation flag if need be.
func (q *query) pack(reply *dns.Msg, size int) []byte {
	reply.Compress = true
	reply.Truncate(size)
	b, err := reply.Pack()
	if err != nil || len(b) > size {
		// What an upstream said can be read and yet not be written.
		b, _ = q.failure().Pack()
	}
	return b
}

// udpSize is how much a client takes over UDP: 512 bytes, or what it offers by
// EDNS (RFC 6891, section 6.2.3).
func udpSize(m *dns.Msg) int {
	size := dns.MinMsgSize
	if opt := m.IsEdns0(); opt != nil {
		size = max(size, min(int(opt.UDPSize()), maxUDP))
	}
	return size
}

// accept takes an upstream's message for an answer to a query that was sent to
// it, or says why it is none. Anybody may have sent it.
func accept(sent *dns.Msg, b []byte) (*dns.Msg, error) {
	m := &dns.Msg{}
	if err := m.Unpack(b); err != nil {
		return nil, err
	}
	switch {
	case !m.Response || m.Opcode != dns.OpcodeQuery:
		return nil, errors.New("not an answer")
	case m.Id != sent.Id:
		return nil, errors.New("answer has another id")
	case len(m.Question) != 1 || !sameQuestion(m.Question[0], sent.Question[0]):
		return nil, errors.New("answer is to another question")
	}
	return m, nil
}

func sameQuestion(a, b dns.Question) bool {
	return a.Qtype == b.Qtype && a.Qclass == b.Qclass && dns.CanonicalName(a.Name) == dns.CanonicalName(b.Name)
}

// readFrame and writeFrame carry messages over TCP, behind their length.
func readFrame(c net.Conn) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(c, b)
	return b, err
}

func writeFrame(c net.Conn, b []byte) error {
	// In one write, so that it is one segment: RFC 7766, section 8.
	_, err := c.Write(append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(b)), uint16(len(b))), b...))
	return err
}
