package filter

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	h2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/route"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
)

// view is a request as a server of net/http understands it.
type view struct {
	method, host, path, query string
	header                    http.Header
}

// witness is an upstream that notes what it is asked.
type witness struct {
	mu   sync.Mutex
	seen []view
}

func (w *witness) serve(_ http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return // it broke off, and is no request
	}
	path, query, _ := strings.Cut(r.RequestURI, "?")
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = append(w.seen, view{r.Method, r.Host, path, query, r.Header.Clone()})
}

// take returns what was asked since the last call.
func (w *witness) take() []view {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := w.seen
	w.seen = nil
	return seen
}

// asked is a request that a client may send, in good or bad faith.
type asked struct {
	method, target, authority string
	fields                    [][2]string
	body                      string
}

// compared are the headers that requests may have, and that policies and routes look at.
var compared = []string{"x-a", "x-b", "cookie", "authorization", "x-under_score", "te", "user-agent"}

func oneOf(r *rand.Rand, of ...string) string { return of[r.IntN(len(of))] }

// anyRequest makes a random request, in which every part may be such that two readers
// understand it in two ways.
func anyRequest(r *rand.Rand) asked {
	var a asked
	a.method = oneOf(r, "GET", "GET", "POST", "PUT", "OPTIONS", "DELETE", "get", "X-Y")
	var path strings.Builder
	for range 1 + r.IntN(6) {
		path.WriteString(oneOf(r, "/", "/", "/a", "/b", "/.", "/..", "/%2e", "/%2E%2e", "//", "\\", "%2F", "%5c", "%41", "%7e", ";x=1", "%00", "%", "%zz", "/\xc3\xa9", "~", "*",
			"@", ":80", "!$&'()+,=", " ", "\t", "\x7f", "#f", "/%c3%a9"))
	}
	a.target = path.String()
	if !strings.HasPrefix(a.target, "/") && r.IntN(4) > 0 {
		a.target = "/" + a.target
	}
	a.target += oneOf(r, "", "", "?", "?q=1&%41", "?/../x", "?a?b", "?\\")
	a.authority = oneOf(r, "a.example", "a.example", "A.Example", "a.example:80", "a.example:8080", "[::1]:80", "a.example.", "", "x@a.example", "a b", "a.example/x", "a.example, b.example", "b.example:x")
	for range r.IntN(5) {
		name := oneOf(r, compared...)
		if r.IntN(3) == 0 {
			name = oneOf(r, "connection", "host", "x-a ", "X-A", " x-a", "x-a\r", "x\x00", "", "transfer-encoding", "content-length", "keep-alive", "proxy-connection", "upgrade", "x-b:", ":path", "expect")
		}
		a.fields = append(a.fields, [2]string{name, oneOf(r, "1", "1", "2", "1, 2", "", " 1 ", "\t1", "x-a", "close", "keep-alive, x-b", "trailers", "chunked", "0", "a\rb", "a\nx-b: 2", "a\r\nx-b: 2", "a\x00b", "\xff",
			"a.example", "b.example", "identity, chunked", "+3", "h2c", "100-continue")})
	}
	if a.method == "POST" || a.method == "PUT" {
		a.body = oneOf(r, "", "abc", "GET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n", "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
	}
	return a
}

// overHTTP1 sends a and returns the status of the answer, 0 if there was none.
func (a asked) overHTTP1(t *testing.T, addr string, absolute bool) int {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	target := a.target
	if absolute {
		target = "http://b.example" + target
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", a.method, target, a.authority)
	for _, f := range a.fields {
		fmt.Fprintf(&b, "%s: %s\r\n", f[0], f[1])
	}
	if a.body != "" {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(a.body))
	}
	b.WriteString("\r\n" + a.body)
	io.WriteString(c, b.String())
	c.(*net.TCPConn).CloseWrite()
	r, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: a.method})
	if err != nil {
		return 0
	}
	io.Copy(io.Discard, c) // until the proxy has read all
	r.Body.Close()
	return r.StatusCode
}

