package dnsproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/heddle-mesh/heddle/internal/meshtest/simnet"
	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/redirect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var names = &plan.NameTable{Names: []plan.NameEntry{
	entry("reviews.default.svc.cluster.local", "reviews", "default", "10.96.0.1"),
	entry("ratings.other.svc.cluster.local", "ratings", "other", "10.96.0.2", "2001:db8::2"),
	entry("db.default.svc.cluster.local", "db", "default", "10.0.0.1", "10.0.0.2", "10.0.0.3", "2001:db8::a", "2001:db8::b"),
	entry("db-0.db.default.svc.cluster.local", "db-0.db", "default", "10.0.0.1"),
	entry("none.default.svc.cluster.local", "none", "default"),
	entry("Api.Example.com", "", "", "240.240.0.1"),
	entry("*.wild.example.com", "", "", "240.240.0.2"),
	entry("*.deep.wild.example.com", "", "", "240.240.0.3"),
	entry("v6.example.com", "", "", "2001:2::1"),
	entry("ratings.other", "", "", "240.240.0.4"), // shadows a short form
}}

func entry(host, short, namespace string, ips ...string) plan.NameEntry {
	e := plan.NameEntry{Host: host, Short: short, Namespace: namespace}
	for _, ip := range ips {
		e.IPs = append(e.IPs, netip.MustParseAddr(ip))
	}
	return e
}

// network is a pod whose queries are captured, and two upstreams.
type network struct {
	t         *testing.T
	net       *simnet.Net
	pod       *simnet.Host
	upstreams [2]*upstream
	server    *Server

	requests, forwards, failures atomic.Int32
	took                         atomic.Int64
}

// upstream is a DNS server that does as its functions say. Both default to an
// answer of 192.0.2.1, or 192.0.2.2 for the second.
type upstream struct {
	host   *simnet.Host
	packet func(q *dns.Msg) []*dns.Msg // answers over UDP, in this order
	stream func(q *dns.Msg) *dns.Msg   // answer over TCP; nil closes
	asked  atomic.Int32
}

func answerWith(ip string) func(q *dns.Msg) *dns.Msg {
	return func(q *dns.Msg) *dns.Msg {
		m := (&dns.Msg{}).SetReply(q)
		m.Answer = []dns.RR{rr(q.Question[0].Name + " 60 IN A " + ip)}
		return m
	}
}

func rr(s string) dns.RR {
	r, err := dns.NewRR(s)
	if err != nil {
		panic(err)
	}
	return r
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

const latency = time.Millisecond

// roundTrip is how long a query takes that goes to an upstream.
const roundTrip = 2 * latency

// newNetwork makes one in the caller's bubble. change may alter the config.
func newNetwork(t *testing.T, change func(c *Config)) *network {
	n := &network{t: t, net: simnet.New(simnet.Config{Latency: latency})}
	n.pod = n.net.Host("pod", "10.0.0.1", "2001:db8:1::1")
	capture := redirect.Default()
	capture.DNS = true
	n.pod.Redirect(redirect.Rules(capture))
	var addrs []netip.AddrPort
	for i := range n.upstreams {
		ip := fmt.Sprintf("10.96.0.%d", 10+i)
		u := &upstream{host: n.net.Host("upstream", ip), stream: answerWith(fmt.Sprintf("192.0.2.%d", i+1))}
		u.packet = func(q *dns.Msg) []*dns.Msg { return []*dns.Msg{u.stream(q)} }
		n.upstreams[i] = u
		addrs = append(addrs, netip.AddrPortFrom(u.host.Addr(), 53))
		u.serve(t)
	}
	proxy := n.pod.Proxy()
	c := Config{
		Packet:    must(proxy.ListenPacket(t.Context(), netip.MustParseAddrPort("127.0.0.1:15053"))),
		Stream:    must(proxy.Listen(t.Context(), netip.MustParseAddrPort("127.0.0.1:15053"))),
		Packet6:   must(proxy.ListenPacket(t.Context(), netip.MustParseAddrPort("[::1]:15053"))),
		Stream6:   must(proxy.Listen(t.Context(), netip.MustParseAddrPort("[::1]:15053"))),
		Upstreams: addrs,
		Search:    []string{"default.svc.cluster.local", "svc.cluster.local", "cluster.local"},
		Dial: func(ctx context.Context, network string, addr netip.AddrPort) (net.Conn, error) {
			return proxy.DialContext(ctx, network, addr.String())
		},
		OnRequest: func() { n.requests.Add(1) },
		OnForward: func(took time.Duration, err error) {
			n.forwards.Add(1)
			n.took.Store(int64(took))
			if err != nil {
				n.failures.Add(1)
			}
		},
	}
	if change != nil {
		change(&c)
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	n.server = s
	s.SetTable(names)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		n.upstreams[0].host.Kill()
		n.upstreams[1].host.Kill()
		time.Sleep(time.Second) // for the last FINs
	})
	return n
}

