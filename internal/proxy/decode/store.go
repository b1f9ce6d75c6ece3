package decode

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/xds/client"
)

// State is everything a proxy was told, at one moment. It is immutable; the next
// State shares the elements that did not change, and the maps of which no
// element did.
type State struct {
	Listeners map[string]*plan.Listener
	Routes    map[string]*plan.RouteConfig
	Clusters  map[string]*plan.Cluster
	Endpoints map[string]*plan.LoadAssignment // by EDS name
	Secrets   map[string]*plan.Secret         // what there is of those that listeners name
	Names     *plan.NameTable                 // nil if there is none
	// Warm is set once the first complete configuration is there: listeners and
	// clusters with every route and endpoint list they refer to.
	Warm bool
}

// patience is how long a change may wait for the parts it refers to. It is what
// the xDS protocol recommends before a resource counts as absent ("Knowing When
// a Requested Resource Does Not Exist": 15 s).
const patience = 15 * time.Second

// Store collects resources into States, so that no State refers to something
// that is still on its way (make before break):
//
//   - a change waits until every route and endpoint list it refers to has come,
//     or was said not to exist;
//   - a cluster that was removed stays as long as a route or listener still
//     leads to it, because its removal comes before the change of the routes;
//   - neither holds up a change of the endpoints of clusters already in use.
//
// No wait is longer than 15 s. It implements client.Handler.
type Store struct {
	onChange func(*State)

	mu sync.Mutex
	// mu guards all below, and is held while onChange runs, to keep order.
	listeners entries[plan.Listener]
	routes    entries[plan.RouteConfig]
	clusters  entries[plan.Cluster]
	endpoints entries[plan.LoadAssignment]
	names     entries[plan.NameTable]
	secrets   entries[plan.Secret]
	heard     map[string]bool // types that came at least once
	// absent are routes and endpoint lists that are not waited for: true, because
	// the control plane said that they do not exist; false, because it said
	// nothing for too long.
	absentRoutes, absentEndpoints map[string]bool
	// leaving are clusters that were removed but may still be led to.
	leaving map[string]*plan.Cluster
	// wantedEndpoints and wantedRoutes are what clusters and listeners refer to.
	wantedEndpoints, wantedRoutes map[string]bool
	published                     *State
	touched                       map[string]bool // types that differ from the published state
	deadline                      *time.Timer     // runs while a change waits
	closed                        bool
}

// entries are the accepted resources of one type, by name.
type entries[T any] map[string]entry[T]

type entry[T any] struct {
	body  []byte
	value *T
}

// NewStore returns an empty store. onChange is called with each new State, one
// at a time and in order; it must not call the store.
func NewStore(onChange func(*State)) *Store {
	return &Store{
		onChange:        onChange,
		listeners:       entries[plan.Listener]{},
		routes:          entries[plan.RouteConfig]{},
		clusters:        entries[plan.Cluster]{},
		endpoints:       entries[plan.LoadAssignment]{},
		names:           entries[plan.NameTable]{},
		secrets:         entries[plan.Secret]{},
		heard:           map[string]bool{},
		absentRoutes:    map[string]bool{},
		absentEndpoints: map[string]bool{},
		leaving:         map[string]*plan.Cluster{},
		touched:         map[string]bool{},
		published: &State{
			Listeners: map[string]*plan.Listener{}, Routes: map[string]*plan.RouteConfig{},
			Clusters: map[string]*plan.Cluster{}, Endpoints: map[string]*plan.LoadAssignment{},
		},
	}
}

// Current returns the newest State published; at first an empty one.
func (s *Store) Current() *State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.published
}

// Close ends all waits; onChange is not called again after it returns.
func (s *Store) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.stopWaiting()
}

// Wanted implements client.Handler.
func (s *Store) Wanted(typeURL string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch typeURL {
	case EndpointType:
		return slices.Sorted(maps.Keys(s.wantedEndpoints))
	case RouteType:
		return slices.Sorted(maps.Keys(s.wantedRoutes))
	case SecretType:
		return s.wantedSecrets()
	default:
		return nil
	}
}

// Apply implements client.Handler.
func (s *Store) Apply(typeURL string, added []client.Resource, removed []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	switch typeURL {
	case ListenerType:
		err = change(s.listeners, added, removed, Listener, func(l *plan.Listener) string { return l.Name })
	case RouteType:
		err = change(s.routes, added, removed, Route, func(c *plan.RouteConfig) string { return c.Name })
		answered(err, s.absentRoutes, added, removed)
	case ClusterType:
		before := maps.Clone(s.clusters)
		err = change(s.clusters, added, removed, Cluster, func(c *plan.Cluster) string { return c.Name })
		for name, e := range before {
			if _, stays := s.clusters[name]; !stays {
				s.leaving[name] = e.value
			}
		}
		for name := range s.clusters {
			delete(s.leaving, name)
		}
	case EndpointType:
		err = change(s.endpoints, added, s.notLeaving(removed), LoadAssignment, func(l *plan.LoadAssignment) string { return l.Cluster })
		answered(err, s.absentEndpoints, added, removed)
	case SecretType:
		// Nothing waits for them: without one, handshakes fail, and only those.
		err = change(s.secrets, added, removed, Secret, func(v *plan.Secret) string { return v.Name })
	case NameTableType:
		err = change(s.names, added, removed, NameTable, nil)
	default:
		return fmt.Errorf("resources of type %q were not asked for", typeURL)
	}
	if err != nil {
		return err
	}
	s.heard[typeURL], s.touched[typeURL] = true, true
	switch typeURL {
	case ClusterType:
		s.wantEndpoints()
	case ListenerType:
		s.wantRoutes()
	}
	s.advance(typeURL)
	return nil
}

