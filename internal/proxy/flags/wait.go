package flags

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/heddle-mesh/heddle/internal/proxy"
	"github.com/heddle-mesh/heddle/internal/proxy/admin"
	"github.com/heddle-mesh/heddle/internal/redirect"
)

// Wait returns when the proxy of this pod is ready. It is the hook by which a
// kubelet starts the other containers only then.
func Wait(ctx context.Context, args []string, stderr io.Writer) error {
	fs := flag.NewFlagSet("wait", flag.ContinueOnError)
	fs.SetOutput(stderr)
	timeout := fs.Int("timeoutSeconds", 60, "how long to wait, in seconds")
	period := fs.Int("periodMillis", 500, "how often to ask, in milliseconds")
	each := fs.Int("requestTimeoutMillis", 500, "how long one answer may take, in milliseconds")
	url := fs.String("url", "http://localhost:15021/healthz/ready", "what to ask")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *timeout <= 0 || *period <= 0 || *each <= 0 {
		return fmt.Errorf("wait: times must be positive")
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(*timeout)*time.Second)
	defer cancel()
	client := &http.Client{Timeout: time.Duration(*each) * time.Millisecond, Transport: &http.Transport{DisableKeepAlives: true}}
	pause := time.NewTicker(time.Duration(*period) * time.Millisecond)
	defer pause.Stop()
	for {
		err := ask(ctx, client, *url)
		if err == nil {
			return nil
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
			return fmt.Errorf("the proxy was not ready after %d s: %w", *timeout, err)
		}
	}
}

func ask(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 4096))
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, text)
	}
	return err
}

// application reads what the proxy is to ask its application. Connections to it
// come from the address that redirection lets pass, as those of requests do.
func application(env environment, w proxy.Workload) (*admin.App, error) {
	app, err := admin.ReadApp(env["ISTIO_KUBE_APP_PROBERS"], env["ISTIO_PROMETHEUS_ANNOTATIONS"])
	if err != nil || len(w.IPs) == 0 {
		return nil, err
	}
	app.Address = w.IPs[0]
	from, from6 := redirect.PassthroughSources()
	if app.Address.Is6() {
		from = from6
	}
	captured := env["ISTIO_META_INTERCEPTION_MODE"] != "NONE"
	app.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		var d net.Dialer
		if captured {
			d.LocalAddr = &net.TCPAddr{IP: from.AsSlice()}
		}
		return d.DialContext(ctx, network, address)
	}
	return app, nil
}
