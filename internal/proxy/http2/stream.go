package http2

import (
	"sync"
	"sync/atomic"
	"time"
)

// StreamHandler hears what happens on a stream; see the package for what it may
// do. A stream has one OnHeaders for its head, before it those of 1xx responses,
// then OnData and at most one OnTrailers, as long as the peer sends; end is true
// with the last of them. OnReset replaces all that has not come yet, and comes
// last.
type StreamHandler interface {
	OnHeaders(b *Batch, s *Stream, h *Head, end bool)
	// OnData is called with the bytes of one frame, which may be none with end. They
	// count against the windows until they are consumed.
	OnData(b *Batch, s *Stream, p []byte, end bool)
	OnTrailers(b *Batch, s *Stream, h *Head)
	// OnReset tells that the stream is over. A client whose whole response came
	// before it, with NoError, was only told to stop sending.
	OnReset(b *Batch, s *Stream, r Reset)
	// OnWindow tells that n bytes which SendData had to keep were sent. It may come
	// from any goroutine, also while another event is handled; but never after
	// Release.
	OnWindow(b *Batch, s *Stream, n int)
}

// Stream is one request with its response. Its methods may be called from any
// goroutine until Release.
type Stream struct {
	conn *Conn
	id   uint32
	// refs counts who may still look at the stream: the connection while the stream
	// is in its table or list, the handler until Release, each event on its way.
	refs atomic.Int32

	// conn.mu guards
	handler StreamHandler
	link    *Stream // in the table
	next    *Stream // in the list of those that could send
	queued  bool    // in that list

	gone      bool // ended, or reset: no longer in the table
	released  bool
	localEnd  bool // END_STREAM was sent
	remoteEnd bool // END_STREAM was received
	ending    bool // END_STREAM follows what is kept
	headSent  bool // the final head was sent

	sendWin  int64 // what the peer allows us to send; may be negative
	recvWin  int64 // what we allow the peer to send
	held     int64 // received and not consumed
	credit   int64 // consumed and not allowed to be sent again yet
	out      queue
	trailers *Head     // that follow what is kept
	stalled  time.Time // since when what is kept has not moved
	openAt   uint64    // how much the connection had to send before this stream

	// The reader owns the rest.
	headSeen bool
	noBody   bool  // it answers HEAD
	connect  bool  // CONNECT: lengths mean nothing
	length   int64 // what the content-length said, or -1
	got      int64
	interim  int
}

var streamPool = sync.Pool{New: func() any { return new(Stream) }}

func newStream(c *Conn, id uint32, h StreamHandler) *Stream {
	s := streamPool.Get().(*Stream)
	s.conn, s.id, s.handler = c, id, h
	s.length = -1
	s.sendWin, s.recvWin = c.peerWindow, int64(c.cfg.StreamWindow)
	s.refs.Store(2) // the table and the handler
	return s
}

func (s *Stream) hold() { s.refs.Add(1) }

func (s *Stream) drop() {
	if s.refs.Add(-1) != 0 {
		return
	}
	s.conn, s.handler, s.link, s.next, s.trailers = nil, nil, nil, nil, nil
	s.queued, s.gone, s.released, s.localEnd, s.remoteEnd, s.ending, s.headSent = false, false, false, false, false, false, false
	s.held, s.credit, s.stalled, s.openAt = 0, 0, time.Time{}, 0
	s.headSeen, s.noBody, s.connect, s.got, s.interim = false, false, false, 0, 0
	streamPool.Put(s)
}

// ID returns the stream's number.
func (s *Stream) ID() uint32 { return s.id }

// Conn returns the stream's connection.
func (s *Stream) Conn() *Conn { return s.conn }

// Handle makes h hear the events that follow. Only a handler calls it, in
// OnHeaders.
func (s *Stream) Handle(h StreamHandler) {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	s.handler = h
}

// SendHead sends a head, or trailers if the head was sent; those end the stream
// whatever end says. A Status below 200 announces the head. Data that is kept goes
// before trailers.
func (s *Stream) SendHead(b *Batch, h *Head, end bool) error {
	c := s.conn
	c.mu.Lock()
	defer c.unlock(b)
	if s.gone || s.ending || s.localEnd {
		return ErrStreamEnded
	}
	end = end || s.headSent
	if s.headSent && s.out.n > 0 {
		s.trailers = heads.Get().(*Head)
		s.trailers.copyFields(h)
		s.ending = true
		return nil
	}
	s.headSent = h.Status == 0 || h.Status >= 200
	c.writeHead(s.id, h, end)
	if end {
		c.endLocal(s, b.now())
	}
	return nil
}

