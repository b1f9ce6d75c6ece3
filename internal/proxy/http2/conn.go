package http2

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// Conn is a connection. Its methods may be called from any goroutine.
type Conn struct {
	cfg     Config
	client  bool
	conn    net.Conn
	sock    sock
	ready   chan struct{} // closed by the peer's first SETTINGS
	account account
	writers sync.WaitGroup
	others  sync.WaitGroup // goroutines of Pipes

	mu sync.Mutex
	// mu guards
	streams  streams
	live     int    // not released
	nextID   uint32 // of the next stream we open
	maxID    uint32 // the highest that the peer opened
	enc      encoder
	resetIDs resetIDs

	out               *output // nil: nothing to write
	trash             output
	marked            *Batch // that will flush it
	writing           bool   // someone writes
	gathering         bool   // someone is about to
	mute              bool   // writing failed: nothing is written any more
	closed            bool   // nothing more is queued
	shut              bool   // nothing more is written
	hurry             bool   // what is written last must not take long
	notify            bool   // OnState is due
	wanted            bool   // a stream was refused for the peer's limit
	appended, written uint64 // bytes queued, and bytes the socket may have, since the beginning
	lost              error  // why writing failed
	first, last       *Stream

	sendWin, recvWin, credit int64
	held, owed               int64 // of all streams: not consumed; of that, not given back

	peerWindow   int64
	peerStreams  uint32
	peerConnect  bool
	acked        bool // our settings are
	draining     bool // we told the peer to open no more streams
	drained      bool // we told it the last one
	goingAway    bool // the peer told us
	peerLast     uint32
	control      bucket
	resets       bucket
	deadlines    [deadlineCount]time.Time
	timer        *time.Timer
	fires        time.Time
	pinging      bool
	err          error // why the connection must end
	finished     bool  // it has done all it had to
	lastReceived atomic.Int64

	// The reader owns the rest.
	in       input
	dec      decoder
	head     *Head
	batch    Batch
	greeted  bool // the peer's preface is there
	block    []byte
	blockID  uint32 // whose header section is not complete, or 0
	blockEnd bool
	blockBad bool // it depends on itself
	pieces   int
	partial  bool // a frame is there in part
}

// NewServer returns the machine for a client's connection.
func NewServer(cfg Config) *Conn {
	if cfg.Handler == nil {
		panic("http2: Config.Handler is required")
	}
	return newConn(cfg, false)
}

// NewClient returns the machine for a connection to an upstream. Streams may be
// opened at once; they are sent with the preface.
func NewClient(cfg Config) *Conn { return newConn(cfg, true) }

func newConn(cfg Config, client bool) *Conn {
	if cfg.Conn == nil {
		panic("http2: Config.Conn is required")
	}
	cfg.setDefaults(client)
	c := &Conn{
		cfg:         cfg,
		client:      client,
		conn:        cfg.Conn,
		ready:       make(chan struct{}),
		nextID:      1,
		sendWin:     defaultWindow,
		recvWin:     defaultWindow,
		peerWindow:  defaultWindow,
		peerStreams: assumedStreams,
		peerLast:    maxStreamID,
		control:     newBucket(cfg.Control),
		resets:      newBucket(cfg.Resets),
	}
	c.account.budget = cfg.Budget
	c.sock.init(cfg.Conn)
	c.enc.init()
	c.dec.init(cfg.MaxHeaderBytes, cfg.MaxFields)
	c.in.preset(cfg.First)
	c.cfg.First = nil
	c.greet()
	return c
}

// assumedStreams is how many streams are opened before the peer has said how many
// it takes. Source: RFC 9113 section 6.5.2, the least it should take.
const assumedStreams = 100

// greet queues what a connection begins with.
func (c *Conn) greet() {
	o := outputs.Get().(*output)
	c.out = o
	if c.client {
		o.b = append(o.b, preface...)
	}
	at := len(o.b)
	o.b = appendFrame(o.b, 0, frameSettings, 0, 0)
	if c.client {
		o.b = appendSetting(o.b, settingPush, 0)
	} else {
		o.b = appendSetting(o.b, settingMaxStreams, c.cfg.MaxStreams)
		if c.cfg.ExtendedConnect {
			o.b = appendSetting(o.b, settingExtendedConnect, 1)
		}
	}
	o.b = appendSetting(o.b, settingWindow, uint32(c.cfg.StreamWindow))
	o.b = appendSetting(o.b, settingMaxList, uint32(c.cfg.MaxHeaderBytes))
	o.b[at+2] = byte(len(o.b) - at - frameHeader)
	c.appended = uint64(len(o.b))
	c.grant(int64(c.cfg.ConnWindow) - defaultWindow)
	if c.credit > 0 { // less than half a window
		c.writeWindow(0, c.credit)
		c.recvWin, c.credit = c.recvWin+c.credit, 0
	}
}

