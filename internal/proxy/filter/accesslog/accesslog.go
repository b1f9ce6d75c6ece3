// Package accesslog writes a line for each finished exchange.
package accesslog

import (
	"bytes"
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
		e.Duration = x.Duration(cfg.Now)
		cfg.Log.Write(&e)
	}
}

// path returns what was asked for before the route rewrote it.
func path(x *exchange.Exchange) []byte {
	q := &x.Request
	if original := q.Header.Get(exchange.OriginalPath); original != nil {
		return original
	}
	if q.Path == nil || q.Connect || bytes.HasPrefix(q.Target, q.Path) {
		return q.Target
	}
	b := append(x.Scratch(), q.Path...)
	if q.HasQuery {
		b = append(append(b, '?'), q.Query...)
	}
	return x.Keep(b)
}

func entry(x *exchange.Exchange) telemetry.Entry {
	q, r, u := &x.Request, &x.Response, &x.Upstream
	e := telemetry.Entry{
		Start:            x.Start,
		Method:           q.Method,
		Path:             path(x),
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
