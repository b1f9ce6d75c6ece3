// Package exchange holds the one value that a request is on its way through the
// proxy: what was asked, what was decided, what came back, and what it cost.
// Parser, router, policies, upstream, metrics and access log all read and write
// this value and no other, so that they can not disagree about the request.
//
// An Exchange is pooled. Its byte slices are views into the connection's read
// buffer and die with the exchange; who needs a value longer copies it.
//
// The way of an exchange: a codec reads a request head into Request, the filters
// look at it one after the other, and the handler behind them fills Response, from
// an upstream or from the proxy itself. The filters then see the response on its way
// back. The codec writes it and streams its body, and at the very end the observers
// account for what happened.
package exchange

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/telemetry"
)

// Handler acts on an exchange. When it returns, Response is complete up to its
// body, which may still be on its way.
type Handler func(x *Exchange)

// Filter looks at each exchange twice. It is made when a chain is composed, and
// keeps what belongs to one exchange in the exchange. Either half may be nil.
type Filter struct {
	// Request sees the request before it is routed. It may answer it, with Reply or
	// Fail; then nobody behind it is asked.
	Request func(x *Exchange)
	// Response sees the response's head if Request was called, in the opposite
	// order. It never waits.
	Response func(x *Exchange)
	// Waits reports whether Request may block, as policy is now; nil: it never does.
	// Streams that share a connection then get a goroutine each, which they do without
	// otherwise.
	Waits func() bool
}

// Conn is a client's connection. The listener fills it before the first request;
// only the memos change afterwards.
type Conn struct {
	ID     uint64
	Remote netip.AddrPort
	// Direct is the socket's other side. It differs from Remote where that one named
	// the client in a PROXY protocol header.
	Direct netip.AddrPort
	Local  netip.AddrPort // where the client wanted to go: the original destination
	// Direction is the listener's.
	Direction plan.Direction
	MTLS      bool   // the client proved PeerID with its certificate
	PeerID    string // SPIFFE id of the client, or ""
	OwnID     string // SPIFFE id that was presented to the client, or ""
	SNI, ALPN string
	TLS       bool // the client's bytes came encrypted, whoever it is
	// PeerHash is the hex SHA-256 of the client's certificate and PeerSubject its
	// subject, for x-forwarded-client-cert.
	PeerHash, PeerSubject string
	// Peer describes the client, nil unless it is known from the metadata exchange of a
	// TCP connection. HTTP clients tell per request; see Exchange.Peer.
	Peer *telemetry.Workload

	PeerMemo PeerMemo
	Handles  Handles
}

// Client is the way back to the client while a request is being handled.
type Client interface {
	// Interim passes on the 1xx response in x.Response.
	Interim(x *Exchange) error
	// Watch begins to look for the client hanging up, and calls gone, once and
	// from another goroutine, if it does. It has no effect while the request's
	// body is still being read: reading tells the same.
	Watch(gone func())
	// AbortRead makes a Next on the request's body that blocks, or begins later,
	// fail soon. It may be called from any goroutine.
	AbortRead()
	// Progress tells that the request's body is being waited for, or that some of it
	// came. If there is no other Progress for long, Next fails with a timeout.
	Progress()
}

// Exchange is one request with its response.
type Exchange struct {
	Context context.Context // of the connection: ends when the client is gone
	Conn    *Conn
	Client  Client
	Start   time.Time
	End     time.Time // when the response was sent or given up; zero if nobody noted it
	// Terminal is where the last handler of the chain keeps what it can use again for
	// the client's next request. Exchanges that go on at the same time have different
	// ones.
	Terminal *any

	Request  Request
	Response Response

	// Route is the decision; see package route. Host and Rule are nil if nothing
	// matched.
	Host    *plan.VirtualHost
	Rule    *plan.Route
	Cluster string // "" until chosen

	Upstream Upstream
	// Peer is who the other side says it is: the client's workload on inbound
	// connections. It is nil if unknown.
	Peer *telemetry.Workload
	// Remote is the client's address as far as it can be known behind proxies. It is
	// invalid until somebody found out, and means the connection's then.
	Remote netip.Addr
	// Token is what a verified token says of the one who asks, nil without one.
	Token *Token
	// ToClient are headers that the response is to have.
	ToClient []Pair
	// AskedPeer and AskedPeerID are set if the client's proxy wants to be told who
	// answers.
	AskedPeer, AskedPeerID bool

	Flags   Flags
	Details string // response code details; "via_upstream" if an upstream answered
	// Termination is why the client's connection was ended early, or "".
	Termination      string
	TransportFailure string // why TLS to the upstream failed

	// Sizes of the bodies as they pass the client's connection. They are final
	// when the observers run.
	RequestBytes, ResponseBytes int64
	// ClientGone is set when the client left before its response was complete.
	ClientGone bool
	// Close asks for the client's connection to be closed after this response.
	Close bool
	// Tunnel is set when the upstream agreed to an upgrade or a CONNECT: after the
	// response head, bytes are copied both ways until both sides have ended.
	Tunnel *Tunnel

	// Uploading is true from the request's head until its body was read to the end.
	Uploading atomic.Bool
	// Claimed is set by the handler that reads the request's body. Until Finish it
	// may do so in a goroutine of its own.
	Claimed bool

	// finish releases what the response's body needs. See OnFinish.
	finish  Finisher
	scratch []byte
}

