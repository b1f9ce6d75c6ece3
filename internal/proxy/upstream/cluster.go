package upstream

import (
	"context"
	"crypto/tls"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/balance"
)

const (
	// defaultConnectTimeout is Istio's, for clusters that name none.
	defaultConnectTimeout = 10 * time.Second
	// defaultIdleTimeout is Envoy's for pooled connections.
	defaultIdleTimeout = time.Hour
)

// Cluster is a group of endpoints reached the same way.
type Cluster struct {
	Name  string
	Stats Stats

	set     *Set
	state   atomic.Pointer[state]
	slots   slots        // one for each open connection
	pending atomic.Int64 // requests that wait for a connection
	retries atomic.Int64 // in flight
	lastDst atomic.Pointer[Endpoint]

	ready     chan struct{} // closed once the first endpoints are known
	readyOnce sync.Once
	replanned chan struct{} // cap 1: wakes the DNS refresh

	mu sync.Mutex
	// mu guards
	byPlan   map[plan.Endpoint]*Endpoint  // keyed without Health and Weight
	byDst    map[netip.AddrPort]*Endpoint // OriginalDst: as they are dialled
	resolved map[plan.StaticEndpoint][]netip.Addr
	closed   bool
	clock    *time.Timer // see startClock
	ticking  bool
}

// member is an endpoint in the place that discovery gave it.
type member struct {
	*Endpoint
	weight, priority, localityWeight uint32
	locality                         int
	healthy                          bool // as discovery says
	usable                           bool // and not ejected
}

// state is what one configuration and one set of endpoints make of a cluster.
type state struct {
	plan       *plan.Cluster
	assignment *plan.LoadAssignment
	endpoints  []*Endpoint // all
	members    []member    // those that picker chooses from, in its order
	picker     balance.Picker

	tls [carriesEnd]*tls.Config
	// secured changes when TLS or the PROXY protocol does: older connections are not used again.
	secured        uint64
	connectTimeout time.Duration
	idleTimeout    time.Duration
}

func newCluster(s *Set, name string) *Cluster {
	c := &Cluster{
		Name:      name,
		set:       s,
		ready:     make(chan struct{}),
		replanned: make(chan struct{}, 1),
		byPlan:    map[plan.Endpoint]*Endpoint{},
		byDst:     map[netip.AddrPort]*Endpoint{},
	}
	c.state.Store(&state{plan: &plan.Cluster{Name: name}})
	return c
}

// Plan returns the cluster's current configuration.
func (c *Cluster) Plan() *plan.Cluster { return c.state.Load().plan }

// update stores a configuration and, for EDS, endpoints.
func (c *Cluster) update(p *plan.Cluster, la *plan.LoadAssignment) {
	c.mu.Lock()
	old := c.state.Load()
	if old.plan == p && old.assignment == la {
		c.mu.Unlock()
		return
	}
	next := *old
	next.plan, next.assignment = p, la
	next.connectTimeout = p.ConnectTimeout
	if next.connectTimeout <= 0 {
		next.connectTimeout = defaultConnectTimeout
	}
	next.idleTimeout = p.IdleTimeout
	if next.idleTimeout <= 0 {
		next.idleTimeout = defaultIdleTimeout
	}
	if old.plan != p && (!reflect.DeepEqual(old.plan.TLS, p.TLS) || old.plan.ProxyProtocol != p.ProxyProtocol) {
		next.secured++
		next.tls = c.tlsConfigs(p.TLS)
	}
	var gone []*Endpoint
	switch p.Discovery {
	case plan.EDS:
		gone = c.setEndpoints(&next, flatten(la))
	case plan.Static, plan.StrictDNS, plan.LogicalDNS:
		gone = c.setEndpoints(&next, unplaced(c.addresses(p)))
	case plan.OriginalDst:
		gone = c.setEndpoints(&next, nil)
	}
	c.state.Store(&next)
	known := !isDNS(p.Discovery) || len(next.endpoints) > 0
	stale := next.secured != old.secured
	all := slices.Clone(next.endpoints)
	for _, e := range c.byDst {
		all = append(all, e)
	}
	c.mu.Unlock()

	if known {
		c.readyOnce.Do(func() { close(c.ready) })
	}
	for _, e := range gone {
		e.flush(true)
	}
	if stale {
		for _, e := range all {
			e.flush(false)
		}
	}
	c.slots.limit(p.MaxConnections)
	select {
	case c.replanned <- struct{}{}:
	default:
	}
}

