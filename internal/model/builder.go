package model

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/host"
)

// Options are what a World needs to know beside its objects. Empty fields get
// the defaults named here.
type Options struct {
	ClusterDomain string // "cluster.local"
	ClusterID     string // "Kubernetes"
	TrustDomain   string // "cluster.local", unless MeshConfig names one
	RootNamespace string // "istio-system", unless MeshConfig names one
	// MeshConfig is the name of the ConfigMap that holds it; "istio". It stands in
	// RootNamespace: that is where one learns what the root namespace is.
	MeshConfig   string
	ServiceCIDR  netip.Prefix // IPv4: 10.96.0.0/16, for Services that have no address
	ExternalCIDR netip.Prefix // IPv4: 240.240.0.0/16, for ServiceEntries that have none
}

// Builder makes Worlds out of batches of changes. It keeps the objects it was
// given; methods may not be called concurrently.
type Builder struct {
	opts    Options
	objects map[config.Kind]map[config.Key]*config.Object
	// converted holds what an object was converted to, so that one change costs
	// one conversion: []*Service, *VirtualService and so on.
	converted map[config.Key]any
	slices    map[config.Key]*slice
	slicesOf  map[ServiceKey]map[config.Key]*slice
	nodes     map[string]Locality
	// onHost are pods that share their node's network: endpoints of services, and
	// no workloads of the mesh.
	onHost map[config.Key]*Workload
	world  *World
}

// Delta says what differs between a World and its predecessor.
type Delta struct {
	// Config is set if a plan may differ.
	Config bool
	// Endpoints names the service ports, "host|port", whose endpoints differ, or
	// may look different to their callers; sorted.
	Endpoints []string
	// Secrets is set if what a Secret holds for TLS differs.
	Secrets bool
}

// Empty reports whether nothing differs.
func (d Delta) Empty() bool { return !d.Config && len(d.Endpoints) == 0 && !d.Secrets }

// NewBuilder returns a Builder whose World is empty.
func NewBuilder(opts Options) *Builder {
	opts.ClusterDomain = or(opts.ClusterDomain, "cluster.local")
	opts.ClusterID = or(opts.ClusterID, "Kubernetes")
	opts.TrustDomain = or(opts.TrustDomain, "cluster.local")
	opts.RootNamespace = or(opts.RootNamespace, "istio-system")
	opts.MeshConfig = or(opts.MeshConfig, "istio")
	if !opts.ServiceCIDR.Addr().Is4() {
		opts.ServiceCIDR = netip.MustParsePrefix("10.96.0.0/16")
	}
	if !opts.ExternalCIDR.Addr().Is4() {
		opts.ExternalCIDR = netip.MustParsePrefix("240.240.0.0/16")
	}
	mesh := newMesh(opts, nil)
	return &Builder{
		opts:      opts,
		objects:   map[config.Kind]map[config.Key]*config.Object{},
		converted: map[config.Key]any{},
		slices:    map[config.Key]*slice{},
		slicesOf:  map[ServiceKey]map[config.Key]*slice{},
		nodes:     map[string]Locality{},
		onHost:    map[config.Key]*Workload{},
		world: &World{
			opts:      opts,
			mesh:      mesh,
			services:  newServices(nil, opts, nil),
			workloads: (&workloads{}).with(nil),
			endpoints: &endpoints{},
			rules:     newDestinationRules(nil, mesh.RootNamespace),
			auth:      newAuthentication(nil, mesh.RootNamespace),
		},
	}
}

// World returns the current one.
func (b *Builder) World() *World { return b.world }

