package filter

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
)

const (
	attackers = 64
	// mayHold is what an attacker's connection may make the proxy keep: buffers of
	// both sides and the largest head.
	mayHold = 256 << 10
)

// attack is what a client may do to a connection: it says first, and then the same as
// often as it is let, up to times.
type attack struct {
	first, then string
	times       int
}

const chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

var attacks = map[string]attack{
	"heads that never end":                {"GET / HTTP/1.1\r\nHost: a\r\n", "X-Y: z\r\n", 1 << 20},
	"a line that never ends":              {"GET /", "aaaaaaaa", 1 << 20},
	"a header that never ends":            {"GET / HTTP/1.1\r\nHost: a\r\nX: ", "aaaaaaaa", 1 << 20},
	"a chunk extension that never ends":   {chunked + "1;", "aaaaaaaa", 1 << 20},
	"trailers that never end":             {chunked + "0\r\n", "X-Y: z\r\n", 1 << 20},
	"chunks of one byte":                  {"POST /swallow HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n", 1 << 18},
	"requests whose answers are not read": {"", "GET /large HTTP/1.1\r\nHost: a\r\n\r\n", 1 << 16},
	"bodies of which nobody wants anything": {"",
		"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 1099511627776\r\n\r\n" + strings.Repeat("x", 64<<10), 64},
	"empty lines":                  {"", "\r\n", 1 << 20},
	"noise":                        {"", "GET\x00\xff\r\r\n\n", 1 << 20},
	"connections that say nothing": {"G", "", 0},
}

// run writes until the proxy has cut c off or nothing more is taken. block is some of
// what is repeated, and how often it is in there.
func (a attack) run(c net.Conn, block []byte, in int) {
	_, err := io.WriteString(c, a.first)
	for n := a.times; n > 0 && err == nil; n -= in {
		_, err = c.Write(block)
	}
}

// While others attack, innocent requests are answered, and what the attackers make
// the proxy hold is bounded.
func TestInnocentTrafficGoesOnUnderAttack(t *testing.T) {
	large := bytes.Repeat([]byte("x"), 1<<20)
	for name, attack := range attacks {
		t.Run(name, func(t *testing.T) {
			addr := onSockets(t, func(w http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/large":
					w.Write(large)
				case "/swallow":
					io.Copy(io.Discard, r.Body)
				case "/early":
					w.WriteHeader(http.StatusForbidden)
				default:
					io.WriteString(w, "innocent")
				}
			}, upstream.Config{}, nil, nil, nil)
			// The attackers are of this process, too: what they write from is shared, and
			// made before.
			in := 1 + (32<<10)/max(1, len(attack.then))
			block := bytes.Repeat([]byte(attack.then), in)
			before := held()

			var conns []net.Conn
			var attacking, ended sync.WaitGroup
			for range attackers {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				conns = append(conns, c)
				attacking.Add(1)
				ended.Go(func() {
					attacking.Done()
					attack.run(c, block, in)
				})
			}
			attacking.Wait()
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for i := range 200 {
				resp, err := client.Get("http://" + addr + "/")
				if err != nil {
					t.Fatalf("innocent request %d: %v", i, err)
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != 200 || string(body) != "innocent" {
					t.Fatalf("innocent request %d: %d %q %v", i, resp.StatusCode, body, err)
				}
			}
			if grown := held() - before; grown > attackers*mayHold {
				t.Errorf("%d attackers make the proxy hold %d KiB", attackers, grown>>10)
			}
			for _, c := range conns {
				c.Close()
			}
			ended.Wait()
		})
	}
}

// held returns how many bytes of heap are in use.
func held() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}