func (u *upstream) serve(t *testing.T) {
	at := netip.AddrPortFrom(u.host.Addr(), 53)
	p := must(u.host.App().ListenPacket(t.Context(), at))
	go func() {
		b := make([]byte, 65535)
		for {
			n, from, err := p.ReadFrom(b)
			if err != nil {
				return
			}
			q := &dns.Msg{}
			if err := q.Unpack(b[:n]); err != nil {
				t.Errorf("upstream was sent rubbish: %v", err)
				return
			}
			u.asked.Add(1)
			for _, m := range u.packet(q) {
				p.WriteTo(must(m.Pack()), from)
			}
		}
	}()
	l := must(u.host.App().Listen(t.Context(), at))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b, err := readFrame(c)
				if err != nil {
					return
				}
				q := &dns.Msg{}
				q.Unpack(b)
				u.asked.Add(1)
				if m := u.stream(q); m != nil {
					writeFrame(c, must(m.Pack()))
				}
			}()
		}
	}()
}

// ask sends a query as the application would, to a server that it knows from
// its resolv.conf.
func (n *network) ask(network, name string, qtype uint16, change ...func(q *dns.Msg)) *dns.Msg {
	n.t.Helper()
	m, err := n.try(network, "10.96.0.10:53", name, qtype, change...)
	if err != nil {
		n.t.Errorf("%s %s: %v", name, dns.TypeToString[qtype], err)
		return &dns.Msg{}
	}
	return m
}

func (n *network) try(network, server, name string, qtype uint16, change ...func(q *dns.Msg)) (*dns.Msg, error) {
	q := (&dns.Msg{}).SetQuestion(name, qtype)
	for _, f := range change {
		f(q)
	}
	c, err := n.pod.App().DialContext(n.t.Context(), network, server)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	if network == "tcp" {
		if err := writeFrame(c, must(q.Pack())); err != nil {
			return nil, err
		}
		b, err := readFrame(c)
		if err != nil {
			return nil, err
		}
		return accept(q, b)
	}
	must(c.Write(must(q.Pack())))
	b := make([]byte, 65535)
	k, err := c.Read(b)
	if err != nil {
		return nil, err
	}
	return accept(q, b[:k])
}

// text is an answer in short: the return code if it is not success, and what
// the records hold.
func text(m *dns.Msg) string {
	var words []string
	if m.Rcode != dns.RcodeSuccess {
		words = append(words, dns.RcodeToString[m.Rcode])
	}
	for _, r := range m.Answer {
		words = append(words, strings.Fields(r.String())[4:]...)
	}
	return strings.Join(words, " ")
}

