//go:build linux && heddle_root

package test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/heddle-mesh/heddle/internal/lab"
	"github.com/heddle-mesh/heddle/internal/meshtest/echo"
	"github.com/heddle-mesh/heddle/internal/meshtest/script"
)

// TestScriptsForReal plays the scripts on `heddle up`: real binaries, real
// sockets, one network namespace for each pod.
func TestScriptsForReal(t *testing.T) {
	bin := buildAll(t)
	eachScript(t, "B", func(t *testing.T, s *script.Script) {
		s.Run(t, newRealStage(t, bin))
	})
}

// buildAll builds the project's binaries and the echo program into a folder.
func buildAll(t *testing.T) string {
	t.Helper()
	bin := t.TempDir()
	cmd := exec.Command("go", "build", "-o", bin+"/", "./cmd/...", "./test/meshecho")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	if err := os.Chmod(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	return bin
}

// realStage is a running `heddle up`.
type realStage struct {
	bin, state, config string
	client             *lab.Client
	up                 *exec.Cmd
	out                *bytes.Buffer
	ended              chan error
}

func newRealStage(t *testing.T, bin string) *realStage {
	t.Helper()
	s := &realStage{bin: bin, state: t.TempDir(), config: t.TempDir(), ended: make(chan error, 1), out: new(bytes.Buffer)}
	// A sidecar has a uid of its own and must find its files.
	for dir := s.state; dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s.client = lab.NewClient(filepath.Join(s.state, "heddle", lab.DefaultName))
	t.Cleanup(func() {
		if s.up != nil {
			if err := s.stop(); err != nil {
				t.Errorf("heddle up: %v", err)
			}
		}
		if t.Failed() {
			t.Logf("heddle up printed:\n%s", s.out)
		}
	})
	return s
}

func (s *realStage) command(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, "heddle"), args...)
	cmd.Env = append(os.Environ(), "XDG_STATE_HOME="+s.state, "PATH="+s.bin+":"+os.Getenv("PATH"))
	return cmd
}

func (s *realStage) start() error {
	s.up = s.command("up", s.config)
	s.up.Stdout, s.up.Stderr = s.out, s.out
	if err := s.up.Start(); err != nil {
		return err
	}
	go func() { s.ended <- s.up.Wait() }()
	return nil
}

func (s *realStage) stop() error {
	if err := s.up.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	select {
	case err := <-s.ended:
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).ExitStatus() == 130 {
			err = nil
		}
		return err
	case <-time.After(20 * time.Second):
		s.up.Process.Kill()
		return errors.New("did not end within 20 s of an interrupt")
	}
}

func (s *realStage) Apply(ctx context.Context, files map[string][]byte) ([]string, error) {
	old, err := os.ReadDir(s.config)
	if err != nil {
		return nil, err
	}
	for name, data := range files {
		path := filepath.Join(s.config, name)
		if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, data) {
			continue
		}
		// Written aside and renamed, as editors and ConfigMap mounts do.
		if err := os.WriteFile(path+".new", data, 0o644); err != nil {
			return nil, err
		}
		if err := os.Rename(path+".new", path); err != nil {
			return nil, err
		}
	}
	for _, e := range old {
		if _, ok := files[e.Name()]; !ok {
			if err := os.Remove(filepath.Join(s.config, e.Name())); err != nil {
				return nil, err
			}
		}
	}
	first := s.up == nil
	if first {
		if err := s.start(); err != nil {
			return nil, err
		}
	}
	var faults []string
	out, err := s.command("validate", s.config).CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return nil, err
	}
	for _, l := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		if _, rest, ok := strings.Cut(l, ": "+s.config+"/"); ok { // after "error" or "warning"
			faults = append(faults, rest)
		}
	}
	if first {
		if err := s.settle(ctx, 15*time.Second); err != nil {
			return nil, err
		}
	}
	return faults, nil
}

// settle waits until every pod is ready, or the time is up: a script may well
// have pods that never are.
func (s *realStage) settle(ctx context.Context, d time.Duration) error {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		select {
		case err := <-s.ended:
			s.up = nil
			return fmt.Errorf("heddle up ended: %v\n%s", err, s.out)
		default:
		}
		pods, err := s.client.Pods(ctx)
		if err == nil && len(pods) > 1 && !slices.ContainsFunc(pods, func(p lab.PodStatus) bool { return !p.Ready }) {
			return nil
		}
	}
	return nil
}

