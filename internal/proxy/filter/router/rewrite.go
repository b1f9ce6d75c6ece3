package router

import (
	"bytes"
	"strconv"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/route"
)

// rewrite changes the path and the authority as the route says, or the share of its
// split.
func rewrite(x *exchange.Exchange, d route.Decision, share *plan.WeightedCluster) {
	q, p := &x.Request, d.Route
	if (p.PrefixRewrite != "" || p.RegexRewrite != nil) && !q.Connect {
		old := x.Scratch()
		old = append(old, q.Path...)
		if q.HasQuery {
			old = append(append(old, '?'), q.Query...)
		}
		q.Header.Set(exchange.OriginalPath, x.Keep(old))
		if path, ok := d.Action.Rewrite(x.Scratch(), q.Path); ok {
			q.Path = x.Keep(path)
		} else {
			q.Path = replacePrefix(x, p, p.PrefixRewrite)
		}
		if len(q.Path) == 0 || q.Path[0] != '/' {
			q.Path = x.Keep(append(append(x.Scratch(), '/'), q.Path...))
		}
		if i := bytes.IndexAny(q.Path, " ?#\r\n\x00"); i >= 0 {
			// A capture cannot have these; a substitution might, and would split the
			// request line or begin a query.
			q.Path = q.Path[:i]
		}
	}
	host := p.HostRewrite
	if host == "" {
		host = share.HostRewrite
	}
	if host != "" {
		q.Authority = append(x.Scratch(), host...)
		q.Authority = x.Keep(q.Authority)
		q.Header.Set(exchange.Host, q.Authority)
	}
}

// replacePrefix returns the path with what the route matched replaced: a prefix,
// or else all of it.
func replacePrefix(x *exchange.Exchange, p *plan.Route, with string) []byte {
	var rest []byte
	switch m := p.Match.Path; m.Kind {
	case plan.PathPrefix:
		rest = x.Request.Path[min(len(m.Value), len(x.Request.Path)):]
	case plan.PathSegmentPrefix:
		rest = x.Request.Path[min(len(bytes.TrimRight([]byte(m.Value), "/")), len(x.Request.Path)):]
		if with[len(with)-1] == '/' && len(rest) > 0 {
			rest = rest[1:] // the slash that separates the two is there already
		}
	}
	path := append(append(x.Scratch(), with...), rest...)
	path = x.Keep(path)
	if path[0] != '/' {
		path = x.Keep(append(append(x.Scratch(), '/'), path...))
	}
	return path
}

// redirect answers with a Location.
func redirect(x *exchange.Exchange, p *plan.Route) {
	r, q := p.Redirect, &x.Request
	scheme := r.Scheme
	if scheme == "" {
		scheme = q.Scheme
	}
	host, port := splitPort(q.Authority)
	if r.Host != "" {
		host, port = []byte(r.Host), nil
	}
	if r.Port != 0 {
		port = strconv.AppendUint(nil, uint64(r.Port), 10)
	}
	if scheme != q.Scheme && r.Port == 0 && isDefault(q.Scheme, port) ||
		isDefault(scheme, port) {
		port = nil
	}
	path := q.Path
	switch {
	case r.Path != "":
		path = []byte(r.Path)
	case r.PrefixRewrite != "":
		path = replacePrefix(x, p, r.PrefixRewrite)
	}
	b := append(x.Scratch(), scheme...)
	b = append(append(b, "://"...), host...)
	if len(port) > 0 {
		b = append(append(b, ':'), port...)
	}
	b = append(b, path...)
	if q.HasQuery && bytes.IndexByte(path, '?') < 0 {
		b = append(append(b, '?'), q.Query...)
	}
	location := x.Keep(b)
	status := int(r.Status)
	if status == 0 {
		status = 301
	}
	x.Reply(status, "", "direct_response")
	x.Response.Header.Add(exchange.Location, "location", location)
}

// splitPort takes the port off an authority, which is valid.
func splitPort(a []byte) (host, port []byte) {
	if i := bytes.LastIndexByte(a, ':'); i >= 0 && bytes.IndexByte(a[i:], ']') < 0 {
		return a[:i], a[i+1:]
	}
	return a, nil
}

func isDefault(scheme string, port []byte) bool {
	return scheme == "http" && string(port) == "80" || scheme == "https" && string(port) == "443"
}
