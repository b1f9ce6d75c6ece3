package lab

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/lab/process"
)

// maxExec bounds an exec request: packets on a Unix socket are whole.
const maxExec = 128 << 10

// Exit codes of a shell for commands that could not be run.
const (
	exitNotRunnable = 126
	exitNotFound    = 127
)

// serveExec runs commands in containers for clients that pass their own
// standard descriptors, until ctx ends.
func (a *api) serveExec(ctx context.Context, l *net.UnixListener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		wg.Go(func() {
			defer conn.Close()
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			a.exec(conn)
		})
	}
}

func (a *api) exec(conn *net.UnixConn) {
	buf, oob := make([]byte, maxExec), make([]byte, unix.CmsgSpace(3*4))
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return
	}
	files, err := receivedFiles(oob[:oobn])
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	reply := func(e execEvent) {
		data, err := json.Marshal(e)
		if err == nil {
			_, err = conn.Write(data)
		}
		_ = err // the client is gone; nobody waits for the answer
	}
	var req ExecRequest
	if err = errors.Join(err, json.Unmarshal(buf[:n], &req)); err != nil || len(files) != 3 || len(req.Command) == 0 {
		reply(execEvent{Exited: true, Status: exitNotRunnable, Error: "the request was not understood"})
		return
	}
	proc, status, err := a.start(&req, files)
	if err != nil {
		reply(execEvent{Exited: true, Status: status, Error: err.Error()})
		return
	}
	// The command holds them now; while the lab does too, a pipe would not end.
	for _, f := range files {
		f.Close()
	}
	files = nil

	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			n, err := conn.Read(buf)
			if err != nil || n == 0 {
				// The client is gone: so is the command's reason. It has no more
				// effect if the command ended first.
				proc.Signal(syscall.SIGHUP)
				proc.Signal(syscall.SIGKILL)
				return
			}
			var e execEvent
			if json.Unmarshal(buf[:n], &e) == nil && e.Signal != 0 {
				proc.Signal(syscall.Signal(e.Signal))
			}
		}
	})
	<-proc.Done()
	reply(execEvent{Exited: true, Status: proc.Exit().Status()})
	conn.CloseRead()
	wg.Wait()
}

func (a *api) start(req *ExecRequest, files []*os.File) (*process.Process, int, error) {
	c, err := a.controller.findContainer(req.Namespace, req.Pod, req.Container)
	if err != nil {
		return nil, exitNotRunnable, err
	}
	if c.pod.network() == nil {
		return nil, exitNotRunnable, errors.New("pod " + c.pod.key() + " has not been started yet")
	}
	spec, err := c.processSpec(req.Command)
	if err != nil {
		return nil, exitNotRunnable, err
	}
	for _, e := range req.Env {
		if name, _, _ := strings.Cut(e, "="); name == "TERM" { // of the client's terminal
			spec.Env = append(spec.Env, e)
		}
	}
	spec.Stdin, spec.Stdout, spec.Stderr = files[0], files[1], files[2]
	spec.Terminal = req.Terminal
	proc, err := a.controller.kubelet.procs.Start(spec)
	switch {
	case errors.Is(err, process.ErrNotFound):
		return nil, exitNotFound, err
	case err != nil:
		return nil, exitNotRunnable, err
	}
	return proc, 0, nil
}
