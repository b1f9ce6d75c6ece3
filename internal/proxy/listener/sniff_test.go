package listener

import (
	"bytes"
	"crypto/tls"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// clientHello returns the first flight of a real client.
func clientHello(tb testing.TB, cfg *tls.Config) []byte {
	tb.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go tls.Client(a, cfg).Handshake()
	buf := make([]byte, maxHello)
	n, err := b.Read(buf)
	if err != nil {
		tb.Fatal(err)
	}
	return buf[:n]
}

// fragment spreads a record's message over records of n bytes.
func fragment(record []byte, n int) []byte {
	var out []byte
	for part := range slices.Chunk(record[recordHeader:], n) {
		out = append(out, record[0], record[1], record[2], byte(len(part)>>8), byte(len(part)))
		out = append(out, part...)
	}
	return out
}

func TestClientHelloTellsItsNames(t *testing.T) {
	many := make([]string, 40)
	for i := range many {
		many[i] = strings.Repeat("x", i+1)
	}
	for _, test := range []struct {
		name string
		cfg  *tls.Config
		want hello
	}{
		{"all", &tls.Config{ServerName: "Reviews.Example.com", NextProtos: []string{"istio-http/1.1", "istio"}}, hello{"reviews.example.com", []string{"istio-http/1.1", "istio"}}},
		{"none", &tls.Config{InsecureSkipVerify: true}, hello{}},
		{"TLS 1.2", &tls.Config{ServerName: "a.b", MaxVersion: tls.VersionTLS12}, hello{"a.b", nil}},
		{"mesh name", &tls.Config{ServerName: "outbound_.5432_.v1_.db.default.svc.cluster.local"}, hello{"outbound_.5432_.v1_.db.default.svc.cluster.local", nil}},
		{"too many protocols", &tls.Config{ServerName: "a", NextProtos: many}, hello{"a", many[:maxALPN]}},
	} {
		t.Run(test.name, func(t *testing.T) {
			record := clientHello(t, test.cfg)
			for _, size := range []int{len(record), 1000, 100, 1} {
				b := fragment(record, size)
				if len(b) > maxHello {
					continue
				}
				got, _, v := parseHello(b)
				if v != present {
					t.Fatalf("in fragments of %d: verdict %d, want present", size, v)
				}
				if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(hello{})); diff != "" {
					t.Errorf("in fragments of %d (-want +got):\n%s", size, diff)
				}
			}
		})
	}
}

// TestEveryPrefixAsksForMore holds to the promise of need: nothing new before,
// something new, or the end, at it.
func TestEveryPrefixAsksForMore(t *testing.T) {
	record := clientHello(t, &tls.Config{ServerName: "a.example", NextProtos: []string{"h2"}})
	for _, b := range [][]byte{record, fragment(record, 50)} {
		looks := 0
		for have := 0; ; looks++ {
			_, need, v := parseHello(b[:have])
			if v == present {
				if have != len(b) {
					t.Errorf("present after %d of %d bytes", have, len(b))
				}
				break
			}
			if v != needMore || need <= have || need > len(b) {
				t.Fatalf("after %d of %d bytes: verdict %d, need %d", have, len(b), v, need)
			}
			for n := have; n < need; n++ {
				if _, again, v := parseHello(b[:n]); v != needMore || again > need {
					t.Fatalf("need was %d, but %d bytes gave verdict %d, need %d", need, n, v, again)
				}
			}
			have = need
		}
		if looks > 3*len(b)/50+4 {
			t.Errorf("%d looks at %d bytes", looks, len(b))
		}
	}
}

func TestWhatIsNoClientHello(t *testing.T) {
	record := clientHello(t, &tls.Config{ServerName: "a.example"})
	change := func(at int, to byte) []byte {
		b := bytes.Clone(record)
		b[at] = to
		return b
	}
	for _, test := range []struct {
		name string
		b    []byte
		want verdict
	}{
		{"nothing", nil, needMore},
		{"HTTP", []byte("G"), absent},
		{"other record type", []byte{23}, absent},
		{"SSL 2", []byte{0x80, 0x2e, 1}, absent},
		{"other major version", []byte{22, 2}, absent},
		{"other minor version", []byte{22, 3, 9}, absent},
		{"other handshake message", change(5, 2), absent},
		{"record without bytes", []byte{22, 3, 1, 0, 0, 1}, present},
		{"record that is too long", []byte{22, 3, 1, 0xff, 0xff, 1}, present},
		{"message that is too long", []byte{22, 3, 1, 0x20, 0, 1, 0xff, 0, 0}, present},
		{"message of many records that is too long", fragment(append(bytes.Clone(record[:recordHeader]), append([]byte{1, 0, 0x40, 1}, make([]byte, maxHello)...)...), 4000), present},
		{"lengths that do not fit", change(5+4+34, 0xff), present},
		{"records interleaved with others", append(fragment(record, 10)[:15], 23, 3, 1, 0, 1, 0), present},
	} {
		got, _, v := parseHello(test.b)
		if v != test.want || got.serverName != "" {
			t.Errorf("%s: verdict %d, name %q, want %d and no name", test.name, v, got.serverName, test.want)
		}
	}
}

