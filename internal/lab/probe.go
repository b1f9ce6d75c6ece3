package lab

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/heddle-mesh/heddle/internal/lab/network"
	"github.com/heddle-mesh/heddle/internal/redirect"
)

// proxyMark is the socket mark that redirection lets pass.
const proxyMark = 1337

// prober makes checks from inside the pod. A kubelet's come from outside, and
// pass the proxy only because the injector rewrites them; these have the mark
// and the source address of the proxy's own connections to the program, so they
// reach it whatever the mesh demands of clients.
type prober struct {
	net *network.Namespace
	ip  netip.Addr
	// exec runs a command in the container and returns its exit status.
	exec func(ctx context.Context, command []string) (int, error)
}

// check returns nil if the probe succeeds.
func (p *prober) check(ctx context.Context, c *corev1.Container, probe *corev1.Probe) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(max(probe.TimeoutSeconds, 1))*time.Second)
	defer cancel()
	switch {
	case probe.HTTPGet != nil:
		return p.httpGet(ctx, c, probe.HTTPGet)
	case probe.TCPSocket != nil:
		port, err := probePort(c, probe.TCPSocket.Port)
		if err != nil {
			return err
		}
		conn, err := p.dial(ctx, p.address(probe.TCPSocket.Host, port))
		if err != nil {
			return err
		}
		return conn.Close()
	case probe.GRPC != nil:
		return p.grpc(ctx, probe.GRPC)
	case probe.Exec != nil:
		status, err := p.exec(ctx, probe.Exec.Command)
		if err != nil {
			return err
		}
		if status != 0 {
			return fmt.Errorf("%s: exit status %d", strings.Join(probe.Exec.Command, " "), status)
		}
	}
	return nil
}

func (p *prober) address(host string, port uint16) string {
	if host == "" {
		host = p.ip.String()
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

// source returns the address from which to call addr: the proxy's own for
// addresses of the pod.
func (p *prober) source(addr string) net.Addr {
	to, err := netip.ParseAddrPort(addr)
	if err != nil || to.Addr() != p.ip {
		return nil
	}
	from, from6 := redirect.PassthroughSources()
	if to.Addr().Is6() {
		from = from6
	}
	return &net.TCPAddr{IP: from.AsSlice()}
}

func (p *prober) dial(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: p.source(addr), Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, proxyMark)
		}), err)
	}}
	var conn net.Conn
	err := p.net.Do(func() (err error) {
		conn, err = d.DialContext(ctx, "tcp", addr)
		return err
	})
	return conn, err
}

func (p *prober) httpGet(ctx context.Context, c *corev1.Container, get *corev1.HTTPGetAction) error {
	port, err := probePort(c, get.Port)
	if err != nil {
		return err
	}
	u := &url.URL{Scheme: "http", Host: p.address(get.Host, port)}
	if get.Scheme == corev1.URISchemeHTTPS {
		u.Scheme = "https"
	}
	if path, err := url.Parse(get.Path); err == nil {
		u.Path, u.RawQuery = path.Path, path.RawQuery
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "kube-probe/heddle")
	for _, h := range get.HTTPHeaders {
		if http.CanonicalHeaderKey(h.Name) == "Host" {
			req.Host = h.Value
			continue
		}
		req.Header.Add(h.Name, h.Value)
	}
	t := &http.Transport{
		DialContext:       func(ctx context.Context, _, addr string) (net.Conn, error) { return p.dial(ctx, addr) },
		DisableKeepAlives: true,
		// A probe asks whether the program answers, not who it is.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}
	defer t.CloseIdleConnections()
	resp, err := t.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	const maxBody = 10 << 10
	io.Copy(io.Discard, io.LimitReader(resp.Body, maxBody))
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return fmt.Errorf("GET %s: %s", u, resp.Status)
	}
	return nil
}

// grpc asks the standard health service.
func (p *prober) grpc(ctx context.Context, g *corev1.GRPCAction) error {
	conn, err := grpc.NewClient("passthrough:///"+p.address("", uint16(g.Port)),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(p.dial))
	if err != nil {
		return err
	}
	defer conn.Close()
	req := &healthpb.HealthCheckRequest{}
	if g.Service != nil {
		req.Service = *g.Service
	}
	resp, err := healthpb.NewHealthClient(conn).Check(ctx, req)
	if err != nil {
		return err
	}
	if resp.Status != healthpb.HealthCheckResponse_SERVING {
		return fmt.Errorf("gRPC health of port %d: %s", g.Port, resp.Status)
	}
	return nil
}

func probePort(c *corev1.Container, port intstr.IntOrString) (uint16, error) {
	if port.Type == intstr.Int {
		return uint16(port.IntVal), nil
	}
	for _, p := range c.Ports {
		if p.Name == port.StrVal {
			return uint16(p.ContainerPort), nil
		}
	}
	n, err := strconv.ParseUint(port.StrVal, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("the container has no port named %q", port.StrVal)
	}
	return uint16(n), nil
}

// watchProbe checks again and again until ctx ends. It reports the first
// verdict and each change of it, with the last error; the verdict changes after
// as many equal results in a row as the probe's thresholds say.
//
// Until the first success it does not wait whole periods: a program that starts
// in 30 ms is ready after 50, not after a second.
func watchProbe(ctx context.Context, probe *corev1.Probe, check func(context.Context) error, report func(ok bool, err error)) {
	period := time.Duration(probe.PeriodSeconds) * time.Second
	if period <= 0 {
		period = 10 * time.Second
	}
	successes, failures := max(probe.SuccessThreshold, 1), max(probe.FailureThreshold, 1)
	if probe.FailureThreshold == 0 {
		failures = 3
	}
	pause := time.Duration(probe.InitialDelaySeconds) * time.Second
	eager := 10 * time.Millisecond
	var good, bad int32
	var verdict, known bool
	begin := time.Now()
	for sleep(ctx, pause) {
		err := check(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			good, bad = good+1, 0
		} else {
			good, bad = 0, bad+1
		}
		switch {
		case good >= successes && (!known || !verdict):
			verdict, known = true, true
			report(true, nil)
		// The quick tries at the start count as the ones in a period would.
		case err != nil && known && verdict && bad >= failures,
			err != nil && !known && time.Since(begin) >= pause+time.Duration(failures-1)*period:
			verdict, known = false, true
			report(false, err)
		}
		pause = period
		if !known {
			eager = min(2*eager, 250*time.Millisecond, period)
			pause = eager
		}
	}
}

// sleep waits and returns true, or returns false when ctx ends.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
