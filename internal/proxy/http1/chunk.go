package http1

import (
	"bytes"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/syntax"
)

// chunks reads chunked framing, piece by piece as it comes. Source: RFC 9112
// section 7.1.
type chunks struct {
	state  chunkState
	left   int64 // bytes of the current chunk
	digits int
	last   bool // the current chunk is the last one
	ext    int  // bytes of extensions so far, of all chunks
	lines  int  // bytes of trailers so far
	data   int64
	// trailers are the lines to pass on, without raw.
	trailers []byte
}

type chunkState uint8

const (
	inSize chunkState = iota
	inExtension
	sizeLF
	inData
	dataCR
	dataLF
	inTrailers
	finished
)

const (
	// maxDigits keeps the size of a chunk within an int64.
	maxDigits = 15
	// maxExtensions bounds what a sender makes us read for nothing.
	maxExtensions = 16 << 10
	// maxTrailers bounds the trailer section.
	maxTrailers = 8 << 10
)

// next reads from p and returns the part that is to be passed on, with the number
// of bytes read. Without raw that is data only. With raw it is all but chunk
// extensions, which nobody understands and attackers misuse, and trailers that may
// not be any. If n is 0 there is too little in p to go on.
func (c *chunks) next(p []byte, raw bool) (span []byte, n int, err error) {
	from := 0 // where the span began
	for n < len(p) {
		switch b := p[n]; c.state {
		case inSize:
			d := syntax.Unhex(b)
			switch {
			case d != 0xff:
				if c.digits++; c.digits > maxDigits {
					return nil, 0, errChunk
				}
				c.left = c.left<<4 | int64(d)
			case c.digits == 0:
				return nil, 0, errChunk
			case b == '\r':
				c.state = sizeLF
			case b == ';':
				c.state = inExtension
				if raw && n > from {
					return p[from:n], n, nil // up to here; the rest is cut out
				}
				from = n + 1
			default:
				return nil, 0, errChunk
			}
			n++
		case inExtension:
			end := syntax.ValueEnd(p, n)
			if c.ext += end - n; c.ext > maxExtensions {
				return nil, 0, errChunk
			}
			n = end
			from = n // the CR and what follows is passed on again
			if n == len(p) {
				return nil, n, nil
			}
			if p[n] != '\r' {
				return nil, 0, errChunk
			}
			c.state = sizeLF
			n++
		case sizeLF:
			if b != '\n' {
				return nil, 0, errChunk
			}
			n++
			c.digits = 0
			if c.last = c.left == 0; c.last {
				c.state = inTrailers
			} else {
				c.state = inData
			}
		case inData:
			take := int(min(int64(len(p)-n), c.left))
			c.data += int64(take)
			if c.left -= int64(take); c.left == 0 {
				c.state = dataCR
			}
			if !raw {
				return p[n : n+take], n + take, nil
			}
			n += take
		case dataCR:
			if b != '\r' {
				return nil, 0, errChunk
			}
			c.state = dataLF
			n++
		case dataLF:
			if b != '\n' {
				return nil, 0, errChunk
			}
			c.state = inSize
			n++
		case inTrailers:
			size, keep, err := c.trailer(p[n:])
			if err != nil {
				return nil, 0, err
			}
			switch {
			case size == 0: // not a whole line yet
				return spanOf(p, from, n, raw), n, nil
			case !keep:
				if raw && n > from {
					// Without what was passed on before, the line is read again.
					return p[from:n], n, nil
				}
				c.lines += size
				n += size
				from = n
			default:
				if !raw && c.state != finished {
					c.trailers = append(c.trailers, p[n:n+size]...)
				}
				c.lines += size
				n += size
			}
			if c.state == finished {
				return spanOf(p, from, n, raw), n, nil
			}
		case finished:
			return spanOf(p, from, n, raw), n, nil
		}
	}
	return spanOf(p, from, n, raw), n, nil
}

func spanOf(p []byte, from, to int, raw bool) []byte {
	if !raw {
		return nil
	}
	return p[from:to]
}

// trailer checks one line of the trailer section and returns its size, 0 if it is
// not complete, and whether it is passed on.
func (c *chunks) trailer(p []byte) (size int, keep bool, err error) {
	i := bytes.IndexByte(p, '\n')
	if i < 0 {
		if len(p)+c.lines > maxTrailers {
			return 0, false, errTrailers
		}
		return 0, false, nil
	}
	if i == 0 || p[i-1] != '\r' {
		return 0, false, errTrailer
	}
	size = i + 1
	if c.lines+size > maxTrailers {
		return 0, false, errTrailers
	}
	line := p[:i-1]
	if len(line) == 0 {
		c.state = finished
		return size, true, nil
	}
	n := 0
	for n < len(line) && syntax.Token[line[n]] {
		n++
	}
	if n == 0 || n == len(line) || line[n] != ':' || syntax.ValueEnd(line, n) != len(line) {
		return 0, false, errTrailer
	}
	return size, syntax.TrailerAllowed(exchange.Identify(line[:n]), line[:n]), nil
}
