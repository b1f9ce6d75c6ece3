package http2

import (
	"bytes"
	"encoding/binary"
)

// token is the characters of RFC 9110 section 5.6.2.
var token = func() (t [256]bool) {
	for c := '0'; c <= '9'; c++ {
		t[c] = true
	}
	for c := 'a'; c <= 'z'; c++ {
		t[c], t[c-'a'+'A'] = true, true
	}
	for _, c := range "!#$%&'*+-.^_`|~" {
		t[c] = true
	}
	return t
}()

// fieldName is the characters of a field name: those of a token in lower case.
// Source: RFC 9113 section 8.2.1.
var fieldName = func() (t [256]bool) {
	t = token
	for c := 'A'; c <= 'Z'; c++ {
		t[c] = false
	}
	return t
}()

func isToken(b []byte) bool {
	for _, c := range b {
		if !token[c] {
			return false
		}
	}
	return len(b) > 0
}

// checkField says what is wrong with a field, or "".
func checkField(name, value []byte) string {
	rest := name
	if len(rest) > 0 && rest[0] == ':' {
		rest = rest[1:]
	}
	if len(rest) == 0 {
		return "empty field name"
	}
	for _, c := range rest {
		if !fieldName[c] {
			return "bad field name"
		}
	}
	if !validValue(value) {
		return "bad field value"
	}
	return ""
}

// trim cuts off blanks around a value. RFC 9113 section 8.2.1 forbids them, but
// net/http sends what the application set; cut off, they mean what they do in
// HTTP/1.1.
func trim(b []byte) []byte {
	for len(b) > 0 && isBlank(b[0]) {
		b = b[1:]
	}
	for len(b) > 0 && isBlank(b[len(b)-1]) {
		b = b[:len(b)-1]
	}
	return b
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' }

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// validValue reports whether a field may have this value: without control
// characters other than a tab. Bytes above 0x7f are opaque. That is stricter than
// RFC 9113 section 8.2.1, and the same as for HTTP/1.1.
func validValue(b []byte) bool {
	const ones = 0x0101010101010101
	i := 0
	for ; i+8 <= len(b); i += 8 {
		v := binary.LittleEndian.Uint64(b[i:])
		// A high bit is left for each byte below 0x20, and for each that is 0x7f.
		del := v ^ 0x7f*ones
		if ((v-0x20*ones)&^v|(del-ones)&^del)&(0x80*ones) != 0 {
			break
		}
	}
	for ; i < len(b); i++ {
		if c := b[i]; c < 0x20 && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// checkPath says what is wrong with a :path, or "".
func checkPath(p []byte, options bool) string {
	switch {
	case len(p) == 0:
		return "empty :path"
	case len(p) == 1 && p[0] == '*' && options:
		return ""
	case p[0] != '/':
		return ":path without a slash"
	}
	for _, c := range p {
		switch {
		case c <= ' ' || c == 0x7f:
			return "bad :path"
		case c == '#':
			return "fragment in :path"
		}
	}
	return ""
}

// hostByte is the characters of a registered name. Source: RFC 3986 section
// 3.2.2.
var hostByte = func() (t [256]bool) {
	for c := '0'; c <= '9'; c++ {
		t[c] = true
	}
	for c := 'a'; c <= 'z'; c++ {
		t[c], t[c-'a'+'A'] = true, true
	}
	for _, c := range "-._~!$&'()*+,;=%" {
		t[c] = true
	}
	return t
}()

// validAuthority reports whether a is host, or host and port, without user
// information.
func validAuthority(a []byte) bool {
	if len(a) > 0 && a[0] == '[' {
		end := bytes.IndexByte(a, ']')
		if end < 3 {
			return false
		}
		for _, c := range a[1:end] {
			if !isHex(c) && c != ':' && c != '.' {
				return false
			}
		}
		rest := a[end+1:]
		return len(rest) == 0 || rest[0] == ':' && validPort(rest[1:])
	}
	host, port, ported := bytes.Cut(a, []byte(":"))
	if len(host) == 0 {
		return false
	}
	for _, c := range host {
		if !hostByte[c] {
			return false
		}
	}
	return !ported || validPort(port)
}

func validPort(p []byte) bool {
	if len(p) == 0 || len(p) > 5 {
		return false
	}
	n := 0
	for _, c := range p {
		if !isDigit(c) {
			return false
		}
		n = n*10 + int(c-'0')
	}
	return n <= 65535
}

// hasPort reports whether a valid authority names a port.
func hasPort(a []byte) bool {
	i := bytes.LastIndexByte(a, ':')
	return i >= 0 && bytes.IndexByte(a[i:], ']') < 0
}

func isHex(c byte) bool {
	return isDigit(c) || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// parseLength reads a content-length: digits only.
func parseLength(b []byte) (int64, bool) {
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	n := int64(0)
	for _, c := range b {
		if !isDigit(c) {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}