// setEndpoints puts endpoints and a picker for them into next, reusing the ones
// that are there, and returns those that left. The caller holds mu.
func (c *Cluster) setEndpoints(next *state, list []placed) (gone []*Endpoint) {
	seen := make(map[plan.Endpoint]bool, len(list))
	next.endpoints = make([]*Endpoint, 0, len(list))
	next.members = make([]member, 0, len(list))
	for _, p := range list {
		key := p.Endpoint
		key.Health, key.Weight = 0, 0
		if seen[key] {
			continue
		}
		seen[key] = true
		e := c.byPlan[key]
		if e == nil {
			e = newEndpoint(c, key)
			c.byPlan[key] = e
		}
		next.endpoints = append(next.endpoints, e)
		next.members = append(next.members, member{
			Endpoint: e, weight: p.Weight, priority: p.priority, locality: p.locality, localityWeight: p.localityWeight,
			healthy: p.Health == plan.Healthy,
		})
	}
	for key, e := range c.byPlan {
		if !seen[key] {
			delete(c.byPlan, key)
			gone = append(gone, e)
		}
	}
	c.pick(next)
	return gone
}

// placed is an endpoint as discovery describes it.
type placed struct {
	plan.Endpoint
	priority, localityWeight uint32
	locality                 int
}

// flatten lists an assignment's endpoints.
func flatten(la *plan.LoadAssignment) []placed {
	if la == nil {
		return nil
	}
	var list []placed
	for i, l := range la.Localities {
		for _, e := range l.Endpoints {
			list = append(list, placed{e, l.Priority, l.Weight, i})
		}
	}
	return list
}

// unplaced is for endpoints that are all in one place.
func unplaced(in []plan.Endpoint) []placed {
	list := make([]placed, len(in))
	for i, e := range in {
		list[i].Endpoint = e
	}
	return list
}

// close drains the cluster: nothing can be chosen any more.
func (c *Cluster) close() {
	c.mu.Lock()
	c.closed = true
	next := *c.state.Load()
	all := slices.Clone(next.endpoints)
	for _, e := range c.byDst {
		all = append(all, e)
	}
	next.endpoints, next.members, next.picker = nil, nil, nil
	if c.clock != nil {
		c.clock.Stop()
	}
	c.state.Store(&next)
	clear(c.byPlan)
	clear(c.byDst)
	c.lastDst.Store(nil)
	c.mu.Unlock()
	c.readyOnce.Do(func() { close(c.ready) })
	for _, e := range all {
		e.flush(true)
	}
}

// Want says what a connection is for.
type Want struct {
	// OriginalDst is where the client wanted to go, for clusters that go there.
	OriginalDst netip.AddrPort
	// Tried are endpoints to avoid as long as there are others, and with Remote their
	// priorities as well.
	Tried  []*Endpoint
	Remote bool
	// Hash decides the choice, with Hashed, where the cluster's balancing is by hash.
	Hash   uint64
	Hashed bool
	// Client is on whose behalf the connection is made, for servers that are told.
	Client netip.AddrPort
	// ALPN replaces the cluster's usual offer if it is not nil.
	ALPN []string
	// Fresh asks for a new connection even if there is an idle one.
	Fresh bool
	// Deadline bounds waiting and connecting, if it is not zero.
	Deadline time.Time
	// Since is the time now if the request can be sent again over another connection
	// should an idle one turn out to be closed. Then one that was in use a moment ago
	// is taken without a look at it.
	Since time.Time
}

