package http1

import (
	"errors"
	"io"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// Body is the body of the message whose head a Reader returned last.
type Body struct {
	rd     *Reader
	kind   exchange.Framing
	raw    bool
	done   bool
	left   int64 // with exchange.Length
	chunks chunks
	passed int64 // bytes handed out
	// offered is how many bytes Buffered returned, and ends whether the body ends
	// with them.
	offered int
	ends    bool
	after   chunks // the framing's state behind what was offered
	err     error
}

// Body begins the body of the message. It returns nil if there is none. It is valid
// until Finish or Release.
func (rd *Reader) Body(kind exchange.Framing, length int64) *Body {
	if kind == exchange.NoBody {
		return nil
	}
	b := &rd.buf.body
	*b = Body{rd: rd, kind: kind, left: length, done: kind == exchange.Length && length == 0}
	return b
}

// Raw implements exchange.Body.
func (b *Body) Raw() { b.raw = b.kind == exchange.Chunked }

// Done implements exchange.Body.
func (b *Body) Done() bool { return b.done }

// Size implements exchange.Body.
func (b *Body) Size() int64 {
	if b.kind == exchange.Chunked {
		return b.chunks.data
	}
	return b.passed
}

// Trailers implements exchange.Body.
func (b *Body) Trailers() *exchange.Header {
	if !b.done || len(b.chunks.trailers) == 0 {
		return nil
	}
	h := new(exchange.Header)
	if parseFields(h, b.chunks.trailers) != nil {
		return nil // more than may be
	}
	return h
}

// Buffered implements exchange.Body.
func (b *Body) Buffered() (p []byte, whole bool) {
	if b.done {
		return nil, true
	}
	here := b.rd.Peek()
	b.after, b.ends, b.offered = b.chunks, false, 0
	switch b.kind {
	case exchange.Length:
		if int64(len(here)) >= b.left {
			here, b.ends = here[:b.left], true
		}
		b.offered = len(here)
		return here, b.ends
	case exchange.Chunked:
		span, n, err := b.after.next(here, b.raw)
		if err != nil || len(span) != n {
			// Not as one piece. Next will say what is wrong, if anything is.
			return nil, false
		}
		b.offered, b.ends = n, b.after.state == finished
		return span, b.ends
	}
	b.offered = len(here)
	return here, false
}

// Whole reports whether all of what is left is in the buffer.
func (b *Body) Whole() bool {
	raw := b.raw
	b.Raw()
	_, whole := b.Buffered()
	b.raw, b.offered = raw, 0
	return whole
}

// Take implements exchange.Body.
func (b *Body) Take() {
	if b.done || b.offered == 0 {
		return
	}
	b.rd.r += b.offered
	b.passed += int64(b.offered)
	b.left -= int64(b.offered)
	b.chunks = b.after
	b.done = b.ends
	b.offered = 0
}

// Next implements exchange.Body.
func (b *Body) Next() ([]byte, error) {
	if b.err != nil {
		return nil, b.err
	}
	for !b.done {
		if p, err := b.step(); err != nil {
			b.err = err
			return nil, err
		} else if len(p) > 0 {
			b.passed += int64(len(p))
			return p, nil
		}
		if b.done {
			break
		}
		if err := b.rd.fill(); err != nil {
			if !errors.Is(err, io.EOF) {
				if isTimeout(err) {
					return nil, err // it may go on
				}
				b.err = err
				return nil, err
			}
			if b.kind == exchange.UntilClose {
				b.done = true
				break
			}
			b.err = io.ErrUnexpectedEOF
			return nil, b.err
		}
	}
	return nil, io.EOF
}

// step returns what of the body is in the buffer, nothing if more must be read.
func (b *Body) step() ([]byte, error) {
	rd := b.rd
	for rd.r < rd.w {
		here := rd.Peek()
		switch b.kind {
		case exchange.Length:
			here = here[:min(int64(len(here)), b.left)]
			b.left -= int64(len(here))
			b.done = b.left == 0
			rd.r += len(here)
			return here, nil
		case exchange.Chunked:
			span, n, err := b.chunks.next(here, b.raw)
			if err != nil {
				return nil, err
			}
			rd.r += n
			b.done = b.chunks.state == finished
			if len(span) > 0 {
				return span, nil
			}
			if n == 0 || b.done {
				return nil, nil
			}
		default:
			rd.r = rd.w
			return here, nil
		}
	}
	return nil, nil
}

func isTimeout(err error) bool {
	t, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	return ok && t.Timeout()
}
