// Package process starts the processes of pods and reaps every child of the
// program, which must be the first process of a PID namespace.
//
// A process gets its surroundings from the thread it is forked from: a thread
// is taken, moved into a network namespace and a fresh mount and host-name
// namespace, given its mounts, and thrown away after the fork. So no helper
// program runs between the fork and the command, and whatever goes wrong with a
// mount is an ordinary error here.
//
// Nothing else in the program may wait for children: os/exec is not for it.
package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Spec describes one process.
type Spec struct {
	Args []string // Args[0] is looked up in the PATH of Env
	Env  []string // "NAME=value"
	Dir  string   // "" is the root directory
	// Stdin, Stdout and Stderr stay open and the caller's; nil is /dev/null.
	Stdin, Stdout, Stderr *os.File
	// Inherit are further files, from descriptor 3 on.
	Inherit []*os.File

	// Net is a descriptor of the network namespace, or -1 for the program's own.
	Net    int
	Host   string  // host name; "" keeps the program's
	Mounts []Mount // in order; later ones may lie inside earlier ones
	// Scratch is an empty directory to build a root in, for mounts at places
	// that the file system does not have.
	Scratch string

	// User is nil to keep the program's.
	User *syscall.Credential
	// Terminal makes Stdin, then a terminal, the controlling one.
	Terminal bool
}

// Mount puts the directory or file Source at Target; an empty Source mounts an
// empty directory in memory. Target need not exist: a place for it is made that
// only this process sees, and nothing is written to the file system.
type Mount struct {
	Source, Target string
	ReadOnly       bool
	// Optional leaves the mount out if Source does not exist.
	Optional bool
}

// Exit says how a process ended.
type Exit struct {
	Code   int            // -1 if a signal ended it
	Signal syscall.Signal // 0 if it exited by itself
	At     time.Time
}

// Status returns the number a shell would show: the code, or 128 + signal.
func (e Exit) Status() int {
	if e.Signal != 0 {
		return 128 + int(e.Signal)
	}
	return e.Code
}

func (e Exit) String() string {
	if e.Signal != 0 {
		return fmt.Sprintf("signal %d (%s)", int(e.Signal), e.Signal)
	}
	return "exit " + strconv.Itoa(e.Code)
}

// Process is a started process, the leader of its own session.
type Process struct {
	Pid     int
	Started time.Time

	table *Table
	done  chan struct{}
	exit  Exit // set before done is closed
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit returns how it ended; it may be called after Done.
func (p *Process) Exit() Exit { return p.exit }

// Signal sends a signal to the process and its group. A process that has ended
// takes no signal and is no error, and its number can not have been given to
// another one meanwhile.
func (p *Process) Signal(sig syscall.Signal) error {
	p.table.mu.Lock()
	defer p.table.mu.Unlock()
	if p.table.live[p.Pid] != p {
		return nil
	}
	return unix.Kill(-p.Pid, sig)
}

// Table knows the living children.
type Table struct {
	mu sync.Mutex
	// mu guards live, and is held from before a fork until the child is listed,
	// and while children are reaped, so that no exit is missed.
	live map[int]*Process
}

// NewTable returns an empty table. Its Run must run for exits to be noticed.
func NewTable() *Table { return &Table{live: make(map[int]*Process)} }

// Run reaps children, the program's own and the orphans it inherits as process
// 1, until ctx ends.
func (t *Table) Run(ctx context.Context) error {
	died := make(chan os.Signal, 1)
	signal.Notify(died, syscall.SIGCHLD)
	defer signal.Stop(died)
	for {
		t.reap()
		select {
		case <-ctx.Done():
			return nil
		case <-died:
		}
	}
}

func (t *Table) reap() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid == 0 {
			return // ECHILD, or none of them has ended
		}
		p := t.live[pid]
		if p == nil {
			continue // an orphan
		}
		delete(t.live, pid)
		p.exit = Exit{Code: status.ExitStatus(), At: time.Now()}
		if status.Signaled() {
			p.exit.Code, p.exit.Signal = -1, status.Signal()
		}
		close(p.done)
	}
}

