package filter

import (
	"bytes"
	"fmt"
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
	// both sides and the largest head; and what the attacker, of this process, too,
	// writes from.
	mayHold = 384 << 10
)

// attacks are what a client may do to a connection. Each writes as much as it can,
// and returns when the proxy has cut it off or nothing more is taken.
var attacks = map[string]func(c net.Conn){
	"heads that never end": func(c net.Conn) {
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n")
		repeat(c, "X-Y: z\r\n", 1<<20)
	},
	"a line that never ends": func(c net.Conn) {
		io.WriteString(c, "GET /")
		repeat(c, "aaaaaaaa", 1<<20)
	},
	"a header that never ends": func(c net.Conn) {
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\nX: ")
		repeat(c, "aaaaaaaa", 1<<20)
	},
	"a chunk extension that never ends": func(c net.Conn) {
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;")
		repeat(c, "aaaaaaaa", 1<<20)
	},
	"trailers that never end": func(c net.Conn) {
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
		repeat(c, "X-Y: z\r\n", 1<<20)
	},
	"chunks of one byte": func(c net.Conn) {
		io.WriteString(c, "POST /swallow HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
		repeat(c, "1\r\nx\r\n", 1<<18)
	},
	"requests whose answers are not read": func(c net.Conn) {
		repeat(c, "GET /large HTTP/1.1\r\nHost: a\r\n\r\n", 1<<16)
	},
	"bodies of which nobody wants anything": func(c net.Conn) {
		for range 64 {
			if _, err := fmt.Fprintf(c, "POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", 1<<40, strings.Repeat("x", 64<<10)); err != nil {
				return
			}
		}
	},
	"empty lines": func(c net.Conn) { repeat(c, "\r\n", 1<<20) },
	"noise":       func(c net.Conn) { repeat(c, "GET\x00\xff\r\r\n\n", 1<<20) },
	"connections that say nothing": func(c net.Conn) {
		io.WriteString(c, "G")
	},
}

// repeat writes s up to n times, with many in one call.
func repeat(c net.Conn, s string, n int) {
	block := bytes.Repeat([]byte(s), min(n, 1+(32<<10)/len(s)))
	for ; n > 0; n -= len(block) / len(s) {
		if _, err := c.Write(block); err != nil {
			return
		}
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
					attack(c)
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
