package mtls

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/heddle-mesh/heddle/internal/meshtest/certs"
)

// transports returns both ends of a connection over kernel sockets, after the
// handshake, ready for batches.
func transports(t *testing.T) (client, server *tls.Conn, below *Transport) {
	t.Helper()
	ca := certs.New(t, domain)
	c, s := loopback(t)
	client = Client(c, ClientConfig(ca.Source("default", "a"), clientTLS()))
	server = Server(s, ServerConfig(ca.Source("default", "b"), serverTLS()))
	t.Cleanup(func() { client.Close(); server.Close() })
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := client.Handshake(); err != nil {
			t.Error(err)
		}
	})
	if err := server.Handshake(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	below = server.NetConn().(*Transport)
	if err := below.Bulk(s.(*net.TCPConn)); err != nil {
		t.Fatal(err)
	}
	return client, server, below
}

func TestEagerReadDoesNotWaitAndLosesNothing(t *testing.T) {
	client, server, below := transports(t)
	// Half a record must survive the question whether the other half is there.
	want := bytes.Repeat([]byte("half a record at a time "), 4000)
	wire := client.NetConn().(*Transport)
	b := make([]byte, 4096)
	below.Eager(true)
	if n, err := server.Read(b); n > 0 || !errors.Is(err, ErrAgain) {
		t.Errorf("nothing was sent, and Read = %d, %v; want %v", n, err, ErrAgain)
	}
	go func() {
		wire.Conn = cutter{wire.Conn}
		if _, err := client.Write(want); err != nil {
			t.Error(err)
		}
		client.CloseWrite()
	}()
	var got []byte
	for {
		n, err := server.Read(b)
		got = append(got, b[:n]...)
		if errors.Is(err, ErrAgain) {
			continue
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, want the %d that were sent", len(got), len(want))
	}
}

// cutter writes in pieces that no record ends with.
type cutter struct{ net.Conn }

func (c cutter) Write(b []byte) (n int, err error) {
	for len(b) > 0 && err == nil {
		var m int
		m, err = c.Conn.Write(b[:min(len(b), 1009)])
		b, n = b[m:], n+m
	}
	return n, err
}

func TestRecordsThatFollowAtOnceLeaveTogether(t *testing.T) {
	client, server, below := transports(t)
	want := bytes.Repeat([]byte("x"), 3*100)
	for i := range 3 {
		below.More(i < 2)
		if _, err := server.Write(want[:100]); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(client, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %q, %v", got, err)
	}
}

// A handshake that waits for its client must not keep others from the processor.
func TestHandshakeGivesItsTurnBackWhileItWaits(t *testing.T) {
	ca := certs.New(t, domain)
	turns := make(Turns, 1)
	config := ServerConfig(ca.Source("default", "b"), serverTLS())
	var waiting sync.WaitGroup
	silent, accepted := loopback(t)
	waiting.Go(func() {
		if err := turns.Handshake(Server(accepted, config)); err == nil {
			t.Error("a client that said nothing is through")
		}
	})
	for range 3 {
		c, s := loopback(t)
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := Client(c, ClientConfig(ca.Source("default", "a"), clientTLS())).Handshake(); err != nil {
				t.Error(err)
			}
		})
		if err := turns.Handshake(Server(s, config)); err != nil {
			t.Error(err)
		}
		wg.Wait()
		c.Close()
		s.Close()
	}
	silent.Close()
	waiting.Wait()
	if len(turns) != 0 {
		t.Errorf("%d turns were not given back", len(turns))
	}
}
