package listener

// preface begins every HTTP/2 connection. Source: RFC 9113, section 3.4.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// Protocols as chains name them when the HTTP look found them.
const (
	http10 = "http/1.0"
	http11 = "http/1.1"
	http2  = "h2c"
)

const (
	// maxMethod is the longest method name that still looks like one.
	maxMethod = 24
	// maxTarget is how much of a request's target is looked at in search of the
	// version behind it. Only HTTP has targets that long.
	maxTarget = 8 << 10
)

// sniffHTTP looks for an HTTP/1.x request line or the HTTP/2 preface at the start
// of b and returns the protocol's name.
//
// It decides as early as it can: on the first byte that no request has in its
// place, so that a client of another protocol waits for nothing, and at the latest
// at the end of the line.
//
// Source: RFC 9112, sections 2.2 (empty lines before the request line are
// ignored), 2.3 and 3; RFC 9110, section 5.6.2 (token).
func sniffHTTP(b []byte) (protocol string, v verdict) {
	if n := min(len(b), len(preface)); string(b[:n]) == preface[:n] {
		if n == len(preface) {
			return http2, present
		}
		// "PRI" may still become an HTTP/1 method of somebody's own.
		return "", needMore
	}
	i := 0
	for i < len(b) && (b[i] == '\r' || b[i] == '\n') {
		if i++; i > 4 {
			return "", absent
		}
	}
	line := b[i:]
	for i = 0; ; i++ {
		if i == len(line) {
			return "", needMore
		}
		if line[i] == ' ' {
			break
		}
		if i == maxMethod || !tokenByte(line[i]) {
			return "", absent
		}
	}
	if i == 0 {
		return "", absent
	}
	target := line[i+1:]
	for i = 0; ; i++ {
		if i == maxTarget {
			return http11, present
		}
		if i == len(target) {
			return "", needMore
		}
		if target[i] == ' ' {
			break
		}
		if target[i] < ' ' || target[i] == 0x7f {
			return "", absent
		}
	}
	if i == 0 {
		return "", absent
	}
	const version = "HTTP/1."
	rest := target[i+1:]
	if n := min(len(rest), len(version)); string(rest[:n]) != version[:n] {
		return "", absent
	}
	if len(rest) <= len(version)+1 {
		return "", needMore
	}
	if end := rest[len(version)+1]; end != '\r' && end != '\n' {
		return "", absent
	}
	switch rest[len(version)] {
	case '0':
		return http10, present
	case '1':
		return http11, present
	}
	return "", absent
}

func tokenByte(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	switch c {
	case '!', '#', '$', '%', '&', '\'', '*', '+', '-', '.', '^', '_', '`', '|', '~':
		return true
	}
	return false
}
