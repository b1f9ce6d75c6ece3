package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
)

// needed are the programs that are run, with their Debian packages. h2load is for
// scenarios with HTTP/2.
func needed() []struct{ path, pkg string } {
	return []struct{ path, pkg string }{
		{"nginx", "nginx"},
		{streamModule, "libnginx-mod-stream"},
		{"haproxy", "haproxy"},
		{"wrk", "wrk"},
		{"h2load", "nghttp2-client"},
	}
}

// streamModule is where Debian has nginx's support for TCP.
const streamModule = "/usr/lib/nginx/modules/ngx_stream_module.so"

// install gets what is missing. On a machine with an init system Debian starts the
// servers that it installs, on their own ports; they are in nobody's way here.
func install(ctx context.Context) error {
	var missing []string
	for _, n := range needed() {
		if _, err := exec.LookPath(n.path); err != nil {
			if _, err := os.Stat(n.path); err != nil {
				missing = append(missing, n.pkg)
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	for _, args := range [][]string{{"update", "-qq"}, append([]string{"install", "-y", "-qq", "--no-install-recommends"}, missing...)} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %v: %w: %s", args, err, tail(out))
		}
	}
	return nil
}
