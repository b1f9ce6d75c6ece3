package filter

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/proxy/upstream"
)

// bursts is a client on the kernel's sockets and the application behind the proxy.
type bursts struct {
	*testing.T
	c *net.TCPConn
	r *bufio.Reader
}

func newBursts(t *testing.T, h http.HandlerFunc) *bursts {
	t.Helper()
	c, err := net.Dial("tcp", onSockets(t, h, upstream.Config{}, nil, nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return &bursts{t, c.(*net.TCPConn), bufio.NewReader(c)}
}

func (b *bursts) send(format string, args ...any) {
	b.Helper()
	if _, err := fmt.Fprintf(b.c, format, args...); err != nil {
		b.Fatal(err)
	}
}

func (b *bursts) want(body string) {
	b.Helper()
	r, err := http.ReadResponse(b.r, nil)
	if err != nil {
		b.Fatalf("%v, want %q", err, body)
	}
	got, err := io.ReadAll(r.Body)
	if string(got) != body || err != nil {
		b.Fatalf("got %q, %v, want %q", got, err, body)
	}
}

// echo answers with the path and what was sent.
func echo(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	fmt.Fprintf(w, "%s %s", r.URL.Path, body)
}

func TestRequestsThatCameTogetherAreAllServed(t *testing.T) {
	b := newBursts(t, echo)
	for round := range 3 {
		var all strings.Builder
		for i := range 50 {
			if i%3 == 0 {
				fmt.Fprintf(&all, "POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", i)
			} else {
				fmt.Fprintf(&all, "GET /%d HTTP/1.1\r\nHost: a\r\n\r\n", i)
			}
		}
		b.send("%s", all.String())
		for i := range 50 {
			if i%3 == 0 {
				b.want(fmt.Sprintf("/%d abc", i))
			} else {
				b.want(fmt.Sprintf("/%d ", i))
			}
		}
		b.send("GET /%d HTTP/1.1\r\nHost: a\r\n\r\n", round)
		b.want(fmt.Sprintf("/%d ", round))
	}
}

// TestRequestInPiecesLeavesTheBurst sends heads and bodies of which the proxy can not
// have all at once, since the rest is sent when the first part was acted on.
func TestRequestInPiecesLeavesTheBurst(t *testing.T) {
	half := make(chan struct{})
	b := newBursts(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			io.CopyN(w, r.Body, 3)
			half <- struct{}{}
		}
		io.Copy(w, r.Body)
	})
	for range 3 {
		b.send("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTT")
		b.want("")
		b.send("P/1.1\r\nHost: a\r\n\r\n") // its predecessor was answered
		b.want("")
	}
	// The last one: an answer that overtakes the end of its upload closes.
	b.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\none")
	<-half
	b.send("two")
	b.want("onetwo")
}

func TestClientThatHangsUpInABurstIsNoticed(t *testing.T) {
	began, gone := make(chan struct{}), make(chan struct{})
	b := newBursts(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(began)
			<-r.Context().Done() // the proxy gave up its request
			close(gone)
		}
	})
	for range 3 {
		b.send("GET /quick HTTP/1.1\r\nHost: a\r\n\r\n")
		b.want("")
	}
	b.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
	<-began
	b.c.Close()
	select {
	case <-gone:
	case <-time.After(20 * time.Second):
		t.Error("the request goes on")
	}
}

// TestEndThatComesWithARequestIsSeen is about clients that send and close their side
// at once, with the first request of a connection and with a later one.
func TestEndThatComesWithARequestIsSeen(t *testing.T) {
	for before := range 3 {
		b := newBursts(t, echo)
		for range before {
			b.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			b.want("/ ")
		}
		b.send("GET /last HTTP/1.1\r\nHost: a\r\n\r\n")
		b.c.CloseWrite()
		b.want("/last ")
		if _, err := b.r.ReadByte(); err != io.EOF {
			t.Errorf("after %d requests: %v, want the end", before, err)
		}
	}
}

func TestUpgradeInABurst(t *testing.T) {
	b := newBursts(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			return
		}
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
		io.Copy(c, rw)
	})
	for range 3 {
		b.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		b.want("")
	}
	b.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
	if r, err := http.ReadResponse(b.r, nil); err != nil || r.StatusCode != 101 {
		t.Fatalf("%v, %v", r, err)
	}
	b.send("through the tunnel")
	got := make([]byte, len("through the tunnel"))
	if _, err := io.ReadFull(b.r, got); err != nil || string(got) != "through the tunnel" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestBadRequestInABurstIsAnswered(t *testing.T) {
	b := newBursts(t, echo)
	for range 2 {
		b.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		b.want("/ ")
	}
	b.send("GET / HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n")
	r, err := http.ReadResponse(b.r, nil)
	if err != nil || r.StatusCode != 400 {
		t.Fatalf("%v, %v", r, err)
	}
	io.Copy(io.Discard, r.Body)
	if _, err := b.r.ReadByte(); err != io.EOF {
		t.Errorf("%v, want the end", err)
	}
}
