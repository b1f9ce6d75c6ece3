// Package forward asks servers that listen inside of pods, on a port of their
// loopback even, through the Kubernetes API server: what kubectl port-forward does,
// for one question.
package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
)

// timeout bounds a question with its answer.
const timeout = 30 * time.Second

// maxAnswer bounds what an answer may take in memory.
const maxAnswer = 256 << 20

// Ask sends a request without a body to a port of a pod, and returns the body of the
// answer. An answer that is no success is an error with its text.
func Ask(ctx context.Context, cfg *rest.Config, namespace, pod string, port int, method, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	wrapper, upgrader, err := spdy.RoundTripperFor(cfg)
	if err != nil {
		return nil, err
	}
	base, _, err := rest.DefaultServerUrlFor(cfg)
	if err != nil {
		return nil, err
	}
	target := base.JoinPath("api/v1/namespaces", namespace, "pods", pod, "portforward")
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: wrapper}, http.MethodPost, target)
	stop, ready := make(chan struct{}), make(chan struct{})
	var said strings.Builder
	pf, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)}, stop, ready, io.Discard, &said)
	if err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	go func() { done <- pf.ForwardPorts() }()
	ended := false
	defer func() {
		close(stop)
		if !ended {
			<-done
		}
	}()
	select {
	case <-ready:
	case err := <-done:
		ended = true
		return nil, fmt.Errorf("pod %s.%s: %w", pod, namespace, errors.Join(err, ctx.Err()))
	case <-ctx.Done():
		return nil, fmt.Errorf("pod %s.%s: %w", pod, namespace, ctx.Err())
	}
	ports, err := pf.GetPorts()
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("http://127.0.0.1:%d/%s", ports[0].Local, strings.TrimPrefix(path, "/")), nil)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, fmt.Errorf("pod %s.%s, port %d: %w", pod, namespace, port, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, fmt.Errorf("pod %s.%s: %s: %s", pod, namespace, resp.Status, strings.TrimSpace(string(b)))
	}
	return b, nil
}
