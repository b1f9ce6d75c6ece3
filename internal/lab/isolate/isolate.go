// Package isolate runs the program once more in namespaces of its own: PID,
// mount, network, and, for a user without privileges, user. The copy is process
// 1 of its PID namespace, so when it ends the kernel ends everything it began,
// and with the last process go the mounts, interfaces and rules. Nothing has to
// be cleaned up, even after kill -9.
package isolate

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Command returns a command that runs this program, isolated, with the given
// arguments. The thread that starts it must not end before the command does:
// the kernel kills the command with it.
func Command(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	attr := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
		// Its own session: a Ctrl-C at the terminal is for the starter alone,
		// which ends things in order.
		Setsid: true,
	}
	if os.Geteuid() != 0 {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	cmd.SysProcAttr = attr
	return cmd
}

// Inside finishes the isolation; the copy calls it before anything else, from
// its main goroutine, which must be locked to the main thread: a thread that a
// goroutine moved to another namespace ends with it, but the main thread can
// not end, and would show that namespace as the program's for ever.
func Inside() error {
	if os.Getpid() != 1 {
		return errors.New("isolate: not the first process of a PID namespace")
	}
	// No mount made here may reach the outside, nor one made there come in
	// between two steps.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("isolate: make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("isolate: mount /proc: %w; a container that masks parts of /proc forbids this: give it --security-opt systempaths=unconfined, or run outside of it", err)
	}
	return nil
}

// Explain turns the error of starting an isolated command into a sentence that
// says what to change.
func Explain(err error) error {
	if !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.EACCES) &&
		!errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOSYS) {
		return err
	}
	if os.Geteuid() == 0 {
		return fmt.Errorf("the kernel refuses new namespaces (%w): a container needs --privileged, or at least CAP_SYS_ADMIN and CAP_NET_ADMIN", err)
	}
	var change []string
	for _, s := range []struct{ name, bad, good string }{
		{"user/max_user_namespaces", "0", "15000"},
		{"kernel/unprivileged_userns_clone", "0", "1"},
		{"kernel/apparmor_restrict_unprivileged_userns", "1", "0"},
	} {
		data, readErr := os.ReadFile("/proc/sys/" + s.name)
		if readErr == nil && strings.TrimSpace(string(data)) == s.bad {
			change = append(change, "sysctl -w "+strings.ReplaceAll(s.name, "/", ".")+"="+s.good)
		}
	}
	if len(change) == 0 {
		return fmt.Errorf("the kernel refuses user namespaces to this user (%w): run as root, or allow them (sysctls user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)", err)
	}
	return fmt.Errorf("the kernel refuses user namespaces to this user (%w): run as root, or allow them with: %s", err, strings.Join(change, " && "))
}
