package compile

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/heddle-mesh/heddle/internal/host"
	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/plan"
)

// edge is the half of a gateway's view that belongs to its workload: the servers
// it runs and the routes behind them.
type edge struct {
	mesh     *model.Mesh
	labels   map[string]string
	servers  []server
	virtuals map[string][]*model.VirtualService // by gateway, oldest first
	access   access
	// proxied says that callers begin with the PROXY protocol's header.
	proxied bool
	print   model.Print
}

// server is one server of a Gateway on one port of the workload.
type server struct {
	gateway *model.Gateway
	spec    *networking.Server
	kind    serverKind
	number  uint16 // as callers know it
	port    uint16 // of the workload
}

// serverKind is how a gateway treats connections to a server.
type serverKind uint8

const (
	unserved serverKind = iota
	httpServer
	tcpServer
	passthroughServer // TLS that is not ended here, told apart by SNI
	autoServer        // sidecars' TLS, which names the cluster it is for
	httpsServer       // requests in TLS, told apart by SNI
	tlsServer         // bytes in TLS, likewise
)

// overTLS reports whether a server shares its port with others by SNI.
func (k serverKind) overTLS() bool {
	return k == passthroughServer || k == httpsServer || k == tlsServer
}

// kindOf says what becomes of a server. One that would end TLS by files, or by
// several certificates, is not served: a port that refuses is better than one that
// fails every handshake.
func kindOf(in *networking.Server) serverKind {
	switch strings.ToUpper(in.GetPort().GetProtocol()) {
	case "HTTP", "HTTP_PROXY", "HTTP2", "GRPC", "GRPC-WEB":
		return httpServer
	case "HTTPS", "TLS":
		switch in.GetTls().GetMode() {
		case networking.ServerTLSSettings_PASSTHROUGH:
			return passthroughServer
		case networking.ServerTLSSettings_AUTO_PASSTHROUGH:
			return autoServer
		}
		if !terminates(in.GetTls()) {
			return unserved
		}
		if strings.EqualFold(in.Port.Protocol, "HTTPS") {
			return httpsServer
		}
		return tlsServer
	case "TCP", "MONGO", "MYSQL", "REDIS":
		if in.Tls == nil {
			return tcpServer
		}
	}
	return unserved
}

// disableTranslationLabel keeps a Service from lending its ports to gateways.
const disableTranslationLabel = "experimental.istio.io/disable-gateway-port-translation"

func edgeOf(w *model.World, p *Proxy) *edge {
	wl := self(w, p)
	e := &edge{mesh: w.Mesh(), labels: wl.Labels, virtuals: map[string][]*model.VirtualService{}, access: accessOf(w, wl)}
	e.proxied = p.ProxyProtocol || e.mesh.ProxyProtocol
	if e.labels == nil {
		e.labels = map[string]string{}
	}
	instances := w.InstancesOf(wl)
	for _, g := range w.GatewaysFor(wl.Labels, instances) {
		for _, s := range g.Spec.Servers {
			kind := kindOf(s)
			if kind == unserved {
				continue
			}
			number := uint16(s.GetPort().GetNumber())
			for _, port := range targetPorts(g, number, instances) {
				e.servers = append(e.servers, server{g, s, kind, number, port})
			}
		}
		name := g.FullName()
		for _, v := range w.VirtualServicesOf(name) {
			if v.ExportTo.VisibleTo(p.Namespace) {
				e.virtuals[name] = append(e.virtuals[name], v)
			}
		}
	}
	e.seal()
	return e
}

// targetPorts maps a server's port, which is that of the gateway's Service, to
// ports of the workload. A gateway found by its selector takes the first Service
// that has the port, and binds the port itself if none has.
// Source: Istio, MergeGateways.
func targetPorts(g *model.Gateway, number uint16, instances []model.Instance) []uint16 {
	var out []uint16
	for _, i := range instances {
		if i.Port.Number != number {
			continue
		}
		if len(g.Services) > 0 {
			if slices.Contains(g.Services, i.Service.Host) && !slices.Contains(out, i.Target) {
				out = append(out, i.Target)
			}
		} else if i.Service.Labels[disableTranslationLabel] != "true" {
			return []uint16{i.Target}
		}
	}
	if len(out) == 0 && len(g.Services) == 0 {
		return []uint16{number}
	}
	slices.Sort(out)
	return out
}

