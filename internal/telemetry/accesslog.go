package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Entry is what the access log tells of one request or one TCP connection. The
// byte slices may be views into a connection's buffer: Write keeps none of them.
// A zero field prints as "-".
type Entry struct {
	Start time.Time

	Method, Path []byte // the path as the client sent it, with its query
	Protocol     string // "HTTP/1.1", "HTTP/2"

	Code        int    // 0 is printed as it is
	Flags       string // "UF,URX"
	Details     string // "via_upstream"
	Termination string // why the connection was ended
	// TransportFailure is why TLS to the upstream failed.
	TransportFailure string

	BytesReceived, BytesSent int64 // bodies; from and to the client
	Duration                 time.Duration

	UpstreamServiceTime []byte // milliseconds as text
	ForwardedFor        []byte
	UserAgent           []byte
	RequestID           []byte
	Authority           []byte

	UpstreamHost    netip.AddrPort
	UpstreamCluster string
	UpstreamLocal   netip.AddrPort

	DownstreamLocal  netip.AddrPort // where the client wanted to go
	DownstreamRemote netip.AddrPort
	ServerName       string // SNI
	RouteName        string
}

const (
	// flushInterval is the longest time an entry waits in memory.
	flushInterval = time.Second
	// flushSize asks for a flush before the interval is over. Source: Istio's
	// default of Envoy's --file-flush-min-size-kb.
	flushSize = 64 << 10
	// maxPending is how much may wait for a writer that does not keep up. What
	// comes on top is dropped and counted: traffic never waits for its log.
	maxPending = 1 << 20
)

// Log is one access log. Write is safe for concurrent use and does no I/O; Run
// does it. The methods of a nil Log do nothing.
type Log struct {
	out     io.WriteCloser
	dropped atomic.Int64
	wake    chan struct{} // cap 1: there is something, or much, to write

	flushing sync.Mutex // held by the one that writes to out

	mu sync.Mutex
	// mu guards
	pending []byte
	spare   []byte // the other of two buffers, nil while it is being written
	stamp   [19]byte
	stamped int64 // the second that stamp shows
}

// OpenLog opens the access log at path for appending. "/dev/stdout" and
// "/dev/stderr" are the process's own streams, whatever they are connected to.
func OpenLog(path string) (*Log, error) {
	out, err := OpenFile(path)
	if err != nil {
		return nil, err
	}
	return NewLog(out), nil
}

// OpenFile opens what an access log is written to.
func OpenFile(path string) (io.WriteCloser, error) {
	switch path {
	case "/dev/stdout":
		return stream{os.Stdout}, nil
	case "/dev/stderr":
		return stream{os.Stderr}, nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("access log: %w", err)
	}
	return f, nil
}

// stream is a file of the process that outlives the log.
type stream struct{ io.Writer }

func (stream) Close() error { return nil }

// NewLog returns a log that writes to out and closes it in the end.
func NewLog(out io.WriteCloser) *Log {
	return &Log{out: out, wake: make(chan struct{}, 1)}
}

// Write appends one entry.
func (l *Log) Write(e *Entry) {
	if l == nil {
		return
	}
	l.mu.Lock()
	if len(l.pending) > maxPending {
		l.mu.Unlock()
		l.dropped.Add(1)
		return
	}
	before := len(l.pending)
	l.pending = l.append(l.pending, e)
	signal := before == 0 || before < flushSize && len(l.pending) >= flushSize
	l.mu.Unlock()
	if signal {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// Dropped returns how many entries were lost because the writer did not keep up
// or failed.
func (l *Log) Dropped() int64 {
	if l == nil {
		return 0
	}
	return l.dropped.Load()
}

// Run writes what is pending at most a second after it came, until ctx ends; then
// it writes the rest and returns. While there is nothing to write it sleeps. A
// write error does not end it: the disk may have room again later.
func (l *Log) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return l.Flush()
		case <-l.wake:
		}
		t := time.NewTimer(flushInterval)
	gather:
		for !l.large() {
			select {
			case <-ctx.Done():
				break gather
			case <-l.wake:
			case <-t.C:
				break gather
			}
		}
		t.Stop()
		l.Flush() // a failure shows in Dropped
	}
}

func (l *Log) large() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.pending) >= flushSize
}

// Flush writes what is pending.
func (l *Log) Flush() error {
	if l == nil {
		return nil
	}
	l.flushing.Lock()
	defer l.flushing.Unlock()
	l.mu.Lock()
	b := l.pending
	l.pending, l.spare = l.spare[:0], nil
	l.mu.Unlock()

	var err error
	if len(b) > 0 {
		if _, err = l.out.Write(b); err != nil {
			for _, c := range b {
				if c == '\n' {
					l.dropped.Add(1)
				}
			}
		}
	}
	if cap(b) > 2*flushSize { // a burst should not be remembered in memory
		b = nil
	}
	l.mu.Lock()
	l.spare = b
	l.mu.Unlock()
	return err
}

// Close flushes the log and closes what it writes to.
func (l *Log) Close() error {
	if l == nil {
		return nil
	}
	return errors.Join(l.Flush(), l.out.Close())
}

