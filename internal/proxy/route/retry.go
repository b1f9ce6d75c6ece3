package route

import (
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// Conditions are the reasons to try again, from Envoy's retry_on words.
type Conditions uint32

const (
	On5xx Conditions = 1 << iota
	OnGatewayError
	OnReset
	OnResetBeforeRequest
	OnConnectFailure
	OnRefusedStream
	OnRetriable4xx
	OnRetriableCodes
	OnCancelled
	OnDeadlineExceeded
	OnInternal
	OnResourceExhausted
	OnUnavailable
)

var conditions = map[string]Conditions{
	"5xx":                  On5xx,
	"gateway-error":        OnGatewayError,
	"reset":                OnReset,
	"reset-before-request": OnResetBeforeRequest,
	"connect-failure":      OnConnectFailure,
	// Every request of HTTP/1 is a stream of its own, which nobody refuses.
	"refused-stream":         OnRefusedStream,
	"retriable-4xx":          OnRetriable4xx,
	"retriable-status-codes": OnRetriableCodes,
	"cancelled":              OnCancelled,
	"deadline-exceeded":      OnDeadlineExceeded,
	"internal":               OnInternal,
	"resource-exhausted":     OnResourceExhausted,
	"unavailable":            OnUnavailable,
}

// Retry is a compiled plan.Retry.
type Retry struct {
	On       Conditions
	Codes    []uint32
	Attempts int // beyond the first
	PerTry   time.Duration
	Reopen   bool // avoid endpoints that were tried
	Remote   bool // and, after two attempts, their priorities
	Backoff  time.Duration
}

// usualBackoff is the base of the wait before a retry. Source: Envoy, router
// filter, x-envoy-max-retries.
const usualBackoff = 25 * time.Millisecond

// newRetry leaves out words it does not know, as Envoy does.
func newRetry(p *plan.Retry) *Retry {
	if p == nil {
		return nil
	}
	r := &Retry{Codes: p.Codes, Attempts: int(p.Attempts), PerTry: p.PerTry, Reopen: p.HostReopen > 0,
		Remote: p.Remote, Backoff: p.Backoff}
	if r.Backoff <= 0 {
		r.Backoff = usualBackoff
	}
	for _, word := range p.On {
		r.On |= conditions[word]
	}
	return r
}

// Status reports whether a response with this status, and the gRPC status if it
// has one in its header, is worth another try.
func (r *Retry) Status(code int, grpc []byte) bool {
	if r == nil {
		return false
	}
	switch {
	case r.On&On5xx != 0 && code >= 500,
		r.On&OnGatewayError != 0 && code >= 502 && code <= 504,
		r.On&OnRetriable4xx != 0 && code == 409:
		return true
	}
	if r.On&OnRetriableCodes != 0 {
		for _, c := range r.Codes {
			if int(c) == code {
				return true
			}
		}
	}
	switch string(grpc) {
	case "1":
		return r.On&OnCancelled != 0
	case "4":
		return r.On&OnDeadlineExceeded != 0
	case "8":
		return r.On&OnResourceExhausted != 0
	case "13":
		return r.On&OnInternal != 0
	case "14":
		return r.On&OnUnavailable != 0
	}
	return false
}

// Connect reports whether a failure to connect is.
func (r *Retry) Connect() bool {
	return r != nil && r.On&(OnConnectFailure|OnReset|OnResetBeforeRequest|On5xx|OnGatewayError) != 0
}

// Reset reports whether an upstream that closed or reset before it answered is.
// unsent says that the request was not delivered.
func (r *Retry) Reset(unsent bool) bool {
	return r != nil && (r.On&(OnReset|On5xx|OnGatewayError) != 0 || unsent && r.On&OnResetBeforeRequest != 0)
}

// Refused reports whether a stream that the upstream did not take is.
func (r *Retry) Refused() bool {
	return r != nil && r.On&(OnRefusedStream|OnReset|OnResetBeforeRequest|On5xx|OnGatewayError) != 0
}