// Apply makes the World after some batches, each applied whole and in order. An
// object that is equal to the one it replaces changes nothing.
func (b *Builder) Apply(batches ...config.Batch) (*World, Delta) {
	pods := map[config.Key]*Workload{}
	dirty := map[config.Kind]bool{}
	touched, moved := map[ServiceKey]bool{}, map[string]bool{}
	secrets := map[secretKey]*Secret{}
	for _, batch := range batches {
		for _, c := range batch.Changes {
			if c.Key.Kind == config.Node {
				b.node(c, moved)
			}
		}
		for _, c := range batch.Changes {
			switch {
			case c.Key.Kind == config.Pod:
				b.pod(c, pods, touched)
			case c.Key.Kind == config.EndpointSlice:
				b.slice(c, touched)
			case c.Key.Kind == config.Secret:
				b.secret(c, secrets)
			case b.store(c):
				dirty[c.Key.Kind] = true
			}
		}
	}
	b.move(moved, pods, touched)
	prev := b.world
	w := prev.successor()
	if dirty[config.ConfigMap] {
		b.remesh(w, dirty)
	}
	if dirty[config.Service] || dirty[config.ServiceEntry] {
		var all []*Service
		for _, o := range b.objects[config.Service] {
			all = append(all, b.services(o, w.mesh)...)
		}
		for _, o := range b.objects[config.ServiceEntry] {
			all = append(all, b.services(o, w.mesh)...)
		}
		w.services = newServices(all, b.opts, prev.services)
	}
	if dirty[config.VirtualService] {
		w.virtuals = ordered(b, config.VirtualService, func(o *config.Object) *VirtualService {
			return fromVirtualService(o, b.opts, w.mesh)
		}, func(v *VirtualService) Meta { return v.Meta })
		w.virtuals = delegated(w.virtuals, b.opts.ClusterDomain)
	}
	if dirty[config.DestinationRule] {
		w.rules = newDestinationRules(ordered(b, config.DestinationRule, func(o *config.Object) *DestinationRule {
			return fromDestinationRule(o, b.opts, w.mesh)
		}, func(r *DestinationRule) Meta { return r.Meta }), w.mesh.RootNamespace)
	}
	if dirty[config.Gateway] {
		w.gateways = ordered(b, config.Gateway, fromGateway, func(g *Gateway) Meta { return g.Meta })
	}
	if dirty[config.PeerAuthentication] {
		w.auth = newAuthentication(ordered(b, config.PeerAuthentication, fromPeerAuthentication,
			func(p *peerAuthentication) Meta { return p.Meta }), w.mesh.RootNamespace)
	}
	if dirty[config.AuthorizationPolicy] {
		of := func(p *AuthorizationPolicy) Meta { return p.Meta }
		w.authz = byNamespace(ordered(b, config.AuthorizationPolicy, fromAuthorizationPolicy, of), of)
	}
	if dirty[config.RequestAuthentication] {
		of := func(p *RequestAuthentication) Meta { return p.Meta }
		w.requests = byNamespace(ordered(b, config.RequestAuthentication, fromRequestAuthentication, of), of)
	}
	var d Delta
	for _, k := range compiled {
		d.Config = d.Config || dirty[k]
	}
	if len(pods) > 0 {
		w.workloads = prev.workloads.with(pods)
		for k, wl := range pods {
			old := prev.workloads.byKey[k]
			if (old == nil) != (wl == nil) || old != nil && (!samePlace(old, wl) || !ownsSame(prev.workloads, w.workloads, old, wl)) {
				d.Config = true
			}
		}
	}
	if len(secrets) > 0 {
		d.Secrets = true
		w.secrets = maps.Clone(prev.secrets)
		if w.secrets == nil {
			w.secrets = map[secretKey]*Secret{}
		}
		for k, s := range secrets {
			if s == nil {
				delete(w.secrets, k)
			} else {
				w.secrets[k] = s
			}
		}
	}
	b.regather(w, prev, pods, touched, &d)
	b.reconsider(w, prev, dirty, &d)
	slices.Sort(d.Endpoints)
	d.Endpoints = slices.Compact(d.Endpoints)
	b.world = w
	return w, d
}

// successor returns a World that shares everything with w.
func (w *World) successor() *World {
	return &World{
		opts: w.opts, mesh: w.mesh, services: w.services, workloads: w.workloads, endpoints: w.endpoints,
		virtuals: w.virtuals, rules: w.rules, gateways: w.gateways, auth: w.auth,
		authz: w.authz, requests: w.requests, keySets: w.keySets,
	}
}

// compiled are the kinds that plans are made of.
var compiled = []config.Kind{
	config.ConfigMap, config.Service, config.ServiceEntry, config.VirtualService,
	config.DestinationRule, config.Gateway, config.PeerAuthentication,
	config.AuthorizationPolicy, config.RequestAuthentication,
}

// store keeps or forgets an object and reports whether that changed anything.
func (b *Builder) store(c config.Change) bool {
	if !slices.Contains(compiled, c.Key.Kind) || c.Key.Kind == config.ConfigMap && c.Key != b.opts.meshConfig() {
		return false
	}
	of := b.objects[c.Key.Kind]
	if of == nil {
		of = map[config.Key]*config.Object{}
		b.objects[c.Key.Kind] = of
	}
	if same(of[c.Key], c.Object) {
		return false
	}
	delete(b.converted, c.Key)
	if c.Object == nil {
		delete(of, c.Key)
	} else {
		of[c.Key] = c.Object
	}
	return true
}

// same reports whether two objects are equal in all that is read of them.
func same(a, b *config.Object) bool {
	if a == nil || b == nil {
		return a == b
	}
	if !a.Created.Equal(b.Created) || !maps.Equal(a.Labels, b.Labels) || !maps.Equal(a.Annotations, b.Annotations) {
		return false
	}
	if x, ok := a.Spec.(proto.Message); ok {
		y, ok := b.Spec.(proto.Message)
		return ok && proto.Equal(x, y)
	}
	return reflect.DeepEqual(a.Spec, b.Spec)
}

