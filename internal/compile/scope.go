package compile

import (
	"slices"
	"strings"
	"sync"

	"github.com/heddle-mesh/heddle/internal/host"
	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/plan"
)

// scope is the outbound half of a view: what workloads of one namespace may
// call, and by which rules. All proxies of the namespace share it, unless a rule
// chooses callers by label.
type scope struct {
	scopeKey
	domain string // of the cluster
	labels map[string]string
	mesh   *model.Mesh

	services []*destination // oldest first: who comes first wins a conflict
	byHost   map[host.Name]*destination
	virtuals virtualIndex // those for the mesh
	print    model.Print

	once sync.Once
	part outboundPart
}

// scopeKey tells scopes of one World apart.
type scopeKey struct {
	class     Class
	namespace string
	capture   bool
	callers   string // the labels that some rule asks for, as text
	at        model.Locality
}

// destination is a service as the scope's callers see it.
type destination struct {
	*model.Service
	rule *model.DestinationRule
	// home is the rule of the service's own namespace, and main says that the
	// service is of first precedence for its host: what the short road goes by.
	// See edsName.
	home *model.DestinationRule
	main bool
	// mode is what the service's namespace demands of callers.
	mode     model.MTLSMode
	accounts []string
	// endpoints are set only if the plan depends on them: the service is resolved
	// by the caller, not by endpoint discovery.
	endpoints *model.ServiceEndpoints
}

// sourceLabels is the memo key of the labels that VirtualServices choose callers
// by.
type sourceLabels struct{}

func scopeFor(w *model.World, p *Proxy) *scope {
	keys := w.Memo(sourceLabels{}, func() any { return sourceLabelKeys(w) }).([]string)
	keys = append(slices.Clone(keys), w.SelectorLabels(p.Namespace)...)
	near := w.Memo(nearnessKey{}, func() any { return nearnessOf(w) }).(nearness)
	keys = append(keys, near.labels...)
	slices.Sort(keys)
	labels := map[string]string{}
	var text strings.Builder
	own := self(w, p).Labels
	for _, k := range slices.Compact(keys) {
		if v, ok := own[k]; ok {
			labels[k] = v
			text.WriteString(k + "=" + v + ",")
		}
	}
	key := scopeKey{p.Class, p.Namespace, p.DNSCapture, text.String(), model.Locality{}}
	if near.used {
		key.at = self(w, p).Locality
	}
	return w.Memo(key, func() any { return newScope(w, key, labels) }).(*scope)
}

func sourceLabelKeys(w *model.World) []string {
	seen := map[string]bool{}
	for _, v := range w.VirtualServices() {
		for _, h := range v.Spec.Http {
			for _, m := range h.Match {
				for k := range m.SourceLabels {
					seen[k] = true
				}
			}
		}
		for _, t := range v.Spec.Tls {
			for _, m := range t.Match {
				for k := range m.SourceLabels {
					seen[k] = true
				}
			}
		}
		for _, t := range v.Spec.Tcp {
			for _, m := range t.Match {
				for k := range m.SourceLabels {
					seen[k] = true
				}
			}
		}
	}
	return sortedKeys(seen)
}

func newScope(w *model.World, key scopeKey, labels map[string]string) *scope {
	s := &scope{
		scopeKey: key,
		domain:   w.ClusterDomain(),
		labels:   labels,
		mesh:     w.Mesh(),
		byHost:   make(map[host.Name]*destination, len(w.Services())),
	}
	for _, svc := range w.Services() {
		if s.byHost[svc.Host] != nil {
			continue
		}
		named := w.ServicesNamed(svc.Host)
		i := slices.IndexFunc(named, func(c *model.Service) bool { return c.ExportTo.VisibleTo(s.namespace) })
		if i < 0 {
			continue
		}
		svc = named[i]
		d := &destination{
			Service:  svc,
			rule:     w.RuleFor(svc.Host, svc.Namespace, s.namespace, labels),
			home:     homeRule(w, svc),
			main:     i == 0,
			mode:     w.NamespaceMTLS(svc.Namespace),
			accounts: w.Endpoints(svc).Accounts,
		}
		if svc.Resolution != model.ByEndpoints {
			d.endpoints = w.Endpoints(svc)
		}
		s.byHost[svc.Host] = d
		s.services = append(s.services, d)
	}
	var virtuals []*model.VirtualService
	if key.class != Gateway {
		for _, v := range w.VirtualServicesOf(model.MeshGateway) {
			if v.ExportTo.VisibleTo(s.namespace) {
				virtuals = append(virtuals, v)
			}
		}
	}
	s.virtuals = newVirtualIndex(virtuals)
	s.seal()
	return s
}

