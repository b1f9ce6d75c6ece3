package plan

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// String returns the plan as short text: a line for each listener, chain, route
// and cluster, in the plan's order. It shows what is set and leaves out what has
// its usual value, so that a golden test stays readable; equal plans have equal
// texts.
func (p *Plan) String() string {
	var b strings.Builder
	for _, l := range p.Listeners {
		l.text(&b)
	}
	for _, r := range p.Routes {
		r.text(&b, "")
	}
	for _, c := range p.Clusters {
		b.WriteString(c.String() + "\n")
	}
	if p.Names != nil {
		for _, n := range p.Names.Names {
			b.WriteString(n.String() + "\n")
		}
	}
	return b.String()
}

// words joins what is not empty.
type words []string

func (w *words) add(format string, args ...any) { *w = append(*w, fmt.Sprintf(format, args...)) }

func (w *words) addIf(ok bool, format string, args ...any) {
	if ok {
		w.add(format, args...)
	}
}

func (w words) String() string { return strings.Join(w, " ") }

func (d Direction) String() string { return [...]string{"outbound", "inbound", "edge"}[d] }

// String returns the listener with its chains.
func (l *Listener) String() string {
	var b strings.Builder
	l.text(&b)
	return b.String()
}

func (l *Listener) text(b *strings.Builder) {
	w := words{"listener", l.Name}
	if l.API != nil {
		w.add("api")
		w.add("%s", l.API.summary())
	} else {
		w.add("%s", l.Direction)
		w.addIf(l.Address.IsValid() && l.Name != strings.Replace(l.Address.String(), ":", "_", 1), "%s", l.Address)
		w.addIf(l.Bound, "bound")
		w.addIf(l.UseOriginalDst, "original-dst")
		w.addIf(l.ProxyProtocol, "proxy-protocol")
		if look := l.Inspect.String(); look != "" {
			w.add("inspect=%s", look)
		}
	}
	b.WriteString(w.String() + "\n")
	for _, c := range l.Chains {
		c.text(b, "chain")
	}
	if l.Default != nil {
		l.Default.text(b, "default")
	}
	if l.API != nil && l.API.Inline != nil {
		l.API.Inline.text(b, "  ")
	}
}

func (i Inspect) String() string {
	var w words
	w.addIf(i.TLS, "tls")
	w.addIf(i.HTTP, "http")
	w.addIf(i.Timeout > 0, "timeout:%s", i.Timeout)
	for _, p := range i.SkipPorts {
		w.add("-%d", p)
	}
	for _, p := range i.SkipHTTPPorts {
		w.add("-http:%d", p)
	}
	return strings.Join(w, ",")
}

func (c *FilterChain) text(b *strings.Builder, word string) {
	w := words{word}
	w.addIf(c.Name != "", "%s", c.Name)
	if m := c.Match.String(); m != "" {
		w.add("%s", m)
	}
	if c.TLS != nil {
		w.add("%s", c.TLS)
	}
	w.add("->")
	switch {
	case c.HTTP != nil:
		w.add("%s", c.HTTP.summary())
	case c.TCP != nil:
		w.add("tcp %s", shares(c.TCP.Clusters))
		w.addIf(c.TCP.IdleTimeout > 0, "idle=%s", c.TCP.IdleTimeout)
		w.addIf(c.TCP.PeerExchange, "exchange")
		w.addIf(c.TCP.AccessLog != "", "log=%s", c.TCP.AccessLog)
		w.addIf(!c.TCP.Metrics, "no-metrics")
	}
	b.WriteString("  " + w.String() + "\n")
	if c.HTTP != nil {
		for _, j := range c.HTTP.JWT {
			b.WriteString("    " + j.String() + "\n")
		}
		for _, e := range c.HTTP.Ask {
			b.WriteString("    " + e.String() + "\n")
			rbacText(b, "      ", []*RBAC{{Action: Deny, Enforced: true, Rules: e.Rules}})
		}
		rbacText(b, "    ", c.HTTP.RBAC)
	} else if c.TCP != nil {
		rbacText(b, "    ", c.TCP.RBAC)
	}
	if c.HTTP != nil && c.HTTP.Inline != nil {
		c.HTTP.Inline.text(b, "    ")
	}
}

