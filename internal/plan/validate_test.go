package plan

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

// sound returns a plan with something of everything, and no fault.
func sound() *Plan {
	at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.IPv4Unspecified(), port) }
	forward := func(c string) []WeightedCluster { return []WeightedCluster{{Cluster: c}} }
	return &Plan{
		Listeners: []*Listener{
			{
				Name: "0.0.0.0_80", Address: at(80), Inspect: Inspect{TLS: true, HTTP: true},
				Chains: []*FilterChain{
					{Match: ChainMatch{Transport: RawBuffer, ALPN: []string{"http/1.1"}}, HTTP: &HTTPChain{RouteName: "80"}},
					{Match: ChainMatch{ServerNames: []string{"a"}}, TCP: &TCPChain{Clusters: forward("c")}},
					{Match: ChainMatch{ServerNames: []string{"b"}}, TCP: &TCPChain{Clusters: forward("c")}},
				},
				Default: &FilterChain{TCP: &TCPChain{Clusters: forward("c")}},
			},
			{Name: "a:80", API: &HTTPChain{RouteName: "80"}},
			{Name: "b:80", API: &HTTPChain{RouteName: "80"}},
		},
		Routes: []*RouteConfig{{Name: "80", Hosts: []*VirtualHost{
			{Name: "a", Domains: []string{"a"}, Routes: []*Route{
				{Clusters: []WeightedCluster{{Cluster: "c", Weight: 1}, {Cluster: "d", Weight: 2}}, Match: RouteMatch{
					Path:    PathMatch{PathRegex, "/.*"},
					Headers: []HeaderMatch{{Name: "h", Kind: StringRegex, Value: "a|b"}},
					Query:   []QueryMatch{{Name: "q", Kind: StringRegex, Value: "a+"}},
				}},
				{Redirect: &Redirect{Status: 301}},
				{Direct: &DirectResponse{Status: 200}},
				{},
			}},
			{Name: "b", Domains: []string{"*"}},
		}}},
		Clusters: []*Cluster{
			{Name: "c", ConnectTimeout: time.Second},
			{Name: "d", ConnectTimeout: time.Second, Discovery: OriginalDst, Balancing: ClusterProvided},
			{Name: "e", ConnectTimeout: time.Second, Discovery: LogicalDNS, Static: []StaticEndpoint{{"x", 80}}},
		},
		Names: &NameTable{Names: []NameEntry{{Host: "a"}, {Host: "b"}}},
	}
}

func TestASoundPlanIsValid(t *testing.T) {
	if err := sound().Validate(); err != nil {
		t.Error(err)
	}
}

