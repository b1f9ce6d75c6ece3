// Package snapshot is the run-time configuration of one proxy: what it was told,
// indexed by what a connection asks for, with all that can be built ahead built.
//
// A Snapshot never changes after it was published, and publishing is one atomic
// store. Build takes over from its predecessor every part that did not change,
// so that a change of one route leaves everything else, and every open
// connection, alone. What must outlive a snapshot, such as clusters with their
// pools, lives beside it and is looked up by name.
//
// A connection keeps the chain it was given. Its HTTP requests are routed by the
// newest table of the chain's route name: see [Live.Routes].
package snapshot

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/heddle-mesh/heddle/internal/life"
	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/decode"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/route"
)

// Handler serves connections. Serve returns when the connection has ended, and
// has closed c by then. The end of ctx asks it to end the connection as soon as
// the protocol has a good moment for it.
type Handler interface {
	Serve(ctx context.Context, c net.Conn, info *exchange.Conn) error
}

// Policed is a Handler whose policy changes while it serves: a chain that differs from
// its predecessor in nothing but policy keeps its handler and its connections.
type Policed interface {
	// Police puts the policy of c in force. It is called when c is published, and
	// must act on the next request of every connection.
	Police(c *plan.HTTPChain)
}

// Deps is what Build makes handlers with.
type Deps struct {
	// Live is where snapshots get published; HTTP handlers follow it.
	Live *Live
	// HTTP makes the handler of a chain. routes returns the table to use, for
	// each request; it is never nil.
	HTTP func(p *plan.HTTPChain, d plan.Direction, routes func() *route.Table) (Handler, error)
	TCP  func(p *plan.TCPChain, d plan.Direction) (Handler, error)
	TLS  func(*plan.ServerTLS) *tls.Config
	// Context bounds the life of connections.
	Context context.Context
}

// Snapshot is immutable.
type Snapshot struct {
	Listeners map[string]*Listener
	// unbound listeners by direction and address; wildcards have the unspecified
	// address of their family.
	unbound map[unboundKey]*Listener
	routes  map[string]*routes
}

type unboundKey struct {
	direction plan.Direction
	address   netip.AddrPort
}

// routes is a compiled route configuration.
type routes struct {
	plan  *plan.RouteConfig
	table *route.Table
}

// Listener is a plan's listener with its chains.
type Listener struct {
	Plan    *plan.Listener
	Chains  []*Chain
	Default *Chain // nil closes what no chain matches
	byPort  map[uint16]*candidates
}

// Chain is a plan's filter chain with what serves it.
type Chain struct {
	Plan    *plan.FilterChain
	TLS     *tls.Config // nil: plain text
	Handler Handler
	// Drain counts the chain's connections and ends them when the chain is no
	// longer part of the configuration. It is made for the first one: most
	// chains of a large mesh never see any.
	Drain func() *life.Drain
	// police is set if the handler is a predecessor's and has to hear of a policy.
	police Policed
}

// Live holds the newest snapshot.
type Live struct{ current atomic.Pointer[Snapshot] }

// Current returns the newest snapshot, or nil while there is none.
func (l *Live) Current() *Snapshot { return l.current.Load() }

// Publish makes s the newest snapshot.
func (l *Live) Publish(s *Snapshot) {
	for _, listener := range s.Listeners {
		for c := range listener.All() {
			if c.police != nil {
				c.police.Police(c.Plan.HTTP)
				c.police = nil
			}
		}
	}
	l.current.Store(s)
}

// noRoutes answers requests on a chain whose routes are not known.
var noRoutes = sync.OnceValue(func() *route.Table {
	t, err := route.NewTable(&plan.RouteConfig{})
	if err != nil {
		panic(err) // an empty table has nothing that could be wrong
	}
	return t
})

// Routes returns the newest table of this name, an empty one if there is none.
func (l *Live) Routes(name string) *route.Table {
	if s := l.current.Load(); s != nil {
		if r := s.routes[name]; r != nil {
			return r.table
		}
	}
	return noRoutes()
}

// Route returns the table of this name, or nil.
func (s *Snapshot) Route(name string) *route.Table {
	if r := s.routes[name]; r != nil {
		return r.table
	}
	return nil
}

// Unbound returns the listener without socket that takes connections of a
// direction to dst: the one for that address and port, or else the one for the
// port on all addresses, first of the same family. It returns nil if there is
// none.
func (s *Snapshot) Unbound(d plan.Direction, dst netip.AddrPort) *Listener {
	if l := s.unbound[unboundKey{d, dst}]; l != nil {
		return l
	}
	first, second := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	if dst.Addr().Is6() {
		first, second = second, first
	}
	if l := s.unbound[unboundKey{d, netip.AddrPortFrom(first, dst.Port())}]; l != nil {
		return l
	}
	return s.unbound[unboundKey{d, netip.AddrPortFrom(second, dst.Port())}]
}

