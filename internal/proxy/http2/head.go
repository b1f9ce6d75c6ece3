package http2

import (
	"sync"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/syntax"
)

// Head is a header section: of a request, of a response, or of trailers. To send
// one, set the fields that apply and leave the others empty; fields that are for
// one connection of HTTP/1.1 only are left out, and names are sent in lower case.
type Head struct {
	// Of requests. Path is :path, with the query. Protocol is that of an extended
	// CONNECT.
	Method, Scheme, Authority, Path, Protocol []byte
	// Of responses.
	Status int
	// Header is the fields. A received Head's are its own.
	Header *exchange.Header
	// Length is what the content-length says, -1 without one. Only received Heads
	// have it.
	Length int64

	// The fields are kept as lines of HTTP/1.1, so that passing them on as such is
	// one copy.
	text  arena
	spans []span
	own   exchange.Header
	// never marks the fields that no one may index.
	never [maxFieldsEver / 64]uint64
	over  bool   // the list was too long; what is here is its beginning
	bad   string // why it is malformed, or ""
	owner *Conn  // that decodes into it, nil if it was kept
}

// span is where a field lies in the text.
type span struct {
	name, mid, end uint32 // the value begins 2 behind mid, and the line ends 2 behind end
	never          bool
	trait
}

var heads = sync.Pool{New: func() any { return new(Head) }}

// Keep makes a received Head the caller's, which gives it back with Free. It is
// called by the handler that was passed the Head, before it returns.
func (h *Head) Keep() {
	if h.owner != nil {
		h.owner.head, h.owner = nil, nil
	}
}

// Free gives back a Head that was kept. Nobody may hold a view of it any more.
func (h *Head) Free() {
	if cap(h.text.b) > 2*defaultMaxHeaderBytes {
		h.text.b = nil
	}
	h.reset()
	h.owner = nil
	heads.Put(h)
}

func (h *Head) reset() {
	h.Method, h.Scheme, h.Authority, h.Path, h.Protocol = nil, nil, nil, nil, nil
	h.Status, h.Length = 0, -1
	h.Header = &h.own
	h.own.Reset()
	h.text.b = h.text.b[:0]
	h.spans = h.spans[:0]
	clear(h.never[:])
	h.over, h.bad = false, ""
}

func (h *Head) isNever(i int) bool {
	return i < maxFieldsEver && h.never[i/64]&(1<<(i%64)) != 0
}

// begin begins a field, middle follows its name, and end its value, with what is known
// of it.
func (h *Head) begin(never bool) {
	h.spans = append(h.spans, span{name: uint32(len(h.text.b)), never: never})
}

func (h *Head) middle() {
	h.spans[len(h.spans)-1].mid = uint32(len(h.text.b))
	h.text.b = append(h.text.b, ": "...)
}

func (h *Head) end(is *trait) {
	s := &h.spans[len(h.spans)-1]
	s.end, s.trait = uint32(len(h.text.b)), *is
	switch {
	case is.valid || h.bad != "":
	case is.named:
		if !syntax.ValidValue(h.text.b[s.mid+2:]) {
			h.bad = badValue
		}
	default:
		h.bad = checkField(h.pending())
	}
	h.text.b = append(h.text.b, "\r\n"...)
}

// pending returns the field that was begun.
func (h *Head) pending() (name, value []byte) {
	s := &h.spans[len(h.spans)-1]
	return h.text.b[s.name:s.mid], h.text.b[s.mid+2:]
}

// drop takes back the field that was begun.
func (h *Head) drop() {
	n := len(h.spans) - 1
	h.text.b = h.text.b[:h.spans[n].name]
	h.spans = h.spans[:n]
}

type headKind uint8

const (
	requestHead headKind = iota
	responseHead
	trailerHead
)

// finish fills the exported fields, and notes in bad what makes the section
// malformed. Source: RFC 9113 sections 8.1 to 8.3.
func (h *Head) finish(kind headKind) {
	if h.bad != "" {
		return
	}
	text := h.text.b
	i := 0
	for ; i < len(h.spans) && text[h.spans[i].name] == ':'; i++ {
		s := &h.spans[i]
		if h.bad == "" {
			h.bad = h.pseudo(kind, text[s.name:s.mid], text[s.mid+2:s.end])
		}
	}
	fields := h.spans[i:]
	if len(fields) > 0 {
		base := fields[0].name
		raw := text[base:]
		h.own.SetRaw(raw)
		for n := range fields {
			s := &fields[n]
			name := text[s.name:s.mid:s.mid]
			if name[0] == ':' {
				h.bad = "pseudo-header behind a field"
				return
			}
			value := syntax.Trim(text[s.mid+2 : s.end : s.end])
			if !s.named {
				s.id = exchange.Identify(name)
			}
			id := s.id
			h.own.AddIdentified(id, name, value, int(s.name-base), int(s.end+2-base))
			if s.never {
				h.never[n/64] |= 1 << (n % 64)
			}
			if h.bad == "" {
				h.bad = h.checkMeaning(kind, id, value)
			}
		}
	}
	if h.bad != "" || h.over {
		return
	}
	switch kind {
	case requestHead:
		h.bad = h.checkRequest()
		if h.own.Count(exchange.Cookie) > 1 {
			h.joinCookies()
		}
	case responseHead:
		if h.Status == 0 {
			h.bad = "response without :status"
		}
	case trailerHead:
		h.dropTrailers()
	}
}

