package decode

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-mesh/heddle/internal/encode"
	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/xds/client"
)

// The tests speak of a small world: listener "l" asks for route "r", which leads
// to clusters, each with endpoints of its own name.

func listenerFor(name, route string) *plan.Listener {
	return &plan.Listener{Name: name, Address: netip.MustParseAddrPort("0.0.0.0:80"), Chains: []*plan.FilterChain{{HTTP: &plan.HTTPChain{RouteName: route}}}}
}

func routeTo(name string, clusters ...string) *plan.RouteConfig {
	h := &plan.VirtualHost{Name: "h", Domains: []string{"*"}}
	for _, c := range clusters {
		h.Routes = append(h.Routes, &plan.Route{Clusters: []plan.WeightedCluster{{Cluster: c}}})
	}
	return &plan.RouteConfig{Name: name, Hosts: []*plan.VirtualHost{h}}
}

func endpointsOf(cluster string, ports ...uint16) *plan.LoadAssignment {
	g := plan.LocalityEndpoints{Weight: 1}
	for _, p := range ports {
		g.Endpoints = append(g.Endpoints, plan.Endpoint{Address: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), p)})
	}
	return &plan.LoadAssignment{Cluster: cluster, Localities: []plan.LocalityEndpoints{g}}
}

func wire(elements ...any) []client.Resource {
	e, p := encode.New(), &plan.Plan{}
	var out []client.Resource
	add := func(r *encode.Resource) {
		out = append(out, client.Resource{Name: r.Name, Version: r.Version, Body: r.Body})
	}
	for _, x := range elements {
		switch x := x.(type) {
		case *plan.Listener:
			p.Listeners = append(p.Listeners, x)
		case *plan.RouteConfig:
			p.Routes = append(p.Routes, x)
		case *plan.Cluster:
			p.Clusters = append(p.Clusters, x)
		case *plan.NameTable:
			p.Names = x
		case *plan.LoadAssignment:
			add(e.LoadAssignment(x))
		}
	}
	set := e.Plan(p)
	for _, typ := range slices.Sorted(maps.Keys(set)) {
		for _, r := range set[typ] {
			add(r)
		}
	}
	return out
}

func clusters(names ...string) []client.Resource {
	var out []any
	for _, n := range names {
		out = append(out, &plan.Cluster{Name: n})
	}
	return wire(out...)
}

// recorder is a store with a trace of what it published.
type recorder struct {
	*Store
	t     *testing.T
	trace []string
}

func record(t *testing.T) *recorder {
	r := &recorder{t: t}
	r.Store = NewStore(func(s *State) { r.trace = append(r.trace, show(s)) })
	t.Cleanup(r.Close)
	return r
}

// show prints a state as "warm l->r r->a,b a:1 b:-", with "-" for no endpoints.
func show(s *State) string {
	var words []string
	if s.Warm {
		words = append(words, "warm")
	}
	for _, name := range slices.Sorted(maps.Keys(s.Listeners)) {
		words = append(words, name+"->"+s.Listeners[name].Chains[0].HTTP.RouteName)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Routes)) {
		var to []string
		for _, r := range s.Routes[name].Hosts[0].Routes {
			to = append(to, r.Clusters[0].Cluster)
		}
		words = append(words, name+"->"+strings.Join(to, ","))
	}
	for _, name := range slices.Sorted(maps.Keys(s.Clusters)) {
		n := "-"
		if l := s.Endpoints[name]; l != nil {
			n = fmt.Sprint(len(l.Localities[0].Endpoints))
		}
		words = append(words, name+":"+n)
	}
	return strings.Join(words, " ")
}

func (r *recorder) apply(typ string, added []client.Resource, removed ...string) {
	r.t.Helper()
	if err := r.Apply(typ, added, removed); err != nil {
		r.t.Fatalf("%s: %v", typ, err)
	}
}

