package http1

import (
	"bytes"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/syntax"
)

// ParseRequest reads a request head, which ends with its empty line, into
// x.Request. Afterwards the header holds no field that is for the client's
// connection only, except those that frame the body, and x.Close says whether the
// client wants the connection closed.
func ParseRequest(x *exchange.Exchange, head []byte) error {
	q := &x.Request
	eol := bytes.IndexByte(head, '\n')
	if err := parseRequestLine(x, head[:eol-1]); err != nil {
		return err
	}
	if err := parseFields(&q.Header, head[eol+1:len(head)-2]); err != nil {
		return err
	}
	if err := settleAuthority(q); err != nil {
		return err
	}
	kind, length, err := framing(&q.Header, q.Minor)
	if err != nil {
		return err
	}
	if kind == exchange.UntilClose || kind == exchange.Length && length == 0 {
		kind = exchange.NoBody // RFC 9112 section 6.3, rule 7
	}
	if q.Connect && q.Header.Has(exchange.TransferEncoding) || q.Connect && kind != exchange.NoBody {
		return errConnectBody
	}
	q.Framing, q.Length = kind, length

	c := readConnection(&q.Header)
	x.Close = c.close || q.Minor == 0 && !c.keepAlive
	settleUpgrade(q, c)
	// Only trailers may be asked for: other values are about transfer codings.
	if q.Header.Has(exchange.TE) && !exchange.EqualFold(q.Header.Get(exchange.TE), "trailers") {
		q.Header.Del(exchange.TE)
	}
	if q.Header.Has(exchange.Cookie) && q.Header.Count(exchange.Cookie) > 1 {
		joinCookies(x)
	}
	return settleExpect(q)
}

// joinCookies makes one field of many. An upstream that speaks HTTP/2 does so, and no
// policy is to see another request than that. Sources: RFC 9113 section 8.2.3; RFC 6265
// section 5.4, by which a client sends one.
func joinCookies(x *exchange.Exchange) {
	h, b := &x.Request.Header, x.Scratch()
	from := len(b)
	for i := range h.Len() {
		if f := h.At(i); f != nil && f.ID == exchange.Cookie {
			if len(b) > from {
				b = append(b, "; "...)
			}
			b = append(b, f.Value...)
		}
	}
	h.Set(exchange.Cookie, x.Keep(b))
}

// parseRequestLine reads "GET /path HTTP/1.1".
func parseRequestLine(x *exchange.Exchange, line []byte) error {
	q := &x.Request
	n := 0
	for n < len(line) && syntax.Token[line[n]] {
		n++
	}
	const version = " HTTP/1.1"
	if n == 0 || n == len(line) || line[n] != ' ' {
		return errLine
	}
	end := len(line) - len(version)
	if end <= n+1 || string(line[end:end+len(" HTTP/")]) != " HTTP/" {
		return errLine
	}
	switch string(line[end+len(" HTTP/"):]) {
	case "1.1":
		q.Minor = 1
	case "1.0":
		q.Minor = 0
	default:
		if v := line[end+len(" HTTP/"):]; v[1] == '.' && syntax.IsDigit(v[0]) && syntax.IsDigit(v[2]) {
			return errVersion
		}
		return errLine
	}
	q.Method, q.Target = line[:n], line[n+1:end]
	q.Head = string(q.Method) == "HEAD"
	q.Connect = string(q.Method) == "CONNECT"
	for _, c := range q.Target {
		if c <= ' ' || c == 0x7f {
			return errTarget
		}
	}
	return parseTarget(x)
}

// parseTarget tells the four forms of RFC 9112 section 3.2 apart.
func parseTarget(x *exchange.Exchange) error {
	q := &x.Request
	t := q.Target
	switch {
	case q.Connect:
		if !syntax.ValidAuthority(t) || !syntax.HasPort(t) {
			return errTarget
		}
		q.Authority = t
		q.Path = slash // for routes that match any path
		return nil
	case t[0] == '/':
	case len(t) == 1 && t[0] == '*':
		if string(q.Method) != "OPTIONS" {
			return errTarget
		}
		q.Path = t
		return nil
	default:
		i := bytes.Index(t, []byte("://"))
		if i < 0 || !exchange.EqualFold(t[:i], "http") && !exchange.EqualFold(t[:i], "https") {
			return errTarget
		}
		rest := t[i+3:]
		end := bytes.IndexAny(rest, "/?#")
		if end < 0 {
			end = len(rest)
		}
		if !syntax.ValidAuthority(rest[:end]) {
			return errTarget
		}
		q.Authority, t = rest[:end], rest[end:]
	}
	if bytes.IndexByte(t, '#') >= 0 {
		return errFragment // a client never sends one; who does hopes for confusion
	}
	path := t
	if i := bytes.IndexByte(t, '?'); i >= 0 {
		path, q.Query, q.HasQuery = t[:i], t[i+1:], true
	}
	if len(path) == 0 {
		path = slash
	}
	canonical, grown, ok := exchange.Canonical(x.Scratch(), path)
	if !ok {
		return errPath
	}
	x.Keep(grown)
	q.Path = canonical
	return nil
}

var slash = []byte("/")

// settleAuthority checks the Host header and makes it agree with the target.
// Source: RFC 9112 section 3.2.
func settleAuthority(q *exchange.Request) error {
	h := &q.Header
	switch n := h.Count(exchange.Host); {
	case n > 1:
		return errHost
	case n == 0 && q.Minor == 1:
		return errNoHost
	case n == 1:
		host := h.Get(exchange.Host)
		if !syntax.ValidAuthority(host) {
			return errHost
		}
		if q.Authority == nil {
			q.Authority = host
		} else if !bytes.Equal(host, q.Authority) {
			h.Set(exchange.Host, q.Authority)
		}
	case q.Authority != nil:
		h.Set(exchange.Host, q.Authority)
	}
	return nil
}

// settleUpgrade keeps a request for another protocol, or removes what is left of
// it. HTTP/2 is never upgraded to: the proxy would not understand what follows.
func settleUpgrade(q *exchange.Request, c connection) {
	h := &q.Header
	if !h.Has(exchange.Upgrade) {
		return
	}
	v := h.Get(exchange.Upgrade)
	if c.upgrade && q.Minor == 1 && q.Framing == exchange.NoBody && !q.Connect &&
		h.Count(exchange.Upgrade) == 1 && isProtocol(v) && !exchange.HasPrefixFold(v, "h2") && !exchange.HasPrefixFold(v, "http") {
		q.Upgrade = v
		return
	}
	h.Del(exchange.Upgrade)
}

// isProtocol reports whether v names one protocol, "name" or "name/version".
func isProtocol(v []byte) bool {
	if len(v) == 0 {
		return false
	}
	for i, c := range v {
		if !syntax.Token[c] && (c != '/' || i == 0) {
			return false
		}
	}
	return true
}

func settleExpect(q *exchange.Request) error {
	h := &q.Header
	if !h.Has(exchange.Expect) {
		return nil
	}
	if h.Count(exchange.Expect) != 1 || !exchange.EqualFold(h.Get(exchange.Expect), "100-continue") {
		return errExpectation
	}
	if q.Minor == 0 || q.Framing == exchange.NoBody {
		h.Del(exchange.Expect) // RFC 9110 section 10.1.1
		return nil
	}
	q.Expect = true
	return nil
}
