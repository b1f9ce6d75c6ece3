package compile_test

import (
	"bufio"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/internal/compile"
	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/plan"
)

var simulations = flag.String("simulations", "testdata/simulation.jsonl", "recorded calls to compare with")

// simulation holds calls recorded from Istio's own tests (Apache-2.0): an
// environment, and where its configuration takes each call. A line of the file
// has one call or a list of them.
type simulation struct {
	Env struct {
		Config, Kube string
		MeshConfig   map[string]any
		Proxy        struct {
			ID, Type, ConfigNamespace string
			IPs                       []string
			Labels                    map[string]string
			Metadata                  map[string]any
		}
	}
	recorded
	Calls []recorded
}

type recorded struct {
	Test string
	Call call
	Want outcome
}

type call struct {
	Address, Path, Protocol, TLS, ALPN, Host, SNI, Mode string
	Port                                                uint16
}

type outcome struct {
	Error, Cluster, Listener, FilterChain, RouteConfig, VirtualHost, Route string
}

// TestSimulation takes recorded calls through the plan as Envoy would: listener,
// filter chain, virtual host, route, cluster. Fields that the record leaves empty
// are not compared.
func TestSimulation(t *testing.T) {
	f, err := os.Open(*simulations)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	right, all := 0, 0
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var s simulation
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			t.Fatal(err)
		}
		if s.Calls == nil {
			s.Calls = []recorded{s.recorded}
		}
		made := s.plan(t)
		for _, r := range s.Calls {
			all++
			if t.Run(r.Test, func(t *testing.T) { r.compare(t, made) }) {
				right++
			}
		}
	}
	if lines.Err() != nil || all == 0 {
		t.Fatalf("read %d calls: %v", all, lines.Err())
	}
	t.Logf("%d of %d calls go where Istio takes them", right, all)
}

// plan compiles the environment for its proxy.
func (s *simulation) plan(t *testing.T) *plan.Plan {
	t.Helper()
	var objects []*config.Object
	for name, text := range map[string]string{"config.yaml": s.Env.Config, "kube.yaml": s.Env.Kube} {
		list, faults := config.Decode(name, []byte(text))
		for _, f := range faults {
			if f.Severity == config.Error {
				t.Log(f)
			}
		}
		objects = append(objects, list...)
	}
	if s.Env.MeshConfig != nil {
		text, err := json.Marshal(s.Env.MeshConfig)
		if err != nil {
			t.Fatal(err)
		}
		key := config.Key{Kind: config.ConfigMap, Namespace: "istio-system", Name: "istio"}
		objects = append(objects, &config.Object{Key: key, Spec: &corev1.ConfigMap{Data: map[string]string{"mesh": string(text)}}})
	}
	w, _ := model.NewBuilder(model.Options{}).Apply(batchOf(objects))

	in := s.Env.Proxy
	p := &compile.Proxy{ID: in.ID, Namespace: in.ConfigNamespace, Labels: in.Labels}
	if in.Type == "router" {
		p.Class = compile.Gateway
	}
	p.DNSCapture = in.Metadata["DNS_CAPTURE"] == "true"
	for _, ip := range in.IPs {
		p.IPs = append(p.IPs, netip.MustParseAddr(ip))
	}
	made := compile.Plan(compile.ViewOf(w, p))
	if err := made.Validate(); err != nil {
		t.Errorf("the plan breaks its own rules: %v", err)
	}
	return made
}

func (r *recorded) compare(t *testing.T, made *plan.Plan) {
	got := r.Call.through(t, made)
	for _, f := range []struct{ name, want, got string }{
		{"error", r.Want.Error, got.Error},
		{"listener", r.Want.Listener, got.Listener},
		{"filter chain", r.Want.FilterChain, got.FilterChain},
		{"routes", r.Want.RouteConfig, got.RouteConfig},
		{"virtual host", r.Want.VirtualHost, got.VirtualHost},
		{"route", r.Want.Route, got.Route},
		{"cluster", short(r.Want.Cluster), short(got.Cluster)},
	} {
		if f.want != "" && f.want != f.got {
			t.Errorf("%s: got %q, want %q", f.name, f.got, f.want)
		}
	}
	if t.Failed() {
		t.Logf("outcome %+v", got)
	}
}

// short drops the cluster's domain from a name: the recorded environments have
// none, so that short names of theirs end with the namespace.
func short(name string) string { return strings.TrimSuffix(name, ".svc.cluster.local") }

// through takes the call through a plan.
func (c *call) through(t *testing.T, p *plan.Plan) (out outcome) {
	address, err := netip.ParseAddr(c.Address)
	if err != nil {
		t.Fatal(err)
	}
	l := c.listener(p, netip.AddrPortFrom(address, c.Port))
	if l == nil {
		out.Error = "no listener matched"
		return out
	}
	out.Listener = l.Name
	chain := c.chain(l, address)
	if chain == nil {
		out.Error = "no filter chains matched"
		return out
	}
	out.FilterChain = chain.Name
	encrypted := c.TLS != "plaintext" && c.TLS != ""
	switch {
	case chain.TLS == nil:
	case !encrypted:
		out.Error = "expected TLS"
		return out
	case chain.TLS.RequireCert && c.TLS != "mtls":
		out.Error = "invalid mTLS"
		return out
	default:
		encrypted = false
	}
	if chain.TCP != nil {
		out.Cluster = chain.TCP.Clusters[0].Cluster
		return out
	}
	if encrypted || c.Protocol == "tcp" {
		out.Error = "protocol error"
		return out
	}
	rc := chain.HTTP.Inline
	if rc == nil {
		i := slices.IndexFunc(p.Routes, func(r *plan.RouteConfig) bool { return r.Name == chain.HTTP.RouteName })
		rc = p.Routes[i]
	}
	out.RouteConfig = rc.Name
	vh := hostFor(rc, c.Host)
	if vh == nil {
		out.Error = "no virtual host matched"
		return out
	}
	out.VirtualHost = vh.Name
	for _, r := range vh.Routes {
		if !c.matches(&r.Match) {
			continue
		}
		out.Route = r.Name
		switch {
		case r.Redirect != nil && r.Redirect.Scheme == "https":
			out.Error = "tls required, sending 301"
		case len(r.Clusters) > 0:
			out.Cluster = r.Clusters[0].Cluster
		}
		return out
	}
	out.Error = "no route matched"
	return out
}

