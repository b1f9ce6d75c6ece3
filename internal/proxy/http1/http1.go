// Package http1 is the HTTP/1.1 codec, for both sides of the proxy: it reads
// request and response heads and bodies from a connection into an exchange, and
// writes them.
//
// It is strict. What RFC 9112 leaves to the receiver's mercy is refused, because
// another server behind or before the proxy may read it differently, and that
// difference is request smuggling: no line folding, no space before a colon, no
// bare CR or LF, no repeated Content-Length, no Content-Length beside
// Transfer-Encoding, no transfer coding but a single "chunked".
//
// Nothing is allocated per message once the pools are warm. Heads are parsed in
// place: header names and values are views into the reader's buffer, and headers
// that nobody changed are passed on as they came, in one copy.
package http1

const (
	// MaxHead is the most bytes of a head, with its first line. Source: Envoy's
	// default max_request_headers_kb.
	MaxHead = 60 << 10
	// MaxFields is the most header fields. Source: Envoy's default
	// max_headers_count.
	MaxFields = 100
)

// Error is a message that is not HTTP as we accept it. The connection is of no
// use after it.
type Error struct {
	Status  int    // what a server answers
	Details string // response code details
}

// Error implements error.
func (e *Error) Error() string { return "http1: " + e.Details }

var (
	errLine        = &Error{400, "http1.bad_start_line"}
	errVersion     = &Error{505, "http1.unsupported_version"}
	errTarget      = &Error{400, "http1.bad_request_target"}
	errFragment    = &Error{400, "path_with_fragment"}
	errPath        = &Error{400, "path_normalization_failed"}
	errHost        = &Error{400, "http1.bad_host"}
	errNoHost      = &Error{400, "missing_host_header"}
	errField       = &Error{400, "http1.bad_header_field"}
	errBareLF      = &Error{400, "http1.bare_line_feed"}
	errTooMany     = &Error{431, "http1.too_many_headers"}
	errTooLarge    = &Error{431, "request_headers_too_large"}
	errLongLine    = &Error{414, "request_line_too_long"}
	errLength      = &Error{400, "http1.invalid_content_length"}
	errBoth        = &Error{400, "http1.content_length_and_chunked_not_allowed"}
	errCoding      = &Error{501, "http1.invalid_transfer_encoding"}
	errCodingIn10  = &Error{400, "http1.transfer_encoding_in_http_1_0"}
	errExpectation = &Error{417, "http1.unknown_expectation"}
	errConnectBody = &Error{400, "http1.body_disallowed"}
	errSwitch      = &Error{502, "http1.unexpected_switching_protocols"}
	errChunk       = &Error{400, "http1.bad_chunk"}
	errTrailer     = &Error{400, "http1.bad_trailer"}
	errTrailers    = &Error{431, "http1.trailers_too_large"}
)

// NotHTTPError is returned in place of the first request of a connection that
// does not speak HTTP/1. The listener may hand the connection to someone else.
type NotHTTPError struct {
	// HTTP2 is true if the bytes are the beginning of HTTP/2.
	HTTP2 bool
	// Read is what was read from the connection so far; it belongs to the caller.
	Read []byte
}

// Error implements error.
func (e *NotHTTPError) Error() string {
	if e.HTTP2 {
		return "http1: the client speaks HTTP/2"
	}
	return "http1: the client does not speak HTTP"
}