// Run serves the connection until it ends, and closes it. When ctx ends it drains,
// as with Shutdown. It returns when all that the connection began has ended.
//
// The error is nil if the connection ended in an orderly way.
func (c *Conn) Run(ctx context.Context) error {
	c.mu.Lock()
	now := time.Now()
	c.lastReceived.Store(now.UnixNano())
	c.setDeadline(settingsDeadline, now.Add(c.cfg.SettingsTimeout), now)
	if c.streams.n == 0 {
		c.idle(now)
	}
	c.mu.Unlock()
	stop := context.AfterFunc(ctx, c.Shutdown)
	c.flush(&c.batch)
	c.batch.Flush()
	err := c.read()
	stop()
	err = c.close(err)
	c.others.Wait()
	return err
}

// Shutdown begins to end the connection: no stream is opened any more, those that
// are open finish. A server tells its client so twice, because streams may be on
// their way. Source: RFC 9113 section 6.8.
func (c *Conn) Shutdown() {
	c.mu.Lock()
	defer c.unlock(nil)
	if c.draining || c.closed {
		return
	}
	c.draining, c.notify = true, true
	if c.client {
		c.drained = true
		c.finish()
		return
	}
	now := time.Now()
	c.writeGoAway(maxStreamID, NoError, "")
	c.writePing(0, drainPing[:])
	c.setDeadline(drainDeadline, now.Add(c.cfg.DrainTimeout), now)
}

// drainPing follows the first GOAWAY: its answer says that no stream is on its way
// any more.
var drainPing = [8]byte{'d', 'r', 'a', 'i', 'n'}

// lastGoAway tells the client which stream was the last. mu is held.
func (c *Conn) lastGoAway() {
	if c.drained || c.closed {
		return
	}
	c.drained = true
	c.deadlines[drainDeadline] = time.Time{}
	c.writeGoAway(c.maxID, NoError, "")
	c.finish()
}

// finish ends the connection if it has nothing left to do. mu is held.
func (c *Conn) finish() {
	if (c.drained || c.goingAway) && c.streams.n == 0 && !c.finished {
		c.finished = true
		c.conn.SetReadDeadline(past)
	}
}

// past is a deadline that makes a blocked read return.
var past = time.Unix(1, 0)

// Close ends the connection at once. Run returns.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mute = true
	c.fail(net.ErrClosed)
	return c.conn.Close()
}

// fail makes the reader end the connection. mu is held.
func (c *Conn) fail(err error) {
	if c.err == nil {
		c.err, c.notify = err, true
		c.conn.SetReadDeadline(past)
	}
}

// Ready returns a channel that is closed when the peer's settings are known.
func (c *Conn) Ready() <-chan struct{} { return c.ready }

// Room returns how many streams can be opened now. If there is none, OnState tells
// when that may have changed; it does not any more once the connection is going away.
func (c *Conn) Room() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.endingSoon() {
		return 0
	}
	n := max(int(c.peerStreams)-c.streams.n, 0)
	c.wanted = c.wanted || n == 0
	return n
}

// Streams returns how many streams are open.
func (c *Conn) Streams() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.streams.n
}

// Err returns nil as long as streams may be opened, though perhaps not now.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return c.err
	case c.endingSoon():
		return ErrGoingAway
	}
	return nil
}

func (c *Conn) endingSoon() bool {
	return c.draining || c.goingAway || c.closed || c.mute || c.err != nil || c.nextID > maxStreamID
}

// Config returns the connection's configuration with its defaults.
func (c *Conn) Config() *Config { return &c.cfg }

// NetConn returns the connection below.
func (c *Conn) NetConn() net.Conn { return c.conn }

