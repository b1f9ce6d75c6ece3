package http1

import (
	"bytes"
	"errors"
	"io"
	"net"
)

// Reader reads messages from a connection: heads, which stay in place until the
// message is finished, and bodies, in windows of bounded size. Between
// messages it holds no buffer unless it waits for one.
//
// One goroutine at a time uses a Reader.
type Reader struct {
	conn net.Conn

	buf   *buffer // where heads are; nil while idle
	win   *buffer // where the rest of a body is, if not in buf
	base  int     // where a body's window begins
	head  int     // length of the last head
	r, w  int     // unread bytes, in win if there is one
	found int     // length of the head at r, 0 if it is not known to be complete
	scan  int     // how far the search for a head's end came
	line  int     // where the line at scan began
	// blank is set once the empty line that may precede a head was skipped.
	blank bool
}

// Reset makes rd read from c, whose messages may be far apart. Bytes in first were
// read from c before; they are copied.
func (rd *Reader) Reset(c net.Conn, first []byte) {
	*rd = Reader{conn: c}
	if len(first) == 0 {
		return
	}
	rd.buf = getSmall()
	if len(first) > smallBuffer {
		rd.buf.put()
		rd.buf = getLarge()
	}
	rd.w = copy(rd.buf.b, first)
}

// ResetActive makes rd read from c, from which a message is expected now.
func (rd *Reader) ResetActive(c net.Conn) { *rd = Reader{conn: c, buf: getSmall()} }

// Room returns memory for the beginning of a message that someone else reads, right
// after ResetActive, and Fill takes its first n bytes as read.
func (rd *Reader) Room() []byte { return rd.buf.b }

// Fill is described with Room.
func (rd *Reader) Fill(n int) { rd.w = n }

// Release gives the buffers back. The Reader must be Reset before its next use.
func (rd *Reader) Release() {
	rd.dropWindow()
	if rd.buf != nil {
		rd.buf.put()
		rd.buf = nil
	}
	rd.conn = nil
}

// Buffered returns how many bytes are here that belong to nothing yet.
func (rd *Reader) Buffered() int { return rd.w - rd.r }

// Peek returns those bytes. They stay unread.
func (rd *Reader) Peek() []byte { return rd.bytes()[rd.r:rd.w] }

// Unread makes the head that ReadHead returned last unread again. Nothing else may
// have been read since.
func (rd *Reader) Unread() { rd.r -= rd.head; rd.head = 0 }

// TakeBuffered returns those bytes and marks them read. They are valid until the
// Reader's next use.
func (rd *Reader) TakeBuffered() []byte {
	p := rd.Peek()
	rd.r = rd.w
	return p
}

func (rd *Reader) bytes() []byte {
	switch {
	case rd.win != nil:
		return rd.win.b
	case rd.buf != nil:
		return rd.buf.b
	}
	return nil
}

// Wait returns when there is at least one byte of the next head. If the connection's
// Read gives up, as that of a socket.Conn does inside Await, so does Wait, and holds
// no buffer.
func (rd *Reader) Wait() error {
	if rd.r < rd.w {
		return nil
	}
	rd.r, rd.w, rd.base = 0, 0, 0
	if rd.buf == nil {
		rd.buf = getSmall()
	}
	err := rd.read(rd.buf.b)
	if err != nil {
		rd.buf.put()
		rd.buf = nil
	}
	return err
}

// Whole reports whether a whole head is here already, and nothing wrong with its
// lines.
func (rd *Reader) Whole() bool {
	n, err := rd.search()
	return n > 0 && err == nil
}

// Complete reports whether a whole head is here already, or can not come.
func (rd *Reader) Complete() bool {
	n, err := rd.search()
	return n > 0 || err != nil
}

