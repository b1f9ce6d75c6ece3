package exchange

import "strconv"

// IsGRPC reports whether the call is gRPC's, by its content type.
func (r *Request) IsGRPC() bool {
	const grpc = "application/grpc"
	t := r.Header.Get(ContentType)
	if string(t) == grpc {
		return true
	}
	return HasPrefixFold(t, grpc) && (len(t) == len(grpc) || t[len(grpc)] == '+' || t[len(grpc)] == ';')
}

// grpcCodes holds the statuses of gRPC, as one text to take parts of.
const grpcCodes = "0123456789" + "10111213141516"

// GRPCCode returns a status of gRPC as a constant string, "" if it is none.
func GRPCCode(value []byte) string {
	switch len(value) {
	case 1:
		if '0' <= value[0] && value[0] <= '9' {
			return grpcCode(int(value[0] - '0'))
		}
	case 2:
		if value[0] == '1' && '0' <= value[1] && value[1] <= '6' {
			return grpcCode(10 + int(value[1]-'0'))
		}
	}
	return ""
}

func grpcCode(n int) string {
	if n < 10 {
		return grpcCodes[n : n+1]
	}
	return grpcCodes[2*n-10 : 2*n-8]
}

// grpcOf returns the status of gRPC that stands for one of HTTP. Source: gRPC,
// "HTTP to gRPC Status Code Mapping".
func grpcOf(status int) string {
	switch status {
	case 400:
		return "13" // internal
	case 401:
		return "16" // unauthenticated
	case 403:
		return "7" // permission denied
	case 404:
		return "12" // unimplemented
	case 429, 502, 503, 504:
		return "14" // unavailable
	}
	return "2" // unknown
}

// GRPCFault reports whether a status is one that a 5xx stands for, so that it is the
// server's fault. Source: gRPC Gateway's mapping, which Envoy counts hosts by.
func GRPCFault(code string) bool {
	switch code {
	case "2", "4", "12", "13", "14", "15":
		return true
	}
	return false
}

// replyGRPC makes the answer of the proxy's own one that a gRPC client understands:
// a response without a body whose header says what trailers would.
func (x *Exchange) replyGRPC(status int, message string) {
	r := &x.Response
	r.Status = 200
	r.GRPCStatus = grpcOf(status)
	r.Header.AddString(ContentType, "content-type", "application/grpc")
	r.Header.AddString(GRPCStatus, "grpc-status", r.GRPCStatus)
	if message != "" {
		b := x.Scratch()
		for i := range len(message) {
			// Source: gRPC over HTTP/2, Percent-Encoded.
			if c := message[i]; c < ' ' || c > '~' || c == '%' {
				const hex = "0123456789ABCDEF"
				b = append(b, '%', hex[c>>4], hex[c&15])
			} else {
				b = append(b, c)
			}
		}
		r.Header.Add(GRPCMessage, "grpc-message", x.Keep(b))
	}
}

// Messages counts the messages of gRPC in bytes as they pass. The zero value is
// ready. Source: gRPC over HTTP/2, Length-Prefixed-Message.
type Messages struct {
	N    int64
	left uint32  // of the message's data
	head [5]byte // its prefix, as far as it came
	have uint8
}

// Count looks at the next bytes.
func (m *Messages) Count(p []byte) {
	for len(p) > 0 {
		if m.left > 0 {
			n := min(uint32(min(len(p), 1<<30)), m.left)
			m.left -= n
			p = p[n:]
			continue
		}
		n := copy(m.head[m.have:], p)
		p = p[n:]
		if m.have += uint8(n); int(m.have) == len(m.head) {
			m.N, m.have = m.N+1, 0
			m.left = uint32(m.head[1])<<24 | uint32(m.head[2])<<16 | uint32(m.head[3])<<8 | uint32(m.head[4])
		}
	}
}

// units of grpc-timeout, in milliseconds as a fraction.
var units = map[byte]float64{'H': 3600e3, 'M': 60e3, 'S': 1e3, 'm': 1, 'u': 1e-3, 'n': 1e-6}

// GRPCTimeout returns what grpc-timeout asks for in milliseconds, at least one, and
// whether it is there and is valid. Source: gRPC over HTTP/2, Timeout.
func (r *Request) GRPCTimeout() (ms int64, ok bool) {
	v := r.Header.Get(GRPCTimeout)
	if len(v) < 2 || len(v) > 9 {
		return 0, false
	}
	n, err := strconv.ParseUint(string(v[:len(v)-1]), 10, 32)
	unit, known := units[v[len(v)-1]]
	if err != nil || !known {
		return 0, false
	}
	return max(1, int64(float64(n)*unit)), true
}
