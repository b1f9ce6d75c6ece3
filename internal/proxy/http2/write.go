package http2

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"runtime"
	"sync"
	"time"
)

const (
	// outLimit is how much may wait for the socket before data stays with its
	// streams, where other streams can overtake it and credit is not given back.
	outLimit = 48 << 10
	// outMost is the same for data that needs one frame only: of many streams that
	// send a little, all of it may leave at once.
	outMost = 4 * outLimit
	// outSize holds outLimit, and the frame that exceeds it.
	outSize = outLimit + maxFrame + 1<<10
	// outHard ends a connection whose peer makes us send without reading. Heads and
	// control frames alone can get there.
	outHard = 4 << 20
)

// output is frames that wait for the socket.
type output struct{ b []byte }

var outputs = sync.Pool{New: func() any { return &output{make([]byte, 0, outSize)} }}

func (o *output) free() {
	if cap(o.b) <= 4*outSize {
		o.b = o.b[:0]
		outputs.Put(o)
	}
}

// The methods of this file up to flush are called with mu held.

func (c *Conn) outLen() int {
	if c.out == nil {
		return 0
	}
	return len(c.out.b)
}

// frame begins a frame in the queue.
func (c *Conn) frame(n int, kind frameType, flags uint8, stream uint32) *output {
	o := c.out
	switch {
	case c.mute || c.closed: // nobody will read it
		o = &c.trash
		o.b = o.b[:0]
	case o == nil:
		o = outputs.Get().(*output)
		c.out = o
	}
	c.appended += uint64(frameHeader + n)
	o.b = appendFrame(o.b, n, kind, flags, stream)
	if len(o.b) > outHard && c.err == nil {
		c.fail(&ConnError{Code: EnhanceYourCalm, Reason: "the peer does not read"})
	}
	return o
}

func (c *Conn) writeData(s *Stream, p []byte, end bool) {
	flags := uint8(0)
	if end {
		flags = flagEndStream
	}
	o := c.frame(len(p), frameData, flags, s.id)
	o.b = append(o.b, p...)
	s.sendWin -= int64(len(p))
	c.sendWin -= int64(len(p))
	if len(p) > 0 {
		c.control.give(productive)
	}
}

// writeHead encodes a header block. One that is longer than a frame is rare, and
// moved apart afterwards.
func (c *Conn) writeHead(id uint32, h *Head, end bool) {
	flags := uint8(flagEndHeaders)
	if end {
		flags |= flagEndStream
	}
	o := c.frame(0, frameHeaders, flags, id)
	from := len(o.b)
	o.b = c.enc.head(o.b, h)
	n := len(o.b) - from
	c.appended += uint64(n)
	at := from - frameHeader
	if n <= maxFrame {
		o.b[at], o.b[at+1], o.b[at+2] = byte(n>>16), byte(n>>8), byte(n)
		return
	}
	block := append([]byte(nil), o.b[from:]...)
	o.b = o.b[:at]
	kind := frameHeaders
	for flags &^= flagEndHeaders; len(block) > 0; flags = 0 {
		p := block[:min(len(block), maxFrame)]
		if block = block[len(p):]; len(block) == 0 {
			flags |= flagEndHeaders
		}
		o.b = append(appendFrame(o.b, len(p), kind, flags, id), p...)
		kind = frameContinuation
	}
}

func (c *Conn) writeReset(id uint32, code ErrCode) {
	o := c.frame(4, frameReset, 0, id)
	o.b = binary.BigEndian.AppendUint32(o.b, uint32(code))
	c.resetIDs.add(id)
}

func (c *Conn) writeWindow(id uint32, n int64) {
	o := c.frame(4, frameWindowUpdate, 0, id)
	o.b = binary.BigEndian.AppendUint32(o.b, uint32(n))
}

func (c *Conn) writePing(flags uint8, data []byte) {
	o := c.frame(8, framePing, flags, 0)
	o.b = append(o.b, data...)
}

func (c *Conn) writeGoAway(last uint32, code ErrCode, reason string) {
	o := c.frame(8+len(reason), frameGoAway, 0, 0)
	o.b = binary.BigEndian.AppendUint32(o.b, last)
	o.b = binary.BigEndian.AppendUint32(o.b, uint32(code))
	o.b = append(o.b, reason...)
}

// grant gives the peer the connection's window back, when half of it is used.
func (c *Conn) grant(n int64) {
	c.credit += n
	if c.credit < int64(c.cfg.ConnWindow)/2 {
		return
	}
	c.writeWindow(0, c.credit)
	c.recvWin += c.credit
	c.credit = 0
}

// consumed gives back what arrived while too much was held. mu is held.
func (c *Conn) consumed(n int64) {
	c.held -= n
	if n = min(n, c.owed); n > 0 {
		c.owed -= n
		c.grant(n)
	}
}

// enqueue puts a stream at the end of those that have data and a window.
func (c *Conn) enqueue(s *Stream) {
	if s.queued {
		return
	}
	s.queued = true
	s.hold()
	if c.last == nil {
		c.first = s
	} else {
		c.last.next = s
	}
	c.last = s
}

func (c *Conn) dequeue() *Stream {
	s := c.first
	if c.first = s.next; c.first == nil {
		c.last = nil
	}
	s.next, s.queued = nil, false
	return s
}

