package tcp

import (
	"errors"
	"sync"

	"github.com/heddle-mesh/heddle/internal/proxy/mtls"
)

const (
	// bufferSize is what a direction reads into while bytes move through the
	// process. It holds none while it waits: most connections are quiet most of the
	// time.
	bufferSize = 64 << 10
	// smallBuffer is what TLS is waited for with, which can not be asked to wait
	// without one.
	smallBuffer = 512
	// recordSize is the most that TLS puts into one record.
	recordSize = 16 << 10
)

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// source reads of one end as much as there is.
type source struct {
	end    *end
	socket *reader // nil unless end is a socket without TLS
	small  [smallBuffer]byte
	big    *[bufferSize]byte
	dry    bool // nothing was left behind big
}

func newSource(e *end) *source {
	s := &source{end: e}
	if e.socket != nil && e.records == nil {
		s.socket = newReader(e.socket)
	}
	return s
}

func (s *source) release() {
	if s.big != nil {
		buffers.Put(s.big)
		s.big = nil
	}
}

// read waits until there is something and returns what there is, up to a
// bufferful. It is valid until the next call. There may be bytes with an error, or
// neither.
func (s *source) read() ([]byte, error) {
	switch {
	case s.socket != nil:
		return s.socket.read(s)
	case s.end.records != nil:
		return s.readRecords()
	}
	if s.big == nil {
		s.big = buffers.Get().(*[bufferSize]byte)
	}
	n, err := s.end.conn.Read(s.big[:])
	return s.big[:n], err
}

// readRecords gathers records while whole ones are there.
func (s *source) readRecords() ([]byte, error) {
	if s.dry {
		s.release()
		s.dry = false
	}
	n := 0
	if s.big == nil {
		var err error
		if n, err = s.end.conn.Read(s.small[:]); err != nil || n < len(s.small) {
			return s.small[:n], err
		}
		s.big = buffers.Get().(*[bufferSize]byte)
		copy(s.big[:], s.small[:n])
	}
	s.end.records.Eager(true)
	defer s.end.records.Eager(false)
	// One that did not fit would be handed out in pieces.
	for n == 0 || len(s.big)-n >= recordSize {
		m, err := s.end.conn.Read(s.big[n:])
		n += m
		if errors.Is(err, mtls.ErrAgain) {
			s.dry = true
			break
		}
		if err != nil {
			return s.big[:n], err
		}
	}
	return s.big[:n], nil
}

// write writes b. To TLS it writes record by record, and lets the kernel know
// which is the last, so that they leave together.
func (e *end) write(b []byte) (int, error) {
	if e.records == nil {
		return e.conn.Write(b)
	}
	total := 0
	for {
		last := len(b) <= recordSize
		e.records.More(!last)
		n, err := e.conn.Write(b[:min(len(b), recordSize)])
		total += n
		if b = b[n:]; err != nil || last {
			return total, err
		}
	}
}