// String returns the conditions that are set.
func (m ChainMatch) String() string {
	var w words
	w.addIf(m.DestinationPort != 0, "port=%d", m.DestinationPort)
	if len(m.Prefixes) > 0 {
		w.add("dst=%s", joined(m.Prefixes, netip.Prefix.String))
	}
	w.addIf(len(m.ServerNames) > 0, "sni=%s", strings.Join(m.ServerNames, ","))
	switch m.Transport {
	case RawBuffer:
		w.add("plain")
	case TLSTransport:
		w.add("tls")
	}
	w.addIf(len(m.ALPN) > 0, "alpn=%s", strings.Join(m.ALPN, ","))
	return w.String()
}

// String tells what the server presents and demands: "mtls:TRUSTDOMAIN" is the
// workload's own certificate against the mesh's roots. The ALPN is left out: it
// is long and follows from the chain.
func (t *ServerTLS) String() string {
	if t.Certificate == "default" && t.Roots == "ROOTCA" && t.RequireCert {
		return "mtls:" + strings.Join(t.TrustDomains, "|")
	}
	w := words{"terminate:" + t.Certificate}
	w.addIf(t.Roots != "", "%s", t.Roots)
	w.addIf(t.RequireCert, "client-cert")
	w.addIf(len(t.TrustDomains) > 0, "%s", strings.Join(t.TrustDomains, "|"))
	w.addIf(len(t.SubjectAltNames) > 0, "san:%s", strings.Join(t.SubjectAltNames, "|"))
	w.addIf(t.MinVersion > 0, "min:%04x", t.MinVersion)
	w.addIf(t.MaxVersion > 0, "max:%04x", t.MaxVersion)
	return strings.Join(w, ",")
}

func (h *HTTPChain) summary() string {
	w := words{"http"}
	if h.RouteName != "" {
		w.add("rds=%s", h.RouteName)
	} else {
		w.add("inline")
	}
	w.addIf(h.UseRemoteAddress, "remote-address")
	w.addIf(h.TrustedHops > 0, "hops=%d", h.TrustedHops)
	switch h.ForwardClientCert {
	case ForwardOnlyClientCert:
		w.add("xfcc=forward")
	case AppendForwardClientCert:
		w.add("xfcc=append")
	case SanitizeSetClientCert:
		w.add("xfcc=set")
	case AlwaysForwardOnlyClientCert:
		w.add("xfcc=always-forward")
	}
	w.addIf(h.AccessLog != "", "log=%s", h.AccessLog)
	return w.String()
}

// String returns the route configuration with its hosts and routes.
func (r *RouteConfig) String() string {
	var b strings.Builder
	r.text(&b, "")
	return b.String()
}

func (r *RouteConfig) text(b *strings.Builder, indent string) {
	w := words{"routes", r.Name}
	w.addIf(r.IgnorePort, "ignore-port")
	b.WriteString(indent + w.String() + "\n")
	for _, h := range r.Hosts {
		b.WriteString(indent + "  host " + h.Name + " [" + strings.Join(h.Domains, " ") + "]\n")
		for _, route := range h.Routes {
			b.WriteString(indent + "    " + route.String() + "\n")
		}
	}
}

// String returns the route in one line: conditions, "->", action.
func (r *Route) String() string {
	w := words{r.Match.String()}
	w.addIf(r.Name != "" && r.Name != "default", "(%s)", r.Name)
	w.add("->")
	switch {
	case r.Redirect != nil:
		w.add("%s", r.Redirect)
	case r.Direct != nil:
		w.add("respond %d", r.Direct.Status)
		w.addIf(r.Direct.Body != "", "%q", r.Direct.Body)
	case len(r.Clusters) > 0:
		w.add("%s", shares(r.Clusters))
	default:
		w.add("no forwarding")
	}
	w.addIf(r.PrefixRewrite != "", "rewrite=%s", r.PrefixRewrite)
	if re := r.RegexRewrite; re != nil {
		w.add("rewrite=~%s=>%s", re.Pattern, re.Substitution)
	}
	w.addIf(r.HostRewrite != "", "authority=%s", r.HostRewrite)
	w.addIf(r.Timeout > 0, "timeout=%s", r.Timeout)
	if r.Retry != nil {
		w.add("%s", r.Retry)
	}
	for _, h := range r.Hash {
		w.add("hash=%s", h)
	}
	for _, m := range r.Mirrors {
		w.add("mirror=%s", m)
	}
	if r.Headers != nil {
		w.add("%s", r.Headers)
	}
	if r.CORS != nil {
		w.add("%s", r.CORS)
	}
	if r.Fault != nil {
		w.add("%s", r.Fault)
	}
	w.addIf(r.StatPrefix != "", "stat=%s", r.StatPrefix)
	return w.String()
}