// choose returns an endpoint, or nil if there is none.
func (c *Cluster) choose(s *state, w *Want) *Endpoint {
	if s.plan.Discovery == plan.OriginalDst {
		return c.originalDst(w.OriginalDst)
	}
	if s.picker == nil {
		return nil
	}
	random := c.set.cfg.Random()
	if w.Hashed && (s.plan.Balancing == plan.RingHash || s.plan.Balancing == plan.Maglev) {
		random = w.Hash
	}
	i := s.picker.Pick(random)
	if len(w.Tried) == 0 {
		return s.members[i].Endpoint
	}
	if w.Remote {
		if e := s.elsewhere(i, w.Tried); e != nil {
			return e
		}
	}
	if !slices.Contains(w.Tried, s.members[i].Endpoint) {
		return s.members[i].Endpoint
	}
	// A few more throws keep the balance; then any other will do.
	for range 3 {
		random = random*0x9e3779b97f4a7c15 + 1
		if e := s.members[s.picker.Pick(random)].Endpoint; !slices.Contains(w.Tried, e) {
			return e
		}
	}
	for n := range s.members {
		if m := &s.members[(i+n)%len(s.members)]; m.usable && !slices.Contains(w.Tried, m.Endpoint) {
			return m.Endpoint
		}
	}
	return s.members[i].Endpoint
}

// elsewhere returns an endpoint of the nearest priority in which none was tried,
// beginning to look at from, or nil.
func (s *state) elsewhere(from int, tried []*Endpoint) *Endpoint {
	var best *member
	for n := range s.members {
		m := &s.members[(from+n)%len(s.members)]
		if !m.usable || best != nil && best.priority <= m.priority {
			continue
		}
		if !slices.ContainsFunc(s.members, func(o member) bool {
			return o.priority == m.priority && slices.Contains(tried, o.Endpoint)
		}) {
			best = m
		}
	}
	if best == nil {
		return nil
	}
	return best.Endpoint
}

