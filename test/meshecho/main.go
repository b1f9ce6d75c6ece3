// Command meshecho is the echo server and client that mesh scripts run in pods
// of the local mesh and of a cluster.
//
// In an image it stands for three more programs, so that what is written for
// those runs with it: without arguments, the Gateway API conformance suite's
// echo-basic, which takes its settings from the environment; with flags alone,
// Istio's test server; and under the name "client", Istio's test client.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/heddle-mesh/heddle/internal/meshtest/echo"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	args := os.Args[1:]
	if name := filepath.Base(os.Args[0]); name == "client" {
		args = append([]string{name}, args...)
	}
	if err := run(ctx, args); err != nil {
		fmt.Fprintln(os.Stderr, "meshecho:", err)
		os.Exit(1)
	}
}

// run is "serve KIND:PORT…", "get [flags] URL", "tcp [flags] HOST:PORT [LINE…]"
// "tap [flags] INTERFACE", "kill POD PROGRAM" or one of the other programs.
func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 0:
		return basic(ctx, os.Getenv)
	case strings.HasPrefix(args[0], "-"):
		return advanced(ctx, args)
	case args[0] == "client":
		return forward(ctx, args[1:])
	}
	if len(args) < 2 {
		return fmt.Errorf("usage: meshecho serve KIND:PORT… | get [flags] URL | tcp [flags] HOST:PORT [LINE…] | tap [flags] INTERFACE | kill POD PROGRAM")
	}
	client := echo.Client{Dial: (&net.Dialer{Timeout: 5 * time.Second}).DialContext}
	out := json.NewEncoder(os.Stdout)
	verb, fs := args[0], flag.NewFlagSet(args[0], flag.ContinueOnError)
	size := fs.Int64("size", 0, "bytes of body")
	timeout := fs.Duration("timeout", 10*time.Second, "of one request")
	switch verb {
	case "serve":
		s := server(os.Getenv)
		s.Ports = args[1:]
		return s.Run(ctx)
	case "get":
		var g echo.Get
		fs.StringVar(&g.Method, "method", "GET", "request method")
		fs.Func("h", "header `name: value`; may be repeated", func(s string) error { g.Header = append(g.Header, s); return nil })
		fs.IntVar(&g.Count, "n", 1, "how many requests")
		fs.IntVar(&g.Parallel, "parallel", 1, "how many at a time")
		fs.IntVar(&g.RPS, "rps", 0, "requests a second")
		fs.DurationVar(&g.For, "for", 0, "how long, with -rps")
		fs.StringVar(&g.Protocol, "proto", "", "h2, grpc or ws; HTTP/1.1 otherwise")
		fs.StringVar(&g.SNI, "sni", "", "server name to ask for with TLS")
		fs.StringVar(&g.Cert, "cert", "", "PEM of a certificate and its key to show")
		fs.BoolVar(&g.NoReuse, "no-reuse", false, "a connection for each request")
		fs.BoolVar(&g.KeepBytes, "body", false, "print bodies")
		if err := fs.Parse(args[1:]); err != nil {
			return err
		}
		g.URL, g.Size, g.Timeout = fs.Arg(0), *size, *timeout
		client.HTTP(ctx, g, func(r echo.Result) { out.Encode(r) })
		return nil
	case "tcp":
		wait := fs.Bool("wait", false, "let the server speak first")
		sni := fs.String("sni", "", "speak TLS and ask for this server name")
		if err := fs.Parse(args[1:]); err != nil || fs.NArg() < 1 {
			return fmt.Errorf("usage: meshecho tcp [flags] HOST:PORT [LINE…]")
		}
		return out.Encode(client.TCP(ctx, echo.Flow{Addr: fs.Arg(0), Lines: fs.Args()[1:], Size: *size, Wait: *wait, SNI: *sni, Timeout: *timeout}))
	case "kill":
		if len(args) != 3 {
			return fmt.Errorf("usage: meshecho kill POD PROGRAM")
		}
		return kill(args[1], args[2])
	case "tap":
		duration := fs.Duration("for", 2*time.Second, "how long to listen")
		if err := fs.Parse(args[1:]); err != nil {
			return err
		}
		kinds, err := sniff(ctx, fs.Arg(0), *duration)
		if err != nil {
			return err
		}
		return out.Encode(kinds)
	}
	return fmt.Errorf("%s is none of serve, get, tcp, tap, kill", verb)
}
