package tap

import (
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/meshtest/certs"
)

// recorder notes what is written through it.
type recorder struct {
	net.Conn
	note func([]byte)
}

func (r recorder) Write(b []byte) (int, error) {
	r.note(b)
	return r.Conn.Write(b)
}

func TestKinds(t *testing.T) {
	client, server := netip.MustParseAddrPort("10.0.0.1:40000"), netip.MustParseAddrPort("10.0.0.2:8080")
	cert := certs.New(t, "cluster.local").Material("a", "b").Certificate
	for want, version := range map[string]uint16{"TLS 1.3": tls.VersionTLS13, "TLS 1.2": tls.VersionTLS12} {
		var c Capture
		a, b := net.Pipe()
		a.SetDeadline(time.Now().Add(10 * time.Second))
		b.SetDeadline(time.Now().Add(10 * time.Second))
		done := make(chan error, 1)
		var toServer, toClient []byte
		go func() {
			s := tls.Server(recorder{b, func(p []byte) { toClient = append(toClient, p...) }}, &tls.Config{Certificates: []tls.Certificate{*cert}, MaxVersion: version})
			_, err := io.WriteString(s, "hello")
			done <- err
		}()
		tc := tls.Client(recorder{a, func(p []byte) { toServer = append(toServer, p...) }}, &tls.Config{InsecureSkipVerify: true})
		if _, err := io.ReadFull(tc, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		c.Add(client, server, toServer)
		c.Add(server, client, toClient)
		if got := c.Kinds(nil); !slices.Equal(got, []string{want}) {
			t.Errorf("kinds = %q, want %q alone", got, want)
		}
		c.Add(netip.MustParseAddrPort("10.0.0.1:40001"), server, []byte("GET / HTTP/1.1\r\n"))
		if got := c.Kinds(nil); !slices.Contains(got, "plain text") {
			t.Errorf("kinds = %q, want plain text among them", got)
		}
		if got := c.Kinds(func(src, _ netip.AddrPort) bool { return src.Port() == 40001 }); !slices.Equal(got, []string{want}) {
			t.Errorf("kinds without the plain flow = %q, want %q alone", got, want)
		}
	}
}

func TestAddFrame(t *testing.T) {
	frame := append(make([]byte, 12), 0x08, 0x00)
	ip := make([]byte, 20)
	ip[0], ip[3], ip[9] = 0x45, 20+20+4, 6
	copy(ip[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	tcp := make([]byte, 20)
	tcp[1], tcp[3], tcp[12] = 1, 2, 0x50
	frame = append(append(append(frame, ip...), tcp...), "GET "...)
	var c Capture
	c.AddFrame(frame)
	if got := c.Kinds(nil); !slices.Equal(got, []string{"plain text"}) {
		t.Errorf("kinds = %q", got)
	}
	for n := range frame { // a cut frame is passed over, never read past its end
		c.AddFrame(frame[:n])
	}
}