func TestNamesOfTheMesh(t *testing.T) {
	const forwarded = "192.0.2.1"
	for _, test := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"reviews.default.svc.cluster.local.", dns.TypeA, "10.96.0.1"},
		{"Reviews.DEFAULT.svc.cluster.local.", dns.TypeA, "10.96.0.1"},
		{"reviews.", dns.TypeA, "10.96.0.1"},
		{"reviews.default.", dns.TypeA, "10.96.0.1"},
		{"reviews.default.svc.", dns.TypeA, "10.96.0.1"},
		{"db-0.db.", dns.TypeA, "10.0.0.1"},
		{"db-0.db.default.svc.cluster.local.", dns.TypeA, "10.0.0.1"},
		// Another namespace's services have no name without it.
		{"ratings.", dns.TypeA, forwarded},
		{"ratings.other.svc.", dns.TypeA, "10.96.0.2"},
		{"ratings.other.svc.cluster.local.", dns.TypeAAAA, "2001:db8::2"},
		// A host goes before the short form of another.
		{"ratings.other.", dns.TypeA, "240.240.0.4"},
		// It exists, but not in this family.
		{"reviews.default.svc.cluster.local.", dns.TypeAAAA, ""},
		{"v6.example.com.", dns.TypeA, ""},
		{"v6.example.com.", dns.TypeAAAA, "2001:2::1"},
		// A host outside the cluster, and with the first search domain behind it.
		{"api.example.com.", dns.TypeA, "240.240.0.1"},
		{"api.example.com.default.svc.cluster.local.", dns.TypeA, "240.240.0.1"},
		{"reviews.default.default.svc.cluster.local.", dns.TypeA, "10.96.0.1"},
		{"api.example.com.svc.cluster.local.", dns.TypeA, forwarded},
		// The longest wildcard; it does not stand for its own parent.
		{"a.wild.example.com.", dns.TypeA, "240.240.0.2"},
		{"a.b.wild.example.com.", dns.TypeA, "240.240.0.2"},
		{"a.deep.wild.example.com.", dns.TypeA, "240.240.0.3"},
		{"a.wild.example.com.default.svc.cluster.local.", dns.TypeA, "240.240.0.2"},
		{"wild.example.com.", dns.TypeA, forwarded},
		// Nothing of the mesh, or nothing known about it.
		{"none.default.svc.cluster.local.", dns.TypeA, forwarded},
		{"example.org.", dns.TypeA, forwarded},
		{".", dns.TypeA, forwarded},
		{"default.svc.cluster.local.", dns.TypeA, forwarded},
	} {
		t.Run(test.name+dns.TypeToString[test.qtype], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t, nil)
				for _, network := range []string{"udp", "tcp"} {
					m := n.ask(network, test.name, test.qtype)
					if got := text(m); got != test.want {
						t.Errorf("%s: %q, want %q", network, got, test.want)
					}
					own := test.want != forwarded
					if m.Authoritative != own || !m.RecursionAvailable || len(m.Question) != 1 || m.Question[0].Name != test.name {
						t.Errorf("%s: %v", network, m)
					}
					if own && (n.forwards.Load() != 0 || len(m.Answer) > 0 && (m.Answer[0].Header().Name != test.name || m.Answer[0].Header().Ttl != ttl)) {
						t.Errorf("%s: %d forwards, %v", network, n.forwards.Load(), m)
					}
				}
				if n.requests.Load() != 2 {
					t.Errorf("%d requests counted, want 2", n.requests.Load())
				}
			})
		})
	}
}

func TestAddressesTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, nil)
		var got []string
		for range 4 {
			// Resolvers ask for both families; that must not make one skip.
			got = append(got, text(n.ask("udp", "db.", dns.TypeA)), text(n.ask("udp", "db.", dns.TypeAAAA)))
		}
		want := []string{
			"10.0.0.1 10.0.0.2 10.0.0.3", "2001:db8::a 2001:db8::b",
			"10.0.0.2 10.0.0.3 10.0.0.1", "2001:db8::b 2001:db8::a",
			"10.0.0.3 10.0.0.1 10.0.0.2", "2001:db8::a 2001:db8::b",
			"10.0.0.1 10.0.0.2 10.0.0.3", "2001:db8::b 2001:db8::a",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
}

func TestTableIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, nil)
		n.server.SetTable(&plan.NameTable{Names: []plan.NameEntry{entry("new.example.com", "", "", "10.1.1.1")}})
		if got := text(n.ask("udp", "new.example.com.", dns.TypeA)); got != "10.1.1.1" {
			t.Errorf("new name: %q", got)
		}
		if got := text(n.ask("udp", "reviews.", dns.TypeA)); got != "192.0.2.1" {
			t.Errorf("old name: %q", got)
		}
		n.server.SetTable(nil)
		if got := text(n.ask("udp", "new.example.com.", dns.TypeA)); got != "192.0.2.1" {
			t.Errorf("without a table: %q", got)
		}
	})
}

func TestIPv6Sockets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, nil)
		for _, network := range []string{"udp", "tcp"} {
			m, err := n.try(network, "[2001:db8::53]:53", "reviews.", dns.TypeA)
			if err != nil || text(m) != "10.96.0.1" {
				t.Errorf("%s: %v, %v", network, m, err)
			}
		}
	})
}

func TestForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, nil)
		start := time.Now()
		m := n.ask("udp", "Example.ORG.", dns.TypeMX)
		if text(m) != "192.0.2.1" || time.Since(start) != roundTrip {
			t.Errorf("%v after %v", m, time.Since(start))
		}
		if n.forwards.Load() != 1 || n.failures.Load() != 0 || time.Duration(n.took.Load()) != roundTrip {
			t.Errorf("%d forwards, %d failures, the last took %v", n.forwards.Load(), n.failures.Load(), time.Duration(n.took.Load()))
		}
	})
}