// overHTTP2 is overHTTP1 in the other protocol, where no character ends a field.
func (a asked) overHTTP2(t *testing.T, addr string) int {
	k := attackOver(t, addr)
	defer k.c.Close()
	fields := [][2]string{{":method", a.method}, {":scheme", "http"}, {":path", a.target}}
	if a.authority != "" {
		fields = append(fields, [2]string{":authority", a.authority})
	}
	if a.body != "" {
		fields = append(fields, [2]string{"content-length", fmt.Sprint(len(a.body))})
	}
	k.send(1, a.body == "", append(fields, a.fields...))
	if a.body != "" {
		k.fr.WriteData(1, true, []byte(a.body))
	}
	k.w.Flush()
	status := 0
	for {
		f, err := k.fr.ReadFrame()
		if err != nil {
			return status
		}
		switch f := f.(type) {
		case *h2.HeadersFrame:
			fields, err := hpack.NewDecoder(4096, nil).DecodeFull(f.HeaderBlockFragment())
			if err != nil || len(fields) == 0 || fields[0].Name != ":status" {
				t.Fatalf("%v, %v", fields, err)
			}
			fmt.Sscan(fields[0].Value, &status)
			if status >= 200 && f.StreamEnded() {
				return status
			}
		case *h2.DataFrame:
			if f.StreamEnded() {
				return status
			}
		case *h2.RSTStreamFrame, *h2.GoAwayFrame:
			return status
		}
	}
}

// exactly returns a policy's conditions and a route's match that hold for v, and for no
// request that differs in anything they can see.
func exactly(v view) (plan.Conditions, plan.RouteMatch) {
	exact := func(s string) []plan.TextMatch { return []plan.TextMatch{{Kind: plan.StringExact, Value: s}} }
	all := plan.Conditions{
		{Attr: plan.AttrMethod, Texts: exact(v.method)},
		{Attr: plan.AttrHost, Texts: exact(strings.ToLower(v.host))},
		{Attr: plan.AttrHeader, Key: ":authority", Texts: exact(v.host)},
		{Attr: plan.AttrPath, Texts: exact(v.path)},
	}
	match := plan.RouteMatch{Path: plan.PathMatch{Kind: plan.PathExact, Value: v.path}, Headers: []plan.HeaderMatch{
		{Name: ":method", Kind: plan.StringExact, Value: v.method},
		{Name: ":authority", Kind: plan.StringExact, Value: v.host},
	}}
	for _, name := range compared {
		values := v.header.Values(name)
		if len(values) == 0 {
			all = append(all, plan.Condition{Attr: plan.AttrHeader, Key: name, Not: true, Texts: []plan.TextMatch{{Kind: plan.StringPresent}}})
			match.Headers = append(match.Headers, plan.HeaderMatch{Name: name, Kind: plan.StringPresent, Invert: true})
			continue
		}
		for _, one := range values {
			all = append(all, plan.Condition{Attr: plan.AttrHeader, Key: name, Texts: exact(one)})
		}
		match.Headers = append(match.Headers, plan.HeaderMatch{Name: name, Kind: plan.StringExact, Value: strings.Join(values, ",")})
	}
	return all, match
}

// Router, policy and upstream see one and the same request. What the upstream saw is
// made the only thing that the route table and the policy let pass, and then the only
// thing that the policy refuses, and the same bytes are sent again each time.
func TestOneCanonicalRequest(t *testing.T) {
	for out, p := range map[string]plan.Protocol{"HTTP/1.1": plan.HTTP1, "HTTP/2": plan.HTTP2} {
		t.Run("to "+out, func(t *testing.T) { oneCanonicalRequest(t, p) })
	}
}