func TestFaultsAreFound(t *testing.T) {
	for want, spoil := range map[string]func(*Plan){
		"listener b:80: the name is taken":                               func(p *Plan) { p.Listeners = append(p.Listeners, p.Listeners[2]) },
		"listener twin: 0.0.0.0_80 has the same address":                 func(p *Plan) { l := *p.Listeners[0]; l.Name = "twin"; p.Listeners = append(p.Listeners, &l) },
		"listener a:80: there are no routes 81":                          func(p *Plan) { p.Listeners[1].API.RouteName = "81" },
		"listener a:80: an API listener accepts no connections":          func(p *Plan) { p.Listeners[1].Bound = true },
		"listener 0.0.0.0_80: it has no chains":                          func(p *Plan) { p.Listeners[0].Chains, p.Listeners[0].Default = nil, nil },
		"chain 3 needs one of HTTP and TCP":                              func(p *Plan) { p.Listeners[0].Default.TCP = nil },
		"chain 0 needs one of a route name and inline routes":            func(p *Plan) { p.Listeners[0].Chains[0].HTTP.RouteName = "" },
		"chain 1: there are no clusters":                                 func(p *Plan) { p.Listeners[0].Chains[1].TCP.Clusters = nil },
		"chain 1 depends on the TLS look":                                func(p *Plan) { p.Listeners[0].Inspect.TLS = false },
		"chain 0 depends on the HTTP look":                               func(p *Plan) { p.Listeners[0].Inspect.HTTP = false },
		"chains 1 and 2 match the same connections":                      func(p *Plan) { p.Listeners[0].Chains[2].Match.ServerNames = []string{"c", "a"} },
		"a route configuration has no name":                              func(p *Plan) { p.Routes = append(p.Routes, &RouteConfig{}) },
		"routes 80: the name is taken":                                   func(p *Plan) { p.Routes = append(p.Routes, &RouteConfig{Name: "80"}) },
		"routes 80: there are two hosts a":                               func(p *Plan) { p.Routes[0].Hosts[1].Name = "a" },
		"host b has no domains":                                          func(p *Plan) { p.Routes[0].Hosts[1].Domains = nil },
		"hosts a and b both have the domain a":                           func(p *Plan) { p.Routes[0].Hosts[1].Domains = []string{"a"} },
		"host a, route 0: the weights add up to 0":                       func(p *Plan) { r := p.Routes[0].Hosts[0].Routes[0]; r.Clusters[0].Weight, r.Clusters[1].Weight = 0, 0 },
		"host a, route 0: there are several actions":                     func(p *Plan) { p.Routes[0].Hosts[0].Routes[0].Direct = &DirectResponse{Status: 200} },
		"host a, route 1: a redirect replaces the path or its prefix":    func(p *Plan) { r := p.Routes[0].Hosts[0].Routes[1].Redirect; r.Path, r.PrefixRewrite = "/a", "/b" },
		"host a, route 2: the status 100 is none of an answer":           func(p *Plan) { p.Routes[0].Hosts[0].Routes[2].Direct.Status = 100 },
		"host a, route 0: error parsing regexp: missing closing ]: `[a`": func(p *Plan) { p.Routes[0].Hosts[0].Routes[0].Match.Path.Value = "[a" },
		"host a, route 0: error parsing regexp: missing closing ): `(h`": func(p *Plan) { p.Routes[0].Hosts[0].Routes[0].Match.Headers[0].Value = "(h" },
		"host a, route 0: error parsing regexp: missing argument to":     func(p *Plan) { p.Routes[0].Hosts[0].Routes[0].Match.Query[0].Value = "*" },
		"host a, route 0: a header condition has no name":                func(p *Plan) { p.Routes[0].Hosts[0].Routes[0].Match.Headers[0].Name = "" },
		"cluster d: the name is taken":                                   func(p *Plan) { p.Clusters[0].Name = "d" },
		"cluster : it has no name":                                       func(p *Plan) { p.Clusters[0].Name = "" },
		"cluster c: it has no connect timeout":                           func(p *Plan) { p.Clusters[0].ConnectTimeout = 0 },
		"cluster d: original-dst does not go with least-request":         func(p *Plan) { p.Clusters[1].Balancing = LeastRequest },
		"cluster c: eds finds its own endpoints":                         func(p *Plan) { p.Clusters[0].Static = []StaticEndpoint{{"x", 1}} },
		"cluster e: logical-dns is for one name":                         func(p *Plan) { p.Clusters[2].Static = []StaticEndpoint{{"x", 1}, {"y", 1}} },
		"cluster e: the endpoint x:0 is not complete":                    func(p *Plan) { p.Clusters[2].Static[0].Port = 0 },
		"cluster e: only eds has a service name":                         func(p *Plan) { p.Clusters[2].ServiceName = "s" },
		"names are not sorted, or one is there twice":                    func(p *Plan) { p.Names.Names[1].Host = "a" },
		"listener 0.0.0.0_80: chain 0 needs one of HTTP and TCP":         func(p *Plan) { c := p.Listeners[0].Chains; c[0].TCP = c[1].TCP },
		"a cluster has no name":                                          func(p *Plan) { p.Listeners[0].Default.TCP.Clusters[0].Cluster = "" },
	} {
		p := sound()
		spoil(p)
		if err := p.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func TestAllFaultsAreReportedTogether(t *testing.T) {
	p := sound()
	p.Clusters[0].ConnectTimeout = 0
	p.Routes[0].Hosts[1].Domains = nil
	p.Listeners[0].Inspect.TLS = false
	err := p.Validate()
	for _, want := range []string{"cluster c", "host b", "chain 1"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in %v", want, err)
		}
	}
}
