package http2

import (
	"bytes"
	"encoding/binary"
	"time"
)

// read is the reader. It returns why the connection ends.
func (c *Conn) read() error {
	for {
		// 1st: what is there.
		if err := c.fill(); err != nil {
			return err
		}
		// 2nd: each frame, and what handlers make of it.
		err := c.frames()
		// 3rd: what they sent.
		c.batch.Flush()
		if err != nil {
			return err
		}
	}
}

// fill reads something, and does what is due while it waits.
func (c *Conn) fill() error {
	for {
		if c.in.w > c.in.r && !c.partial && !c.greetedShort() {
			return nil // bytes that were there from the beginning
		}
		n, err := c.sock.read(&c.in)
		if n > 0 {
			c.in.w += n
			c.lastReceived.Store(c.batch.now().UnixNano())
			return nil
		}
		if err == nil {
			continue // a write of nothing, through a pipe
		}
		if !isTimeout(err) {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.err != nil {
				return c.err
			}
			return err
		}
		err = c.chores()
		c.batch.Flush()
		if err != nil {
			return err
		}
	}
}

// greetedShort reports whether the preface is not complete.
func (c *Conn) greetedShort() bool {
	return !c.client && !c.greeted && c.in.w-c.in.r < len(preface)
}

var errPreface = &ConnError{Code: ProtocolError, Reason: "no HTTP/2 preface"}

// frames handles the frames that are complete.
func (c *Conn) frames() error {
	if !c.client && !c.greeted {
		here := c.in.b[c.in.r:c.in.w]
		n := min(len(here), len(preface))
		if string(here[:n]) != preface[:n] {
			return errPreface
		}
		if n < len(preface) {
			return nil
		}
		c.in.r += n
		c.greeted = true
	}
	for some := false; ; some = true {
		f, n, ok := parseFrame(c.in.b[c.in.r:c.in.w])
		if n > maxFrame {
			return &ConnError{Code: FrameSizeError, Reason: "frame too large"}
		}
		if !ok {
			c.awaitRest(some)
			return nil
		}
		c.in.r += frameHeader + n
		if err := c.handle(&f); err != nil {
			return err
		}
	}
}

// awaitRest bounds the time for what is there in part; some says that frames were
// handled before it.
func (c *Conn) awaitRest(some bool) {
	partial := c.in.r < c.in.w || c.blockID != 0
	if !partial && !c.partial {
		return
	}
	now := c.batch.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !partial:
		c.deadlines[frameDeadline] = time.Time{}
	case !c.partial || some && c.blockID == 0:
		// A frame has one deadline however often a byte of it comes, and a header
		// section has one for all its frames.
		c.setDeadline(frameDeadline, now.Add(c.cfg.FrameTimeout), now)
	}
	c.partial = partial
}

func protocolError(reason string) error { return &ConnError{Code: ProtocolError, Reason: reason} }

func sizeError(reason string) error { return &ConnError{Code: FrameSizeError, Reason: reason} }

var errCalm = &ConnError{Code: EnhanceYourCalm, Reason: "too many frames without use"}

// productive is how many useless frames a useful one excuses. Source: Envoy's
// max_inbound_window_update_frames_per_data_frame_sent.
const productive = 10

// useless counts a frame that carries nothing.
func (c *Conn) useless() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.uselessLocked()
}

func (c *Conn) uselessLocked() error {
	if !c.control.take(c.batch.now()) {
		return errCalm
	}
	return nil
}

// handle handles a frame. An error ends the connection.
func (c *Conn) handle(f *frame) error {
	if c.blockID != 0 && (f.kind != frameContinuation || f.stream != c.blockID) {
		return protocolError("a header section was interrupted")
	}
	if !c.settled() && (f.kind != frameSettings || f.has(flagAck)) {
		return protocolError("the first frame is not SETTINGS")
	}
	switch f.kind {
	case frameData:
		return c.onData(f)
	case frameHeaders:
		return c.onHeaders(f)
	case framePriority:
		return c.onPriority(f)
	case frameReset:
		return c.onReset(f)
	case frameSettings:
		return c.onSettings(f)
	case framePushPromise:
		return protocolError("PUSH_PROMISE was not allowed")
	case framePing:
		return c.onPing(f)
	case frameGoAway:
		return c.onGoAway(f)
	case frameWindowUpdate:
		return c.onWindow(f)
	case frameContinuation:
		return c.onContinuation(f)
	}
	return c.useless() // RFC 9113 section 5.5: unknown frames are ignored
}

