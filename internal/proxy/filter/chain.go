package filter

import (
	"slices"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/filter/accesslog"
	"github.com/heddle-mesh/heddle/internal/proxy/filter/authz"
	"github.com/heddle-mesh/heddle/internal/proxy/filter/clientcert"
	"github.com/heddle-mesh/heddle/internal/proxy/filter/extauthz"
	"github.com/heddle-mesh/heddle/internal/proxy/filter/forwarded"
	"github.com/heddle-mesh/heddle/internal/proxy/filter/jwt"
	"github.com/heddle-mesh/heddle/internal/proxy/filter/peer"
	"github.com/heddle-mesh/heddle/internal/proxy/filter/requestid"
	"github.com/heddle-mesh/heddle/internal/proxy/filter/router"
	"github.com/heddle-mesh/heddle/internal/proxy/filter/serverheader"
	"github.com/heddle-mesh/heddle/internal/proxy/filter/shed"
	"github.com/heddle-mesh/heddle/internal/proxy/filter/stats"
)

// chain is what an exchange goes through: the filters, and the handler behind them
// that answers.
type chain struct {
	filters []Filter
	router  *router.Router
	waits   []func() bool // of filters that may
}

// mayWait reports whether a request may be held up before it reaches the router.
func (c *chain) mayWait() bool {
	for _, waits := range c.waits {
		if waits() {
			return true
		}
	}
	return false
}

// run takes x through the chain: when it returns, the response is there.
func (c *chain) run(x *exchange.Exchange) {
	n := c.request(x)
	if x.Response.Status == 0 {
		c.router.Handle(x)
	}
	c.response(x, n)
}

// request shows x to the filters, and returns how many saw it: all, unless one
// answered.
func (c *chain) request(x *exchange.Exchange) int {
	for i := range c.filters {
		if f := c.filters[i].Request; f != nil {
			if f(x); x.Response.Status != 0 {
				return i + 1
			}
		}
	}
	return len(c.filters)
}

// response shows x to the first n filters, in the opposite order.
func (c *chain) response(x *exchange.Exchange, n int) {
	for n--; n >= 0; n-- {
		if f := c.filters[n].Response; f != nil {
			f(x)
		}
	}
}

// compose returns the chain. The order matters; requests pass from top to bottom,
// responses from bottom to top.
func compose(s *Server) chain {
	cfg := s.cfg
	last := router.New(router.Config{
		Routes:        cfg.Routes,
		Clusters:      cfg.Clusters,
		Metadata:      outgoing(cfg, cfg.OwnMetadata),
		MetadataID:    outgoing(cfg, cfg.OwnMetadataID),
		CountAttempts: cfg.Direction != plan.Inbound,
		Now:           cfg.Now,
		Random:        cfg.Random,
		Log:           cfg.Logger,
	})
	filters := []Filter{
		// Responses of every kind name who answered: last on the way out.
		serverheader.New(serverheader.Config{Direction: cfg.Direction}),
		// First on the way in: at the edge it removes what strangers must not say,
		// and everything below may believe what is left.
		forwarded.New(forwarded.Config{UseRemoteAddress: cfg.Chain.UseRemoteAddress, TrustedHops: int(cfg.Chain.TrustedHops)}),
		// Before anything that could log or decide by the client's certificate.
		clientcert.New(clientcert.Config{Mode: cfg.Chain.ForwardClientCert}),
		// Before anything that answers, so that all answers have an id in the log.
		requestid.New(requestid.Config{Replace: cfg.Chain.UseRemoteAddress, Random: cfg.Random}),
		// Removes the proxies' own headers before a route could match on them.
		peer.New(peer.Config{
			Direction:  cfg.Direction,
			Metadata:   cfg.OwnMetadata,
			MetadataID: cfg.OwnMetadataID,
			Decode:     cfg.DecodePeer,
		}),
		// Before tokens are judged and taken out: a provider judges them itself.
		extauthz.New(extauthz.Config{Rules: s.asks.Load, Send: last.Ask}),
		// Who asks; before policies, which may want to know.
		jwt.New(jwt.Config{Rules: s.tokens.Load}),
		// Behind all that makes a request what the upstream will see, and before
		// anything that acts on it.
		authz.New(authz.Config{Rules: s.rules.Load, Prefix: cfg.Chain.StatPrefix, Count: cfg.Metrics, Logger: cfg.Logger}),
	}
	if cfg.Overloaded != nil {
		// Before all that costs memory.
		filters = slices.Insert(filters, 1, shed.New(cfg.Overloaded))
	}
	c := chain{filters: filters, router: last}
	for _, f := range filters {
		if f.Waits != nil {
			c.waits = append(c.waits, f.Waits)
		}
	}
	return c
}

// outgoing returns what upstreams are told: an application is told nothing.
func outgoing(cfg Config, value string) string {
	if cfg.Direction == plan.Inbound {
		return ""
	}
	return value
}

// observers returns who looks at an exchange at its end.
func observers(cfg Config) []func(*exchange.Exchange) {
	var list []func(*exchange.Exchange)
	if cfg.Metrics != nil && cfg.Chain.Metrics {
		list = append(list, stats.New(stats.Config{
			Registry:  cfg.Metrics,
			Direction: cfg.Direction,
			Own:       cfg.Own,
			Now:       cfg.Now,
		}))
	}
	if cfg.Log != nil {
		list = append(list, accesslog.New(accesslog.Config{Log: cfg.Log, Now: cfg.Now}))
	}
	return list
}
