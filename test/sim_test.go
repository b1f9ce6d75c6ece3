package test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/config/analyze"
	"github.com/heddle-mesh/heddle/internal/control"
	"github.com/heddle-mesh/heddle/internal/dnsproxy"
	"github.com/heddle-mesh/heddle/internal/identity/ca"
	"github.com/heddle-mesh/heddle/internal/lab"
	"github.com/heddle-mesh/heddle/internal/meshtest/echo"
	"github.com/heddle-mesh/heddle/internal/meshtest/script"
	"github.com/heddle-mesh/heddle/internal/meshtest/simnet"
	"github.com/heddle-mesh/heddle/internal/meshtest/tap"
	"github.com/heddle-mesh/heddle/internal/model"
	"github.com/heddle-mesh/heddle/internal/proxy"
	"github.com/heddle-mesh/heddle/internal/redirect"
	"github.com/heddle-mesh/heddle/internal/source/file"
)

// TestScripts plays the scripts in virtual time: the whole control plane and
// every sidecar in one process, on a network in memory. Only what `heddle up`
// does with processes and namespaces is stood in for, by simStage.
func TestScripts(t *testing.T) {
	eachScript(t, "A", func(t *testing.T, s *script.Script) {
		synctest.Test(t, func(t *testing.T) {
			stage := newSimStage(t)
			defer stage.close()
			s.Run(t, stage)
		})
	})
}

var (
	controlPlane = netip.MustParseAddrPort("10.244.0.1:15012")
	dnsServer    = netip.MustParseAddrPort("10.96.0.10:53")
)

// settling is how much virtual time a change gets to reach every proxy.
const settling = 3 * time.Second

// restart is how long a process that ended stays away, as with `heddle up`.
const restart = 500 * time.Millisecond

// simStage is a cluster of goroutines.
type simStage struct {
	t          *testing.T
	ctx        context.Context
	cancel     context.CancelFunc
	wg         sync.WaitGroup
	net        *simnet.Net
	node       *simnet.Host // has no pod: what asks from outside
	manifest   string
	state      string
	issuer     *ca.Issuer
	dns        *dnsproxy.Server
	istiod     *process
	istiodHost *simnet.Host
	nextIP     netip.Addr

	mu      sync.Mutex // guards what follows
	user    map[config.Key]*config.Object
	pods    map[string]*simPod
	all     map[config.Key]*config.Object // what the control plane should know
	changed chan struct{}                 // closed and renewed when all changes
	builder *model.Builder
	world   *model.World
	fed     map[config.Key]*config.Object // what builder was given
	vips    map[netip.Addr]*simnet.Host
}

// simPod is a pod with its processes.
type simPod struct {
	object     *corev1.Pod
	host       *simnet.Host
	app, proxy *process // nil if it has none
	proxyReady bool
	leaving    bool
	stop       []func() // end its processes for good
}

// process is a function that is run again when it ends.
type process struct {
	mu     sync.Mutex
	cancel context.CancelFunc // of the current run
	up     bool
}

func newSimStage(t *testing.T) *simStage {
	ctx, cancel := context.WithCancel(t.Context())
	s := &simStage{
		t: t, ctx: ctx, cancel: cancel, net: simnet.New(simnet.Config{Latency: 50 * time.Microsecond}),
		manifest: t.TempDir(), state: t.TempDir(), nextIP: netip.MustParseAddr("10.244.0.10"),
		user: map[config.Key]*config.Object{}, pods: map[string]*simPod{}, all: map[config.Key]*config.Object{}, changed: make(chan struct{}),
		builder: model.NewBuilder(model.Options{}), fed: map[config.Key]*config.Object{}, vips: map[netip.Addr]*simnet.Host{},
	}
	if err := os.Chmod(s.state, 0o700); err != nil {
		t.Fatal(err)
	}
	s.world, _ = s.builder.Apply()
	s.node = s.net.Host("node", "10.0.0.1")
	var err error
	if s.issuer, err = ca.NewIssuer(filepath.Join(s.state, "token-key.pem")); err != nil {
		t.Fatal(err)
	}
	s.startDNS()
	s.startControlPlane()
	return s
}

