package mtls

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/heddle-mesh/heddle/internal/meshtest/certs"
)

func TestFrameOnTheWire(t *testing.T) {
	if got := hex.EncodeToString(AppendFrame([]byte{0xff}, []byte("ab"))); got != "ff"+"3d230467"+"00000002"+"6162" {
		t.Errorf("frame = %s", got)
	}
}

func TestExchangeOverTLSLeavesTheStreamAlone(t *testing.T) {
	ca := certs.New(t, domain)
	p := serverTLS()
	p.ALPN = []string{PeerExchange}
	cp := clientTLS()
	cp.ALPN = p.ALPN
	l := mustConnect(t, pipe, ClientConfig(ca.Source("default", "a"), cp), ServerConfig(ca.Source("default", "b"), p))
	deadline := time.Now().Add(time.Minute)
	var wg sync.WaitGroup
	talk := func(conn net.Conn, client bool, own, want, after, wantAfter string) {
		peer, err := Exchange(conn, []byte(own), client, deadline)
		if err != nil || string(peer) != want {
			t.Errorf("client %v: %q, %v; want %q", client, peer, err, want)
			return
		}
		if _, err := io.WriteString(conn, after); err != nil {
			t.Error(err)
		}
		got := make([]byte, len(wantAfter))
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != wantAfter {
			t.Errorf("client %v: %q follows, %v; want %q", client, got, err, wantAfter)
		}
	}
	wg.Go(func() { talk(l.client, true, "from client", "", "ping", "+OK server") })
	wg.Go(func() { talk(l.server, false, "", "from client", "+OK server", "ping") })
	wg.Wait()
}

func TestExchangeGivesUpAtTheDeadline(t *testing.T) {
	for name, say := range map[string]string{
		"silent":       "",
		"half header":  "\x3d\x23\x04\x67",
		"half a frame": "\x3d\x23\x04\x67\x00\x00\x00\x05ab",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conn, peer := pipe(t)
				defer conn.Close()
				defer peer.Close()
				if _, err := io.WriteString(peer, say); err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				_, err := Exchange(conn, []byte("own"), false, start.Add(3*time.Second))
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					if ne, ok := errors.AsType[net.Error](err); !ok || !ne.Timeout() {
						t.Errorf("err = %v, want a timeout", err)
					}
				}
				if got := time.Since(start); got != 3*time.Second {
					t.Errorf("gave up after %v", got)
				}
			})
		})
	}
}

func TestReadFrameRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		in   string
		want error
	}{
		"nothing":       {"", io.EOF},
		"HTTP":          {"GET / HTTP/1.1\r\n\r\n", ErrNoExchange},
		"magic swapped": {"\x67\x04\x23\x3d\x00\x00\x00\x00", ErrNoExchange},
		"cut header":    {"\x3d\x23\x04", io.ErrUnexpectedEOF},
		"no body":       {"\x3d\x23\x04\x67\x00\x00\x00\x05", io.ErrUnexpectedEOF},
		"cut body":      {"\x3d\x23\x04\x67\x00\x00\x00\x05ab", io.ErrUnexpectedEOF},
		"one too long":  {"\x3d\x23\x04\x67\x00\x01\x00\x01", ErrFrameTooLong},
		"4 GiB":         {"\x3d\x23\x04\x67\xff\xff\xff\xff", ErrFrameTooLong},
	} {
		t.Run(name, func(t *testing.T) {
			if body, err := ReadFrame(strings.NewReader(tt.in)); !errors.Is(err, tt.want) {
				t.Errorf("%q, %v; want %v", body, err, tt.want)
			}
		})
	}
}

func TestFrameLengthLimitIsExact(t *testing.T) {
	body := bytes.Repeat([]byte("x"), MaxFrame)
	var b bytes.Buffer
	if err := WriteFrame(&b, body); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadFrame(&b); err != nil || !bytes.Equal(got, body) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if err := WriteFrame(&b, append(body, 'x')); !errors.Is(err, ErrFrameTooLong) || b.Len() != 0 {
		t.Errorf("err = %v, %d bytes written", err, b.Len())
	}
}

// FuzzReadFrame: what is read is what AppendFrame makes, and not a byte beyond
// is taken.
func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{})
	f.Add(AppendFrame(nil, []byte("body")))
	f.Add(append(AppendFrame(nil, nil), "rest"...))
	f.Add([]byte("\x3d\x23\x04\x67\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		body, err := ReadFrame(r)
		if err != nil {
			return
		}
		if again := AppendFrame(nil, body); !bytes.Equal(again, in[:len(in)-r.Len()]) {
			t.Errorf("read %q from %q", body, in)
		}
	})
}