// change applies a change to the resources of one type, or nothing at all. A
// resource whose bytes are the same keeps its value.
func change[T any](all entries[T], added []client.Resource, removed []string, decode func(*anypb.Any) (*T, error), nameOf func(*T) string) error {
	var faults []error
	fresh := make(entries[T], len(added))
	for _, r := range added {
		if _, twice := fresh[r.Name]; twice {
			faults = append(faults, fmt.Errorf("resource %q comes twice", r.Name))
			continue
		}
		if old, ok := all[r.Name]; ok && bytes.Equal(old.body, r.Body.GetValue()) {
			fresh[r.Name] = old
			continue
		}
		v, err := decode(r.Body)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		if nameOf != nil && nameOf(v) != r.Name {
			faults = append(faults, fmt.Errorf("resource %q is called %q inside", r.Name, nameOf(v)))
			continue
		}
		fresh[r.Name] = entry[T]{r.Body.GetValue(), v}
	}
	if len(faults) > 0 {
		return errors.Join(faults...)
	}
	for _, name := range removed {
		delete(all, name)
	}
	maps.Copy(all, fresh)
	return nil
}

// answered keeps the record of what is known not to exist.
func answered(err error, absent map[string]bool, added []client.Resource, removed []string) {
	if err != nil {
		return
	}
	for _, name := range removed {
		absent[name] = true
	}
	for _, r := range added {
		delete(absent, r.Name)
	}
}

// notLeaving drops the names of endpoint lists that clusters on their way out
// use up to the end.
func (s *Store) notLeaving(removed []string) []string {
	return slices.DeleteFunc(slices.Clone(removed), func(name string) bool {
		for _, c := range s.leaving {
			if c.Discovery == plan.EDS && c.EDSName() == name {
				return true
			}
		}
		return false
	})
}

// advance publishes what has become complete, after a change of one type.
func (s *Store) advance(changed string) {
	s.dropUnreachable()
	if s.complete() {
		s.publish()
		if len(s.leaving) > 0 {
			s.wait() // for the routes to let go of them
		} else {
			s.stopWaiting()
		}
		return
	}
	if changed == EndpointType {
		s.publishEndpoints()
	}
	s.wait()
}

// wait starts the clock, unless it runs.
func (s *Store) wait() {
	if s.deadline == nil && !s.closed {
		var t *time.Timer
		t = time.AfterFunc(patience, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.deadline == t { // else it was stopped too late
				s.deadline = nil
				s.giveUp()
			}
		})
		s.deadline = t
	}
}

func (s *Store) stopWaiting() {
	if s.deadline != nil {
		s.deadline.Stop()
		s.deadline = nil
	}
}

// giveUp publishes what there is. What did not come is not waited for again, so
// that it holds up no later change.
func (s *Store) giveUp() {
	for name := range s.wantedRoutes {
		if _, ok := s.absentRoutes[name]; !ok && s.routes[name].value == nil {
			s.absentRoutes[name] = false
		}
	}
	for name := range s.wantedEndpoints {
		if _, ok := s.absentEndpoints[name]; !ok && s.endpoints[name].value == nil {
			s.absentEndpoints[name] = false
		}
	}
	if len(s.leaving) > 0 {
		clear(s.leaving)
		s.touched[ClusterType] = true
		s.wantEndpoints()
	}
	s.dropUnreachable()
	s.publish()
}

// complete reports whether nothing is waited for: both lists of the top came,
// and every reference in them leads to something or to something absent.
func (s *Store) complete() bool {
	if !s.heard[ClusterType] || !s.heard[ListenerType] {
		return false
	}
	for name := range s.wantedRoutes {
		if _, ok := s.absentRoutes[name]; !ok && s.routes[name].value == nil {
			return false
		}
	}
	for name := range s.wantedEndpoints {
		if _, ok := s.absentEndpoints[name]; !ok && s.endpoints[name].value == nil {
			return false
		}
	}
	return true
}

// warm reports whether the configuration is complete and nothing in it was given
// up on.
func (s *Store) warm() bool {
	if !s.complete() {
		return false
	}
	for _, absent := range []map[string]bool{s.absentRoutes, s.absentEndpoints} {
		for _, told := range absent {
			if !told {
				return false
			}
		}
	}
	return true
}

