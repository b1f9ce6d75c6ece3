package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cores says who runs where.
type cores struct{ proxy, load int }

// process is a program that runs on one core until it is stopped.
type process struct {
	name string
	log  string // file with its standard error
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// start starts cmd on a core. Standard error goes to a file in dir, and standard
// output too if nobody has asked for it.
func start(cmd *exec.Cmd, name, dir string, core int) (*process, error) {
	p := &process{name: name, log: filepath.Join(dir, name+".stderr"), cmd: cmd, done: make(chan struct{})}
	errs, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer errs.Close()
	cmd.Stderr = errs
	if cmd.Stdout == nil {
		out, err := os.Create(filepath.Join(dir, name+".stdout"))
		if err != nil {
			return nil, err
		}
		defer out.Close()
		cmd.Stdout = out
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := startOn(cmd, core); err != nil {
		return nil, err
	}
	go func() {
		_ = cmd.Wait() // whoever waits for its work sees that it is gone
		close(p.done)
	}()
	return p, nil
}

// startOn starts cmd bound to a core: a child inherits the binding of the thread
// that starts it.
func startOn(cmd *exec.Cmd, core int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	one.Set(core)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("core %d: %w", core, err)
	}
	err := cmd.Start()
	return errors.Join(err, unix.SchedSetaffinity(0, &before))
}

// output runs cmd on a core and returns what it says.
func output(cmd *exec.Cmd, core int) ([]byte, error) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := startOn(cmd, core); err != nil {
		return nil, err
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, tail(errs.Bytes()))
	}
	return out.Bytes(), nil
}

// stop ends the process.
func (p *process) stop() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

// failure is what a process that should run had to say.
func (p *process) failure() error {
	select {
	case <-p.done:
	default:
		return nil
	}
	b, err := os.ReadFile(p.log)
	return errors.Join(fmt.Errorf("%s ended: %s", p.name, tail(b)), err)
}

func tail(b []byte) string {
	const most = 600
	b = bytes.TrimSpace(b)
	return string(b[max(0, len(b)-most):])
}

// usage is the processor time of some processes.
type usage struct {
	total     time.Duration // exact
	user, sys time.Duration // of the kernel's estimate, in ticks
}

func (u usage) minus(o usage) usage {
	return usage{u.total - o.total, u.user - o.user, u.sys - o.sys}
}

// tick is the unit of times in /proc/PID/stat, USER_HZ, which is 100 on all of
// Linux's architectures that Go runs on.
const tick = 10 * time.Millisecond

// used returns the processor time so far. Its division into user and system time
// is of /proc/PID/stat, whose ticks are too coarse for the total at low rates;
// the total is the processes' own clock, of which those ticks are the sum.
func used(ps []*process) (u usage, err error) {
	for _, p := range ps {
		pid := p.cmd.Process.Pid
		var t unix.Timespec
		// A process's clock has the number ^pid<<3|2: CPUCLOCK_SCHED.
		if err := unix.ClockGettime(int32(^pid<<3|2), &t); err != nil {
			return usage{}, errors.Join(fmt.Errorf("processor time of %s: %w", p.name, err), p.failure())
		}
		u.total += time.Duration(t.Nano())
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return usage{}, err
		}
		// The name, in parentheses, may hold spaces. utime is the 14th field and
		// the 12th after it. Source: proc(5).
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(fields) < 13 {
			return usage{}, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
		}
		for i, to := range []*time.Duration{&u.user, &u.sys} {
			n, err := strconv.ParseInt(fields[11+i], 10, 64)
			if err != nil {
				return usage{}, err
			}
			*to += time.Duration(n) * tick
		}
	}
	return u, nil
}

// resident returns the resident memory of some processes in bytes.
func resident(ps []*process) (sum int64, err error) {
	for _, p := range ps {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
		if err != nil {
			return 0, errors.Join(err, p.failure())
		}
		_, rest, _ := strings.Cut(string(b), "VmRSS:")
		number, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
		kib, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("VmRSS of %s: %w", p.name, errors.Join(err, p.failure()))
		}
		sum += kib << 10
	}
	return sum, nil
}

// again is this program as a worker.
func again(ctx context.Context, args ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return exec.CommandContext(ctx, self, args...), nil
}

// copyLine reads up to the first end of line.
func copyLine(r io.Reader) (string, error) {
	var line []byte
	var one [1]byte
	for {
		if _, err := io.ReadFull(r, one[:]); err != nil {
			return "", err
		}
		if one[0] == '\n' {
			return string(line), nil
		}
		line = append(line, one[0])
	}
}
