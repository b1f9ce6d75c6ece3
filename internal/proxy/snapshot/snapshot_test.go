package snapshot

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/decode"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/route"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// handler closes what it gets.
type handler struct {
	http   *plan.HTTPChain
	tcp    *plan.TCPChain
	routes func() *route.Table
}

func (*handler) Serve(_ context.Context, c net.Conn, _ *exchange.Conn) error { return c.Close() }

func deps(live *Live) Deps {
	return Deps{
		Live: live,
		HTTP: func(p *plan.HTTPChain, _ plan.Direction, routes func() *route.Table) (Handler, error) {
			return &handler{http: p, routes: routes}, nil
		},
		TCP: func(p *plan.TCPChain, _ plan.Direction) (Handler, error) {
			if len(p.Clusters) == 0 {
				return nil, errors.New("no clusters")
			}
			return &handler{tcp: p}, nil
		},
		TLS:     func(*plan.ServerTLS) *tls.Config { return &tls.Config{} },
		Context: context.Background(),
	}
}

func httpListener(name, addr, route string) *plan.Listener {
	return &plan.Listener{Name: name, Address: netip.MustParseAddrPort(addr), Chains: []*plan.FilterChain{{HTTP: &plan.HTTPChain{RouteName: route}}}}
}

func tcpListener(name, addr, cluster string) *plan.Listener {
	return &plan.Listener{Name: name, Address: netip.MustParseAddrPort(addr), Chains: []*plan.FilterChain{{TCP: &plan.TCPChain{Clusters: []plan.WeightedCluster{{Cluster: cluster}}}}}}
}

func table(name, host string) *plan.RouteConfig {
	return &plan.RouteConfig{Name: name, Hosts: []*plan.VirtualHost{{Name: host, Domains: []string{"*"}, Routes: []*plan.Route{{Direct: &plan.DirectResponse{Status: 200}}}}}}
}

func stateOf(routes []*plan.RouteConfig, listeners ...*plan.Listener) *decode.State {
	s := &decode.State{Listeners: map[string]*plan.Listener{}, Routes: map[string]*plan.RouteConfig{}}
	for _, l := range listeners {
		s.Listeners[l.Name] = l
	}
	for _, r := range routes {
		s.Routes[r.Name] = r
	}
	return s
}

func build(t *testing.T, state *decode.State, prev *Snapshot, live *Live) *Snapshot {
	t.Helper()
	s, err := Build(state, prev, deps(live))
	if err != nil {
		t.Fatal(err)
	}
	live.Publish(s)
	return s
}

func TestConnectionFindsItsListener(t *testing.T) {
	bound := tcpListener("virtualOutbound", "0.0.0.0:15001", "Passthrough")
	bound.Bound = true
	inbound := tcpListener("inbound", "0.0.0.0:9080", "in")
	inbound.Direction = plan.Inbound
	var live Live
	s := build(t, stateOf(nil, bound, inbound,
		tcpListener("10.96.0.7_5432", "10.96.0.7:5432", "a"),
		tcpListener("0.0.0.0_5432", "0.0.0.0:5432", "b"),
		tcpListener("::_5432", "[::]:5432", "c"),
		tcpListener("0.0.0.0_80", "0.0.0.0:80", "d"),
		tcpListener("fd00::7_80", "[fd00::7]:80", "e"),
	), nil, &live)
	for _, test := range []struct {
		direction plan.Direction
		dst, want string
	}{
		{plan.Outbound, "10.96.0.7:5432", "10.96.0.7_5432"},
		{plan.Outbound, "10.96.0.8:5432", "0.0.0.0_5432"},
		{plan.Outbound, "[fd00::8]:5432", "::_5432"},
		{plan.Outbound, "[fd00::7]:80", "fd00::7_80"},
		{plan.Outbound, "[fd00::8]:80", "0.0.0.0_80"},
		{plan.Outbound, "10.0.0.1:81", ""},
		{plan.Outbound, "10.0.0.1:15001", ""},
		{plan.Outbound, "10.0.0.1:9080", ""}, // the workload's own port is not where others call
		{plan.Inbound, "10.0.0.1:9080", "inbound"},
		{plan.Inbound, "10.96.0.7:5432", ""},
	} {
		name := ""
		if l := s.Unbound(test.direction, netip.MustParseAddrPort(test.dst)); l != nil {
			name = l.Plan.Name
		}
		if name != test.want {
			t.Errorf("direction %d to %s: listener %q, want %q", test.direction, test.dst, name, test.want)
		}
	}
}

