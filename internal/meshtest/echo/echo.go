// Package echo is the program that mesh tests run in their pods: servers that
// say who answered and what they were asked, and clients that print what they
// got. It knows nothing of the mesh. The same code runs as a real process and
// over a simulated network.
//
// Its answers have the fields that the Gateway API's conformance suite reads, and
// Forward prints in the form that the suite's mesh tests read.
package echo

import (
	"bufio"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Reply is what an HTTP echo server answers, as JSON.
type Reply struct {
	Pod    string            `json:"pod"`
	Method string            `json:"method"`
	Host   string            `json:"host"`
	Path   string            `json:"path"` // with query
	Proto  string            `json:"proto"`
	Header map[string]string `json:"header"` // lower-case names, values joined by ","
	Bytes  int64             `json:"bytes"`  // of the request body

	// As the conformance suite has it.
	Headers   http.Header `json:"headers"`
	Port      string      `json:"httpPort"` // of the listener
	Namespace string      `json:"namespace"`
	Ingress   string      `json:"ingress"`
	Service   string      `json:"service"`
	TLS       *TLS        `json:"tls,omitempty"`

	Version string `json:"version,omitempty"`
	IP      string `json:"ip"` // of the caller
}

// TLS is what an echo server says of the connection that a request came by.
type TLS struct {
	Version            string   `json:"version"`
	PeerCertificates   []string `json:"peerCertificates,omitempty"` // PEM
	ServerName         string   `json:"serverName"`
	NegotiatedProtocol string   `json:"negotiatedProtocol,omitempty"`
	CipherSuite        string   `json:"cipherSuite"`
}

// Result is what a client saw of one request or connection.
type Result struct {
	Status int               `json:"status,omitempty"`
	Header map[string]string `json:"header,omitempty"`
	Reply  *Reply            `json:"reply,omitempty"` // if an echo server answered
	Body   string            `json:"body,omitempty"`  // otherwise, or for TCP
	Bytes  int64             `json:"bytes"`
	// Code is the status of a gRPC call, by name, and Messages how many came back of a
	// call or a WebSocket.
	Code     string `json:"code,omitempty"`
	Messages int    `json:"messages,omitempty"`
	// Certificate is the common name in what the server showed.
	Certificate string `json:"certificate,omitempty"`
	Error       string `json:"error,omitempty"` // "refused", "reset", "eof", "timeout", or the text
}

// Server answers on some ports until its context ends.
type Server struct {
	Pod string
	// Ports are "http:8080", "https:8443", "h2:8081" (cleartext HTTP/2 and nothing
	// else), "grpc:9090", "tcp:9000", "tls:443", "greet:5432": the last speaks first.
	// http takes HTTP/2, the conformance suite's gRPC and WebSocket, too.
	Ports  []string
	Listen func(ctx context.Context, port uint16) (net.Listener, error)
	TLS    *tls.Config // for https and tls; nil signs a certificate itself

	// More that it says of itself.
	Namespace, Ingress, Service, Version string
}

// Run serves until ctx ends or a listener fails.
func (s Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make(chan error, len(s.Ports))
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, p := range s.Ports {
		kind, number, ok := strings.Cut(p, ":")
		port, err := strconv.ParseUint(number, 10, 16)
		if !ok || err != nil {
			return fmt.Errorf("echo: port %q is not of the form kind:number", p)
		}
		serve, ok := map[string]func(context.Context, net.Listener) error{
			"http": s.serveHTTP, "https": s.serveHTTP, "h2": s.serveH2C, "grpc": s.serveGRPC, "tcp": s.serveTCP, "tls": s.serveTCP, "greet": s.serveTCP,
		}[kind]
		if !ok {
			return fmt.Errorf("echo: port %q: %s is none of http, https, h2, grpc, tcp, tls, greet", p, kind)
		}
		l, err := s.Listen(ctx, uint16(port))
		if err != nil {
			return err
		}
		switch kind {
		case "greet":
			l = greeting{l, s.Pod}
		case "tls", "https":
			config := s.TLS.Clone()
			if config == nil {
				if config, err = selfSigned(); err != nil {
					return err
				}
			}
			if kind == "https" {
				config.NextProtos = []string{"h2", "http/1.1"}
			}
			l = tls.NewListener(l, config)
		}
		stop := context.AfterFunc(ctx, func() { l.Close() })
		defer stop()
		wg.Go(func() { errs <- serve(ctx, l) })
	}
	select {
	case <-ctx.Done():
		cancel()
		return nil
	case err := <-errs:
		cancel()
		return err
	}
}

// serveTCP sends back each line with the pod's name before it; at end of input
// it says how many bytes came and closes, so half-close is seen to work.
func (s Server) serveTCP(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		wg.Go(func() {
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			var n int64
			for r := bufio.NewReaderSize(c, 64<<10); ; {
				line, err := r.ReadString('\n')
				n += int64(len(line))
				if line != "" && len(line) < 1<<10 {
					fmt.Fprintf(c, "%s: %s\n", s.Pod, strings.TrimSuffix(line, "\n"))
				}
				if err == io.EOF {
					fmt.Fprintf(c, "%s: %d bytes\n", s.Pod, n)
				}
				if err != nil {
					return
				}
			}
		})
	}
}

