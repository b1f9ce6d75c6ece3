// Package telemetry counts and describes traffic: Istio's standard metrics as
// handles that are resolved once and then only incremented, their exposition in
// Prometheus' text format, and the access log's encoder.
//
// A caller resolves a handle when it knows all labels, keeps it for as long as
// they hold, and counts with it: a count is a few atomic additions, a resolution
// is a map lookup over some twenty strings and must stay off the path of single
// requests. Handles live as long as the Registry.
package telemetry

import (
	"sync"
	"sync/atomic"
	"time"
)

// Workload is one side of a call, as metrics name it. An empty field is printed
// as "unknown".
type Workload struct {
	Name              string // of the Deployment, not of the Pod
	Namespace         string
	App               string
	Version           string
	CanonicalName     string
	CanonicalRevision string
	Cluster           string
	Principal         string // SPIFFE id with scheme
}

// Reporters.
const (
	ReporterSource      = "source"
	ReporterDestination = "destination"
)

// Protocols.
const (
	ProtocolHTTP = "http"
	ProtocolGRPC = "grpc"
	ProtocolTCP  = "tcp"
)

// Values of Labels.Security. The source can not vouch for what the destination
// checked, so its reports always say unknown.
const (
	MutualTLS       = "mutual_tls"
	NoSecurity      = "none"
	UnknownSecurity = "unknown"
)

// Labels are all labels of Istio's standard metrics. The type is comparable: it
// is the key under which handles are shared.
type Labels struct {
	Reporter            string
	Source, Destination Workload
	Service             string // host of the destination service
	ServiceName         string
	ServiceNamespace    string
	Protocol            string
	Code                int    // HTTP status, 0 if the client left before one was sent; not used for TCP
	GRPCStatus          string // number as text; only with ProtocolGRPC
	Flags               string // response flags, "" or "-" for none
	Security            string
}

// maxSeries bounds the label sets of each kind. Labels hold what peers say of
// themselves, so without a bound a peer could fill the proxy's memory. Above it,
// sets are counted under their reporter, protocol and code only.
const maxSeries = 4_000

// Registry holds all metrics of one proxy. It is safe for concurrent use.
type Registry struct {
	mu    sync.RWMutex
	http  map[Labels]*HTTP
	tcp   map[Labels]*TCP
	plain map[string]*family
}

// NewRegistry returns an empty registry.
func NewRegistry() *Registry {
	return &Registry{
		http:  make(map[Labels]*HTTP),
		tcp:   make(map[Labels]*TCP),
		plain: make(map[string]*family),
	}
}