func TestForwardToTheNextUpstream(t *testing.T) {
	for _, test := range []struct {
		name  string
		harm  func(n *network, u *upstream)
		after time.Duration // until the second one's answer
		then  time.Duration // how long the next query takes
	}{
		{"silent", func(n *network, u *upstream) { n.net.Partition(n.pod, u.host) }, 5*time.Second + roundTrip, roundTrip},
		{"gone", func(n *network, u *upstream) { u.host.Kill() }, 2 * roundTrip, roundTrip},
		{"answers SERVFAIL", func(n *network, u *upstream) {
			u.stream = func(q *dns.Msg) *dns.Msg { return (&dns.Msg{}).SetRcode(q, dns.RcodeServerFailure) }
		}, 2 * roundTrip, 2 * roundTrip},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t, nil)
				test.harm(n, n.upstreams[0])
				start := time.Now()
				if got := text(n.ask("udp", "example.org.", dns.TypeA)); got != "192.0.2.2" || time.Since(start) != test.after {
					t.Errorf("%q after %v, want 192.0.2.2 after %v", got, time.Since(start), test.after)
				}
				start = time.Now()
				if got := text(n.ask("udp", "example.org.", dns.TypeA)); got != "192.0.2.2" || time.Since(start) != test.then {
					t.Errorf("next one: %q after %v, want 192.0.2.2 after %v", got, time.Since(start), test.then)
				}
			})
		})
	}
}

// The first upstream is asked first again some time after it failed, and at once
// if the second one fails.
func TestForwardReturnsToTheFirstUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, nil)
		n.net.Partition(n.pod, n.upstreams[0].host)
		n.ask("udp", "example.org.", dns.TypeA)
		n.net.Heal(n.pod, n.upstreams[0].host)
		if got := text(n.ask("udp", "example.org.", dns.TypeA)); got != "192.0.2.2" {
			t.Errorf("soon after: %q", got)
		}
		time.Sleep(preferFor)
		if got := text(n.ask("udp", "example.org.", dns.TypeA)); got != "192.0.2.1" {
			t.Errorf("later: %q", got)
		}
		n.net.Partition(n.pod, n.upstreams[0].host)
		n.ask("udp", "example.org.", dns.TypeA)
		n.net.Heal(n.pod, n.upstreams[0].host)
		n.net.Partition(n.pod, n.upstreams[1].host)
		n.ask("udp", "example.org.", dns.TypeA)
		start := time.Now()
		if got := text(n.ask("udp", "example.org.", dns.TypeA)); got != "192.0.2.1" || time.Since(start) != roundTrip {
			t.Errorf("after the second failed: %q after %v", got, time.Since(start))
		}
	})
}

func TestForwardFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, nil)
		n.net.Partition(n.pod, n.upstreams[0].host, n.upstreams[1].host)
		start := time.Now()
		if got := text(n.ask("udp", "example.org.", dns.TypeA)); got != "SERVFAIL" || time.Since(start) != 10*time.Second {
			t.Errorf("%q after %v", got, time.Since(start))
		}
		if n.failures.Load() != 2 {
			t.Errorf("%d failures, want 2", n.failures.Load())
		}
		if got := text(n.ask("tcp", "example.org.", dns.TypeA)); got != "SERVFAIL" {
			t.Errorf("over TCP: %q", got)
		}
		// The mesh's names need nobody.
		if got := text(n.ask("udp", "reviews.", dns.TypeA)); got != "10.96.0.1" {
			t.Errorf("reviews: %q", got)
		}
	})
}

func TestForwardWithoutUpstreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, func(c *Config) { c.Upstreams = nil })
		if got := text(n.ask("udp", "example.org.", dns.TypeA)); got != "SERVFAIL" {
			t.Errorf("%q", got)
		}
	})
}