func TestUnchangedPartsAreTakenOver(t *testing.T) {
	var live Live
	r1, r2 := table("80", "old"), table("81", "same")
	l1, l2, gone := httpListener("0.0.0.0_80", "0.0.0.0:80", "80"), tcpListener("db", "10.0.0.1:5432", "db"), tcpListener("gone", "10.0.0.2:1", "x")
	l1.Chains = append(l1.Chains, &plan.FilterChain{Name: "second", TCP: &plan.TCPChain{Clusters: []plan.WeightedCluster{{Cluster: "x"}}}})
	first := build(t, stateOf([]*plan.RouteConfig{r1, r2}, l1, l2, gone), nil, &live)
	chain := first.Listeners["0.0.0.0_80"].Chains[0]
	routes := chain.Handler.(*handler).routes
	if got := routes().Config.Hosts[0].Name; got != "old" {
		t.Fatalf("routed by %q, want the first table", got)
	}

	// A new table, and a listener of which only the second chain changed.
	changed := httpListener("0.0.0.0_80", "0.0.0.0:80", "80")
	changed.Chains = append(changed.Chains, &plan.FilterChain{Name: "second", TCP: &plan.TCPChain{Clusters: []plan.WeightedCluster{{Cluster: "y"}}}})
	second := build(t, stateOf([]*plan.RouteConfig{table("80", "new"), r2}, changed, l2), first, &live)

	if second.Listeners["db"] != first.Listeners["db"] {
		t.Error("a listener that did not change was built again")
	}
	if second.Route("81") != first.Route("81") {
		t.Error("a route table that did not change was built again")
	}
	if second.Listeners["0.0.0.0_80"].Chains[0] != chain {
		t.Error("a chain that did not change was built again, so that its connections would be drained")
	}
	if got := routes().Config.Hosts[0].Name; got != "new" {
		t.Errorf("an open connection is routed by %q, want the new table", got)
	}
	retired := Retired(first, second)
	if want := []*Chain{first.Listeners["0.0.0.0_80"].Chains[1], first.Listeners["gone"].Chains[0]}; len(retired) != 2 || !slices.Contains(retired, want[0]) || !slices.Contains(retired, want[1]) {
		t.Errorf("%d chains retired, want the changed one and the removed listener's", len(retired))
	}
	if got := Retired(nil, first); got != nil {
		t.Errorf("%d chains retired by the first snapshot, want none", len(got))
	}
}

func TestOneBadElementLeavesTheOthersAlone(t *testing.T) {
	var live Live
	first := build(t, stateOf([]*plan.RouteConfig{table("80", "good")}, tcpListener("db", "10.0.0.1:5432", "db")), nil, &live)

	twice := table("80", "bad")
	twice.Hosts = append(twice.Hosts, twice.Hosts[0])
	bad := tcpListener("db", "10.0.0.1:5432", "db")
	bad.Chains[0].TCP.Clusters = nil
	both := tcpListener("both", "10.0.0.1:1", "x")
	both.Chains[0].HTTP = &plan.HTTPChain{RouteName: "80"}
	neither := httpListener("neither", "10.0.0.1:2", "")
	s, err := Build(stateOf([]*plan.RouteConfig{twice, table("81", "new")}, bad, both, neither, tcpListener("fine", "10.0.0.1:3", "x")), first, deps(&live))
	if err == nil {
		t.Fatal("no error for bad elements")
	}
	for _, name := range []string{"route 80", "listener db", "listener both", "listener neither"} {
		if !strings.Contains(err.Error(), name+": ") {
			t.Errorf("error %q does not name %s", err, name)
		}
	}
	if s.Route("80") != first.Route("80") || s.Listeners["db"] != first.Listeners["db"] {
		t.Error("a bad element replaced the good one before it")
	}
	if s.Route("81") == nil || s.Listeners["fine"] == nil {
		t.Error("a good element was left out because of bad ones")
	}
	if s.Listeners["both"] != nil || s.Listeners["neither"] != nil {
		t.Error("a bad new element is there")
	}
}

