package echo

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Forward describes requests whose answers are printed in the form that Istio's
// test client prints, and that the conformance suite's mesh tests read: a line
// for each fact, with the number of the request before it.
type Forward struct {
	URL     string // of http, https or grpc
	Method  string
	Header  []string // "name: value"
	Count   int
	Timeout time.Duration // of one request
	Message string        // of gRPC
	HTTP2   bool          // without TLS, too
	Dial    func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Run sends the requests, one after another, and prints what came. The first that
// gets no answer is an error.
func (f Forward) Run(ctx context.Context, out io.Writer) error {
	u, err := url.Parse(f.URL)
	if err != nil {
		return err
	}
	var send func(ctx context.Context, c *http.Client, u *url.URL) (*answer, error)
	protocols := new(http.Protocols)
	switch u.Scheme {
	case "http", "https":
		send = f.http
		protocols.SetHTTP1(!f.HTTP2)
		protocols.SetHTTP2(true)
		protocols.SetUnencryptedHTTP2(f.HTTP2)
	case "grpc":
		send = f.grpc
		protocols.SetUnencryptedHTTP2(true)
	default:
		return fmt.Errorf("%s: the scheme is none of http, https and grpc", f.URL)
	}
	tr := &http.Transport{DialContext: f.Dial, Protocols: protocols, DisableCompression: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} // servers of tests sign their own certificates
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr, Timeout: f.Timeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for i := range max(1, f.Count) {
		a, err := send(ctx, c, u)
		if err != nil {
			return fmt.Errorf("request %d to %s: %s", i, f.URL, reason(err))
		}
		a.print(out, i, f.URL)
	}
	return nil
}

// answer is what came back: a Reply if an echo server answered.
type answer struct {
	status int
	header http.Header
	reply  *Reply
	body   string
}

func (f Forward) http(ctx context.Context, c *http.Client, u *url.URL) (*answer, error) {
	req, err := http.NewRequestWithContext(ctx, f.Method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	f.headers(req)
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxMessage))
	if err != nil {
		return nil, err
	}
	a := &answer{status: resp.StatusCode, header: resp.Header, body: string(b)}
	if resp.Header.Get("x-echo-pod") != "" {
		a.reply = new(Reply)
		if err := json.Unmarshal(b, a.reply); err != nil {
			a.reply = nil // an echo of another kind: x-echo-size
		}
	}
	return a, nil
}

// grpc calls the echo method. A status that is not OK is an error.
func (f Forward) grpc(ctx context.Context, c *http.Client, u *url.URL) (*answer, error) {
	target := url.URL{Scheme: "http", Host: u.Host, Path: echoMethod}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target.String(), bytes.NewReader(frame(appendString(nil, 1, f.Message))))
	if err != nil {
		return nil, err
	}
	f.headers(req)
	req.Header.Set("content-type", "application/grpc")
	req.Header.Set("te", "trailers")
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	m, readErr := readMessage(resp.Body)
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return nil, err
	}
	status, message := resp.Trailer.Get("grpc-status"), resp.Trailer.Get("grpc-message")
	if status == "" {
		status, message = resp.Header.Get("grpc-status"), resp.Header.Get("grpc-message") // an answer of trailers alone
	}
	if status != "0" {
		return nil, fmt.Errorf("HTTP status %d, gRPC status %q: %s", resp.StatusCode, status, message)
	}
	if readErr != nil {
		return nil, readErr
	}
	text, err := firstString(m)
	if err != nil {
		return nil, err
	}
	a := &answer{status: resp.StatusCode, header: resp.Header, reply: new(Reply)}
	return a, json.Unmarshal([]byte(text), a.reply)
}

func (f Forward) headers(req *http.Request) {
	for _, h := range f.Header {
		name, value, _ := strings.Cut(h, ":")
		if value = strings.TrimSpace(value); strings.EqualFold(name, "host") {
			req.Host = value
		} else {
			req.Header.Add(name, value)
		}
	}
}

// print writes an answer. A reader finds fields by name and takes the first of
// each, so those whose values the caller chose come last.
func (a *answer) print(out io.Writer, i int, url string) {
	line := func(part, name, value string) { fmt.Fprintf(out, "[%d%s] %s=%s\n", i, part, name, value) }
	line("", "Url", url)
	line(" body", "StatusCode", fmt.Sprint(a.status))
	if r := a.reply; r != nil {
		line(" body", "ServiceVersion", r.Version)
		line(" body", "ServicePort", r.Port)
		line(" body", "Host", r.Host)
		line(" body", "Hostname", r.Pod)
		line(" body", "Method", r.Method)
		line(" body", "Proto", r.Proto)
		line(" body", "IP", r.IP)
		line(" body", "URL", r.Path)
		if r.TLS != nil {
			line(" body", "Alpn", r.TLS.NegotiatedProtocol)
		}
		for _, name := range r.Names() {
			line(" body", "RequestHeader", http.CanonicalHeaderKey(name)+":"+r.Header[name])
		}
	} else {
		for l := range strings.Lines(a.body) {
			fmt.Fprintf(out, "[%d body] %s\n", i, strings.TrimSpace(l))
		}
	}
	names := make([]string, 0, len(a.header))
	for name := range a.header {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		line("", "ResponseHeader", name+":"+strings.Join(a.header[name], ","))
	}
	fmt.Fprintln(out) // answers are told apart by an empty line
}