func (s *simStage) close() {
	s.cancel()
	s.wg.Wait()
	// What is still on its way arrives before the clock stops.
	time.Sleep(time.Minute)
}

// start runs f, again and again, until the stage ends or stop is called.
func (s *simStage) start(name string, f func(ctx context.Context) error) (p *process, stop func()) {
	p = &process{}
	life, stop := context.WithCancel(s.ctx)
	s.wg.Go(func() {
		for life.Err() == nil {
			ctx, cancel := context.WithCancel(life)
			p.set(cancel, true)
			s.poke()
			err := f(ctx)
			killed := ctx.Err() != nil
			cancel()
			p.set(nil, false)
			if err != nil && !killed {
				s.t.Errorf("%s ended: %v", name, err)
			}
			s.poke()
			select {
			case <-time.After(restart):
			case <-life.Done():
			}
		}
	})
	return p, stop
}

func (p *process) set(cancel context.CancelFunc, up bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cancel, p.up = cancel, up
}

func (p *process) running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.up
}

// kill ends the current run.
func (p *process) kill() {
	p.mu.Lock()
	cancel := p.cancel
	p.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}

func (s *simStage) startDNS() {
	h := s.net.Host("dns", dnsServer.Addr().String())
	packet, err := h.App().ListenPacket(s.ctx, dnsServer)
	if err != nil {
		s.t.Fatal(err)
	}
	stream, err := h.App().Listen(s.ctx, dnsServer)
	if err != nil {
		s.t.Fatal(err)
	}
	s.dns, err = dnsproxy.New(dnsproxy.Config{Packet: packet, Stream: stream, Zones: []string{"."}, Log: quiet,
		Dial: func(context.Context, string, netip.AddrPort) (net.Conn, error) {
			return nil, errors.New("no world outside")
		}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.wg.Go(func() { s.dns.Run(s.ctx) })
}

var quiet = slog.New(slog.DiscardHandler)

func (s *simStage) startControlPlane() {
	h := s.net.Host("istiod", controlPlane.Addr().String())
	s.istiodHost = h
	s.istiod, _ = s.start("heddled", func(ctx context.Context) error {
		tokens, err := ca.NewVerifier(s.issuer.PublicKeyPath(), ca.Audience)
		if err != nil {
			return err
		}
		return control.Run(ctx, control.Config{
			NewSource: func(onBatch func(config.Batch), _ func([]config.Fault)) (control.Source, error) {
				return &memory{stage: s, onBatch: onBatch}, nil
			},
			StateDir: filepath.Join(s.state, "ca"), TLSAddr: controlPlane.String(), Tokens: tokens, Log: quiet,
			Listen: func(ctx context.Context, _, addr string) (net.Listener, error) {
				return h.App().Listen(ctx, netip.MustParseAddrPort(addr))
			},
		})
	})
}

// memory is a source that sends what the stage knows.
type memory struct {
	stage   *simStage
	onBatch func(config.Batch)
}

func (m *memory) Run(ctx context.Context) error {
	sent := map[config.Key]*config.Object{}
	for synced := true; ; synced = false {
		m.stage.mu.Lock()
		all, changed := maps.Clone(m.stage.all), m.stage.changed
		m.stage.mu.Unlock()
		if b := difference(sent, all); synced || len(b.Changes) > 0 {
			b.Source, b.Synced = "memory", synced
			m.onBatch(b)
		}
		sent = all
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// difference is the batch that leads from old to all.
func difference(old, all map[config.Key]*config.Object) (b config.Batch) {
	for k, o := range all {
		if old[k] != o {
			b.Changes = append(b.Changes, config.Change{Key: k, Object: o})
		}
	}
	for k := range old {
		if all[k] == nil {
			b.Changes = append(b.Changes, config.Change{Key: k})
		}
	}
	slices.SortFunc(b.Changes, func(a, c config.Change) int { return strings.Compare(a.Key.String(), c.Key.String()) })
	return b
}

// poke brings what is known up to date: pods' readiness, the control plane's
// view, names, and the addresses of Services.
func (s *simStage) poke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := maps.Clone(s.user)
	for _, p := range s.pods {
		ready := !p.leaving && (p.app == nil || p.app.running() && probed(p.object)) && (p.proxy == nil || p.proxy.running() && p.proxyReady)
		k := config.Key{Kind: config.Pod, Namespace: p.object.Namespace, Name: p.object.Name}
		if old := s.all[k]; old != nil && old.Spec.(*corev1.Pod).UID == p.object.UID && isReady(old.Spec.(*corev1.Pod)) == ready && (old.Spec.(*corev1.Pod).DeletionTimestamp != nil) == p.leaving {
			all[k] = old
			continue
		}
		all[k] = podObject(p, ready)
	}
	if len(difference(s.all, all).Changes) == 0 {
		return
	}
	s.all = all
	close(s.changed)
	s.changed = make(chan struct{})
	s.world, _ = s.builder.Apply(difference(s.fed, all))
	s.fed = all
	s.dns.SetTable(lab.Names(s.world))
	s.openServices()
}

// probed answers for the readiness probe: the port it asks must be served.
func probed(pod *corev1.Pod) bool {
	for _, c := range pod.Spec.Containers {
		if c.ReadinessProbe == nil || c.ReadinessProbe.TCPSocket == nil {
			continue
		}
		port := c.ReadinessProbe.TCPSocket.Port.String()
		if !slices.ContainsFunc(c.Command, func(arg string) bool { return strings.HasSuffix(arg, ":"+port) }) {
			return false
		}
	}
	return true
}

func isReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func podObject(p *simPod, ready bool) *config.Object {
	pod := p.object.DeepCopy()
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	pod.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: p.host.Addr().String(), PodIPs: []corev1.PodIP{{IP: p.host.Addr().String()}},
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: status}},
	}
	if p.leaving {
		now := metav1.Now()
		pod.DeletionTimestamp = &now
	}
	return &config.Object{
		Key:        config.Key{Kind: config.Pod, Namespace: pod.Namespace, Name: pod.Name},
		APIVersion: "v1", Labels: pod.Labels, Annotations: pod.Annotations, Created: pod.CreationTimestamp.Time, Spec: pod,
	}
}