// pseudo takes in a pseudo-header.
func (h *Head) pseudo(kind headKind, name, value []byte) string {
	var to *[]byte
	switch kind {
	case requestHead:
		switch string(name) {
		case ":method":
			to = &h.Method
		case ":scheme":
			to = &h.Scheme
		case ":authority":
			to = &h.Authority
		case ":path":
			to = &h.Path
		case ":protocol":
			to = &h.Protocol
		}
	case responseHead:
		if string(name) != ":status" {
			break
		}
		if h.Status != 0 {
			return "repeated pseudo-header"
		}
		if len(value) != 3 || value[0] < '1' || value[0] > '9' || !syntax.IsDigit(value[1]) || !syntax.IsDigit(value[2]) {
			return "bad :status"
		}
		h.Status = int(value[0]-'0')*100 + int(value[1]-'0')*10 + int(value[2]-'0')
		if h.Status == 101 {
			return "101 in HTTP/2" // RFC 9113 section 8.6
		}
		return ""
	}
	if to == nil {
		return "unknown pseudo-header"
	}
	if *to != nil {
		return "repeated pseudo-header"
	}
	*to = value[:len(value):len(value)]
	return ""
}

// checkMeaning checks a field that the codec itself acts on.
func (h *Head) checkMeaning(kind headKind, id exchange.ID, value []byte) string {
	switch id {
	case exchange.Connection, exchange.KeepAlive, exchange.ProxyConnection, exchange.TransferEncoding, exchange.Upgrade:
		return "connection-specific field"
	case exchange.TE:
		if string(value) != "trailers" {
			return "te with more than trailers"
		}
	case exchange.ContentLength:
		if kind == trailerHead {
			return ""
		}
		n, ok := syntax.ParseLength(value)
		if !ok || h.Length >= 0 {
			return "bad content-length"
		}
		h.Length = n
	}
	return ""
}

// checkRequest checks the pseudo-headers of a request against each other. Source:
// RFC 9113 sections 8.3.1 and 8.5, RFC 8441 section 4.
func (h *Head) checkRequest() string {
	if len(h.Method) == 0 || !syntax.IsToken(h.Method) {
		return "bad :method"
	}
	connect := string(h.Method) == "CONNECT"
	switch {
	case h.Protocol != nil && !connect:
		return ":protocol without CONNECT"
	case h.Protocol != nil && !syntax.IsToken(h.Protocol):
		return "bad :protocol"
	case connect && h.Protocol == nil:
		if h.Scheme != nil || h.Path != nil {
			return "CONNECT with :scheme or :path"
		}
		if !syntax.ValidAuthority(h.Authority) || !syntax.HasPort(h.Authority) {
			return "CONNECT without host and port"
		}
		return h.checkHost()
	}
	if s := string(h.Scheme); s != "http" && s != "https" {
		return "bad :scheme"
	}
	if why := checkPath(h.Path, string(h.Method) == "OPTIONS"); why != "" {
		return why
	}
	return h.checkHost()
}

// checkHost makes Host and :authority agree: two readers must not see two hosts.
func (h *Head) checkHost() string {
	switch n := h.own.Count(exchange.Host); {
	case n > 1:
		return "repeated host"
	case n == 1:
		host := h.own.Get(exchange.Host)
		if h.Authority == nil {
			h.Authority = host
		} else if string(host) != string(h.Authority) {
			return "host is not :authority"
		}
	}
	if !syntax.ValidAuthority(h.Authority) {
		return "bad :authority"
	}
	return ""
}

// copyFields makes h a copy of another Head's fields, to be sent later.
func (h *Head) copyFields(from *Head) {
	h.reset()
	if from.Header == nil {
		return
	}
	for i := range from.Header.Len() {
		f := from.Header.At(i)
		if f == nil {
			continue
		}
		h.begin(from.isNever(i))
		h.text.b = append(h.text.b, f.Name...)
		h.middle()
		h.text.b = append(h.text.b, f.Value...)
		h.spans[len(h.spans)-1].end = uint32(len(h.text.b))
		h.text.b = append(h.text.b, "\r\n"...)
	}
	text := h.text.b
	h.own.SetRaw(text)
	for n := range h.spans {
		s := &h.spans[n]
		h.own.AddRaw(text[s.name:s.mid], text[s.mid+2:s.end], int(s.name), int(s.end+2))
		if s.never && n < maxFieldsEver {
			h.never[n/64] |= 1 << (n % 64)
		}
	}
}

// joinCookies makes one field of the crumbs that a client may send. Source: RFC
// 9113 section 8.2.3.
func (h *Head) joinCookies() {
	from := len(h.text.b)
	for i := range h.own.Len() {
		if f := h.own.At(i); f != nil && f.ID == exchange.Cookie {
			if len(h.text.b) > from {
				h.text.b = append(h.text.b, "; "...)
			}
			h.text.b = append(h.text.b, f.Value...)
		}
	}
	h.own.Set(exchange.Cookie, h.text.b[from:])
}

// dropTrailers takes out fields that could change how the message was understood,
// if a recipient merges them into the header. Source: RFC 9110 section 6.5.1.
func (h *Head) dropTrailers() {
	for i := range h.own.Len() {
		if f := h.own.At(i); f != nil && !syntax.TrailerAllowed(f.ID, f.Name) {
			h.own.DelAt(i)
		}
	}
}