// What is no answer to the query does not keep the right one away, and does not
// become one.
func TestForwardIgnoresForgedAnswers(t *testing.T) {
	forge := func(change func(m *dns.Msg)) func(q *dns.Msg) *dns.Msg {
		return func(q *dns.Msg) *dns.Msg {
			m := answerWith("6.6.6.6")(q)
			change(m)
			return m
		}
	}
	forgeries := map[string]func(q *dns.Msg) *dns.Msg{
		"id":        forge(func(m *dns.Msg) { m.Id++ }),
		"name":      forge(func(m *dns.Msg) { m.Question[0].Name = "evil.org." }),
		"type":      forge(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeTXT }),
		"class":     forge(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }),
		"none":      forge(func(m *dns.Msg) { m.Question = nil }),
		"two":       forge(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }),
		"a query":   forge(func(m *dns.Msg) { m.Response = false }),
		"an update": forge(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }),
	}
	for name, forged := range forgeries {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t, nil)
				right := answerWith("192.0.2.1")
				n.upstreams[0].packet = func(q *dns.Msg) []*dns.Msg { return []*dns.Msg{forged(q), right(q)} }
				if got := text(n.ask("udp", "example.org.", dns.TypeA)); got != "192.0.2.1" {
					t.Errorf("with the right one behind: %q", got)
				}
				n.upstreams[0].packet = func(q *dns.Msg) []*dns.Msg { return []*dns.Msg{forged(q)} }
				n.upstreams[0].stream = forged
				if got := text(n.ask("udp", "example.org.", dns.TypeA)); got != "192.0.2.2" {
					t.Errorf("alone: %q", got)
				}
				n.server.prefer(0)
				if got := text(n.ask("tcp", "example.org.", dns.TypeA)); got != "192.0.2.2" {
					t.Errorf("over TCP: %q", got)
				}
			})
		})
	}
}

// big is an answer of n addresses.
func big(n int) func(q *dns.Msg) *dns.Msg {
	return func(q *dns.Msg) *dns.Msg {
		m := (&dns.Msg{}).SetReply(q)
		for i := range n {
			m.Answer = append(m.Answer, rr(fmt.Sprintf("%s 60 IN A 10.2.%d.%d", q.Question[0].Name, i/256, i%256)))
		}
		return m
	}
}

func TestForwardAsksAgainOverTCPWhenTruncated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, nil)
		u := n.upstreams[0]
		u.stream = big(100)
		u.packet = func(q *dns.Msg) []*dns.Msg {
			m := (&dns.Msg{}).SetReply(q)
			m.Truncated = true
			return []*dns.Msg{m}
		}
		m := n.ask("udp", "example.org.", dns.TypeA, func(q *dns.Msg) { q.SetEdns0(4096, false) })
		if len(m.Answer) != 100 || m.Truncated {
			t.Errorf("%d records, truncated: %v", len(m.Answer), m.Truncated)
		}
		// The client takes 512 bytes only, so that it has to come back over TCP.
		m = n.ask("udp", "example.org.", dns.TypeA)
		if len(m.Answer) == 0 || len(m.Answer) > 31 || !m.Truncated {
			t.Errorf("without EDNS: %d records, truncated: %v", len(m.Answer), m.Truncated)
		}
		if m = n.ask("tcp", "example.org.", dns.TypeA); len(m.Answer) != 100 || m.Truncated {
			t.Errorf("over TCP: %d records, truncated: %v", len(m.Answer), m.Truncated)
		}
		// A truncated answer is better than none.
		u.stream = func(*dns.Msg) *dns.Msg { return nil }
		if m = n.ask("udp", "example.org.", dns.TypeA); !m.Truncated || m.Rcode != dns.RcodeSuccess {
			t.Errorf("without TCP: %v", m)
		}
	})
}

func TestLongAnswersOfTheTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, nil)
		var ips []string
		for i := range 200 {
			ips = append(ips, fmt.Sprintf("10.1.0.%d", i))
		}
		n.server.SetTable(&plan.NameTable{Names: []plan.NameEntry{entry("many.example.com", "", "", ips...)}})
		m := n.ask("udp", "many.example.com.", dns.TypeA)
		if !m.Truncated || len(m.Answer) == 0 || len(m.Answer) > 31 {
			t.Errorf("%d records, truncated: %v", len(m.Answer), m.Truncated)
		}
		m = n.ask("udp", "many.example.com.", dns.TypeA, func(q *dns.Msg) { q.SetEdns0(65535, false) })
		if m.Truncated || len(m.Answer) != 200 || m.IsEdns0() == nil {
			t.Errorf("with EDNS: %d records, truncated: %v", len(m.Answer), m.Truncated)
		}
		if m = n.ask("tcp", "many.example.com.", dns.TypeA); m.Truncated || len(m.Answer) != 200 {
			t.Errorf("over TCP: %d records, truncated: %v", len(m.Answer), m.Truncated)
		}
	})
}

