package http1

import (
	"strconv"
	"time"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// AppendRequest appends the head of x's request as an upstream gets it. The
// caller may have changed Path and Authority since it was read.
func AppendRequest(b []byte, x *exchange.Exchange) []byte {
	q := &x.Request
	b = append(b, q.Method...)
	b = append(b, ' ')
	if q.Connect {
		b = append(b, q.Authority...)
	} else {
		b = append(b, q.Path...)
		if q.HasQuery {
			b = append(b, '?')
			b = append(b, q.Query...)
		}
	}
	b = append(b, " HTTP/1.1\r\n"...)
	b = q.Header.AppendTo(b)
	if q.Upgrade != nil {
		b = append(b, "connection: upgrade\r\n"...)
	}
	return b
}

// EndHead appends the empty line after further header fields, if any.
func EndHead(b []byte) []byte { return append(b, "\r\n"...) }

// AppendField appends one header field.
func AppendField[T string | []byte](b []byte, name string, value T) []byte {
	b = append(b, name...)
	b = append(b, ": "...)
	b = append(b, value...)
	return append(b, "\r\n"...)
}

// reframes reports whether a response without a length of its own is sent in
// chunks, because the client could not keep its connection otherwise.
func reframes(x *exchange.Exchange) bool {
	return x.Response.Framing == exchange.UntilClose && x.Request.Minor == 1 && x.Tunnel == nil
}

// unframes reports whether a chunked response is sent without its framing, to a
// client that does not know it.
func unframes(x *exchange.Exchange) bool {
	return x.Response.Framing == exchange.Chunked && x.Request.Minor == 0
}

// AppendResponse appends the head of x's response as the client gets it, and
// settles whether the client's connection is closed after it.
func AppendResponse(b []byte, x *exchange.Exchange) []byte {
	r := &x.Response
	if unframes(x) {
		r.Header.Del(exchange.TransferEncoding)
		x.Close = true
	}
	if r.Framing == exchange.UntilClose && !reframes(x) {
		x.Close = true
	}
	b = appendStatus(b, r)
	b = r.Header.AppendTo(b)
	if r.Local {
		b = appendDate(b, x.Start)
		if r.Status >= 200 && r.Status != 204 && r.Status != 304 && x.Tunnel == nil {
			b = append(b, "content-length: "...)
			b = strconv.AppendInt(b, r.Length, 10)
			b = append(b, "\r\n"...)
		}
	}
	switch {
	case reframes(x):
		b = append(b, "transfer-encoding: chunked\r\n"...)
	case r.Status == 101:
		b = append(b, "connection: upgrade\r\n"...)
	}
	switch {
	case x.Tunnel != nil || r.Status < 200:
	case x.Close:
		b = append(b, "connection: close\r\n"...)
	case x.Request.Minor == 0:
		b = append(b, "connection: keep-alive\r\n"...)
	}
	return EndHead(b)
}

func appendStatus(b []byte, r *exchange.Response) []byte {
	if r.Status == 200 && r.Reason == nil {
		return append(b, "HTTP/1.1 200 OK\r\n"...)
	}
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(r.Status), 10)
	b = append(b, ' ')
	if r.Reason != nil {
		b = append(b, r.Reason...)
	} else {
		b = append(b, phrase(r.Status)...)
	}
	return append(b, "\r\n"...)
}

// phrase returns the usual phrase of the statuses that the proxy answers itself.
func phrase(status int) string {
	switch status {
	case 100:
		return "Continue"
	case 200:
		return "OK"
	case 301:
		return "Moved Permanently"
	case 302:
		return "Found"
	case 303:
		return "See Other"
	case 307:
		return "Temporary Redirect"
	case 308:
		return "Permanent Redirect"
	case 400:
		return "Bad Request"
	case 401:
		return "Unauthorized"
	case 403:
		return "Forbidden"
	case 404:
		return "Not Found"
	case 408:
		return "Request Timeout"
	case 413:
		return "Payload Too Large"
	case 414:
		return "URI Too Long"
	case 417:
		return "Expectation Failed"
	case 418:
		return "I'm a Teapot"
	case 429:
		return "Too Many Requests"
	case 431:
		return "Request Header Fields Too Large"
	case 500:
		return "Internal Server Error"
	case 501:
		return "Not Implemented"
	case 502:
		return "Bad Gateway"
	case 503:
		return "Service Unavailable"
	case 504:
		return "Gateway Timeout"
	case 505:
		return "HTTP Version Not Supported"
	}
	return "Unknown"
}

// appendDate appends the Date that RFC 9110 section 6.6.1 wants from a server.
func appendDate(b []byte, t time.Time) []byte {
	b = append(b, "date: "...)
	b = t.UTC().AppendFormat(b, "Mon, 02 Jan 2006 15:04:05 GMT")
	return append(b, "\r\n"...)
}

// appendChunk appends p as one chunk.
func appendChunk(b, p []byte) []byte {
	b = strconv.AppendInt(b, int64(len(p)), 16)
	b = append(b, "\r\n"...)
	b = append(b, p...)
	return append(b, "\r\n"...)
}
