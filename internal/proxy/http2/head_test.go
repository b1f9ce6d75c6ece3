package http2

import (
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// section decodes fields given as "name: value" lines.
func section(t testing.TB, kind headKind, lines ...string) *Head {
	t.Helper()
	var block []byte
	for _, l := range lines {
		i := strings.Index(l[1:], ":") + 1
		block = append(block, 0)
		block = appendString(block, []byte(l[:i]))
		block = appendString(block, []byte(strings.TrimPrefix(l[i+1:], " ")))
	}
	h := new(Head)
	if !newDecoder(defaultMaxHeaderBytes, 100).decode(h, block) {
		t.Fatal("not decoded")
	}
	h.finish(kind)
	return h
}

func TestRequestSections(t *testing.T) {
	get := []string{":method: GET", ":scheme: http", ":path: /", ":authority: a"}
	with := func(more ...string) []string { return append(get[:4:4], more...) }
	for _, c := range []struct {
		name  string
		lines []string
		good  bool
	}{
		{"plain", get, true},
		{"fields", with("x: 1", "y:", "te: trailers", "content-length: 0"), true},
		{"bytes above 127", with("x: \xff\xfe"), true},
		{"tab in a value", with("x: a\tb"), true},
		{"host like the authority", with("host: a"), true},
		{"host in its place", []string{":method: GET", ":scheme: http", ":path: /", "host: a"}, true},
		{"asterisk", []string{":method: OPTIONS", ":scheme: http", ":path: *", ":authority: a"}, true},
		{"connect", []string{":method: CONNECT", ":authority: a:443"}, true},
		{"extended connect", []string{":method: CONNECT", ":protocol: websocket", ":scheme: https", ":path: /", ":authority: a"}, true},
		{"IPv6 authority", []string{":method: GET", ":scheme: http", ":path: /", ":authority: [::1]:80"}, true},
		{"query", []string{":method: GET", ":scheme: http", ":path: /a?b#", ":authority: a"}, false},

		{"no method", []string{":scheme: http", ":path: /", ":authority: a"}, false},
		{"empty method", []string{":method:", ":scheme: http", ":path: /", ":authority: a"}, false},
		{"bad method", []string{":method: G T", ":scheme: http", ":path: /", ":authority: a"}, false},
		{"no scheme", []string{":method: GET", ":path: /", ":authority: a"}, false},
		{"other scheme", []string{":method: GET", ":scheme: ftp", ":path: /", ":authority: a"}, false},
		{"no path", []string{":method: GET", ":scheme: http", ":authority: a"}, false},
		{"empty path", []string{":method: GET", ":scheme: http", ":path:", ":authority: a"}, false},
		{"path without a slash", []string{":method: GET", ":scheme: http", ":path: a", ":authority: a"}, false},
		{"absolute path", []string{":method: GET", ":scheme: http", ":path: http://b/", ":authority: a"}, false},
		{"asterisk with GET", []string{":method: GET", ":scheme: http", ":path: *", ":authority: a"}, false},
		{"space in the path", []string{":method: GET", ":scheme: http", ":path: /a b", ":authority: a"}, false},
		{"new request in the path", []string{":method: GET", ":scheme: http", ":path: /\r\n\r\nGET /b", ":authority: a"}, false},
		{"fragment", []string{":method: GET", ":scheme: http", ":path: /#a", ":authority: a"}, false},
		{"no authority", []string{":method: GET", ":scheme: http", ":path: /"}, false},
		{"empty authority", []string{":method: GET", ":scheme: http", ":path: /", ":authority:"}, false},
		{"user in the authority", []string{":method: GET", ":scheme: http", ":path: /", ":authority: u@a"}, false},
		{"path in the authority", []string{":method: GET", ":scheme: http", ":path: /", ":authority: a/b"}, false},
		{"large port", []string{":method: GET", ":scheme: http", ":path: /", ":authority: a:65536"}, false},
		{"other host", with("host: b"), false},
		{"two hosts", with("host: a", "host: a"), false},
		{"repeated pseudo-header", append([]string{":method: GET"}, get...), false},
		{"unknown pseudo-header", append([]string{":x: y"}, get...), false},
		{"pseudo-header of a response", append([]string{":status: 200"}, get...), false},
		{"pseudo-header behind a field", []string{":method: GET", ":scheme: http", "x: 1", ":path: /", ":authority: a"}, false},
		{"capitals", with("X: 1"), false},
		{"no name", with("\x00: 1"), false},
		{"space in a name", with("x y: 1"), false},
		{"CR in a value", with("x: a\rb"), false},
		{"LF in a value", with("x: a\nb"), false},
		{"NUL in a value", with("x: a\x00b"), false},
		{"DEL in a value", with("x: a\x7fb"), false},
		{"space before the path", []string{":method: GET", ":scheme: http", ":path:  /", ":authority: a"}, false},
		{"space behind the authority", []string{":method: GET", ":scheme: http", ":path: /", ":authority: a "}, false},
		{"connection", with("connection: close"), false},
		{"keep-alive", with("keep-alive: 1"), false},
		{"proxy-connection", with("proxy-connection: close"), false},
		{"transfer-encoding", with("transfer-encoding: chunked"), false},
		{"upgrade", with("upgrade: websocket"), false},
		{"te with more", with("te: trailers, deflate"), false},
		{"length twice", with("content-length: 1", "content-length: 1"), false},
		{"list of lengths", with("content-length: 1, 1"), false},
		{"signed length", with("content-length: +1"), false},
		{"large length", with("content-length: 99999999999999999999"), false},
		{"connect without port", []string{":method: CONNECT", ":authority: a"}, false},
		{"connect with path", []string{":method: CONNECT", ":path: /", ":authority: a:1"}, false},
		{"connect with scheme", []string{":method: CONNECT", ":scheme: http", ":authority: a:1"}, false},
		{"extended connect without path", []string{":method: CONNECT", ":protocol: websocket", ":scheme: https", ":authority: a"}, false},
		{"protocol with GET", append([]string{":protocol: websocket"}, get...), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if h := section(t, requestHead, c.lines...); (h.bad == "") != c.good {
				t.Errorf("bad is %q", h.bad)
			}
		})
	}
}

