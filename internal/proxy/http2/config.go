package http2

import (
	"math"
	"net"
	"time"
)

// Config is what a Conn needs. Conn is required, and Handler for servers.
type Config struct {
	Conn net.Conn
	// First is what was read from Conn already, beginning with the client's preface.
	First []byte
	// Handler hears of the streams that clients open; its OnHeaders may pass a
	// stream on with Stream.Handle.
	Handler StreamHandler

	// MaxStreams is how many streams a client may have open; 0: 1024.
	MaxStreams uint32
	// StreamWindow bounds the bytes of a stream that the peer may send before they
	// are consumed; 0: 256 KiB. ConnWindow bounds those of all streams that may be on
	// their way; it is given back when they arrive, so that streams which wait do not
	// hold up others; 0: 1 MiB. Both are 64 KiB at least.
	StreamWindow, ConnWindow int32
	// MaxHeld is how much of all streams may be unconsumed before the connection's
	// window is not given back; 0: 16 MiB for clients' connections, no bound for
	// those to upstreams, which many clients share.
	MaxHeld int64
	// MaxHeaderBytes bounds a header section, decoded, with 32 bytes for each field,
	// and MaxFields the number of its fields; 0: 60 KiB and 100.
	MaxHeaderBytes int
	MaxFields      int
	// MaxQueued bounds the data of a stream that waits to be sent; 0: 1 MiB.
	MaxQueued int
	// ExtendedConnect lets clients use :protocol.
	ExtendedConnect bool
	// Budget bounds the data that many connections keep; nil: no bound.
	Budget *Budget

	// Resets bounds the streams that end early, whoever ends them, if the peer is to
	// blame. A stream that ends as it should gives one back.
	Resets Rate
	// Control bounds frames that ask for work and carry nothing. Frames with
	// something in them give ten back.
	Control Rate

	// SettingsTimeout is how long a peer may take for its preface and for the
	// acknowledgement of ours; 0: 10 s.
	SettingsTimeout time.Duration
	// FrameTimeout is how long a frame or header section may take from its first
	// byte; 0: a minute.
	FrameTimeout time.Duration
	// WriteTimeout is how long a peer may take for 64 KiB of our bytes; 0: 30 s.
	WriteTimeout time.Duration
	// StallTimeout resets a stream that has data to send and gets no window; 0: five
	// minutes.
	StallTimeout time.Duration
	// IdleTimeout ends a connection without streams; 0: an hour; below 0: never.
	IdleTimeout time.Duration
	// DrainTimeout is how long a client may go on to open streams after it was told
	// to stop, if it does not answer; 0: 5 s.
	DrainTimeout time.Duration
	// PingInterval is after how long without a byte from the peer it is asked
	// whether it is there, while it has streams; it has PingTimeout to answer. 0: it
	// is not asked; 10 s.
	PingInterval, PingTimeout time.Duration

	// OnState is told, from any goroutine and without locks, that what Room, Ready
	// or Err return may have changed.
	OnState func(*Conn)
	// OnPanic is told of a panic in a handler, which ended its stream only. It must
	// be set if panics shall not be passed on.
	OnPanic func(value any, stack []byte)
}

// Rate is a number of events: Burst at once, and PerSecond in the long run.
type Rate struct{ Burst, PerSecond int }

const (
	// Sources: Envoy's max_concurrent_streams, max_request_headers_kb and
	// max_headers_count; its stream_idle_timeout; its drain time of 5 s.
	defaultMaxStreams     = 1024
	defaultMaxHeaderBytes = 60 << 10
	defaultMaxFields      = 100
	defaultStallTimeout   = 5 * time.Minute
	defaultDrainTimeout   = 5 * time.Second

	// defaultStreamWindow fills 10 Gbit/s at 0.2 ms, or 1 Gbit/s at 2 ms.
	defaultStreamWindow = 256 << 10
	defaultConnWindow   = 1 << 20
	defaultMaxQueued    = 1 << 20
	// defaultMaxHeld is 64 streams of which nothing is consumed.
	defaultMaxHeld = 16 << 20

	defaultSettingsTimeout = 10 * time.Second
	defaultFrameTimeout    = time.Minute
	defaultWriteTimeout    = 30 * time.Second
	defaultIdleTimeout     = time.Hour
	defaultPingTimeout     = 10 * time.Second

	// maxFieldsEver is what Head can mark as never to be indexed.
	maxFieldsEver = 256
)

var (
	// defaultResets is Envoy's premature_reset_total_stream_count, and what a busy
	// proxy whose callers give up may need.
	defaultResets = Rate{Burst: 500, PerSecond: 50}
	// defaultControl is well above what gRPC sends to measure bandwidth.
	defaultControl = Rate{Burst: 1000, PerSecond: 100}
)

func or[T int | int32 | int64 | uint32 | time.Duration](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}

func (c *Config) setDefaults(client bool) {
	or(&c.MaxStreams, defaultMaxStreams)
	or(&c.StreamWindow, defaultStreamWindow)
	or(&c.ConnWindow, defaultConnWindow)
	c.StreamWindow = max(c.StreamWindow, defaultWindow)
	c.ConnWindow = max(c.ConnWindow, defaultWindow)
	if client {
		or(&c.MaxHeld, math.MaxInt64)
	}
	or(&c.MaxHeld, defaultMaxHeld)
	or(&c.MaxHeaderBytes, defaultMaxHeaderBytes)
	or(&c.MaxFields, defaultMaxFields)
	c.MaxFields = min(c.MaxFields, maxFieldsEver)
	or(&c.MaxQueued, defaultMaxQueued)
	or(&c.SettingsTimeout, defaultSettingsTimeout)
	or(&c.FrameTimeout, defaultFrameTimeout)
	or(&c.WriteTimeout, defaultWriteTimeout)
	or(&c.StallTimeout, defaultStallTimeout)
	or(&c.DrainTimeout, defaultDrainTimeout)
	or(&c.PingTimeout, defaultPingTimeout)
	if c.IdleTimeout == 0 {
		c.IdleTimeout = defaultIdleTimeout
	}
	if c.Resets == (Rate{}) {
		c.Resets = defaultResets
	}
	if c.Control == (Rate{}) {
		c.Control = defaultControl
	}
}
