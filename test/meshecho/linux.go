//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/meshtest/tap"
)

// sniff listens on an interface and says of what kinds the TCP flows between
// workloads were. The control plane's own port 15012 does not count.
func sniff(ctx context.Context, name string, d time.Duration) ([]string, error) {
	ifc, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network byte order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: ifc.Index}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("packet socket on %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), "packets")
	defer f.Close()
	if err := f.SetReadDeadline(time.Now().Add(d)); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Now()) })
	defer stop()
	fmt.Fprintln(os.Stderr, "listening")
	var c tap.Capture
	for b := make([]byte, 64<<10); ; {
		n, err := f.Read(b)
		if os.IsTimeout(err) {
			break
		}
		if err != nil {
			return nil, err
		}
		c.AddFrame(b[:n])
	}
	return c.Kinds(func(src, dst netip.AddrPort) bool {
		return dst.Port() == 15012 || dst.Port() == 15020 || dst.Port() == 15021
	}), nil
}

// kill ends the processes of a program in a pod with SIGKILL. Pods of the local
// mesh share a process table, so they are told apart by their host name.
func kill(pod, program string) error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	killed := 0
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		comm, _ := os.ReadFile(dir + "/comm") // the process may be gone
		env, _ := os.ReadFile(dir + "/environ")
		if strings.TrimSpace(string(comm)) != program || !bytes.Contains(append([]byte{0}, env...), []byte("\x00HOSTNAME="+pod+"\x00")) {
			continue
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			return err
		}
		killed++
	}
	if killed == 0 {
		return fmt.Errorf("no %s runs in pod %s", program, pod)
	}
	return nil
}
