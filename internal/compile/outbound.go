package compile

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/heddle-mesh/heddle/internal/host"
	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/plan"
)

// Ports of capture. Source: Istio's conventions, "Ports used by Istio".
const (
	outboundPort = 15001
	inboundPort  = 15006
)

const (
	passthroughName        = "PassthroughCluster"
	blackHoleName          = "BlackHoleCluster"
	inboundPassthroughName = "InboundPassthroughCluster"
)

var anyAddress = netip.IPv4Unspecified()

// handling is how a proxy treats a port.
type handling uint8

const (
	asTCP  handling = iota // bytes
	asTLS                  // bytes, told apart by SNI
	asHTTP                 // requests
	asAuto                 // whichever the first bytes show
)

// speaks says how a proxy treats a protocol.
func speaks(p model.Protocol) handling {
	switch p {
	case model.HTTP, model.HTTP2, model.GRPC:
		return asHTTP
	case model.TLS:
		return asTLS
	case model.Auto:
		return asAuto
	}
	return asTCP
}

// handling returns how the scope's callers treat a port. gRPC clients with xDS
// of their own speak HTTP/2 on every port they ask for.
func (s *scope) handling(p *model.Port) handling {
	if s.class == GRPC && p.Protocol != model.TCP && p.Protocol != model.TLS {
		return asHTTP
	}
	return speaks(p.Protocol)
}

// requests reports whether requests on a port are routed.
func (h handling) requests() bool { return h == asHTTP || h == asAuto }

// httpALPN are what the HTTP look finds on plain text.
var httpALPN = []string{"http/1.1", "h2c"}

// binding collects what shares an address and port.
type binding struct {
	address netip.AddrPort
	http    *plan.HTTPChain // one for all HTTP services: virtual hosts tell them apart
	chains  []*plan.FilterChain
}

// outboundListeners makes virtualOutbound and the listeners that it hands
// connections to: one for each port with HTTP services, and one for each address
// and port of the others.
func (s *scope) outboundListeners() []*plan.Listener {
	bindings := map[netip.AddrPort]*binding{}
	var order []netip.AddrPort
	at := func(a netip.Addr, port uint16) *binding {
		k := netip.AddrPortFrom(a, port)
		b := bindings[k]
		if b == nil {
			b = &binding{address: k}
			bindings[k] = b
			order = append(order, k)
		}
		return b
	}
	for _, d := range s.services {
		for _, p := range d.Ports {
			h := s.handling(p)
			if h == asHTTP {
				at(anyAddress, p.Number).routed(s, strconv.Itoa(int(p.Number)))
				continue
			}
			for _, where := range s.placesOf(d, p) {
				b := at(where.address, p.Number)
				if h == asAuto {
					name := strconv.Itoa(int(p.Number))
					if where.address != anyAddress {
						name = string(d.Host) + ":" + name
					}
					b.routed(s, name)
				}
				for _, c := range s.byteChains(d, p, h, where) {
					b.add(c)
				}
			}
		}
	}
	out := []*plan.Listener{{
		Name:           "virtualOutbound",
		Address:        netip.AddrPortFrom(anyAddress, outboundPort),
		Direction:      plan.Outbound,
		Bound:          true,
		UseOriginalDst: true,
		Chains: []*plan.FilterChain{{
			// A connection to the capture port itself would go round for ever.
			Name:  "virtualOutbound-trafficloop",
			Match: plan.ChainMatch{DestinationPort: outboundPort},
			TCP:   &plan.TCPChain{StatPrefix: blackHoleName, Clusters: to(blackHoleName)},
		}},
		Default: s.fallthroughChain("virtualOutbound-catchall-tcp"),
	}}
	slices.SortFunc(order, netip.AddrPort.Compare)
	for _, k := range order {
		out = append(out, bindings[k].listener(s))
	}
	return out
}

// place is an address that callers of a service dial.
type place struct {
	address  netip.Addr
	prefixes []netip.Prefix // only these, if the address stands for any
}

