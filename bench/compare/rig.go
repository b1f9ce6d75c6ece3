package main

import (
	"bufio"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/heddle-mesh/heddle/internal/identity/ca"
)

//go:embed configs
var configs embed.FS

// rig is what the subjects of a scenario share: backend, control plane and
// certificates.
type rig struct {
	o       options
	dir     string
	certs   string // state directory of the authority, with the generators' certificate
	control *fixture
	backend *process
	web     netip.AddrPort // of the backend: requests
	source  netip.AddrPort // bytes
	calls   netip.AddrPort // requests of HTTP/2
	pods    int
	port    int // the last that was given out
}

// subject is what is measured: a peer with all of its proxies.
type subject struct {
	peer  peer
	name  string
	tcp   bool
	addr  netip.AddrPort // where the generator connects
	procs []*process     // whose time and memory count
	other []*process     // control planes
	since time.Time      // when it was found to work
}

func newRig(ctx context.Context, o options) (*rig, error) {
	dir, err := os.MkdirTemp("", "heddle-compare-")
	if err != nil {
		return nil, err
	}
	r := &rig{o: o, dir: dir, certs: filepath.Join(dir, "ca")}
	if err := r.open(ctx); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *rig) open(ctx context.Context) (err error) {
	if r.control, err = newFixture(ctx, r.certs); err != nil {
		return err
	}
	if err := writeCertificate(r.certs); err != nil {
		return err
	}
	cmd, err := again(ctx, "worker-backend")
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if r.backend, err = start(cmd, "backend", r.dir, r.o.cores.load); err != nil {
		return err
	}
	line, err := copyLine(out)
	if err != nil {
		return errors.Join(err, r.backend.failure())
	}
	addrs := strings.Fields(line)
	if len(addrs) != 3 {
		return fmt.Errorf("the backend says %q", line)
	}
	var errs [3]error
	for i, to := range []*netip.AddrPort{&r.web, &r.source, &r.calls} {
		*to, errs[i] = netip.ParseAddrPort(addrs[i])
	}
	return errors.Join(errs[:]...)
}

func (r *rig) close() {
	if r.backend != nil {
		r.backend.stop()
	}
	if r.control != nil {
		r.control.close()
	}
	if r.o.keep {
		fmt.Fprintln(os.Stderr, "compare: kept", r.dir)
		return
	}
	_ = os.RemoveAll(r.dir) // it is a temporary directory
}

// startAll starts the subjects of a scenario and waits until all work. They end
// with ctx, if not before.
func (r *rig) startAll(ctx context.Context, s scenario) (subs []*subject, err error) {
	for _, p := range s.peers {
		sub := &subject{peer: p, name: p.name, tcp: s.path[0].tcp}
		subs = append(subs, sub)
		if err = r.start(ctx, sub, s.path); err == nil {
			err = r.await(ctx, sub, s.path[0])
		}
		if err != nil {
			for _, sub := range subs {
				sub.stop()
			}
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return subs, nil
}

func (s *subject) stop() {
	for _, p := range slices.Concat(s.procs, s.other) {
		p.stop()
	}
}

// start starts a subject's proxies, the one next to the backend first.
func (r *rig) start(ctx context.Context, sub *subject, path []role) error {
	sub.addr = r.web
	switch {
	case sub.tcp:
		sub.addr = r.source
	case path[0].http2:
		sub.addr = r.calls
	}
	if sub.peer.kind == direct {
		return nil
	}
	for _, role := range slices.Backward(path) {
		listen, err := r.freePort()
		if err != nil {
			return err
		}
		if err := r.startProxy(ctx, sub, role, listen, sub.addr); err != nil {
			return err
		}
		sub.addr = listen
	}
	return nil
}

// Ports are taken from below those that the kernel gives to connections, which
// could take one between its choice and its use.
// Source: Linux, net.ipv4.ip_local_port_range.
const firstPort, lastPort = 20000, 32767

// freePort finds a port that nobody listens on, another one each time.
func (r *rig) freePort() (netip.AddrPort, error) {
	for r.port < lastPort {
		r.port = max(r.port+1, firstPort)
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", r.port)); err == nil {
			defer l.Close()
			return netip.ParseAddrPort(l.Addr().String())
		}
	}
	return netip.AddrPort{}, errors.New("no port is free")
}

// settings are what the templates of configurations see.
type settings struct {
	Peer             struct{ Log, Auto bool }
	TCP, HTTP2       bool
	TLSIn, TLSOut    bool
	Listen, Upstream netip.AddrPort
	Dir, Certs       string
	ServerName       string
	StreamModule     string
}

func (r *rig) startProxy(ctx context.Context, sub *subject, role role, listen, upstream netip.AddrPort) error {
	r.pods++
	pod := fmt.Sprintf("%s-%d", role.name, r.pods)
	dir := filepath.Join(r.dir, pod)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	set := settings{
		TCP: role.tcp, HTTP2: role.http2, TLSIn: role.tlsIn, TLSOut: role.tlsOut, Listen: listen, Upstream: upstream,
		Dir: dir, Certs: r.certs, ServerName: serverName, StreamModule: streamModule,
	}
	set.Peer.Log, set.Peer.Auto = sub.peer.log, sub.peer.auto
	var cmd *exec.Cmd
	switch sub.peer.kind {
	case haproxy:
		file, err := fill("haproxy.cfg", set)
		if err != nil {
			return err
		}
		cmd = exec.CommandContext(ctx, "haproxy", "-db", "-f", file)
	case nginx:
		file, err := fill("nginx.conf", set)
		if err != nil {
			return err
		}
		cmd = exec.CommandContext(ctx, "nginx", "-p", dir, "-c", file)
	case heddle:
		r.control.tell(pod, sub.peer, role, listen, upstream)
		var err error
		if cmd, err = r.heddleProxy(ctx, "sidecar", pod, dir, pod, r.control.addr, filepath.Join(r.certs, rootFile)); err != nil {
			return err
		}
	case heddleGateway:
		var err error
		if cmd, err = r.gateway(ctx, sub, pod, set); err != nil {
			return err
		}
	}
	p, err := start(cmd, pod, dir, r.o.cores.proxy)
	if err != nil {
		return err
	}
	sub.procs = append(sub.procs, p)
	return nil
}

// fill writes a configuration to the proxy's directory.
func fill(name string, set settings) (file string, err error) {
	t, err := template.ParseFS(configs, "configs/"+name)
	if err != nil {
		return "", err
	}
	f, err := os.Create(filepath.Join(set.Dir, name))
	if err != nil {
		return "", err
	}
	return f.Name(), errors.Join(t.Execute(f, set), f.Close())
}

// gateway starts heddled with manifests, and returns the command of the proxy
// that follows it.
func (r *rig) gateway(ctx context.Context, sub *subject, pod string, set settings) (*exec.Cmd, error) {
	manifest, err := fill("gateway.yaml", set)
	if err != nil {
		return nil, err
	}
	state := filepath.Join(set.Dir, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		return nil, err
	}
	issuer, err := ca.NewIssuer(filepath.Join(state, "token-key.pem"))
	if err != nil {
		return nil, err
	}
	token, err := issuer.Issue("default", pod, 0)
	if err != nil {
		return nil, err
	}
	addr, err := r.freePort()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(r.o.bin, "heddled"), "--state-dir", state, "--address", addr.String(), "--plain-address", "", "--http-address", "",
		"--token-key", issuer.PublicKeyPath(), manifest)
	p, err := start(cmd, "heddled", set.Dir, r.o.cores.load)
	if err != nil {
		return nil, err
	}
	sub.other = append(sub.other, p)
	// The proxy reads the root when it starts.
	root := filepath.Join(state, rootFile)
	for deadline := time.Now().Add(startTime); ; {
		if _, err := os.Stat(root); err == nil {
			break
		}
		if err := p.failure(); err != nil {
			return nil, err
		}
		if err := pause(ctx, deadline); err != nil {
			return nil, errors.New("heddled does not start")
		}
	}
	return r.heddleProxy(ctx, "gateway", pod, set.Dir, token, addr.String(), root)
}