func TestResponseSections(t *testing.T) {
	for _, c := range []struct {
		name  string
		lines []string
		good  bool
	}{
		{"plain", []string{":status: 200", "x: 1"}, true},
		{"early hints", []string{":status: 103"}, true},
		{"odd status", []string{":status: 999"}, true},
		{"no status", []string{"x: 1"}, false},
		{"two", []string{":status: 200", ":status: 200"}, false},
		{"two digits", []string{":status: 20"}, false},
		{"no number", []string{":status: 2x0"}, false},
		{"below 100", []string{":status: 099"}, false},
		{"switching protocols", []string{":status: 101"}, false},
		{"method", []string{":method: GET", ":status: 200"}, false},
		{"connection", []string{":status: 200", "connection: close"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if h := section(t, responseHead, c.lines...); (h.bad == "") != c.good {
				t.Errorf("bad is %q", h.bad)
			}
		})
	}
}

func TestTrailerSections(t *testing.T) {
	if h := section(t, trailerHead, ":status: 200"); h.bad == "" {
		t.Error("a pseudo-header in trailers was taken")
	}
	h := section(t, trailerHead, "grpc-status: 0", "content-length: 5", "content-type: text/html", "authorization: x", "x-a: 1", "host: b")
	if got := string(h.Header.AppendTo(nil)); got != "grpc-status: 0\r\nx-a: 1\r\n" {
		t.Errorf("got %q", got)
	}
}

func TestBlanksAroundValuesAreCutOff(t *testing.T) {
	h := section(t, responseHead, ":status: 200", "x:  \ta b\t ", "y: \t")
	if x, _ := h.Header.Find("x", 0); h.bad != "" || string(x) != "a b" {
		t.Errorf("got %q %s", x, h.bad)
	}
	if y, i := h.Header.Find("y", 0); i != 1 || len(y) != 0 {
		t.Errorf("got %q", y)
	}
}

func TestCookieCrumbsAreJoined(t *testing.T) {
	h := section(t, requestHead, ":method: GET", ":scheme: http", ":path: /", ":authority: a", "cookie: a=1", "x: y", "cookie: b=2", "cookie: c=3")
	if n := h.Header.Count(exchange.Cookie); n != 1 {
		t.Fatalf("%d cookies", n)
	}
	if got := string(h.Header.Get(exchange.Cookie)); got != "a=1; b=2; c=3" {
		t.Errorf("got %q", got)
	}
	if got := string(h.Header.AppendTo(nil)); got != "x: y\r\ncookie: a=1; b=2; c=3\r\n" {
		t.Errorf("as lines: %q", got)
	}
}

