package telemetry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sample is one line of an exposition.
type sample struct {
	name   string
	labels map[string]string
	value  float64
}

// parse reads Prometheus' text format, and fails on all that the format forbids
// or that a careful writer avoids. Source: Prometheus, exposition formats,
// text-based format 0.0.4.
func parse(text string) (samples []sample, types map[string]string, err error) {
	types = make(map[string]string)
	var family, last string
	seen := make(map[string]bool)
	if text != "" && !strings.HasSuffix(text, "\n") {
		return nil, nil, errors.New("the last line does not end")
	}
	if !utf8.ValidString(text) {
		return nil, nil, errors.New("not UTF-8")
	}
	for no, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		fail := func(format string, args ...any) error {
			return fmt.Errorf("line %d %q: %s", no+1, line, fmt.Sprintf(format, args...))
		}
		if rest, ok := strings.CutPrefix(line, "# HELP "); ok {
			name, _, ok := strings.Cut(rest, " ")
			if !ok || types[name] != "" {
				return nil, nil, fail("HELP without text or after TYPE")
			}
			if name <= last {
				return nil, nil, fail("family %s after %s", name, last)
			}
			family, last = name, name
			continue
		}
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, kind, _ := strings.Cut(rest, " ")
			if name != family || !slices.Contains([]string{"counter", "gauge", "histogram"}, kind) {
				return nil, nil, fail("TYPE of another family or kind")
			}
			types[name] = kind
			continue
		}
		s := sample{labels: make(map[string]string)}
		end := strings.IndexAny(line, "{ ")
		if end <= 0 {
			return nil, nil, fail("no name")
		}
		s.name = line[:end]
		base := s.name
		if types[family] == "histogram" {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				base = strings.TrimSuffix(base, suffix)
			}
		}
		if base != family || types[family] == "" {
			return nil, nil, fail("sample of another family than %q", family)
		}
		rest := line[end:]
		if rest[0] == '{' {
			rest = rest[1:]
			for rest[0] != '}' {
				name, more, ok := strings.Cut(rest, `="`)
				if !ok || strings.ContainsAny(name, `"\{} ,`) || name == "" {
					return nil, nil, fail("bad label name %q", name)
				}
				if _, twice := s.labels[name]; twice {
					return nil, nil, fail("label %s twice", name)
				}
				var v strings.Builder
				i := 0
				for ; i < len(more) && more[i] != '"'; i++ {
					if more[i] != '\\' {
						v.WriteByte(more[i])
						continue
					}
					i++
					switch more[i] {
					case 'n':
						v.WriteByte('\n')
					case '\\', '"':
						v.WriteByte(more[i])
					default:
						return nil, nil, fail("bad escape")
					}
				}
				if i == len(more) {
					return nil, nil, fail("label value does not end")
				}
				s.labels[name] = v.String()
				rest = more[i+1:]
				if rest[0] == ',' {
					rest = rest[1:]
				} else if rest[0] != '}' {
					return nil, nil, fail("no comma between labels")
				}
			}
			rest = rest[1:]
		}
		if s.value, err = strconv.ParseFloat(strings.TrimPrefix(rest, " "), 64); err != nil || rest[0] != ' ' {
			return nil, nil, fail("bad value: %v", err)
		}
		if key := line[:len(line)-len(rest)]; seen[key] {
			return nil, nil, fail("series twice")
		} else {
			seen[key] = true
		}
		samples = append(samples, s)
	}
	return samples, types, nil
}

