// Package http2 is the HTTP/2 codec, for both sides of the proxy: a machine for
// the connections of clients and one for those to upstreams. It speaks HTTP/2 from
// the first byte, by prior knowledge or after ALPN "h2"; there is no upgrade from
// HTTP/1.1. Source: RFC 9113; RFC 7541 for header compression, RFC 8441 for
// extended CONNECT.
//
// # The machine
//
// A Conn has one goroutine, its reader, which is the one that called Run. It reads
// what is there, takes the frames apart, and calls the StreamHandler of the stream
// that each belongs to. There is no goroutine for a stream. What a handler wants
// to send, on this connection or on any other, it appends to that connection's
// queue; when all that was read has been handled, the reader writes each queue
// that grew, in one system call. That is what makes HTTP/2 cheap: the work of many
// streams shares its reads and writes.
//
//	read ─▶ frames ─▶ OnHeaders, OnData … ─▶ Send… on other connections ─▶ Flush
//
// The reader never waits for a peer to take its bytes: two proxies that did would
// wait for each other. What the socket does not take at once is written by a
// goroutine that exists until the queue is empty.
//
// # Duties of the caller
//
//   - Batch. Handlers get a *Batch, and pass it to everything they send. Who sends
//     outside of a handler passes nil, and each call is then a write of its own;
//     or makes a Batch, and flushes it. A Batch is never passed to another goroutine
//     and not kept.
//   - Blocking. A handler does not block: it would hold up all streams of its
//     connection. Who needs to wait uses a Pipe, which gives a stream blocking
//     reads and writes and a goroutine of its own.
//   - Flow control. Each byte of OnData is the handler's until it says Consume: the
//     peer may send no more than a window of unconsumed bytes. SendData takes all
//     it is given and says how much had to be kept; a handler that forwards
//     consumes, on the one side, what left on the other, and so bounds what is kept.
//   - Release. A stream's memory is used again, so a handler that has done with a
//     stream says Release, once, and does not touch it any more: when both sides
//     ended, after OnReset, or at any time to give it up. An event that is on its
//     way from another goroutine may still come; its stream is not used again before
//     it returned, so that a handler whose own memory is used again can compare.
//   - Views. What handlers are passed is valid until they return. A Head may be
//     kept, with Keep.
//   - Locks. Handlers are called with no lock held, and may call anything of any
//     stream or connection. A handler that holds a lock of its own while it sends
//     passes a Batch, for a flush calls handlers. OnWindow may come from any goroutine; all other events
//     of a stream come from its connection's reader, one after the other.
//
// # Limits
//
// Peers are not trusted, neither clients nor upstreams. Headers are bounded as
// they are decoded, with every cookie crumb counted; data by the windows
// of streams and, across connections, by a Budget; queues by what the peer may ask for without taking
// anything. Work that leads to nothing (streams reset before they were answered,
// pings, settings, empty frames, frames for streams that are gone) is counted, and
// too much of it ends the connection with ENHANCE_YOUR_CALM. A peer that takes
// nothing for too long is cut off.
package http2

import (
	"errors"
	"fmt"
)

// ErrCode is an error code. Source: RFC 9113 section 7.
type ErrCode uint32

// The error codes.
const (
	NoError ErrCode = iota
	ProtocolError
	InternalError
	FlowControlError
	SettingsTimeout
	StreamClosed
	FrameSizeError
	RefusedStream
	Cancel
	CompressionError
	ConnectError
	EnhanceYourCalm
	InadequateSecurity
	HTTP11Required
)

var codeNames = [...]string{"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT",
	"STREAM_CLOSED", "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR",
	"ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED"}

// String returns the code's name.
func (c ErrCode) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("error %#x", uint32(c))
}

// Reset is why a stream ended early. It is an error.
type Reset struct {
	Code ErrCode
	// Remote is true if the peer ended the stream, or the connection did.
	Remote bool
	// Retry is true if the peer has not acted on the request and will not: it can
	// be sent again wherever one likes, whatever its method.
	Retry bool
	// Conn is true if the connection ended, or is going to, and Cause is the error that
	// ended it, if one did.
	Conn  bool
	Cause error
	// Reason says more, for logs.
	Reason string
}

// Error implements error.
func (r Reset) Error() string {
	by := "here"
	if r.Remote {
		by = "by the peer"
	}
	if r.Reason == "" {
		return "http2: stream reset " + by + ": " + r.Code.String()
	}
	return "http2: stream reset " + by + ": " + r.Code.String() + ": " + r.Reason
}

// ConnError is why a connection had to be ended.
type ConnError struct {
	Code   ErrCode
	Remote bool // the peer said so, with GOAWAY
	Reason string
}

// Error implements error.
func (e *ConnError) Error() string {
	if e.Remote {
		return "http2: ended by the peer: " + e.Code.String() + ": " + e.Reason
	}
	return "http2: " + e.Code.String() + ": " + e.Reason
}

// Why a stream could not be opened. Nothing was sent: the request can go elsewhere.
var (
	// ErrStreams means that the peer allows no more streams at present.
	ErrStreams = errors.New("http2: the peer's limit of streams is reached")
	// ErrGoingAway means that the connection takes no more streams.
	ErrGoingAway = errors.New("http2: the connection is going away")
	// ErrNoExtendedConnect means that the peer does not know :protocol, or has not
	// said so yet. See Conn.Ready.
	ErrNoExtendedConnect = errors.New("http2: the peer does not take extended CONNECT")
)

var (
	// ErrStreamEnded is returned for sending on a stream that was ended or reset.
	ErrStreamEnded = errors.New("http2: the stream has ended")
	// ErrQueueFull is returned for data beyond Config.MaxQueued.
	ErrQueueFull = errors.New("http2: too much data waits to be sent")
	// ErrBudget means that there is no memory left for data that must be kept.
	ErrBudget = errors.New("http2: the memory budget is used up")
)