// expect compares what was published since the last call.
func (r *recorder) expect(want ...string) {
	r.t.Helper()
	r.mu.Lock() // the clock publishes, too
	defer r.mu.Unlock()
	if !slices.Equal(r.trace, want) {
		r.t.Errorf("published\n\t%s\nwant\n\t%s", strings.Join(r.trace, "\n\t"), strings.Join(want, "\n\t"))
	}
	r.trace = nil
}

// settled returns a store with the small world in it.
func settled(t *testing.T) *recorder {
	r := record(t)
	r.apply(ClusterType, clusters("a"))
	r.apply(EndpointType, wire(endpointsOf("a", 1)))
	r.apply(ListenerType, wire(listenerFor("l", "r")))
	r.apply(RouteType, wire(routeTo("r", "a")))
	r.expect("warm l->r r->a a:1")
	return r
}

func TestNothingIsPublishedBeforeItIsComplete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := record(t)
		r.apply(ListenerType, wire(listenerFor("l", "r")))
		r.apply(RouteType, wire(routeTo("r", "a", "b")))
		r.apply(ClusterType, clusters("a", "b"))
		r.apply(EndpointType, wire(endpointsOf("a", 1)))
		r.expect()
		if got := r.Wanted(EndpointType); !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("wants endpoints %v", got)
		}
		if got := r.Wanted(RouteType); !slices.Equal(got, []string{"r"}) {
			t.Errorf("wants routes %v", got)
		}
		r.apply(EndpointType, wire(endpointsOf("b", 1, 2)))
		r.expect("warm l->r r->a,b a:1 b:2")
	})
}

func TestAnEmptyWorldIsComplete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := record(t)
		r.apply(ClusterType, nil)
		r.expect()
		r.apply(ListenerType, nil)
		r.expect("warm")
	})
}

func TestWhatDoesNotExistIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := record(t)
		r.apply(ClusterType, clusters("a"))
		r.apply(ListenerType, wire(listenerFor("l", "r")))
		r.apply(EndpointType, nil, "a")
		r.apply(RouteType, nil, "r")
		r.expect("warm l->r a:-")
		r.apply(RouteType, wire(routeTo("r", "a"))) // it came into being
		r.expect("warm l->r r->a a:-")
	})
}

func TestANewClusterWaitsForItsEndpoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := settled(t)
		r.apply(ClusterType, clusters("b"))
		r.apply(RouteType, wire(routeTo("r", "a", "b")))
		r.expect()
		r.apply(EndpointType, wire(endpointsOf("b", 1)))
		r.expect("warm l->r r->a,b a:1 b:1")
	})
}

func TestANewListenerWaitsForItsRoutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := settled(t)
		r.apply(ListenerType, wire(listenerFor("l2", "r2")))
		r.expect()
		r.apply(RouteType, wire(routeTo("r2", "a")))
		r.expect("warm l->r l2->r2 r->a r2->a a:1")
	})
}

func TestARemovedClusterStaysWhileRoutesLeadToIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := settled(t)
		// As a server sends it: clusters first, and endpoints with them.
		r.apply(ClusterType, clusters("b"), "a")
		r.apply(EndpointType, wire(endpointsOf("b", 1)), "a")
		r.expect("warm l->r r->a a:1 b:1")
		if got := r.Wanted(EndpointType); !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("wants endpoints %v", got)
		}
		r.apply(RouteType, wire(routeTo("r", "b")))
		r.expect("warm l->r r->b b:1")
	})
}

func TestARemovedClusterDoesNotStayForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := settled(t)
		r.apply(ClusterType, nil, "a")
		r.expect("warm l->r r->a a:1")
		time.Sleep(patience + time.Second)
		synctest.Wait()
		r.expect("warm l->r r->a")
	})
}

func TestEndpointsOfClustersInUseAreNotHeldUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := settled(t)
		r.apply(ListenerType, wire(listenerFor("l2", "r2"))) // r2 is awaited
		r.apply(EndpointType, wire(endpointsOf("a", 1, 2, 3)))
		r.expect("warm l->r r->a a:3")
		r.apply(RouteType, wire(routeTo("r2", "a")))
		r.expect("warm l->r l2->r2 r->a r2->a a:3")
	})
}

func TestWaitingEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := settled(t)
		r.apply(ListenerType, wire(listenerFor("l2", "r2")))
		time.Sleep(patience - time.Second)
		synctest.Wait()
		r.expect()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		r.expect("warm l->r l2->r2 r->a a:1")
		// What was given up on holds up nothing further.
		r.apply(ClusterType, clusters("a", "b"))
		r.apply(EndpointType, wire(endpointsOf("b", 1)))
		r.expect("warm l->r l2->r2 r->a a:1 b:1")
	})
}

func TestAnIncompleteStartIsNotWarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := record(t)
		r.apply(ClusterType, clusters("a"))
		r.apply(ListenerType, nil)
		time.Sleep(patience + time.Second)
		synctest.Wait()
		r.expect("a:-")
		r.apply(ListenerType, nil)
		r.expect("a:-")
		r.apply(EndpointType, wire(endpointsOf("a", 1)))
		r.expect("warm a:1")
	})
}

func TestCloseEndsTheWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := settled(t)
		r.apply(ListenerType, wire(listenerFor("l2", "r2")))
		r.Close()
		time.Sleep(patience + time.Second)
		synctest.Wait()
		r.expect()
	})
}

func TestARefusedChangeChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := settled(t)
		bad := wire(&plan.RouteConfig{Name: "r", Hosts: []*plan.VirtualHost{{Name: "h"}}}) // no domains
		good := clusters("b")
		if err := r.Apply(RouteType, bad, nil); err == nil || !strings.Contains(err.Error(), `route "r"`) {
			t.Errorf("got %v, want a refusal that names the route", err)
		}
		// One bad element refuses the good ones beside it, and the removals.
		broken := clusters("c")
		broken[0].Body.Value = append(slices.Clone(broken[0].Body.Value), 0xff)
		if err := r.Apply(ClusterType, append(good, broken...), []string{"a"}); err == nil {
			t.Error("a broken cluster was accepted")
		}
		r.expect()
		r.apply(EndpointType, wire(endpointsOf("a", 1, 2)))
		r.expect("warm l->r r->a a:2")
	})
}

func TestNamesMustAgree(t *testing.T) {
	r := record(t)
	c := clusters("a")
	c[0].Name = "b"
	if err := r.Apply(ClusterType, c, nil); err == nil || !strings.Contains(err.Error(), `"b" is called "a" inside`) {
		t.Errorf("got %v", err)
	}
	if err := r.Apply(ClusterType, append(clusters("a"), clusters("a")...), nil); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("got %v", err)
	}
	if err := r.Apply("type.googleapis.com/x", nil, nil); err == nil {
		t.Error("a type that nobody asked for was accepted")
	}
}

func TestUnchangedElementsKeepTheirPointers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := settled(t)
		before := r.Current()
		r.apply(ClusterType, clusters("a", "b")) // a comes again, unchanged
		r.apply(EndpointType, wire(endpointsOf("b", 1)))
		after := r.Current()
		if before == after {
			t.Fatal("no new state")
		}
		if before.Clusters["a"] != after.Clusters["a"] || before.Endpoints["a"] != after.Endpoints["a"] ||
			before.Listeners["l"] != after.Listeners["l"] || before.Routes["r"] != after.Routes["r"] {
			t.Error("an unchanged element was made anew")
		}
		if len(before.Clusters) != 1 {
			t.Error("a published state was changed")
		}
		same := func(a, b any) bool { return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer() }
		if !same(before.Listeners, after.Listeners) || !same(before.Routes, after.Routes) || same(before.Clusters, after.Clusters) {
			t.Error("maps of unchanged types are not shared, or those of changed ones are")
		}
	})
}

func TestNamesAreHandedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := settled(t)
		if r.Current().Names != nil {
			t.Error("there are names without a table")
		}
		r.apply(NameTableType, wire(&plan.NameTable{Names: []plan.NameEntry{{Host: "a.b"}}}))
		if n := r.Current().Names; n == nil || n.Names[0].Host != "a.b" {
			t.Errorf("got %+v", n)
		}
	})
}
