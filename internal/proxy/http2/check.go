package http2

import "github.com/heddle-mesh/heddle/internal/proxy/syntax"

// fieldName is the characters of a field name: those of a token in lower case.
// Source: RFC 9113 section 8.2.1.
var fieldName = func() (t [256]bool) {
	t = syntax.Token
	for c := 'A'; c <= 'Z'; c++ {
		t[c] = false
	}
	return t
}()

// checkField says what is wrong with a field, or "". Values are held to the same
// as for HTTP/1.1, which is stricter than RFC 9113 section 8.2.1. Blanks around
// them, which that forbids, are cut off: net/http sends what the application set.
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
	if !syntax.ValidValue(value) {
		return badValue
	}
	return ""
}

const badValue = "bad field value"

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
