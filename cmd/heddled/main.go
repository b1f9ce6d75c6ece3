// Command heddled is Heddle's control plane.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/heddle-mesh/heddle/internal/control"
	"github.com/heddle-mesh/heddle/internal/control/flags"
)

func main() {
	cfg, err := flags.Parse(os.Args[1:], os.Environ(), version(), os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		err = control.Run(ctx, cfg)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "heddled:", err)
		os.Exit(1)
	}
}

func version() string {
	info, _ := debug.ReadBuildInfo() // nil only in a program built without modules
	return info.Main.Version
}
