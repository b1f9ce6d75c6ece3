package simnet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
)

// Tap records what connections between hosts carry.
type Tap struct {
	a, b *Host // nil for any

	mu      sync.Mutex
	streams []*recorder
}

// recorder is one direction of a connection.
type recorder struct {
	from, to netip.AddrPort

	mu   sync.Mutex
	data bytes.Buffer
}

func (r *recorder) add(b []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.data.Write(b)
}

// Stream is what one direction of a connection carried.
type Stream struct {
	From, To netip.AddrPort
	Data     []byte
}

// Tap records the TCP connections made from now on between a and b, whichever
// dials; nil stands for any host. Connections within a host are not recorded.
func (n *Net) Tap(a, b *Host) *Tap {
	t := &Tap{a: a, b: b}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.taps = append(n.taps, t)
	return t
}

// Streams returns what was recorded so far, in the order of connecting, client
// to server first.
func (t *Tap) Streams() []Stream {
	t.mu.Lock()
	defer t.mu.Unlock()
	var ss []Stream
	for _, r := range t.streams {
		r.mu.Lock()
		ss = append(ss, Stream{r.from, r.to, bytes.Clone(r.data.Bytes())})
		r.mu.Unlock()
	}
	return ss
}

// record attaches the taps that watch a new connection. The caller holds mu, and
// nobody uses the connection yet.
func (n *Net) record(w way, client *Conn) {
	if w.link == nil {
		return
	}
	watches := func(t *Tap) bool {
		is := func(want, h *Host) bool { return want == nil || want == h }
		c, s := client.view.host, w.host
		return is(t.a, c) && is(t.b, s) || is(t.a, s) && is(t.b, c)
	}
	if !slices.ContainsFunc(n.taps, watches) {
		return
	}
	dialled := w.addr
	if w.original.IsValid() {
		dialled = w.original
	}
	there := &recorder{from: client.local, to: dialled}
	back := &recorder{from: dialled, to: client.local}
	client.stream.pipes[0].record, client.stream.pipes[1].record = there, back
	for _, t := range n.taps {
		if watches(t) {
			t.mu.Lock()
			t.streams = append(t.streams, there, back)
			t.mu.Unlock()
		}
	}
}

// OnlyTLS says whether the stream is nothing but TLS records, the last of which
// may be cut short. An empty stream is not.
func (s Stream) OnlyTLS() bool {
	const header = 5 // type, version, length: RFC 8446, section 5.1
	b := s.Data
	if len(b) == 0 {
		return false
	}
	for len(b) >= header {
		// change_cipher_spec, alert, handshake, application_data
		if b[0] < 20 || b[0] > 23 || b[1] != 3 {
			return false
		}
		n := header + int(binary.BigEndian.Uint16(b[3:]))
		if n > len(b) {
			return true
		}
		b = b[n:]
	}
	return len(b) == 0 || b[0] >= 20 && b[0] <= 23
}