// selfSigned is what a TLS port shows: a certificate that proves nothing.
func selfSigned() (*tls.Config, error) {
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(nil, template, template, public, key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, nil
}

// greeting is a listener whose connections begin with a line from the server.
type greeting struct {
	net.Listener
	pod string
}

func (g greeting) Accept() (net.Conn, error) {
	c, err := g.Listener.Accept()
	if err == nil {
		fmt.Fprintf(c, "%s: welcome\n", g.pod)
	}
	return c, err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func flat(h http.Header) map[string]string {
	m := make(map[string]string, len(h))
	for k, v := range h {
		m[strings.ToLower(k)] = strings.Join(v, ",")
	}
	return m
}

// Client asks echo servers, over any network.
type Client struct {
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Get describes HTTP requests to send.
type Get struct {
	URL       string
	Method    string
	Header    []string // "name: value"
	Size      int64    // bytes of request body
	Count     int
	Parallel  int
	RPS       int           // 0: as fast as it goes
	For       time.Duration // with RPS: how long, instead of Count
	NoReuse   bool
	Timeout   time.Duration
	KeepBytes bool // keep bodies that are no Reply
	// Protocol is "" for HTTP/1.1, "h2" for HTTP/2, "grpc" for calls (the path is the
	// form: unary, upload, download, chat), "ws" for WebSockets.
	Protocol string
	// SNI is the server name that is asked for with TLS, if not the URL's, and Cert a
	// certificate with its key, in PEM form, that the client shows.
	SNI, Cert string
}

// tls takes whatever certificate a server has.
func (g Get) tls() (*tls.Config, error) {
	c := &tls.Config{ServerName: g.SNI, InsecureSkipVerify: true}
	if g.Cert != "" {
		pair, err := tls.X509KeyPair([]byte(g.Cert), []byte(g.Cert))
		if err != nil {
			return nil, err
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// HTTP sends the requests and calls each for every Result, one at a time.
func (c Client) HTTP(ctx context.Context, g Get, each func(Result)) {
	if g.Timeout == 0 {
		g.Timeout = 10 * time.Second
	}
	tr := &http.Transport{Protocols: new(http.Protocols), DialContext: c.Dial, DisableKeepAlives: g.NoReuse, MaxIdleConnsPerHost: 256, DisableCompression: true}
	tr.Protocols.SetHTTP1(g.Protocol != "h2")
	tr.Protocols.SetHTTP2(g.Protocol == "h2")
	tr.Protocols.SetUnencryptedHTTP2(g.Protocol == "h2")
	var err error
	if tr.TLSClientConfig, err = g.tls(); err != nil {
		each(Result{Error: err.Error()})
		return
	}
	defer tr.CloseIdleConnections()
	hc := &http.Client{Transport: tr, Timeout: g.Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	var mu sync.Mutex
	do := func() Result { return c.one(ctx, hc, g) }
	switch g.Protocol {
	case "ws":
		do = func() Result { return c.oneSocket(ctx, g) }
	case "grpc":
		u, err := url.Parse(g.URL)
		if err != nil {
			each(Result{Error: err.Error()})
			return
		}
		conn, err := c.dialGRPC(u)
		if err != nil {
			each(Result{Error: err.Error()})
			return
		}
		defer conn.Close()
		do = func() Result { return oneCall(ctx, conn, g) }
	}
	one := func() {
		r := do()
		mu.Lock()
		defer mu.Unlock()
		each(r)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	if g.RPS > 0 {
		tick := time.NewTicker(time.Second / time.Duration(g.RPS))
		defer tick.Stop()
		end := make(<-chan time.Time)
		if g.For > 0 {
			end = time.After(g.For)
		}
		for n := 0; g.For > 0 || g.Count == 0 || n < g.Count; n++ {
			select {
			case <-tick.C:
				wg.Go(one)
			case <-end:
				return
			case <-ctx.Done():
				return
			}
		}
		return
	}
	work := make(chan struct{})
	for range max(1, g.Parallel) {
		wg.Go(func() {
			for range work {
				one()
			}
		})
	}
	for range max(1, g.Count) {
		work <- struct{}{}
	}
	close(work)
}

func (c Client) one(ctx context.Context, hc *http.Client, g Get) Result {
	var body io.Reader
	if g.Size > 0 {
		body = io.LimitReader(zeros{}, g.Size)
	}
	// A request that was begun ends in its own time, so that a caller that stops
	// sending does not count as a failure.
	req, err := http.NewRequestWithContext(context.WithoutCancel(ctx), g.Method, g.URL, body)
	if err != nil {
		return Result{Error: err.Error()}
	}
	req.ContentLength = g.Size
	for _, h := range g.Header {
		name, value, _ := strings.Cut(h, ":")
		value = strings.TrimSpace(value)
		if strings.EqualFold(name, "host") {
			req.Host = value
			continue
		}
		req.Header.Add(name, value)
	}
	resp, err := hc.Do(req)
	if err != nil {
		return Result{Error: reason(err)}
	}
	defer resp.Body.Close()
	r := Result{Status: resp.StatusCode, Header: flat(resp.Header)}
	if resp.TLS != nil && len(resp.TLS.PeerCertificates) > 0 {
		r.Certificate = resp.TLS.PeerCertificates[0].Subject.CommonName
	}
	if resp.Header.Get("x-echo-pod") != "" && strings.HasPrefix(resp.Header.Get("content-type"), "application/json") {
		r.Reply = new(Reply)
		if err := json.NewDecoder(resp.Body).Decode(r.Reply); err != nil {
			r.Error = reason(err)
		}
		return r
	}
	if g.KeepBytes {
		b, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
		r.Body, r.Bytes = string(b), int64(len(b))
		if err != nil {
			r.Error = reason(err)
		}
		return r
	}
	if r.Bytes, err = io.Copy(io.Discard, resp.Body); err != nil {
		r.Error = reason(err)
	}
	return r
}

// Flow is a connection that a client opens.
type Flow struct {
	Addr    string
	Lines   []string // to send
	Size    int64    // bytes to send after them
	Wait    bool     // says nothing before the server has
	SNI     string   // the server name to ask for by TLS; "" is plain text
	Timeout time.Duration
}

// TCP dials, sends each line, half-closes and reads to the end. It takes whatever
// certificate a server of TLS has.
func (c Client) TCP(ctx context.Context, f Flow) Result {
	timeout := cmp.Or(f.Timeout, 10*time.Second)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := c.Dial(ctx, "tcp", f.Addr)
	if err != nil {
		return Result{Error: reason(err)}
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(timeout))
	if f.SNI != "" {
		// Reader and writer would wait for each other's handshake with a lock, and a
		// network in virtual time would wait for them.
		secure := tls.Client(conn, &tls.Config{ServerName: f.SNI, InsecureSkipVerify: true})
		if err := secure.HandshakeContext(ctx); err != nil {
			return Result{Error: reason(err)}
		}
		conn = secure
	}
	greeting := ""
	if f.Wait {
		// A byte at a time: what follows the line is read below.
		for one := make([]byte, 1); !strings.HasSuffix(greeting, "\n"); greeting += string(one) {
			if _, err := io.ReadFull(conn, one); err != nil {
				return Result{Error: reason(err)}
			}
		}
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for _, l := range f.Lines {
			fmt.Fprintln(conn, l)
		}
		if f.Size > 0 {
			io.CopyN(conn, zeros{}, f.Size)
		}
		if h, ok := conn.(interface{ CloseWrite() error }); ok {
			h.CloseWrite()
		}
	}()
	b, err := io.ReadAll(conn)
	if err != nil {
		conn.Close()
	}
	<-sent
	b = append([]byte(greeting), b...)
	r := Result{Body: string(b), Bytes: int64(len(b))}
	switch {
	case err != nil:
		r.Error = reason(err)
	case len(b) == 0:
		r.Error = "eof"
	}
	return r
}

// reason names what went wrong in a word where there is one.
func reason(err error) string {
	var t interface{ Timeout() bool }
	var dns *net.DNSError
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.As(err, &dns):
		return "no such host"
	case errors.As(err, &t) && t.Timeout(), errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "eof"
	}
	return err.Error()
}

// Principal returns the client's SPIFFE id as the mesh told the server in
// x-forwarded-client-cert, "" if it did not.
func (r *Reply) Principal() string {
	for _, part := range strings.FieldsFunc(r.Header["x-forwarded-client-cert"], func(c rune) bool { return c == ';' || c == ',' }) {
		if uri, ok := strings.CutPrefix(part, "URI="); ok {
			return uri
		}
	}
	return ""
}

// Names returns the header names in order, for messages.
func (r *Reply) Names() []string {
	names := make([]string, 0, len(r.Header))
	for n := range r.Header {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}