// placesOf returns where callers reach a port that is not HTTP: the virtual
// addresses; without any, the endpoints of a service that its callers resolve;
// and otherwise whatever address there is on that port.
func (s *scope) placesOf(d *destination, p *model.Port) []place {
	var out []place
	if !d.Automatic || s.capture {
		for _, a := range d.Addresses {
			out = append(out, place{address: a})
		}
	}
	if len(d.Prefixes) > 0 {
		out = append(out, place{anyAddress, d.Prefixes})
	}
	if len(out) > 0 {
		return out
	}
	if d.Resolution == model.ByClient {
		for _, e := range d.endpoints.ByPort[p.Number] {
			if e.Address.IsValid() {
				out = append(out, place{address: e.Address})
			}
		}
	}
	// Without endpoints such a service cannot be reached: a listener for any
	// address would only take connections that are meant for others.
	if len(out) > 0 || d.Kubernetes || d.Selector != nil {
		return out
	}
	return []place{{address: anyAddress}}
}

// routed adds HTTP to a binding.
func (b *binding) routed(s *scope, route string) {
	if b.http == nil {
		b.http = &plan.HTTPChain{
			StatPrefix: "outbound_" + b.address.String(),
			RouteName:  route,
			AccessLog:  s.mesh.AccessLogFile,
			Metrics:    true,
		}
	}
}

// add takes a chain for those connections that no older one takes: two chains of
// one listener may not match the same.
func (b *binding) add(c *plan.FilterChain) {
	for _, have := range b.chains {
		h, m := &have.Match, c.Match
		if h.DestinationPort != m.DestinationPort || h.Transport != m.Transport || !slices.Equal(h.ALPN, m.ALPN) {
			continue
		}
		if slices.Equal(h.Prefixes, m.Prefixes) && len(h.ServerNames) > 0 && len(m.ServerNames) > 0 {
			m.ServerNames = without(m.ServerNames, h.ServerNames)
			if len(m.ServerNames) == 0 {
				return
			}
		} else if slices.Equal(h.ServerNames, m.ServerNames) && len(h.Prefixes) > 0 && len(m.Prefixes) > 0 {
			m.Prefixes = without(m.Prefixes, h.Prefixes)
			if len(m.Prefixes) == 0 {
				return
			}
		} else if sameMatch(h, &m) {
			return
		}
		c.Match = m
	}
	b.chains = append(b.chains, c)
}

func without[T comparable](list, drop []T) []T {
	return slices.DeleteFunc(slices.Clone(list), func(v T) bool { return slices.Contains(drop, v) })
}

func sameMatch(a, b *plan.ChainMatch) bool {
	return a.DestinationPort == b.DestinationPort && a.Transport == b.Transport &&
		slices.Equal(a.Prefixes, b.Prefixes) && slices.Equal(a.ServerNames, b.ServerNames) && slices.Equal(a.ALPN, b.ALPN)
}

func (b *binding) listener(s *scope) *plan.Listener {
	l := &plan.Listener{
		Name:      b.address.Addr().String() + "_" + strconv.Itoa(int(b.address.Port())),
		Address:   b.address,
		Direction: plan.Outbound,
		Chains:    b.chains,
	}
	if b.http != nil {
		l.Inspect.TLS, l.Inspect.HTTP = true, true
		l.Chains = append([]*plan.FilterChain{{
			Match: plan.ChainMatch{Transport: plan.RawBuffer, ALPN: httpALPN},
			HTTP:  b.http,
		}}, l.Chains...)
	}
	for i, c := range l.Chains {
		l.Inspect.TLS = l.Inspect.TLS || len(c.Match.ServerNames) > 0
		if b.http != nil && sameMatch(&c.Match, &plan.ChainMatch{}) {
			// As the default, not as a chain: once a chain names the transport,
			// Envoy never gets to one that does not.
			l.Default = c
			l.Chains = slices.Delete(slices.Clone(l.Chains), i, i+1)
			break
		}
	}
	if l.Inspect.TLS || l.Inspect.HTTP {
		l.Inspect.Timeout = s.mesh.ProtocolDetectionTimeout
	}
	catchall := slices.ContainsFunc(b.chains, func(c *plan.FilterChain) bool { return sameMatch(&c.Match, &plan.ChainMatch{}) })
	if b.address.Addr() == anyAddress && !catchall {
		l.Default = s.fallthroughChain("PassthroughFilterChain")
	}
	return l
}

