// Package authz refuses requests that policy does not allow.
package authz

import (
	"context"
	"log/slog"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/rbac"
	"github.com/heddle-mesh/heddle/internal/telemetry"
)

// Config is what the filter needs. Rules is required.
type Config struct {
	// Rules returns the rules in force, nil for none. It is called for each request,
	// so that a change acts on open connections too.
	Rules  func() *rbac.Engine
	Prefix string              // of the chain, in metrics
	Count  *telemetry.Registry // nil counts nothing
	Logger *slog.Logger
}

// denial is the body of an answer. Source: Envoy.
const denial = "RBAC: access denied"

// New returns the filter.
func New(cfg Config) exchange.Filter {
	f := &filter{cfg: cfg}
	f.allowed, f.denied = f.counter("allowed"), f.counter("denied")
	for action, name := range map[plan.RBACAction]string{plan.Allow: "istio_dry_run_allow_shadow_", plan.Deny: "istio_dry_run_deny_shadow_"} {
		f.shadow[action] = [2]*telemetry.Counter{f.counter(name + "allowed"), f.counter(name + "denied")}
	}
	return exchange.Filter{Request: f.request}
}

type filter struct {
	cfg             Config
	allowed, denied *telemetry.Counter
	// shadow counts dry runs: by action, let through or not.
	shadow [2][2]*telemetry.Counter
}

func (f *filter) counter(name string) *telemetry.Counter {
	if f.cfg.Count == nil {
		return new(telemetry.Counter)
	}
	return f.cfg.Count.Counter("envoy_http_rbac_"+name, "Requests that authorization policies decided about.",
		telemetry.Label{Name: "http_conn_manager_prefix", Value: f.cfg.Prefix})
}

func (f *filter) request(x *exchange.Exchange) {
	rules := f.cfg.Rules()
	if rules == nil {
		return
	}
	q := rbac.Query{Conn: x.Conn, Exchange: x, Remote: x.Remote}
	v := rules.Decide(&q)
	if v.Shadow.Evaluated {
		f.dryRun(x, v.Shadow)
	}
	if !v.Denied {
		f.allowed.Inc()
		return
	}
	f.denied.Inc()
	x.Reply(403, denial, v.Details)
}

// dryRun tells what a policy that is not in force would do.
func (f *filter) dryRun(x *exchange.Exchange, s rbac.Shadow) {
	if s.Action == plan.Audit {
		return
	}
	n := 0
	if s.Denied {
		n = 1
	}
	f.shadow[s.Action][n].Inc()
	if s.Denied && f.cfg.Logger.Enabled(context.Background(), slog.LevelDebug) {
		f.cfg.Logger.Debug("shadow denied", "policy", s.Rule, "method", string(x.Request.Method), "authority", string(x.Request.Authority),
			"path", string(x.Request.Path), "principal", x.Conn.PeerID, "requestID", string(x.Request.Header.Get(exchange.RequestID)))
	}
}
