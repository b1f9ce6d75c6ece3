package upstream

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
)

const (
	// refreshInterval is how often names are looked up again. Source: Istio's
	// default dnsRefreshRate.
	refreshInterval = time.Minute
	// retryInterval follows a failed look-up.
	retryInterval = 5 * time.Second
	// lookupTimeout bounds one look-up.
	lookupTimeout = 5 * time.Second
)

// Run keeps the addresses of DNS clusters fresh until ctx ends. A look-up that
// fails leaves the last addresses in place.
func (s *Set) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	running := map[*Cluster]context.CancelFunc{}
	for {
		current := map[*Cluster]bool{}
		for _, c := range *s.clusters.Load() {
			if !isDNS(c.Plan().Discovery) {
				continue
			}
			current[c] = true
			if running[c] == nil {
				child, cancel := context.WithCancel(ctx)
				running[c] = cancel
				wg.Go(func() { c.refresh(child) })
			}
		}
		for c, cancel := range running {
			if !current[c] {
				cancel()
				delete(running, c)
			}
		}
		select {
		case <-ctx.Done():
			for _, cancel := range running {
				cancel()
			}
			return nil
		case <-s.refresh:
		}
	}
}

// refresh looks the cluster's names up, now, whenever the configuration changes,
// and at intervals.
func (c *Cluster) refresh(ctx context.Context) {
	for {
		select {
		case <-c.replanned: // what follows looks at the newest anyway
		default:
		}
		wait := refreshInterval
		if !c.resolve(ctx) {
			wait = retryInterval
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-c.replanned:
		case <-t.C:
		}
		t.Stop()
	}
}

// resolve looks all names up once and reports whether every one was found.
func (c *Cluster) resolve(ctx context.Context) bool {
	found := map[plan.StaticEndpoint][]netip.Addr{}
	complete := true
	for _, e := range c.Plan().Static {
		if _, err := netip.ParseAddr(e.Host); err == nil {
			continue
		}
		addrs, err := c.lookup(ctx, e.Host)
		if ctx.Err() != nil {
			return false
		}
		if err != nil || len(addrs) == 0 {
			complete = false
			c.set.cfg.Log.Warn("name of an upstream not found", "cluster", c.Name, "host", e.Host, "error", err)
			continue
		}
		found[e] = addrs
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return true
	}
	next := *c.state.Load()
	for e, old := range c.resolved {
		if found[e] == nil && slices.Contains(next.plan.Static, e) {
			found[e] = old
		}
	}
	c.resolved = found
	list := c.addresses(next.plan)
	var gone []*Endpoint
	if !c.same(next.endpoints, list) {
		gone = c.setEndpoints(&next, unplaced(list))
		c.state.Store(&next)
	}
	c.mu.Unlock()
	c.readyOnce.Do(func() { close(c.ready) })
	for _, e := range gone {
		e.flush(true)
	}
	return complete
}

func (c *Cluster) same(have []*Endpoint, list []plan.Endpoint) bool {
	return slices.EqualFunc(have, list, func(e *Endpoint, p plan.Endpoint) bool { return e.plan == p })
}

func (c *Cluster) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if c.set.cfg.Resolver == nil {
		return nil, ErrNoHealthy
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	addrs, err := c.set.cfg.Resolver.LookupNetIP(ctx, "ip", host)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs, err
}

// addresses lists the endpoints of fixed addresses and of resolved names. The
// caller holds mu.
func (c *Cluster) addresses(p *plan.Cluster) []plan.Endpoint {
	var list []plan.Endpoint
	for _, s := range p.Static {
		addrs := c.resolved[s]
		if a, err := netip.ParseAddr(s.Host); err == nil {
			addrs = []netip.Addr{a.Unmap()}
		} else if p.Discovery == plan.LogicalDNS && len(addrs) > 1 {
			addrs = addrs[:1]
		}
		for _, a := range addrs {
			list = append(list, plan.Endpoint{Address: netip.AddrPortFrom(a, s.Port)})
		}
	}
	return list
}

// awaitDNS waits for the first look-up of the cluster's names to end.
func (c *Cluster) awaitDNS(ctx context.Context, s *state, w *Want) error {
	select {
	case <-c.ready:
		return nil
	default:
	}
	wait := s.connectTimeout
	limited := false
	if !w.Deadline.IsZero() {
		if left := w.Deadline.Sub(c.set.cfg.Now()); left < wait {
			wait, limited = left, true
		}
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-c.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		if limited {
			return ErrDeadline
		}
		return ErrNoHealthy
	}
}