// String returns "5% delay=2s" and the like.
func (f Fraction) String() string {
	return strconv.FormatFloat(float64(f)*100/Million, 'f', -1, 64) + "%"
}

// String returns "header:x", "cookie:c,ttl=1h0m0s", "source-ip", "query:q".
func (h HashPolicy) String() string {
	s := [...]string{"header:", "cookie:", "source-ip", "query:"}[h.Kind] + h.Name
	if h.Generate {
		s += ",ttl=" + h.TTL.String()
		if h.Path != "" {
			s += ",path=" + h.Path
		}
		for _, a := range h.Attributes {
			s += "," + a.Name
			if a.Value != "" {
				s += "=" + a.Value
			}
		}
	}
	if h.Terminal {
		s += ",terminal"
	}
	return s
}

// String returns the cluster, behind its part of the requests if that is not all.
func (m Mirror) String() string {
	s := m.Cluster
	if m.Fraction != Million {
		s = m.Fraction.String() + ":" + s
	}
	if m.Shadow {
		s += ",shadow"
	}
	return s
}

// String lists the changes: "-name", "name=value", "name+=value"; those of the
// response have "response." before them.
func (h *Headers) String() string {
	var w words
	edit := func(where string, e HeaderEdit) {
		for _, n := range e.Remove {
			w.add("-%s%s", where, n)
		}
		for _, v := range e.Put {
			sign := "="
			if v.Append {
				sign = "+="
			}
			w.add("%s%s%s%q", where, v.Name, sign, v.Value)
		}
	}
	edit("", h.Request)
	edit("response.", h.Response)
	return "{" + w.String() + "}"
}

// String returns who may ask, and what for.
func (c *CORS) String() string {
	w := words{"cors=" + joined(c.Origins, func(m StringMatch) string { return strings.TrimPrefix(comparison(m.Kind, m.Value), "=") })}
	w.addIf(c.Methods != "", "methods=%s", c.Methods)
	w.addIf(c.Headers != "", "headers=%s", c.Headers)
	w.addIf(c.Expose != "", "expose=%s", c.Expose)
	w.addIf(c.MaxAge != "", "max-age=%s", c.MaxAge)
	w.addIf(c.Credentials, "credentials")
	w.addIf(!c.ForwardUnmatched, "answer-unmatched")
	return w.String()
}

// String returns the delay and the abort with their parts of the requests.
func (f *Fault) String() string {
	var w words
	w.addIf(f.DelayFraction > 0, "delay=%s:%s", f.DelayFraction, f.Delay)
	kind := ""
	if f.AbortGRPC {
		kind = "grpc-"
	}
	w.addIf(f.AbortFraction > 0, "abort=%s:%s%d", f.AbortFraction, kind, f.AbortStatus)
	return w.String()
}

// String returns the conditions; a path alone, or "/*" for any prefix of it.
func (m *RouteMatch) String() string {
	var w words
	switch m.Path.Kind {
	case PathExact:
		w.add("%s", m.Path.Value)
	case PathRegex:
		w.add("~%s", m.Path.Value)
	case PathSegmentPrefix:
		w.add("%s/**", m.Path.Value)
	default:
		w.add("%s*", m.Path.Value)
	}
	w.addIf(m.IgnoreCase, "ignore-case")
	for _, h := range m.Headers {
		w.add("%s", h)
	}
	for _, q := range m.Query {
		w.add("?%s%s", q.Name, comparison(q.Kind, q.Value))
	}
	for _, c := range m.Claims {
		not := ""
		if c.Invert {
			not = "!"
		}
		w.add("%sclaim:%s%s", not, strings.ReplaceAll(c.Path, "\x00", "."), comparison(c.Kind, c.Value))
	}
	return w.String()
}