// SendData sends p, with end as the last of the stream. Nothing waits: held is how
// much of p was copied to be sent when the peer allows it, of which OnWindow will
// tell. With an error the stream can only be reset.
func (s *Stream) SendData(b *Batch, p []byte, end bool) (held int, err error) {
	c := s.conn
	c.mu.Lock()
	defer c.unlock(b)
	if s.gone || s.ending || s.localEnd {
		return 0, ErrStreamEnded
	}
	if s.out.n == 0 && (c.first == nil || len(p) == 0) {
		for {
			n := int(min(int64(len(p)), maxFrame, max(s.sendWin, 0), max(c.sendWin, 0)))
			if n < len(p) && (n == 0 || c.outLen() >= outLimit) || n > 0 && c.outLen() >= outMost {
				break
			}
			last := n == len(p)
			if n > 0 || end {
				c.writeData(s, p[:n], end && last)
			}
			p = p[n:]
			if last {
				if end {
					c.endLocal(s, b.now())
				}
				return 0, nil
			}
		}
	}
	if s.out.n+len(p) > c.cfg.MaxQueued {
		return 0, ErrQueueFull
	}
	if !s.out.append(&c.account, p) {
		return 0, ErrBudget
	}
	s.ending = end
	if s.stalled.IsZero() {
		now := b.now()
		s.stalled = now
		if c.deadlines[stallDeadline].IsZero() {
			c.setDeadline(stallDeadline, now.Add(c.cfg.StallTimeout), now)
		}
	}
	if s.sendWin > 0 {
		c.enqueue(s)
	}
	return len(p), nil
}

// Queued returns how much data waits to be sent.
func (s *Stream) Queued() int {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	return s.out.n
}

// Consume tells that n bytes that OnData passed are no longer kept.
func (s *Stream) Consume(b *Batch, n int) {
	if n == 0 {
		return
	}
	c := s.conn
	c.mu.Lock()
	defer c.unlock(b)
	take := min(int64(n), s.held)
	s.held -= take
	c.consumed(take)
	if s.gone || s.remoteEnd {
		return
	}
	s.grant(take)
}

// grant gives the peer a stream's window back, when half of it is used.
func (s *Stream) grant(n int64) {
	s.credit += n
	if s.credit < int64(s.conn.cfg.StreamWindow)/2 {
		return
	}
	s.conn.writeWindow(s.id, s.credit)
	s.recvWin += s.credit
	s.credit = 0
}

// Reset ends the stream. What is kept is not sent any more, and no event follows
// from the peer, but one may be on its way.
func (s *Stream) Reset(b *Batch, code ErrCode) {
	c := s.conn
	c.mu.Lock()
	defer c.unlock(b)
	if s.gone {
		return
	}
	c.writeReset(s.id, code)
	c.remove(s, b.now())
}

// Release tells that the handler has done with the stream, and takes its reference.
// What is kept is still sent, if that is the end of our side. Otherwise a stream
// that is not over is reset; a server's whose response is complete with NoError,
// for the rest of the request does not matter any more. Source: RFC 9113 section
// 8.1.
func (s *Stream) Release(b *Batch) {
	c := s.conn
	c.mu.Lock()
	if s.released {
		c.mu.Unlock()
		return
	}
	s.released = true
	switch {
	case s.gone:
	case s.ending && !s.localEnd && (s.remoteEnd || !c.client):
		s.handler = ignore{}
	default:
		code := Cancel
		if !c.client && s.localEnd {
			code = NoError
		}
		c.writeReset(s.id, code)
		c.remove(s, b.now())
	}
	c.live--
	c.consumed(s.held)
	s.held = 0
	c.unlock(b)
	s.drop()
}

// streams finds streams by their number.
type streams struct {
	buckets []*Stream
	n       int
}

func (t *streams) bucket(id uint32) **Stream {
	return &t.buckets[int(id>>1)&(len(t.buckets)-1)]
}

func (t *streams) get(id uint32) *Stream {
	if t.n == 0 {
		return nil
	}
	for s := *t.bucket(id); s != nil; s = s.link {
		if s.id == id {
			return s
		}
	}
	return nil
}

func (t *streams) add(s *Stream) {
	if t.n >= 2*len(t.buckets) {
		old := t.buckets
		t.buckets = make([]*Stream, max(16, 4*len(old)))
		for _, s := range old {
			for s != nil {
				next := s.link
				b := t.bucket(s.id)
				s.link, *b = *b, s
				s = next
			}
		}
	}
	b := t.bucket(s.id)
	s.link, *b = *b, s
	t.n++
}

func (t *streams) remove(s *Stream) {
	for p := t.bucket(s.id); *p != nil; p = &(*p).link {
		if *p == s {
			*p, s.link = s.link, nil
			t.n--
			return
		}
	}
}

// all calls f for each stream; f may remove that one.
func (t *streams) all(f func(*Stream)) {
	for _, s := range t.buckets {
		for s != nil {
			next := s.link
			f(s)
			s = next
		}
	}
}