// Build makes the snapshot of a state, taking unchanged parts over from prev,
// which may be nil. It never fails as a whole: an element that can not be built is
// kept as it was in prev, or left out if it is new, and named in the error. So one
// bad route never takes the others' traffic down.
func Build(state *decode.State, prev *Snapshot, deps Deps) (*Snapshot, error) {
	if prev == nil {
		prev = &Snapshot{}
	}
	s := &Snapshot{
		Listeners: make(map[string]*Listener, len(state.Listeners)),
		unbound:   make(map[unboundKey]*Listener),
		routes:    make(map[string]*routes, len(state.Routes)),
	}
	var faults []error
	for _, name := range slices.Sorted(maps.Keys(state.Routes)) {
		p, old := state.Routes[name], prev.routes[name]
		if old != nil && old.plan == p {
			s.routes[name] = old
			continue
		}
		table, err := route.NewTable(p)
		if err != nil {
			faults = append(faults, fmt.Errorf("route %s: %w", name, err))
			if old != nil {
				s.routes[name] = old
			}
			continue
		}
		s.routes[name] = &routes{p, table}
	}
	for _, name := range slices.Sorted(maps.Keys(state.Listeners)) {
		p, old := state.Listeners[name], prev.Listeners[name]
		if p.API != nil {
			continue // for proxyless clients: nothing to listen on
		}
		l := old
		if old == nil || old.Plan != p {
			var err error
			if l, err = buildListener(p, old, deps); err != nil {
				faults = append(faults, fmt.Errorf("listener %s: %w", name, err))
				l = old
			}
		}
		if l == nil {
			continue
		}
		s.Listeners[name] = l
		if !l.Plan.Bound {
			s.unbound[unboundKey{l.Plan.Direction, l.Plan.Address}] = l
		}
	}
	return s, errors.Join(faults...)
}

func buildListener(p *plan.Listener, old *Listener, deps Deps) (*Listener, error) {
	l := &Listener{Plan: p, byPort: make(map[uint16]*candidates)}
	for _, fc := range p.Chains {
		chain, err := buildChain(fc, p.Direction, old, deps)
		if err != nil {
			return nil, fmt.Errorf("chain %q: %w", fc.Name, err)
		}
		l.Chains = append(l.Chains, chain)
		c := l.byPort[fc.Match.DestinationPort]
		if c == nil {
			c = &candidates{}
			l.byPort[fc.Match.DestinationPort] = c
		}
		c.add(chain)
	}
	if p.Default != nil {
		chain, err := buildChain(p.Default, p.Direction, old, deps)
		if err != nil {
			return nil, fmt.Errorf("default chain: %w", err)
		}
		l.Default = chain
	}
	return l, nil
}

// buildChain takes a chain over from old if it did not change: its connections
// then go on undisturbed.
func buildChain(p *plan.FilterChain, d plan.Direction, old *Listener, deps Deps) (*Chain, error) {
	if old != nil && old.Plan.Direction == d {
		for chain := range old.All() {
			if chain.Plan.Name != p.Name {
				continue
			}
			if reflect.DeepEqual(chain.Plan, p) {
				return chain, nil
			}
			if h, ok := chain.Handler.(Policed); ok && reflect.DeepEqual(withoutPolicy(chain.Plan), withoutPolicy(p)) {
				return &Chain{Plan: p, TLS: chain.TLS, Handler: chain.Handler, Drain: chain.Drain, police: h}, nil
			}
		}
	}
	chain := &Chain{Plan: p, Drain: sync.OnceValue(func() *life.Drain { return life.NewDrain(deps.Context) })}
	if p.TLS != nil {
		chain.TLS = deps.TLS(p.TLS)
	}
	var err error
	switch {
	case p.HTTP != nil && p.TCP != nil || p.HTTP == nil && p.TCP == nil:
		return nil, errors.New("neither or both of HTTP and TCP")
	case p.TCP != nil:
		chain.Handler, err = deps.TCP(p.TCP, d)
	case p.HTTP.RouteName != "":
		name := p.HTTP.RouteName
		chain.Handler, err = deps.HTTP(p.HTTP, d, func() *route.Table { return deps.Live.Routes(name) })
	case p.HTTP.Inline != nil:
		var table *route.Table
		if table, err = route.NewTable(p.HTTP.Inline); err == nil {
			chain.Handler, err = deps.HTTP(p.HTTP, d, func() *route.Table { return table })
		}
	default:
		err = errors.New("HTTP without routes")
	}
	if err != nil {
		return nil, err
	}
	return chain, nil
}

// withoutPolicy returns a chain without what Policed takes.
func withoutPolicy(p *plan.FilterChain) *plan.FilterChain {
	if p.HTTP == nil {
		return p
	}
	c, h := *p, *p.HTTP
	h.RBAC, h.JWT, h.Ask = nil, nil, nil
	c.HTTP = &h
	return &c
}

// All yields the listener's chains, the default one last.
func (l *Listener) All() func(yield func(*Chain) bool) {
	return func(yield func(*Chain) bool) {
		for _, c := range l.Chains {
			if !yield(c) {
				return
			}
		}
		if l.Default != nil {
			yield(l.Default)
		}
	}
}

// Retired returns the chains of prev that are not part of next, in no order.
func Retired(prev, next *Snapshot) []*Chain {
	if prev == nil {
		return nil
	}
	kept := make(map[Handler]bool)
	for name, l := range next.Listeners {
		if l == prev.Listeners[name] {
			continue
		}
		for c := range l.All() {
			kept[c.Handler] = true
		}
	}
	var out []*Chain
	for name, l := range prev.Listeners {
		if l == next.Listeners[name] {
			continue
		}
		for c := range l.All() {
			if !kept[c.Handler] {
				out = append(out, c)
			}
		}
	}
	return out
}
