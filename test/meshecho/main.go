// Command meshecho is the echo server and client that mesh scripts run in pods
// of the local mesh and of a cluster.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/heddle-mesh/heddle/internal/meshtest/echo"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "meshecho:", err)
		os.Exit(1)
	}
}

// run is "serve KIND:PORT…", "get [flags] URL", "tcp [flags] HOST:PORT [LINE…]"
// "tap [flags] INTERFACE" or "kill POD PROGRAM".
func run(ctx context.Context, args []string) error {
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
		return echo.Server{Pod: cmp.Or(os.Getenv("POD_NAME"), os.Getenv("HOSTNAME")), Ports: args[1:], Listen: func(ctx context.Context, port uint16) (net.Listener, error) {
			return new(net.ListenConfig).Listen(ctx, "tcp", fmt.Sprintf(":%d", port))
		}}.Run(ctx)
	case "get":
		var g echo.Get
		fs.StringVar(&g.Method, "method", "GET", "request method")
		fs.Func("h", "header `name: value`; may be repeated", func(s string) error { g.Header = append(g.Header, s); return nil })
		fs.IntVar(&g.Count, "n", 1, "how many requests")
		fs.IntVar(&g.Parallel, "parallel", 1, "how many at a time")
		fs.IntVar(&g.RPS, "rps", 0, "requests a second")
		fs.DurationVar(&g.For, "for", 0, "how long, with -rps")
		fs.StringVar(&g.Protocol, "proto", "", "h2, grpc or ws; HTTP/1.1 otherwise")
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
