package http2

import (
	"io"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// Pipe is a stream for code that blocks, on either side. One goroutine at a time
// reads from it and one writes to it. It is a net.Conn, so that a tunnel can be one.
// What it keeps of the peer's data is bounded by the stream's window.
type Pipe struct {
	stream *Stream
	conn   *Conn
	// Request is the head that a client sent, nil on the other side, and Bare is true
	// if that was all of it. Heads are valid until Close, those of ReadHead too.
	Request *Head
	Bare    bool

	body     Body
	reads    deadline
	writes   deadline
	readable chan struct{} // cap 1
	writable chan struct{}

	mu sync.Mutex
	// mu guards
	heads    []*Head // received; those before read were read
	bare     bool    // the last of them is all there is
	read     int
	in       queue
	inEnd    bool
	trailers *Head
	kept     int // of what was written, how much waits
	err      error
	gone     func()
	telling  chan struct{} // closed when gone has returned
	closed   bool
}

func newPipe(c *Conn) *Pipe {
	p := &Pipe{conn: c, readable: make(chan struct{}, 1), writable: make(chan struct{}, 1)}
	p.body.p = p
	p.reads.init()
	p.writes.init()
	return p
}

// Blocking returns the handler of a server that calls serve for each stream, in a
// goroutine of its own. The Pipe is closed when serve returns; a response that is
// not complete then is reset.
func Blocking(serve func(*Pipe)) StreamHandler { return blocking{serve: serve} }

type blocking struct {
	ignore
	serve func(*Pipe)
}

// OnHeaders implements StreamHandler.
func (k blocking) OnHeaders(_ *Batch, s *Stream, h *Head, end bool) {
	h.Keep()
	p := newPipe(s.conn)
	p.stream, p.Request, p.Bare, p.inEnd = s, h, end, end
	s.Handle(p)
	s.conn.others.Go(func() { p.run(k.serve) })
}

// NewPipe makes a Pipe of a client's stream that another handler had until now, and
// which passes on to it what it still hears. Of the request h came, which is the
// Pipe's from now on, and data; end says whether that was all.
func NewPipe(s *Stream, h *Head, data []byte, end bool) *Pipe {
	p := newPipe(s.conn)
	p.stream, p.Request, p.Bare, p.inEnd = s, h, end && len(data) == 0, end
	if len(data) > 0 && !p.in.append(&p.conn.account, data) {
		p.fail(ErrBudget)
	}
	return p
}

// Go calls serve in a goroutine of its own, as Blocking does.
func (p *Pipe) Go(serve func(*Pipe)) { p.conn.others.Go(func() { p.run(serve) }) }

func (p *Pipe) run(serve func(*Pipe)) {
	defer p.Close()
	if f := p.conn.cfg.OnPanic; f != nil {
		defer func() {
			if v := recover(); v != nil {
				f(v, debug.Stack())
				p.stream.Reset(nil, InternalError)
			}
		}()
	}
	serve(p)
	if p.failed() == net.ErrClosed {
		return
	}
	p.conn.mu.Lock()
	complete := p.stream.localEnd || p.stream.ending
	p.conn.mu.Unlock()
	if !complete {
		p.stream.Reset(nil, InternalError)
	}
}

// OpenPipe opens a stream with a request and the beginning of its body, end if that
// is all of it. It does not wait for the data to leave.
func (c *Conn) OpenPipe(h *Head, body []byte, end bool) (*Pipe, error) {
	p := newPipe(c)
	b := getBatch()
	defer b.free()
	s, err := c.Open(b, h, end && len(body) == 0, p)
	if err != nil {
		b.Flush()
		return nil, err
	}
	p.stream = s
	if len(body) > 0 {
		err = p.send(b, body, end)
	}
	b.Flush()
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// OnHeaders implements StreamHandler.
func (p *Pipe) OnHeaders(_ *Batch, _ *Stream, h *Head, end bool) {
	h.Keep()
	p.mu.Lock()
	p.heads = append(p.heads, h)
	p.bare, p.inEnd = end, end
	closed := p.closed
	p.mu.Unlock()
	if closed {
		p.freeHeads()
	}
	signal(p.readable)
}

// OnData implements StreamHandler.
func (p *Pipe) OnData(b *Batch, s *Stream, data []byte, end bool) {
	p.mu.Lock()
	switch {
	case p.closed:
		defer s.Consume(b, len(data))
	case len(data) > 0 && !p.in.append(&p.conn.account, data):
		p.fail(ErrBudget)
		defer s.Reset(b, EnhanceYourCalm)
	default:
		p.inEnd = p.inEnd || end
	}
	p.mu.Unlock()
	signal(p.readable)
}

// OnTrailers implements StreamHandler.
func (p *Pipe) OnTrailers(_ *Batch, _ *Stream, h *Head) {
	h.Keep()
	p.mu.Lock()
	p.trailers, p.inEnd = h, true
	closed := p.closed
	p.mu.Unlock()
	if closed {
		p.freeHeads()
	}
	signal(p.readable)
}

// OnReset implements StreamHandler.
func (p *Pipe) OnReset(_ *Batch, _ *Stream, r Reset) {
	p.mu.Lock()
	p.fail(r)
	gone := p.gone
	p.gone = nil
	if gone != nil {
		p.telling = make(chan struct{})
		defer close(p.telling)
	}
	p.mu.Unlock()
	if gone != nil {
		gone()
	}
}

// fail ends what waits. mu is held.
func (p *Pipe) fail(err error) {
	if p.err == nil {
		p.err = err
	}
	signal(p.readable)
	signal(p.writable)
}

// OnWindow implements StreamHandler.
func (p *Pipe) OnWindow(_ *Batch, _ *Stream, n int) {
	p.mu.Lock()
	p.kept -= n
	p.mu.Unlock()
	signal(p.writable)
}

// Stream returns the stream.
func (p *Pipe) Stream() *Stream { return p.stream }

// Watch makes f be called, once and from another goroutine, if the stream is
// reset. If it was already, f is called at once.
func (p *Pipe) Watch(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.gone = f
		return
	}
	told := make(chan struct{})
	p.telling = told
	go func() {
		defer close(told)
		f()
	}()
}

// Unwatch ends a Watch. Its function does not run any more when it returns.
func (p *Pipe) Unwatch() {
	p.mu.Lock()
	p.gone = nil
	telling := p.telling
	p.mu.Unlock()
	if telling != nil {
		<-telling
	}
}

// ReadHead returns the next head of a response: those below 200, and the final one,
// with bare true if that is all of it.
func (p *Pipe) ReadHead() (h *Head, bare bool, err error) {
	for {
		p.mu.Lock()
		if p.read < len(p.heads) {
			h, bare = p.heads[p.read], p.bare
			p.read++
			p.mu.Unlock()
			return h, bare && h.Status >= 200, nil
		}
		err := p.err
		p.mu.Unlock()
		if err == nil {
			err = p.wait(p.readable, &p.reads)
		}
		if err != nil {
			return nil, false, err
		}
	}
}

// Body returns the peer's data. There is one Body, whoever asks.
func (p *Pipe) Body() *Body { return &p.body }

// wait waits for a signal or for the deadline.
func (p *Pipe) wait(ready chan struct{}, d *deadline) error {
	passed := d.channel()
	select {
	case <-passed: // first of all: a deadline in the past ends even what is ready
		return os.ErrDeadlineExceeded
	default:
	}
	select {
	case <-ready:
		return nil
	case <-passed:
		return os.ErrDeadlineExceeded
	}
}

// WriteHead sends a head, end if nothing follows it.
func (p *Pipe) WriteHead(h *Head, end bool) error { return p.sendHead(nil, h, end) }

func (p *Pipe) sendHead(b *Batch, h *Head, end bool) error {
	if err := p.failed(); err != nil {
		return err
	}
	return p.stream.SendHead(b, h, end)
}

// WriteTrailers sends trailers, which end the stream.
func (p *Pipe) WriteTrailers(h *Head) error { return p.WriteHead(h, true) }

// Err returns why the stream was reset, nil if it was not.
func (p *Pipe) Err() error { return p.failed() }

func (p *Pipe) failed() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// pieceSize is how much is written at once.
const pieceSize = 32 << 10

// Write sends data, and waits until all of it has left.
func (p *Pipe) Write(data []byte) (n int, err error) {
	for len(data) > 0 {
		piece := data[:min(len(data), pieceSize)]
		if err := p.send(nil, piece, false); err != nil {
			return n, err
		}
		if err := p.drain(); err != nil {
			return n, err
		}
		n += len(piece)
		data = data[len(piece):]
	}
	return n, nil
}

// send sends a piece without waiting.
func (p *Pipe) send(b *Batch, piece []byte, end bool) error {
	if err := p.failed(); err != nil {
		return err
	}
	held, err := p.stream.SendData(b, piece, end)
	if err != nil {
		if cause := p.failed(); cause != nil {
			return cause
		}
		return err
	}
	if held > 0 {
		p.mu.Lock()
		p.kept += held // OnWindow may have been faster
		p.mu.Unlock()
	}
	return nil
}

// drain waits until nothing is kept.
func (p *Pipe) drain() error {
	for {
		p.mu.Lock()
		kept, err := p.kept, p.err
		p.mu.Unlock()
		switch {
		case err != nil:
			return err
		case kept <= 0:
			return nil
		}
		if err := p.wait(p.writable, &p.writes); err != nil {
			return err
		}
	}
}

// CloseWrite ends our side of the stream.
func (p *Pipe) CloseWrite() error {
	if err := p.failed(); err != nil {
		return err
	}
	if _, err := p.stream.SendData(nil, nil, true); err != ErrStreamEnded {
		return err
	}
	return nil
}

// Read implements net.Conn with the Body.
func (p *Pipe) Read(b []byte) (int, error) { return p.body.Read(b) }

// Close gives up the stream, which is reset if it is not over, and everything that
// was received.
func (p *Pipe) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed, p.gone = true, nil
	p.in.clear(&p.conn.account)
	p.body.lent = 0
	p.fail(net.ErrClosed)
	p.mu.Unlock()
	p.reads.stop()
	p.writes.stop()
	p.freeHeads()
	p.body.free()
	p.stream.Release(nil)
	return nil
}