func oneCanonicalRequest(t *testing.T, out plan.Protocol) {
	const requests = 1000
	var w witness
	addr, s, table := proxyOnSockets(t, w.serve, upstream.Config{}, func(c *plan.Cluster, _ *plan.LoadAssignment) { c.Protocol = out }, nil, nil)
	all := table.Load()
	police := func(p ...*plan.RBAC) { s.Police(&plan.HTTPChain{RBAC: p}) }
	for form, send := range map[string]func(a asked) int{
		"by HTTP/1.1":                       func(a asked) int { return a.overHTTP1(t, addr, false) },
		"by HTTP/1.1 with absolute targets": func(a asked) int { return a.overHTTP1(t, addr, true) },
		"by HTTP/2":                         func(a asked) int { return a.overHTTP2(t, addr) },
	} {
		t.Run(form, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			passed := 0
			for range requests {
				a := anyRequest(r)
				table.Store(all)
				police()
				status := send(a)
				seen := w.take()
				if len(seen) > 1 {
					t.Fatalf("%q became %d requests: %q", a, len(seen), seen)
				}
				if len(seen) == 0 {
					if status != 0 && status < 400 {
						t.Errorf("%q was answered %d, and the upstream has not seen it", a, status)
					}
					continue
				}
				if status != 200 {
					continue // the upstream's own answer to what it does not understand
				}
				passed++
				conditions, match := exactly(seen[0])
				rule := []*plan.RBACRule{{Name: "r", To: []plan.Conditions{conditions}}}
				only, err := route.NewTable(&plan.RouteConfig{Hosts: []*plan.VirtualHost{{Domains: []string{"*"}, Routes: []*plan.Route{
					{Match: match, Clusters: []plan.WeightedCluster{{Cluster: "c", Weight: 1}}},
				}}}})
				if err != nil {
					t.Fatal(err)
				}
				table.Store(only)
				if got := send(a); got != 200 {
					t.Errorf("%q: the upstream saw %q, the router something else: %d", a, seen[0], got)
				}
				table.Store(all)
				police(&plan.RBAC{Action: plan.Allow, Enforced: true, Rules: rule})
				if got := send(a); got != 200 {
					t.Errorf("%q: the upstream saw %q, the policy something else: %d", a, seen[0], got)
				}
				if n := len(w.take()); n != 2 && !t.Failed() {
					t.Errorf("%q reached the upstream %d times of 2", a, n)
				}
				police(&plan.RBAC{Action: plan.Deny, Enforced: true, Rules: rule})
				if got := send(a); got != 403 || len(w.take()) != 0 {
					t.Errorf("%q is to be refused, and was answered %d", a, got)
				}
				if t.Failed() {
					return
				}
			}
			if passed < requests/50 {
				t.Errorf("only %d of %d requests reached the upstream: that says little", passed, requests)
			}
		})
	}
}

// attackerHTTP2 speaks HTTP/2 as no client would.
type attackerHTTP2 struct {
	c     net.Conn
	w     *bufio.Writer
	fr    *h2.Framer
	block bytes.Buffer
	enc   *hpack.Encoder
}

func attackOver(t *testing.T, addr string, settings ...h2.Setting) *attackerHTTP2 {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	k := &attackerHTTP2{c: c, w: bufio.NewWriterSize(c, 16<<10)}
	k.fr = h2.NewFramer(k.w, c)
	k.fr.AllowIllegalWrites = true
	k.enc = hpack.NewEncoder(&k.block)
	io.WriteString(k.w, h2.ClientPreface)
	k.fr.WriteSettings(settings...)
	return k
}

// send sends the head of a request.
func (k *attackerHTTP2) send(id uint32, end bool, fields [][2]string) error {
	k.block.Reset()
	for _, f := range fields {
		k.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	return k.fr.WriteHeaders(h2.HeadersFrameParam{StreamID: id, BlockFragment: k.block.Bytes(), EndStream: end, EndHeaders: true})
}
