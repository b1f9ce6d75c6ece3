// Command heddle-proxy is Heddle's data plane: a workload's sidecar, a gateway,
// or the init container that redirects a pod's traffic to its sidecar.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/heddle-mesh/heddle/internal/proxy/flags"
)

// version is set when a release is linked.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	// The first signal drains; a second one ends the process at once.
	context.AfterFunc(ctx, stop)
	err := flags.Main(ctx, os.Args[1:], os.Environ(), version, os.Stdout, os.Stderr)
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp):
		os.Exit(0)
	default:
		fmt.Fprintln(os.Stderr, "heddle-proxy:", err)
		os.Exit(1)
	}
}