// seal computes the print of everything in the scope.
func (s *scope) seal() {
	p := model.NewPrinter()
	p.Number(uint64(s.class))
	p.Text(s.namespace, s.domain, s.callers, s.at.Region, s.at.Zone, s.at.SubZone)
	p.Flag(s.capture)
	p.Print(s.mesh.Print)
	p.Number(uint64(len(s.services)))
	for _, d := range s.services {
		p.Print(d.Print)
		p.Flag(d.main)
		p.Number(uint64(d.mode))
		p.Text(d.accounts...)
		for _, r := range [...]*model.DestinationRule{d.rule, d.home} {
			p.Flag(r != nil)
			if r != nil {
				p.Print(r.Print)
			}
		}
		if d.endpoints != nil {
			for _, port := range d.Ports {
				list := d.endpoints.ByPort[port.Number]
				p.Number(uint64(len(list)))
				for _, e := range list {
					p.Text(e.Address.String(), e.Name, e.Workload.Hostname, e.Workload.Subdomain)
					p.Number(uint64(e.Port))
					p.Flag(e.MTLS)
					p.Flag(e.Draining)
					for _, k := range sortedKeys(e.Labels) {
						p.Text(k, e.Labels[k])
					}
				}
			}
		}
	}
	p.Number(uint64(len(s.virtuals.all)))
	for _, v := range s.virtuals.all {
		p.Print(v.Print)
	}
	s.print = p.Sum()
}

// outboundPart is the part of a sidecar's plan that its scope alone decides.
type outboundPart struct {
	listeners []*plan.Listener
	routes    []*plan.RouteConfig
	clusters  []*plan.Cluster
}

// outbound returns the part, made for the first who asks.
func (s *scope) outbound() *outboundPart {
	s.once.Do(func() {
		s.part.listeners = s.outboundListeners()
		s.part.routes = s.routesOf(s.part.listeners)
		s.part.clusters = append(s.serviceClusters(), s.passthroughCluster(), blackHoleCluster())
	})
	return &s.part
}

// virtualIndex finds VirtualServices by the hosts they are for.
type virtualIndex struct {
	all   []*model.VirtualService // oldest first
	exact map[host.Name][]*model.VirtualService
	wild  []wildVirtual // most specific first, then oldest first
}

type wildVirtual struct {
	host host.Name
	vs   *model.VirtualService
}

func newVirtualIndex(all []*model.VirtualService) virtualIndex {
	x := virtualIndex{all: all, exact: map[host.Name][]*model.VirtualService{}}
	for _, v := range all {
		for _, h := range v.Hosts {
			if h.IsWildcard() {
				x.wild = append(x.wild, wildVirtual{h, v})
			} else if list := x.exact[h]; len(list) == 0 || list[len(list)-1] != v {
				x.exact[h] = append(list, v)
			}
		}
	}
	slices.SortStableFunc(x.wild, func(a, b wildVirtual) int { return host.Compare(a.host, b.host) })
	return x
}

// forHost returns the VirtualServices for a host in order of precedence: the
// most specific host first, then the oldest.
func (x *virtualIndex) forHost(h host.Name) []*model.VirtualService {
	out := x.exact[h]
	for _, w := range x.wild {
		if host.Matches(w.host, h) && !slices.Contains(out, w.vs) {
			out = append(slices.Clip(out), w.vs)
		}
	}
	return out
}