// fallthroughChain is for connections to what the mesh does not know.
func (s *scope) fallthroughChain(name string) *plan.FilterChain {
	cluster := passthroughName
	if s.mesh.RegistryOnly {
		cluster = blackHoleName
	}
	return &plan.FilterChain{Name: name, TCP: &plan.TCPChain{
		StatPrefix: cluster,
		Clusters:   to(cluster),
		AccessLog:  s.mesh.AccessLogFile,
		Metrics:    true,
	}}
}

// byteChains makes the chains of a TCP or TLS port at one place: those of the
// VirtualServices for its host, and else one to the service.
func (s *scope) byteChains(d *destination, p *model.Port, h handling, where place) []*plan.FilterChain {
	var out []*plan.FilterChain
	at := rules{scope: s, port: p.Number, gateway: model.MeshGateway}
	if h == asTLS {
		for _, v := range s.virtuals.forHost(d.Host) {
			out = append(out, at.tlsChains(v, where.prefixes)...)
		}
		out = distinct(out)
		if len(out) > 0 {
			return out
		}
	} else {
		for _, v := range s.virtuals.forHost(d.Host) {
			chains, final := at.tcpChains(v, where.prefixes)
			out = append(out, chains...)
			if final {
				return distinct(out)
			}
		}
	}
	c := &plan.FilterChain{Match: plan.ChainMatch{Prefixes: where.prefixes}}
	if h == asTLS && where.address == anyAddress {
		// Nothing but the name tells such services apart.
		c.Match.ServerNames = []string{string(d.Host)}
		if d.Host == "*" {
			c.Match.ServerNames = nil
		}
	}
	name := clusterName(p.Number, "", d.Host)
	c.TCP = s.tcpChain(name, to(name), d, p)
	return distinct(append(out, c))
}

func distinct(chains []*plan.FilterChain) []*plan.FilterChain {
	var b binding
	for _, c := range chains {
		b.add(c)
	}
	return b.chains
}

// tcpChain forwards bytes; the idle timeout is that of the first destination.
func (s *scope) tcpChain(stat string, clusters []plan.WeightedCluster, d *destination, p *model.Port) *plan.TCPChain {
	c := &plan.TCPChain{
		StatPrefix:   stat,
		Clusters:     clusters,
		AccessLog:    s.mesh.AccessLogFile,
		Metrics:      true,
		PeerExchange: true,
	}
	if d != nil && p != nil {
		if t := policyFor(d.rule, nil, p).GetConnectionPool().GetTcp().GetIdleTimeout(); t != nil {
			c.IdleTimeout = t.AsDuration()
		}
	}
	return c
}

// to returns the whole of a split.
func to(cluster string) []plan.WeightedCluster {
	return []plan.WeightedCluster{{Cluster: cluster}}
}

// clusterName returns the name of an outbound cluster.
func clusterName(port uint16, subset string, h host.Name) string {
	return "outbound|" + strconv.Itoa(int(port)) + "|" + subset + "|" + string(h)
}

// serverName returns the name that a cluster's TLS connections ask for.
func serverName(port uint16, subset string, h host.Name) string {
	return "outbound_." + strconv.Itoa(int(port)) + "_." + subset + "_." + string(h)
}

// portOf returns the port of a listener, or of a route named for one.
func portOf(name string) uint16 {
	if i := strings.LastIndexByte(name, ':'); i >= 0 {
		name = name[i+1:]
	}
	n, _ := strconv.ParseUint(name, 10, 16)
	return uint16(n)
}