// settled reports whether the peer's first SETTINGS are there.
func (c *Conn) settled() bool {
	select {
	case <-c.ready:
		return true
	default:
		return false
	}
}

// idleStream reports whether a stream was never opened. mu is held.
func (c *Conn) idleStream(id uint32) bool {
	if c.client {
		return id%2 == 0 || id >= c.nextID
	}
	return id%2 == 0 || id > c.maxID
}

// onData handles DATA. Source: RFC 9113 section 6.1.
func (c *Conn) onData(f *frame) error {
	whole := int64(len(f.payload)) // padding counts against the windows
	if f.stream == 0 || !f.unpad() {
		return protocolError("bad DATA")
	}
	p, end := f.payload, f.has(flagEndStream)
	c.mu.Lock()
	if whole > c.recvWin {
		c.mu.Unlock()
		return &ConnError{Code: FlowControlError, Reason: "more data than the connection's window"}
	}
	c.recvWin -= whole
	s := c.streams.get(f.stream)
	if s == nil {
		defer c.unlock(&c.batch)
		return c.strayData(f.stream, whole)
	}
	if whole > s.recvWin {
		return c.abort(s, FlowControlError, "more data than the stream's window", whole)
	}
	s.recvWin -= whole
	s.got += int64(len(p))
	switch {
	case s.remoteEnd:
		return c.abort(s, StreamClosed, "data behind the end", whole)
	case !s.headSeen:
		return c.abort(s, ProtocolError, "data before a head", whole)
	case s.length >= 0 && s.got > s.length, end && s.length >= 0 && s.got != s.length:
		return c.abort(s, ProtocolError, "data is not as long as content-length said", whole)
	}
	if len(p) == 0 && !end {
		err := c.uselessLocked()
		c.grant(whole)
		s.grant(whole)
		c.unlock(&c.batch)
		return err
	}
	c.control.give(productive)
	s.held += int64(len(p))
	c.held += int64(len(p))
	if c.held <= c.cfg.MaxHeld {
		c.grant(whole)
	} else {
		c.owed += int64(len(p))
		c.grant(whole - int64(len(p)))
	}
	if !end {
		s.grant(whole - int64(len(p)))
	}
	if end {
		c.endRemote(s)
	}
	h := s.handler
	s.hold()
	c.unlock(&c.batch)
	c.callData(&c.batch, s, h, p, end)
	s.drop()
	return nil
}

// endRemote notes END_STREAM. mu is held.
func (c *Conn) endRemote(s *Stream) {
	s.remoteEnd = true
	if s.localEnd {
		c.resets.give(1)
		c.remove(s, c.batch.now())
	}
}

// strayData handles DATA of a stream that is not there. mu is held.
func (c *Conn) strayData(id uint32, n int64) error {
	c.grant(n)
	if c.idleStream(id) {
		return protocolError("DATA of an idle stream")
	}
	if c.resetIDs.has(id) {
		return c.uselessLocked() // it was on its way
	}
	c.writeReset(id, StreamClosed)
	if err := c.uselessLocked(); err != nil {
		return err
	}
	return nil
}

var errResets = &ConnError{Code: EnhanceYourCalm, Reason: "too many streams reset"}

// abort resets a stream for what the peer did, which was called with mu held and
// gives it back. n is what of the frame counts against the connection's window.
func (c *Conn) abort(s *Stream, code ErrCode, reason string, n int64) error {
	var err error
	if !c.resets.take(c.batch.now()) {
		err = errResets
	}
	c.grant(n)
	c.writeReset(s.id, code)
	s.hold()
	c.remove(s, c.batch.now())
	c.unlock(&c.batch)
	c.callReset(&c.batch, s, Reset{Code: code, Reason: reason})
	s.drop()
	return err
}

// refuse resets a stream that no one has heard of. mu is held.
func (c *Conn) refuse(id uint32, code ErrCode) error {
	c.writeReset(id, code)
	if code == RefusedStream && !c.acked {
		// The client may not know our limit yet.
		return c.uselessLocked()
	}
	if !c.resets.take(c.batch.now()) {
		return errResets
	}
	return nil
}