// pump moves data that streams keep into the queue, a frame from each in turn, as
// far as windows and queue allow, and notes what moved.
func (c *Conn) pump(b *Batch) {
	for c.first != nil && c.sendWin > 0 && c.outLen() < outLimit {
		s := c.dequeue()
		if s.gone || s.out.n == 0 || s.sendWin <= 0 {
			s.drop()
			continue
		}
		moved := 0
		for moved < maxFrame && s.out.n > 0 {
			p := s.out.peek()
			p = p[:min(int64(len(p)), int64(maxFrame-moved), s.sendWin, c.sendWin)]
			if len(p) == 0 {
				break
			}
			end := s.ending && s.trailers == nil && len(p) == s.out.n
			c.writeData(s, p, end)
			moved += len(p)
			s.out.skip(&c.account, len(p))
		}
		s.stalled = b.now()
		b.notes = append(b.notes, note{s, moved}) // with the list's reference
		if s.out.n > 0 {
			if s.sendWin > 0 {
				c.enqueue(s)
			}
			continue
		}
		s.stalled = time.Time{}
		if t := s.trailers; t != nil {
			s.trailers = nil
			c.writeHead(s.id, t, true)
			t.Free()
		}
		if s.ending {
			c.endLocal(s, b.now())
		}
	}
}

// deliver calls the OnWindow of what was noted. The caller holds no lock.
func (b *Batch) deliver() {
	for i := 0; i < len(b.notes); i++ {
		n := b.notes[i]
		b.notes[i] = note{}
		n.s.conn.callWindow(b, n.s, n.n)
		n.s.drop()
	}
	b.notes = b.notes[:0]
}

// unlock ends a change under mu, which may have made something to be written:
// with b when it is flushed, without at once.
func (c *Conn) unlock(b *Batch) {
	if c.out == nil && !c.notify {
		c.mu.Unlock()
		return
	}
	if b == nil {
		c.mu.Unlock()
		b = getBatch()
		c.flush(b)
		b.Flush()
		b.free()
		return
	}
	if c.marked != b {
		c.marked = b
		b.dirty = append(b.dirty, c)
	}
	c.mu.Unlock()
}

// flush writes the queue, as far as the socket takes it without waiting. The rest
// is for a goroutine. If someone is writing already, that one takes over.
//
// An upstream's connection has streams of many clients, whose readers run one after
// the other. The first that would write lets the others add their frames before it
// does; who finds one at it leaves the writing to that one.
func (c *Conn) flush(b *Batch) {
	c.mu.Lock()
	c.marked = nil
	if c.client && c.out != nil && !c.closed {
		if c.gathering {
			c.told()
			return
		}
		c.gathering = true
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
		c.gathering = false
	}
	for c.out != nil && !c.writing && !c.shut {
		o := c.out
		c.out = nil
		if c.mute {
			o.free()
			break
		}
		c.writing = true
		c.written += uint64(len(o.b)) // for all that anyone knows until it returns
		c.mu.Unlock()
		n, err := c.sock.write(o.b)
		c.mu.Lock()
		if err != nil {
			c.written -= uint64(len(o.b) - n)
			c.writeFailed(err)
		} else if n < len(o.b) && !c.shut {
			c.writers.Add(1)
			go c.writeRest(o, o.b[n:])
			break
		}
		c.wrote(o, b)
	}
	c.told()
}

// wrote ends a write: what waited for the queue can follow.
func (c *Conn) wrote(o *output, b *Batch) {
	o.free()
	c.writing = false
	c.pump(b)
	if len(b.notes) > 0 {
		c.mu.Unlock()
		b.deliver()
		c.mu.Lock()
	}
}

// told unlocks, and tells the owner if something changed that it wants to know.
func (c *Conn) told() {
	tell := c.notify && c.cfg.OnState != nil
	c.notify = false
	c.mu.Unlock()
	if tell {
		c.cfg.OnState(c)
	}
}

// writeRest writes what the socket did not take at once, and what comes meanwhile,
// until nothing is left.
func (c *Conn) writeRest(o *output, p []byte) {
	defer c.writers.Done()
	b := getBatch()
	defer b.free()
	for {
		c.conn.SetWriteDeadline(time.Now().Add(c.patience()))
		n, err := c.conn.Write(p)
		// The next write may be one that does not wait, and does not set it.
		c.conn.SetWriteDeadline(time.Time{})
		c.mu.Lock()
		if err != nil {
			c.written -= uint64(len(p) - n)
			c.writeFailed(err)
		}
		c.wrote(o, b)
		if c.out == nil || c.writing || c.shut {
			c.told()
			b.Flush()
			return
		}
		c.writing = true
		o, c.out = c.out, nil
		p = o.b
		c.written += uint64(len(p))
		c.mu.Unlock()
		b.Flush()
	}
}

// patience returns how long a write may take.
func (c *Conn) patience() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hurry {
		return closingWrite
	}
	return c.cfg.WriteTimeout
}

// closingRead is how long a connection is read on that can not be written to: what
// the peer sent before it closed is worth having.
const closingRead = time.Second

// writeFailed ends the output. mu is held.
func (c *Conn) writeFailed(err error) {
	if c.mute {
		return
	}
	c.mute, c.notify = true, true
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.fail(&ConnError{Code: EnhanceYourCalm, Reason: "the peer does not read"})
		return
	}
	if !errors.Is(err, net.ErrClosed) {
		c.lost = err
	}
	c.conn.SetReadDeadline(time.Now().Add(closingRead))
}
