package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"time"

	"github.com/heddle-mesh/heddle/internal/meshtest/echo"
)

// server is an echo server that listens on all addresses, and says of itself
// what the environment does.
func server(env func(string) string) echo.Server {
	host, _ := os.Hostname() // the last of three places for a name, and no reason not to serve
	return echo.Server{
		Pod:       cmp.Or(env("POD_NAME"), env("HOSTNAME"), host),
		Namespace: env("NAMESPACE"), Ingress: env("INGRESS_NAME"), Service: env("SERVICE_NAME"), Version: env("VERSION"),
		Listen: func(ctx context.Context, port uint16) (net.Listener, error) {
			return new(net.ListenConfig).Listen(ctx, "tcp", fmt.Sprintf(":%d", port))
		},
	}
}

// basic serves as the conformance suite's echo-basic does: HTTP, HTTP/2 without
// TLS, and HTTPS if it is given a certificate; or gRPC alone.
func basic(ctx context.Context, env func(string) string) error {
	for _, kind := range []string{"TCP_ECHO_SERVER", "UDP_ECHO_SERVER"} {
		if env(kind) != "" {
			return fmt.Errorf("%s: this echo server has no such kind", kind)
		}
	}
	s := server(env)
	s.Ports = []string{"http:" + cmp.Or(env("HTTP_PORT"), "3000")}
	key := env("TLS_SERVER_PRIVKEY")
	if env("GRPC_ECHO_SERVER") != "" {
		key = env("TLS_SERVER_PRIV_KEY") // another name for the same
	} else {
		s.Ports = append(s.Ports, "h2:"+cmp.Or(env("H2C_PORT"), "3001"))
	}
	if cert := env("TLS_SERVER_CERT"); cert != "" && key != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return err
		}
		s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
		if ca := env("TLS_CLIENT_CACERTS"); ca != "" {
			text, err := os.ReadFile(ca)
			if err != nil {
				return err
			}
			s.TLS.ClientCAs, s.TLS.ClientAuth = x509.NewCertPool(), tls.VerifyClientCertIfGiven
			if !s.TLS.ClientCAs.AppendCertsFromPEM(text) {
				return fmt.Errorf("TLS_CLIENT_CACERTS: no certificate in %s", ca)
			}
		}
		s.Ports = append(s.Ports, "https:"+cmp.Or(env("HTTPS_PORT"), "8443"))
	}
	return s.Run(ctx)
}

// advanced serves as Istio's test server does. Its image brings no certificate:
// where the files are not there, the server signs one itself.
func advanced(ctx context.Context, args []string) error {
	var http, grpc, tcp, first, secure []string
	flags := flag.NewFlagSet("meshecho", flag.ContinueOnError)
	list := func(l *[]string, name, usage string) {
		flags.Func(name, usage+"; may be repeated", func(s string) error { *l = append(*l, s); return nil })
	}
	list(&http, "port", "port of HTTP")
	list(&grpc, "grpc", "port of gRPC")
	list(&tcp, "tcp", "port of TCP")
	list(&first, "server-first", "which of -tcp are to speak first")
	list(&secure, "tls", "which of -port and -grpc are to be of TLS")
	crt, key := flags.String("crt", "", "file with the certificate"), flags.String("key", "", "file with its key")
	s := server(os.Getenv)
	flags.StringVar(&s.Version, "version", s.Version, "version to answer")
	if err := flags.Parse(args); err != nil {
		return err
	}
	for _, p := range append(http, grpc...) {
		kind := "http:"
		if slices.Contains(secure, p) {
			kind = "https:"
		}
		s.Ports = append(s.Ports, kind+p)
	}
	for _, p := range tcp {
		kind := "tcp:"
		if slices.Contains(first, p) {
			kind = "greet:"
		}
		s.Ports = append(s.Ports, kind+p)
	}
	if len(secure) > 0 {
		pair, err := tls.LoadX509KeyPair(*crt, *key)
		switch {
		case err == nil:
			s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	return s.Run(ctx)
}

// forward is Istio's test client.
func forward(ctx context.Context, args []string) error {
	f := echo.Forward{Dial: (&net.Dialer{Timeout: 5 * time.Second}).DialContext}
	fs := flag.NewFlagSet("client", flag.ContinueOnError)
	fs.StringVar(&f.Method, "method", "GET", "request method")
	fs.IntVar(&f.Count, "count", 1, "how many requests")
	fs.DurationVar(&f.Timeout, "timeout", 15*time.Second, "of one request")
	fs.StringVar(&f.Message, "msg", "", "message of gRPC")
	fs.BoolVar(&f.HTTP2, "http2", false, "HTTP/2, without TLS too")
	fs.Func("H", "header `name:value`; may be repeated", func(s string) error { f.Header = append(f.Header, s); return nil })
	// The URL may stand before flags.
	for len(args) > 0 {
		if err := fs.Parse(args); err != nil {
			return err
		}
		if args = fs.Args(); len(args) > 0 {
			if f.URL != "" {
				return fmt.Errorf("client: two URLs, %s and %s", f.URL, args[0])
			}
			f.URL, args = args[0], args[1:]
		}
	}
	if f.URL == "" {
		return errors.New("usage: client [flags] URL")
	}
	return f.Run(ctx, os.Stdout)
}
