package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// DefaultName is the name of a mesh that was given none.
const DefaultName = "default"

// StateDir returns where the mesh with a name keeps its state if nothing else
// is said: $XDG_STATE_HOME/heddle/NAME, or ~/.local/state/heddle/NAME.
func StateDir(name string) (string, error) {
	base := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(base) { // the specification calls relative ones invalid
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("find the state directory: %w; give one with --state-dir", err)
		}
		base = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(base, "heddle", name), nil
}

// CheckName says whether a name is fit for a mesh: it becomes a directory.
func CheckName(name string) error {
	ok := name != "" && len(name) <= 63
	for _, r := range name {
		ok = ok && (r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-')
	}
	if !ok || strings.HasPrefix(name, "-") || strings.HasSuffix(name, "-") {
		return fmt.Errorf("%q is no name for a mesh: use up to 63 small letters, digits and dashes", name)
	}
	return nil
}

// Client speaks to a running mesh.
type Client struct {
	layout layout
	http   *http.Client
}

// NewClient returns a client for the mesh with its state in dir.
func NewClient(dir string) *Client {
	c := &Client{layout: layout{dir}}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialUnix("unix", c.layout.control()) },
	}}
	return c
}

// ErrNotRunning is returned, wrapped, if there is no such mesh.
var ErrNotRunning = errors.New("no mesh is running")

func dialUnix(network, path string) (*net.UnixConn, error) {
	dir, short, err := shortPath(path)
	if err != nil {
		return nil, notRunning(path, err)
	}
	defer dir.Close()
	conn, err := net.DialUnix(network, nil, &net.UnixAddr{Name: short, Net: network})
	if err != nil {
		return nil, notRunning(path, err)
	}
	return conn, nil
}

func notRunning(path string, err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w with its state in %s: start one with heddle up PATH", ErrNotRunning, filepath.Dir(path))
	}
	return err
}

func (c *Client) get(ctx context.Context, path string, q url.Values) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://mesh"+path+"?"+q.Encode(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
		if err != nil {
			return nil, err
		}
		return nil, errors.New(strings.TrimSpace(string(text)))
	}
	return resp.Body, nil
}

func getJSON[T any](ctx context.Context, c *Client, path string, q url.Values) (T, error) {
	var v T
	body, err := c.get(ctx, path, q)
	if err != nil {
		return v, err
	}
	defer body.Close()
	return v, json.NewDecoder(body).Decode(&v)
}

// Mesh describes the mesh.
func (c *Client) Mesh(ctx context.Context) (MeshStatus, error) {
	return getJSON[MeshStatus](ctx, c, "/mesh", nil)
}

// Pods lists the pods by namespace and name.
func (c *Client) Pods(ctx context.Context) ([]PodStatus, error) {
	return getJSON[[]PodStatus](ctx, c, "/pods", nil)
}

// Objects lists objects as an API server would answer them.
func (c *Client) Objects(ctx context.Context, r ObjectRequest) ([]map[string]any, error) {
	return getJSON[[]map[string]any](ctx, c, "/objects", url.Values{
		"group": {r.Kind.Group}, "kind": {r.Kind.Name}, "namespace": {r.Namespace}, "name": {r.Name},
	})
}

// Logs copies what a container printed to w.
func (c *Client) Logs(ctx context.Context, r LogRequest, w io.Writer) error {
	body, err := c.get(ctx, "/logs", url.Values{
		"namespace": {r.Namespace}, "pod": {r.Pod}, "container": {r.Container},
		"tail": {strconv.Itoa(r.Tail)}, "follow": {strconv.FormatBool(r.Follow)},
	})
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.Copy(w, body)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Exec runs a command in a container and returns its exit status. signals are
// passed on to the command. An error says that the command did not run; the
// status is then the one a shell would use.
func (c *Client) Exec(ctx context.Context, r ExecRequest, stdin, stdout, stderr *os.File, signals <-chan os.Signal) (int, error) {
	conn, err := dialUnix("unixpacket", c.layout.exec())
	if err != nil {
		return exitNotRunnable, err
	}
	defer conn.Close()
	data, err := json.Marshal(r)
	if err != nil {
		return exitNotRunnable, err
	}
	if len(data) > maxExec {
		return exitNotRunnable, errors.New("the command is too long")
	}
	rights := unix.UnixRights(int(stdin.Fd()), int(stdout.Fd()), int(stderr.Fd()))
	if _, _, err := conn.WriteMsgUnix(data, rights, nil); err != nil {
		return exitNotRunnable, err
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case s := <-signals:
				if n, ok := s.(syscall.Signal); ok {
					data, err := json.Marshal(execEvent{Signal: int(n)})
					if err != nil {
						return
					}
					if _, err := conn.Write(data); err != nil {
						return
					}
				}
			case <-ctx.Done():
				conn.Close()
				return
			case <-done:
				return
			}
		}
	}()
	buf := make([]byte, 4096)
	n, err := conn.Read(buf)
	if err != nil || n == 0 {
		return exitNotRunnable, errors.New("the mesh ended")
	}
	var e execEvent
	if err := json.Unmarshal(buf[:n], &e); err != nil {
		return exitNotRunnable, err
	}
	if e.Error != "" {
		return e.Status, errors.New(e.Error)
	}
	return e.Status, nil
}

// Running returns the names of the meshes that run with their state in the
// usual place.
func Running() []string {
	usual, err := StateDir("x")
	if err != nil {
		return nil
	}
	entries, err := os.ReadDir(filepath.Dir(usual))
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		l := layout{filepath.Join(filepath.Dir(usual), e.Name())}
		if conn, err := dialUnix("unix", l.control()); err == nil {
			conn.Close()
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names
}