func TestServerNameIsAHostName(t *testing.T) {
	for in, want := range map[string]string{
		"A.b": "a.b", "a b": "", "a\n": "", "": "", "ü": "", "a_b-c.9": "a_b-c.9", strings.Repeat("a", 256): "", "a\x00": "", "*.b": "", "[::1]": "",
	} {
		if got := hostName([]byte(in)); got != want {
			t.Errorf("hostName(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestHTTPIsRecognised(t *testing.T) {
	for _, test := range []struct {
		in    string
		want  string
		v     verdict
		early int // bytes after which the verdict is clear; 0: at the end
	}{
		{"GET / HTTP/1.1\r\n", http11, present, 15},
		{"GET / HTTP/1.0\n", http10, present, 0},
		{"\r\nPOST /a?b=c HTTP/1.1\r\nHost: x\r\n", http11, present, 23},
		{"OPTIONS * HTTP/1.1\r\n", http11, present, 19},
		{"CONNECT a:443 HTTP/1.1\r\n", http11, present, 23},
		{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00", http2, present, 24},
		{"PROPFIND http://a/ HTTP/1.1\r\n", http11, present, 28},
		{"GET /" + strings.Repeat("a", maxTarget) + "…", http11, present, 4 + maxTarget},
		{"GET /" + strings.Repeat("a", 100), "", needMore, 0},
		{"", "", needMore, 0},
		{"PRI", "", needMore, 0},
		{"GET", "", needMore, 0},
		{"GET / HTTP/1.1", "", needMore, 0},
		{"GET / HTTP/2.0\r\n", "", absent, 12},
		{"GET / HTTP/1.2\r\n", "", absent, 15},
		{"GET / HTTP/1.10\r\n", "", absent, 15},
		{"GET / FTP/1.1\r\n", "", absent, 7},
		{"GET /\r\n", "", absent, 6},
		{"GET  / HTTP/1.1\r\n", "", absent, 5},
		{" GET / HTTP/1.1\r\n", "", absent, 1},
		{"\x16\x03\x01", "", absent, 1},
		{"*1\r\n$4\r\nPING\r\n", "", absent, 3},
		{"SSH-2.0-OpenSSH_9.6\r\n", "", absent, 20},
		{"PING\r\n", "", absent, 5},
		{strings.Repeat("A", 100), "", absent, maxMethod + 1},
		{"\r\n\r\n\r\n", "", absent, 5},
		{"GET /\x00 HTTP/1.1\r\n", "", absent, 6},
	} {
		got, v := sniffHTTP([]byte(test.in))
		if got != test.want || v != test.v {
			t.Errorf("%.40q: %q, verdict %d, want %q, %d", test.in, got, v, test.want, test.v)
		}
		if test.v == needMore {
			continue
		}
		early := test.early
		if early == 0 {
			early = len(test.in)
		}
		for n := range len(test.in) + 1 {
			_, v := sniffHTTP([]byte(test.in[:n]))
			if n < early && v != needMore || n >= early && v != test.v {
				t.Errorf("%.40q: verdict %d after %d bytes, want a decision after %d", test.in, v, n, early)
				break
			}
		}
	}
}

func FuzzClientHello(f *testing.F) {
	record := clientHello(f, &tls.Config{ServerName: "reviews.example.com", NextProtos: []string{"h2", "http/1.1"}})
	f.Add(record, 7)
	f.Add(fragment(record, 100), 1)
	f.Add([]byte{22, 3, 1, 0, 0, 1}, 1)
	f.Fuzz(func(t *testing.T, b []byte, step int) {
		h, need, v := parseHello(b)
		if v == needMore && (need <= len(b) || need > maxHello) {
			t.Fatalf("%d bytes need %d", len(b), need)
		}
		if len(h.alpn) > maxALPN || h.serverName != hostName([]byte(h.serverName)) {
			t.Fatalf("bad names %+v", h)
		}
		if v == needMore {
			return
		}
		// The answer does not depend on how the bytes arrive.
		if step <= 0 || step > len(b) {
			step = 1
		}
		for n := 0; ; n = min(n+step, len(b)) {
			g, _, w := parseHello(b[:n])
			if w != needMore {
				if w != v || !cmp.Equal(g, h, cmp.AllowUnexported(hello{})) {
					t.Fatalf("%d bytes: %+v, verdict %d; all %d: %+v, %d", n, g, w, len(b), h, v)
				}
				return
			}
			if n == len(b) {
				t.Fatal("all bytes give a verdict, but not step by step")
			}
		}
	})
}

func FuzzSniffHTTP(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Add([]byte(preface))
	f.Add([]byte("\x16\x03\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, v := sniffHTTP(b)
		if (v == present) != (got != "") {
			t.Fatalf("protocol %q with verdict %d", got, v)
		}
		for n := range b {
			if g, w := sniffHTTP(b[:n]); w != needMore && (g != got || w != v) {
				t.Fatalf("%d bytes: %q, %d; all %d: %q, %d", n, g, w, len(b), got, v)
			}
		}
	})
}
