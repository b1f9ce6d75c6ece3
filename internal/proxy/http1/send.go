package http1

import (
	"errors"
	"io"
	"sync"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// ErrBody wraps what went wrong while a body was read that Send passes on, so
// that it can be told from a failing write.
type ErrBody struct{ Err error }

// Error implements error.
func (e *ErrBody) Error() string { return "http1: reading a body: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *ErrBody) Unwrap() error { return e.Err }

// Out is pooled memory for what is written.
type Out struct{ B []byte }

var outPool = sync.Pool{New: func() any { return &Out{make([]byte, 0, smallBuffer)} }}

// GetOut returns an empty Out.
func GetOut() *Out { return outPool.Get().(*Out) }

// Put gives o back.
func (o *Out) Put() {
	if cap(o.B) <= largeBuffer {
		o.B = o.B[:0]
		outPool.Put(o)
	}
}

// Interim sends x's 1xx response.
func Interim(c io.Writer, x *exchange.Exchange) error {
	o := GetOut()
	defer o.Put()
	b := appendStatus(o.B, &x.Response)
	o.B = EndHead(x.Response.Header.AppendTo(b))
	_, err := c.Write(o.B)
	return err
}

// Send sends x's response with its body to the client, the head together with
// what of the body is here already. It counts x.ResponseBytes. An *ErrBody says
// that the body ended early; any other error is the client's connection's.
func Send(c io.Writer, x *exchange.Exchange) error {
	o := GetOut()
	defer o.Put()
	r := &x.Response
	b := AppendResponse(o.B, x)
	o.B = b[:0]
	if r.Framing == exchange.NoBody || x.Request.Head || r.Status < 200 || r.Status == 204 || r.Status == 304 {
		_, err := c.Write(b)
		return err
	}
	if r.Body == nil {
		b = append(b, r.Text...)
		n, err := c.Write(b)
		x.ResponseBytes += min(int64(n), int64(len(r.Text)))
		return err
	}
	chunk := reframes(x)
	if r.Framing == exchange.Chunked && !unframes(x) {
		r.Body.Raw()
	}
	defer func() { x.ResponseBytes = r.Body.Size() }()
	p, whole := r.Body.Buffered()
	if len(p) > 0 && len(b)+len(p) <= smallBuffer {
		if chunk {
			b = appendChunk(b, p)
		} else {
			b = append(b, p...)
		}
		r.Body.Take()
	} else {
		whole = len(p) == 0 && whole
	}
	o.B = b[:0]
	if _, err := c.Write(b); err != nil || whole {
		return err
	}
	for {
		p, err := r.Body.Next()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				return &ErrBody{err}
			}
			if chunk {
				_, err = c.Write(lastChunk)
				return err
			}
			return nil
		}
		if chunk {
			o.B = appendChunk(o.B[:0], p)
			p = o.B
		}
		if _, err := c.Write(p); err != nil {
			return err
		}
	}
}

var lastChunk = []byte("0\r\n\r\n")
