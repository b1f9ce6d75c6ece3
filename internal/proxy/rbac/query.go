package rbac

import (
	"net/netip"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// Query is what is decided about: a connection, and a request on it. A Query is made
// for one decision; the zero value with Conn set is one about bytes.
type Query struct {
	Conn *exchange.Conn
	// Exchange is nil for bytes.
	Exchange *exchange.Exchange
	// Remote is the client's address behind trusted proxies; invalid: the
	// connection's.
	Remote netip.Addr

	lowered [maxHost]byte // for a host that is not in lower case
}

// maxHost bounds the host that is put into lower case without allocating.
const maxHost = 256

// valuesInline is how many values of a header or claim are gathered without
// allocating.
const valuesInline = 8

// key is a condition's key, prepared.
type key struct {
	text string
	id   exchange.ID // of a header that the proxy knows
	part part        // of the request, in the place of a header
}

// part is what a header name that begins with a colon stands for.
type part uint8

const (
	noPart part = iota
	hostPart
	methodPart
	pathPart // with the query
	schemePart
)

func keyOf(c plan.Condition) key {
	k := key{text: c.Key}
	if c.Attr != plan.AttrHeader {
		return k
	}
	switch c.Key {
	case ":authority", "host":
		k.part = hostPart
	case ":method":
		k.part = methodPart
	case ":path":
		k.part = pathPart
	case ":scheme":
		k.part = schemePart
	default:
		k.id = exchange.Identify([]byte(c.Key))
	}
	return k
}

// ip returns the address that an attribute names, never an IPv4 one in the clothes
// of IPv6.
func (q *Query) ip(a plan.Attribute) netip.Addr {
	switch {
	case a == plan.AttrDestinationIP:
		return q.Conn.Local.Addr().Unmap()
	case a == plan.AttrRemoteIP && q.Remote.IsValid():
		return q.Remote.Unmap()
	}
	return q.Conn.Remote.Addr().Unmap()
}

// value returns the value of an attribute that has one at most.
func (q *Query) value(a plan.Attribute) (string, bool) {
	switch a {
	case plan.AttrPrincipal:
		return q.Conn.PeerID, true
	case plan.AttrSNI:
		return q.Conn.SNI, true
	}
	x := q.Exchange
	if x == nil {
		return "", false
	}
	switch a {
	case plan.AttrHost:
		return q.host(), true
	case plan.AttrMethod:
		return exchange.View(x.Request.Method), true
	case plan.AttrPath:
		return exchange.View(x.Request.Path), true
	case plan.AttrRequestPrincipal:
		if t := x.Token; t != nil && t.Principal != "" {
			return t.Principal, true
		}
	}
	return "", false
}

// values appends the values of an attribute to buf. A header line is one value,
// however many there are of its name: whoever joined them could be told anything.
func (q *Query) values(a plan.Attribute, k *key, buf []string) []string {
	switch a {
	case plan.AttrHeader:
		if q.Exchange != nil {
			return q.header(k, buf)
		}
	case plan.AttrClaim:
		if q.Exchange != nil && q.Exchange.Token != nil {
			return append(buf, q.Exchange.Token.Claims[k.text]...)
		}
	default:
		if v, ok := q.value(a); ok {
			return append(buf, v)
		}
	}
	return buf
}

func (q *Query) header(k *key, buf []string) []string {
	r := &q.Exchange.Request
	switch k.part {
	case hostPart:
		return append(buf, exchange.View(r.Authority))
	case methodPart:
		return append(buf, exchange.View(r.Method))
	case pathPart:
		if !r.HasQuery {
			return append(buf, exchange.View(r.Path))
		}
		return append(buf, string(r.Path)+"?"+string(r.Query))
	case schemePart:
		return append(buf, r.Scheme)
	}
	h := &r.Header
	if k.id != exchange.Other {
		if !h.Has(k.id) {
			return buf
		}
		for i := range h.Len() {
			if f := h.At(i); f != nil && f.ID == k.id {
				buf = append(buf, exchange.View(f.Value))
			}
		}
		return buf
	}
	for i := 0; ; i++ {
		var v []byte
		if v, i = h.Find(k.text, i); i < 0 {
			return buf
		}
		buf = append(buf, exchange.View(v))
	}
}

// host returns the authority in lower case.
func (q *Query) host() string {
	a := q.Exchange.Request.Authority
	upper := false
	for _, c := range a {
		upper = upper || 'A' <= c && c <= 'Z'
	}
	if !upper {
		return exchange.View(a)
	}
	b := q.lowered[:0]
	if len(a) > maxHost {
		b = make([]byte, 0, len(a))
	}
	for _, c := range a {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		b = append(b, c)
	}
	return exchange.View(b)
}