// String returns "name=value" and the like, "!" before it if it is negated.
func (h HeaderMatch) String() string {
	s := h.Name + comparison(h.Kind, h.Value)
	if h.Invert {
		s = "!" + s
	}
	return s
}

func comparison(k StringKind, value string) string {
	switch k {
	case StringExact:
		return "=" + value
	case StringPrefix:
		return "=" + value + "*"
	case StringSuffix:
		return "=*" + value
	case StringContains:
		return "=*" + value + "*"
	case StringRegex:
		return "~" + value
	}
	return ""
}

// String tells where the client is sent.
func (r *Redirect) String() string {
	w := words{"redirect", strconv.Itoa(int(r.Status))}
	w.addIf(r.Scheme != "", "scheme=%s", r.Scheme)
	w.addIf(r.Host != "", "host=%s", r.Host)
	w.addIf(r.Port != 0, "port=%d", r.Port)
	w.addIf(r.Path != "", "path=%s", r.Path)
	w.addIf(r.PrefixRewrite != "", "prefix=%s", r.PrefixRewrite)
	return w.String()
}

// defaultRetry are the conditions of the policy for calls that have no other.
const defaultRetry = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"

// String returns "retry=2", with what is not the default policy after it.
func (r *Retry) String() string {
	w := words{"retry=" + strconv.Itoa(int(r.Attempts))}
	if on := strings.Join(r.On, ","); on != defaultRetry {
		w.add("on=%s", on)
	}
	if len(r.Codes) > 0 {
		w.add("codes=%s", joined(r.Codes, func(c uint32) string { return strconv.Itoa(int(c)) }))
	}
	w.addIf(r.PerTry > 0, "per-try=%s", r.PerTry)
	w.addIf(r.HostReopen == 0 && r.Attempts > 0 && strings.Join(r.On, ",") != "reset-before-request", "same-host")
	w.addIf(r.Remote, "remote-localities")
	w.addIf(r.Backoff > 0, "backoff=%s", r.Backoff)
	return w.String()
}

func shares(cs []WeightedCluster) string {
	if len(cs) == 1 {
		return cs[0].Cluster + cs[0].changes()
	}
	return joined(cs, func(c WeightedCluster) string { return fmt.Sprintf("%d:%s%s", c.Weight, c.Cluster, c.changes()) })
}

func (c *WeightedCluster) changes() string {
	s := ""
	if c.HostRewrite != "" {
		s = "{authority=" + c.HostRewrite + "}"
	}
	if c.Headers != nil {
		s += c.Headers.String()
	}
	return s
}

func (d Discovery) String() string {
	return [...]string{"eds", "original-dst", "static", "strict-dns", "logical-dns"}[d]
}

func (b Balancing) String() string {
	return [...]string{"least-request", "round-robin", "random", "provided", "ring-hash", "maglev", "peak-ewma"}[b]
}

func (p Protocol) String() string { return [...]string{"http/1.1", "http/2", "http-as-client"}[p] }

// usualConnect is the connect timeout that goes without saying.
const usualConnect = 10 * time.Second