// Open opens a stream with a request, end if that is all of it. The events go to
// h. An error means that nothing was sent.
func (c *Conn) Open(b *Batch, head *Head, end bool, h StreamHandler) (*Stream, error) {
	c.mu.Lock()
	defer c.unlock(b)
	switch {
	case c.endingSoon():
		return nil, ErrGoingAway
	case len(head.Protocol) > 0 && !c.peerConnect:
		return nil, ErrNoExtendedConnect
	case c.streams.n >= int(c.peerStreams):
		c.wanted = true
		return nil, ErrStreams
	}
	s := newStream(c, c.nextID, h)
	c.nextID += 2
	s.openAt = c.appended
	s.noBody = string(head.Method) == "HEAD"
	s.connect = string(head.Method) == "CONNECT"
	s.headSent = true
	c.streams.add(s)
	c.live++
	c.busy(b)
	c.writeHead(s.id, head, end)
	if end {
		c.endLocal(s, b.now())
	}
	return s, nil
}

// busy notes that there is a stream. mu is held.
func (c *Conn) busy(b *Batch) {
	c.deadlines[idleDeadline] = time.Time{}
	if c.cfg.PingInterval > 0 && c.deadlines[pingDeadline].IsZero() {
		now := b.now()
		c.setDeadline(pingDeadline, now.Add(c.cfg.PingInterval), now)
	}
}

// endLocal notes that END_STREAM was sent. mu is held.
func (c *Conn) endLocal(s *Stream, now time.Time) {
	s.localEnd, s.ending = true, true
	switch {
	case s.remoteEnd:
		c.resets.give(1)
		c.remove(s, now)
	case s.released:
		c.writeReset(s.id, NoError)
		c.remove(s, now)
	}
}

// remove takes a stream that is over out of the table. mu is held.
func (c *Conn) remove(s *Stream, now time.Time) {
	if s.gone {
		return
	}
	s.gone = true
	c.streams.remove(s)
	s.out.clear(&c.account)
	if s.trailers != nil {
		s.trailers.Free()
		s.trailers = nil
	}
	s.stalled = time.Time{}
	if c.wanted {
		c.wanted, c.notify = false, true
	}
	if c.streams.n == 0 {
		c.idle(now)
		c.finish()
	}
	s.drop() // the handler has another reference, or let go of it just now
}

// idle begins the time that a connection may be idle. mu is held.
func (c *Conn) idle(now time.Time) {
	if c.cfg.IdleTimeout > 0 {
		c.setDeadline(idleDeadline, now.Add(c.cfg.IdleTimeout), now)
	}
}

// resetIDs remembers streams that we reset, of which frames may be on their way.
type resetIDs struct {
	ids  []uint32
	next int
}

// maxResetIDs is more than a peer of good will has on their way.
const maxResetIDs = 1024

func (r *resetIDs) add(id uint32) {
	if len(r.ids) < maxResetIDs {
		r.ids = append(r.ids, id)
		return
	}
	r.ids[r.next] = id
	r.next = (r.next + 1) % maxResetIDs
}

func (r *resetIDs) has(id uint32) bool {
	for _, x := range r.ids {
		if x == id {
			return true
		}
	}
	return false
}

// errDone ends the reader of a connection that has nothing left to do.
var errDone = errors.New("http2: done")

