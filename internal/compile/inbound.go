package compile

import (
	"net/netip"
	"slices"
	"strconv"

	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/plan"
)

// inbound is the half of a sidecar's view that belongs to its own workload: the
// ports it serves and what it demands of callers.
type inbound struct {
	mesh   *model.Mesh
	local  netip.Addr // source of connections to the workload
	ports  []served   // by target
	mtls   model.MTLS
	access access
	print  model.Print
}

// served is one port of the workload.
type served struct {
	host            string
	name, namespace string
	port            *model.Port
	target          uint16
	pool            pool
}

func inboundOf(w *model.World, p *Proxy, s *scope) *inbound {
	wl := self(w, p)
	in := &inbound{
		mesh:   w.Mesh(),
		local:  loopback(wl.IPs),
		mtls:   w.MTLS(wl.Namespace, wl.Labels),
		access: accessOf(w, wl),
	}
	for _, i := range w.InstancesOf(wl) {
		if slices.ContainsFunc(in.ports, func(s served) bool { return s.target == i.Target }) {
			continue // an older service names the port
		}
		own := served{string(i.Service.Host), i.Service.Name, i.Service.Namespace, i.Port, i.Target, pool{}}
		if d := s.byHost[i.Service.Host]; d != nil {
			// What callers may have open at once, the server holds to as well.
			own.pool = poolOf(policyFor(d.rule, nil, i.Port), 0)
		}
		in.ports = append(in.ports, own)
	}
	slices.SortFunc(in.ports, func(a, b served) int { return int(a.target) - int(b.target) })
	in.seal()
	return in
}

func (in *inbound) seal() {
	p := model.NewPrinter()
	p.Print(in.mesh.Print)
	p.Text(in.local.String())
	p.Number(uint64(in.mtls.Mode))
	for _, port := range sortedPorts(in.mtls.Ports) {
		p.Number(uint64(port)<<8 | uint64(in.mtls.Ports[port]))
	}
	p.Number(uint64(len(in.ports)))
	for _, s := range in.ports {
		p.Text(s.host, s.name, s.namespace, s.port.Name)
		p.Number(uint64(s.port.Number)<<32 | uint64(s.target)<<8 | uint64(s.port.Protocol))
		s.pool.print(p)
	}
	in.access.seal(p)
	in.print = p.Sum()
}

// listener makes virtualInbound: for each port the chains that its policy
// allows, and at the end those for ports that no service names, which obey the
// workload's policy too.
func (in *inbound) listener() *plan.Listener {
	l := &plan.Listener{
		Name:           "virtualInbound",
		Address:        netip.AddrPortFrom(anyAddress, inboundPort),
		Direction:      plan.Inbound,
		Bound:          true,
		UseOriginalDst: true,
		Inspect:        plan.Inspect{TLS: true, HTTP: true, Timeout: in.mesh.ProtocolDetectionTimeout},
		Chains: []*plan.FilterChain{{
			Name:  "virtualInbound-blackhole",
			Match: plan.ChainMatch{DestinationPort: inboundPort},
			TCP:   &plan.TCPChain{StatPrefix: blackHoleName, Clusters: to(blackHoleName)},
		}},
	}
	for _, s := range in.ports {
		h, mode := speaks(s.port.Protocol), in.mtls.Port(s.target)
		l.Chains = append(l.Chains, in.chains(s.target, h, mode, &s)...)
		if h != asAuto {
			// Nothing depends on whether the bytes are HTTP.
			if mode == model.Disable {
				l.Inspect.SkipPorts = append(l.Inspect.SkipPorts, s.target)
			} else {
				l.Inspect.SkipHTTPPorts = append(l.Inspect.SkipHTTPPorts, s.target)
			}
		}
	}
	for _, port := range sortedPorts(in.mtls.Ports) {
		if !slices.ContainsFunc(in.ports, func(s served) bool { return s.target == port }) {
			l.Chains = append(l.Chains, in.chains(port, asAuto, in.mtls.Ports[port], nil)...)
		}
	}
	l.Chains = append(l.Chains, in.chains(0, asAuto, in.mtls.Mode, nil)...)
	in.access.guard(l.Chains[1:])
	return l
}

