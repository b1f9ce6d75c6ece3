// Package syntax checks the parts of a message's head that both versions of HTTP
// have: names, values, authorities, lengths, trailers. A request that one codec
// takes must be one that the other takes, for the proxy turns each into the other.
package syntax

import (
	"bytes"
	"encoding/binary"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// Token is the characters of RFC 9110 section 5.6.2.
var Token = func() (t [256]bool) {
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

// IsToken reports whether b is a token.
func IsToken(b []byte) bool {
	for _, c := range b {
		if !Token[c] {
			return false
		}
	}
	return len(b) > 0
}

// ValueEnd returns the index from i on of the first byte of b that no field value
// may hold, which is where it ends: a control character other than a tab. Bytes
// above 0x7f are opaque. Source: RFC 9110 section 5.5.
func ValueEnd(b []byte, i int) int {
	const ones = 0x0101010101010101
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
			return i
		}
	}
	return len(b)
}

// ValidValue reports whether a field may have this value.
func ValidValue(b []byte) bool { return ValueEnd(b, 0) == len(b) }

// Trim cuts off blanks around a value.
func Trim(b []byte) []byte {
	for len(b) > 0 && isBlank(b[0]) {
		b = b[1:]
	}
	for len(b) > 0 && isBlank(b[len(b)-1]) {
		b = b[:len(b)-1]
	}
	return b
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' }

// IsDigit reports whether c is a decimal digit.
func IsDigit(c byte) bool { return '0' <= c && c <= '9' }

// Unhex returns the value of a hex digit, or 0xff.
func Unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 0xff
}

// ParseLength reads a Content-Length: digits only, so that no list, sign or other
// base means something to someone.
func ParseLength(b []byte) (int64, bool) {
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	n := int64(0)
	for _, c := range b {
		if !IsDigit(c) {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
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

// ValidAuthority reports whether a is host, or host and port, without user
// information.
func ValidAuthority(a []byte) bool {
	if len(a) > 0 && a[0] == '[' {
		end := bytes.IndexByte(a, ']')
		if end < 3 {
			return false
		}
		for _, c := range a[1:end] {
			if Unhex(c) == 0xff && c != ':' && c != '.' {
				return false
			}
		}
		rest := a[end+1:]
		return len(rest) == 0 || rest[0] == ':' && validPort(rest[1:])
	}
	host, port, ported := a, []byte(nil), false
	if i := bytes.IndexByte(a, ':'); i >= 0 {
		host, port, ported = a[:i], a[i+1:], true
	}
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
		if !IsDigit(c) {
			return false
		}
		n = n*10 + int(c-'0')
	}
	return n <= 65535
}

// HasPort reports whether a valid authority names a port.
func HasPort(a []byte) bool {
	i := bytes.LastIndexByte(a, ':')
	return i >= 0 && bytes.IndexByte(a[i:], ']') < 0
}

// TrailerAllowed keeps fields out of trailers that could change how the message
// was understood, if a recipient merges them into the header. Source: RFC 9110
// section 6.5.1.
func TrailerAllowed(id exchange.ID, name []byte) bool {
	switch id {
	case exchange.Connection, exchange.ContentLength, exchange.Expect, exchange.Host, exchange.KeepAlive,
		exchange.ProxyConnection, exchange.TE, exchange.Trailer, exchange.TransferEncoding, exchange.Upgrade,
		exchange.HTTP2Settings, exchange.ContentType, exchange.Cookie, exchange.ForwardedClientCert,
		exchange.ForwardedFor, exchange.ForwardedHost, exchange.ForwardedProto, exchange.RequestID, exchange.Location:
		return false
	}
	for _, forbidden := range [...]string{"authorization", "set-cookie", "proxy-authorization", "forwarded"} {
		if exchange.EqualFold(name, forbidden) {
			return false
		}
	}
	return !exchange.HasPrefixFold(name, "content-") && !exchange.HasPrefixFold(name, "x-envoy-")
}