// dropUnreachable forgets leaving clusters that nothing leads to any more, and
// routes and endpoint lists that nothing refers to.
func (s *Store) dropUnreachable() {
	if len(s.leaving) > 0 {
		used, before := s.usedClusters(), len(s.leaving)
		maps.DeleteFunc(s.leaving, func(name string, _ *plan.Cluster) bool { return !used[name] })
		if len(s.leaving) < before {
			s.touched[ClusterType] = true
			s.wantEndpoints()
		}
	}
	if s.heard[ClusterType] {
		keepWanted(s.endpoints, s.absentEndpoints, s.wantedEndpoints, func() { s.touched[EndpointType] = true })
	}
	if s.heard[ListenerType] {
		keepWanted(s.routes, s.absentRoutes, s.wantedRoutes, func() { s.touched[RouteType] = true })
	}
}

// keepWanted forgets what is not wanted, and calls changed if there was any.
func keepWanted[T any](all entries[T], absent, wanted map[string]bool, changed func()) {
	before := len(all)
	maps.DeleteFunc(all, func(name string, _ entry[T]) bool { return !wanted[name] })
	maps.DeleteFunc(absent, func(name string, _ bool) bool { return !wanted[name] })
	if len(all) < before {
		changed()
	}
}

// wantEndpoints finds out which endpoint lists the clusters refer to.
func (s *Store) wantEndpoints() {
	s.wantedEndpoints = make(map[string]bool, len(s.clusters)+len(s.leaving))
	want := func(c *plan.Cluster) {
		if c.Discovery == plan.EDS {
			s.wantedEndpoints[c.EDSName()] = true
		}
	}
	for _, e := range s.clusters {
		want(e.value)
	}
	for _, c := range s.leaving {
		want(c)
	}
}

// wantRoutes finds out which routes the listeners refer to.
func (s *Store) wantRoutes() {
	s.wantedRoutes = map[string]bool{}
	s.eachChain(func(h *plan.HTTPChain, _ *plan.TCPChain) {
		if h != nil && h.RouteName != "" {
			s.wantedRoutes[h.RouteName] = true
		}
	})
}

// wantedSecrets returns the names of secrets that come from the control plane.
func (s *Store) wantedSecrets() []string {
	names := map[string]bool{}
	for _, e := range s.listeners {
		for _, c := range e.value.Chains {
			if c.TLS == nil {
				continue
			}
			for _, n := range [...]string{c.TLS.Certificate, c.TLS.Roots} {
				if strings.HasPrefix(n, "kubernetes") {
					names[n] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// usedClusters returns the clusters that routes and listeners lead to.
func (s *Store) usedClusters() map[string]bool {
	used := map[string]bool{}
	lead := func(to []plan.WeightedCluster) {
		for _, w := range to {
			used[w.Cluster] = true
		}
	}
	config := func(c *plan.RouteConfig) {
		if c == nil {
			return
		}
		for _, h := range c.Hosts {
			for _, r := range h.Routes {
				lead(r.Clusters)
			}
		}
	}
	for _, e := range s.routes {
		config(e.value)
	}
	s.eachChain(func(h *plan.HTTPChain, t *plan.TCPChain) {
		if h != nil {
			config(h.Inline)
			for _, e := range h.Ask {
				used[e.Cluster] = true
			}
		}
		if t != nil {
			lead(t.Clusters)
		}
	})
	return used
}

// eachChain calls f for every chain of every listener; one of its arguments is nil.
func (s *Store) eachChain(f func(*plan.HTTPChain, *plan.TCPChain)) {
	for _, e := range s.listeners {
		if e.value.API != nil {
			f(e.value.API, nil)
		}
		for _, c := range e.value.Chains {
			f(c.HTTP, c.TCP)
		}
		if d := e.value.Default; d != nil {
			f(d.HTTP, d.TCP)
		}
	}
}

// publish hands on all that was accepted. A type of which nothing changed keeps
// its map.
func (s *Store) publish() {
	next := *s.published
	if s.touched[ListenerType] {
		next.Listeners = values(s.listeners)
	}
	if s.touched[RouteType] {
		next.Routes = values(s.routes)
	}
	if s.touched[ClusterType] {
		next.Clusters = values(s.clusters)
		maps.Copy(next.Clusters, s.leaving)
	}
	if s.touched[EndpointType] {
		next.Endpoints = values(s.endpoints)
	}
	if s.touched[SecretType] {
		next.Secrets = values(s.secrets)
	}
	next.Names = nil
	for _, e := range s.names {
		next.Names = e.value // there is one
	}
	next.Warm = next.Warm || s.warm()
	clear(s.touched)
	s.hand(&next)
}

// publishEndpoints hands on the published state with the newest endpoints of its
// clusters, while the rest of a change is awaited.
func (s *Store) publishEndpoints() {
	next := *s.published
	next.Endpoints = maps.Clone(next.Endpoints)
	changed := false
	for name := range next.Endpoints {
		if e, ok := s.endpoints[name]; ok && e.value != next.Endpoints[name] {
			next.Endpoints[name] = e.value
			changed = true
		}
	}
	if changed {
		s.hand(&next)
	}
}

func (s *Store) hand(next *State) {
	s.published = next
	if !s.closed {
		s.onChange(next)
	}
}

func values[T any](all entries[T]) map[string]*T {
	out := make(map[string]*T, len(all))
	for name, e := range all {
		out[name] = e.value
	}
	return out
}
