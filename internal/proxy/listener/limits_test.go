package listener

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/mtls"
	"github.com/heddle-mesh/heddle/internal/proxy/proxyproto"
	"github.com/heddle-mesh/heddle/internal/proxy/snapshot"
)

// edge is a gateway's listener behind a load balancer.
func edge() *plan.Listener {
	return &plan.Listener{
		Name: "0.0.0.0_443", Address: netip.MustParseAddrPort("0.0.0.0:443"), Direction: plan.Edge, Bound: true, ProxyProtocol: true,
		Inspect: plan.Inspect{TLS: true},
		Chains:  []*plan.FilterChain{chainOf("tls", plan.ChainMatch{ServerNames: []string{"*.example"}})},
		Default: chainOf("other", plan.ChainMatch{}),
	}
}

// remotes answers with the client's addresses.
type remotes struct{}

func (remotes) Serve(_ context.Context, c net.Conn, info *exchange.Conn) error {
	_, err := io.WriteString(c, info.Remote.String()+" by "+info.Direct.Addr().String()+" to "+info.Local.String()+"\n")
	return err
}

func runEdge(t *testing.T) *proxy {
	p := run(t, nil)
	p.deps.TCP = func(*plan.TCPChain, plan.Direction) (snapshot.Handler, error) { return remotes{}, nil }
	p.update(edge())
	return p
}

func TestProxyProtocolNamesTheClient(t *testing.T) {
	appHello := clientHello(t, &tls.Config{ServerName: "app.example"})
	synctest.Test(t, func(t *testing.T) {
		p := runEdge(t)
		client, asked := netip.MustParseAddrPort("192.0.2.7:5000"), netip.MustParseAddrPort("203.0.113.1:443")
		for name, test := range map[string]struct{ header, want string }{
			"version 1": {string(proxyproto.Append(nil, proxyproto.V1, client, asked)), "192.0.2.7:5000 by 10.0.0.9 to 203.0.113.1:443"},
			"version 2": {string(proxyproto.Append(nil, proxyproto.V2, client, asked)), "192.0.2.7:5000 by 10.0.0.9 to 203.0.113.1:443"},
		} {
			for _, size := range []int{maxHello, 7, 1} {
				for _, first := range []string{"hello\n", string(appHello)} {
					c := pieces{p.dial(p.client, "10.0.0.1:443"), size}
					c.Write([]byte(test.header + first))
					if got := line(t, c); got != test.want {
						t.Errorf("%s in pieces of %d: %q, want %q", name, size, got, test.want)
					}
					c.Close()
				}
			}
		}
		// One that the balancer makes for itself has its own addresses.
		c := p.dial(p.client, "10.0.0.1:443")
		c.Write(append(proxyproto.Append(nil, proxyproto.V2, netip.AddrPort{}, netip.AddrPort{}), "x"...))
		if got := line(t, c); !strings.HasPrefix(got, "10.0.0.9:") || !strings.HasSuffix(got, " by 10.0.0.9 to 10.0.0.1:443") {
			t.Errorf("%q, want the connection's own addresses", got)
		}
	})
}

func TestConnectionWithoutProxyProtocolHeaderIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := runEdge(t)
		for i, first := range []string{"GET / HTTP/1.1\r\n\r\n", "PROXY TCP4 1.2.3.4\r\n", "\r\n\r\n\x00\r\nQUIT\n\x31\x11\x00\x0c123412341212"} {
			c := p.dial(p.client, "10.0.0.1:443")
			io.WriteString(c, first)
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%q: %v, want a reset", first, err)
			}
			if got := p.noHeader.Value(); got != int64(i+1) {
				t.Errorf("%d counted, want %d", got, i+1)
			}
		}
		// Neither for ever does a header come in pieces.
		began := time.Now()
		c := p.dial(p.client, "10.0.0.1:443")
		io.WriteString(c, "PROXY TCP4 ")
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("half a header was served")
		}
		if took := time.Since(began); took != DefaultHandshakeTimeout {
			t.Errorf("closed after %v, want %v", took, DefaultHandshakeTimeout)
		}
	})
}

func TestClientThatDoesNotSayWhatItSpeaksIsClosed(t *testing.T) {
	for _, first := range []string{"\x16\x03\x01\x02\x00\x01", "GET /"} {
		synctest.Test(t, func(t *testing.T) {
			p := run(t, nil, inbound(0))
			captured(p)
			began := time.Now()
			c := p.dial(p.client, "10.0.0.1:9080")
			time.Sleep(time.Hour) // silence is not limited
			io.WriteString(c, first)
			if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
				t.Errorf("%q was served", first)
			}
			if took := time.Since(began); took != time.Hour+speakTimeout {
				t.Errorf("closed after %v, want %v", took, time.Hour+speakTimeout)
			}
		})
	}
}