// Start starts a process.
func (t *Table) Start(s Spec) (*Process, error) {
	if len(s.Args) == 0 || s.Args[0] == "" {
		return nil, errors.New("process: no command")
	}
	type result struct {
		p   *Process
		err error
	}
	done := make(chan result, 1)
	go func() {
		// Never unlocked: the thread ends with this goroutine, and lets go of
		// the namespaces it was moved to.
		runtime.LockOSThread()
		p, err := t.start(s)
		done <- result{p, err}
	}()
	r := <-done
	return r.p, r.err
}

// start runs on a thread of its own.
func (t *Table) start(s Spec) (*Process, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
		return nil, fmt.Errorf("new mount namespace: %w", err)
	}
	if s.Host != "" {
		if err := unix.Sethostname([]byte(s.Host)); err != nil {
			return nil, fmt.Errorf("set host name: %w", err)
		}
	}
	if s.Net >= 0 {
		if err := unix.Setns(s.Net, unix.CLONE_NEWNET); err != nil {
			return nil, fmt.Errorf("enter network namespace: %w", err)
		}
	}
	if err := mountAll(s.Mounts, s.Scratch); err != nil {
		return nil, err
	}
	dir := s.Dir
	if dir == "" {
		dir = "/"
	}
	path, err := lookPath(s.Args[0], s.Env, dir)
	if err != nil {
		return nil, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	files := []uintptr{null.Fd(), null.Fd(), null.Fd()}
	for i, f := range []*os.File{s.Stdin, s.Stdout, s.Stderr} {
		if f != nil {
			files[i] = f.Fd()
		}
	}
	for _, f := range s.Inherit {
		files = append(files, f.Fd())
	}

	t.mu.Lock()
	defer t.mu.Unlock()
	pid, err := syscall.ForkExec(path, s.Args, &syscall.ProcAttr{
		Dir: dir, Env: s.Env, Files: files,
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: s.Terminal, Credential: s.User},
	})
	runtime.KeepAlive(s)
	if err != nil {
		return nil, fmt.Errorf("run %s in %s: %w", path, dir, err)
	}
	p := &Process{Pid: pid, Started: time.Now(), table: t, done: make(chan struct{})}
	t.live[pid] = p
	return p, nil
}

// ErrNotFound is returned, wrapped, for a command that does not exist.
var ErrNotFound = errors.New("no such program")

// lookPath finds a command as execvp does, in the PATH of env.
func lookPath(name string, env []string, dir string) (string, error) {
	candidates := []string{name}
	if !strings.Contains(name, "/") {
		candidates = nil
		for _, e := range env {
			if list, ok := strings.CutPrefix(e, "PATH="); ok {
				for _, d := range filepath.SplitList(list) {
					candidates = append(candidates, filepath.Join(d, name))
				}
			}
		}
	}
	err := fmt.Errorf("%w %q", ErrNotFound, name)
	for _, c := range candidates {
		if !filepath.IsAbs(c) {
			c = filepath.Join(dir, c)
		}
		info, statErr := os.Stat(c)
		switch {
		case statErr != nil:
		case info.IsDir():
			err = fmt.Errorf("%s is a directory", c)
		case info.Mode()&0o111 == 0:
			err = fmt.Errorf("%s is not executable", c)
		default:
			return c, nil
		}
	}
	return "", err
}

// KillNamespace sends SIGKILL to every process whose network namespace is the
// one with the inode number: those that left their group, too. It returns how
// many it met.
func KillNamespace(inode uint64) int {
	want := fmt.Sprintf("net:[%d]", inode)
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	killed := 0
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid <= 1 {
			continue
		}
		if ns, err := os.Readlink("/proc/" + e.Name() + "/ns/net"); err == nil && ns == want {
			if unix.Kill(pid, unix.SIGKILL) == nil {
				killed++
			}
		}
	}
	return killed
}
