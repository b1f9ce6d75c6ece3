package exchange

// Framing says how a body's end is found.
type Framing uint8

const (
	NoBody Framing = iota
	Length         // after Length bytes
	Chunked
	UntilClose // when the sender closes; responses only
)

// Body is a message's body while it arrives.
type Body interface {
	// Next returns the next bytes, at least one, or an error, which is io.EOF at
	// the body's regular end. It blocks. The view is valid until the next call.
	Next() ([]byte, error)
	// Buffered returns the bytes that are here already, without reading, and
	// whether the body ends with them. What it returns counts as taken only after
	// Take. It may return less than is here.
	Buffered() (p []byte, whole bool)
	// Take marks what Buffered returned as used. Its bytes stay valid until the
	// next call of Next.
	Take()
	// Raw asks for a body with its chunks and trailers, checked but unchanged but for
	// chunk extensions, instead of the data alone. It is called before the first
	// Buffered or Next, and for messages with Framing Chunked only.
	Raw()
	// Done reports whether the body's end was reached.
	Done() bool
	// Trailers returns the trailers once the end was reached, nil if there are none.
	// With Raw they are in the bytes instead.
	Trailers() *Header
	// Size returns how many bytes of data were handed out, without framing.
	Size() int64
}

// Request is what was asked.
type Request struct {
	Method    []byte
	Scheme    string // "http" or "https": how the client reached the mesh
	Authority []byte // host with port as sent, from the target or the Host header
	// Target is the request target as sent; logs show it.
	Target []byte
	// Path is the canonical form of the path without query: the one that routes
	// and policies compare, and that is sent upstream. See Canonical.
	Path  []byte
	Query []byte // behind the "?", which is not part of it
	// HasQuery tells "/a?" from "/a".
	HasQuery bool
	HTTP2    bool
	Minor    int // of HTTP/1.x; 1 for HTTP/2
	Header   Header

	Framing Framing
	Length  int64 // with Framing Length
	Body    Body  // nil with NoBody

	// Upgrade is the protocol asked for, "" for none; Connect is a request for a
	// tunnel to Authority. After either the connection may stop being HTTP.
	Upgrade []byte
	// WebSocketKey is the client's, which HTTP/2 does not pass on.
	WebSocketKey []byte
	Connect      bool
	Head         bool // HEAD: the response has no body whatever its headers say
	// Expect is true if the client waits for a 100 before it sends the body.
	Expect bool
	// Messages counts what a gRPC client sent, by HTTP/2.
	Messages Messages
}

func (r *Request) reset() {
	h := r.Header
	h.Reset()
	*r = Request{Header: h}
}

// Protocol returns the protocol's name for logs.
func (r *Request) Protocol() string {
	switch {
	case r.HTTP2:
		return "HTTP/2"
	case r.Minor == 0:
		return "HTTP/1.0"
	}
	return "HTTP/1.1"
}

// Response is what came back, or what the proxy answers.
type Response struct {
	Status int
	Reason []byte // as sent by the upstream; nil for the usual phrase
	Minor  int
	Header Header

	Framing Framing
	Length  int64
	Body    Body // nil if Text is the body

	// GRPCStatus is the status of a gRPC call, from the header or, at the end, from the
	// trailers; "" if there was none. Messages counts what was answered.
	GRPCStatus string
	Messages   Messages

	// Close is true if the upstream will close its connection.
	Close bool
	// Local is true if the proxy itself answers; Text is the body then.
	Local bool
	Text  string
}

func (r *Response) reset() {
	h := r.Header
	h.Reset()
	*r = Response{Header: h}
}