// places returns a bound with a metric that counts evictions.
func places(t *testing.T, n, queue int) (*handshakes, func() int64) {
	p := run(t, nil)
	p.handshakes.places, p.handshakes.queue = n, queue
	return &p.handshakes, func() int64 { return p.handshakes.evicted.Value() }
}

// closed is a connection that notes its end.
type closed struct {
	net.Conn
	once sync.Once
	done chan struct{}
}

func newClosed() *closed       { return &closed{done: make(chan struct{})} }
func (c *closed) Close() error { c.once.Do(func() { close(c.done) }); return nil }
func (c *closed) isClosed() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

func TestSlowHandshakesMakeRoomForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, evicted := places(t, 2, 10)
		deadline := time.Now().Add(DefaultHandshakeTimeout)
		slow := []*closed{newClosed(), newClosed()}
		var held []*handshake
		for _, c := range slow {
			p, err := h.begin(t.Context(), c, deadline)
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, p)
			time.Sleep(100 * time.Millisecond)
		}
		began := time.Now()
		p, err := h.begin(t.Context(), newClosed(), deadline)
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != patience-200*time.Millisecond {
			t.Errorf("waited %v, want until the oldest has had %v", took, patience)
		}
		if !slow[0].isClosed() || slow[1].isClosed() || evicted() != 1 {
			t.Errorf("oldest closed: %v, the next: %v, %d counted; want only the oldest", slow[0].isClosed(), slow[1].isClosed(), evicted())
		}
		h.end(held[0]) // notices only now, and has no place to give back
		h.end(held[1])
		h.end(p)
		if h.under.Len() != 0 {
			t.Errorf("%d places are taken", h.under.Len())
		}
	})
}

func TestHandshakesWaitInTurnAndAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, evicted := places(t, 1, 2)
		first, err := h.begin(t.Context(), newClosed(), time.Now().Add(time.Second))
		if err != nil {
			t.Fatal(err)
		}
		order := make(chan int, 2)
		var wg sync.WaitGroup
		for i := range 2 {
			wg.Go(func() {
				p, err := h.begin(t.Context(), newClosed(), time.Now().Add(time.Second))
				if err != nil {
					t.Error(err)
					return
				}
				order <- i
				h.end(p)
			})
			synctest.Wait()
		}
		if _, err := h.begin(t.Context(), newClosed(), time.Now().Add(time.Second)); !errors.Is(err, errWaiting) {
			t.Errorf("one too many: %v, want %v", err, errWaiting)
		}
		time.Sleep(500 * time.Millisecond)
		h.end(first)
		wg.Wait()
		if a, b := <-order, <-order; a != 0 || b != 1 || evicted() != 0 {
			t.Errorf("served %d before %d, %d evicted; want the order in which they came", a, b, evicted())
		}
		// Time and the end of the context bound the wait.
		if first, err = h.begin(t.Context(), newClosed(), time.Now()); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := h.begin(t.Context(), newClosed(), began.Add(300*time.Millisecond)); !errors.Is(err, errHandshakes) || time.Since(began) != 300*time.Millisecond {
			t.Errorf("after %v: %v, want %v", time.Since(began), err, errHandshakes)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := h.begin(ctx, newClosed(), began.Add(time.Minute)); !errors.Is(err, context.Canceled) {
			t.Errorf("after the end: %v, want %v", err, context.Canceled)
		}
		h.end(first)
		if h.under.Len()+h.waiting.Len() != 0 {
			t.Errorf("%d places are taken, %d wait", h.under.Len(), h.waiting.Len())
		}
	})
}

// A flood of clients that begin a handshake and stop must not keep an honest one
// from the workload.
func TestHonestClientGetsThroughAFloodOfHalfOpenHandshakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := inbound(0)
		l.Inspect = plan.Inspect{}
		l.Chains = l.Chains[:1]
		l.Chains[0].Match = plan.ChainMatch{}
		p := run(t, nil, l)
		p.handshakes.places, p.handshakes.queue = 8, 100
		captured(p)
		for range 50 {
			io.WriteString(p.dial(p.client, "10.0.0.1:9080"), "\x16\x03\x01\x02\x00\x01")
		}
		synctest.Wait()
		began := time.Now()
		tc := tls.Client(p.dial(p.client, "10.0.0.1:9080"), mtls.ClientConfig(p.ca.Source("default", "caller"), &plan.ClientTLS{Certificate: "default", Roots: "ROOTCA", ALPN: []string{"istio"}}))
		if got := line(t, tc); !strings.HasPrefix(got, "mtls ") {
			t.Errorf("%q, want to be served", got)
		}
		// 42 are ahead in the queue, and each second makes room for eight.
		if took := time.Since(began); took > 7*time.Second {
			t.Errorf("served after %v", took)
		}
		if p.handshakes.evicted.Value() == 0 {
			t.Error("no slow handshake was given up")
		}
	})
}
