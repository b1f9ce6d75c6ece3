// Package requestid gives every request an x-request-id, by which the hops of one
// call can be found together.
package requestid

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// Config is what the filter needs.
type Config struct {
	// Replace makes a new id even if the client sent one: at the edge, where ids of
	// strangers mean nothing.
	Replace bool
	Random  func() uint64 // nil: math/rand
}

// New returns the filter.
func New(cfg Config) exchange.Filter {
	if cfg.Random == nil {
		cfg.Random = rand.Uint64
	}
	return exchange.Filter{Request: func(x *exchange.Exchange) {
		h := &x.Request.Header
		if cfg.Replace || len(h.Get(exchange.RequestID)) == 0 {
			h.Set(exchange.RequestID, x.Keep(appendUUID(x.Scratch(), cfg.Random(), cfg.Random())))
		}
	}}
}

// appendUUID appends a random UUID. Source: RFC 9562 section 5.4.
func appendUUID(b []byte, hi, lo uint64) []byte {
	var u [16]byte
	binary.BigEndian.PutUint64(u[:8], hi)
	binary.BigEndian.PutUint64(u[8:], lo)
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	b = hex.AppendEncode(b, u[:4])
	for _, part := range [...][]byte{u[4:6], u[6:8], u[8:10], u[10:]} {
		b = append(b, '-')
		b = hex.AppendEncode(b, part)
	}
	return b
}
