package filter

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	h2 "golang.org/x/net/http2"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/http2"
	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
)

var plainHead = [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", "/"}, {":authority", "a"}}

func headTo(path string, more ...[2]string) [][2]string {
	return append([][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", path}, {":authority", "a"}}, more...)
}

// attacksHTTP2 are what a client of HTTP/2 may do, a step at a time; i counts them.
var attacksHTTP2 = map[string]func(k *attackerHTTP2, i int) error{
	"rapid reset": func(k *attackerHTTP2, i int) error {
		k.send(uint32(2*i+1), true, plainHead)
		return k.fr.WriteRSTStream(uint32(2*i+1), h2.ErrCodeCancel)
	},
	"resets that the proxy is made to send": func(k *attackerHTTP2, i int) error {
		k.send(uint32(2*i+1), false, plainHead)
		return k.fr.WriteRawFrame(h2.FrameWindowUpdate, 0, uint32(2*i+1), make([]byte, 4))
	},
	"continuations": func(k *attackerHTTP2, i int) error {
		if i == 0 {
			return k.fr.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82}})
		}
		return k.fr.WriteContinuation(1, false, bytes.Repeat([]byte{0, 1, 'a', 1, 'b'}, 1000))
	},
	"cookie crumbs that expand": func(k *attackerHTTP2, i int) error {
		if i == 0 {
			return k.send(1, true, append(headTo("/"), [2]string{"cookie", strings.Repeat("c", 4000)}))
		}
		return k.fr.WriteHeaders(h2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: bytes.Repeat([]byte{0xbe}, 16000), EndStream: true, EndHeaders: true})
	},
	"unknown frames": func(k *attackerHTTP2, i int) error {
		return k.fr.WriteRawFrame(h2.FrameType(10+i%200), h2.Flags(i), uint32(i), make([]byte, i%100))
	},
	"settings": func(k *attackerHTTP2, i int) error {
		return k.fr.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: uint32(i)})
	},
	"pings": func(k *attackerHTTP2, _ int) error { return k.fr.WritePing(false, [8]byte{}) },
}

// The same as for HTTP/1.1: innocent requests of both protocols are answered, and what streams keep is within
// the budget.
func TestInnocentTrafficGoesOnUnderAttackByHTTP2(t *testing.T) {
	const sessions, steps = 8, 20_000
	for name, step := range attacksHTTP2 {
		for _, out := range []plan.Protocol{plan.HTTP1} {
			t.Run(fmt.Sprintf("%s, upstream %v", name, out), func(t *testing.T) {
				budget := http2.NewBudget(32 << 20)
				addr := onSockets(t, func(w http.ResponseWriter, r *http.Request) {
					io.WriteString(w, "innocent")
				}, upstream.Config{Budget: budget}, func(c *plan.Cluster, _ *plan.LoadAssignment) { c.Protocol = out }, nil, nil)
				var ended sync.WaitGroup
				var most atomic.Int64
				var conns []net.Conn
				for range sessions {
					k := attackOver(t, addr)
					conns = append(conns, k.c)
					ended.Go(func() { io.Copy(io.Discard, k.c) })
					ended.Go(func() {
						for i := range steps {
							if step(k, i) != nil || k.w.Buffered() > 8<<10 && k.w.Flush() != nil {
								return
							}
						}
						k.w.Flush()
					})
				}
				for _, both := range []bool{false, true} {
					tr := &http.Transport{Protocols: new(http.Protocols)}
					tr.Protocols.SetHTTP1(!both)
					tr.Protocols.SetUnencryptedHTTP2(both)
					for i := range 100 {
						resp, err := (&http.Client{Transport: tr}).Get("http://" + addr + "/")
						if err != nil {
							t.Fatalf("innocent request %d: %v", i, err)
						}
						body, err := io.ReadAll(resp.Body)
						resp.Body.Close()
						if err != nil || resp.StatusCode != 200 || string(body) != "innocent" {
							t.Fatalf("innocent request %d: %d %q %v", i, resp.StatusCode, body, err)
						}
						most.Store(max(most.Load(), budget.Used()))
					}
					tr.CloseIdleConnections()
				}
				if n := most.Load(); n > 32<<20 {
					t.Errorf("%d bytes of a budget of 32 MiB", n)
				}
				for _, c := range conns {
					c.Close()
				}
				ended.Wait()
			})
		}
	}
}