// Upstreams do not know the mesh's hosts. That must not make them vanish for a
// resolver that asks for another type first.
func TestOtherTypesOfTheMeshsNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, nil)
		n.upstreams[0].stream = func(q *dns.Msg) *dns.Msg { return (&dns.Msg{}).SetRcode(q, dns.RcodeNameError) }
		if got := text(n.ask("udp", "api.example.com.", dns.TypeHTTPS)); got != "" {
			t.Errorf("a host of the mesh: %q, want an empty answer", got)
		}
		if got := text(n.ask("udp", "example.org.", dns.TypeHTTPS)); got != "NXDOMAIN" {
			t.Errorf("another host: %q", got)
		}
	})
}

// Below a zone of its own the server asks nobody.
func TestZones(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, func(c *Config) { c.Zones, c.Search = []string{"cluster.local"}, nil })
		for _, test := range []struct {
			name     string
			qtype    uint16
			want     string
			forwards int32
		}{
			{"reviews.default.svc.cluster.local.", dns.TypeA, "10.96.0.1", 0},
			{"reviews.default.svc.cluster.local.", dns.TypeAAAA, "", 0},
			{"reviews.default.svc.cluster.local.", dns.TypeMX, "", 0},
			{"nobody.default.svc.cluster.local.", dns.TypeA, "NXDOMAIN", 0},
			{"Nobody.Default.svc.CLUSTER.local.", dns.TypeMX, "NXDOMAIN", 0},
			{"api.example.com.", dns.TypeA, "240.240.0.1", 0},
			{"api.example.com.", dns.TypeMX, "192.0.2.1", 1},
			{"notcluster.local.", dns.TypeA, "192.0.2.1", 1},
			{"reviews.", dns.TypeA, "192.0.2.1", 1},
		} {
			n.forwards.Store(0)
			if got := text(n.ask("udp", test.name, test.qtype)); got != test.want || n.forwards.Load() != test.forwards {
				t.Errorf("%s %s: %q by %d forwards, want %q by %d", test.name, dns.TypeToString[test.qtype], got, n.forwards.Load(), test.want, test.forwards)
			}
		}
	})
}

func TestBadQueries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, nil)
		raw := func(b []byte) string {
			c := must(n.pod.App().DialContext(t.Context(), "udp", "10.96.0.10:53"))
			defer c.Close()
			c.SetDeadline(time.Now().Add(time.Second))
			must(c.Write(b))
			answer := make([]byte, 512)
			k, err := c.Read(answer)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return "silence"
			}
			m := &dns.Msg{}
			if err := m.Unpack(answer[:k]); err != nil || m.Id != uint16(b[0])<<8|uint16(b[1]) || !m.Response {
				t.Errorf("answer %v: %v", m, err)
			}
			return dns.RcodeToString[m.Rcode]
		}
		q := (&dns.Msg{}).SetQuestion("reviews.", dns.TypeA)
		with := func(change func(m *dns.Msg)) []byte {
			m := q.Copy()
			change(m)
			return must(m.Pack())
		}
		for _, test := range []struct {
			name string
			b    []byte
			want string
		}{
			{"empty", nil, "silence"},
			{"short", []byte{1, 2, 3}, "silence"},
			{"an answer", with(func(m *dns.Msg) { m.Response = true }), "silence"},
			{"cut off", must(q.Pack())[:14], "FORMERR"},
			{"no question", with(func(m *dns.Msg) { m.Question = nil }), "FORMERR"},
			{"two questions", with(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), "FORMERR"},
			{"an update", with(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), "NOTIMP"},
			{"a zone", with(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR }), "REFUSED"},
		} {
			if got := raw(test.b); got != test.want {
				t.Errorf("%s: %s, want %s", test.name, got, test.want)
			}
		}
		if got := text(n.ask("udp", "reviews.", dns.TypeA)); got != "10.96.0.1" {
			t.Errorf("afterwards: %q", got)
		}
	})
}

