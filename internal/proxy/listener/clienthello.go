package listener

import (
	"encoding/binary"
	"strings"
)

const (
	// maxHello is the largest ClientHello looked at, with its record headers.
	// Source: Envoy, Config::TLS_MAX_CLIENT_HELLO. One with a post-quantum key
	// share takes less than 2 KiB.
	maxHello = 16 << 10
	// maxALPN bounds the protocols kept of a ClientHello: a chain is found by
	// trying each.
	maxALPN = 16

	recordHeader      = 5
	typeHandshake     = 22
	typeClientHello   = 1
	extServerName     = 0
	extALPN           = 16
	nameTypeHost      = 0
	maxRecordFragment = 16 << 10
)

// verdict is what a look at a connection's first bytes led to.
type verdict uint8

const (
	needMore verdict = iota // the bytes may still become what is looked for
	absent                  // they can not
	present                 // it is there
)

// hello is what a ClientHello tells before a chain is chosen.
type hello struct {
	serverName string // lower case; "" for none or one that is no host name
	alpn       []string
}

// parseHello looks for a ClientHello at the start of b. With needMore it returns
// how many bytes have to be there before another look can bring anything new, so
// that a client which sends byte by byte is not parsed at each.
//
// A record that begins as TLS but is malformed is TLS all the same: the handshake
// gets it, and answers with the proper alert. Its names are not used.
//
// Source: RFC 8446, sections 4.1.2 and 5.1; RFC 6066, section 3; RFC 7301,
// section 3.1.
func parseHello(b []byte) (h hello, need int, v verdict) {
	// Only as much as is there decides: a first byte that is not a handshake's
	// must not wait for a second one.
	for i, c := range b[:min(len(b), 3)] {
		switch {
		case i == 0 && c != typeHandshake, i == 1 && c != 3, i == 2 && c > 4:
			return hello{}, 0, absent
		}
	}
	if len(b) < recordHeader+1 {
		return hello{}, recordHeader + 1, needMore
	}
	if b[recordHeader] != typeClientHello {
		return hello{}, 0, absent
	}

	// The handshake message may be spread over records. The usual one is not,
	// and is read in place.
	var message []byte
	want := 4
	for rest, read := b, 0; ; {
		if len(rest) < recordHeader {
			return moreHello(read + recordHeader)
		}
		n := int(binary.BigEndian.Uint16(rest[3:]))
		if rest[0] != typeHandshake || n == 0 || n > maxRecordFragment {
			return hello{}, 0, present
		}
		whole := len(rest) >= recordHeader+n
		fragment := rest[recordHeader:min(len(rest), recordHeader+n)]
		if message == nil {
			message = fragment[:len(fragment):len(fragment)]
		} else {
			message = append(message, fragment...)
		}
		if want == 4 && len(message) >= 4 {
			want = 4 + int(message[1])<<16 + int(message[2])<<8 + int(message[3])
			if want > maxHello {
				return hello{}, 0, present
			}
		}
		if len(message) >= want {
			message = message[:want]
			break
		}
		if !whole {
			// At least the rest of the message or of the record has to come.
			return moreHello(read + recordHeader + min(n, len(fragment)+want-len(message)))
		}
		read += recordHeader + n
		rest = rest[recordHeader+n:]
	}
	h, ok := parseHelloBody(message[4:])
	if !ok {
		return hello{}, 0, present
	}
	return h, 0, present
}

func moreHello(need int) (hello, int, verdict) {
	if need > maxHello {
		return hello{}, 0, present
	}
	return hello{}, need, needMore
}

// wire reads TLS's length-prefixed fields; each method returns false at the end.
type wire []byte

func (w *wire) skip(n int) bool {
	if len(*w) < n {
		return false
	}
	*w = (*w)[n:]
	return true
}

func (w *wire) u16() (v int, ok bool) {
	if len(*w) < 2 {
		return 0, false
	}
	v = int(binary.BigEndian.Uint16(*w))
	*w = (*w)[2:]
	return v, true
}

func (w *wire) vector8() (v wire, ok bool) {
	if len(*w) < 1 || len(*w) < 1+int((*w)[0]) {
		return nil, false
	}
	n := 1 + int((*w)[0])
	v, *w = (*w)[1:n], (*w)[n:]
	return v, true
}

func (w *wire) vector16() (v wire, ok bool) {
	n, ok := w.u16()
	if !ok || len(*w) < n {
		return nil, false
	}
	v, *w = (*w)[:n], (*w)[n:]
	return v, true
}

func parseHelloBody(w wire) (h hello, ok bool) {
	if !w.skip(2 + 32) { // legacy_version, random
		return hello{}, false
	}
	if _, ok = w.vector8(); !ok { // legacy_session_id
		return hello{}, false
	}
	if _, ok = w.vector16(); !ok { // cipher_suites
		return hello{}, false
	}
	if _, ok = w.vector8(); !ok { // legacy_compression_methods
		return hello{}, false
	}
	if len(w) == 0 {
		return hello{}, true
	}
	extensions, ok := w.vector16()
	if !ok || len(w) != 0 {
		return hello{}, false
	}
	for len(extensions) > 0 {
		kind, _ := extensions.u16()
		body, ok := extensions.vector16()
		if !ok {
			return hello{}, false
		}
		switch kind {
		case extServerName:
			if h.serverName, ok = parseServerName(body); !ok {
				return hello{}, false
			}
		case extALPN:
			if h.alpn, ok = parseALPN(body); !ok {
				return hello{}, false
			}
		}
	}
	return h, true
}

func parseServerName(w wire) (string, bool) {
	list, ok := w.vector16()
	if !ok || len(w) != 0 {
		return "", false
	}
	for len(list) > 0 {
		kind := list[0]
		list = list[1:]
		name, ok := list.vector16()
		if !ok {
			return "", false
		}
		if kind == nameTypeHost {
			return hostName(name), true
		}
	}
	return "", true
}

// hostName returns b in lower case, or "" if it is no host name: it is printed in
// logs and compared with names from the configuration.
func hostName(b []byte) string {
	if len(b) == 0 || len(b) > 255 {
		return ""
	}
	for _, c := range b {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '.', c == '_':
		default:
			return ""
		}
	}
	return strings.ToLower(string(b))
}

func parseALPN(w wire) (all []string, ok bool) {
	list, ok := w.vector16()
	if !ok || len(w) != 0 {
		return nil, false
	}
	for len(list) > 0 {
		name, ok := list.vector8()
		if !ok || len(name) == 0 {
			return nil, false
		}
		if len(all) < maxALPN {
			all = append(all, string(name))
		}
	}
	return all, true
}