func (e *edge) seal() {
	p := model.NewPrinter()
	p.Print(e.mesh.Print)
	p.Flag(e.proxied)
	for _, k := range sortedKeys(e.labels) {
		p.Text(k, e.labels[k])
	}
	p.Number(uint64(len(e.servers)))
	for _, s := range e.servers {
		p.Print(s.gateway.Print)
		p.Number(uint64(slices.Index(s.gateway.Spec.Servers, s.spec))<<32 | uint64(s.port))
	}
	for _, g := range sortedKeys(e.virtuals) {
		p.Text(g)
		for _, v := range e.virtuals[g] {
			p.Print(v.Print)
		}
	}
	e.access.seal(p)
	e.print = p.Sum()
}

// gatewayPlan makes a listener for each port that has a server. The kind of the
// oldest server there decides; servers of another kind on it are left out.
func (v *View) gatewayPlan() *plan.Plan {
	p := &plan.Plan{Clusters: append(v.scope.gatewayClusters(), blackHoleCluster())}
	byPort := map[uint16][]server{}
	for _, s := range v.edge.servers {
		byPort[s.port] = append(byPort[s.port], s)
	}
	for _, port := range sortedPorts(byPort) {
		servers := byPort[port]
		kind := servers[0].kind
		servers = slices.DeleteFunc(servers, func(s server) bool { return s.kind != kind && !(s.kind.overTLS() && kind.overTLS()) })
		address := netip.AddrPortFrom(anyAddress, port)
		if bind, err := netip.ParseAddr(servers[0].spec.Bind); err == nil {
			address = netip.AddrPortFrom(bind, port)
		}
		l := &plan.Listener{
			Name:      address.Addr().String() + "_" + strconv.Itoa(int(port)),
			Address:   address,
			Direction: plan.Edge,
			Bound:     true,

			ProxyProtocol: v.edge.proxied,
		}
		switch {
		case kind == httpServer:
			rc := v.gatewayRoutes(port, servers)
			p.Routes = append(p.Routes, rc)
			l.Chains = []*plan.FilterChain{{HTTP: v.edgeHTTP(address.String(), rc.Name)}}
		case kind.overTLS():
			l.Inspect.TLS = true
			for _, s := range servers {
				if s.kind != passthroughServer {
					chains, rc := v.tlsChains(s, address.String())
					l.Chains = append(l.Chains, chains...)
					if rc != nil && len(chains) > 0 {
						p.Routes = append(p.Routes, rc)
					}
					continue
				}
				l.Chains = append(l.Chains, v.gatewayChains([]server{s}, func(r rules, vs *model.VirtualService, hosts []host.Name) []*plan.FilterChain {
					return onlyFor(r.tlsChains(vs, nil), hosts)
				})...)
			}
			l.Chains = distinct(l.Chains)
		case kind == autoServer:
			l.Inspect.TLS = true
			var clusters []*plan.Cluster
			l.Chains, clusters = v.autoChains(servers)
			p.Clusters = append(p.Clusters, clusters...)
		case kind == tcpServer:
			l.Chains = v.gatewayChains(servers, func(r rules, vs *model.VirtualService, _ []host.Name) []*plan.FilterChain {
				chains, _ := r.tcpChains(vs, nil)
				return chains
			})
		}
		v.edge.access.guard(l.Chains)
		if len(l.Chains) > 0 {
			p.Listeners = append(p.Listeners, l)
		}
	}
	slices.SortFunc(p.Routes, func(a, b *plan.RouteConfig) int { return strings.Compare(a.Name, b.Name) })
	if v.scope.capture {
		p.Names = v.scope.nameTable()
	}
	return p
}