// openServices gives each Service address a host that hands connections to a
// ready endpoint: what kube-proxy does for callers without a sidecar.
func (s *simStage) openServices() {
	for _, svc := range s.world.Services() {
		if !svc.Kubernetes || svc.Headless {
			continue
		}
		for _, vip := range svc.Addresses {
			if vip == dnsServer.Addr() || s.vips[vip] != nil {
				continue
			}
			h := s.net.Host(svc.Name, vip.String())
			s.vips[vip] = h
			for _, port := range svc.Ports {
				l, err := h.App().Listen(s.ctx, netip.AddrPortFrom(vip, port.Number))
				if err != nil {
					s.t.Errorf("service %s: %v", svc.Name, err)
					continue
				}
				context.AfterFunc(s.ctx, func() { l.Close() })
				s.wg.Go(func() { s.forward(h, l, port.Number) })
			}
		}
	}
}

func (s *simStage) forward(h *simnet.Host, l net.Listener, port uint16) {
	for next := 0; ; next++ {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		w := s.world
		s.mu.Unlock()
		svc := w.ServiceAt(h.Addr())
		var to []netip.AddrPort
		if svc != nil {
			to = lab.Endpoints(w, svc, port)
		}
		if len(to) == 0 {
			c.Close()
			continue
		}
		s.wg.Go(func() {
			defer c.Close()
			up, err := h.App().Dial(s.ctx, netip.Addr{}, to[next%len(to)])
			if err != nil {
				return
			}
			defer up.Close()
			pipe(c.(*simnet.Conn), up.(*simnet.Conn))
		})
	}
}

// pipe copies both ways and passes on how each side ended.
func pipe(a, b *simnet.Conn) {
	var wg sync.WaitGroup
	for _, d := range [][2]*simnet.Conn{{a, b}, {b, a}} {
		wg.Go(func() {
			if _, err := io.Copy(d[1], d[0]); err != nil {
				for _, c := range d {
					c.SetLinger(0)
					c.Close()
				}
				return
			}
			d[1].CloseWrite()
		})
	}
	wg.Wait()
}

