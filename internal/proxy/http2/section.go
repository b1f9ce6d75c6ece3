package http2

import (
	"encoding/binary"
	"time"
)

// onHeaders handles HEADERS. Source: RFC 9113 section 6.2.
func (c *Conn) onHeaders(f *frame) error {
	if f.stream == 0 || !f.unpad() {
		return protocolError("bad HEADERS")
	}
	p, itself := f.payload, false
	if f.has(flagPriority) {
		if len(p) < 5 {
			return sizeError("bad HEADERS")
		}
		itself = binary.BigEndian.Uint32(p)&maxStreamID == f.stream
		p = p[5:]
	}
	if f.has(flagEndHeaders) {
		return c.section(f.stream, p, f.has(flagEndStream), itself)
	}
	c.blockID, c.blockEnd, c.blockBad, c.pieces = f.stream, f.has(flagEndStream), itself, 0
	c.block = append(c.block[:0], p...)
	return nil
}

// maxPieces is how many frames a header section may come in: more than its bytes
// need, if all but the last are of a decent size.
const maxPieces = 64

// onContinuation handles CONTINUATION. Source: RFC 9113 section 6.10. The section's
// encoded length is bounded by what its fields may be when they are decoded;
// endless ones end the connection, for the tables can not be kept alike.
func (c *Conn) onContinuation(f *frame) error {
	if c.blockID == 0 {
		return protocolError("CONTINUATION without HEADERS")
	}
	c.block = append(c.block, f.payload...)
	c.pieces++
	if len(c.block) > c.cfg.MaxHeaderBytes || c.pieces > maxPieces {
		return &ConnError{Code: EnhanceYourCalm, Reason: "a header section is too long"}
	}
	if len(f.payload) == 0 {
		if err := c.useless(); err != nil {
			return err
		}
	}
	if !f.has(flagEndHeaders) {
		return nil
	}
	id := c.blockID
	c.blockID = 0
	if c.partial {
		c.partial = false
		c.mu.Lock()
		c.deadlines[frameDeadline] = time.Time{}
		c.mu.Unlock()
	}
	err := c.section(id, c.block, c.blockEnd, c.blockBad)
	if cap(c.block) > maxFrame {
		c.block = nil
	}
	return err
}

// section handles a whole header section.
func (c *Conn) section(id uint32, block []byte, end, itself bool) error {
	h := c.head
	if h == nil {
		h = heads.Get().(*Head)
		h.owner, c.head = c, h
	}
	if !c.dec.decode(h, block) {
		return &ConnError{Code: CompressionError, Reason: "a header section can not be decoded"}
	}
	c.mu.Lock()
	s := c.streams.get(id)
	if s == nil {
		if c.client {
			defer c.unlock(&c.batch)
			return c.strayHead(id)
		}
		return c.newStream(id, h, end, itself)
	}
	switch {
	case s.remoteEnd:
		return c.abort(s, StreamClosed, "a header section behind the end", 0)
	case itself:
		return c.abort(s, ProtocolError, "a stream depends on itself", 0)
	case h.over:
		return c.abort(s, EnhanceYourCalm, "the header section is too large", 0)
	case s.headSeen:
		return c.onTrailers(s, h, end)
	}
	return c.onResponse(s, h, end)
}

// strayHead handles the header section of a stream that is not there. mu is held.
func (c *Conn) strayHead(id uint32) error {
	switch {
	case c.idleStream(id):
		return protocolError("HEADERS of an idle stream")
	case c.resetIDs.has(id):
		return c.uselessLocked() // it was on its way
	case !c.client && id != c.maxID:
		return protocolError("streams out of order")
	}
	return &ConnError{Code: StreamClosed, Reason: "HEADERS of a closed stream"}
}

// newStream begins a client's stream. It is called with mu held and gives it back.
func (c *Conn) newStream(id uint32, h *Head, end, itself bool) error {
	b := &c.batch
	if id%2 == 0 {
		c.mu.Unlock()
		return protocolError("a client's stream has an even number")
	}
	if id <= c.maxID {
		defer c.unlock(b)
		return c.strayHead(id)
	}
	if c.drained {
		// RFC 9113 section 6.8: beyond the last; the client knows, or will.
		defer c.mu.Unlock()
		return c.uselessLocked()
	}
	c.maxID = id
	h.finish(requestHead)
	switch {
	case itself || h.bad != "" || end && h.Length > 0:
		defer c.unlock(b)
		return c.refuse(id, ProtocolError)
	case h.over:
		defer c.unlock(b)
		return c.tooLarge(id, end)
	case c.streams.n >= int(c.cfg.MaxStreams), c.live >= 2*int(c.cfg.MaxStreams):
		// The second is for streams whose handlers are still busy though the client
		// has forgotten them.
		defer c.unlock(b)
		return c.refuse(id, RefusedStream)
	case len(h.Protocol) > 0 && !c.cfg.ExtendedConnect:
		defer c.unlock(b)
		return c.refuse(id, ProtocolError)
	}
	c.control.give(productive)
	c.busy(b)
	s := newStream(c, id, c.cfg.Handler)
	s.headSeen = true
	s.connect = string(h.Method) == "CONNECT"
	if !s.connect {
		s.length = h.Length
	}
	s.remoteEnd = end
	c.streams.add(s)
	c.live++
	s.hold()
	c.mu.Unlock()
	c.callHeaders(b, s, c.cfg.Handler, h, end)
	s.drop()
	return nil
}

// tooLarge answers a request whose header section is too large. mu is held.
func (c *Conn) tooLarge(id uint32, end bool) error {
	c.writeHead(id, &Head{Status: 431}, true)
	if end {
		if !c.resets.take(c.batch.now()) {
			return errResets
		}
		return nil
	}
	return c.refuse(id, NoError)
}

// maxInterim bounds the 1xx responses before the final one.
const maxInterim = 32

// onResponse handles a response's head. It is called with mu held and gives it
// back.
func (c *Conn) onResponse(s *Stream, h *Head, end bool) error {
	h.finish(responseHead)
	interim := h.bad == "" && h.Status < 200
	switch {
	case h.bad != "":
		return c.abort(s, ProtocolError, h.bad, 0)
	case interim && end:
		return c.abort(s, ProtocolError, "a 1xx response is the end", 0)
	case interim:
		if s.interim++; s.interim > maxInterim {
			return c.abort(s, EnhanceYourCalm, "too many 1xx responses", 0)
		}
	default:
		s.headSeen = true
		switch {
		case s.noBody, h.Status == 204, h.Status == 304:
			s.length = 0
		case s.connect && h.Status < 300:
		default:
			s.length = h.Length
		}
		if end && s.length > 0 {
			return c.abort(s, ProtocolError, "no data, but a content-length", 0)
		}
	}
	if end {
		c.endRemote(s)
	}
	sh := s.handler
	s.hold()
	c.unlock(&c.batch)
	c.callHeaders(&c.batch, s, sh, h, end)
	s.drop()
	return nil
}

// onTrailers handles what follows the data. It is called with mu held and gives it
// back.
func (c *Conn) onTrailers(s *Stream, h *Head, end bool) error {
	h.finish(trailerHead)
	switch {
	case !end:
		return c.abort(s, ProtocolError, "a second head", 0)
	case h.bad != "":
		return c.abort(s, ProtocolError, h.bad, 0)
	case s.length >= 0 && s.got != s.length:
		return c.abort(s, ProtocolError, "data is not as long as content-length said", 0)
	}
	c.endRemote(s)
	sh := s.handler
	s.hold()
	c.unlock(&c.batch)
	c.callTrailers(&c.batch, s, sh, h)
	s.drop()
	return nil
}
