package echo

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// acceptKey answers a key. Source: RFC 6455 section 4.2.2.
func acceptKey(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// webSocket takes a connection over. After the handshake it sends back what it gets,
// byte for byte: framing is for programs, and no proxy looks at it.
func (s Server) webSocket(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("connection", "upgrade")
	h.Set("upgrade", "websocket")
	h.Set("sec-websocket-accept", acceptKey(r.Header.Get("sec-websocket-key")))
	h.Set("x-echo-pod", s.Pod)
	w.WriteHeader(http.StatusSwitchingProtocols)
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	// Hijacked connections are not the server's any more, which ends them otherwise.
	stop := context.AfterFunc(r.Context(), func() { c.Close() })
	defer stop()
	io.Copy(c, rw)
}

// oneSocket opens a WebSocket, and checks that what it sends comes back.
func (c Client) oneSocket(ctx context.Context, g Get) Result {
	ctx, cancel := context.WithTimeout(ctx, g.Timeout)
	defer cancel()
	u, err := url.Parse(g.URL)
	if err != nil {
		return Result{Error: err.Error()}
	}
	addr := u.Host
	if u.Port() == "" {
		addr = net.JoinHostPort(u.Hostname(), "80")
	}
	conn, err := c.Dial(ctx, "tcp", addr)
	if err != nil {
		return Result{Error: reason(err)}
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(g.Timeout))
	key := make([]byte, 16)
	rand.Read(key)
	text := base64.StdEncoding.EncodeToString(key)
	var b strings.Builder
	fmt.Fprintf(&b, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n", u.RequestURI(), u.Host, text)
	for _, h := range g.Header {
		b.WriteString(h + "\r\n")
	}
	if _, err := io.WriteString(conn, b.String()+"\r\n"); err != nil {
		return Result{Error: reason(err)}
	}
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return Result{Error: reason(err)}
	}
	r := Result{Status: resp.StatusCode, Header: flat(resp.Header)}
	if r.Status != http.StatusSwitchingProtocols {
		return r
	}
	if r.Header["sec-websocket-accept"] != acceptKey(text) {
		r.Error = "the key was not answered"
		return r
	}
	for i := range streamMessages {
		msg := fmt.Sprintf("message %d", i)
		got := make([]byte, len(msg))
		if _, err = io.WriteString(conn, msg); err == nil {
			_, err = io.ReadFull(in, got)
		}
		if err != nil || string(got) != msg {
			r.Error = fmt.Sprintf("%q came back as %q, %v", msg, got, err)
			return r
		}
		r.Messages++
	}
	return r
}