// listener finds who gets the connection: what is bound, and from there the
// unbound one that the address suits best.
func (c *call) listener(p *plan.Plan, to netip.AddrPort) *plan.Listener {
	by := func(ok func(*plan.Listener) bool) *plan.Listener {
		if i := slices.IndexFunc(p.Listeners, ok); i >= 0 {
			return p.Listeners[i]
		}
		return nil
	}
	if c.Mode == "inbound" {
		return by(func(l *plan.Listener) bool { return l.Name == "virtualInbound" })
	}
	for _, at := range []netip.AddrPort{to, netip.AddrPortFrom(netip.IPv4Unspecified(), to.Port())} {
		if l := by(func(l *plan.Listener) bool { return l.Address == at }); l != nil {
			return l
		}
	}
	return by(func(l *plan.Listener) bool { return l.Name == "virtualOutbound" })
}

// chain narrows the chains down criterion by criterion; there is no way back to
// a chain that was dropped. Source: Envoy, FilterChainMatch.
func (c *call) chain(l *plan.Listener, to netip.Addr) *plan.FilterChain {
	transport, alpn := plan.RawBuffer, ""
	if c.TLS != "plaintext" && c.TLS != "" {
		alpn = c.ALPN
		if l.Inspect.TLS {
			transport = plan.TLSTransport
		}
	} else if l.Inspect.HTTP {
		alpn = map[string]string{"http": "http/1.1", "http2": "h2c"}[c.Protocol]
	}
	best := func(in []*plan.FilterChain, rank func(*plan.ChainMatch) int) (out []*plan.FilterChain) {
		top := 0
		for _, f := range in {
			switch r := rank(&f.Match); {
			case r > top:
				top, out = r, []*plan.FilterChain{f}
			case r == top && r > 0:
				out = append(out, f)
			}
		}
		return out
	}
	// A rank of 0 is no match, and 1 a chain without the criterion.
	chains := best(l.Chains, func(m *plan.ChainMatch) int {
		return map[uint16]int{0: 1, c.Port: 2}[m.DestinationPort]
	})
	chains = best(chains, func(m *plan.ChainMatch) int {
		rank := 0
		for _, p := range m.Prefixes {
			if p.Contains(to) {
				rank = max(rank, 2+p.Bits())
			}
		}
		if len(m.Prefixes) == 0 {
			rank = 1
		}
		return rank
	})
	chains = best(chains, func(m *plan.ChainMatch) int {
		rank := 0
		for _, n := range m.ServerNames {
			if n == c.SNI {
				return 1 << 20
			}
			if suffix, ok := strings.CutPrefix(n, "*"); ok && strings.HasSuffix(c.SNI, suffix) {
				rank = max(rank, 1+len(n))
			}
		}
		if len(m.ServerNames) == 0 {
			rank = 1
		}
		return rank
	})
	chains = best(chains, func(m *plan.ChainMatch) int {
		return map[plan.Transport]int{plan.AnyTransport: 1, transport: 2}[m.Transport]
	})
	chains = best(chains, func(m *plan.ChainMatch) int {
		switch {
		case len(m.ALPN) == 0:
			return 1
		case slices.Contains(m.ALPN, alpn):
			return 2
		}
		return 0
	})
	if len(chains) == 0 {
		return l.Default
	}
	return chains[0]
}

// hostFor finds the virtual host: by an exact domain, the longest suffix, the
// longest prefix, or "*".
func hostFor(rc *plan.RouteConfig, authority string) *plan.VirtualHost {
	var found *plan.VirtualHost
	top := 0
	for _, vh := range rc.Hosts {
		for _, d := range vh.Domains {
			rank := 0
			switch {
			case d == authority:
				rank = 1 << 20
			case d == "*":
				rank = 1
			case strings.HasPrefix(d, "*") && strings.HasSuffix(authority, d[1:]):
				rank = 1<<10 + len(d)
			case strings.HasSuffix(d, "*") && strings.HasPrefix(authority, d[:len(d)-1]):
				rank = 1 + len(d)
			}
			if rank > top {
				top, found = rank, vh
			}
		}
	}
	return found
}

// matches is for the conditions that the recorded environments use.
func (c *call) matches(m *plan.RouteMatch) bool {
	if len(m.Headers) > 0 || len(m.Query) > 0 {
		return false
	}
	switch m.Path.Kind {
	case plan.PathExact:
		return c.Path == m.Path.Value
	case plan.PathPrefix:
		return strings.HasPrefix(c.Path, m.Path.Value)
	}
	return false
}