func TestTooManyForwards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, func(c *Config) { c.MaxForwards = 3 })
		n.net.Partition(n.pod, n.upstreams[0].host, n.upstreams[1].host)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { n.ask("udp", "example.org.", dns.TypeA) })
		}
		synctest.Wait()
		for _, network := range []string{"udp", "tcp"} {
			start := time.Now()
			if got := text(n.ask(network, "example.org.", dns.TypeA)); got != "SERVFAIL" || time.Since(start) != 0 {
				t.Errorf("%s: %q after %v, want SERVFAIL at once", network, got, time.Since(start))
			}
		}
		if got := text(n.ask("udp", "reviews.", dns.TypeA)); got != "10.96.0.1" {
			t.Errorf("a name of the mesh: %q", got)
		}
		wg.Wait()
		n.net.Heal(n.pod, n.upstreams[0].host, n.upstreams[1].host)
		if got := text(n.ask("udp", "example.org.", dns.TypeA)); got != "192.0.2.1" {
			t.Errorf("afterwards: %q", got)
		}
	})
}

func TestStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, nil)
		open := func() net.Conn { return must(n.pod.App().DialContext(t.Context(), "tcp", "10.96.0.10:53")) }
		q := (&dns.Msg{}).SetQuestion("reviews.", dns.TypeA)

		// Several queries on one, sent together; then it is closed for idling.
		c := open()
		for range 3 {
			if err := writeFrame(c, must(q.Pack())); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			if m, err := accept(q, must(readFrame(c))); err != nil || text(m) != "10.96.0.1" {
				t.Errorf("%v, %v", m, err)
			}
		}
		start := time.Now()
		if _, err := readFrame(c); err == nil || time.Since(start) != streamIdle {
			t.Errorf("closed after %v (%v), want %v", time.Since(start), err, streamIdle)
		}
		c.Close()

		// No more than so many; a closed one makes room.
		var conns []net.Conn
		for range maxStreams {
			conns = append(conns, open())
		}
		synctest.Wait()
		c = open()
		if _, err := readFrame(c); err == nil {
			t.Error("one too many is served")
		}
		c.Close()
		conns[0].Close()
		synctest.Wait()
		if got := text(n.ask("tcp", "reviews.", dns.TypeA)); got != "10.96.0.1" {
			t.Errorf("after one was closed: %q", got)
		}
		for _, c := range conns[1:] {
			c.Close()
		}
	})
}

func TestRunEndsWhileQueriesWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, nil)
		n.net.Partition(n.pod, n.upstreams[0].host, n.upstreams[1].host)
		ctx, cancel := context.WithCancel(t.Context())
		proxy := n.pod.Proxy()
		c := n.server.config
		c.Packet6, c.Stream6 = nil, nil
		c.Packet = must(proxy.ListenPacket(ctx, netip.MustParseAddrPort("127.0.0.1:53")))
		c.Stream = must(proxy.Listen(ctx, netip.MustParseAddrPort("127.0.0.1:53")))
		s := must(New(c))
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		q := must((&dns.Msg{}).SetQuestion("example.org.", dns.TypeA).Pack())
		for _, network := range []string{"udp", "tcp"} {
			client := must(proxy.DialContext(ctx, network, "127.0.0.1:53"))
			defer client.Close()
			if network == "udp" {
				must(client.Write(q))
			} else if err := writeFrame(client, q); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		start := time.Now()
		cancel()
		if err := <-done; err != nil || time.Since(start) != 0 {
			t.Errorf("Run returned %v after %v", err, time.Since(start))
		}
	})
}

func TestRunFailsWithItsSocket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := simnet.New(simnet.Config{}).Host("pod", "10.0.0.1")
		at := netip.MustParseAddrPort("127.0.0.1:15053")
		c := Config{
			Packet: must(h.Proxy().ListenPacket(t.Context(), at)),
			Stream: must(h.Proxy().Listen(t.Context(), at)),
			Dial:   func(context.Context, string, netip.AddrPort) (net.Conn, error) { return nil, errors.New("no") },
		}
		s := must(New(c))
		done := make(chan error, 1)
		go func() { done <- s.Run(t.Context()) }()
		synctest.Wait()
		c.Packet.Close()
		if err := <-done; !errors.Is(err, net.ErrClosed) || !strings.HasPrefix(err.Error(), "dnsproxy: ") {
			t.Errorf("Run returned %v", err)
		}
	})
}

func TestNewChecksItsConfig(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("an empty config is taken")
	}
	p := must(net.ListenPacket("udp", "127.0.0.1:0"))
	defer p.Close()
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	c := Config{
		Packet: p, Stream: l,
		Dial:      func(context.Context, string, netip.AddrPort) (net.Conn, error) { return nil, nil },
		Upstreams: []netip.AddrPort{p.LocalAddr().(*net.UDPAddr).AddrPort()},
	}
	if _, err := New(c); err == nil || !strings.Contains(err.Error(), "itself") {
		t.Errorf("forwarding to itself: %v", err)
	}
}