// ReadHead returns the next head with its empty line. The view is valid until
// Finish. The error is io.EOF if the connection ended before the head began, and
// an *Error if what came is no head.
func (rd *Reader) ReadHead() ([]byte, error) {
	if err := rd.Wait(); err != nil {
		return nil, err
	}
	for {
		n, err := rd.search()
		if err != nil {
			return nil, err
		}
		if n > 0 {
			head := rd.buf.b[rd.r : rd.r+n]
			rd.r += n
			rd.base, rd.head = rd.r, n
			rd.found, rd.scan, rd.line, rd.blank = 0, 0, 0, false
			return head, nil
		}
		if rd.w-rd.r > MaxHead {
			return nil, rd.tooLarge()
		}
		rd.makeRoom()
		if err := rd.read(rd.buf.b[rd.w:]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// search looks for the empty line and returns the length of the head, or 0 if it
// is not complete. It goes on where it was; what it found it finds again.
func (rd *Reader) search() (int, error) {
	if rd.found > 0 {
		return rd.found, nil
	}
	p := rd.buf.b[rd.r:rd.w]
	for {
		i := bytes.IndexByte(p[rd.scan:], '\n')
		if i < 0 {
			rd.scan = len(p)
			return 0, nil
		}
		at := rd.scan + i
		if at == rd.line || p[at-1] != '\r' {
			return 0, errBareLF
		}
		empty := at == rd.line+1
		rd.scan = at + 1
		if empty && rd.line == 0 {
			// RFC 9112 section 2.2: an empty line before a request is ignored. One.
			if rd.blank {
				return 0, errLine
			}
			rd.blank = true
			rd.r += 2
			p = p[2:]
			rd.scan = 0
			continue
		}
		rd.line = at + 1
		if empty {
			if at+1 > MaxHead {
				return 0, rd.tooLarge()
			}
			rd.found = at + 1
			return at + 1, nil
		}
	}
}

// tooLarge tells a long request target from many headers.
func (rd *Reader) tooLarge() error {
	if bytes.IndexByte(rd.buf.b[rd.r:min(rd.r+MaxHead, rd.w)], '\n') < 0 {
		return errLongLine
	}
	return errTooLarge
}

// makeRoom makes the buffer's tail long enough to read on.
func (rd *Reader) makeRoom() {
	const enough = 512
	if len(rd.buf.b)-rd.w >= enough {
		return
	}
	from := rd.buf
	if rd.r == 0 || rd.w-rd.r > smallBuffer-enough {
		if len(from.b) == largeBuffer {
			rd.r, rd.w = 0, copy(from.b, from.b[rd.r:rd.w])
			return
		}
		rd.buf = getLarge()
	}
	rd.r, rd.w = 0, copy(rd.buf.b, from.b[rd.r:rd.w])
	if from != rd.buf {
		from.put()
	}
}

// read appends bytes from the connection to those in p's buffer.
func (rd *Reader) read(p []byte) error {
	n, err := rd.conn.Read(p)
	rd.w += n
	if n > 0 {
		return nil // an error with data will come again
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

const (
	// minWindow is the least room behind a head that bodies are read into.
	minWindow = 4 << 10
	// longBody is after how many bytes of a body a larger window pays.
	longBody = 32 << 10
)

// fill reads more of a body. Of what is unread, nothing is lost.
func (rd *Reader) fill() error {
	b := rd.bytes()
	switch {
	case rd.win == nil && len(b)-rd.base < minWindow:
		rd.window(getSmall())
	case rd.buf.body.passed > longBody && (rd.win == nil || len(rd.win.b) < largeBuffer):
		rd.window(getLarge())
	case rd.r == rd.w:
		rd.r, rd.w = rd.base, rd.base
	case rd.w == len(b):
		if rd.r == rd.base {
			return errTrailers // one line fills the window
		}
		n := copy(b[rd.base:], b[rd.r:rd.w])
		rd.r, rd.w = rd.base, rd.base+n
	}
	return rd.read(rd.bytes()[rd.w:])
}

// window moves the unread bytes to another buffer.
func (rd *Reader) window(next *buffer) {
	n := copy(next.b, rd.bytes()[rd.r:rd.w])
	if rd.win != nil {
		rd.win.put()
	}
	rd.win, rd.base, rd.r, rd.w = next, 0, 0, n
}

func (rd *Reader) dropWindow() {
	if rd.win != nil {
		rd.win.put()
		rd.win = nil
	}
}

// Finish ends a message: its head's views die, and what was read beyond it becomes
// the beginning of the next one.
func (rd *Reader) Finish() {
	if rd.buf != nil {
		rd.buf.body = Body{}
	}
	if rd.win == nil {
		return
	}
	if n := rd.w - rd.r; n > len(rd.buf.b) {
		// The next head begins in the larger of the two.
		rd.buf.put()
		rd.buf, rd.win = rd.win, nil
		return
	}
	rd.r, rd.w = 0, copy(rd.buf.b, rd.win.b[rd.r:rd.w])
	rd.dropWindow()
}

// Background reads into what room the buffer has left, if any, and reports
// whether the connection ended. It is for looking whether a client hangs up while
// nothing is expected from it: what it reads begins the next message. Nobody else
// may use the Reader until it returns; AbortRead on the connection makes it.
func (rd *Reader) Background() (ended bool) {
	b := rd.bytes()
	if rd.w == len(b) {
		return false
	}
	n, err := rd.conn.Read(b[rd.w:])
	rd.w += n
	if n > 0 || err == nil {
		return false
	}
	e, ok := errors.AsType[net.Error](err)
	return !ok || !e.Timeout()
}
