package telemetry

import (
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// flushAt is how much text is gathered before it is handed to the writer, so
// that an exposition of any size needs little memory.
const flushAt = 32 << 10

// WritePrometheus writes all metrics in Prometheus' text format, version 0.0.4:
// families sorted by name, their series by labels.
func (r *Registry) WritePrometheus(w io.Writer) error {
	e := exposition{w: w}

	r.mu.RLock()
	http := sortedSeries(r.http, true)
	tcp := sortedSeries(r.tcp, false)
	plain := slices.Sorted(maps.Keys(r.plain))
	r.mu.RUnlock()

	blocks := []block{
		{"istio_request_bytes", func() {
			e.histograms("istio_request_bytes", "Size of request bodies in bytes.", http, func(h *HTTP) *histogram { return &h.request }, 1)
		}},
		{"istio_request_duration_milliseconds", func() {
			e.histograms("istio_request_duration_milliseconds", "Duration of requests in milliseconds.", http, func(h *HTTP) *histogram { return &h.duration }, 1000)
		}},
		{"istio_request_messages_total", func() {
			e.messages("istio_request_messages_total", "Number of gRPC messages sent by clients.", http, func(h *HTTP) int64 { return h.requestMessages.Load() })
		}},
		{"istio_requests_total", func() { e.requests(http) }},
		{"istio_response_bytes", func() {
			e.histograms("istio_response_bytes", "Size of response bodies in bytes.", http, func(h *HTTP) *histogram { return &h.response }, 1)
		}},
		{"istio_response_messages_total", func() {
			e.messages("istio_response_messages_total", "Number of gRPC messages sent by servers.", http, func(h *HTTP) int64 { return h.responseMessages.Load() })
		}},
		{"istio_tcp_connections_closed_total", func() {
			e.tcp("istio_tcp_connections_closed_total", "Number of closed TCP connections.", tcp, func(t *TCP) int64 { return t.closed.Load() })
		}},
		{"istio_tcp_connections_opened_total", func() {
			e.tcp("istio_tcp_connections_opened_total", "Number of opened TCP connections.", tcp, func(t *TCP) int64 { return t.opened.Load() })
		}},
		{"istio_tcp_received_bytes_total", func() {
			e.tcp("istio_tcp_received_bytes_total", "Bytes received from TCP clients.", tcp, func(t *TCP) int64 { return t.received.Load() })
		}},
		{"istio_tcp_sent_bytes_total", func() {
			e.tcp("istio_tcp_sent_bytes_total", "Bytes sent to TCP clients.", tcp, func(t *TCP) int64 { return t.sent.Load() })
		}},
	}
	for _, name := range plain {
		blocks = append(blocks, block{name, func() { e.plain(r, name) }})
	}
	slices.SortStableFunc(blocks, func(a, b block) int { return strings.Compare(a.name, b.name) })
	for _, b := range blocks {
		b.write()
	}
	e.flush()
	return e.err
}

// block writes one family.
type block struct {
	name  string
	write func()
}

// labelled is one standard series with its labels printed, without braces.
type labelled[T any] struct {
	labels string
	grpc   bool
	value  T
}

func sortedSeries[T any](m map[Labels]T, http bool) []labelled[T] {
	out := make([]labelled[T], 0, len(m))
	var b []byte
	for l, v := range m {
		b = l.append(b[:0], http)
		out = append(out, labelled[T]{string(b), l.Protocol == ProtocolGRPC, v})
	}
	slices.SortFunc(out, func(a, b labelled[T]) int { return strings.Compare(a.labels, b.labels) })
	return out
}

// append prints the labels in Istio's order, without braces.
func (l *Labels) append(b []byte, http bool) []byte {
	first := true
	put := func(name, value string) {
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(b, name...)
		b = append(b, `="`...)
		b = appendLabelValue(b, value)
		b = append(b, '"')
	}
	known := func(name, value string) {
		if value == "" {
			value = "unknown"
		}
		put(name, value)
	}
	known("reporter", l.Reporter)
	known("source_workload", l.Source.Name)
	known("source_canonical_service", l.Source.CanonicalName)
	known("source_canonical_revision", l.Source.CanonicalRevision)
	known("source_workload_namespace", l.Source.Namespace)
	known("source_principal", l.Source.Principal)
	known("source_app", l.Source.App)
	known("source_version", l.Source.Version)
	known("source_cluster", l.Source.Cluster)
	known("destination_workload", l.Destination.Name)
	known("destination_workload_namespace", l.Destination.Namespace)
	known("destination_principal", l.Destination.Principal)
	known("destination_app", l.Destination.App)
	known("destination_version", l.Destination.Version)
	known("destination_service", l.Service)
	known("destination_canonical_service", l.Destination.CanonicalName)
	known("destination_canonical_revision", l.Destination.CanonicalRevision)
	known("destination_service_name", l.ServiceName)
	known("destination_service_namespace", l.ServiceNamespace)
	known("destination_cluster", l.Destination.Cluster)
	known("request_protocol", l.Protocol)
	if http {
		put("response_code", strconv.Itoa(l.Code))
		if l.Protocol == ProtocolGRPC {
			put("grpc_response_status", l.GRPCStatus)
		}
	}
	if l.Flags == "" {
		put("response_flags", "-")
	} else {
		put("response_flags", l.Flags)
	}
	known("connection_security_policy", l.Security)
	return b
}

// exposition gathers text and keeps the first error of its writer.
type exposition struct {
	w   io.Writer
	b   []byte
	err error
}

func (e *exposition) flush() {
	if e.err == nil && len(e.b) > 0 {
		_, e.err = e.w.Write(e.b)
	}
	e.b = e.b[:0]
}

func (e *exposition) head(name, help, kind string) {
	e.b = append(e.b, "# HELP "...)
	e.b = append(e.b, name...)
	e.b = append(e.b, ' ')
	e.b = appendHelp(e.b, help)
	e.b = append(e.b, "\n# TYPE "...)
	e.b = append(e.b, name...)
	e.b = append(e.b, ' ')
	e.b = append(e.b, kind...)
	e.b = append(e.b, '\n')
}

// sample begins a line up to the space before its value.
func (e *exposition) sample(name, suffix, labels, le string) {
	if len(e.b) >= flushAt {
		e.flush()
	}
	e.b = append(e.b, name...)
	e.b = append(e.b, suffix...)
	if labels != "" || le != "" {
		e.b = append(e.b, '{')
		e.b = append(e.b, labels...)
		if le != "" {
			if labels != "" {
				e.b = append(e.b, ',')
			}
			e.b = append(e.b, `le="`...)
			e.b = append(e.b, le...)
			e.b = append(e.b, '"')
		}
		e.b = append(e.b, '}')
	}
	e.b = append(e.b, ' ')
}

func (e *exposition) integer(n int64) {
	e.b = strconv.AppendInt(e.b, n, 10)
	e.b = append(e.b, '\n')
}

func (e *exposition) float(f float64) {
	e.b = strconv.AppendFloat(e.b, f, 'g', -1, 64)
	e.b = append(e.b, '\n')
}

func (e *exposition) requests(all []labelled[*HTTP]) {
	const name = "istio_requests_total"
	for i, s := range all {
		if i == 0 {
			e.head(name, "Number of requests.", kindCounter)
		}
		var n uint64
		for j := range s.value.duration.counts {
			n += s.value.duration.counts[j].Load()
		}
		e.sample(name, "", s.labels, "")
		e.integer(int64(n))
	}
}

// histograms writes one histogram family; per is how many observed units make
// one unit of the metric.
func (e *exposition) histograms(name, help string, all []labelled[*HTTP], of func(*HTTP) *histogram, per float64) {
	for i, s := range all {
		if i == 0 {
			e.head(name, help, "histogram")
		}
		h := of(s.value)
		var n uint64
		for j := range boundNames {
			n += h.counts[j].Load()
			e.sample(name, "_bucket", s.labels, boundNames[j])
			e.integer(int64(n))
		}
		n += h.counts[buckets].Load()
		e.sample(name, "_bucket", s.labels, "+Inf")
		e.integer(int64(n))
		e.sample(name, "_sum", s.labels, "")
		e.float(float64(h.sum.Load()) / per)
		e.sample(name, "_count", s.labels, "")
		e.integer(int64(n))
	}
}

// messages writes a counter that exists for gRPC only.
func (e *exposition) messages(name, help string, all []labelled[*HTTP], of func(*HTTP) int64) {
	headed := false
	for _, s := range all {
		if !s.grpc {
			continue
		}
		if !headed {
			e.head(name, help, kindCounter)
			headed = true
		}
		e.sample(name, "", s.labels, "")
		e.integer(of(s.value))
	}
}

func (e *exposition) tcp(name, help string, all []labelled[*TCP], of func(*TCP) int64) {
	for i, s := range all {
		if i == 0 {
			e.head(name, help, kindCounter)
		}
		e.sample(name, "", s.labels, "")
		e.integer(of(s.value))
	}
}

// plain writes one plain family. It takes the values under the lock and writes
// after, because the writer may block.
func (e *exposition) plain(r *Registry, name string) {
	type sample struct {
		labels string
		series series
	}
	r.mu.RLock()
	f := r.plain[name]
	all := make([]sample, 0, len(f.series))
	for labels, s := range f.series {
		all = append(all, sample{labels, *s})
	}
	r.mu.RUnlock()
	if f.collect != nil {
		f.collect(func(value float64, labels ...Label) {
			all = append(all, sample{string(appendLabels(nil, labels)), series{read: func() float64 { return value }}})
		})
	}
	slices.SortFunc(all, func(a, b sample) int { return strings.Compare(a.labels, b.labels) })
	e.head(name, f.help, f.kind)
	for _, s := range all {
		e.sample(name, "", s.labels, "")
		switch {
		case s.series.counter != nil:
			e.integer(s.series.counter.Value())
		case s.series.gauge != nil:
			e.integer(s.series.gauge.Value())
		default:
			e.float(s.series.read())
		}
	}
}

// appendLabels prints labels without braces, in the order given.
func appendLabels(b []byte, labels []Label) []byte {
	for i, l := range labels {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, l.Name...)
		b = append(b, `="`...)
		b = appendLabelValue(b, l.Value)
		b = append(b, '"')
	}
	return b
}

// appendLabelValue escapes what the format reserves in a label value: backslash,
// quote and line feed. Bytes that are not UTF-8 become U+FFFD, because a scraper
// refuses a whole exposition for one of them.
func appendLabelValue(b []byte, v string) []byte {
	for _, r := range v {
		switch r {
		case '\\':
			b = append(b, `\\`...)
		case '"':
			b = append(b, `\"`...)
		case '\n':
			b = append(b, `\n`...)
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return b
}

// appendHelp escapes what the format reserves in a HELP line: backslash and line
// feed.
func appendHelp(b []byte, v string) []byte {
	for _, r := range v {
		switch r {
		case '\\':
			b = append(b, `\\`...)
		case '\n':
			b = append(b, `\n`...)
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return b
}