func (p *Pipe) freeHeads() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range p.heads {
		h.Free()
	}
	p.heads, p.read = nil, 0
	if p.trailers != nil {
		p.trailers.Free()
		p.trailers = nil
	}
	if p.Request != nil {
		p.Request.Free()
		p.Request = nil
	}
}

// LocalAddr implements net.Conn.
func (p *Pipe) LocalAddr() net.Addr { return p.conn.conn.LocalAddr() }

// RemoteAddr implements net.Conn.
func (p *Pipe) RemoteAddr() net.Addr { return p.conn.conn.RemoteAddr() }

// SetDeadline implements net.Conn.
func (p *Pipe) SetDeadline(t time.Time) error {
	p.reads.set(t)
	p.writes.set(t)
	return nil
}

// SetReadDeadline implements net.Conn.
func (p *Pipe) SetReadDeadline(t time.Time) error {
	p.reads.set(t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (p *Pipe) SetWriteDeadline(t time.Time) error {
	p.writes.set(t)
	return nil
}

// BodyError wraps what went wrong while a body was read that Send passes on, so
// that it can be told from a failing stream.
type BodyError struct{ Err error }

// Error implements error.
func (e *BodyError) Error() string { return "http2: reading a body: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *BodyError) Unwrap() error { return e.Err }

// Interim sends x's 1xx response.
func (p *Pipe) Interim(x *exchange.Exchange) error {
	return p.WriteHead(&Head{Status: x.Response.Status, Header: &x.Response.Header}, false)
}

// Send sends x's response with its body, as http1.Send does. A *BodyError says that
// the body ended early, and the stream is to be reset; any other error is the
// stream's. With a tunnel the stream stays open, for the caller to use.
func (p *Pipe) Send(x *exchange.Exchange) error {
	r := &x.Response
	var head Head
	h := &head
	ResponseHead(h, x)
	b := getBatch()
	defer b.free()
	if x.Tunnel != nil {
		return p.WriteHead(h, false)
	}
	if r.Framing == exchange.NoBody || x.Request.Head || r.Status < 200 || r.Status == 204 || r.Status == 304 {
		return p.WriteHead(h, true)
	}
	if r.Body == nil {
		err := p.sendHead(b, h, r.Text == "")
		if err == nil && r.Text != "" {
			err = p.send(b, []byte(r.Text), true)
		}
		b.Flush()
		if err == nil {
			err = p.drain()
		}
		if err == nil {
			x.ResponseBytes += int64(len(r.Text))
		}
		return err
	}
	defer func() { x.ResponseBytes = r.Body.Size() }()
	if err := p.sendHead(b, h, false); err != nil {
		return err
	}
	data, whole := r.Body.Buffered()
	if len(data) > pieceSize {
		data, whole = nil, false
	}
	end := false
	var err error
	if len(data) > 0 || whole {
		r.Body.Take()
		end = whole && trailersOf(r.Body) == nil
		err = p.send(b, data, end)
	}
	b.Flush()
	if err == nil {
		err = p.drain()
	}
	if err != nil || end {
		return err
	}
	for {
		data, err := r.Body.Next()
		if err == io.EOF {
			return p.EndBody(r.Body)
		}
		if err != nil {
			return &BodyError{err}
		}
		if _, err := p.Write(data); err != nil {
			return err
		}
	}
}

// EndBody ends our side of the stream as a body ended: with its trailers, if it has
// any.
func (p *Pipe) EndBody(b exchange.Body) error {
	if t := trailersOf(b); t != nil {
		return p.WriteTrailers(t)
	}
	return p.CloseWrite()
}

// trailersOf returns the trailers of a body that was read to its end, nil if it has
// none. Those of HTTP/2 keep what they say about which of them may be indexed.
func trailersOf(b exchange.Body) *Head {
	if own, ok := b.(*Body); ok {
		return own.trailers()
	}
	if t := b.Trailers(); t != nil {
		return &Head{Header: t}
	}
	return nil
}

// deadline is a moment at which waiting ends.
type deadline struct {
	mu     sync.Mutex
	timer  *time.Timer
	passed chan struct{} // closed at the moment
}

func (d *deadline) init() { d.passed = make(chan struct{}) }

func (d *deadline) channel() chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.passed
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	select {
	case <-d.passed:
		d.passed = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return
	}
	left := time.Until(t)
	passed := d.passed
	if left <= 0 {
		close(passed)
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(left, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.timer == timer {
			d.timer = nil
			close(passed)
		}
	})
	d.timer = timer
}

func (d *deadline) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}
