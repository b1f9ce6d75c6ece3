// Package accesslog writes a line for each finished exchange.
package accesslog

import (
	"time"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/telemetry"
)

// Config is what the observer needs.
type Config struct {
	Log *telemetry.Log
	Now func() time.Time // nil: time.Now
}

// New returns the observer.
func New(cfg Config) func(*exchange.Exchange) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return func(x *exchange.Exchange) {
		e := entry(x)
		e.Duration = cfg.Now().Sub(x.Start)
		cfg.Log.Write(&e)
	}
}

func entry(x *exchange.Exchange) telemetry.Entry {
	q, r, u := &x.Request, &x.Response, &x.Upstream
	e := telemetry.Entry{
		Start:            x.Start,
		Method:           q.Method,
		Path:             q.Target,
		Protocol:         q.Protocol(),
		Code:             r.Status,
		Flags:            x.Flags.String(),
		Details:          x.Details,
		Termination:      x.Termination,
		TransportFailure: x.TransportFailure,
		BytesReceived:    x.RequestBytes,
		BytesSent:        x.ResponseBytes,
		ForwardedFor:     q.Header.Get(exchange.ForwardedFor),
		UserAgent:        q.Header.Get(exchange.UserAgent),
		RequestID:        q.Header.Get(exchange.RequestID),
		Authority:        q.Authority,
		UpstreamHost:     u.Remote,
		UpstreamCluster:  x.Cluster,
		UpstreamLocal:    u.Local,
		DownstreamLocal:  x.Conn.Local,
		DownstreamRemote: x.Conn.Remote,
		ServerName:       x.Conn.SNI,
	}
	if !r.Local {
		e.UpstreamServiceTime = r.Header.Get(exchange.ServiceTime)
	}
	if x.Rule != nil {
		e.RouteName = x.Rule.Name
	}
	return e
}