// append encodes e in Istio's default text format:
//
//	[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%"
//	%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%
//	%CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%"
//	%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%
//	"%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%"
//	"%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW%
//	%UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS%
//	%DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%
func (l *Log) append(b []byte, e *Entry) []byte {
	b = append(b, '[')
	b = l.appendTime(b, e.Start)
	b = append(b, `] "`...)
	b = appendQuoted(b, e.Method)
	b = append(b, ' ')
	b = appendQuoted(b, e.Path)
	b = append(b, ' ')
	b = appendQuoted(b, e.Protocol)
	b = append(b, `" `...)
	b = strconv.AppendInt(b, int64(e.Code), 10)
	b = append(b, ' ')
	b = appendToken(b, e.Flags)
	b = append(b, ' ')
	b = appendToken(b, e.Details)
	b = append(b, ' ')
	b = appendToken(b, e.Termination)
	b = append(b, ` "`...)
	b = appendQuoted(b, e.TransportFailure)
	b = append(b, `" `...)
	b = strconv.AppendInt(b, e.BytesReceived, 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, e.BytesSent, 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, e.Duration.Milliseconds(), 10)
	b = append(b, ' ')
	b = appendToken(b, e.UpstreamServiceTime)
	for _, v := range [...][]byte{e.ForwardedFor, e.UserAgent, e.RequestID, e.Authority} {
		b = append(b, ` "`...)
		b = appendQuoted(b, v)
		b = append(b, '"')
	}
	b = append(b, ` "`...)
	b = appendAddr(b, e.UpstreamHost)
	b = append(b, `" `...)
	b = appendToken(b, e.UpstreamCluster)
	b = append(b, ' ')
	b = appendAddr(b, e.UpstreamLocal)
	b = append(b, ' ')
	b = appendAddr(b, e.DownstreamLocal)
	b = append(b, ' ')
	b = appendAddr(b, e.DownstreamRemote)
	b = append(b, ' ')
	b = appendToken(b, e.ServerName)
	b = append(b, ' ')
	b = appendToken(b, e.RouteName)
	return append(b, '\n')
}

// appendTime prints t as Envoy's START_TIME does, in UTC with milliseconds. The
// part down to the second is printed once per second. The caller holds mu.
func (l *Log) appendTime(b []byte, t time.Time) []byte {
	if s := t.Unix(); s != l.stamped {
		l.stamped = s
		t.UTC().AppendFormat(l.stamp[:0], "2006-01-02T15:04:05")
	}
	b = append(b, l.stamp[:]...)
	ms := t.Nanosecond() / 1_000_000
	return append(b, '.', byte('0'+ms/100), byte('0'+ms/10%10), byte('0'+ms%10), 'Z')
}

func appendAddr(b []byte, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return append(b, '-')
	}
	return a.AppendTo(b)
}

const hexDigits = "0123456789abcdef"

// appendQuoted prints a value that stands between quotes. Envoy prints it as it
// is; here what could end the quotes or the line is escaped, because the value
// is the client's and must not forge fields or entries.
func appendQuoted[T string | []byte](b []byte, v T) []byte {
	if len(v) == 0 {
		return append(b, '-')
	}
	for i := 0; i < len(v); i++ {
		switch c := v[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ' || c == 0x7f:
			b = append(b, '\\', 'x', hexDigits[c>>4], hexDigits[c&15])
		default:
			b = append(b, c)
		}
	}
	return b
}

// appendToken prints a value that stands between spaces: as quoted, and with an
// underscore for each space, as Envoy does for details.
func appendToken[T string | []byte](b []byte, v T) []byte {
	from := len(b)
	b = appendQuoted(b, v)
	for i := from; i < len(b); i++ {
		if b[i] == ' ' {
			b[i] = '_'
		}
	}
	return b
}

// Logs opens each access log once, however many chains write to it. A path that
// was asked for stays open until the end. It is safe for concurrent use.
type Logs struct {
	open func(path string) (io.WriteCloser, error)

	mu sync.Mutex
	// mu guards
	logs map[string]*Log
	more chan struct{} // closed and replaced when a log was added
}

// NewLogs returns a set of logs that are opened with open; nil means OpenFile.
func NewLogs(open func(path string) (io.WriteCloser, error)) *Logs {
	if open == nil {
		open = OpenFile
	}
	return &Logs{open: open, logs: make(map[string]*Log), more: make(chan struct{})}
}

// Get returns the log at path, or nil for the empty path.
func (s *Logs) Get(path string) (*Log, error) {
	if path == "" {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.logs[path]; l != nil {
		return l, nil
	}
	out, err := s.open(path)
	if err != nil {
		return nil, err
	}
	l := NewLog(out)
	s.logs[path] = l
	close(s.more)
	s.more = make(chan struct{})
	return l, nil
}

// Dropped returns how many entries were lost in all logs.
func (s *Logs) Dropped() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var n int64
	for _, l := range s.logs {
		n += l.Dropped()
	}
	return n
}

// Run writes all logs, also those opened later, until ctx ends; then it flushes
// and closes them.
func (s *Logs) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	running := make(map[*Log]bool)
	for {
		s.mu.Lock()
		for _, l := range s.logs {
			if !running[l] {
				running[l] = true
				wg.Go(func() { l.Run(ctx) })
			}
		}
		more := s.more
		s.mu.Unlock()
		select {
		case <-more:
			continue
		case <-ctx.Done():
		}
		break
	}
	wg.Wait()
	s.mu.Lock()
	logs := slices.Collect(maps.Values(s.logs))
	s.mu.Unlock()
	var err error
	for _, l := range logs {
		err = errors.Join(err, l.Close())
	}
	return err
}
