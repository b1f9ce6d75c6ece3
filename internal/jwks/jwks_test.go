package jwks

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const keys = `{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}`

// start runs a fetcher whose connections all lead to one handler, in memory.
func start(t *testing.T, h http.HandlerFunc) (*Fetcher, chan [2]string) {
	t.Helper()
	heard := make(chan [2]string, 10)
	f, err := New(Config{
		Log:    slog.New(slog.DiscardHandler),
		OnKeys: func(_ context.Context, source, keys string) { heard <- [2]string{source, keys} },
		Dial: func(context.Context, string, string) (net.Conn, error) {
			client, server := net.Pipe()
			go (&http.Server{Handler: h}).Serve(&once{c: server, done: make(chan struct{})})
			return client, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return f, heard
}

// once is a listener with one connection.
type once struct {
	c    net.Conn
	done chan struct{}
}

func (o *once) Accept() (net.Conn, error) {
	if c := o.c; c != nil {
		o.c = nil
		return c, nil
	}
	return nil, io.EOF
}
func (o *once) Close() error   { return nil }
func (o *once) Addr() net.Addr { return &net.TCPAddr{} }

func TestKeysAreKeptFreshAndStayWhileFetchingFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		f, heard := start(t, func(w http.ResponseWriter, r *http.Request) {
			switch n := calls.Add(1); {
			case n <= 2: // not yet
				w.WriteHeader(503)
			case n == 4:
				io.WriteString(w, `{"keys":[]}`)
			case n == 5:
				io.WriteString(w, strings.Repeat(" ", maxBody)+keys)
			case n < 7:
				io.WriteString(w, keys)
			default:
				io.WriteString(w, strings.Replace(keys, "RSA", "EC", 1))
			}
		})
		f.Want([]string{"http://issuer/keys"})
		f.Want([]string{"http://issuer/keys"}) // no second fetcher comes of it
		time.Sleep(4 * time.Second)            // 1 s and 2 s after two failures
		if got := <-heard; got != [2]string{"http://issuer/keys", keys} || calls.Load() != 3 {
			t.Errorf("%v after %d calls", got, calls.Load())
		}
		time.Sleep(refresh + 10*time.Second) // two bad answers and the same keys again
		if len(heard) != 0 || calls.Load() != 6 {
			t.Errorf("%d are told after %d calls", len(heard), calls.Load())
		}
		time.Sleep(refresh)
		if got := <-heard; !strings.Contains(got[1], "EC") {
			t.Errorf("the new keys are %v", got)
		}
		f.Want(nil)
		before := calls.Load()
		time.Sleep(2 * refresh)
		if calls.Load() != before {
			t.Error("what nobody wants is fetched")
		}
	})
}

func TestAnIssuerTellsWhereItsKeysAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, heard := start(t, func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/.well-known/openid-configuration":
				io.WriteString(w, `{"jwks_uri":"http://elsewhere/k"}`)
			case "/k":
				io.WriteString(w, keys)
			}
		})
		f.Want([]string{OpenID + "http://issuer/"})
		if got := <-heard; got[1] != keys || got[0] != OpenID+"http://issuer/" {
			t.Errorf("%v", got)
		}
	})
}

// TestBlockedAddressesAreNotDialled goes by the address that is dialled, whatever
// name, or redirect, led there.
func TestBlockedAddressesAreNotDialled(t *testing.T) {
	called := false
	inner := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { called = true; io.WriteString(w, keys) }))
	defer inner.Close()
	f, err := New(Config{OnKeys: func(context.Context, string, string) {}, Log: slog.New(slog.DiscardHandler), Blocked: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.fetch(t.Context(), strings.Replace(inner.URL, "127.0.0.1", "localhost", 1)); err == nil || !strings.Contains(err.Error(), "is blocked") || called {
		t.Errorf("%v", err)
	}
	for _, bad := range []string{"file:///etc/passwd", "gopher://x", "://"} {
		if _, err := f.fetch(t.Context(), bad); err == nil {
			t.Errorf("%s is fetched", bad)
		}
	}
}

func TestRedirectsEnd(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/again", http.StatusFound) }))
	defer s.Close()
	f, err := New(Config{OnKeys: func(context.Context, string, string) {}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.fetch(t.Context(), s.URL); err == nil || !strings.Contains(err.Error(), "too many redirects") {
		t.Errorf("%v", err)
	}
}
