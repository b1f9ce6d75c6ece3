package exchange

// ID is a header that the proxy itself knows, so that finding it costs an index
// and no comparison.
type ID uint8

const (
	Other ID = iota // any other header

	// Those that concern one connection or the framing.
	Connection
	ContentLength
	Expect
	Host
	KeepAlive
	ProxyConnection
	TE
	Trailer
	TransferEncoding
	Upgrade
	HTTP2Settings

	ContentType
	Cookie
	Date
	GRPCMessage
	GRPCStatus
	GRPCTimeout
	Location
	Server
	UserAgent

	RequestID
	ForwardedFor
	ForwardedProto
	ForwardedHost
	ForwardedClientCert
	AttemptCount
	ExpectedTimeout
	ExternalAddress
	OriginalPath
	PeerMetadata
	PeerMetadataID
	ServiceTime

	idEnd
)

// IDs is how many IDs there are.
const IDs = int(idEnd)

// names are the IDs' names in lower case.
var names = [idEnd]string{
	Connection:       "connection",
	ContentLength:    "content-length",
	Expect:           "expect",
	Host:             "host",
	KeepAlive:        "keep-alive",
	ProxyConnection:  "proxy-connection",
	TE:               "te",
	Trailer:          "trailer",
	TransferEncoding: "transfer-encoding",
	Upgrade:          "upgrade",
	HTTP2Settings:    "http2-settings",

	ContentType: "content-type",
	Cookie:      "cookie",
	Date:        "date",
	GRPCMessage: "grpc-message",
	GRPCStatus:  "grpc-status",
	GRPCTimeout: "grpc-timeout",
	Location:    "location",
	Server:      "server",
	UserAgent:   "user-agent",

	RequestID:           "x-request-id",
	ForwardedFor:        "x-forwarded-for",
	ForwardedProto:      "x-forwarded-proto",
	ForwardedHost:       "x-forwarded-host",
	ForwardedClientCert: "x-forwarded-client-cert",
	AttemptCount:        "x-envoy-attempt-count",
	ExpectedTimeout:     "x-envoy-expected-rq-timeout-ms",
	ExternalAddress:     "x-envoy-external-address",
	OriginalPath:        "x-envoy-original-path",
	PeerMetadata:        "x-envoy-peer-metadata",
	PeerMetadataID:      "x-envoy-peer-metadata-id",
	ServiceTime:         "x-envoy-upstream-service-time",
}

// Name returns the header's name in lower case, "" for Other.
func (id ID) Name() string { return names[id] }

// maxName is the length of the longest known name.
const maxName = len("x-envoy-expected-rq-timeout-ms")

// byLength holds the known IDs by the length of their names.
var byLength = func() (t [maxName + 1][]ID) {
	for id := Other + 1; id < idEnd; id++ {
		t[len(names[id])] = append(t[len(names[id])], id)
	}
	return t
}()

// Identify returns the ID of a header name in any case.
func Identify(name []byte) ID {
	if len(name) > maxName {
		return Other
	}
	for _, id := range byLength[len(name)] {
		// What is in lower case, as all of HTTP/2 is, needs no look at each byte.
		known := names[id]
		if name[0] == known[0] && string(name) == known || EqualFold(name, known) {
			return id
		}
	}
	return Other
}

// EqualFold reports whether b is lower, which is in lower case, but for the case
// of ASCII letters.
func EqualFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	// The last byte first: the known names differ most at their ends.
	for i := len(b) - 1; i >= 0; i-- {
		c := b[i]
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// HasPrefixFold is EqualFold for the beginning of b.
func HasPrefixFold(b []byte, lower string) bool {
	return len(b) >= len(lower) && EqualFold(b[:len(lower)], lower)
}
