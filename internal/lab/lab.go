// Package lab is `heddle up`: it runs ordinary manifests on one machine, with
// neither Kubernetes nor containers. Each pod is a network namespace with its
// programs as processes, its sidecar, and the redirection and DNS capture that
// it would have in a cluster; a control plane runs beside them as a pod of its
// own.
//
// A mesh has two halves. The front is the process that the user started. It
// stays in the machine's own network, where it opens the ports on 127.0.0.1 and
// whatever else of the outside the mesh needs. It starts the node: a copy of the
// program as process 1 of new PID, mount and network namespaces (and a user
// namespace, where the user is not root), which is kubelet, Deployment
// controller and API server in one. When either ends, for whatever reason, the
// kernel ends the rest and takes away what they made, so nothing is left behind
// but the state directory.
//
// The node writes all objects, the users' and those it makes itself (pods with
// their status, and a few more), to files that the control plane reads like any
// others, so the control plane knows nothing of the lab.
package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/lab/isolate"
)

// NodeCommand is the hidden subcommand by which the front starts the node; it
// must call [Node], from the main goroutine, locked to the main thread.
const NodeCommand = "lab-node"

// Config says which mesh to run.
type Config struct {
	Name     string   // of the mesh
	Paths    []string // of manifests: files and directories
	StateDir string
	// Stdout and Stderr show what happens.
	Stdout, Stderr *os.File
	// Extra names further environment variables that containers get.
	Extra []string
}

// nodeConfig is what the node is told.
type nodeConfig struct {
	Name     string    `json:"name"`
	Paths    []string  `json:"paths"`
	StateDir string    `json:"stateDir"`
	BinDir   string    `json:"binDir"`
	Begin    time.Time `json:"begin"`
	// Resolvers are the machine's DNS servers.
	Resolvers []string `json:"resolvers,omitempty"`
}

// Descriptors the node is started with.
const (
	linkFd = 3
	lockFd = 4
)

const (
	// stopPatience is how long the node may take to end after it was told so.
	stopPatience = 10 * time.Second
)

// Up runs a mesh until ctx ends or the mesh fails. A second interrupt does not
// wait for programs to finish. It must be called from a goroutine that is locked
// to its thread: the kernel ends the mesh when the thread that began it ends.
func Up(ctx context.Context, cfg Config) error {
	begin := time.Now()
	if err := CheckName(cfg.Name); err != nil {
		return err
	}
	node := nodeConfig{Name: cfg.Name, Begin: begin, Resolvers: resolvers("/etc/resolv.conf")}
	for _, p := range cfg.Paths {
		abs, err := filepath.Abs(p)
		if err != nil {
			return err
		}
		if _, err := os.Stat(abs); err != nil {
			return err
		}
		node.Paths = append(node.Paths, abs)
	}
	if len(node.Paths) == 0 {
		return errors.New("name at least one file or directory with manifests")
	}
	var err error
	if node.StateDir, err = filepath.Abs(cfg.StateDir); err != nil {
		return err
	}
	if node.BinDir, err = binDir(); err != nil {
		return err
	}
	lock, err := takeLock(node.StateDir, cfg.Name)
	if err != nil {
		return err
	}
	defer lock.Close()

	ours, theirs, err := linkPair()
	if err != nil {
		return err
	}
	text, err := json.Marshal(node)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := isolate.Command(NodeCommand, string(text))
	cmd.Stdout, cmd.Stderr = cfg.Stdout, cfg.Stderr
	// The node holds the lock too: the mesh is there as long as either half is.
	cmd.ExtraFiles = []*os.File{theirs, lock}
	if err := cmd.Start(); err != nil {
		theirs.Close()
		ours.Close()
		return isolate.Explain(err)
	}
	theirs.Close()
	l, err := newLink(ours)
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return err
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		l.serve(ctx, openOutside)
	}()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()

	select {
	case err = <-ended:
		err = errors.Join(err, errors.New("the mesh ended by itself"))
	case <-ctx.Done():
		err = endNode(l, cmd.Process, ended)
	}
	l.conn.Close()
	<-served
	return nodeError(err)
}

// endNode tells the node to stop and waits until it has.
func endNode(l *link, node *os.Process, ended <-chan error) error {
	again := make(chan os.Signal, 1)
	signal.Notify(again, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(again)
	if err := l.send(message{Stop: true}, nil); err != nil {
		node.Kill()
	}
	patience := time.NewTimer(stopPatience)
	defer patience.Stop()
	select {
	case err := <-ended:
		return err
	case <-again:
	case <-patience.C:
	}
	node.Kill()
	<-ended
	return nil
}

// nodeError leaves out an exit status: the node has said what is wrong.
func nodeError(err error) error {
	if err == nil {
		return nil
	}
	if strings.Contains(err.Error(), "exit status 1") {
		return ErrSaid
	}
	return err
}

// ErrSaid stands for an error that the user has been told already.
var ErrSaid = errors.New("the mesh failed")

// binDir is the directory with heddle and the programs that came with it.
func binDir() (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	if exe, err = filepath.EvalSymlinks(exe); err != nil {
		return "", err
	}
	dir := filepath.Dir(exe)
	for _, name := range []string{"heddled", "heddle-proxy"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return "", fmt.Errorf("%s is missing beside %s: they are installed together", name, exe)
		}
	}
	return dir, nil
}

// takeLock makes sure that no other mesh uses the state directory.
func takeLock(dir, name string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(layout{dir}.lock(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		text, _ := io.ReadAll(io.LimitReader(f, 32))
		return nil, fmt.Errorf("a mesh named %s runs already (process %s): end it, or choose another name with --name", name, strings.TrimSpace(string(text)))
	}
	if err := f.Truncate(0); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// resolvers reads the DNS servers of a resolv.conf.
func resolvers(path string) []string {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var out []string
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "nameserver" {
			out = append(out, f[1])
		}
	}
	return out
}
