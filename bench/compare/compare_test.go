package main

import (
	"bufio"
	"bytes"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/heddle-mesh/heddle/internal/encode"
	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/decode"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Every scenario must name columns that make a ratio, and a peer to make it with.
func TestScenariosAreComplete(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range scenarios() {
		if s.name == "" || s.title == "" || seen[s.name] {
			t.Errorf("scenario %q: name or title is missing, or it is there twice", s.name)
		}
		seen[s.name] = true
		if len(s.path) == 0 || len(s.columns) == 0 || s.measure == nil {
			t.Errorf("%s: path, columns or measure is missing", s.name)
		}
		var names []string
		for _, p := range s.peers {
			if slices.Contains(names, p.name) {
				t.Errorf("%s: two peers are called %s", s.name, p.name)
			}
			names = append(names, p.name)
		}
		if !slices.Contains(names, "haproxy") {
			t.Errorf("%s: nothing to compare with among %v", s.name, names)
		}
	}
}

// What the fixture tells must be what a proxy acts on.
func TestProxiesTakeWhatTheFixtureTells(t *testing.T) {
	listen, upstream := netip.MustParseAddrPort("127.0.0.1:1000"), netip.MustParseAddrPort("127.0.0.1:2000")
	for _, s := range scenarios() {
		for _, r := range s.path {
			for _, p := range s.peers {
				f := &fixture{plans: map[string]*plan.Plan{}, las: map[string]*plan.LoadAssignment{}}
				f.tell("pod", p, r, listen, upstream)
				set := encode.New().Plan(f.plans["pod"])
				for _, res := range set[encode.ListenerType] {
					l, err := decode.Listener(res.Body)
					if err != nil {
						t.Errorf("%s, %s: %v", s.name, r.name, err)
					} else if l.Address != listen || !l.Bound {
						t.Errorf("%s, %s: listener at %v, bound %v", s.name, r.name, l.Address, l.Bound)
					}
				}
				for _, res := range set[encode.ClusterType] {
					c, err := decode.Cluster(res.Body)
					if err != nil {
						t.Errorf("%s, %s: %v", s.name, r.name, err)
						continue
					}
					la, ok := f.Endpoints(c.EDSName())
					switch {
					case c.Discovery == plan.Static:
						if len(c.Static) != 1 || c.Static[0].Port != upstream.Port() {
							t.Errorf("%s, %s: static endpoints %v", s.name, r.name, c.Static)
						}
					case !ok || la.Localities[0].Endpoints[0].Address != upstream:
						t.Errorf("%s, %s: endpoints %v", s.name, r.name, la)
					}
					if (c.TLS != nil) != r.tlsOut {
						t.Errorf("%s, %s: TLS to the upstream %v", s.name, r.name, c.TLS)
					}
				}
			}
		}
	}
}

func TestConfigurationsAreFilled(t *testing.T) {
	for _, s := range scenarios() {
		for _, r := range s.path {
			for _, name := range []string{"haproxy.cfg", "nginx.conf", "gateway.yaml"} {
				set := settings{
					TCP: r.tcp, TLSIn: r.tlsIn, TLSOut: r.tlsOut, Dir: t.TempDir(), Certs: "/certs", ServerName: serverName,
					Listen: netip.MustParseAddrPort("127.0.0.1:1000"), Upstream: netip.MustParseAddrPort("127.0.0.1:2000"),
				}
				set.Peer.Log = true
				file, err := fill(name, set)
				if err != nil {
					t.Fatal(err)
				}
				b, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if filepath.Base(file) != name || bytes.Contains(b, []byte("<no value>")) || !bytes.Contains(b, []byte("1000")) || !bytes.Contains(b, []byte("2000")) {
					t.Errorf("%s for %s:\n%s", name, r.name, b)
				}
				if name != "gateway.yaml" && bytes.Contains(b, []byte("/certs")) != (r.tlsIn || r.tlsOut) {
					t.Errorf("%s for %s: certificates are wrongly there or not there:\n%s", name, r.name, b)
				}
			}
		}
	}
}

func TestReadWrk(t *testing.T) {
	const out = `Running 2s test @ http://127.0.0.1:20000/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.28ms  514.85us  13.75ms   92.46%
    Req/Sec    48.09k     5.00k   54.96k    80.00%
  Latency Distribution
     50%    1.20ms
     75%    1.40ms
     90%  900.00us
     99%    2.00s
  95713 requests in 2.01s, 118.10MB read
Requests/sec:  47629.11
`
	got, err := readWrk(out)
	if want := (sample{Units: 95713, Seconds: 2.01, P50: 1200, P99: 2e6}); err != nil || got != want {
		t.Errorf("%+v %v, want %+v", got, err, want)
	}
	for _, bad := range []string{"", out + "  Non-2xx or 3xx responses: 7\n", out + "  Socket errors: connect 0, read 3, write 0, timeout 0\n"} {
		if s, err := readWrk(bad); err == nil {
			t.Errorf("%+v of output that tells of faults, or of nothing", s)
		}
	}
}

func TestAnswer(t *testing.T) {
	body := strings.Repeat("x", bodySize)
	for _, c := range []struct {
		text string
		ok   bool
	}{
		{"HTTP/1.1 200 OK\r\ncontent-length: 1024\r\n\r\n" + body, true},
		{"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length:1024\r\n\r\n" + body, true},
		{"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 1024\r\n\r\n" + body, false},
		{"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nshort", false},
		{"HTTP/1.1 200 OK\r\ncontent-length: 1024\r\n\r\n" + body[1:], false},
	} {
		text := c.text
		if c.ok {
			text += "next"
		}
		r := bufio.NewReader(strings.NewReader(text))
		err := answer(r)
		if (err == nil) != c.ok {
			t.Errorf("%.40q: %v", c.text, err)
		}
		if rest, _ := io.ReadAll(r); c.ok && string(rest) != "next" {
			t.Errorf("%.40q: %q was left", c.text, rest)
		}
	}
}

// A machine that slows down in one round must not show in the ratio.
func TestRatiosAreOfOneRound(t *testing.T) {
	r := &report{columns: requests(), Subjects: []*result{{Name: "direct"}, {Name: "haproxy"}, {Name: "heddle"}}}
	for _, slow := range []float64{1, 3, 1} {
		r.add("direct", values{"cpu_us": 0, "p50_us": 10 * slow, "p99_us": 20 * slow})
		r.add("haproxy", values{"cpu_us": 20 * slow, "p50_us": 30 * slow, "p99_us": 50})
		r.add("heddle", values{"cpu_us": 10 * slow, "p50_us": 20 * slow, "p99_us": 60})
	}
	var b bytes.Buffer
	r.print(&b)
	s := r.subject("heddle")
	if s.Ratio == nil || *s.Ratio != (spread{0.5, 0.5, 0.5}) {
		t.Errorf("ratio %+v, want 0.5 in each round", s.Ratio)
	}
	if s.Added["p50_us"] != 10 || s.Median["cpu_us"] != 10 {
		t.Errorf("added %v median %v", s.Added, s.Median)
	}
	if got := spreadOf([]float64{4, 1, 3, 2}); got != (spread{2.5, 1, 4}) {
		t.Errorf("spread %+v", got)
	}
	for _, want := range []string{"(3 rounds)", "heddle", "0.50-0.50"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}