// heddleProxy is the command of a proxy that follows a control plane.
func (r *rig) heddleProxy(ctx context.Context, class, pod, dir, token, control, root string) (*exec.Cmd, error) {
	var ports [4]uint16
	for i := range ports {
		addr, err := r.freePort()
		if err != nil {
			return nil, err
		}
		ports[i] = addr.Port()
	}
	file := filepath.Join(dir, "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		return nil, err
	}
	pc, err := json.Marshal(map[string]any{"discoveryAddress": control, "proxyAdminPort": ports[0], "statusPort": ports[1]})
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(r.o.bin, "heddle-proxy"), class, "--root-cert", root, "--token", file, "--cache-dir", dir, "--max-connections", "9000")
	cmd.Env = append(os.Environ(),
		"POD_NAME="+pod, "POD_NAMESPACE=default", "SERVICE_ACCOUNT="+pod, "INSTANCE_IP=127.0.0.1", "PROXY_CONFIG="+string(pc),
		fmt.Sprintf("ENVOY_STATUS_PORT=%d", ports[2]), fmt.Sprintf("ENVOY_PROMETHEUS_PORT=%d", ports[3]),
		`ISTIO_METAJSON_LABELS={"app":"bench","version":"v1"}`, "ISTIO_META_WORKLOAD_NAME=bench",
	)
	return cmd, nil
}

// startTime is how long a subject may take until it answers.
const startTime = 15 * time.Second

// pause waits a little, and fails at the deadline.
func pause(ctx context.Context, deadline time.Time) error {
	if time.Now().After(deadline) {
		return os.ErrDeadlineExceeded
	}
	return rest(ctx, 20*time.Millisecond)
}

func rest(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// await waits until the subject does what will be measured.
func (r *rig) await(ctx context.Context, sub *subject, first role) error {
	for deadline := time.Now().Add(startTime); ; {
		err := r.try(sub, first)
		if err == nil {
			sub.since = time.Now()
			return nil
		}
		for _, p := range slices.Concat(sub.procs, sub.other) {
			if err := p.failure(); err != nil {
				return err
			}
		}
		if pause(ctx, deadline) != nil {
			return fmt.Errorf("it does not work: %w", err)
		}
	}
}

func (r *rig) try(sub *subject, first role) error {
	if sub.tcp {
		c, err := net.Dial("tcp", sub.addr.String())
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		if _, err := c.Write([]byte{'g'}); err != nil {
			return err
		}
		_, err = io.CopyN(io.Discard, bufio.NewReader(c), 1<<20)
		return err
	}
	if first.http2 {
		return askHTTP2(sub.addr.String())
	}
	secure, err := clientTLS(r.certs)
	if err != nil {
		return err
	}
	if !first.tlsIn {
		secure = nil
	}
	c, err := ask(sub.addr.String(), secure)
	if err != nil {
		return err
	}
	return c.Close()
}
