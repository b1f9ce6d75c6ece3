package http1

import (
	"bytes"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/syntax"
)

// BeginsResponse reports whether p, which is not empty, can be the beginning of a
// response of HTTP/1.
func BeginsResponse(p []byte) bool {
	const begin = "HTTP/1."
	n := min(len(p), len(begin))
	return string(p[:n]) == begin[:n]
}

// ParseResponse reads a response head, which ends with its empty line, into r. q
// is the request it answers, on which the meaning of its length depends. As with
// requests, fields for one connection only are removed.
func ParseResponse(r *exchange.Response, q *exchange.Request, head []byte) error {
	eol := bytes.IndexByte(head, '\n')
	if err := parseStatusLine(r, head[:eol-1]); err != nil {
		return err
	}
	h := &r.Header
	if err := parseFields(h, head[eol+1:len(head)-2]); err != nil {
		return err
	}
	kind, length, err := framing(h, r.Minor)
	if err != nil {
		return err
	}
	c := readConnection(h)
	r.Close = c.close || r.Minor == 0 && !c.keepAlive
	if r.Status != 101 && r.Status != 426 {
		h.Del(exchange.Upgrade)
	}
	h.Del(exchange.TE)

	// RFC 9112 section 6.3, rules 1 and 2.
	switch {
	case r.Status == 101:
		if q.Upgrade == nil || !c.upgrade || !h.Has(exchange.Upgrade) {
			return errSwitch
		}
		fallthrough
	case r.Status < 200, r.Status == 204, q.Connect && r.Status < 300:
		h.Del(exchange.ContentLength)
		h.Del(exchange.TransferEncoding)
		kind = exchange.NoBody
	case q.Head, r.Status == 304:
		kind = exchange.NoBody
	case kind == exchange.UntilClose:
		r.Close = true
	}
	r.Framing, r.Length = kind, length
	return nil
}

// parseStatusLine reads "HTTP/1.1 200 OK". The phrase may be missing, with or
// without the space before it: many servers do that.
func parseStatusLine(r *exchange.Response, line []byte) error {
	const status = "HTTP/1.1 200"
	if len(line) < len(status) || string(line[:7]) != "HTTP/1." || line[8] != ' ' {
		return errLine
	}
	switch line[7] {
	case '1':
		r.Minor = 1
	case '0':
		r.Minor = 0
	default:
		return errVersion
	}
	r.Status = 0
	for _, c := range line[9:12] {
		if !syntax.IsDigit(c) {
			return errLine
		}
		r.Status = r.Status*10 + int(c-'0')
	}
	if r.Status < 100 {
		return errLine
	}
	r.Reason = nil
	if rest := line[12:]; len(rest) > 0 {
		if rest[0] != ' ' || syntax.ValueEnd(rest, 0) != len(rest) {
			return errLine
		}
		r.Reason = rest[1:]
	}
	return nil
}
