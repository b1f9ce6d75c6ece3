// Package serverheader sets the Server header of responses, as Istio does.
package serverheader

import (
	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// Config is what the filter needs.
type Config struct {
	Direction plan.Direction
}

// New returns the filter.
func New(cfg Config) exchange.Filter {
	name := "istio-envoy"
	if cfg.Direction == plan.Outbound {
		// Istio leaves the name out here, so that Envoy's own stands.
		name = "envoy"
	}
	return exchange.Filter{Response: func(x *exchange.Exchange) { x.Response.Header.SetString(exchange.Server, name) }}
}