// pod notes the change of a workload, if it is one.
func (b *Builder) pod(c config.Change, pods map[config.Key]*Workload, touched map[ServiceKey]bool) {
	var next, onHost *Workload
	if c.Object != nil {
		if next = fromPod(c.Object, b.opts); next != nil {
			next = b.located(next)
			if c.Object.Spec.(*corev1.Pod).Spec.HostNetwork {
				next, onHost = nil, next
			}
		}
	}
	if !reflect.DeepEqual(b.onHost[c.Key], onHost) {
		if onHost == nil {
			delete(b.onHost, c.Key)
		} else {
			b.onHost[c.Key] = onHost
		}
		b.touch(c.Key, touched)
	}
	old, seen := pods[c.Key]
	if !seen {
		old = b.world.workloads.byKey[c.Key]
	}
	if reflect.DeepEqual(old, next) {
		return // most updates of a pod say nothing that matters here
	}
	if before := b.world.workloads.byKey[c.Key]; reflect.DeepEqual(before, next) {
		delete(pods, c.Key) // back to what it was, within one batch
		return
	}
	pods[c.Key] = next
}

// touch notes the services whose slices name a pod.
func (b *Builder) touch(pod config.Key, touched map[ServiceKey]bool) {
	for k, of := range b.slicesOf {
		if k.Namespace != pod.Namespace || touched[k] {
			continue
		}
		for _, sl := range of {
			if slices.ContainsFunc(sl.endpoints, func(e sliceEndpoint) bool { return e.pod == pod }) {
				touched[k] = true
				break
			}
		}
	}
}

// move takes the workloads of some nodes to where these are now.
func (b *Builder) move(moved map[string]bool, pods map[config.Key]*Workload, touched map[ServiceKey]bool) {
	if len(moved) == 0 {
		return
	}
	for k, wl := range b.world.workloads.byKey {
		if _, seen := pods[k]; seen || !moved[wl.Node] {
			continue
		}
		if next := b.located(wl); next != wl {
			pods[k] = next
		}
	}
	for k, wl := range b.onHost {
		if next := b.located(wl); next != wl {
			b.onHost[k] = next
			b.touch(k, touched)
		}
	}
	for k, of := range b.slicesOf {
		for _, sl := range of {
			if slices.ContainsFunc(sl.endpoints, func(e sliceEndpoint) bool { return e.pod == config.Key{} && moved[e.node] }) {
				touched[k] = true
			}
		}
	}
}

// remesh reads MeshConfig anew. Much else depends on it, and it changes so
// seldom that everything is converted again.
func (b *Builder) remesh(w *World, dirty map[config.Kind]bool) {
	mesh := newMesh(b.opts, b.objects[config.ConfigMap][b.opts.meshConfig()])
	if mesh.Print == w.mesh.Print {
		delete(dirty, config.ConfigMap)
		return
	}
	w.mesh = mesh
	clear(b.converted)
	for _, k := range compiled {
		dirty[k] = true
	}
}

// services returns what a Service or a ServiceEntry was converted to.
func (b *Builder) services(o *config.Object, mesh *Mesh) []*Service {
	if c, ok := b.converted[o.Key]; ok {
		return c.([]*Service)
	}
	var out []*Service
	if o.Kind == config.Service {
		out = []*Service{fromKubernetes(o, b.opts, mesh)}
	} else {
		out = fromServiceEntry(o, b.opts, mesh)
	}
	b.converted[o.Key] = out
	return out
}

// ordered converts the objects of a kind and sorts them by precedence.
func ordered[T any](b *Builder, kind config.Kind, convert func(*config.Object) T, meta func(T) Meta) []T {
	out := make([]T, 0, len(b.objects[kind]))
	for k, o := range b.objects[kind] {
		c, ok := b.converted[k]
		if !ok {
			c = convert(o)
			b.converted[k] = c
		}
		out = append(out, c.(T))
	}
	slices.SortFunc(out, func(x, y T) int { return compareMeta(meta(x), meta(y)) })
	return out
}

