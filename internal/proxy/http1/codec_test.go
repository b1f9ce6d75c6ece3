package http1

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// stream is a connection of which only reading matters.
type stream struct {
	net.Conn
	r io.Reader
}

func (s *stream) Read(p []byte) (int, error)      { return s.r.Read(p) }
func (s *stream) SetReadDeadline(time.Time) error { return nil }

func readerOf(r io.Reader) *Reader {
	rd := &Reader{}
	rd.Reset(&stream{r: r}, nil)
	return rd
}

// parse reads the first request of text with its body.
func parse(r io.Reader) (x *exchange.Exchange, body string, err error) {
	rd := readerOf(r)
	x = exchange.Get()
	head, err := rd.ReadHead()
	if err != nil {
		return x, "", err
	}
	if err := ParseRequest(x, head); err != nil {
		return x, "", err
	}
	if b := rd.Body(x.Request.Framing, x.Request.Length); b != nil {
		body, err = drain(b)
	}
	return x, body, err
}

func drain(b exchange.Body) (string, error) {
	var s strings.Builder
	for {
		p, err := b.Next()
		if err == io.EOF {
			return s.String(), nil
		}
		if err != nil {
			return s.String(), err
		}
		s.Write(p)
	}
}

func TestRequestHeads(t *testing.T) {
	for _, c := range []struct {
		name, in string
		status   int // of the refusal, 0 if it is accepted
	}{
		{"plain", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", 0},
		{"one empty line before", "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 0},
		{"two empty lines before", "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"empty value", "GET / HTTP/1.1\r\nHost: a\r\nX:\r\n\r\n", 0},
		{"tabs around a value", "GET / HTTP/1.1\r\nHost: a\r\nX:\t 1\t\r\n\r\n", 0},
		{"bytes above 127", "GET / HTTP/1.1\r\nHost: a\r\nX: \xff\xfe\r\n\r\n", 0},
		{"any method", "PURGE / HTTP/1.1\r\nHost: a\r\n\r\n", 0},
		{"bare LF in the request line", "GET / HTTP/1.1\nHost: a\r\n\r\n", 400},
		{"bare LF in a header", "GET / HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n", 400},
		{"bare LF at the end", "GET / HTTP/1.1\r\nHost: a\r\n\n", 400},
		{"bare CR in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r2\r\n\r\n", 400},
		{"NUL in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\x002\r\n\r\n", 400},
		{"DEL in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\x7f\r\n\r\n", 400},
		{"space before the colon", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400},
		{"folded line", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n", 400},
		{"folded first line", "GET / HTTP/1.1\r\n X: 1\r\nHost: a\r\n\r\n", 400},
		{"no colon", "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400},
		{"no name", "GET / HTTP/1.1\r\nHost: a\r\n: 1\r\n\r\n", 400},
		{"bad name", "GET / HTTP/1.1\r\nHost: a\r\nX(Y): 1\r\n\r\n", 400},
		{"no version", "GET /\r\nHost: a\r\n\r\n", 400},
		{"bad version", "GET / HTTP/1.x\r\nHost: a\r\n\r\n", 400},
		{"version 1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505},
		{"small letters in the version", "GET / http/1.1\r\nHost: a\r\n\r\n", 400},
		{"two spaces", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"space in the target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"tab in the target", "GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"space at the line's end", "GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400},
		{"no target", "GET HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"bad method", "G(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"relative target", "GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"fragment", "GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"escaped NUL", "GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n", 400},

		{"no host", "GET / HTTP/1.1\r\n\r\n", 400},
		{"no host in 1.0", "GET / HTTP/1.0\r\n\r\n", 0},
		{"two hosts", "GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", 400},
		{"two hosts in 1.0", "GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400},
		{"empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", 400},
		{"host with path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400},
		{"host with user", "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400},
		{"two hosts in one", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400},
		{"host with bad port", "GET / HTTP/1.1\r\nHost: a:x\r\n\r\n", 400},
		{"host with large port", "GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n", 400},
		{"IPv6 host", "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", 0},
		{"IPv6 host without brackets", "GET / HTTP/1.1\r\nHost: ::1\r\n\r\n", 400},
		{"absolute form", "GET http://b/x HTTP/1.1\r\nHost: a\r\n\r\n", 0},
		{"absolute form without host", "GET http://b/x HTTP/1.1\r\n\r\n", 400},
		{"absolute form with user", "GET http://u@b/x HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"absolute form of another scheme", "GET ftp://b/x HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"asterisk", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 0},
		{"asterisk with GET", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"connect", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 0},
		{"connect without port", "CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"connect to a path", "CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
		{"connect with body", "CONNECT a:443 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", 400},

		{"length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", 0},
		{"length twice", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400},
		{"two lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", 400},
		{"list of lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nx", 400},
		{"signed length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx", 400},
		{"negative length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\nx", 400},
		{"hex length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\nx", 400},
		{"empty length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\nx", 400},
		{"large length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\nx", 400},
		{"chunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 0},
		{"chunked in capitals", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CHUNKED\r\n\r\n0\r\n\r\n", 0},
		{"chunked and length", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400},
		{"length and chunked", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"chunked twice", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501},
		{"chunked, chunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 501},
		{"identity", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", 501},
		{"x-chunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501},
		{"quoted chunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", 501},
		{"chunked behind a vertical tab", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400},
		{"chunked in 1.0", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"empty coding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n", 501},

		{"expectation", "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\nx", 0},
		{"unknown expectation", "POST / HTTP/1.1\r\nHost: a\r\nExpect: more\r\nContent-Length: 1\r\n\r\nx", 417},
		{"100 headers", "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: y\r\n", 99) + "\r\n", 0},
		{"101 headers", "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: y\r\n", 100) + "\r\n", 431},
		{"large head", "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("y", 59<<10) + "\r\n\r\n", 0},
		{"too large head", "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("y", 60<<10) + "\r\n\r\n", 431},
		{"too large head without end", "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("y", 200<<10), 431},
		{"too long line", "GET /" + strings.Repeat("y", 60<<10) + " HTTP/1.1\r\nHost: a\r\n\r\n", 414},
	} {
		// However the bytes arrive, the answer is the same.
		for pace, r := range map[string]io.Reader{
			"whole": strings.NewReader(c.in), "bytes": iotest.OneByteReader(strings.NewReader(c.in)), "halves": iotest.HalfReader(strings.NewReader(c.in)),
		} {
			_, _, err := parse(r)
			status := 0
			if e, ok := errors.AsType[*Error](err); ok {
				status = e.Status
			} else if err != nil {
				status = -1
			}
			if status != c.status {
				t.Errorf("%s, in %s: %v, want status %d", c.name, pace, err, c.status)
			}
		}
	}
}

func TestRequestMeaning(t *testing.T) {
	x, _, err := parse(strings.NewReader("GET HTTP://B:81/%61/../c?d=e?f HTTP/1.1\r\nHost: other\r\nConnection: close, X-One ,authorization,host\r\n" +
		"X-One: 1\r\nAuthorization: secret\r\nTE: gzip\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nUpgrade: websocket\r\nX-Two:  2 \r\n\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	q := &x.Request
	if string(q.Authority) != "B:81" || string(q.Path) != "/c" || string(q.Query) != "d=e?f" || !x.Close || q.Upgrade != nil {
		t.Errorf("%q %q %q close %v upgrade %q", q.Authority, q.Path, q.Query, x.Close, q.Upgrade)
	}
	want := "GET /c?d=e?f HTTP/1.1\r\nAuthorization: secret\r\nX-Two:  2 \r\nhost: B:81\r\n"
	if got := string(AppendRequest(nil, x)); got != want {
		t.Errorf("forwarded as %q, want %q", got, want)
	}
}

func TestConnectionCanNotRemoveWhatOthersRelyOn(t *testing.T) {
	names := []string{"Host", "Content-Length", "Authorization", "Cookie", "X-Forwarded-For", "X-Forwarded-Client-Cert",
		"X-Request-Id", "X-Auth-User", "Content-Type", "X-Envoy-Peer-Metadata", "traceparent", "Transfer-Encoding"}
	in := "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nConnection: " + strings.Join(names, ", ") + "\r\n"
	for _, n := range names {
		if n != "Host" && n != "Content-Length" && n != "Transfer-Encoding" {
			in += n + ": v\r\n"
		}
	}
	x, body, err := parse(strings.NewReader(in + "\r\nx"))
	if err != nil || body != "x" {
		t.Fatal(body, err)
	}
	got := strings.ToLower(string(AppendRequest(nil, x)))
	for _, n := range names {
		if n != "Transfer-Encoding" && !strings.Contains(got, "\r\n"+strings.ToLower(n)+": ") {
			t.Errorf("%s is missing in %q", n, got)
		}
	}
}

func TestChunkedBodies(t *testing.T) {
	const ok = "\x00"
	for _, c := range []struct{ name, in, data, raw string }{
		{"plain", "3\r\nabc\r\n0\r\n\r\n", "abc", ok},
		{"two chunks", "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", "abcde", ok},
		{"leading zeros", "0003\r\nabc\r\n000\r\n\r\n", "abc", ok},
		{"hex", "A\r\n0123456789\r\n0\r\n\r\n", "0123456789", ok},
		{"extension", "3;a=b\r\nabc\r\n0;c\r\n\r\n", "abc", "3\r\nabc\r\n0\r\n\r\n"},
		{"trailers", "1\r\na\r\n0\r\nX: 1\r\nY: 2\r\n\r\n", "a", ok},
		{"forbidden trailers", "1\r\na\r\n0\r\nX: 1\r\nHost: b\r\nContent-Length: 3\r\nY: 2\r\nTransfer-Encoding: x\r\n\r\n", "a", "1\r\na\r\n0\r\nX: 1\r\nY: 2\r\n\r\n"},
		{"empty", "0\r\n\r\n", "", ok},
		{"no size", "\r\nabc\r\n0\r\n\r\n", "", ""},
		{"bad size", "g\r\nabc\r\n0\r\n\r\n", "", ""},
		{"negative size", "-3\r\nabc\r\n0\r\n\r\n", "", ""},
		{"0x size", "0x3\r\nabc\r\n0\r\n\r\n", "", ""},
		{"size with space", "3 \r\nabc\r\n0\r\n\r\n", "", ""},
		{"size before space", " 3\r\nabc\r\n0\r\n\r\n", "", ""},
		{"huge size", "fffffffffffffffff\r\nabc", "", ""},
		{"bare LF after size", "3\nabc\r\n0\r\n\r\n", "", ""},
		{"bare LF in extension", "3;a\nabc\r\n0\r\n\r\n", "", ""},
		{"bare CR in extension", "3;a\rb\r\nabc\r\n0\r\n\r\n", "", ""},
		{"bare LF after data", "3\r\nabc\n0\r\n\r\n", "", ""},
		{"data too long", "3\r\nabcd\r\n0\r\n\r\n", "", ""},
		{"bare LF at the end", "0\r\n\n", "", ""},
		{"bad trailer", "0\r\nX Y\r\n\r\n", "", ""},
		{"trailer with space before colon", "0\r\nX : 1\r\n\r\n", "", ""},
		{"folded trailer", "0\r\nX: 1\r\n 2\r\n\r\n", "", ""},
		{"endless trailers", "0\r\n" + strings.Repeat("X: y\r\n", 2000), "", ""},
		{"endless trailer", "0\r\nX: " + strings.Repeat("y", 100<<10), "", ""},
		{"endless extensions", strings.Repeat("1;"+strings.Repeat("x", 1000)+"\r\na\r\n", 20), "", ""},
	} {
		if c.raw == ok {
			c.raw = c.in
		}
		for pace, slow := range map[string]func(io.Reader) io.Reader{
			"whole": func(r io.Reader) io.Reader { return r }, "bytes": iotest.OneByteReader, "halves": iotest.HalfReader,
		} {
			for _, raw := range []bool{false, true} {
				rd := readerOf(slow(strings.NewReader("POST / HTTP/1.1\r\n\r\n" + c.in + "next")))
				if _, err := rd.ReadHead(); err != nil {
					t.Fatal(err)
				}
				b := rd.Body(exchange.Chunked, 0)
				want := c.data
				if raw {
					b.Raw()
					want = c.raw
				}
				got, err := drain(b)
				bad := c.raw == ""
				if bad {
					if _, ok := errors.AsType[*Error](err); !ok {
						t.Errorf("%s, in %s: %q, %v: not refused", c.name, pace, got, err)
					}
					continue
				}
				if err != nil || got != want || b.Size() != int64(len(c.data)) {
					t.Errorf("%s, in %s: %q (%d), %v, want %q", c.name, pace, got, b.Size(), err, want)
				}
			}
		}
	}
}

func TestWhatFollowsABodyIsTheNextRequest(t *testing.T) {
	long := strings.Repeat("x", 100<<10)
	in := "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcPOST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" +
		"3\r\nabc\r\n0\r\n\r\nPOST /3 HTTP/1.1\r\nHost: a\r\nContent-Length: 102400\r\n\r\n" + long +
		"POST /4 HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("y", 30<<10) + "\r\nContent-Length: 102400\r\n\r\n" + long + "GET /5 HTTP/1.1\r\nHost: a\r\n\r\n"
	for pace, r := range map[string]io.Reader{
		"whole": strings.NewReader(in), "bytes": iotest.OneByteReader(strings.NewReader(in)), "halves": iotest.HalfReader(strings.NewReader(in)),
	} {
		rd := readerOf(r)
		for i, want := range []struct{ path, body string }{{"/1", "abc"}, {"/2", "abc"}, {"/3", long}, {"/4", long}, {"/5", ""}} {
			x := exchange.Get()
			head, err := rd.ReadHead()
			if err == nil {
				err = ParseRequest(x, head)
			}
			if err != nil {
				t.Fatalf("%s, request %d: %v", pace, i, err)
			}
			body := ""
			if b := rd.Body(x.Request.Framing, x.Request.Length); b != nil {
				if body, err = drain(b); err != nil {
					t.Fatalf("%s, request %d: %v", pace, i, err)
				}
			}
			if string(x.Request.Path) != want.path || body != want.body {
				t.Errorf("%s, request %d: %q with %d bytes", pace, i, x.Request.Path, len(body))
			}
			rd.Finish()
		}
		if _, err := rd.ReadHead(); err != io.EOF {
			t.Errorf("%s, at the end: %v", pace, err)
		}
		rd.Release()
	}
}

func TestBufferedBodiesAreOffered(t *testing.T) {
	for in, want := range map[string]struct {
		p     string
		whole bool
	}{
		"Content-Length: 3\r\n\r\nabcGET":                            {"abc", true},
		"Content-Length: 5\r\n\r\nabc":                               {"abc", false},
		"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET": {"3\r\nabc\r\n0\r\n\r\n", true},
		"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n":             {"3\r\nabc\r\n", false},
		"Transfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\n\r\n":  {"3", false}, // what follows is cut out
		"Transfer-Encoding: chunked\r\n\r\nxyz":                      {"", false},
	} {
		rd := readerOf(strings.NewReader("POST / HTTP/1.1\r\nHost: a\r\n" + in))
		x := exchange.Get()
		head, _ := rd.ReadHead()
		if err := ParseRequest(x, head); err != nil {
			t.Fatal(err)
		}
		b := rd.Body(x.Request.Framing, x.Request.Length)
		b.Raw()
		for range 2 { // looking twice changes nothing
			if p, whole := b.Buffered(); string(p) != want.p || whole != want.whole {
				t.Errorf("%q: %q %v", in, p, whole)
			}
		}
		b.Take()
		if b.Done() != want.whole {
			t.Errorf("%q: done is %v", in, b.Done())
		}
		if want.whole && rd.Buffered() > 3 {
			t.Errorf("%q: %d bytes are left", in, rd.Buffered())
		}
	}
}

func TestResponseHeads(t *testing.T) {
	get := &exchange.Request{Method: []byte("GET"), Minor: 1}
	head := &exchange.Request{Method: []byte("HEAD"), Minor: 1, Head: true}
	connect := &exchange.Request{Method: []byte("CONNECT"), Minor: 1, Connect: true}
	upgrade := &exchange.Request{Method: []byte("GET"), Minor: 1, Upgrade: []byte("websocket")}
	const bad = exchange.Framing(99)
	for _, c := range []struct {
		q     *exchange.Request
		in    string
		kind  exchange.Framing
		close bool
	}{
		{get, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", exchange.Length, false},
		{get, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\n", exchange.Length, true},
		{get, "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n", exchange.Length, true},
		{get, "HTTP/1.0 200 OK\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\n", exchange.Length, false},
		{get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", exchange.Chunked, false},
		{get, "HTTP/1.1 200 OK\r\n\r\n", exchange.UntilClose, true},
		{get, "HTTP/1.1 200\r\nContent-Length: 3\r\n\r\n", exchange.Length, false},
		{get, "HTTP/1.1 204 No\r\nContent-Length: 3\r\n\r\n", exchange.NoBody, false},
		{get, "HTTP/1.1 304 No\r\nContent-Length: 3\r\n\r\n", exchange.NoBody, false},
		{get, "HTTP/1.1 103 Hints\r\n\r\n", exchange.NoBody, false},
		{head, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", exchange.NoBody, false},
		{connect, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", exchange.NoBody, false},
		{connect, "HTTP/1.1 403 No\r\nContent-Length: 3\r\n\r\n", exchange.Length, false},
		{upgrade, "HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", exchange.NoBody, false},
		{get, "HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", bad, false},
		{upgrade, "HTTP/1.1 101 Go\r\n\r\n", bad, false},
		{get, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", bad, false},
		{get, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", bad, false},
		{head, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", bad, false},
		{get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", bad, false},
		{get, "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", bad, false},
		{get, "HTTP/2.0 200 OK\r\n\r\n", bad, false},
		{get, "HTTP/1.1 20 OK\r\n\r\n", bad, false},
		{get, "HTTP/1.1 2000 OK\r\n\r\n", bad, false},
		{get, "HTTP/1.1 099 OK\r\n\r\n", bad, false},
		{get, "HTTP/1.1  200 OK\r\n\r\n", bad, false},
		{get, "HTTP/1.1 200 O\x00K\r\n\r\n", bad, false},
		{get, "ICY 200 OK\r\n\r\n", bad, false},
	} {
		rd := readerOf(strings.NewReader(c.in))
		h, err := rd.ReadHead()
		var r exchange.Response
		if err == nil {
			err = ParseResponse(&r, c.q, h)
		}
		if c.kind == bad {
			if err == nil {
				t.Errorf("%q is accepted", c.in)
			}
			continue
		}
		if err != nil || r.Framing != c.kind || r.Close != c.close {
			t.Errorf("%q: framing %d, close %v, %v", c.in, r.Framing, r.Close, err)
		}
	}
}

// corpus is forms that servers are known to read in different ways.
var corpus = []string{
	"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
	"GET /a/../b?x=1 HTTP/1.1\r\nHost: a:80\r\nA: 1\r\nA: 2\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
	"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\r\n : chunked\r\n\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
	"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3,3\r\n\r\nabc",
	"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 03\r\n\r\nabc",
	"POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 3\r\n\r\nabc",
	"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: a\r\nX: a\nY: b\r\n\r\n",
	"GET / HTTP/1.1\nHost: a\n\n",
	"GET http://b/c HTTP/1.1\r\nHost: a\r\n\r\n",
	"GET http://b HTTP/1.1\r\nHost: a\r\n\r\n",
	"GET / HTTP/1.0\r\n\r\n",
	"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
	"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
	"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=\"\r\n\"\r\nabc\r\n0\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nTrailer: 1\r\n\r\n",
	"GET /%2e%2e/%61 HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n",
}

// differ compares what two parsers make of the same bytes. Where we accept,
// net/http has to accept and to mean the same; the other way round we may be
// stricter.
func differ(t *testing.T, in []byte) {
	x, body, err := parse(bytes.NewReader(in))
	if err != nil {
		return
	}
	q := &x.Request
	text := bytes.TrimPrefix(in, []byte("\r\n")) // net/http does not skip an empty line
	for _, c := range q.Target {
		if c >= 0x80 || c == '%' {
			text = nil // opaque to us, refused by net/url in some forms
		}
	}
	if text == nil {
		return
	}
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(text)))
	if err != nil {
		t.Fatalf("we accept what net/http refuses: %q: %v", in, err)
	}
	want, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatalf("we accept a body that net/http refuses: %q: %v", in, err)
	}
	if string(q.Method) != r.Method || body != string(want) || q.Minor != r.ProtoMinor {
		t.Fatalf("%q: %q with body %q, net/http says %q with %q", in, q.Method, body, r.Method, want)
	}
	if !strings.EqualFold(string(q.Authority), r.Host) {
		t.Fatalf("%q: authority %q, net/http says %q", in, q.Authority, r.Host)
	}
	if x.Close != r.Close && !q.Connect {
		t.Fatalf("%q: close %v, net/http says %v", in, x.Close, r.Close)
	}
	if chunked := len(r.TransferEncoding) > 0; chunked != (q.Framing == exchange.Chunked) {
		t.Fatalf("%q: framing %d, net/http says chunked %v", in, q.Framing, chunked)
	}
}

func TestAsNetHTTP(t *testing.T) {
	for _, in := range corpus {
		differ(t, []byte(in))
	}
}

func FuzzRequest(f *testing.F) {
	for _, in := range corpus {
		f.Add([]byte(in))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		differ(t, in)
		// What we forward means the same to us as what we got, byte for byte from the
		// second time on.
		x, body, err := parse(bytes.NewReader(in))
		if err != nil || x.Request.Authority == nil {
			return
		}
		once := EndHead(AppendRequest(nil, x))
		framed := append([]byte(nil), once...)
		if x.Request.Framing == exchange.Chunked {
			if body != "" {
				framed = appendChunk(framed, []byte(body))
			}
			framed = append(framed, lastChunk...)
		} else {
			framed = append(framed, body...)
		}
		y, again, err := parse(bytes.NewReader(framed))
		if err != nil {
			t.Fatalf("%q is forwarded as %q, which we refuse: %v", in, framed, err)
		}
		if again != body || !bytes.Equal(x.Request.Path, y.Request.Path) || !bytes.Equal(x.Request.Authority, y.Request.Authority) {
			t.Fatalf("%q is forwarded as %q, which means something else", in, framed)
		}
		if twice := EndHead(AppendRequest(nil, y)); !bytes.Equal(once, twice) {
			t.Fatalf("%q is forwarded as %q and then as %q", in, once, twice)
		}
	})
}

func FuzzResponse(f *testing.F) {
	for _, in := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		"HTTP/1.0 404 Not Found\r\n\r\nuntil close",
		"HTTP/1.1 204 No Content\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
	} {
		f.Add([]byte(in))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		q := &exchange.Request{Method: []byte("GET"), Minor: 1}
		rd := readerOf(bytes.NewReader(in))
		head, err := rd.ReadHead()
		if err != nil {
			return
		}
		var r exchange.Response
		if ParseResponse(&r, q, head) != nil || r.Status < 200 {
			return
		}
		body := ""
		if b := rd.Body(r.Framing, r.Length); b != nil {
			if body, err = drain(b); err != nil {
				return
			}
		}
		want, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(bytes.TrimPrefix(in, []byte("\r\n")))), nil)
		if err != nil {
			t.Fatalf("we accept what net/http refuses: %q: %v", in, err)
		}
		text, err := io.ReadAll(want.Body)
		if err != nil || string(text) != body || want.StatusCode != r.Status {
			t.Fatalf("%q: %d %q, net/http says %d %q, %v", in, r.Status, body, want.StatusCode, text, err)
		}
	})
}

// FuzzChunks compares raw and decoded reading, in pieces of any size.
func FuzzChunks(f *testing.F) {
	f.Add([]byte("3\r\nabc\r\n0\r\nX: 1\r\n\r\n"), uint8(1))
	f.Add([]byte("3;a\r\nabc\r\n0;b\r\nHost: 1\r\nY: 2\r\n\r\n"), uint8(3))
	f.Fuzz(func(t *testing.T, in []byte, size uint8) {
		read := func(in []byte, raw bool, size int) (string, error) {
			rd := readerOf(&pieces{in: append([]byte("P / HTTP/1.1\r\n\r\n"), in...), size: size})
			if _, err := rd.ReadHead(); err != nil {
				t.Fatal(err)
			}
			b := rd.Body(exchange.Chunked, 0)
			if raw {
				b.Raw()
			}
			return drain(b)
		}
		n := int(size)%32 + 1
		data, err := read(in, false, n)
		raw, rawErr := read(in, true, n)
		if (err == nil) != (rawErr == nil) {
			t.Fatalf("%q: decoded %v, raw %v", in, err, rawErr)
		}
		if whole, wholeErr := read(in, false, len(in)+100); (wholeErr == nil) != (err == nil) || err == nil && whole != data {
			t.Fatalf("%q: %q, %v in one piece, %q, %v in pieces of %d", in, whole, wholeErr, data, err, n)
		}
		if err != nil {
			return
		}
		if again, err := read([]byte(raw), false, n); err != nil || again != data {
			t.Fatalf("%q: passed on as %q, which is %q, %v", in, raw, again, err)
		}
		if strings.Contains(data, ";") {
			return
		}
		if strings.Contains(strings.SplitN(raw, "\r\n", 2)[0], ";") {
			t.Fatalf("%q: passed on as %q, with an extension", in, raw)
		}
	})
}

type pieces struct {
	in   []byte
	size int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.in) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.size)], p.in)
	p.in = p.in[n:]
	return n, nil
}
