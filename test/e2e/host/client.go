package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"
)

// poll is the pause between two questions while a cluster starts.
const poll = 50 * time.Millisecond

// client asks the cluster's API server the few questions that up has. A kubectl
// for each of them would cost as much as a component's start.
type client struct {
	s    *spec
	http *http.Client
}

func newClient(s *spec) (*client, error) {
	ca, err := os.ReadFile(s.pki("ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	cert, err := tls.LoadX509KeyPair(s.pki("apiserver-kubelet-client.crt"), s.pki("apiserver-kubelet-client.key"))
	if err != nil {
		return nil, err
	}
	return &client{s: s, http: &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}},
	}}}, nil
}

func (c *client) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.s.server()+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s", path, resp.Status)
	}
	return b, err
}

// until asks again and again, until there is no error or ctx ends.
func until(ctx context.Context, what string, ask func() error) error {
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, errors.Join(context.Cause(ctx), err))
		case <-time.After(poll):
		}
	}
}

func (c *client) waitReady(ctx context.Context) error {
	return until(ctx, "the API server", func() error {
		_, err := c.get(ctx, "/readyz")
		return err
	})
}

// condition returns the status of a condition of the object at path.
func (c *client) condition(ctx context.Context, path, kind string) (string, error) {
	b, err := c.get(ctx, path)
	if err != nil {
		return "", err
	}
	var o struct {
		Status struct {
			Conditions []struct{ Type, Status, Message string }
		}
	}
	if err := json.Unmarshal(b, &o); err != nil {
		return "", err
	}
	for _, cond := range o.Status.Conditions {
		if cond.Type == kind {
			return cond.Status, nil
		}
	}
	return "", nil
}

func (c *client) waitCondition(ctx context.Context, what, path, kind string) error {
	return until(ctx, what, func() error {
		status, err := c.condition(ctx, path, kind)
		if err == nil && status != "True" {
			err = fmt.Errorf("%s: condition %s is %q", path, kind, status)
		}
		return err
	})
}

// waitExists waits for an object.
func (c *client) waitExists(ctx context.Context, path string) error {
	return until(ctx, path, func() error {
		_, err := c.get(ctx, path)
		return err
	})
}

// waitDNS waits until the cluster's DNS answers on its service address, which
// shows that kube-proxy works, too.
func (c *client) waitDNS(ctx context.Context) error {
	servers := []string{net.JoinHostPort(c.s.dns().String(), "53")}
	if c.s.Dual {
		servers = append(servers, net.JoinHostPort(c.s.dns6().String(), "53"))
	}
	for _, server := range servers {
		r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, server)
		}}
		err := until(ctx, "the cluster's DNS at "+server, func() error {
			ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
			defer cancel()
			_, err := r.LookupNetIP(ctx, "ip", "kubernetes.default.svc.cluster.local.")
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// apply gives manifests to kubectl.
func (c *client) apply(ctx context.Context, manifests string) error {
	cmd := exec.CommandContext(ctx, c.s.Kube, "kubectl", "apply", "--kubeconfig="+c.s.kubeconfig(), "-f", "-")
	cmd.Stdin = strings.NewReader(manifests)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl apply: %w\n%s", err, out)
	}
	return nil
}