// regather brings the endpoints up to date: of services that changed, whose
// slices did, and of those that choose a workload which changed.
func (b *Builder) regather(w, prev *World, pods map[config.Key]*Workload, stale map[ServiceKey]bool, d *Delta) {
	if w.services != prev.services || w.mesh.TrustDomain != prev.mesh.TrustDomain {
		for k, s := range w.services.byKey {
			if prev.services.byKey[k] != s || w.mesh.TrustDomain != prev.mesh.TrustDomain {
				stale[k] = true
			}
		}
		for k := range prev.services.byKey {
			if w.services.byKey[k] == nil {
				stale[k] = true
			}
		}
	}
	for k, wl := range pods {
		for _, state := range []*Workload{prev.workloads.byKey[k], wl} {
			if state == nil {
				continue
			}
			for _, s := range w.services.byNamespace[state.Namespace] {
				// Slices without a selector may name any pod.
				if !stale[s.Key()] && (s.Selects(state) || len(s.Selector) == 0 && len(b.slicesOf[s.Key()]) > 0) {
					stale[s.Key()] = true
				}
			}
		}
	}
	if len(stale) == 0 {
		return
	}
	next := &endpoints{byService: make(map[ServiceKey]*ServiceEndpoints, len(w.services.byKey))}
	maps.Copy(next.byService, prev.endpoints.byService)
	for k := range stale {
		old, fresh := prev.endpoints.byService[k], noEndpoints
		if old == nil {
			old = noEndpoints
		}
		s := w.services.byKey[k]
		if s == nil {
			delete(next.byService, k)
		} else {
			fresh = b.gather(s, w)
			next.byService[k] = fresh
		}
		ports := changedPorts(old, fresh)
		for _, p := range ports {
			d.Endpoints = append(d.Endpoints, EndpointKey(k.Host, p))
		}
		if prev.services.byKey[k] != s {
			// Ports may be there or not, and a host may have another service now.
			for _, x := range [...]*services{prev.services, w.services} {
				for _, named := range x.byHost[k.Host] {
					for _, p := range named.Ports {
						d.Endpoints = append(d.Endpoints, EndpointKey(k.Host, p.Number))
					}
				}
			}
		}
		if !slices.Equal(old.Accounts, fresh.Accounts) || len(ports) > 0 && s != nil && s.Resolution != ByEndpoints {
			// Accounts are in the clusters, and what a client resolves itself is in
			// listeners, clusters and names.
			d.Config = true
		}
	}
	w.endpoints = next
}

// reconsider names the endpoints that look different to callers because of
// policy: whether they accept mutual TLS, and to which subsets they belong.
func (b *Builder) reconsider(w, prev *World, dirty map[config.Kind]bool, d *Delta) {
	if w.auth == prev.auth && w.rules == prev.rules {
		return
	}
	ruled := func(x *destinationRules, s *Service) *DestinationRule {
		return (&World{rules: x}).RuleFor(s.Host, s.Namespace, s.Namespace, nil)
	}
	for _, s := range w.services.all {
		was, is := ruled(prev.rules, s), ruled(w.rules, s)
		if dirty[config.PeerAuthentication] || (was == nil) != (is == nil) || was != nil && was.Print != is.Print {
			for _, p := range s.Ports {
				d.Endpoints = append(d.Endpoints, EndpointKey(s.Host, p.Number))
			}
		}
	}
}

// EndpointKey names the endpoints of a service port in a Delta.
func EndpointKey(h host.Name, port uint16) string { return fmt.Sprintf("%s|%d", h, port) }

// meta returns what is common to all configuration.
func meta(o *config.Object, spec proto.Message) Meta {
	p := NewPrinter()
	p.Text(o.Kind.String(), o.Name, o.Namespace)
	p.Number(uint64(o.Created.UnixNano()))
	p.message(spec)
	return Meta{o.Name, o.Namespace, o.Created, p.Sum()}
}

func fromVirtualService(o *config.Object, opts Options, mesh *Mesh) *VirtualService {
	in := o.Spec.(*networking.VirtualService)
	v := &VirtualService{
		Meta:     meta(o, in),
		Gateways: []string{MeshGateway},
		ExportTo: visibility(in.ExportTo, mesh.VirtualServiceExportTo, o.Namespace),
		Spec:     in,
	}
	if len(in.Gateways) > 0 {
		v.Gateways = make([]string, len(in.Gateways))
		for i, g := range in.Gateways {
			v.Gateways[i] = GatewayName(g, o.Namespace)
		}
	}
	for _, h := range in.Hosts {
		v.Hosts = append(v.Hosts, host.FQDN(h, o.Namespace, opts.ClusterDomain))
	}
	return v
}

// gatewayServiceAnnotation binds a Gateway made for one of the Gateway API to
// the Services of its workloads.
const gatewayServiceAnnotation = "internal.istio.io/gateway-service"

func fromGateway(o *config.Object) *Gateway {
	in := o.Spec.(*networking.Gateway)
	g := &Gateway{Meta: meta(o, in), Spec: in}
	if names := o.Annotations[gatewayServiceAnnotation]; names != "" {
		p := NewPrinter()
		p.Print(g.Print)
		p.Text(names)
		g.Print = p.Sum()
		for _, n := range strings.Split(names, ",") {
			g.Services = append(g.Services, host.Name(strings.TrimSpace(n)))
		}
	}
	return g
}