// What is one request for the proxy is one for the upstream: nothing that a client
// writes into a stream's head or body is a request of HTTP/1.1 behind it.
func TestNothingIsSmuggledFromHTTP2(t *testing.T) {
	const behind = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
	var w witness
	addr := onSockets(t, w.serve, upstream.Config{}, func(c *plan.Cluster, _ *plan.LoadAssignment) { c.Protocol = plan.HTTP1 }, nil, nil)
	field := func(name, value string) [][2]string { return headTo("/", [2]string{name, value}) }
	for name, c := range map[string]struct {
		head [][2]string
		body string
		// reaches says that the request is one that is forwarded, without what is
		// wrong with it if anything is.
		reaches bool
	}{
		"a length that is right":          {field("content-length", "3"), "abc", true},
		"a length that is too small":      {field("content-length", "3"), "abc" + behind, false},
		"a length that is too large":      {field("content-length", "300"), "abc", false},
		"two lengths":                     {append(field("content-length", "3"), [2]string{"content-length", "5"}), "abc", false},
		"a length with a sign":            {field("content-length", "+3"), "abc", false},
		"a list of lengths":               {field("content-length", "3, 5"), "abc", false},
		"transfer-encoding":               {field("transfer-encoding", "chunked"), "0\r\n\r\n" + behind, false},
		"transfer-encoding with a length": {append(field("transfer-encoding", "chunked"), [2]string{"content-length", "3"}), "abc", false},
		"transfer-encoding in disguise":   {field("transfer_encoding", "chunked"), "0\r\n\r\n" + behind, true},
		"a body that looks like chunks":   {headTo("/"), "0\r\n\r\n" + behind, true},
		"connection":                      {field("connection", "keep-alive"), "", false},
		"upgrade":                         {field("upgrade", "h2c"), "", false},
		"te that is not trailers":         {field("te", "chunked"), "", false},
		"CRLF in a value":                 {field("x-a", "b\r\n\r\n"+behind), "", false},
		"LF in a value":                   {field("x-a", "b\n\n"+behind), "", false},
		"CR in a value":                   {field("x-a", "b\rc"), "", false},
		"NUL in a value":                  {field("x-a", "b\x00c"), "", false},
		"CRLF in a name":                  {field("x-a: b\r\nx-c", "d"), "", false},
		"a colon in a name":               {field("transfer-encoding:", "chunked"), "", false},
		"a space in a name":               {field("transfer-encoding ", "chunked"), "", false},
		"upper case":                      {field("Transfer-Encoding", "chunked"), "", false},
		"an empty name":                   {field("", "x"), "", false},
		"CRLF in the path":                {headTo("/ HTTP/1.1\r\nHost: a\r\n\r\n" + behind), "", false},
		"a space in the path":             {headTo("/a HTTP/1.1"), "", false},
		"CRLF in the method":              {[][2]string{{":method", "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET"}, {":scheme", "http"}, {":path", "/"}, {":authority", "a"}}, "", false},
		"CRLF in the authority":           {[][2]string{{":method", "GET"}, {":scheme", "http"}, {":path", "/"}, {":authority", "a\r\nx: y"}}, "", false},
		"the authority as Host":           {field("host", "a"), "", true},
		"another Host":                    {field("host", "b"), "", false},
		"two Hosts":                       {append(field("host", "a"), [2]string{"host", "b"}), "", false},
		"two paths":                       {append(headTo("/"), [2]string{":path", "/b"}), "", false},
		"a pseudo field behind others":    {append(field("x-a", "b"), [2]string{":path", "/b"}), "", false},
		"an unknown pseudo field":         {append(headTo("/"), [2]string{":x", "b"}), "", false},
	} {
		t.Run(name, func(t *testing.T) {
			k := attackOver(t, addr)
			defer k.c.Close()
			k.send(1, c.body == "", c.head)
			if c.body != "" {
				k.fr.WriteData(1, true, []byte(c.body))
			}
			k.w.Flush()
			for over := false; !over; {
				f, err := k.fr.ReadFrame()
				if err != nil {
					break
				}
				switch f := f.(type) {
				case *h2.HeadersFrame:
					over = f.StreamEnded()
				case *h2.DataFrame:
					over = f.StreamEnded()
				case *h2.RSTStreamFrame, *h2.GoAwayFrame:
					over = true
				}
			}
			// Another request on the upstream's connection would meet what was left there.
			if r, err := http.Get("http://" + addr + "/after"); err != nil || r.StatusCode != 200 {
				t.Errorf("the next request: %v %v", r, err)
			} else {
				r.Body.Close()
			}
			var paths []string
			for _, v := range w.take() {
				paths = append(paths, v.path)
				if len(v.header["Transfer_encoding"])+len(v.header["X-A"]) > 0 && !c.reaches {
					t.Errorf("the upstream saw %q", v)
				}
			}
			want := "/after"
			if c.reaches {
				want = "/ /after"
			}
			if got := strings.Join(paths, " "); got != want {
				t.Errorf("the upstream saw %q, want %q", got, want)
			}
		})
	}
	http.DefaultClient.CloseIdleConnections()
}
