package upstream

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/heddle-mesh/heddle/internal/proxy/mtls"
)

var (
	// ErrNoHealthy means that the cluster has no endpoint to choose (UH).
	ErrNoHealthy = errors.New("no healthy upstream")
	// ErrOverflow means that a limit of the cluster was reached (UO).
	ErrOverflow = errors.New("overflow")
	// ErrDeadline means that Want.Deadline passed.
	ErrDeadline = errors.New("deadline exceeded")
)

// ConnectError means that an endpoint could not be connected to, or not securely
// (UF). Nothing was sent.
type ConnectError struct {
	Endpoint *Endpoint
	Err      error
	Timeout  bool // the cluster's connect timeout passed
}

// Error implements error.
func (e *ConnectError) Error() string {
	return "connect to " + e.Endpoint.Address.String() + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *ConnectError) Unwrap() error { return e.Err }

// Reason is the reset reason, in Envoy's words.
func (e *ConnectError) Reason() string {
	if e.Timeout {
		return "connection timeout"
	}
	return "remote connection failure"
}

// TransportFailure is the cause in Envoy's words: "delayed connect error:
// Connection refused", or what failed in TLS.
func (e *ConnectError) TransportFailure() string {
	if e.Timeout {
		return ""
	}
	if s := mtls.Reason(e.Err); s != "" {
		return s
	}
	var no syscall.Errno
	if errors.As(e.Err, &no) {
		return "delayed connect error: " + strings.ToUpper(no.Error()[:1]) + no.Error()[1:]
	}
	cause := e.Err
	var op *net.OpError
	if errors.As(cause, &op) {
		cause = op.Err
	}
	return "delayed connect error: " + cause.Error()
}

// connectError says how a dial or handshake ended: by the caller's context, by
// the caller's deadline, or by the endpoint.
func connectError(parent context.Context, deadline time.Time, now time.Time, e *Endpoint, err error) error {
	if cause := parent.Err(); cause != nil {
		return cause
	}
	if !deadline.IsZero() && !now.Before(deadline) {
		return ErrDeadline
	}
	timeout := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)
	if n, ok := errors.AsType[net.Error](err); ok {
		timeout = timeout || n.Timeout()
	}
	return &ConnectError{Endpoint: e, Err: err, Timeout: timeout}
}
