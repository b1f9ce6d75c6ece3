package route

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// Edits are a route's changes of headers, compiled.
type Edits struct {
	Request, Response Edit
}

// Edit changes the fields of one message.
type Edit struct {
	remove []string
	put    []field
}

type field struct {
	name    string
	id      exchange.ID
	value   []piece
	appends bool
}

// piece is a part of a value: a text, or what an operator stands for.
type piece struct {
	text string
	of   func(b []byte, x *exchange.Exchange, arg string) []byte // nil: text; otherwise text is its argument
}

func newEdits(p *plan.Headers) *Edits {
	if p == nil {
		return nil
	}
	return &Edits{Request: newEdit(p.Request), Response: newEdit(p.Response)}
}

func newEdit(p plan.HeaderEdit) Edit {
	e := Edit{remove: p.Remove}
	for _, v := range p.Put {
		e.put = append(e.put, field{v.Name, exchange.Identify([]byte(v.Name)), pieces(v.Value), v.Append})
	}
	return e
}

// Apply changes h, a header of x.
func (e *Edit) Apply(x *exchange.Exchange, h *exchange.Header) {
	for _, name := range e.remove {
		h.DelName([]byte(name))
	}
	for i := range e.put {
		f := &e.put[i]
		var value []byte
		if len(f.value) == 1 && f.value[0].of == nil {
			value = append(x.Scratch(), f.value[0].text...)
		} else {
			value = x.Scratch()
			for _, p := range f.value {
				if p.of == nil {
					value = append(value, p.text...)
				} else {
					value = p.of(value, x, p.text)
				}
			}
			if len(value) == len(x.Scratch()) && len(f.value) > 0 {
				continue // there is nothing of what was asked for
			}
		}
		value = x.Keep(value)
		if !f.appends {
			h.DelName([]byte(f.name))
		}
		h.Add(f.id, f.name, value)
	}
}

// operators are Envoy's, as far as a header can have them. Source: Envoy, "Custom
// request/response headers".
var operators = map[string]func(b []byte, x *exchange.Exchange, arg string) []byte{
	"REQ": func(b []byte, x *exchange.Exchange, arg string) []byte { return appendRequest(b, &x.Request, arg) },
	"RESP": func(b []byte, x *exchange.Exchange, arg string) []byte {
		return appendField(b, &x.Response.Header, arg)
	},
	"PROTOCOL": func(b []byte, x *exchange.Exchange, _ string) []byte {
		return append(b, x.Request.Protocol()...)
	},
	"DOWNSTREAM_REMOTE_ADDRESS": func(b []byte, x *exchange.Exchange, _ string) []byte { return appendAddrPort(b, x.Conn.Remote) },
	"DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": func(b []byte, x *exchange.Exchange, _ string) []byte {
		return appendAddr(b, x.Conn.Remote)
	},
	"DOWNSTREAM_LOCAL_ADDRESS": func(b []byte, x *exchange.Exchange, _ string) []byte { return appendAddrPort(b, x.Conn.Local) },
	"DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT": func(b []byte, x *exchange.Exchange, _ string) []byte {
		return appendAddr(b, x.Conn.Local)
	},
	"DOWNSTREAM_LOCAL_PORT": func(b []byte, x *exchange.Exchange, _ string) []byte {
		return strconv.AppendUint(b, uint64(x.Conn.Local.Port()), 10)
	},
	"DOWNSTREAM_PEER_URI_SAN":  func(b []byte, x *exchange.Exchange, _ string) []byte { return append(b, x.Conn.PeerID...) },
	"DOWNSTREAM_LOCAL_URI_SAN": func(b []byte, x *exchange.Exchange, _ string) []byte { return append(b, x.Conn.OwnID...) },
	"REQUESTED_SERVER_NAME":    func(b []byte, x *exchange.Exchange, _ string) []byte { return append(b, x.Conn.SNI...) },
	"UPSTREAM_REMOTE_ADDRESS": func(b []byte, x *exchange.Exchange, _ string) []byte {
		return appendAddrPort(b, x.Upstream.Remote)
	},
	"UPSTREAM_CLUSTER": func(b []byte, x *exchange.Exchange, _ string) []byte { return append(b, x.Cluster...) },
	"ROUTE_NAME": func(b []byte, x *exchange.Exchange, _ string) []byte {
		if x.Rule != nil {
			b = append(b, x.Rule.Name...)
		}
		return b
	},
	"RESPONSE_CODE": func(b []byte, x *exchange.Exchange, _ string) []byte {
		return strconv.AppendInt(b, int64(x.Response.Status), 10)
	},
	"RESPONSE_FLAGS": func(b []byte, x *exchange.Exchange, _ string) []byte { return append(b, x.Flags.String()...) },
	"START_TIME": func(b []byte, x *exchange.Exchange, _ string) []byte {
		return x.Start.UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z")
	},
}

// pieces reads a value. "%%" is a percent sign; an operator that is not known stays
// as it is written, because an operator's typing error must not keep a proxy from
// its other routes.
func pieces(value string) []piece {
	var out []piece
	text := ""
	for len(value) > 0 {
		before, rest, found := strings.Cut(value, "%")
		text += before
		if !found {
			break
		}
		name, after, ended := strings.Cut(rest, "%")
		if ended && name == "" {
			text += "%"
			value = after
			continue
		}
		arg := ""
		if i := strings.IndexByte(name, '('); i >= 0 && strings.HasSuffix(name, ")") {
			name, arg = name[:i], name[i+1:len(name)-1]
		}
		of := operators[name]
		if !ended || of == nil {
			text += "%"
			value = rest
			continue
		}
		if text != "" {
			out = append(out, piece{text: text})
			text = ""
		}
		out = append(out, piece{text: strings.ToLower(arg), of: of})
		value = after
	}
	if text != "" || len(out) == 0 {
		out = append(out, piece{text: text})
	}
	return out
}

// appendRequest appends a header of the request or one of its parts; "a?b" is b
// where there is no a.
func appendRequest(b []byte, q *exchange.Request, arg string) []byte {
	first, second, both := strings.Cut(arg, "?")
	n := len(b)
	switch first {
	case ":method":
		b = append(b, q.Method...)
	case ":authority", "host":
		b = append(b, q.Authority...)
	case ":scheme":
		b = append(b, q.Scheme...)
	case ":path":
		b = append(b, q.Path...)
		if q.HasQuery {
			b = append(append(b, '?'), q.Query...)
		}
	default:
		b = appendField(b, &q.Header, first)
	}
	if len(b) == n && both {
		return appendRequest(b, q, second)
	}
	return b
}

func appendField(b []byte, h *exchange.Header, name string) []byte {
	value, _ := h.Find(name, 0)
	return append(b, value...)
}

func appendAddrPort(b []byte, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return b
	}
	return a.AppendTo(b)
}

func appendAddr(b []byte, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return b
	}
	return a.Addr().Unmap().AppendTo(b)
}