// edgeClientCert is what a gateway does with what clients say of their certificates.
func edgeClientCert(f meshconfig.ForwardClientCertDetails) plan.ClientCertMode {
	switch f {
	case meshconfig.ForwardClientCertDetails_SANITIZE:
		return plan.SanitizeClientCert
	case meshconfig.ForwardClientCertDetails_FORWARD_ONLY:
		return plan.ForwardOnlyClientCert
	case meshconfig.ForwardClientCertDetails_APPEND_FORWARD:
		return plan.AppendForwardClientCert
	case meshconfig.ForwardClientCertDetails_ALWAYS_FORWARD_ONLY:
		return plan.AlwaysForwardOnlyClientCert
	}
	return plan.SanitizeSetClientCert
}

// gatewayClusters are shared by the gateways of a namespace.
func (s *scope) gatewayClusters() []*plan.Cluster {
	s.once.Do(func() { s.part.clusters = s.serviceClusters() })
	return slices.Clip(s.part.clusters)
}

// each calls f for the VirtualServices behind a server, oldest first, with the
// hosts that both allow.
func (v *View) each(s server, f func(vs *model.VirtualService, hosts []host.Name)) {
	for _, vs := range v.edge.virtuals[s.gateway.FullName()] {
		var hosts []host.Name
		for _, h := range vs.Hosts {
			for _, allowed := range serverHosts(s, vs.Namespace) {
				if both, ok := host.Intersect(allowed, h); ok && !slices.Contains(hosts, both) {
					hosts = append(hosts, both)
				}
			}
		}
		if len(hosts) > 0 {
			f(vs, hosts)
		}
	}
}

// serverHosts returns a server's hosts as far as they are for VirtualServices of
// a namespace: "namespace/host", "./host", "*/host" or "host".
func serverHosts(s server, namespace string) []host.Name {
	var out []host.Name
	for _, h := range s.spec.Hosts {
		ns, name, ok := strings.Cut(h, "/")
		if !ok {
			ns, name = "*", h
		}
		if ns == "." {
			ns = s.gateway.Namespace
		}
		if ns == "*" || ns == namespace {
			out = append(out, host.Name(strings.ToLower(name)))
		}
	}
	return out
}

// gatewayRoutes joins the HTTP servers of a port: a virtual host for each host,
// with the routes of all VirtualServices for it, oldest first.
func (v *View) gatewayRoutes(port uint16, servers []server) *plan.RouteConfig {
	rc := &plan.RouteConfig{Name: "http." + strconv.Itoa(int(port)), IgnorePort: true}
	byHost := map[host.Name]*plan.VirtualHost{}
	secured := map[host.Name]bool{}
	at := func(h host.Name, number uint16) *plan.VirtualHost {
		vh := byHost[h]
		if vh == nil {
			vh = &plan.VirtualHost{Name: hostPort(h, number), Domains: []string{string(h)}}
			byHost[h] = vh
		}
		return vh
	}
	type source struct{ gateway, namespace, name, host string }
	done := map[source]bool{}
	for _, s := range servers {
		r := rules{scope: v.scope, port: s.number, gateway: s.gateway.FullName(), labels: v.edge.labels}
		v.each(s, func(vs *model.VirtualService, hosts []host.Name) {
			routes := r.routes(vs)
			for _, h := range hosts {
				key := source{r.gateway, vs.Namespace, vs.Name, string(h)}
				if len(routes) == 0 || done[key] {
					continue
				}
				done[key] = true
				vh := at(h, s.number)
				vh.Routes = append(vh.Routes, routes...)
				if s.spec.GetTls().GetHttpsRedirect() {
					secured[h] = true
				}
			}
		})
		if s.spec.GetTls().GetHttpsRedirect() {
			for _, h := range s.spec.Hosts {
				_, name, ok := strings.Cut(h, "/")
				if !ok {
					name = h
				}
				h := host.Name(strings.ToLower(name))
				at(h, s.number)
				secured[h] = true
			}
		}
	}
	for h, vh := range byHost {
		if secured[h] {
			// Nothing is served without TLS.
			vh.Routes = []*plan.Route{{
				Name: "https-redirect", Match: routeMatch(nil),
				Redirect: &plan.Redirect{Scheme: "https", Status: 301},
			}}
		}
		vh.Routes = catchAllLast(vh.Routes)
		rc.Hosts = append(rc.Hosts, vh)
	}
	slices.SortFunc(rc.Hosts, func(a, b *plan.VirtualHost) int { return strings.Compare(a.Name, b.Name) })
	if len(rc.Hosts) == 0 {
		// A host without routes answers 404, which is what a gateway does for any
		// request that it has no rule for.
		rc.Hosts = []*plan.VirtualHost{{Name: "blackhole:" + strconv.Itoa(int(port)), Domains: []string{"*"}}}
	}
	return rc
}

