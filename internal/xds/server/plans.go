package server

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/heddle-mesh/heddle/internal/compile"
	"github.com/heddle-mesh/heddle/internal/encode"
	"github.com/heddle-mesh/heddle/internal/plan"
)

// plans makes the resources of a view once and shares them among all proxies
// with that view.
type plans struct {
	encoder *encode.Encoder

	mu sync.Mutex
	// mu guards what is remembered, by the view's key: the present generation,
	// and the one before, from which what is still asked for is taken over.
	present, past map[string]*planned
}

// planned is the outcome for one view.
type planned struct {
	once   sync.Once
	set    encode.Set
	byName map[string]map[string]*encode.Resource
	err    error
}

func newPlans(e *encode.Encoder) *plans {
	return &plans{encoder: e, present: map[string]*planned{}}
}

// nextGeneration forgets views that nobody asked for since the last call.
func (p *plans) nextGeneration() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.past, p.present = p.present, make(map[string]*planned, len(p.present))
}

// of returns what a proxy gets in a world. Callers with equal views that come at
// the same time wait for one of them to do the work.
func (p *plans) of(w World, proxy *compile.Proxy) (out *planned, err error) {
	defer func() {
		// A world that cannot be compiled for one proxy must not end the others'
		// streams.
		if r := recover(); r != nil {
			out, err = nil, fmt.Errorf("view of %s: %v", proxy.ID, r)
		}
	}()
	key, make := w.View(proxy)
	p.mu.Lock()
	out = p.present[key]
	if out == nil {
		if out = p.past[key]; out == nil {
			out = &planned{}
		}
		p.present[key] = out
	}
	p.mu.Unlock()
	out.once.Do(func() { out.fill(p.encoder, make) })
	if out.err != nil {
		return nil, fmt.Errorf("plan of %s: %w", proxy.ID, out.err)
	}
	return out, nil
}

func (p *planned) fill(e *encode.Encoder, make func() *plan.Plan) {
	defer func() {
		if r := recover(); r != nil {
			p.err = fmt.Errorf("%v", r)
		}
	}()
	p.set = e.Plan(make())
	p.byName = map[string]map[string]*encode.Resource{}
	for typ, list := range p.set {
		names := map[string]*encode.Resource{}
		for _, r := range list {
			names[r.Name] = r
		}
		p.byName[typ] = names
	}
}

// endpoints makes endpoint lists of the newest world, once for all streams.
type endpoints struct {
	encoder *encode.Encoder

	mu sync.Mutex
	// mu guards the world and what was made of it, by service port and EDS name.
	// A nil resource is remembered as well: there is no such thing.
	world World
	made  map[string]map[string]*encode.Resource
}

func newEndpoints(e *encode.Encoder) *endpoints {
	return &endpoints{encoder: e, made: map[string]map[string]*encode.Resource{}}
}

// update takes a new world in, of which only the endpoints of some service ports
// differ, or, if all is set, perhaps any.
func (e *endpoints) update(w World, all bool, keys []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.world = w
	if all {
		clear(e.made)
	}
	for _, k := range keys {
		delete(e.made, k)
	}
}

// newest returns the world as it is now.
func (e *endpoints) newest() World {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.world
}

// get returns the endpoints behind an EDS name, or nil.
func (e *endpoints) get(name string) *encode.Resource {
	key := endpointKey(name)
	e.mu.Lock()
	defer e.mu.Unlock()
	if r, ok := e.made[key][name]; ok {
		return r
	}
	var r *encode.Resource
	if l, ok := e.world.Endpoints(name); ok {
		r = e.encoder.LoadAssignment(l)
	}
	if e.made[key] == nil {
		e.made[key] = map[string]*encode.Resource{}
	}
	e.made[key][name] = r
	return r
}

// endpointKey returns the service port, "host|port", behind an EDS name such as
// "outbound|9080|v1|reviews.default.svc.cluster.local". What the compile step puts
// behind a host, from '~' or '@' on, tells callers apart and not services.
func endpointKey(name string) string {
	p := strings.SplitN(name, "|", 4)
	if len(p) != 4 {
		return name
	}
	host := p[3]
	if i := strings.IndexAny(host, "~@"); i >= 0 {
		host = host[:i]
	}
	return host + "|" + p[1]
}

// resources is what one proxy should have now. It implements have.
type resources struct {
	planned   *planned
	endpoints *endpoints
	named     bool // gets nothing that it does not name: proxyless gRPC
	// secret makes a secret, or returns nil; nil if the proxy may have none.
	secret func(name string) *encode.Resource
	// leaving are clusters that the plan has no more, but the proxy may still lead
	// requests to. See stream.push.
	leaving map[string]*encode.Resource
}

func (r *resources) all(typeURL string) []*encode.Resource {
	if r.named || !wildcardType(typeURL) {
		return nil
	}
	list := r.planned.set[typeURL]
	if typeURL == encode.ClusterType && len(r.leaving) > 0 {
		list = slices.AppendSeq(slices.Clone(list), maps.Values(r.leaving))
		slices.SortFunc(list, byName)
	}
	return list
}

func (r *resources) get(typeURL, name string) *encode.Resource {
	switch {
	case typeURL == encode.EndpointType:
		return r.endpoints.get(name)
	case typeURL == encode.SecretType && r.secret == nil:
		return nil
	case typeURL == encode.SecretType:
		return r.secret(name)
	}
	if one := r.planned.byName[typeURL][name]; one != nil || typeURL != encode.ClusterType {
		return one
	}
	return r.leaving[name]
}

// held keeps the endpoints of leaving clusters, which go by the same name.
func (r *resources) held(typeURL, name string) bool {
	return typeURL == encode.EndpointType && r.leaving[name] != nil
}

// gone returns the clusters of r that next has no more.
func (r *resources) gone(next *planned) map[string]*encode.Resource {
	out := map[string]*encode.Resource{}
	for name, one := range r.planned.byName[encode.ClusterType] {
		if next.byName[encode.ClusterType][name] == nil {
			out[name] = one
		}
	}
	for name, one := range r.leaving {
		if next.byName[encode.ClusterType][name] == nil {
			out[name] = one
		}
	}
	return out
}
