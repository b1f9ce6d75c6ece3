package http2

import (
	"io"
	"strconv"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// Body is the data of a Pipe's peer. It implements exchange.Body, and io.Reader.
type Body struct {
	p     *Pipe
	raw   bool
	ended bool // the end was handed out
	size  int64
	// lent is how much of the queue's first bytes was handed out and is in use;
	// offered what Buffered returned, and whole whether the body ends with it.
	lent    int
	offered int
	whole   bool
	stage   *output // chunks, with Raw
	// Messages counts those of gRPC in what was handed out, if it is not nil.
	Messages *exchange.Messages
}

// Raw implements exchange.Body. HTTP/2 has no chunks: they are made.
func (b *Body) Raw() { b.raw = true }

// Done implements exchange.Body.
func (b *Body) Done() bool { return b.ended }

// Size implements exchange.Body.
func (b *Body) Size() int64 { return b.size }

// Trailers implements exchange.Body. They are valid until the Pipe is closed.
func (b *Body) Trailers() *exchange.Header {
	if t := b.trailers(); t != nil && !b.raw {
		return t.Header
	}
	return nil
}

// trailers returns the trailers once the end was reached.
func (b *Body) trailers() *Head {
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	if !b.ended {
		return nil
	}
	return b.p.trailers
}

// Buffered implements exchange.Body.
func (b *Body) Buffered() (p []byte, whole bool) {
	b.offered = 0
	if b.ended {
		return nil, true
	}
	pipe := b.p
	pipe.mu.Lock()
	defer pipe.mu.Unlock()
	here := pipe.in.peek()[b.lent:]
	b.offered, b.whole = len(here), pipe.inEnd && b.lent+len(here) == pipe.in.n
	if !b.raw {
		return here, b.whole
	}
	if len(here) == 0 && !b.whole {
		return nil, false
	}
	return b.chunk(here, b.whole), b.whole
}

// Take implements exchange.Body.
func (b *Body) Take() {
	if b.ended {
		return
	}
	if b.Messages != nil && b.offered > 0 {
		b.p.mu.Lock()
		b.Messages.Count(b.p.in.peek()[b.lent:][:b.offered])
		b.p.mu.Unlock()
	}
	b.lent += b.offered
	b.size += int64(b.offered)
	b.offered = 0
	b.ended = b.whole
}

// Next implements exchange.Body.
func (b *Body) Next() ([]byte, error) {
	p := b.p
	for {
		b.giveBack()
		p.mu.Lock()
		here := p.in.peek()
		ends := p.inEnd && len(here) == p.in.n
		err := p.err
		if len(here) > 0 && !p.closed {
			b.lent = len(here)
			b.size += int64(len(here))
			if b.Messages != nil {
				b.Messages.Count(here)
			}
			if b.raw {
				b.ended = ends
				here = b.chunk(here, ends)
			}
			p.mu.Unlock()
			return here, nil
		}
		switch {
		case b.ended:
			p.mu.Unlock()
			return nil, io.EOF
		case ends && !p.closed:
			b.ended = true
			if b.raw {
				last := b.chunk(nil, true)
				p.mu.Unlock()
				return last, nil
			}
			p.mu.Unlock()
			return nil, io.EOF
		}
		p.mu.Unlock()
		if err != nil {
			return nil, err
		}
		if err := p.wait(p.readable, &p.reads); err != nil {
			return nil, err
		}
	}
}

// giveBack consumes what was lent.
func (b *Body) giveBack() {
	p := b.p
	p.mu.Lock()
	n := b.lent
	if n == 0 {
		p.mu.Unlock()
		return
	}
	b.lent = 0
	p.in.skip(&p.conn.account, n)
	p.mu.Unlock()
	p.stream.Consume(nil, n)
}

// Read implements io.Reader.
func (b *Body) Read(to []byte) (int, error) {
	if len(to) == 0 {
		return 0, nil
	}
	here, err := b.Next()
	if err != nil {
		return 0, err
	}
	n := copy(to, here)
	b.size -= int64(len(here) - n)
	b.lent = n // the rest stays
	return n, nil
}

// chunk frames data for HTTP/1.1, with last as the end of the body and its
// trailers behind it. Source: RFC 9112 section 7.1.
func (b *Body) chunk(data []byte, last bool) []byte {
	if b.stage == nil {
		b.stage = outputs.Get().(*output)
	}
	s := b.stage.b[:0]
	if len(data) > 0 {
		s = strconv.AppendInt(s, int64(len(data)), 16)
		s = append(s, "\r\n"...)
		s = append(s, data...)
		s = append(s, "\r\n"...)
	}
	if last {
		s = append(s, "0\r\n"...)
		if t := b.p.trailers; t != nil {
			s = t.own.AppendTo(s)
		}
		s = append(s, "\r\n"...)
	}
	b.stage.b = s
	return s
}

func (b *Body) free() {
	if b.stage != nil {
		b.stage.free()
		b.stage = nil
	}
}