// close ends the connection after its reader stopped with err, and returns what
// Run does.
func (c *Conn) close(err error) error {
	b := &c.batch
	broken, ours := errors.AsType[*ConnError](err)
	ours = ours && !broken.Remote
	c.mu.Lock()
	if c.timer != nil {
		c.timer.Stop()
	}
	for k := range c.deadlines {
		c.deadlines[k] = time.Time{}
	}
	orderly := errors.Is(err, errDone)
	switch {
	case ours:
		c.writeGoAway(c.maxID, broken.Code, broken.Reason)
	case !orderly:
		// The peer is gone. What is being written comes to an end, so that it is known
		// what left.
		c.mute = true
		c.conn.SetWriteDeadline(past)
		c.mu.Unlock()
		c.writers.Wait()
		c.mu.Lock()
	}
	c.closed, c.notify = true, true
	cut := c.streams.n
	why := Reset{Code: InternalError, Remote: true, Conn: true, Cause: err, Reason: "connection closed"}
	if ours {
		why = Reset{Code: broken.Code, Conn: true, Reason: broken.Reason}
	}
	var over []*Stream
	c.streams.all(func(s *Stream) {
		s.hold()
		over = append(over, s)
		c.remove(s, time.Now())
	})
	c.told()
	for _, s := range over {
		r := why
		c.mu.Lock()
		// What the socket never took, no peer acted on.
		r.Retry = c.client && c.written <= s.openAt
		c.mu.Unlock()
		c.callReset(b, s, r)
		s.drop()
	}
	b.Flush()

	c.lastWrites(orderly)
	if ours || !c.client && orderly {
		c.linger()
	}
	cerr := c.conn.Close()
	c.in.r = c.in.w
	c.in.park()
	if c.head != nil {
		c.head.Free()
		c.head = nil
	}
	switch {
	case orderly, errors.Is(err, net.ErrClosed):
		if errors.Is(cerr, net.ErrClosed) {
			cerr = nil
		}
		return cerr
	case broken == nil && cut == 0:
		return nil
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}

// closingWrite is how long a peer may take for what is sent last.
const closingWrite = time.Second

// lastWrites writes what is left, and ends the writing.
func (c *Conn) lastWrites(orderly bool) {
	if !orderly {
		c.mu.Lock()
		c.hurry = true
		if c.writing {
			c.conn.SetWriteDeadline(time.Now().Add(closingWrite))
		}
		c.mu.Unlock()
	}
	c.flush(&c.batch)
	c.writers.Wait()
	c.mu.Lock()
	c.shut = true
	o := c.out
	c.out = nil
	busy := c.writing // another reader is at it, without waiting
	c.mu.Unlock()
	if o == nil {
		return
	}
	if !busy {
		c.conn.SetWriteDeadline(time.Now().Add(closingWrite))
		c.conn.Write(o.b)
	}
	o.free()
}

const (
	// lingerTime and lingerBytes bound how long a peer is listened to, so that it can
	// read what was sent last: bytes that are left unread when a connection is closed
	// take it with them.
	lingerTime  = time.Second
	lingerBytes = 256 << 10
)

func (c *Conn) linger() {
	w, ok := c.conn.(interface{ CloseWrite() error })
	if !ok || w.CloseWrite() != nil {
		return
	}
	c.conn.SetReadDeadline(time.Now().Add(lingerTime))
	b := inputs.Get().(*[inSize]byte)
	defer inputs.Put(b)
	for n := 0; n < lingerBytes; {
		k, err := c.conn.Read(b[:])
		if err != nil {
			return
		}
		n += k
	}
}

// isTimeout reports whether a read was made to return.
func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// The calls of handlers. A panic ends the stream and no other, if someone wants to
// know of it.

func (c *Conn) callHeaders(b *Batch, s *Stream, h StreamHandler, head *Head, end bool) {
	defer c.rescue(b, s)
	h.OnHeaders(b, s, head, end)
}

func (c *Conn) callTrailers(b *Batch, s *Stream, h StreamHandler, head *Head) {
	defer c.rescue(b, s)
	h.OnTrailers(b, s, head)
}

func (c *Conn) callData(b *Batch, s *Stream, h StreamHandler, p []byte, end bool) {
	defer c.rescue(b, s)
	h.OnData(b, s, p, end)
}

func (c *Conn) callReset(b *Batch, s *Stream, r Reset) {
	c.mu.Lock()
	h, released := s.handler, s.released
	c.mu.Unlock()
	if released {
		return
	}
	defer c.rescue(b, s)
	h.OnReset(b, s, r)
}

func (c *Conn) callWindow(b *Batch, s *Stream, n int) {
	c.mu.Lock()
	h, released := s.handler, s.released
	c.mu.Unlock()
	if released {
		return
	}
	defer c.rescue(b, s)
	h.OnWindow(b, s, n)
}

func (c *Conn) rescue(b *Batch, s *Stream) {
	if c.cfg.OnPanic == nil {
		return
	}
	v := recover()
	if v == nil {
		return
	}
	c.cfg.OnPanic(v, debug.Stack())
	c.mu.Lock()
	s.handler = ignore{}
	c.mu.Unlock()
	s.Reset(b, InternalError)
	s.Release(b)
}

// ignore is the handler of a stream that has none.
type ignore struct{}

func (ignore) OnHeaders(*Batch, *Stream, *Head, bool) {}

func (ignore) OnData(b *Batch, s *Stream, p []byte, _ bool) { s.Consume(b, len(p)) }

func (ignore) OnTrailers(*Batch, *Stream, *Head) {}

func (ignore) OnReset(*Batch, *Stream, Reset) {}

func (ignore) OnWindow(*Batch, *Stream, int) {}
