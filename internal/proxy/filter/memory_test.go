package filter

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/http2"
	"github.com/heddle-mesh/heddle/internal/proxy/overload"
	"github.com/heddle-mesh/heddle/internal/proxy/route"
	"github.com/heddle-mesh/heddle/internal/proxy/socket"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
	"github.com/heddle-mesh/heddle/internal/telemetry"
)

// smallProxy is the variable that makes the test's program a proxy before the upstream
// that it names, and smallLimit what that proxy may hold.
const (
	smallProxy = "HEDDLE_TEST_SMALL_PROXY"
	smallLimit = 64 << 20
)

// runSmallProxy is that program. It prints its address, and what it has counted when
// its input ends.
func runSmallProxy(app string) error {
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(smallLimit / 100 * overload.GCPercent)
	metrics := telemetry.NewRegistry()
	guard := overload.New(overload.Config{Limit: smallLimit, Metrics: metrics})
	budget := http2.NewBudget(smallLimit / 4)
	set := upstream.NewSet(upstream.Config{Network: kernel{}, Budget: budget})
	addr, err := netip.ParseAddrPort(app)
	if err != nil {
		return err
	}
	clusters, assignments := map[string]*plan.Cluster{}, map[string]*plan.LoadAssignment{}
	for name, p := range map[string]plan.Protocol{"one": plan.HTTP1, "two": plan.HTTP2} {
		clusters[name] = &plan.Cluster{Name: name, Protocol: p}
		assignments[name] = &plan.LoadAssignment{Localities: []plan.LocalityEndpoints{{Endpoints: []plan.Endpoint{{Address: addr}}}}}
	}
	set.Update(clusters, assignments)
	two := to("two")
	two.Match.Path.Value = "/two"
	table, err := route.NewTable(&plan.RouteConfig{Hosts: []*plan.VirtualHost{{Domains: []string{"*"}, Routes: []*plan.Route{two, to("one")}}}})
	if err != nil {
		return err
	}
	s := NewServer(Config{Chain: &plan.HTTPChain{}, Routes: func() *route.Table { return table }, Clusters: set, Budget: budget, Overloaded: guard.Shed})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	ctx := context.Background() // the process is its end
	go guard.Run(ctx)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if guard.Refuse() {
				c.Close()
				continue
			}
			go s.Serve(ctx, socket.Wrap(c), &exchange.Conn{Local: addr})
		}
	}()
	fmt.Println(l.Addr())
	io.Copy(io.Discard, os.Stdin)
	return metrics.WritePrometheus(os.Stdout)
}

// startSmallProxy starts it and returns its address, and what ends it and returns what
// it counted.
func startSmallProxy(t *testing.T, app string) (addr string, end func() string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), smallProxy+"="+app)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	rd := bufio.NewReader(out)
	line, err := rd.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line), func() string {
		in.Close()
		counted, _ := io.ReadAll(rd)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the proxy ended with %v", err)
		}
		return string(counted)
	}
}

// counted returns the value of a metric, or -1.
func counted(page, name string) float64 {
	var v float64
	_, rest, _ := strings.Cut("\n"+page, "\n"+name+" ")
	if _, err := fmt.Sscan(rest, &v); err != nil {
		return -1
	}
	return v
}

// A proxy with little memory is asked to hold more than it has, by thousands of
// connections and streams whose bodies nobody takes. It lives, gives up what is too
// much with 503 and says how much that was, and is as before when they have left
// and their upstream lets go.
func TestSmallProxyOutlivesAnAttack(t *testing.T) {
	const connections, sessions, streamsEach = 2000, 50, 100
	released := make(chan struct{})
	app := &http.Server{Protocols: bothProtocols(), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/hold") {
			// Nothing else ends it: the body is not read, nor what follows.
			<-released
			return
		}
		io.WriteString(w, "innocent")
	})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer app.Close()
	release := sync.OnceFunc(func() { close(released) })
	defer release()
	wg.Go(func() { app.Serve(l) })
	addr, end := startSmallProxy(t, l.Addr().String())

	client := &http.Client{Transport: &http.Transport{}, Timeout: 30 * time.Second}
	defer client.CloseIdleConnections()
	// status is that of an innocent request, 0 if its connection was refused.
	status := func(path string) int {
		r, err := client.Get("http://" + addr + path)
		if err != nil {
			return 0
		}
		defer r.Body.Close()
		io.Copy(io.Discard, r.Body)
		return r.StatusCode
	}
	if status("/") != 200 || status("/two/") != 200 {
		t.Fatal("the proxy does not work")
	}

	var mu sync.Mutex
	var conns []net.Conn
	var shed atomic.Int64
	keep := func(c net.Conn) {
		mu.Lock()
		defer mu.Unlock()
		conns = append(conns, c)
	}
	body := make([]byte, 64<<10)
	for range connections {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		keep(c)
		wg.Go(func() {
			if line, _ := bufio.NewReader(c).ReadString('\n'); strings.Contains(line, " 503 ") {
				shed.Add(1)
			}
		})
		wg.Go(func() {
			_, err := io.WriteString(c, "POST /hold HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n")
			for err == nil {
				_, err = c.Write(body)
			}
		})
	}
	for range sessions {
		k := attackOver(t, addr)
		keep(k.c)
		wg.Go(func() { io.Copy(io.Discard, k.c) })
		wg.Go(func() {
			for i := range uint32(streamsEach) {
				k.send(2*i+1, false, [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", "/two/hold"}, {":authority", "a"}})
				k.fr.WriteData(2*i+1, false, body[:16<<10])
			}
			k.w.Flush()
		})
	}
	until := func(want string, is func(status int) bool) {
		t.Helper()
		for deadline := time.Now().Add(60 * time.Second); !is(status("/")); {
			if time.Now().After(deadline) {
				t.Fatalf("no innocent request was %s", want)
			}
		}
	}
	until("given up", func(status int) bool { return status != 200 })

	release()
	for _, c := range conns {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	for range 100 {
		until("answered again", func(status int) bool { return status == 200 })
	}
	if got := status("/two/"); got != 200 {
		t.Errorf("over HTTP/2 the answer is %d afterwards", got)
	}
	page := end()
	if n := counted(page, "heddle_proxy_overload_shed_requests_total"); n <= 0 || n < float64(shed.Load()) {
		t.Errorf("%d requests were answered with 503, %v counted", shed.Load(), n)
	}
	// What the kernel counts is more by the program itself, and by much more where the
	// race detector looks on.
	if most := counted(page, "heddle_proxy_overload_peak_bytes"); most < smallLimit/2 || most > 1.5*smallLimit {
		t.Errorf("a proxy of %d MiB held %.0f MiB", smallLimit>>20, most/(1<<20))
	}
}
