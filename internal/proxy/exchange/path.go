package exchange

import (
	"bytes"
	"unsafe"
)

// bytesOf views a string as bytes, which nobody writes to.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// View views bytes as a string, which is valid as long as they are unchanged.
func View(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// Canonical returns the canonical form of a path that begins with "/" and holds
// no query: dot segments resolved, "\" read as "/", and escapes of characters
// that need none undone. Escaped and repeated slashes stay, for they may mean
// something to the application. It reports false for a path that can not be
// understood in one way only: with an escaped NUL.
//
// This is what Istio calls BASE path normalization. The router and all policies
// see this form, and the upstream gets it, so that no two of them read the same
// path differently.
//
// A path that is canonical already is returned as it is; else the result is
// appended to buf. Sources: RFC 3986 sections 5.2.4 and 6.2.2.
func Canonical(buf, path []byte) (canonical, grown []byte, ok bool) {
	if isCanonical(path) {
		return path, buf, true
	}
	from := len(buf)
	b := buf
	for i := 0; i < len(path); {
		c := path[i]
		i++
		switch c {
		case '\\':
			c = '/'
		case '%':
			if i+1 < len(path) && isHex(path[i]) && isHex(path[i+1]) {
				d := unhex(path[i])<<4 | unhex(path[i+1])
				if d == 0 {
					return nil, buf, false
				}
				if isUnreserved(d) && !openEscape(b[from:]) {
					c, i = d, i+2
				}
			}
		}
		if c == '/' {
			b = endSegment(b, from)
		}
		b = append(b, c)
	}
	// A dot segment at the end leaves the slash that leads to what it names.
	if n := len(b); bytes.HasSuffix(b[from:], []byte("/.")) {
		b = b[:n-1]
	} else if bytes.HasSuffix(b[from:], []byte("/..")) {
		b = append(endSegment(b, from), '/')
	}
	return b[from:], b, true
}

// openEscape reports whether p ends in a "%" that a hex digit would make, or begin
// to make, an escape of: the canonical form must stay what it is if it is made
// canonical again.
func openEscape(p []byte) bool {
	n := len(p)
	return n >= 1 && p[n-1] == '%' || n >= 2 && p[n-2] == '%' && isHex(p[n-1])
}

// endSegment removes a dot segment from the end of the path that begins at
// b[from], with what it undoes.
func endSegment(b []byte, from int) []byte {
	p := b[from:]
	switch {
	case bytes.HasSuffix(p, []byte("/.")):
		return b[:len(b)-2]
	case bytes.HasSuffix(p, []byte("/..")):
		p = p[:len(p)-3]
		if i := bytes.LastIndexByte(p, '/'); i >= 0 {
			p = p[:i]
		}
		return b[:from+len(p)]
	}
	return b
}

// isCanonical finds the usual path, which needs no work.
func isCanonical(p []byte) bool {
	for i, c := range p {
		switch c {
		case '%', '\\':
			return false
		case '.':
			if i > 0 && p[i-1] == '/' {
				return false
			}
		}
	}
	return true
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c <= 'F':
		return c - 'A' + 10
	}
	return c - 'a' + 10
}

// isUnreserved is RFC 3986 section 2.3.
func isUnreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}
