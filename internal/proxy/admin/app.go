package admin

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// App is what the proxy asks its application in the place of others: the
// kubelet's probes and hooks, which injection sends here, and its metrics.
type App struct {
	// Address is the pod's own; probes go there, as the kubelet's would.
	Address netip.Addr
	// Dial opens a connection that is not captured; nil dials as any program does.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	probers map[string]prober // by path
	scrape  *scrape
}

// prober is a probe as injection wrote it down: exactly one of the first three
// is set.
type prober struct {
	HTTPGet *struct {
		Path    string `json:"path"`
		Port    port   `json:"port"`
		Scheme  string `json:"scheme"`
		Headers []struct {
			Name  string `json:"name"`
			Value string `json:"value"`
		} `json:"httpHeaders"`
	} `json:"httpGet"`
	TCPSocket *struct {
		Port port `json:"port"`
	} `json:"tcpSocket"`
	GRPC *struct {
		Port    port   `json:"port"`
		Service string `json:"service"`
	} `json:"grpc"`
	TimeoutSeconds int `json:"timeoutSeconds"`
}

// port is a number, which older injectors write as text.
type port uint16

func (p *port) UnmarshalJSON(b []byte) error {
	n, err := strconv.ParseUint(strings.Trim(string(b), `"`), 10, 16)
	if err != nil || n == 0 {
		return fmt.Errorf("%s is not a port", b)
	}
	*p = port(n)
	return nil
}

// scrape is where the application's metrics are, as the pod's annotations say.
type scrape struct {
	Scrape string `json:"scrape"`
	Path   string `json:"path"`
	Port   string `json:"port"`
}

// ReadApp reads the variables ISTIO_KUBE_APP_PROBERS and
// ISTIO_PROMETHEUS_ANNOTATIONS; both may be empty.
func ReadApp(probers, metrics string) (*App, error) {
	a := &App{}
	if probers != "" {
		if err := json.Unmarshal([]byte(probers), &a.probers); err != nil {
			return nil, fmt.Errorf("ISTIO_KUBE_APP_PROBERS: %w", err)
		}
		for path, p := range a.probers {
			n := 0
			for _, set := range []bool{p.HTTPGet != nil, p.TCPSocket != nil, p.GRPC != nil} {
				if set {
					n++
				}
			}
			if n != 1 {
				return nil, fmt.Errorf("ISTIO_KUBE_APP_PROBERS: %s: a probe is one of httpGet, tcpSocket and grpc", path)
			}
		}
	}
	if metrics != "" {
		var s scrape
		if err := json.Unmarshal([]byte(metrics), &s); err != nil {
			return nil, fmt.Errorf("ISTIO_PROMETHEUS_ANNOTATIONS: %w", err)
		}
		if s.Scrape == "true" {
			if _, err := strconv.ParseUint(cmp.Or(s.Port, "80"), 10, 16); err != nil {
				return nil, fmt.Errorf("ISTIO_PROMETHEUS_ANNOTATIONS: %q is not a port", s.Port)
			}
			a.scrape = &s
		}
	}
	return a, nil
}

func (a *App) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if a.Dial != nil {
		return a.Dial(ctx, network, address)
	}
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}

// defaultProbe is how long a probe may take that says nothing. Source:
// Kubernetes, Probe.timeoutSeconds.
const defaultProbe = time.Second

// hookTime is how long a hook may take: hooks have no timeout of their own, the
// pod's period of grace ends them.
const hookTime = 5 * time.Minute

// ServeHTTP asks the application what the kubelet asked for, and answers as it
// does.
func (a *App) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p, ok := a.probers[r.URL.Path]
	if !ok {
		http.Error(w, "there is no such probe", http.StatusNotFound)
		return
	}
	timeout := defaultProbe
	if p.TimeoutSeconds > 0 {
		timeout = time.Duration(p.TimeoutSeconds) * time.Second
	} else if strings.HasPrefix(r.URL.Path, "/app-lifecycle/") {
		timeout = hookTime
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	var err error
	switch {
	case p.HTTPGet != nil:
		err = a.get(ctx, &p, w, r)
	case p.TCPSocket != nil:
		var c net.Conn
		if c, err = a.dial(ctx, "tcp", a.at(p.TCPSocket.Port)); err == nil {
			c.Close()
		}
	case p.GRPC != nil:
		err = a.serving(ctx, a.at(p.GRPC.Port), p.GRPC.Service)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

func (a *App) at(p port) string {
	return netip.AddrPortFrom(a.Address, uint16(p)).String()
}

// maxProbeBody is how much of an answer is passed on; a kubelet reads no more.
const maxProbeBody = 10 << 10

// get asks by HTTP, and passes the answer on.
func (a *App) get(ctx context.Context, p *prober, w http.ResponseWriter, r *http.Request) error {
	g := p.HTTPGet
	scheme := strings.ToLower(cmp.Or(g.Scheme, "http"))
	path := g.Path
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+a.at(g.Port)+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", r.UserAgent())
	for _, h := range g.Headers {
		if strings.EqualFold(h.Name, "Host") {
			req.Host = h.Value
			continue
		}
		req.Header.Add(h.Name, h.Value)
	}
	res, err := a.client().Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	w.WriteHeader(res.StatusCode)
	_, _ = io.Copy(w, io.LimitReader(res.Body, maxProbeBody)) // the status is what counts
	return nil
}

// client makes one for one request: a probe that finds an old connection open
// proves nothing. As a kubelet's, it trusts any certificate, and follows
// redirections within the host.
func (a *App) client() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext: a.dial, DisableKeepAlives: true, DisableCompression: true,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		},
		CheckRedirect: func(to *http.Request, via []*http.Request) error {
			if to.URL.Hostname() != via[0].URL.Hostname() {
				return http.ErrUseLastResponse
			}
			if len(via) >= 10 {
				return errors.New("redirected 10 times")
			}
			return nil
		},
	}
}

// serving asks by gRPC's health protocol.
func (a *App) serving(ctx context.Context, address, service string) error {
	c, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return a.dial(ctx, "tcp", address) }))
	if err != nil {
		return err
	}
	defer c.Close()
	res, err := healthv1.NewHealthClient(c).Check(ctx, &healthv1.HealthCheckRequest{Service: service})
	if err != nil {
		return err
	}
	if res.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		return fmt.Errorf("the service says %s", res.GetStatus())
	}
	return nil
}

// Bounds of reading the application's metrics.
const (
	scrapeTime = 10 * time.Second // Prometheus' default
	maxScrape  = 64 << 20
)

// metrics copies the application's metrics to w. They come from the loopback
// address, where the application need not know of the mesh.
func (a *App) metrics(r *http.Request, w io.Writer) error {
	timeout := scrapeTime
	if s, err := strconv.ParseFloat(r.Header.Get("X-Prometheus-Scrape-Timeout-Seconds"), 64); err == nil && s > 0 {
		timeout = min(timeout, time.Duration(s*float64(time.Second)))
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	url := "http://localhost:" + cmp.Or(a.scrape.Port, "80") + cmp.Or(a.scrape.Path, "/metrics")
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	// The one form that can be joined with ours.
	req.Header.Set("Accept", "text/plain;version=0.0.4")
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, res.Status)
	}
	if _, err := io.WriteString(w, "\n"); err != nil {
		return err
	}
	_, err = io.Copy(w, io.LimitReader(res.Body, maxScrape))
	return err
}
