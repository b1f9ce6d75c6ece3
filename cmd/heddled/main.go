// Command heddled is Heddle's control plane.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/heddle-mesh/heddle/internal/control"
	"github.com/heddle-mesh/heddle/internal/identity/ca"
)

func main() {
	cfg := control.Config{Stdin: os.Stdin, Version: version()}
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "Usage: heddled [flags] PATH...\n\nPATH is a file or directory with manifests, or - for standard input.\n\n")
		flag.PrintDefaults()
	}
	flag.StringVar(&cfg.StateDir, "state-dir", "/var/lib/heddled", "directory of the root key")
	flag.StringVar(&cfg.PlainAddr, "plain-address", "127.0.0.1:15010", "xDS without TLS or proof of identity; empty for none")
	flag.StringVar(&cfg.TLSAddr, "address", ":15012", "xDS and certificates with TLS; empty for none")
	flag.StringVar(&cfg.HTTPAddr, "http-address", ":15014", "metrics, readiness and debug pages; empty for none")
	flag.StringVar(&cfg.TrustDomain, "trust-domain", "cluster.local", "trust domain of all identities")
	flag.StringVar(&cfg.ClusterID, "cluster-id", "Kubernetes", "name of this cluster")
	tokenKey := flag.String("token-key", "", "file with the public key that service account tokens are checked with")
	level := slog.LevelInfo
	flag.TextVar(&level, "log-level", level, "debug, info, warn or error")
	flag.Parse()
	cfg.Sources = flag.Args()
	cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, cfg, *tokenKey); err != nil {
		fmt.Fprintln(os.Stderr, "heddled:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, cfg control.Config, tokenKey string) error {
	if tokenKey != "" {
		tokens, err := ca.NewVerifier(tokenKey, ca.Audience)
		if err != nil {
			return err
		}
		cfg.Tokens = tokens
	}
	return control.Run(ctx, cfg)
}

func version() string {
	info, _ := debug.ReadBuildInfo() // nil only in a program built without modules
	return info.Main.Version
}