// Apply implements script.Stage.
func (s *simStage) Apply(ctx context.Context, files map[string][]byte) ([]string, error) {
	if err := os.RemoveAll(s.manifest); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.manifest, 0o755); err != nil {
		return nil, err
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(s.manifest, name), data, 0o644); err != nil {
			return nil, err
		}
	}
	objects, faults := readChecked(s.manifest)
	var lines []string
	bad := false
	for _, f := range faults {
		bad = bad || f.Severity == config.Error
		lines = append(lines, strings.TrimPrefix(f.Error(), s.manifest+"/"))
	}
	if !bad {
		s.take(objects)
		time.Sleep(settling)
		synctest.Wait()
	}
	return lines, nil
}

// take makes objects the user's whole wish, and starts and stops pods.
func (s *simStage) take(objects []*config.Object) {
	s.mu.Lock()
	user := map[config.Key]*config.Object{}
	for _, o := range objects {
		// An object keeps its age, as in a cluster.
		if old := s.user[o.Key]; old != nil {
			same := *o
			same.Created = old.Created
			o = &same
		}
		user[o.Key] = o
	}
	s.user = user
	want := map[string]*corev1.Pod{}
	for _, pod := range lab.Pods(objects) {
		want[pod.Namespace+"/"+pod.Name] = pod
	}
	var start, stop []*simPod
	for key, pod := range want {
		if s.pods[key] == nil {
			p := &simPod{object: pod, host: s.net.Host(pod.Name, s.nextIP.String())}
			s.nextIP = s.nextIP.Next()
			s.pods[key] = p
			start = append(start, p)
		}
	}
	for key, p := range s.pods {
		if want[key] == nil && !p.leaving {
			p.leaving = true
			stop = append(stop, p)
		}
	}
	s.mu.Unlock()
	for _, p := range start {
		s.startPod(p)
	}
	for _, p := range stop {
		s.wg.Go(func() { s.removePod(p) })
	}
	s.poke()
}

// startPod starts a pod's processes.
func (s *simStage) startPod(p *simPod) {
	gateway := p.object.Annotations["inject.istio.io/templates"] == "gateway"
	for _, c := range p.object.Spec.Containers {
		if c.Name == "istio-proxy" {
			if !gateway {
				rules, err := redirect.FromAnnotations(p.object.Annotations)
				if err != nil {
					s.t.Error(err)
					return
				}
				rules.DNS = true
				p.host.Redirect(redirect.Rules(rules))
			}
			proc, stop := s.start(p.object.Name+"/istio-proxy", func(ctx context.Context) error { return s.runProxy(ctx, p, gateway) })
			s.mu.Lock()
			p.proxy, p.stop = proc, append(p.stop, stop)
			s.mu.Unlock()
			continue
		}
		if len(c.Command) < 2 || c.Command[0] != "meshecho" {
			s.t.Errorf("pod %s: a script's program is meshecho, not %v", p.object.Name, c.Command)
			return
		}
		server := echo.Server{Pod: p.object.Name, Ports: c.Command[2:], Listen: func(ctx context.Context, port uint16) (net.Listener, error) {
			return p.host.App().Listen(ctx, netip.AddrPortFrom(netip.IPv6Unspecified(), port))
		}}
		proc, stop := s.start(p.object.Name+"/"+c.Name, server.Run)
		s.mu.Lock()
		p.app, p.stop = proc, append(p.stop, stop)
		s.mu.Unlock()
	}
}