// String returns the cluster in one line.
func (c *Cluster) String() string {
	w := words{"cluster", c.Name, c.Discovery.String()}
	w.addIf(c.ServiceName != "", "eds=%s", c.ServiceName)
	if len(c.Static) > 0 {
		w.add("[%s]", joined(c.Static, func(e StaticEndpoint) string { return e.Host + ":" + strconv.Itoa(int(e.Port)) }))
	}
	w.addIf(c.Balancing != LeastRequest && c.Balancing != ClusterProvided, "%s", c.Balancing)
	w.addIf(c.ConnectTimeout != usualConnect, "connect=%s", c.ConnectTimeout)
	w.addIf(c.Protocol != HTTP1, "%s", c.Protocol)
	w.addIf(c.MaxConnections > 0, "max-connections=%d", c.MaxConnections)
	w.addIf(c.MaxPending > 0, "max-pending=%d", c.MaxPending)
	w.addIf(c.MaxRequests > 0, "max-requests=%d", c.MaxRequests)
	w.addIf(c.MaxPerConn > 0, "max-per-connection=%d", c.MaxPerConn)
	w.addIf(c.MaxRetries > 0, "max-retries=%d", c.MaxRetries)
	w.addIf(c.IdleTimeout > 0, "idle=%s", c.IdleTimeout)
	w.addIf(c.MaxConnAge > 0, "max-age=%s", c.MaxConnAge)
	if k := c.Keepalive; k != nil {
		w.add("keepalive=%s/%s/%d", k.Time, k.Interval, k.Probes)
	}
	if b := c.RetryBudget; b != nil {
		w.add("retry-budget=%g%%,min=%d", b.Percent, b.MinRetries)
	}
	w.addIf(c.MinRing > 0, "ring=%d", c.MinRing)
	w.addIf(c.TableSize > 0, "table=%d", c.TableSize)
	if m := c.Warmup; m != nil {
		w.add("warmup=%s,from=%g%%", m.Duration, m.MinPercent)
		w.addIf(m.Aggression != 1, "aggression=%g", m.Aggression)
	}
	w.addIf(c.LocalityWeighted, "locality-weights")
	w.addIf(c.PanicPercent > 0, "panic=%d%%", c.PanicPercent)
	if c.Outlier != nil {
		w.add("%s", c.Outlier)
	}
	w.addIf(c.BindAddress.IsValid(), "bind=%s", c.BindAddress)
	w.addIf(c.ProxyProtocol > 0, "proxy-protocol=v%d", c.ProxyProtocol)
	if c.TLS != nil {
		w.add("%s", c.TLS)
	}
	return w.String()
}

// String returns when hosts are ejected, and for how long.
func (o *Outlier) String() string {
	w := words{"outlier"}
	w.addIf(o.Consecutive5xx > 0, "5xx=%d", o.Consecutive5xx)
	w.addIf(o.ConsecutiveGateway > 0, "gateway=%d", o.ConsecutiveGateway)
	w.addIf(o.SplitLocal, "local=%d", o.ConsecutiveLocal)
	w.addIf(len(o.Codes) > 0, "codes=%s", joined(o.Codes, func(c uint32) string { return strconv.Itoa(int(c)) }))
	w.add("every=%s,base=%s,max=%d%%", o.Interval, o.BaseEjection, o.MaxPercent)
	w.addIf(o.AtLeastOne, "one-at-least")
	return strings.Join(w, ",")
}

// String returns "tls=auto" or "tls=always" with names.
func (t *ClientTLS) String() string {
	w := words{"tls=always"}
	if t.Auto {
		w[0] = "tls=auto"
	}
	w.addIf(t.Certificate != "default", "cert=%s", t.Certificate)
	w.addIf(t.Roots != "ROOTCA" && !t.Unverified, "roots=%s", t.Roots)
	w.addIf(t.Unverified, "unverified")
	w.addIf(t.SNI != "", "sni=%s", t.SNI)
	w.addIf(len(t.SubjectAltNames) > 0, "san=%s", strings.Join(t.SubjectAltNames, ","))
	return w.String()
}

// String returns the load assignment, a line for each endpoint.
func (a *LoadAssignment) String() string {
	var b strings.Builder
	b.WriteString("endpoints " + a.Cluster + "\n")
	for _, l := range a.Localities {
		for _, e := range l.Endpoints {
			w := words{e.Address.String(), e.Workload.Name}
			w.addIf(l.Locality != Locality{}, "at=%s/%s/%s", l.Locality.Region, l.Locality.Zone, l.Locality.SubZone)
			w.addIf(l.Priority > 0, "priority=%d", l.Priority)
			w.addIf(l.Weight > 0 && l.Weight != l.sum(), "share=%d", l.Weight)
			w.addIf(e.Weight > 1, "weight=%d", e.Weight)
			w.addIf(e.Health != Healthy, "%s", [...]string{"", "unhealthy", "draining"}[e.Health])
			w.addIf(e.MTLS, "mtls")
			b.WriteString("  " + w.String() + "\n")
		}
	}
	return b.String()
}

// sum is the weight that a locality has unless something else was decided.
func (l *LocalityEndpoints) sum() uint32 {
	sum := uint32(0)
	for _, e := range l.Endpoints {
		sum += max(e.Weight, 1)
	}
	return sum
}

// String returns the name with its addresses.
func (n NameEntry) String() string {
	return "name " + n.Host + " " + joined(n.IPs, netip.Addr.String)
}

func joined[T any](list []T, text func(T) string) string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = text(v)
	}
	return strings.Join(out, ",")
}
