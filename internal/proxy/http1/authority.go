package http1

import "bytes"

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
	host, port, hasPort := a, []byte(nil), false
	if len(a) > 0 && a[0] == '[' {
		end := bytes.IndexByte(a, ']')
		if end < 3 {
			return false
		}
		for _, c := range a[1:end] {
			if unhex(c) == 0xff && c != ':' && c != '.' {
				return false
			}
		}
		if rest := a[end+1:]; len(rest) > 0 {
			return rest[0] == ':' && validPort(rest[1:])
		}
		return true
	}
	if i := bytes.IndexByte(a, ':'); i >= 0 {
		host, port, hasPort = a[:i], a[i+1:], true
	}
	if len(host) == 0 {
		return false
	}
	for _, c := range host {
		if !hostByte[c] {
			return false
		}
	}
	return !hasPort || validPort(port)
}

func validPort(p []byte) bool {
	if len(p) == 0 || len(p) > 5 {
		return false
	}
	n := 0
	for _, c := range p {
		if c < '0' || c > '9' {
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