func (s *simStage) runProxy(ctx context.Context, p *simPod, gateway bool) error {
	ns := p.object.Namespace
	workload := p.object.Name
	if o := p.object.OwnerReferences; len(o) > 0 {
		workload = o[0].Name
	}
	s.setReady(p, false)
	defer s.setReady(p, false)
	at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.IPv4Unspecified(), port) }
	cfg := proxy.Config{
		Version: "test",
		Workload: proxy.Workload{
			Gateway: gateway, PodName: p.object.Name, Namespace: ns, ServiceAccount: p.object.Spec.ServiceAccountName,
			IPs: []netip.Addr{p.host.Addr()}, ClusterID: "Kubernetes", TrustDomain: "cluster.local", DNSDomain: ns + ".svc.cluster.local",
			Labels: p.object.Labels, Annotations: p.object.Annotations, WorkloadName: workload,
			Metadata: map[string]any{"DNS_CAPTURE": "true"},
		},
		Network: p.host.Proxy(),
		Control: proxy.Control{
			Address: controlPlane.String(),
			Roots: func() ([]byte, error) {
				// The control plane may not have made it yet.
				for path := filepath.Join(s.state, "ca", "root-cert.pem"); ; {
					b, err := os.ReadFile(path)
					if err == nil || !errors.Is(err, os.ErrNotExist) || ctx.Err() != nil {
						return b, err
					}
					time.Sleep(10 * time.Millisecond)
				}
			},
			Token: func() (string, error) { return s.issuer.Issue(ns, p.object.Spec.ServiceAccountName, time.Hour) },
		},
		Servers:   proxy.Servers{Status: at(15020), Ready: at(15021)},
		Drain:     proxy.Drain{Termination: time.Second, Chain: proxy.DefaultChainDrain},
		CachePath: filepath.Join(s.state, ns+"-"+p.object.Name),
		OpenLog:   func(string) (io.WriteCloser, error) { return discard{}, nil },
		Resolver:  resolver{s},
		Log:       quiet,
		OnReady:   func() { s.setReady(p, true) },
	}
	if !gateway {
		cfg.DNS = &proxy.DNS{
			Listen: netip.MustParseAddrPort("127.0.0.1:15053"), Upstreams: []netip.AddrPort{dnsServer},
			Search: searchOf(ns),
		}
	}
	return proxy.Run(ctx, cfg)
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) Close() error                { return nil }

func searchOf(namespace string) []string {
	return []string{namespace + ".svc.cluster.local", "svc.cluster.local", "cluster.local"}
}

func (s *simStage) setReady(p *simPod, ready bool) {
	s.mu.Lock()
	p.proxyReady = ready
	s.mu.Unlock()
	s.poke()
}

// removePod ends a pod as a kubelet does: it is out of the endpoints first, gets
// time to finish, and is gone.
func (s *simStage) removePod(p *simPod) {
	select {
	case <-time.After(500 * time.Millisecond):
	case <-s.ctx.Done():
		return
	}
	s.mu.Lock()
	delete(s.pods, p.object.Namespace+"/"+p.object.Name)
	s.mu.Unlock()
	s.poke()
	for _, stop := range p.stop {
		stop()
	}
	select {
	case <-time.After(2 * time.Second):
	case <-s.ctx.Done():
	}
	s.net.Remove(p.host)
}

// resolver finds names as a process of the node does.
type resolver struct{ s *simStage }

func (r resolver) LookupNetIP(ctx context.Context, _, host string) ([]netip.Addr, error) {
	return lookup(ctx, r.s.node.App(), host, nil)
}

// lookup asks the cluster's DNS server from a host, with search domains as
// /etc/resolv.conf would have them.
func lookup(ctx context.Context, from *simnet.View, name string, search []string) ([]netip.Addr, error) {
	tries := []string{name}
	if len(search) > 0 && strings.Count(name, ".") < 5 {
		tries = nil
		for _, d := range search {
			tries = append(tries, name+"."+d)
		}
		tries = append(tries, name)
	}
	for _, try := range tries {
		c, err := from.DialContext(ctx, "udp", dnsServer.String())
		if err != nil {
			return nil, err
		}
		q := new(dns.Msg).SetQuestion(dns.Fqdn(try), dns.TypeA)
		answer, _, err := new(dns.Client).ExchangeWithConnContext(ctx, q, &dns.Conn{Conn: c})
		c.Close()
		if err != nil {
			return nil, err
		}
		var out []netip.Addr
		for _, rr := range answer.Answer {
			if a, ok := rr.(*dns.A); ok {
				ip, _ := netip.AddrFromSlice(a.A.To4())
				out = append(out, ip)
			}
		}
		if len(out) > 0 {
			return out, nil
		}
	}
	return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

// pod finds a pod by its name or its Deployment's.
func (s *simStage) pod(name string) (*simPod, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pods {
		if p.object.Name == name || p.object.Name == name+"-0" {
			return p, nil
		}
	}
	return nil, fmt.Errorf("no pod %s", name)
}

// client dials from a pod as its program would.
func (s *simStage) client(name string) (echo.Client, error) {
	p, err := s.pod(name)
	if err != nil {
		return echo.Client{}, err
	}
	return echo.Client{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		if _, err := netip.ParseAddrPort(addr); err == nil {
			return p.host.App().DialContext(ctx, network, addr)
		}
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		ips, err := lookup(ctx, p.host.App(), host, searchOf(p.object.Namespace))
		if err != nil {
			return nil, err
		}
		return p.host.App().DialContext(ctx, network, net.JoinHostPort(ips[0].String(), port))
	}}, nil
}