// onPriority ignores PRIORITY, but for its form. Source: RFC 9113 section 6.3.
func (c *Conn) onPriority(f *frame) error {
	if f.stream == 0 {
		return protocolError("PRIORITY without a stream")
	}
	code, reason := NoError, ""
	switch {
	case len(f.payload) != 5:
		code, reason = FrameSizeError, "bad PRIORITY"
	case binary.BigEndian.Uint32(f.payload)&maxStreamID == f.stream:
		code, reason = ProtocolError, "a stream depends on itself"
	default:
		return c.useless()
	}
	c.mu.Lock()
	if s := c.streams.get(f.stream); s != nil {
		return c.abort(s, code, reason, 0)
	}
	c.mu.Unlock()
	return &ConnError{Code: code, Reason: reason}
}

// onReset handles RST_STREAM. Source: RFC 9113 section 6.4.
func (c *Conn) onReset(f *frame) error {
	if f.stream == 0 {
		return protocolError("RST_STREAM without a stream")
	}
	if len(f.payload) != 4 {
		return sizeError("bad RST_STREAM")
	}
	code := ErrCode(binary.BigEndian.Uint32(f.payload))
	c.mu.Lock()
	s := c.streams.get(f.stream)
	if s == nil {
		defer c.mu.Unlock()
		if c.idleStream(f.stream) {
			return protocolError("RST_STREAM of an idle stream")
		}
		return c.uselessLocked()
	}
	var err error
	if !c.client && !c.resets.take(c.batch.now()) {
		err = errResets
	}
	s.hold()
	c.remove(s, c.batch.now())
	c.unlock(&c.batch)
	c.callReset(&c.batch, s, Reset{Code: code, Remote: true, Retry: c.client && code == RefusedStream})
	s.drop()
	return err
}