// originalDst returns the endpoint for an address, which exists while it is used.
func (c *Cluster) originalDst(addr netip.AddrPort) *Endpoint {
	if !addr.IsValid() {
		return nil
	}
	// Most proxies go to one place: the workload beside them.
	if e := c.lastDst.Load(); e != nil && e.Address == addr {
		return e
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	e := c.byDst[addr]
	if e == nil {
		e = newEndpoint(c, plan.Endpoint{Address: addr})
		c.byDst[addr] = e
	}
	c.lastDst.Store(e)
	return e
}

// forgetUnused drops an endpoint that was made by dialling it. Whoever chose it
// just now can still use it, but its connection will not be kept.
func (c *Cluster) forgetUnused(e *Endpoint) {
	if c.state.Load().plan.Discovery != plan.OriginalDst {
		return
	}
	if e.Stats.RqActive.Load() != 0 || e.Stats.CxActive.Load() != 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byDst[e.Address] != e || !e.retire() {
		return
	}
	delete(c.byDst, e.Address)
	c.lastDst.CompareAndSwap(e, nil)
}

// begin and end count a request in flight on an endpoint, which is also what the
// balancer looks at.
func (c *Cluster) begin(e *Endpoint) {
	c.Stats.RqActive.Add(1)
	e.Stats.RqActive.Add(1)
}

func (c *Cluster) end(e *Endpoint) {
	c.Stats.RqActive.Add(-1)
	e.Stats.RqActive.Add(-1)
}

// Acquire returns a connection for one HTTP/1 request: an idle one, or a new one.
func (c *Cluster) Acquire(ctx context.Context, w Want) (*Conn, error) {
	return c.get(ctx, &w, true)
}

// Connect returns a new connection for a stream of bytes.
func (c *Cluster) Connect(ctx context.Context, w Want) (*Conn, error) {
	return c.get(ctx, &w, false)
}

func (c *Cluster) get(ctx context.Context, w *Want, pooled bool) (*Conn, error) {
	s, e, err := c.admit(ctx, w, pooled)
	if err != nil {
		return nil, err
	}
	conn := (*Conn)(nil)
	if pooled && !w.Fresh {
		conn = c.reuse(e, w)
	}
	if conn == nil {
		var err error
		if conn, err = c.open(ctx, s, e, w, pooled); err != nil {
			c.end(e)
			c.forgetUnused(e)
			return nil, err
		}
		if conn.Endpoint != e { // handed over by a request that ended
			c.end(e)
			c.begin(conn.Endpoint)
		}
	}
	conn.waiting = true
	c.Stats.RqTotal.Add(1)
	conn.Endpoint.Stats.RqTotal.Add(1)
	return conn, nil
}

// admit chooses an endpoint for a request, and counts it as in flight.
func (c *Cluster) admit(ctx context.Context, w *Want, limited bool) (*state, *Endpoint, error) {
	s := c.state.Load()
	if s.picker == nil && isDNS(s.plan.Discovery) {
		if err := c.awaitDNS(ctx, s, w); err != nil {
			return nil, nil, err
		}
		s = c.state.Load()
	}
	if limit := s.plan.MaxRequests; limited && limit > 0 && c.Stats.RqActive.Load() >= int64(limit) {
		return nil, nil, ErrOverflow
	}
	e := c.choose(s, w)
	if e == nil {
		return nil, nil, ErrNoHealthy
	}
	c.begin(e)
	return s, e, nil
}

// reuse returns an idle connection that is still good, or nil.
func (c *Cluster) reuse(e *Endpoint, w *Want) *Conn {
	for {
		conn := e.takeIdle()
		if conn == nil {
			return nil
		}
		if age := c.state.Load().plan.MaxConnAge; (age <= 0 || c.set.cfg.Now().Sub(conn.born) < age) && conn.usable(w) {
			return conn
		}
		conn.discard()
	}
}

// finish ends the request that conn carried.
func (c *Cluster) finish(conn *Conn) {
	if conn.waiting {
		conn.waiting = false
		c.end(conn.Endpoint)
	}
}

// Release takes back a connection after its request. reusable says that the
// response was read to its end and the connection is fit for another one; if not,
// it is closed.
func (c *Cluster) Release(conn *Conn, reusable bool) {
	c.finish(conn)
	s := c.state.Load()
	conn.requests++
	if !reusable || conn.personal || conn.secured != s.secured || s.plan.MaxPerConn > 0 && conn.requests >= s.plan.MaxPerConn ||
		s.plan.MaxConnAge > 0 && c.set.cfg.Now().Sub(conn.born) >= s.plan.MaxConnAge {
		conn.discard()
		c.forgetUnused(conn.Endpoint)
		return
	}
	conn.Reused = true
	if c.slots.offer(conn) {
		return
	}
	if !conn.Endpoint.putIdle(conn, s.idleTimeout) {
		conn.discard()
		return
	}
	if s2 := c.state.Load(); s2.secured != conn.secured {
		conn.Endpoint.flush(false) // TLS changed in between
	}
}

// Report counts the outcome of a request on the endpoint and its cluster.
func (e *Endpoint) Report(success bool) {
	if success {
		e.cluster.Stats.RqSuccess.Add(1)
		e.Stats.RqSuccess.Add(1)
	} else {
		e.cluster.Stats.RqError.Add(1)
		e.Stats.RqError.Add(1)
	}
}

// freeSlot gives back a connection's slot.
func (c *Cluster) freeSlot() {
	c.Stats.CxActive.Add(-1)
	c.slots.free()
}

func isDNS(d plan.Discovery) bool { return d == plan.StrictDNS || d == plan.LogicalDNS }