// Get implements script.Stage.
func (s *simStage) Get(ctx context.Context, pod string, g echo.Get, each func(echo.Result)) error {
	c, err := s.client(pod)
	if err != nil {
		return err
	}
	c.HTTP(ctx, g, each)
	return nil
}

// TCP implements script.Stage.
func (s *simStage) TCP(ctx context.Context, pod string, f echo.Flow) (echo.Result, error) {
	c, err := s.client(pod)
	if err != nil {
		return echo.Result{}, err
	}
	return c.TCP(ctx, f), nil
}

// Kill implements script.Stage: sockets vanish first, as with SIGKILL.
func (s *simStage) Kill(_ context.Context, pod, container string) error {
	if pod == "istiod" {
		s.istiod.kill()
		s.istiodHost.Kill()
		return nil
	}
	p, err := s.pod(pod)
	if err != nil {
		return err
	}
	view, proc := p.host.App(), p.app
	if container == "istio-proxy" {
		view, proc = p.host.Proxy(), p.proxy
	}
	if proc == nil {
		return fmt.Errorf("pod %s has no %s", pod, container)
	}
	proc.kill()
	view.Kill()
	return nil
}

// Advance implements script.Stage.
func (s *simStage) Advance(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// Metrics implements script.Stage.
func (s *simStage) Metrics(ctx context.Context, pod string) (string, error) {
	p, err := s.pod(pod)
	if err != nil {
		return "", err
	}
	tr := &http.Transport{DialContext: s.node.App().DialContext, DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: tr}).Get("http://" + net.JoinHostPort(p.host.Addr().String(), "15020") + "/stats/prometheus")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// Ready implements script.Stage.
func (s *simStage) Ready(ctx context.Context, pod string) error {
	for range 600 {
		p, err := s.pod(pod)
		if err != nil {
			return err
		}
		s.mu.Lock()
		o := s.all[config.Key{Kind: config.Pod, Namespace: p.object.Namespace, Name: p.object.Name}]
		s.mu.Unlock()
		if o != nil && isReady(o.Spec.(*corev1.Pod)) {
			time.Sleep(settling)
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("pod %s is not ready after a minute", pod)
}

// Tap implements script.Stage.
func (s *simStage) Tap(_ context.Context, a, b string) (func() ([]string, error), error) {
	from, err := s.pod(a)
	if err != nil {
		return nil, err
	}
	to, err := s.pod(b)
	if err != nil {
		return nil, err
	}
	link := s.net.Tap(from.host, to.host)
	return func() ([]string, error) {
		var c tap.Capture
		for _, st := range link.Streams() {
			c.Add(st.From, st.To, st.Data)
		}
		return c.Kinds(nil), nil
	}, nil
}

// Patience implements script.Stage: in virtual time everything has happened.
func (s *simStage) Patience() time.Duration { return 0 }

// readChecked reads manifests as `heddle validate` does.
func readChecked(dir string) ([]*config.Object, []config.Fault) {
	objects, faults := file.ReadAll([]string{dir}, nil)
	return objects, append(faults, analyze.Check(objects)...)
}