// onSettings handles SETTINGS. Source: RFC 9113 section 6.5.
func (c *Conn) onSettings(f *frame) error {
	if f.stream != 0 {
		return protocolError("SETTINGS with a stream")
	}
	if f.has(flagAck) {
		if len(f.payload) != 0 {
			return sizeError("acknowledgement with settings")
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.deadlines[settingsDeadline] = time.Time{}
		if c.acked {
			return c.uselessLocked()
		}
		c.acked = true
		return nil
	}
	if len(f.payload)%6 != 0 {
		return sizeError("bad SETTINGS")
	}
	first := !c.settled()
	b := &c.batch
	c.mu.Lock()
	// Only the last value of a window counts: to walk through all streams for each
	// would be work that the peer does not pay for.
	window := c.peerWindow
	for p := f.payload; len(p) > 0; p = p[6:] {
		v := binary.BigEndian.Uint32(p[2:])
		bad, code := "", ProtocolError
		switch setting(binary.BigEndian.Uint16(p)) {
		case settingTableSize:
			c.enc.setMax(v)
		case settingPush:
			if v > 1 || v == 1 && c.client {
				bad = "bad ENABLE_PUSH"
			}
		case settingMaxStreams:
			c.peerStreams = min(v, maxWindow)
		case settingWindow:
			if v > maxWindow {
				bad, code = "bad INITIAL_WINDOW_SIZE", FlowControlError
			}
			window = int64(v)
		case settingMaxFrame:
			if v < maxFrame || v > maxFrameEver {
				bad = "bad MAX_FRAME_SIZE"
			}
		case settingExtendedConnect:
			if v > 1 || v == 0 && c.peerConnect {
				bad = "bad ENABLE_CONNECT_PROTOCOL"
			}
			c.peerConnect = v == 1
		}
		if bad != "" {
			c.mu.Unlock()
			return &ConnError{Code: code, Reason: bad}
		}
	}
	if err := c.setWindow(window); err != nil {
		c.mu.Unlock()
		return err
	}
	var err error
	if !first {
		err = c.uselessLocked()
	} else {
		close(c.ready)
	}
	c.frame(0, frameSettings, flagAck, 0)
	c.notify = true
	c.pump(b)
	c.unlock(b)
	b.deliver()
	return err
}

// setWindow applies INITIAL_WINDOW_SIZE to all streams. Source: RFC 9113 section
// 6.9.2. mu is held.
func (c *Conn) setWindow(window int64) error {
	by := window - c.peerWindow
	if by == 0 {
		return nil
	}
	c.peerWindow = window
	over := false
	c.streams.all(func(s *Stream) {
		s.sendWin += by
		over = over || s.sendWin > maxWindow
		if s.out.n > 0 && s.sendWin > 0 {
			c.enqueue(s)
		}
	})
	if over {
		return &ConnError{Code: FlowControlError, Reason: "a window is too large"}
	}
	return nil
}

// onPing handles PING. Source: RFC 9113 section 6.7.
func (c *Conn) onPing(f *frame) error {
	if f.stream != 0 {
		return protocolError("PING with a stream")
	}
	if len(f.payload) != 8 {
		return sizeError("bad PING")
	}
	c.mu.Lock()
	defer c.unlock(&c.batch)
	err := c.uselessLocked()
	if !f.has(flagAck) {
		c.writePing(flagAck, f.payload)
		return err
	}
	switch {
	case bytes.Equal(f.payload, drainPing[:]):
		if c.draining && !c.client {
			c.lastGoAway()
		}
	case bytes.Equal(f.payload, alivePing[:]):
		c.pinging = false
		c.deadlines[pongDeadline] = time.Time{}
	}
	return err
}

// maxReason bounds what is kept of a GOAWAY's text.
const maxReason = 128

// onGoAway handles GOAWAY: streams above the last that the peer will look at can be
// tried elsewhere. Source: RFC 9113 section 6.8.
func (c *Conn) onGoAway(f *frame) error {
	if f.stream != 0 {
		return protocolError("GOAWAY with a stream")
	}
	if len(f.payload) < 8 {
		return sizeError("bad GOAWAY")
	}
	last := binary.BigEndian.Uint32(f.payload) & maxStreamID
	code := ErrCode(binary.BigEndian.Uint32(f.payload[4:]))
	b := &c.batch
	c.mu.Lock()
	err := c.uselessLocked()
	c.goingAway, c.notify = true, true
	c.peerLast = min(c.peerLast, last)
	var over []*Stream
	if c.client {
		c.streams.all(func(s *Stream) {
			if s.id > c.peerLast {
				s.hold()
				over = append(over, s)
				c.remove(s, b.now())
			}
		})
	}
	c.finish()
	c.unlock(b)
	for _, s := range over {
		c.callReset(b, s, Reset{Code: RefusedStream, Remote: true, Retry: true, Conn: true, Reason: "GOAWAY"})
		s.drop()
	}
	if err != nil || code == NoError {
		return err
	}
	return &ConnError{Code: code, Remote: true, Reason: string(f.payload[8:min(len(f.payload), 8+maxReason)])}
}

// onWindow handles WINDOW_UPDATE. Source: RFC 9113 section 6.9.
func (c *Conn) onWindow(f *frame) error {
	if len(f.payload) != 4 {
		return sizeError("bad WINDOW_UPDATE")
	}
	n := int64(binary.BigEndian.Uint32(f.payload) & maxWindow)
	b := &c.batch
	c.mu.Lock()
	if err := c.uselessLocked(); err != nil {
		c.mu.Unlock()
		return err
	}
	if f.stream == 0 {
		c.sendWin += n
		if n == 0 || c.sendWin > maxWindow {
			c.mu.Unlock()
			if n == 0 {
				return protocolError("WINDOW_UPDATE of nothing")
			}
			return &ConnError{Code: FlowControlError, Reason: "the connection's window is too large"}
		}
	} else {
		s := c.streams.get(f.stream)
		if s == nil {
			defer c.mu.Unlock()
			if c.idleStream(f.stream) {
				return protocolError("WINDOW_UPDATE of an idle stream")
			}
			return nil
		}
		if n == 0 {
			return c.abort(s, ProtocolError, "WINDOW_UPDATE of nothing", 0)
		}
		if s.sendWin += n; s.sendWin > maxWindow {
			return c.abort(s, FlowControlError, "the window is too large", 0)
		}
		if s.out.n > 0 && s.sendWin > 0 {
			c.enqueue(s)
		}
	}
	c.pump(b)
	c.unlock(b)
	b.deliver()
	return nil
}
