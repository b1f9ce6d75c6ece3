package plan

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

// TestTextShowsWhatIsSet holds the forms that goldens of other packages may not
// happen to have.
func TestTextShowsWhatIsSet(t *testing.T) {
	for want, v := range map[string]interface{ String() string }{
		"/a/** h=*x h=*y* -> no forwarding": &Route{Match: RouteMatch{
			Path:    PathMatch{PathSegmentPrefix, "/a"},
			Headers: []HeaderMatch{{Name: "h", Kind: StringSuffix, Value: "x"}, {Name: "h", Kind: StringContains, Value: "y"}},
		}},
		"/x ?q~a+ (n) -> c timeout=1s retry=3 on=reset codes=500,503 per-try=250ms same-host": &Route{
			Name: "n", Clusters: []WeightedCluster{{Cluster: "c"}}, Timeout: time.Second,
			Match: RouteMatch{Path: PathMatch{PathExact, "/x"}, Query: []QueryMatch{{"q", StringRegex, "a+"}}},
			Retry: &Retry{On: []string{"reset"}, Codes: []uint32{500, 503}, Attempts: 3, PerTry: 250 * time.Millisecond},
		},
		"terminate:kubernetes://cert,roots,client-cert,td": &ServerTLS{Certificate: "kubernetes://cert", Roots: "roots", RequireCert: true, TrustDomains: []string{"td"}},
		"mtls:a|b":               &ServerTLS{Certificate: "default", Roots: "ROOTCA", RequireCert: true, TrustDomains: []string{"a", "b"}},
		"tls=auto cert= roots=r": &ClientTLS{Auto: true, Roots: "r"},
		"port=80 dst=10.0.0.0/8 sni=a,b tls alpn=h2": ChainMatch{
			DestinationPort: 80, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
			ServerNames: []string{"a", "b"}, Transport: TLSTransport, ALPN: []string{"h2"},
		},
		"tls,http,timeout:1s,-80,-http:81": Inspect{TLS: true, HTTP: true, Timeout: time.Second, SkipPorts: []uint16{80}, SkipHTTPPorts: []uint16{81}},
		"endpoints e\n  10.0.0.1:80 w at=r/z/ priority=1 weight=2 unhealthy mtls\n": &LoadAssignment{Cluster: "e", Localities: []LocalityEndpoints{{
			Locality: Locality{Region: "r", Zone: "z"}, Priority: 1,
			Endpoints: []Endpoint{{Address: netip.MustParseAddrPort("10.0.0.1:80"), Health: Unhealthy, Weight: 2, MTLS: true, Workload: Workload{Name: "w"}}},
		}}},
	} {
		if got := v.String(); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func TestAnythingThatDiffersShows(t *testing.T) {
	base := sound().String()
	for name, edit := range map[string]func(*Plan){
		"bound":       func(p *Plan) { p.Listeners[0].Bound = true },
		"direction":   func(p *Plan) { p.Listeners[0].Direction = Edge },
		"original":    func(p *Plan) { p.Listeners[0].UseOriginalDst = true },
		"default":     func(p *Plan) { p.Listeners[0].Default = nil },
		"exchange":    func(p *Plan) { p.Listeners[0].Default.TCP.PeerExchange = true },
		"idle":        func(p *Plan) { p.Listeners[0].Default.TCP.IdleTimeout = 1 },
		"metrics":     func(p *Plan) { p.Listeners[0].Default.TCP.Metrics = true },
		"xfcc":        func(p *Plan) { p.Listeners[0].Chains[0].HTTP.ForwardClientCert = ForwardOnlyClientCert },
		"log":         func(p *Plan) { p.Listeners[0].Chains[0].HTTP.AccessLog = "f" },
		"ignore port": func(p *Plan) { p.Routes[0].IgnorePort = true },
		"rewrite":     func(p *Plan) { p.Routes[0].Hosts[0].Routes[0].PrefixRewrite = "/" },
		"authority":   func(p *Plan) { p.Routes[0].Hosts[0].Routes[0].HostRewrite = "h" },
		"invert":      func(p *Plan) { p.Routes[0].Hosts[0].Routes[0].Match.Headers[0].Invert = true },
		"max":         func(p *Plan) { p.Clusters[0].MaxRequests = 1 },
		"bind":        func(p *Plan) { p.Clusters[0].BindAddress = netip.MustParseAddr("127.0.0.6") },
		"balancing":   func(p *Plan) { p.Clusters[0].Balancing = Random },
		"name":        func(p *Plan) { p.Names.Names[0].IPs = []netip.Addr{netip.MustParseAddr("10.0.0.1")} },
	} {
		p := sound()
		edit(p)
		if p.String() == base {
			t.Errorf("%s does not show", name)
		}
	}
	if !strings.HasPrefix(base, "listener ") {
		t.Errorf("the text begins with %.20q", base)
	}
}