// Token is the content of a verified token. It is immutable, and shared by all
// requests that bear it.
type Token struct {
	// Principal is "ISSUER/SUBJECT", or "" if the token lacks one of them.
	Principal string
	// Claims are those that are texts or lists of texts, by the names on the way to
	// them joined by "\x00".
	Claims map[string][]string
}

// Pair is a header by name and value.
type Pair struct{ Name, Value string }

// Tunnel is the upstream's side of an upgraded connection. Early holds what the
// upstream sent behind its response head.
type Tunnel struct {
	Conn  net.Conn
	Early []byte
}

// Finisher releases what an exchange holds. complete tells whether the response
// was read to its end without error.
type Finisher interface {
	Finish(x *Exchange, complete bool)
}

// Upstream is what is known of the endpoint that was chosen last.
type Upstream struct {
	Remote, Local netip.AddrPort
	Service       plan.ServiceRef
	Workload      *telemetry.Workload // nil if unknown
	PeerID        string              // SPIFFE id it proved, or ""
	MTLS          bool
	Attempts      int
	FirstByte     time.Time // when the response's head was there
	// Handles and Peer are memos of the endpoint, or nil.
	Handles *Handles
	Peer    *PeerMemo
}

var pool = sync.Pool{New: func() any { return new(Exchange) }}

// Get returns an empty exchange.
func Get() *Exchange { return pool.Get().(*Exchange) }

// Put takes back an exchange. Nobody may hold a view of it any more.
func Put(x *Exchange) {
	x.Reset()
	x.Conn, x.Client, x.Context, x.Terminal = nil, nil, nil, nil
	pool.Put(x)
}

// maxScratch bounds the memory an exchange keeps for its successors.
const maxScratch = 8 << 10

// Reset makes x ready for the next request of the same connection.
func (x *Exchange) Reset() {
	x.Start, x.End = time.Time{}, time.Time{}
	x.Request.reset()
	x.Response.reset()
	x.Host, x.Rule, x.Cluster = nil, nil, ""
	x.Upstream = Upstream{}
	x.Peer = nil
	x.Remote, x.Token = netip.Addr{}, nil
	clear(x.ToClient)
	x.ToClient = x.ToClient[:0]
	x.AskedPeer, x.AskedPeerID = false, false
	x.Flags, x.Details, x.Termination, x.TransportFailure = 0, "", "", ""
	x.RequestBytes, x.ResponseBytes = 0, 0
	x.ClientGone, x.Close = false, false
	x.Tunnel, x.finish = nil, nil
	x.Uploading.Store(false)
	x.Claimed = false
	if cap(x.scratch) > maxScratch {
		x.scratch = nil
	}
	x.scratch = x.scratch[:0]
}

// Duration returns how long the exchange took. now is asked if its end was not noted.
func (x *Exchange) Duration(now func() time.Time) time.Duration {
	if x.End.IsZero() {
		return now().Sub(x.Start)
	}
	return x.End.Sub(x.Start)
}

// OnFinish sets what is called once the response has been sent or given up. Only
// the handler that produces the response calls it.
func (x *Exchange) OnFinish(f Finisher) { x.finish = f }

// Finish ends the exchange; codecs call it once, before the observers.
func (x *Exchange) Finish(complete bool) {
	if f := x.finish; f != nil {
		x.finish = nil
		f.Finish(x, complete)
	}
}

// Scratch returns the exchange's arena. Values that have to live as long as the
// exchange are made by appending to it and handed back with Keep.
func (x *Exchange) Scratch() []byte { return x.scratch }

// Keep stores the arena after b was appended to what Scratch returned, and
// returns the part that was appended. If the arena had to move, values kept
// earlier stay where they were.
func (x *Exchange) Keep(b []byte) []byte {
	from := len(x.scratch)
	x.scratch = b
	return b[from:len(b):len(b)]
}

// Reply answers without an upstream. The body is text; details say why. A gRPC
// client gets the same in its own terms.
func (x *Exchange) Reply(status int, body, details string) {
	x.Response.reset()
	r := &x.Response
	r.Local = true
	x.Details = details
	r.Framing = Length
	if status != 0 && x.Request.IsGRPC() {
		x.replyGRPC(status, body)
		return
	}
	r.Status = status
	r.Text = body
	r.Length = int64(len(body))
	if body != "" {
		r.Header.AddString(ContentType, "content-type", "text/plain")
	}
}

// Fail is Reply with a response flag.
func (x *Exchange) Fail(flag Flags, status int, body, details string) {
	x.Flags |= flag
	x.Reply(status, body, details)
}
