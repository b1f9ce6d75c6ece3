// Package shed answers requests with 503 while the proxy is short of memory.
package shed

import (
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// New returns the filter. overloaded is asked for each request.
func New(overloaded func() bool) exchange.Filter {
	return exchange.Filter{Request: func(x *exchange.Exchange) {
		if overloaded() {
			// A connection costs memory, too; its client may come back with another.
			x.Close = true
			x.Fail(exchange.Overloaded, 503, "proxy overloaded", "overload")
		}
	}}
}