func TestFieldsOfHTTP1ConnectionsAreLeftOut(t *testing.T) {
	h := &Head{Status: 200, Header: new(exchange.Header)}
	for _, f := range [][2]string{{"Connection", "x"}, {"Keep-Alive", "1"}, {"Transfer-Encoding", "chunked"}, {"Upgrade", "h2c"},
		{"Proxy-Connection", "x"}, {"TE", "gzip"}, {"Host", "a"}, {"X-Kept", "1"}} {
		h.Header.Add(exchange.Identify([]byte(f[0])), f[0], []byte(f[1]))
	}
	got := new(Head)
	if !newDecoder(1<<16, 100).decode(got, newEncoder().head(nil, h)) {
		t.Fatal("not decoded")
	}
	got.finish(responseHead)
	if s := string(got.Header.AppendTo(nil)); s != "x-kept: 1\r\n" || got.Status != 200 || got.bad != "" {
		t.Errorf("%d %q %s", got.Status, s, got.bad)
	}
}

func TestRequestsAsHTTP1ReadsThem(t *testing.T) {
	x := exchange.Get()
	defer exchange.Put(x)
	h := section(t, requestHead, ":method: POST", ":scheme: http", ":path: /a/../b%41?q=1", ":authority: A:80", "x: 1")
	if why := ReadRequest(x, h, false); why != "" {
		t.Fatal(why)
	}
	q := &x.Request
	if string(q.Method) != "POST" || string(q.Path) != "/bA" || string(q.Query) != "q=1" || !q.HasQuery ||
		string(q.Authority) != "A:80" || q.Framing != exchange.Chunked || string(q.Target) != "/a/../b%41?q=1" {
		t.Errorf("got %+v", q)
	}
	if got := string(q.Header.AppendTo(nil)); got != "x: 1\r\nhost: A:80\r\ntransfer-encoding: chunked\r\n" {
		t.Errorf("got %q", got)
	}

	var out Head
	q.Scheme = "https"
	RequestHead(&out, x)
	again := new(Head)
	newDecoder(1<<16, 100).decode(again, newEncoder().head(nil, &out))
	again.finish(requestHead)
	if again.bad != "" || string(again.Path) != "/bA?q=1" || string(again.Scheme) != "https" || string(again.Authority) != "A:80" ||
		string(again.Header.AppendTo(nil)) != "x: 1\r\n" {
		t.Errorf("sent as %+v %s", again, again.bad)
	}
}

func TestWebSocketsCrossTheVersions(t *testing.T) {
	x := exchange.Get()
	defer exchange.Put(x)
	h := section(t, requestHead, ":method: CONNECT", ":protocol: websocket", ":scheme: https", ":path: /chat", ":authority: a")
	if why := ReadRequest(x, h, false); why != "" {
		t.Fatal(why)
	}
	q := &x.Request
	key, i := q.Header.Find("sec-websocket-key", 0)
	if string(q.Method) != "GET" || string(q.Upgrade) != "websocket" || q.Framing != exchange.NoBody || i < 0 || len(key) != 24 {
		t.Fatalf("got %+v, key %q", q, key)
	}
	var out Head
	RequestHead(&out, x)
	if string(out.Method) != "CONNECT" || string(out.Protocol) != "websocket" || string(out.Path) != "/chat" {
		t.Errorf("sent as %+v", out)
	}
	x.Response.Status = 101
	x.Response.Header.AddString(exchange.Other, "sec-websocket-accept", "x")
	ResponseHead(&out, x)
	if _, i := out.Header.Find("sec-websocket-accept", 0); out.Status != 200 || i >= 0 {
		t.Errorf("answered with %d", out.Status)
	}
	ReadResponse(x, section(t, responseHead, ":status: 200"), false)
	if x.Response.Status != 101 || !x.Response.Header.Has(exchange.Upgrade) {
		t.Errorf("an upgrade was answered with %d", x.Response.Status)
	}
}
