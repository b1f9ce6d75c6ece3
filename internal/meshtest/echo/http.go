package echo

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/websocket"
)

// serveHTTP answers every request with a Reply: HTTP/1, HTTP/2 with and without
// TLS, gRPC and, on /ws, WebSocket. Headers of the request change
// the answer: x-echo-status, x-echo-delay (a duration), x-echo-size (bytes of
// body instead of the Reply), x-echo-close (drops the connection),
// x-echo-set-header (headers of the answer). So do the conformance suite's paths
// /health, /status/CODE and /retry/, and its query ?delay=.
func (s Server) serveHTTP(ctx context.Context, l net.Listener) error {
	return s.serve(ctx, l, s.handler(l))
}

// serveH2C refuses what is not HTTP/2.
func (s Server) serveH2C(ctx context.Context, l net.Listener) error {
	h := s.handler(l)
	return s.serve(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			http.Error(w, "this port is for HTTP/2 without TLS", http.StatusBadRequest)
			return
		}
		h.ServeHTTP(w, r)
	}))
}

func (s Server) serve(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{BaseContext: func(net.Listener) context.Context { return ctx }, Handler: h, Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetHTTP2(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) && ctx.Err() == nil {
		return err
	}
	return nil
}

func (s Server) handler(l net.Listener) http.Handler {
	_, port, _ := net.SplitHostPort(l.Addr().String()) // "" where the network has other addresses
	retries := &retries{failed: make(map[string]int)}
	socket := websocket.Server{Handler: func(c *websocket.Conn) { io.Copy(c, c) }} // any origin
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.Header.Get("content-type"), "application/grpc"):
			s.serveConformance(w, r, port)
		case r.URL.Path == "/health":
			io.WriteString(w, "OK")
		case r.URL.Path == "/ws" && strings.EqualFold(r.Header.Get("upgrade"), "websocket"):
			socket.ServeHTTP(w, r)
		case strings.EqualFold(r.Header.Get("upgrade"), "websocket"):
			s.webSocket(w, r)
		case strings.HasPrefix(r.URL.Path, "/status/"):
			code, err := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/status/"))
			if err != nil || code < 200 || code > 999 {
				code = http.StatusBadRequest
			}
			w.WriteHeader(code)
		case strings.HasPrefix(r.URL.Path, "/retry/") && retries.fail(w, r):
		default:
			s.echo(w, r, port)
		}
	})
}

func (s Server) echo(w http.ResponseWriter, r *http.Request, port string) {
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		return
	}
	for _, d := range []string{r.Header.Get("x-echo-delay"), r.URL.Query().Get("delay")} {
		if !pause(r.Context(), d) {
			return
		}
	}
	if r.Header.Get("x-echo-close") != "" {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("x-echo-pod", s.Pod)
	for _, line := range r.Header.Values("x-echo-set-header") {
		for pair := range strings.SplitSeq(line, ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(pair), ":")
			// In the case it was asked for; the same name again joins its values.
			if old := w.Header()[name]; len(old) > 0 {
				value = old[0] + "," + strings.TrimSpace(value)
			}
			w.Header()[name] = []string{value}
		}
	}
	status := http.StatusOK
	if v, err := strconv.Atoi(r.Header.Get("x-echo-status")); err == nil {
		status = v
	}
	if size, err := strconv.ParseInt(r.Header.Get("x-echo-size"), 10, 64); err == nil {
		w.WriteHeader(status)
		io.CopyN(w, zeros{}, size)
		return
	}
	w.Header().Set("content-type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(s.reply(r, n, port))
}

func (s Server) reply(r *http.Request, bytes int64, port string) Reply {
	ip, _, _ := net.SplitHostPort(r.RemoteAddr) // "" where the network has other addresses
	return Reply{
		Pod: s.Pod, Method: r.Method, Host: r.Host, Path: r.URL.RequestURI(), Proto: r.Proto, Header: flat(r.Header), Bytes: bytes,
		Headers: r.Header, Port: port, Namespace: s.Namespace, Ingress: s.Ingress, Service: s.Service, Version: s.Version, IP: ip, TLS: tlsOf(r.TLS),
	}
}

func tlsOf(c *tls.ConnectionState) *TLS {
	if c == nil {
		return nil
	}
	t := &TLS{
		Version:    strings.Replace(tls.VersionName(c.Version), "TLS ", "TLSv", 1),
		ServerName: c.ServerName, NegotiatedProtocol: c.NegotiatedProtocol, CipherSuite: tls.CipherSuiteName(c.CipherSuite),
	}
	for _, cert := range c.PeerCertificates {
		t.PeerCertificates = append(t.PeerCertificates, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})))
	}
	return t
}

// pause waits as long as text says, if it says anything; false if the caller went away.
func pause(ctx context.Context, text string) bool {
	d, err := time.ParseDuration(text)
	if err != nil {
		return true
	}
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// retries fails the first requests of a kind, so that a caller's retries show.
type retries struct {
	mu     sync.Mutex
	failed map[string]int // by the query's uuid
}

// fail reports whether the request was answered with a failure: ?succeedAfter=N of
// one ?uuid= are, with status ?responseCode= or by a reset of the connection, after
// ?delayRetry=.
func (f *retries) fail(w http.ResponseWriter, r *http.Request) bool {
	q := r.URL.Query()
	want, err := strconv.Atoi(q.Get("succeedAfter"))
	if err != nil || q.Get("uuid") == "" {
		http.Error(w, "/retry/ needs ?uuid= and ?succeedAfter=", http.StatusBadRequest)
		return true
	}
	f.mu.Lock()
	done := f.failed[q.Get("uuid")] >= want
	if !done {
		f.failed[q.Get("uuid")]++
	}
	f.mu.Unlock()
	if done {
		return false
	}
	if !pause(r.Context(), q.Get("delayRetry")) {
		return true
	}
	if code, err := strconv.Atoi(q.Get("responseCode")); err == nil {
		w.WriteHeader(code)
		return true
	}
	h, ok := w.(http.Hijacker)
	if !ok {
		panic(http.ErrAbortHandler) // HTTP/2: the stream is reset
	}
	c, _, err := h.Hijack()
	if err != nil {
		panic(fmt.Errorf("hijack: %w", err))
	}
	if t, ok := c.(*net.TCPConn); ok {
		t.SetLinger(0) // closes with a reset; should it fail, with an end of file
	}
	c.Close()
	return true
}
