package socket

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/meshtest/certs"
)

// The tests of Await hold Go's runtime poller and crypto/tls to the behaviour that it
// relies on.

// pair returns both ends of a connection over loopback.
func pair(t *testing.T) (near *Conn, far net.Conn) {
	t.Helper()
	dialled, taken := accepted(t, System{}, listen(t, System{}, "127.0.0.1:0"), netip.Addr{})
	near = taken.(*Conn)
	if err := near.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return near, dialled
}

// TestAwaitMissesNoInput lets the other side write at every point of a turn: what
// comes after a read that emptied the socket, and before the wait, has to wake it.
func TestAwaitMissesNoInput(t *testing.T) {
	near, far := pair(t)
	const rounds = 2000
	buf := make([]byte, 64)
	got := 0
	if _, err := far.Write(buf[:1]); err != nil {
		t.Fatal(err)
	}
	err := near.Await(func() bool {
		for {
			n, err := near.Read(buf)
			if errors.Is(err, ErrAgain) {
				return false
			}
			if err != nil {
				t.Error(err)
				return true
			}
			if got += n; got == rounds {
				return true
			}
			if n == len(buf) {
				continue
			}
			// The socket counts as empty now, and gets the next byte before the wait.
			if _, err := far.Write(buf[:1]); err != nil {
				t.Error(err)
				return true
			}
		}
	})
	if err != nil || got != rounds {
		t.Errorf("%d bytes, %v", got, err)
	}
}

func TestAwaitEnds(t *testing.T) {
	for name, end := range map[string]func(near *Conn, far net.Conn){
		"by its deadline":     func(near *Conn, _ net.Conn) { near.SetReadDeadline(time.Unix(1, 0)) },
		"by Close":            func(near *Conn, _ net.Conn) { go near.Close() },
		"by the other side":   func(_ *Conn, far net.Conn) { far.Close() },
		"by half of the same": func(_ *Conn, far net.Conn) { far.(*Conn).CloseWrite() },
	} {
		t.Run(name, func(t *testing.T) {
			near, far := pair(t)
			turns := 0
			var read error
			err := near.Await(func() bool {
				_, read = near.Read(make([]byte, 1))
				if turns++; turns == 1 {
					end(near, far)
				}
				return !errors.Is(read, ErrAgain)
			})
			if err == nil {
				err = read
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.EOF) {
				t.Errorf("ended with %v", err)
			}
		})
	}
}

// TestEndThatCameWithBytesIsSeenLater is about the one thing that Await may miss.
func TestEndThatCameWithBytesIsSeenLater(t *testing.T) {
	near, far := pair(t)
	turns := 0
	buf := make([]byte, 16)
	err := near.Await(func() bool {
		if turns++; turns == 1 {
			if _, err := near.Read(buf); !errors.Is(err, ErrAgain) {
				t.Errorf("read of nothing: %v", err)
			}
			far.Write([]byte("x"))
			far.(*Conn).CloseWrite()
			return false
		}
		for {
			n, err := near.Read(buf)
			if errors.Is(err, ErrAgain) {
				near.SetReadDeadline(time.Unix(1, 0))
				return false
			}
			if n == 0 {
				return true
			}
		}
	})
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	near.SetReadDeadline(time.Now().Add(10 * time.Second))
	if err := near.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := near.Read(buf); !errors.Is(err, io.EOF) {
		t.Errorf("Read: %v, want the end", err)
	}
	if !near.HungUp() {
		t.Error("HungUp does not know")
	}
}

func TestHungUpSeesTheEndBehindBytes(t *testing.T) {
	near, far := pair(t)
	if near.HungUp() {
		t.Error("hung up at once")
	}
	far.Write([]byte("unread"))
	far.Close()
	near.Await(func() bool { return near.HungUp() }) // until the kernel has delivered it
	if !near.HungUp() {
		t.Error("the end was not seen")
	}
}

