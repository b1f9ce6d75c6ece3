package http2

import (
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"math/rand/v2"
	"strconv"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// ReadRequest makes x's request of a received head. end says that there is no
// body; else the caller sets Body. The head must live as long as x, and gives its
// fields away. Scheme is left as it is: it says how the client reached the mesh,
// which the client can not know.
//
// Afterwards the request is as http1 reads one: with a Host, a canonical path, and
// an extended CONNECT as the request for an upgrade that it stands for. details
// says what is wrong, if anything is; the answer to that is 400.
func ReadRequest(x *exchange.Exchange, h *Head, end bool) (details string) {
	q := &x.Request
	q.Header, h.own = h.own, q.Header
	q.Method, q.Authority, q.HTTP2, q.Minor = h.Method, h.Authority, true, 1
	q.Head = string(q.Method) == "HEAD"
	q.Header.Set(exchange.Host, q.Authority)
	tunnel := string(q.Method) == "CONNECT"
	switch {
	case tunnel && len(h.Protocol) == 0:
		q.Connect = true
		q.Target, q.Path = h.Authority, slash
	default:
		if tunnel {
			q.Method, q.Upgrade = methodGET, h.Protocol
			q.Header.Set(exchange.Upgrade, h.Protocol)
			if exchange.EqualFold(h.Protocol, "websocket") {
				addWebSocketKey(x)
			}
		}
		q.Target = h.Path
		path := h.Path
		if i := bytes.IndexByte(path, '?'); i >= 0 {
			path, q.Query, q.HasQuery = path[:i], path[i+1:], true
		}
		if path[0] != '/' {
			q.Path = path // of OPTIONS
			break
		}
		canonical, grown, ok := exchange.Canonical(x.Scratch(), path)
		if !ok {
			return "path_normalization_failed"
		}
		x.Keep(grown)
		q.Path = canonical
	}
	switch {
	case end || tunnel:
		q.Framing = exchange.NoBody
	case h.Length >= 0 && !q.Header.Has(exchange.Trailer):
		q.Framing, q.Length = exchange.Length, h.Length
	default:
		q.Header.Del(exchange.ContentLength) // HTTP/1.1 has trailers behind chunks only
		q.Framing = exchange.Chunked
		q.Header.AddString(exchange.TransferEncoding, "transfer-encoding", "chunked")
	}
	if tunnel {
		q.Header.Del(exchange.ContentLength)
	}
	q.Expect = exchange.EqualFold(q.Header.Get(exchange.Expect), "100-continue") && q.Framing != exchange.NoBody
	if !q.Expect {
		q.Header.Del(exchange.Expect)
	}
	return ""
}

var (
	slash         = []byte("/")
	methodGET     = []byte("GET")
	methodCONNECT = []byte("CONNECT")
	schemeHTTP    = []byte("http")
	schemeHTTPS   = []byte("https")
)

// addWebSocketKey adds what HTTP/1.1 wants with an upgrade, and HTTP/2 does not
// know. Source: RFC 6455 section 4.1; RFC 8441 section 5.
func addWebSocketKey(x *exchange.Exchange) {
	q := &x.Request
	if _, i := q.Header.Find("sec-websocket-key", 0); i >= 0 {
		return
	}
	var nonce [16]byte
	binary.LittleEndian.PutUint64(nonce[:], rand.Uint64())
	binary.LittleEndian.PutUint64(nonce[8:], rand.Uint64())
	key := x.Keep(base64.StdEncoding.AppendEncode(x.Scratch(), nonce[:]))
	q.Header.Add(exchange.Other, "sec-websocket-key", key)
}

// addWebSocketAccept adds what proves to the client that its key was understood.
// Source: RFC 6455 section 4.2.2.
func addWebSocketAccept(x *exchange.Exchange, key []byte) {
	sum := sha1.Sum(append(key[:len(key):len(key)], "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"...))
	x.Response.Header.DelName([]byte("sec-websocket-accept"))
	x.Response.Header.Add(exchange.Other, "sec-websocket-accept", x.Keep(base64.StdEncoding.AppendEncode(x.Scratch(), sum[:])))
}

// RequestHead fills h with x's request, for an upstream. h is a view of x.
func RequestHead(h *Head, x *exchange.Exchange) {
	q := &x.Request
	*h = Head{Method: q.Method, Authority: q.Authority, Header: &q.Header}
	if q.Connect {
		return
	}
	h.Scheme = schemeHTTP
	if q.Scheme == "https" {
		h.Scheme = schemeHTTPS
	}
	h.Path = q.Path
	if q.HasQuery {
		b := append(append(x.Scratch(), q.Path...), '?')
		h.Path = x.Keep(append(b, q.Query...))
	}
	if q.Upgrade != nil {
		h.Method, h.Protocol = methodCONNECT, q.Upgrade
		if key, i := q.Header.Find("sec-websocket-key", 0); i >= 0 {
			q.WebSocketKey = key
			q.Header.DelName([]byte("sec-websocket-key"))
		}
	}
}

// ReadResponse makes x's response of a received head, and is to it what
// ReadRequest is to the request.
func ReadResponse(x *exchange.Exchange, h *Head, end bool) {
	r := &x.Response
	r.Header, h.own = h.own, r.Header
	r.Status, r.Minor, r.Reason, r.Close = h.Status, 1, nil, false
	if r.Status == 200 && x.Request.Upgrade != nil {
		// Who asked for an upgrade by HTTP/1.1 gets the answer to that.
		r.Status = 101
		r.Header.Set(exchange.Upgrade, x.Request.Upgrade)
		if key := x.Request.WebSocketKey; key != nil {
			addWebSocketAccept(x, key)
		}
	}
	switch {
	case end, r.Status < 200, r.Status == 204, r.Status == 304, x.Request.Head, x.Request.Connect && r.Status < 300:
		r.Framing, r.Length = exchange.NoBody, 0
	case h.Length >= 0 && (x.Request.HTTP2 || !r.Header.Has(exchange.Trailer)):
		r.Framing, r.Length = exchange.Length, h.Length
	default:
		r.Header.Del(exchange.ContentLength) // HTTP/1.1 has trailers behind chunks only
		r.Framing, r.Length = exchange.Chunked, 0
		r.Header.AddString(exchange.TransferEncoding, "transfer-encoding", "chunked")
	}
}

// ResponseHead fills h with x's response, for a client. h is a view of x.
func ResponseHead(h *Head, x *exchange.Exchange) {
	r := &x.Response
	*h = Head{Status: r.Status, Header: &r.Header}
	if r.Status == 101 {
		h.Status = 200
		r.Header.DelName([]byte("sec-websocket-accept"))
	}
	if r.Local {
		date := x.Keep(x.Start.UTC().AppendFormat(x.Scratch(), "Mon, 02 Jan 2006 15:04:05 GMT"))
		r.Header.Set(exchange.Date, date)
		if r.Status >= 200 && r.Status != 204 && r.Status != 304 && x.Tunnel == nil && r.GRPCStatus == "" {
			r.Header.Set(exchange.ContentLength, x.Keep(strconv.AppendInt(x.Scratch(), r.Length, 10)))
		}
	}
}