// HTTP returns the handle for requests with these labels, the same one for equal
// labels.
func (r *Registry) HTTP(l Labels) *HTTP {
	r.mu.RLock()
	h := r.http[l]
	r.mu.RUnlock()
	if h != nil {
		return h
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if h = r.http[l]; h != nil {
		return h
	}
	if len(r.http) >= maxSeries {
		l = Labels{Reporter: l.Reporter, Protocol: l.Protocol, Code: l.Code, Security: UnknownSecurity}
		if h = r.http[l]; h != nil {
			return h
		}
	}
	h = &HTTP{}
	r.http[l] = h
	return h
}

// TCP returns the handle for connections with these labels, the same one for
// equal labels.
func (r *Registry) TCP(l Labels) *TCP {
	l.Code, l.GRPCStatus = 0, ""
	r.mu.RLock()
	t := r.tcp[l]
	r.mu.RUnlock()
	if t != nil {
		return t
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if t = r.tcp[l]; t != nil {
		return t
	}
	if len(r.tcp) >= maxSeries {
		l = Labels{Reporter: l.Reporter, Protocol: l.Protocol, Security: UnknownSecurity}
		if t = r.tcp[l]; t != nil {
			return t
		}
	}
	t = &TCP{}
	r.tcp[l] = t
	return t
}

// HTTP counts the requests of one label set. The number of requests is the sum
// of the duration's buckets, so it needs no counter of its own.
type HTTP struct {
	duration         histogram // microseconds
	request          histogram // bytes
	response         histogram // bytes
	requestMessages  atomic.Int64
	responseMessages atomic.Int64
}

// Observe counts one finished request.
func (h *HTTP) Observe(d time.Duration, requestBytes, responseBytes int64) {
	h.duration.observe(max(d.Microseconds(), 0), &durationBounds)
	h.request.observe(max(requestBytes, 0), &sizeBounds)
	h.response.observe(max(responseBytes, 0), &sizeBounds)
}

// Messages counts gRPC messages of one request.
func (h *HTTP) Messages(request, response int64) {
	h.requestMessages.Add(request)
	h.responseMessages.Add(response)
}

// TCP counts the connections of one label set.
type TCP struct {
	opened, closed, sent, received atomic.Int64
}

// Opened counts a connection that began.
func (t *TCP) Opened() { t.opened.Add(1) }

// Closed counts a connection that ended.
func (t *TCP) Closed() { t.closed.Add(1) }

// Sent counts bytes sent towards the client: a response, in HTTP's words.
func (t *TCP) Sent(n int64) { t.sent.Add(n) }

// Received counts bytes received from the client: a request, in HTTP's words.
func (t *TCP) Received(n int64) { t.received.Add(n) }

// buckets is the number of finite histogram buckets.
const buckets = 19

// bounds are the upper limits, in the unit observed.
type bounds [buckets]int64

// Istio's histograms all share Envoy's default bounds, whatever their unit:
// 0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000,
// 300000, 600000, 1800000 and 3600000. Durations are kept in microseconds to
// hold fractions of the millisecond; a size is a whole number, so that 0 is all
// that fits under 0.5.
var (
	durationBounds = bounds{500, 1_000, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
		1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000, 300_000_000, 600_000_000,
		1_800_000_000, 3_600_000_000}
	sizeBounds = bounds{0, 1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000,
		300_000, 600_000, 1_800_000, 3_600_000}
)

// boundNames are the values of the "le" label.
var boundNames = [buckets]string{"0.5", "1", "5", "10", "25", "50", "100", "250", "500", "1000", "2500",
	"5000", "10000", "30000", "60000", "300000", "600000", "1800000", "3600000"}

// histogram counts observations by bucket; the last count is above all bounds.
type histogram struct {
	counts [buckets + 1]atomic.Uint64
	sum    atomic.Int64
}

func (h *histogram) observe(v int64, b *bounds) {
	i := 0
	for i < buckets && v > b[i] {
		i++
	}
	h.counts[i].Add(1)
	h.sum.Add(v)
}

// Label is one label of a plain metric.
type Label struct{ Name, Value string }

// Counter is a number that only grows.
type Counter struct{ n atomic.Int64 }

// Add adds n, which is not negative.
func (c *Counter) Add(n int64) { c.n.Add(n) }

// Inc adds one.
func (c *Counter) Inc() { c.n.Add(1) }

// Value returns the count.
func (c *Counter) Value() int64 { return c.n.Load() }

// Gauge is a number that goes up and down.
type Gauge struct{ n atomic.Int64 }

// Set replaces the value.
func (g *Gauge) Set(n int64) { g.n.Store(n) }

// Add adds n, which may be negative.
func (g *Gauge) Add(n int64) { g.n.Add(n) }

// Value returns the value.
func (g *Gauge) Value() int64 { return g.n.Load() }

// Kinds of plain metrics, as Prometheus' TYPE line calls them.
const (
	kindCounter = "counter"
	kindGauge   = "gauge"
)

// family is all series of one plain metric, keyed by their printed labels, or
// what tells them when asked.
type family struct {
	help, kind string
	series     map[string]*series
	collect    func(yield func(value float64, labels ...Label))
}

// series is one number; exactly one field is set.
type series struct {
	counter *Counter
	gauge   *Gauge
	read    func() float64
}

// Counter returns the counter of this name and these labels, made on first use.
// A name belongs to one kind: asking for it as another is a mistake in the
// program, and panics.
func (r *Registry) Counter(name, help string, labels ...Label) *Counter {
	s := r.series(name, help, kindCounter, labels, func() *series { return &series{counter: &Counter{}} })
	return s.counter
}

// Gauge is as Counter, for a gauge.
func (r *Registry) Gauge(name, help string, labels ...Label) *Gauge {
	s := r.series(name, help, kindGauge, labels, func() *series { return &series{gauge: &Gauge{}} })
	return s.gauge
}

// GaugeFunc registers a gauge whose value is asked for at each exposition. The
// last function registered for a name and labels wins. It must not block, nor
// call the registry.
func (r *Registry) GaugeFunc(name, help string, read func() float64, labels ...Label) {
	s := r.series(name, help, kindGauge, labels, func() *series { return &series{} })
	r.mu.Lock()
	s.gauge, s.read = nil, read
	r.mu.Unlock()
}

// Collect registers a family whose series are asked for at each exposition:
// collect calls yield for each. kind is "counter" or "gauge". The last function
// registered for a name wins. It must not block, nor call the registry.
func (r *Registry) Collect(name, help, kind string, collect func(yield func(value float64, labels ...Label))) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.plain[name] = &family{help: help, kind: kind, collect: collect}
}

func (r *Registry) series(name, help, kind string, labels []Label, fresh func() *series) *series {
	key := string(appendLabels(nil, labels))
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.plain[name]
	if f == nil {
		f = &family{help: help, kind: kind, series: make(map[string]*series)}
		r.plain[name] = f
	}
	if f.kind != kind || f.collect != nil {
		panic("telemetry: " + name + " is registered as another kind than " + kind)
	}
	s := f.series[key]
	if s == nil {
		s = fresh()
		f.series[key] = s
	}
	return s
}