// Go's own resolver on real sockets finds what it asks for.
func TestGoResolver(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p := must(net.ListenPacket("udp", "127.0.0.1:0"))
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	var d net.Dialer
	s := must(New(Config{Packet: p, Stream: l, Search: []string{"default.svc.cluster.local"},
		Dial: func(ctx context.Context, network string, addr netip.AddrPort) (net.Conn, error) {
			return d.DialContext(ctx, network, addr.String())
		}}))
	s.SetTable(names)
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	for network, addr := range map[string]string{"udp": p.LocalAddr().String(), "tcp": l.Addr().String()} {
		r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, network, addr)
		}}
		got, err := r.LookupNetIP(ctx, "ip", "db.default.svc.cluster.local.")
		slices.SortFunc(got, netip.Addr.Compare)
		if want := []netip.Addr(names.Names[2].IPs); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v, want %v", network, got, err, want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func FuzzQuery(f *testing.F) {
	s := must(New(Config{Packet: nowhere{}, Stream: nowhere{}, Dial: func(context.Context, string, netip.AddrPort) (net.Conn, error) { return nil, nil }, Search: []string{"default.svc.cluster.local"}}))
	s.SetTable(names)
	for _, q := range []*dns.Msg{
		(&dns.Msg{}).SetQuestion("reviews.", dns.TypeA),
		(&dns.Msg{}).SetQuestion("a.wild.example.com.", dns.TypeAAAA),
		(&dns.Msg{}).SetQuestion("example.org.", dns.TypeANY).SetEdns0(1232, true),
		(&dns.Msg{}).SetUpdate("example.org."),
	} {
		f.Add(must(q.Pack()))
	}
	f.Add([]byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		q := s.read(b)
		if q == nil {
			return
		}
		reply := s.answer(q)
		if reply == nil {
			reply = q.failure()
		}
		size := udpSize(q.msg)
		out := q.pack(reply, size)
		m := &dns.Msg{}
		if err := m.Unpack(out); err != nil || m.Id != uint16(b[0])<<8|uint16(b[1]) || !m.Response || len(out) > size {
			t.Errorf("%d bytes of %d: %v\n%v\nto\n%v", len(out), size, err, m, q.msg)
		}
	})
}

// Whatever an upstream sends, the client gets an answer to its question.
func FuzzUpstreamAnswer(f *testing.F) {
	s := must(New(Config{Packet: nowhere{}, Stream: nowhere{}, Dial: func(context.Context, string, netip.AddrPort) (net.Conn, error) { return nil, nil }}))
	sent := (&dns.Msg{}).SetQuestion("example.org.", dns.TypeA)
	sent.Id = 1
	client := sent.Copy()
	client.Id = 2
	f.Add(must(answerWith("192.0.2.1")(sent).Pack()))
	f.Add(must(big(200)(sent).Pack()))
	m := answerWith("192.0.2.1")(sent)
	m.Extra = []dns.RR{&dns.TSIG{Hdr: dns.RR_Header{Name: "key.", Rrtype: dns.TypeTSIG, Class: dns.ClassANY}, Algorithm: dns.HmacSHA256, MAC: "00", MACSize: 1}}
	m.Answer = append(m.Answer, rr(`example.org. 1 IN TXT "`+strings.Repeat("x", 250)+`"`), rr("example.org. 1 IN CNAME example.org."))
	f.Add(must(m.Pack()))
	f.Fuzz(func(t *testing.T, b []byte) {
		answer, err := accept(sent, b)
		if err != nil {
			return
		}
		q := &query{msg: client}
		out := q.pack(s.adopt(q, answer), 512)
		m := &dns.Msg{}
		if err := m.Unpack(out); err != nil || m.Id != 2 || !m.Response || len(m.Question) != 1 || m.Question[0] != client.Question[0] || len(out) > 512 {
			t.Errorf("%d bytes: %v\n%v", len(out), err, m)
		}
	})
}

// nowhere is a socket for servers that never run.
type nowhere struct {
	net.PacketConn
	net.Listener
}

func (nowhere) Addr() net.Addr      { return &net.TCPAddr{} }
func (nowhere) LocalAddr() net.Addr { return &net.UDPAddr{} }
func (nowhere) Close() error        { return nil }
