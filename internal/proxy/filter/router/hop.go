package router

import (
	"time"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
)

// hop is the way of an attempt to an endpoint and back, by one protocol or the
// other. The goroutine of the call uses it; write and end are for that of its
// upload, and SetDeadline, from any goroutine, makes the others return.
type hop interface {
	// prepare makes what all attempts send alike, before the first, and finish takes
	// it back.
	prepare()
	finish()
	// connect chooses an endpoint, gets a way to it, and tells the exchange of both.
	connect(w upstream.Want) (*upstream.Endpoint, error)
	// send sends the request's head with what is here of its body; more says that
	// there will be more. unsent is true if nothing left.
	send(body []byte, more bool) (unsent bool, err error)
	write(p []byte) error
	end() error
	// receive reads the next head of the response into the exchange.
	receive() error
	// body returns the response's body, nil if there is none.
	body() exchange.Body
	// tunnel returns the other end, once the upstream has agreed to one.
	tunnel() *exchange.Tunnel
	// skip reads over a response that is not wanted, if all of it is here, and
	// reports whether the way can be used again; spent reports that of a response that
	// was read to its end.
	skip() bool
	spent() bool
	// failure says what an error before the response's head means.
	failure(err error, unsent bool) failure
	// cut says why the response's body ended early.
	cut() kind
	// release ends the use of the way.
	release(reusable bool)
	SetDeadline(t time.Time) error
}
