package server

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/internal/compile"
	"github.com/heddle-mesh/heddle/internal/encode"
)

// ProxyStatus tells about one connected proxy.
type ProxyStatus struct {
	Node      string // the whole id
	Proxy     compile.Proxy
	Version   string // what the proxy says that it is
	Connected time.Time
	Types     map[string]ProxyType // by type URL
}

// ProxyType is a TypeStatus with its times.
type ProxyType struct {
	TypeStatus
	SentAt, AckedAt time.Time
}

// Proxies returns the connected proxies, by id.
func (s *Server) Proxies() []ProxyStatus {
	s.mu.Lock()
	streams := slices.Collect(maps.Keys(s.streams))
	s.mu.Unlock()
	out := make([]ProxyStatus, 0, len(streams))
	for _, st := range streams {
		out = append(out, st.status())
	}
	slices.SortFunc(out, func(a, b ProxyStatus) int {
		return cmp.Or(strings.Compare(a.Proxy.ID, b.Proxy.ID), strings.Compare(a.Node, b.Node), a.Connected.Compare(b.Connected))
	})
	return out
}

func (st *stream) status() ProxyStatus {
	st.mu.Lock()
	defer st.mu.Unlock()
	p := ProxyStatus{
		Node: st.node, Proxy: *st.proxy, Version: st.version, Connected: st.began, Types: map[string]ProxyType{},
	}
	for typ, t := range st.machine.status() {
		p.Types[typ] = ProxyType{t, st.sentAt[typ], st.ackedAt[typ]}
	}
	return p
}

// Resources returns what the control plane would have a connected proxy know,
// with the endpoints that it subscribed to; false if no such proxy is connected.
// The id is the proxy's, "pod.namespace".
func (s *Server) Resources(id string) (encode.Set, bool) {
	s.mu.Lock()
	var found *stream
	for st := range s.streams {
		if st.id() == id && (found == nil || st.began.After(found.began)) {
			found = st
		}
	}
	s.mu.Unlock()
	if found == nil {
		return nil, false
	}
	found.mu.Lock()
	defer found.mu.Unlock()
	out := encode.Set{}
	if found.have == nil {
		return out, true
	}
	maps.Copy(out, found.have.planned.set)
	for _, name := range slices.Sorted(maps.Keys(found.machine.watched(encode.EndpointType))) {
		if r := found.have.get(encode.EndpointType, name); r != nil {
			out[encode.EndpointType] = append(out[encode.EndpointType], r)
		}
	}
	return out, true
}

// id returns the proxy's id, which never changes.
func (st *stream) id() string { return strings.Split(st.node, "~")[2] }

// Counts are the server's counters.
type Counts struct {
	Streams int
	Pushes  map[string]uint64 // responses sent, by type URL
	Rejects map[string]uint64 // NACKs, by type URL
	Stale   uint64            // requests about a response that was superseded
	// Convergence is how long changes of configuration took from the source to
	// the proxy's last ACK.
	Convergence Histogram
}

// Histogram counts durations; Buckets[i] are those of at most ConvergenceBounds[i].
type Histogram struct {
	Buckets []uint64 // cumulative
	Count   uint64
	Sum     time.Duration
}

// ConvergenceBounds are Istio's, with finer ones below.
var ConvergenceBounds = [...]time.Duration{
	5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 500 * time.Millisecond, time.Second, 3 * time.Second, 5 * time.Second,
	10 * time.Second, 20 * time.Second, 30 * time.Second,
}

// Counts returns the counters as they are now.
func (s *Server) Counts() Counts {
	s.mu.Lock()
	n := len(s.streams)
	s.mu.Unlock()
	c := s.counts.read()
	c.Streams = n
	return c
}

// counters are what Counts reads.
type counters struct {
	stale atomic.Uint64

	mu sync.Mutex
	// mu guards the rest.
	pushes, rejects map[string]uint64
	within          [len(ConvergenceBounds)]uint64
	count           uint64
	sum             time.Duration
}

func (c *counters) push(typeURL string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pushes == nil {
		c.pushes = map[string]uint64{}
	}
	c.pushes[counted(typeURL)]++
}

// counted keeps clients from inventing series.
func counted(typeURL string) string {
	if slices.Contains(pushOrder, typeURL) {
		return typeURL
	}
	return "other"
}

func (c *counters) reject(typeURL string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rejects == nil {
		c.rejects = map[string]uint64{}
	}
	c.rejects[counted(typeURL)]++
}

func (c *counters) converged(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count++
	c.sum += d
	for i, bound := range ConvergenceBounds {
		if d <= bound {
			c.within[i]++
		}
	}
}

func (c *counters) read() Counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Counts{
		Pushes: maps.Clone(c.pushes), Rejects: maps.Clone(c.rejects), Stale: c.stale.Load(),
		Convergence: Histogram{Buckets: slices.Clone(c.within[:]), Count: c.count, Sum: c.sum},
	}
}
