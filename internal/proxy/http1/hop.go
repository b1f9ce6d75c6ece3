package http1

import "github.com/heddle-mesh/heddle/internal/proxy/exchange"

// connection is what the Connection header says.
type connection struct{ close, keepAlive, upgrade bool }

// readConnection reads the Connection header and removes it, together with the
// other headers that are for one connection only and those it names.
func readConnection(h *exchange.Header) connection {
	var c connection
	if h.Has(exchange.Connection) {
		eachToken(h, exchange.Connection, func(t []byte) {
			switch {
			case exchange.EqualFold(t, "close"):
				c.close = true
			case exchange.EqualFold(t, "keep-alive"):
				c.keepAlive = true
			case exchange.EqualFold(t, "upgrade"):
				c.upgrade = true
			case !endToEnd(t):
				h.DelName(t)
			}
		})
		h.Del(exchange.Connection)
	}
	h.Del(exchange.KeepAlive)
	h.Del(exchange.ProxyConnection)
	h.Del(exchange.HTTP2Settings)
	return c
}

// protected headers are never removed by being named in Connection. Otherwise a
// client could take away what a proxy before us added, or what a policy or the
// application relies on.
var protected = [...]string{
	"accept", "age", "authorization", "b3", "baggage", "cache-control", "cookie", "date", "etag", "forwarded",
	"grpc-status", "grpc-timeout", "host", "location", "origin", "range", "referer", "server", "set-cookie",
	"traceparent", "tracestate", "user-agent", "vary", "via", "www-authenticate",
}

// protectedPrefixes are families of such headers.
var protectedPrefixes = [...]string{
	"access-control-", "content-", "if-", "sec-", "x-auth", "x-b3-", "x-client-", "x-envoy-", "x-forwarded-",
	"x-istio-", "x-jwt-", "x-real-ip", "x-request-id", "x-user", ":",
}

// endToEnd reports whether a header is for the whole way whatever Connection says.
// The framing headers and TE are for one hop but not for this list to remove.
func endToEnd(name []byte) bool {
	switch exchange.Identify(name) {
	case exchange.TransferEncoding, exchange.ContentLength, exchange.TE, exchange.Trailer, exchange.Expect:
		return true
	}
	for _, p := range protected {
		if exchange.EqualFold(name, p) {
			return true
		}
	}
	for _, p := range protectedPrefixes {
		if exchange.HasPrefixFold(name, p) {
			return true
		}
	}
	return false
}