// TestTLSGoesOnAfterAnInterruptedRead feeds a TLS connection one byte of a record at a
// time: its Read has to return ErrAgain between them, and lose nothing.
func TestTLSGoesOnAfterAnInterruptedRead(t *testing.T) {
	near, far := pair(t)
	ca := certs.New(t, "cluster.local")
	material := ca.Source("ns", "sa").Current()
	server := tls.Server(near, &tls.Config{Certificates: []tls.Certificate{*material.Certificate}})
	slow := &bytewise{Conn: far}
	client := tls.Client(slow, &tls.Config{InsecureSkipVerify: true})
	shaken := make(chan error, 1)
	go func() { shaken <- client.Handshake() }()
	if err := server.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-shaken; err != nil {
		t.Fatal(err)
	}
	const text = "two records of one turn each, in pieces"
	slow.keep = true
	client.Write([]byte(text))
	client.Write([]byte(text))
	var got []byte
	again, buf := 0, make([]byte, 256)
	err := server.NetConn().(*Conn).Await(func() bool {
		for {
			n, err := server.Read(buf)
			got = append(got, buf[:n]...)
			if errors.Is(err, ErrAgain) {
				again++
				return !slow.next(t)
			}
			if err != nil {
				t.Error(err)
				return true
			}
		}
	})
	if err != nil || string(got) != text+text || again < len(got) {
		t.Errorf("got %q, %v, after %d interruptions", got, err, again)
	}
}

// bytewise keeps what is written and sends a byte of it at a time.
type bytewise struct {
	net.Conn
	keep bool
	kept bytes.Buffer
}

func (b *bytewise) Write(p []byte) (int, error) {
	if b.keep {
		return b.kept.Write(p)
	}
	return b.Conn.Write(p)
}

// next sends one byte and reports whether there was one.
func (b *bytewise) next(t *testing.T) bool {
	if b.kept.Len() == 0 {
		return false
	}
	if _, err := b.Conn.Write(b.kept.Next(1)); err != nil {
		t.Error(err)
	}
	return true
}

func TestReadAndWriteAllocateNothing(t *testing.T) {
	near, far := pair(t)
	buf := make([]byte, 64)
	if n := testing.AllocsPerRun(100, func() {
		far.Write(buf)
		io.ReadFull(near, buf)
		near.Await(func() bool { near.Write(buf); return true })
		io.ReadFull(far, buf)
		near.Quiet()
	}); n > 1 { // the closure of the test
		t.Errorf("%v allocations", n)
	}
}

// TestLongWriteWaits fills the socket's buffers from inside and outside of Await.
func TestLongWriteWaits(t *testing.T) {
	for name, write := range map[string]func(c *Conn, p []byte) (n int, err error){
		"outside": func(c *Conn, p []byte) (int, error) { return c.Write(p) },
		"inside": func(c *Conn, p []byte) (n int, err error) {
			c.Await(func() bool { n, err = c.Write(p); return true })
			return n, err
		},
	} {
		t.Run(name, func(t *testing.T) {
			near, far := pair(t)
			p := bytes.Repeat([]byte("0123456789"), 1<<20)
			read := make(chan int64)
			go func() {
				n, _ := io.Copy(io.Discard, io.LimitReader(far, int64(len(p))))
				read <- n
			}()
			if n, err := write(near, p); n != len(p) || err != nil {
				t.Errorf("wrote %d, %v", n, err)
			}
			if n := <-read; n != int64(len(p)) {
				t.Errorf("read %d", n)
			}
		})
	}
}

func TestOfFindsTheSocketBelow(t *testing.T) {
	near, _ := pair(t)
	if got := Of(tls.Server(near, &tls.Config{})); got != near {
		t.Errorf("below TLS: %v", got)
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if got := Of(a); got != nil {
		t.Errorf("below a pipe: %v", got)
	}
	if got := Wrap(a); got != a {
		t.Errorf("a pipe was wrapped: %v", got)
	}
}
