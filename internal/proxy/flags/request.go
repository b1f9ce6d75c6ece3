package flags

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// requestTimeout bounds a question to a server of the same pod.
const requestTimeout = 30 * time.Second

// Request asks a server of the same pod and prints its answer: the proxy's own
// admin pages, unless another port is named. It is how tools outside of the pod
// reach what listens on its loopback only, as Istio's "pilot-agent request".
func Request(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	set := flag.NewFlagSet("heddle-proxy request", flag.ContinueOnError)
	set.SetOutput(stderr)
	port := set.Int("debug-port", 15000, "port of 127.0.0.1 to ask")
	if err := set.Parse(args); err != nil {
		return err
	}
	rest := set.Args()
	if len(rest) < 2 || len(rest) > 3 {
		return errors.New("usage: heddle-proxy request [-debug-port PORT] METHOD PATH [BODY]")
	}
	body := ""
	if len(rest) == 3 {
		body = rest[2]
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	url := fmt.Sprintf("http://127.0.0.1:%d/%s", *port, strings.TrimPrefix(rest[1], "/"))
	req, err := http.NewRequestWithContext(ctx, strings.ToUpper(rest[0]), url, strings.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 400 {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return fmt.Errorf("%s: %s: %s", url, resp.Status, strings.TrimSpace(string(text)))
	}
	_, err = io.Copy(stdout, resp.Body)
	return err
}
