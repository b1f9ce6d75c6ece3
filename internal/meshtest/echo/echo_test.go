package echo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/net/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a server with one port of each kind, and returns their addresses.
func start(t *testing.T, kinds ...string) map[string]string {
	t.Helper()
	addrs := make(map[string]string)
	ready := make(chan net.Listener, len(kinds))
	s := Server{Pod: "pod-1", Namespace: "ns", Ingress: "in", Service: "svc", Version: "v1",
		Listen: func(ctx context.Context, _ uint16) (net.Listener, error) {
			l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
			ready <- l
			return l, err
		}}
	for _, k := range kinds {
		s.Ports = append(s.Ports, k+":0")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for _, k := range kinds {
		addrs[k] = (<-ready).Addr().String()
	}
	return addrs
}

// forward returns the printed fields of the first answer: the first of each name, as its readers take them.
func forward(t *testing.T, f Forward) map[string]string {
	t.Helper()
	f.Dial = new(net.Dialer).DialContext
	var out bytes.Buffer
	if err := f.Run(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	fields := make(map[string]string)
	for l := range strings.Lines(out.String()) {
		_, pair, _ := strings.Cut(l, "] ")
		name, value, ok := strings.Cut(strings.TrimSpace(pair), "=")
		if name == "RequestHeader" || name == "ResponseHeader" {
			h, v, _ := strings.Cut(value, ":")
			name, value = name+" "+strings.ToLower(h), v
		}
		if _, had := fields[name]; ok && !had {
			fields[name] = value
		}
	}
	return fields
}

func expect(t *testing.T, got map[string]string, want ...string) {
	t.Helper()
	for _, w := range want {
		name, value, _ := strings.Cut(w, "=")
		if got[name] != value {
			t.Errorf("%s is %q, not %q; all of it: %v", name, got[name], value, got)
		}
	}
}

func TestClientPrintsWhatTheServerSaw(t *testing.T) {
	at := start(t, "http", "https", "h2")
	for _, c := range []struct {
		name string
		f    Forward
		want []string
	}{
		{"HTTP/1", Forward{URL: "http://" + at["http"] + "/a?b=c", Method: "PUT", Header: []string{"Host: who", "X-Me: 1"}},
			[]string{"StatusCode=200", "Method=PUT", "Host=who", "URL=/a?b=c", "Proto=HTTP/1.1", "Hostname=pod-1", "ServiceVersion=v1", "RequestHeader x-me=1", "IP=127.0.0.1"}},
		{"HTTP/2", Forward{URL: "http://" + at["h2"] + "/", HTTP2: true}, []string{"StatusCode=200", "Proto=HTTP/2.0"}},
		{"HTTP/2 on the port of both", Forward{URL: "http://" + at["http"] + "/", HTTP2: true}, []string{"StatusCode=200", "Proto=HTTP/2.0"}},
		{"not HTTP/2", Forward{URL: "http://" + at["h2"] + "/"}, []string{"StatusCode=400", "Hostname="}},
		{"TLS", Forward{URL: "https://" + at["https"] + "/"}, []string{"StatusCode=200", "Proto=HTTP/2.0", "Alpn=h2"}},
		{"gRPC", Forward{URL: "grpc://" + at["http"], Header: []string{"x-me: 1"}, Message: "hello"},
			[]string{"StatusCode=200", "Hostname=pod-1", "RequestHeader x-me=1", "URL=" + echoMethod}},
		{"status", Forward{URL: "http://" + at["http"] + "/status/418"}, []string{"StatusCode=418"}},
		{"headers to set", Forward{URL: "http://" + at["http"] + "/", Header: []string{"X-Echo-Set-Header: X-A:1, X-B:2, X-A:3"}},
			[]string{"ResponseHeader x-a=1,3", "ResponseHeader x-b=2"}},
	} {
		t.Run(c.name, func(t *testing.T) { expect(t, forward(t, c.f), c.want...) })
	}
}

func TestClientSaysWhyThereIsNoAnswer(t *testing.T) {
	at := start(t, "tcp")
	for _, url := range []string{"ftp://" + at["tcp"], "http://127.0.0.1:1/", "grpc://127.0.0.1:1"} {
		f := Forward{URL: url, Dial: new(net.Dialer).DialContext}
		if err := f.Run(t.Context(), new(bytes.Buffer)); err == nil || !strings.Contains(err.Error(), url) {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestAnswersAreApart(t *testing.T) {
	at := start(t, "http")
	var out bytes.Buffer
	f := Forward{URL: "http://" + at["http"] + "/", Count: 3, Dial: new(net.Dialer).DialContext}
	if err := f.Run(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	if parts := strings.Split(strings.TrimSpace(out.String()), "\n\n"); len(parts) != 3 {
		t.Errorf("%d parts of %q", len(parts), out.String())
	}
}

// The fields and their types are those of the conformance suite's own reader.
func TestReplyHasTheSuitesFields(t *testing.T) {
	at := start(t, "http")
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+at["http"]+"/p?q", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header["X-Two"] = []string{"a", "b"}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	var got struct {
		Path, Host, Method, Proto, HTTPPort, Namespace, Ingress, Service, Pod string
		Headers                                                               map[string][]string
	}
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(at["http"])
	want := []any{"/p?q", at["http"], "GET", "HTTP/1.1", port, "ns", "in", "svc", "pod-1", "[a b]"}
	if have := []any{got.Path, got.Host, got.Method, got.Proto, got.HTTPPort, got.Namespace, got.Ingress, got.Service, got.Pod, fmt.Sprint(got.Headers["X-Two"])}; fmt.Sprint(have) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", have, want)
	}
}

func TestRetriesSucceedInTheEnd(t *testing.T) {
	at := start(t, "http")
	url := "http://" + at["http"] + "/retry/x?uuid=1&succeedAfter=2&responseCode=503"
	for i, want := range []string{"503", "503", "200", "200"} {
		if got := forward(t, Forward{URL: url})["StatusCode"]; got != want {
			t.Errorf("request %d: status %s, want %s", i, got, want)
		}
	}
	f := Forward{URL: "http://" + at["http"] + "/retry/x?uuid=2&succeedAfter=1", Method: "POST", Dial: new(net.Dialer).DialContext}
	if err := f.Run(t.Context(), new(bytes.Buffer)); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("the first request was to be reset: %v", err)
	}
	expect(t, forward(t, Forward{URL: f.URL, Method: "POST"}), "StatusCode=200", "Method=POST")
}

func TestWebSocketEchoes(t *testing.T) {
	at := start(t, "http")
	c, err := websocket.Dial("ws://"+at["http"]+"/ws", "", "http://example.org/")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := websocket.Message.Send(c, "hello"); err != nil {
		t.Fatal(err)
	}
	var got string
	if err := websocket.Message.Receive(c, &got); err != nil || got != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
}

func FuzzGRPCMessage(f *testing.F) {
	f.Add(frame(appendString(nil, 1, "hello")))
	f.Add([]byte{0, 0, 0, 0, 1, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := readMessage(bytes.NewReader(b))
		if err != nil {
			return
		}
		s, err := firstString(m)
		if err == nil && len(s) > len(m) {
			t.Errorf("a string of %d bytes out of %d", len(s), len(m))
		}
	})
}

// raw passes messages of gRPC as they are.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error)   { return *v.(*[]byte), nil }
func (raw) Unmarshal(b []byte, v any) error { *v.(*[]byte) = bytes.Clone(b); return nil }
func (raw) Name() string                    { return "proto" }

func TestGRPCLibraryIsAnswered(t *testing.T) {
	at := start(t, "http")
	c, err := grpc.NewClient(at["http"], grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var in, out []byte
	if err := c.Invoke(t.Context(), conformanceService+"EchoTwo", &in, &out); err != nil {
		t.Fatal(err)
	}
	said, err := firstString(out) // the assertions, whose first field is the method
	if err != nil {
		t.Fatal(err)
	}
	if method, err := firstString([]byte(said)); err != nil || method != conformanceService+"EchoTwo" {
		t.Errorf("method %q, %v", method, err)
	}
	for _, want := range []string{"ns", "in", "svc", "pod-1", at["http"]} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not in %q", want, said)
		}
	}
	if err := c.Invoke(t.Context(), conformanceService+"EchoThree", &in, &out); status.Code(err) != codes.Unimplemented {
		t.Errorf("a method that is not there: %v", err)
	}
}