// chains makes the chains of one port of the workload; s is nil for a port that
// no service names, and port 0 means all of these.
func (in *inbound) chains(port uint16, h handling, mode model.MTLSMode, s *served) []*plan.FilterChain {
	var out []*plan.FilterChain
	for _, o := range inboundOptions(h, mode) {
		c := &plan.FilterChain{
			Name:  "0.0.0.0_" + strconv.Itoa(int(port)),
			Match: plan.ChainMatch{DestinationPort: port, Transport: o.transport, ALPN: o.alpn},
		}
		if o.terminate {
			c.TLS = in.serverTLS(o.http)
		}
		cluster := inboundPassthroughName
		if s != nil {
			cluster = inboundName(port)
		}
		if o.http {
			c.HTTP = in.httpChain(cluster, s)
			if s == nil {
				c.Name = "virtualInbound-catchall-http"
			}
		} else {
			c.TCP = &plan.TCPChain{
				StatPrefix:   cluster,
				Clusters:     to(cluster),
				AccessLog:    in.mesh.AccessLogFile,
				Metrics:      true,
				PeerExchange: o.terminate,
			}
			if s == nil {
				c.Name = "virtualInbound"
			}
		}
		out = append(out, c)
	}
	return out
}

// httpChain handles requests to the workload: all go to it, whatever they ask
// for.
func (in *inbound) httpChain(cluster string, s *served) *plan.HTTPChain {
	name, port, operation := cluster, uint16(0), ":0/*"
	route := &plan.Route{
		Name:     "default",
		Match:    routeMatch(nil),
		Clusters: to(cluster),
		// The connection may have gone stale before the request was sent on it.
		// Source: Istio, the inbound default policy; not for gRPC.
		Retry: &plan.Retry{On: []string{"reset-before-request"}, Attempts: 2},
	}
	if s != nil {
		port, operation = s.port.Number, s.host+":"+strconv.Itoa(int(s.port.Number))+"/*"
		if s.port.Protocol == model.GRPC {
			route.Retry = nil
		}
	}
	route.Decorator = operation
	return &plan.HTTPChain{
		StatPrefix: "inbound_0.0.0.0_" + strconv.Itoa(int(port)),
		Inline: &plan.RouteConfig{Name: name, Hosts: []*plan.VirtualHost{{
			Name:    "inbound|http|" + strconv.Itoa(int(port)),
			Domains: []string{"*"},
			Routes:  []*plan.Route{route},
		}}},
		ForwardClientCert: plan.AppendForwardClientCert,
		AccessLog:         in.mesh.AccessLogFile,
		Metrics:           true,
	}
}

// clusters makes one for each port of the workload, and one for the others.
func (in *inbound) clusters() []*plan.Cluster {
	var out []*plan.Cluster
	for _, s := range in.ports {
		c := in.cluster(inboundName(s.target))
		s.pool.apply(c)
		c.Service = plan.ServiceRef{Host: s.host, Name: s.name, Namespace: s.namespace}
		switch {
		case isHTTP2(s.port.Protocol):
			c.Protocol = plan.HTTP2
		case s.port.Protocol != model.Auto:
			c.Protocol = plan.HTTP1
		}
		out = append(out, c)
	}
	return append(out, in.cluster(inboundPassthroughName))
}

// cluster reaches the workload at the address that the caller dialled, from a
// source address by which redirection lets the connection pass. What the workload
// speaks is what it is spoken to in, unless a service says it.
func (in *inbound) cluster(name string) *plan.Cluster {
	return &plan.Cluster{
		Name:           name,
		Discovery:      plan.OriginalDst,
		Balancing:      plan.ClusterProvided,
		ConnectTimeout: in.mesh.ConnectTimeout,
		BindAddress:    in.local,
		Protocol:       plan.ClientProtocol,
	}
}

func inboundName(port uint16) string { return "inbound|" + strconv.Itoa(int(port)) + "||" }