func (s *realStage) Ready(ctx context.Context, pod string) error {
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		pods, err := s.client.Pods(ctx)
		if err == nil && slices.ContainsFunc(pods, func(p lab.PodStatus) bool { return p.Name == podName(pod) && p.Ready }) {
			return nil
		}
	}
	return fmt.Errorf("pod %s is not ready after 20 s", pod)
}

// podName lets scripts say client for client-0.
func podName(name string) string {
	if name == "istiod" || strings.HasSuffix(name, "-0") {
		return strings.TrimSuffix(name, "-0") + "-0"
	}
	return name + "-0"
}

// exec runs the echo program in a pod.
func (s *realStage) exec(pod string, args ...string) *exec.Cmd {
	return s.command(append([]string{"exec", podName(pod), "--", "meshecho"}, args...)...)
}

func (s *realStage) Get(ctx context.Context, pod string, g echo.Get, each func(echo.Result)) error {
	args := []string{"get", "-body", "-method", g.Method, "-n", fmt.Sprint(max(1, g.Count)), "-parallel", fmt.Sprint(max(1, g.Parallel)),
		"-size", fmt.Sprint(g.Size), fmt.Sprintf("-no-reuse=%v", g.NoReuse), "-proto=" + g.Protocol, "-sni", g.SNI, "-cert", g.Cert}
	for _, h := range g.Header {
		args = append(args, "-h", h)
	}
	if g.Timeout > 0 {
		args = append(args, "-timeout", g.Timeout.String())
	}
	if g.RPS > 0 {
		args = append(args, "-rps", fmt.Sprint(g.RPS), "-for", "10m")
	}
	cmd := s.exec(pod, append(args, g.URL)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Signal(os.Interrupt) })
	defer stop()
	for in := bufio.NewReader(out); ; {
		line, err := in.ReadBytes('\n')
		if len(bytes.TrimSpace(line)) > 0 {
			var r echo.Result
			if err := json.Unmarshal(line, &r); err != nil {
				return fmt.Errorf("%w in %q", err, line)
			}
			each(r)
		}
		if err != nil {
			break
		}
	}
	if err := cmd.Wait(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("%w: %s", err, stderr.Bytes())
	}
	return nil
}

func (s *realStage) TCP(ctx context.Context, pod string, f echo.Flow) (r echo.Result, err error) {
	args := []string{"tcp", fmt.Sprintf("-wait=%v", f.Wait), "-sni", f.SNI, "-size", fmt.Sprint(f.Size), "-timeout", f.Timeout.String(), f.Addr}
	var stderr bytes.Buffer
	cmd := s.exec(pod, append(args, f.Lines...)...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return r, fmt.Errorf("%w: %s", err, stderr.Bytes())
	}
	return r, json.Unmarshal(out, &r)
}

func (s *realStage) Kill(ctx context.Context, pod, container string) error {
	program := map[string]string{"istio-proxy": "heddle-proxy", "discovery": "heddled"}[container]
	if program == "" {
		program = "meshecho"
	}
	from := "client"
	out, err := s.exec(from, "kill", podName(pod), program).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// Tap implements script.Stage: it listens on the link of the second pod.
func (s *realStage) Tap(ctx context.Context, _, b string) (func() ([]string, error), error) {
	cmd := s.exec(b, "tap", "-for", "10m", "eth0")
	var out bytes.Buffer
	cmd.Stdout = &out
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	said := bufio.NewReader(stderr)
	if line, err := said.ReadString('\n'); err != nil || !strings.Contains(line, "listening") {
		cmd.Process.Kill()
		cmd.Wait()
		return nil, fmt.Errorf("tap: %q, %v", line, err)
	}
	return func() ([]string, error) {
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			return nil, err
		}
		if err := cmd.Wait(); err != nil {
			return nil, fmt.Errorf("tap: %w", err)
		}
		var kinds []string
		return kinds, json.Unmarshal(out.Bytes(), &kinds)
	}, nil
}

func (s *realStage) Advance(d time.Duration) { time.Sleep(d) }

func (s *realStage) Metrics(ctx context.Context, pod string) (string, error) {
	var text string
	err := s.Get(ctx, pod, echo.Get{Method: "GET", URL: "http://127.0.0.1:15020/stats/prometheus"}, func(r echo.Result) { text = r.Body })
	return text, err
}

func (s *realStage) Patience() time.Duration { return 8 * time.Second }