// catchAllLast moves routes that take everything behind those of younger
// VirtualServices, which would never match otherwise.
func catchAllLast(routes []*plan.Route) []*plan.Route {
	var out, last []*plan.Route
	for _, r := range routes {
		if matchesAll(&r.Match) {
			last = append(last, r)
		} else {
			out = append(out, r)
		}
	}
	return append(out, last...)
}

// gatewayChains makes the chains of servers that forward bytes.
func (v *View) gatewayChains(servers []server, chains func(rules, *model.VirtualService, []host.Name) []*plan.FilterChain) []*plan.FilterChain {
	var out []*plan.FilterChain
	for _, s := range servers {
		r := rules{scope: v.scope, port: s.number, gateway: s.gateway.FullName(), labels: v.edge.labels}
		v.each(s, func(vs *model.VirtualService, hosts []host.Name) {
			for _, c := range chains(r, vs, hosts) {
				c.TCP.PeerExchange = false // callers are outside the mesh
				out = append(out, c)
			}
		})
	}
	return distinct(out)
}

// autoChains makes a chain for each port and subset of each service that the servers
// allow, found by the name that sidecars ask for, and the clusters behind them. The
// sidecars' mutual TLS goes on to the endpoint, so these clusters add none.
// Source: Istio, builtAutoPassthroughFilterChains and buildOutboundSniDnatClusters.
func (v *View) autoChains(servers []server) (chains []*plan.FilterChain, clusters []*plan.Cluster) {
	allowed := func(d *destination) bool {
		return slices.ContainsFunc(servers, func(s server) bool {
			return slices.ContainsFunc(serverHosts(s, d.Namespace), func(h host.Name) bool {
				both, ok := host.Intersect(h, d.Host)
				return ok && both == d.Host
			})
		})
	}
	for _, d := range v.scope.services {
		if d.Host.IsWildcard() || !allowed(d) {
			continue
		}
		for _, p := range d.Ports {
			for _, c := range v.scope.clustersOf(d, p) {
				subset := strings.Split(c.Name, "|")[2]
				c.ServiceName = c.EDSName()
				c.Name, c.TLS = serverName(p.Number, subset, d.Host), nil
				if c.Discovery != plan.EDS {
					c.ServiceName = ""
				}
				clusters = append(clusters, c)
				chain := &plan.FilterChain{
					Match: plan.ChainMatch{ServerNames: []string{strings.ToLower(c.Name)}, ALPN: slices.Clone(meshAny)},
					TCP:   v.scope.tcpChain(c.Name, to(c.Name), d, p),
				}
				chain.TCP.PeerExchange = false // what is in the connection is not for us
				chains = append(chains, chain)
			}
		}
	}
	slices.SortFunc(clusters, func(a, b *plan.Cluster) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(chains, func(a, b *plan.FilterChain) int {
		return strings.Compare(a.Match.ServerNames[0], b.Match.ServerNames[0])
	})
	return distinct(chains), clusters
}

// onlyFor restricts chains to the names that a server allows.
func onlyFor(chains []*plan.FilterChain, hosts []host.Name) []*plan.FilterChain {
	var out []*plan.FilterChain
	for _, c := range chains {
		asked := c.Match.ServerNames
		if len(asked) == 0 {
			asked = []string{"*"}
		}
		var names []string
		for _, a := range asked {
			for _, h := range hosts {
				if both, ok := host.Intersect(h, host.Name(a)); ok && !slices.Contains(names, string(both)) {
					names = append(names, string(both))
				}
			}
		}
		if len(names) == 0 {
			continue
		}
		c.Match.ServerNames = serverNames(names)
		out = append(out, c)
	}
	return out
}
