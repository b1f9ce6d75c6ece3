// Package clientcert keeps x-forwarded-client-cert: who the clients on the way
// were, as their certificates say. Only a client with a verified certificate may
// hand on what others said before; all other values are removed.
package clientcert

import (
	"strings"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// Config is what the filter needs.
type Config struct {
	Mode plan.ClientCertMode
}

// New returns the filter.
func New(cfg Config) exchange.Filter {
	return exchange.Filter{Request: func(x *exchange.Exchange) { apply(x, cfg.Mode) }}
}

// apply does what the mode says. Source: Envoy, HttpConnectionManager,
// ForwardClientCertDetails.
func apply(x *exchange.Exchange, mode plan.ClientCertMode) {
	h := &x.Request.Header
	if mode == plan.AlwaysForwardOnlyClientCert {
		return
	}
	if mode == plan.SanitizeClientCert || !x.Conn.MTLS {
		h.Del(exchange.ForwardedClientCert)
		return
	}
	if mode == plan.ForwardOnlyClientCert {
		return
	}
	b := x.Scratch()
	if mode == plan.AppendForwardClientCert {
		for i := range h.Len() {
			if f := h.At(i); f != nil && f.ID == exchange.ForwardedClientCert && len(f.Value) > 0 {
				b = append(append(b, f.Value...), ',')
			}
		}
	}
	h.Set(exchange.ForwardedClientCert, x.Keep(appendElement(b, x.Conn)))
}

// appendElement appends what is known of the connection's client:
// By=<own id>;Hash=<SHA-256>;Subject="<name>";URI=<id>.
func appendElement(b []byte, c *exchange.Conn) []byte {
	if c.OwnID != "" {
		b = append(append(b, "By="...), c.OwnID...)
		b = append(b, ';')
	}
	if c.PeerHash != "" {
		b = append(append(b, "Hash="...), c.PeerHash...)
		b = append(b, ';')
	}
	b = append(b, `Subject="`...)
	if strings.ContainsAny(c.PeerSubject, "\"\\\r\n\x00") {
		b = appendEscaped(b, c.PeerSubject)
	} else {
		b = append(b, c.PeerSubject...)
	}
	b = append(b, `";URI=`...)
	return append(b, c.PeerID...)
}

// appendEscaped appends a subject so that it can not end its quotes or the line.
func appendEscaped(b []byte, s string) []byte {
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ' || c == 0x7f:
			b = append(b, ' ')
		default:
			b = append(b, c)
		}
	}
	return b
}