func exposed(t *testing.T, r *Registry) string {
	t.Helper()
	var b bytes.Buffer
	if err := r.WritePrometheus(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func find(t *testing.T, samples []sample, name string, labels map[string]string) float64 {
	t.Helper()
	var found []sample
next:
	for _, s := range samples {
		if s.name != name {
			continue
		}
		for k, v := range labels {
			if s.labels[k] != v {
				continue next
			}
		}
		found = append(found, s)
	}
	if len(found) != 1 {
		t.Fatalf("%d samples %s%v, want one", len(found), name, labels)
	}
	return found[0].value
}

var reviews = Labels{
	Reporter: ReporterSource,
	Source: Workload{Name: "productpage-v1", Namespace: "default", App: "productpage", Version: "v1",
		CanonicalName: "productpage", CanonicalRevision: "v1", Cluster: "Kubernetes", Principal: "spiffe://cluster.local/ns/default/sa/productpage"},
	Destination: Workload{Name: "reviews-v2", Namespace: "default", App: "reviews", Version: "v2",
		CanonicalName: "reviews", CanonicalRevision: "v2", Cluster: "Kubernetes", Principal: "spiffe://cluster.local/ns/default/sa/reviews"},
	Service: "reviews.default.svc.cluster.local", ServiceName: "reviews", ServiceNamespace: "default",
	Protocol: ProtocolHTTP, Code: 200, Flags: "-", Security: UnknownSecurity,
}

func TestRequestHasAllOfIstiosLabels(t *testing.T) {
	r := NewRegistry()
	r.HTTP(reviews).Observe(3*time.Millisecond, 0, 1024)
	samples, types, err := parse(exposed(t, r))
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(samples, func(s sample) bool { return s.name == "istio_requests_total" })
	if i < 0 {
		t.Fatal("no istio_requests_total")
	}
	want := map[string]string{
		"reporter": "source", "source_workload": "productpage-v1", "source_canonical_service": "productpage",
		"source_canonical_revision": "v1", "source_workload_namespace": "default",
		"source_principal": "spiffe://cluster.local/ns/default/sa/productpage", "source_app": "productpage",
		"source_version": "v1", "source_cluster": "Kubernetes", "destination_workload": "reviews-v2",
		"destination_workload_namespace": "default", "destination_principal": "spiffe://cluster.local/ns/default/sa/reviews",
		"destination_app": "reviews", "destination_version": "v2", "destination_service": "reviews.default.svc.cluster.local",
		"destination_canonical_service": "reviews", "destination_canonical_revision": "v2",
		"destination_service_name": "reviews", "destination_service_namespace": "default", "destination_cluster": "Kubernetes",
		"request_protocol": "http", "response_code": "200", "response_flags": "-", "connection_security_policy": "unknown",
	}
	if diff := cmp.Diff(want, samples[i].labels); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	if samples[i].value != 1 {
		t.Errorf("value %v, want 1", samples[i].value)
	}
	wantTypes := map[string]string{
		"istio_requests_total": "counter", "istio_request_duration_milliseconds": "histogram",
		"istio_request_bytes": "histogram", "istio_response_bytes": "histogram",
	}
	if diff := cmp.Diff(wantTypes, types); diff != "" {
		t.Errorf("types (-want +got):\n%s", diff)
	}
}

func TestWhatIsNotKnownIsUnknown(t *testing.T) {
	r := NewRegistry()
	r.HTTP(Labels{Reporter: ReporterDestination, Protocol: ProtocolHTTP}).Observe(0, 0, 0)
	samples, _, err := parse(exposed(t, r))
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range samples[len(samples)-1].labels {
		want := "unknown"
		switch name {
		case "reporter":
			want = "destination"
		case "request_protocol":
			want = "http"
		case "response_code":
			want = "0"
		case "response_flags":
			want = "-"
		case "le":
			continue
		}
		if v != want {
			t.Errorf("%s = %q, want %q", name, v, want)
		}
	}
}

func TestDurationsFallIntoTheirBuckets(t *testing.T) {
	for _, test := range []struct {
		d  time.Duration
		le string // the first bucket that counts it
	}{
		{0, "0.5"}, {500 * time.Microsecond, "0.5"}, {501 * time.Microsecond, "1"}, {time.Millisecond, "1"},
		{2 * time.Millisecond, "5"}, {250 * time.Millisecond, "250"}, {time.Minute, "60000"},
		{time.Hour, "3600000"}, {time.Hour + time.Millisecond, "+Inf"}, {-time.Second, "0.5"},
	} {
		t.Run(test.d.String(), func(t *testing.T) {
			r := NewRegistry()
			r.HTTP(reviews).Observe(test.d, 0, 0)
			samples, _, err := parse(exposed(t, r))
			if err != nil {
				t.Fatal(err)
			}
			limit, _ := strconv.ParseFloat(test.le, 64)
			n := 0
			for _, s := range samples {
				if s.name != "istio_request_duration_milliseconds_bucket" {
					continue
				}
				n++
				le, err := strconv.ParseFloat(s.labels["le"], 64)
				if err != nil {
					t.Fatal(err)
				}
				if want := map[bool]float64{true: 1}[le >= limit]; s.value != want {
					t.Errorf("le=%s counts %v, want %v", s.labels["le"], s.value, want)
				}
			}
			if n != 20 {
				t.Errorf("%d buckets, want 20", n)
			}
			if got, want := find(t, samples, "istio_request_duration_milliseconds_sum", nil), max(0, float64(test.d)/1e6); math.Abs(got-want) > 1e-9 {
				t.Errorf("sum %v, want %v", got, want)
			}
			if got := find(t, samples, "istio_request_duration_milliseconds_count", nil); got != 1 {
				t.Errorf("count %v, want 1", got)
			}
		})
	}
}

func TestGRPCHasStatusAndMessages(t *testing.T) {
	r := NewRegistry()
	l := reviews
	r.HTTP(l).Observe(time.Millisecond, 1, 1)
	l.Protocol, l.GRPCStatus = ProtocolGRPC, "14"
	r.HTTP(l).Observe(time.Millisecond, 7, 9)
	r.HTTP(l).Messages(1, 3)
	samples, _, err := parse(exposed(t, r))
	if err != nil {
		t.Fatal(err)
	}
	grpc := map[string]string{"request_protocol": "grpc", "grpc_response_status": "14", "response_code": "200"}
	for name, want := range map[string]float64{
		"istio_requests_total": 1, "istio_request_messages_total": 1, "istio_response_messages_total": 3,
		"istio_request_bytes_sum": 7, "istio_response_bytes_sum": 9,
	} {
		if got := find(t, samples, name, grpc); got != want {
			t.Errorf("%s = %v, want %v", name, got, want)
		}
	}
	for _, s := range samples {
		_, has := s.labels["grpc_response_status"]
		if s.labels["request_protocol"] == "http" && (has || strings.Contains(s.name, "messages")) {
			t.Errorf("%s of an HTTP request has what only gRPC has", s.name)
		}
	}
}

func TestTCPConnectionsAreCounted(t *testing.T) {
	r := NewRegistry()
	l := reviews
	l.Protocol = ProtocolTCP
	h := r.TCP(l)
	h.Opened()
	h.Opened()
	h.Closed()
	h.Sent(100)
	h.Received(10)
	l.Code = 503 // has no meaning here
	if r.TCP(l) != h {
		t.Error("equal labels gave another handle")
	}
	samples, _, err := parse(exposed(t, r))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]float64{
		"istio_tcp_connections_opened_total": 2, "istio_tcp_connections_closed_total": 1,
		"istio_tcp_sent_bytes_total": 100, "istio_tcp_received_bytes_total": 10,
	} {
		if got := find(t, samples, name, map[string]string{"request_protocol": "tcp"}); got != want {
			t.Errorf("%s = %v, want %v", name, got, want)
		}
	}
	if _, has := samples[0].labels["response_code"]; has {
		t.Error("a TCP metric has a response code")
	}
}

func TestPlainMetricsStandAmongTheOthersInOrder(t *testing.T) {
	r := NewRegistry()
	r.HTTP(reviews).Observe(time.Second, 0, 0)
	r.Counter("zz_last", `a "help"\ with`+"\nall that is special").Add(2)
	r.Counter("istio_requests_other", "Between.", Label{"b", "2"}).Inc()
	r.Counter("istio_requests_other", "Between.", Label{"b", `1"\` + "\n\xff"}).Inc()
	r.GaugeFunc("aa_first", "Asked for.", func() float64 { return 1.5 })
	r.Collect("collected", "Told when asked.", "counter", func(yield func(float64, ...Label)) {
		yield(4, Label{"c", "y"})
		yield(3, Label{"c", "x"})
	})
	r.Gauge("istio_build", "Version.", Label{"component", "proxy"}, Label{"tag", "1"}).Set(1)
	samples, types, err := parse(exposed(t, r))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []sample{
		{"aa_first", map[string]string{}, 1.5},
		{"collected", map[string]string{"c": "x"}, 3},
		{"collected", map[string]string{"c": "y"}, 4},
		{"istio_build", map[string]string{"component": "proxy", "tag": "1"}, 1},
		{"istio_requests_other", map[string]string{"b": "1\"\\\n\ufffd"}, 1},
		{"istio_requests_other", map[string]string{"b": "2"}, 1},
		{"zz_last", map[string]string{}, 2},
	} {
		if got := find(t, samples, want.name, want.labels); got != want.value {
			t.Errorf("%s%v = %v, want %v", want.name, want.labels, got, want.value)
		}
	}
	if types["aa_first"] != "gauge" || types["zz_last"] != "counter" {
		t.Errorf("types %v", types)
	}
	if one, two := r.Counter("zz_last", ""), r.Counter("zz_last", ""); one != two {
		t.Error("a counter asked for twice is two")
	}
}

func TestHandlesAreSharedAndCountEverything(t *testing.T) {
	r := NewRegistry()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 1000 {
				r.HTTP(reviews).Observe(time.Millisecond, 1, 2)
				if i%100 == 0 {
					r.WritePrometheus(io.Discard)
				}
			}
		})
	}
	wg.Wait()
	samples, _, err := parse(exposed(t, r))
	if err != nil {
		t.Fatal(err)
	}
	if got := find(t, samples, "istio_requests_total", nil); got != 8000 {
		t.Errorf("istio_requests_total = %v, want 8000", got)
	}
}

func TestPeersCanNotFillTheMemoryWithLabels(t *testing.T) {
	r := NewRegistry()
	l := reviews
	for i := range maxSeries + 500 {
		l.Source.Name = strconv.Itoa(i)
		r.HTTP(l).Observe(0, 0, 0)
		r.TCP(l).Opened()
	}
	if len(r.http) != maxSeries+1 || len(r.tcp) != maxSeries+1 {
		t.Errorf("%d and %d series, want %d", len(r.http), len(r.tcp), maxSeries+1)
	}
	other := r.http[Labels{Reporter: l.Reporter, Protocol: l.Protocol, Code: l.Code, Security: UnknownSecurity}]
	if other == nil || other.request.counts[0].Load() != 500 {
		t.Error("requests above the bound are not counted without their labels")
	}
}

func TestCountingAllocatesNothing(t *testing.T) {
	r := NewRegistry()
	h, c := r.HTTP(reviews), r.TCP(reviews)
	if n := testing.AllocsPerRun(100, func() {
		h.Observe(time.Millisecond, 10, 10)
		c.Sent(1)
		c.Received(1)
	}); n != 0 {
		t.Errorf("%v allocations per request, want 0", n)
	}
}

type failing struct{ after int }

func (f *failing) Write(b []byte) (int, error) {
	if f.after--; f.after < 0 {
		return 0, errors.New("gone")
	}
	return len(b), nil
}

func TestScraperThatGoesAwayIsReported(t *testing.T) {
	r := NewRegistry()
	l := reviews
	for i := range 100 { // more than one flush
		l.Code = i
		r.HTTP(l)
	}
	if err := r.WritePrometheus(&failing{after: 1}); err == nil {
		t.Error("WritePrometheus returned nil although its writer failed")
	}
}

func FuzzLabelValue(f *testing.F) {
	f.Add("plain", "help")
	f.Add("a\"b\\c\nd", "x\ny\\")
	f.Add("\xff\xfe", "\x00")
	f.Add(`",evil="1`, "")
	f.Fuzz(func(t *testing.T, value, help string) {
		r := NewRegistry()
		r.Counter("a", help+".", Label{"v", value}).Inc()
		l := reviews
		l.Source.Name = value
		r.TCP(l).Opened()
		samples, _, err := parse(exposed(t, r))
		if err != nil {
			t.Fatal(err)
		}
		want := strings.ToValidUTF8(value, "\ufffd")
		if utf8.ValidString(value) {
			if samples[0].labels["v"] != want {
				t.Fatalf("the label reads %q, want %q", samples[0].labels["v"], want)
			}
		}
		if want != "" && utf8.ValidString(value) {
			find(t, samples, "istio_tcp_connections_opened_total", map[string]string{"source_workload": want})
		}
	})
}