func TestRoutesThatAreNotThereAnswerNothing(t *testing.T) {
	var live Live
	if got := live.Routes("80"); got == nil || len(got.Config.Hosts) != 0 {
		t.Errorf("Routes before the first snapshot = %v, want an empty table", got)
	}
	build(t, stateOf(nil), nil, &live)
	if got := live.Routes("80"); got == nil || len(got.Config.Hosts) != 0 {
		t.Errorf("Routes of an unknown name = %v, want an empty table", got)
	}
}

func TestInlineRoutesAndTLSAreBuilt(t *testing.T) {
	var live Live
	l := httpListener("virtualInbound", "0.0.0.0:15006", "")
	l.Chains[0].HTTP.Inline = table("inbound|80||", "inline")
	l.Chains[0].TLS = &plan.ServerTLS{}
	l.Default = &plan.FilterChain{TCP: &plan.TCPChain{Clusters: []plan.WeightedCluster{{Cluster: "x"}}}}
	api := &plan.Listener{Name: "api", API: &plan.HTTPChain{}}
	s := build(t, stateOf(nil, l, api), nil, &live)
	got := s.Listeners["virtualInbound"]
	if got.Chains[0].TLS == nil || got.Default == nil || got.Default.TLS != nil {
		t.Error("TLS is not where the plan has it")
	}
	if name := got.Chains[0].Handler.(*handler).routes().Config.Hosts[0].Name; name != "inline" {
		t.Errorf("routed by %q, want the inline table", name)
	}
	if s.Listeners["api"] != nil {
		t.Error("a proxyless client's listener was built")
	}
	if n := len(slices.Collect(got.All())); n != 2 {
		t.Errorf("All yields %d chains, want 2", n)
	}
}

// policed is a handler that takes policies.
type policed struct {
	handler
	policies []*plan.HTTPChain
}

func (p *policed) Police(c *plan.HTTPChain) { p.policies = append(p.policies, c) }

// TestAChangeOfPolicyKeepsTheChain holds that it acts on connections that are open,
// when it is published, and closes none.
func TestAChangeOfPolicyKeepsTheChain(t *testing.T) {
	live := &Live{}
	d := deps(live)
	d.HTTP = func(p *plan.HTTPChain, _ plan.Direction, _ func() *route.Table) (Handler, error) {
		return &policed{handler: handler{http: p}}, nil
	}
	listener := func(action plan.RBACAction, metrics bool) *plan.Listener {
		l := httpListener("a", "0.0.0.0:80", "r")
		l.Chains[0].HTTP.RBAC = []*plan.RBAC{{Action: action, Enforced: true}}
		l.Chains[0].HTTP.Metrics = metrics
		return l
	}
	one, err := Build(stateOf(nil, listener(plan.Deny, false)), nil, d)
	if err != nil {
		t.Fatal(err)
	}
	live.Publish(one)
	h := one.Listeners["a"].Chains[0].Handler.(*policed)

	next := listener(plan.Allow, false)
	two, err := Build(stateOf(nil, next), one, d)
	if err != nil {
		t.Fatal(err)
	}
	if c := two.Listeners["a"].Chains[0]; c.Handler != h || c.Plan != next.Chains[0] || len(h.policies) != 0 {
		t.Errorf("the handler is another, or heard too early: %v", h.policies)
	}
	live.Publish(two)
	if len(h.policies) != 1 || h.policies[0] != next.Chains[0].HTTP {
		t.Errorf("the policies heard of are %v", h.policies)
	}
	if gone := Retired(one, two); len(gone) != 0 {
		t.Errorf("%d chains are retired", len(gone))
	}

	three, err := Build(stateOf(nil, listener(plan.Allow, true)), two, d)
	if err != nil {
		t.Fatal(err)
	}
	if three.Listeners["a"].Chains[0].Handler == h || len(Retired(two, three)) != 1 {
		t.Error("a change of something else keeps the handler")
	}
}
