package upstream

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// ClusterStatus is a cluster as the admin pages show it.
type ClusterStatus struct {
	Name      string
	Plan      *plan.Cluster
	Counts    Counts
	Pending   int64
	Endpoints []EndpointStatus
}

// EndpointStatus is an endpoint as the admin pages show it.
type EndpointStatus struct {
	Address netip.AddrPort
	Healthy bool // it can be chosen
	MTLS    bool
	Idle    int
	Counts  Counts
}

// Counts are Stats at one moment.
type Counts struct {
	RqTotal, RqSuccess, RqError, RqActive int64
	CxActive, CxTotal, CxConnectFail      int64
	Ejections                             int64
}

// Load returns the counts of now.
func (s *Stats) Load() Counts {
	return Counts{
		RqTotal:       s.RqTotal.Load(),
		RqSuccess:     s.RqSuccess.Load(),
		RqError:       s.RqError.Load(),
		RqActive:      s.RqActive.Load(),
		CxActive:      s.CxActive.Load(),
		CxTotal:       s.CxTotal.Load(),
		CxConnectFail: s.CxConnectFail.Load(),
		Ejections:     s.Ejections.Load(),
	}
}

// Status describes all clusters in the order of their names.
func (s *Set) Status() []ClusterStatus {
	var list []ClusterStatus
	for _, c := range s.sorted() {
		list = append(list, c.status())
	}
	return list
}

func (c *Cluster) status() ClusterStatus {
	c.mu.Lock()
	st := c.state.Load()
	endpoints := slices.Clone(st.endpoints)
	for _, addr := range slices.SortedFunc(maps.Keys(c.byDst), netip.AddrPort.Compare) {
		endpoints = append(endpoints, c.byDst[addr])
	}
	c.mu.Unlock()
	s := ClusterStatus{Name: c.Name, Plan: st.plan, Counts: c.Stats.Load(), Pending: c.pending.Load()}
	for _, e := range endpoints {
		s.Endpoints = append(s.Endpoints, EndpointStatus{
			Address: e.Address,
			Healthy: st.plan.Discovery == plan.OriginalDst || slices.ContainsFunc(st.members, func(m member) bool { return m.Endpoint == e && m.usable }),
			MTLS:    e.MTLS,
			Idle:    e.Idle(),
			Counts:  e.Stats.Load(),
		})
	}
	return s
}
