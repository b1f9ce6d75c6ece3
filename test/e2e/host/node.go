package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// startNode starts the first process of a node in namespaces of its own, joins it
// to the bridge and tells it to go on. The node outlives this program; all that
// it mounts, starts and configures goes away with that one process.
func startNode(s *spec, i int) (process, error) {
	for _, d := range []string{s.logDir(i), filepath.Join(s.nodeDir(i), "kubelet"), filepath.Join(s.nodeDir(i), "podlogs", "pods"),
		filepath.Join(s.nodeDir(i), "podlogs", "containers"), filepath.Join(s.nodeDir(i), "etcd")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return process{}, err
		}
	}
	if err := makeCgroups(s.cgroup(i)); err != nil {
		return process{}, err
	}
	out, err := os.Create(filepath.Join(s.logDir(i), "node.log"))
	if err != nil {
		return process{}, err
	}
	defer out.Close()
	self, err := os.Executable()
	if err != nil {
		return process{}, err
	}
	cmd := exec.Command(self, "node", s.Dir, fmt.Sprint(i))
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", out, out
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS}
	gate, err := cmd.StdinPipe()
	if err != nil {
		return process{}, err
	}
	if err := cmd.Start(); err != nil {
		return process{}, fmt.Errorf("namespaces of node %d: %w", i, err)
	}
	go cmd.Wait() // buries the node if it ends before this program does
	p := process{pid: cmd.Process.Pid}
	p.start, _ = stat(p.pid)
	if err := os.WriteFile(s.processFile(i), fmt.Appendf(nil, "%d %s\n", p.pid, p.start), 0o644); err != nil {
		return p, err
	}
	if err := joinBridge(s, i, p.pid); err != nil {
		return p, err
	}
	if _, err := gate.Write([]byte("go\n")); err != nil {
		return p, fmt.Errorf("node %d ended at once; see %s", i, out.Name())
	}
	return p, gate.Close()
}

// runNode is the first process of a node, as startNode started it.
func runNode(dir string, i int) error {
	if os.Getpid() != 1 {
		return errors.New("a node is started by up alone")
	}
	// Nothing is done before up has joined this namespace to the bridge.
	if b, err := io.ReadAll(os.Stdin); err != nil || len(b) == 0 {
		return errors.New("up ended before the node was joined to the bridge")
	}
	s, err := readSpec(dir)
	if err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(s.node(i))); err != nil {
		return err
	}
	if err := mountNode(s, i); err != nil {
		return err
	}
	if err := configureNode(s, i); err != nil {
		return err
	}
	n := &node{s: s, i: i, names: make(map[int]string)}
	n.start("containerd", "containerd", "-c", "/run/containerd.toml")
	if i == 1 {
		n.start("etcd", s.Kube, etcdFlags(s, i)...)
		n.start("kube-apiserver", s.Kube, apiserverFlags(s)...)
		n.start("kube-controller-manager", s.Kube, controllerFlags(s)...)
	}
	// The others would wait for the API server with growing pauses of their own.
	ready := make(chan error, 1)
	go func() { ready <- waitForServer(s) }()
	if err := n.reap(ready); err != nil {
		return err
	}
	if i == 1 {
		n.start("kube-scheduler", s.Kube, schedulerFlags(s)...)
	}
	n.start("kubelet", s.Kube, kubeletFlags(s, i)...)
	n.start("kube-proxy", s.Kube, "kube-proxy", "--config=/run/kube-proxy.yaml")
	return n.reap(nil)
}

// node starts components, and buries what ends in the PID namespace.
type node struct {
	s     *spec
	i     int
	names map[int]string // of components, by process
}

func (n *node) start(name, program string, args ...string) {
	out, err := os.Create(filepath.Join(n.s.logDir(n.i), name+".log"))
	if err != nil {
		log.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(os.Environ(), "HOME=/root")
	if err := cmd.Start(); err != nil {
		log.Fatalf("%s: %v", name, err)
	}
	log.Printf("%s is process %d", name, cmd.Process.Pid)
	n.names[cmd.Process.Pid] = name
}

// reap waits for processes until something arrives. The end of a component is the
// end of the node: a cluster with a part missing would only confuse its tests.
func (n *node) reap(until <-chan error) error {
	for {
		select {
		case err := <-until:
			return err
		default:
		}
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		switch {
		case err != nil && err != syscall.EINTR:
			return err
		case pid <= 0:
			time.Sleep(20 * time.Millisecond)
		case n.names[pid] != "":
			if status.Signaled() {
				return fmt.Errorf("%s was ended by signal %q", n.names[pid], status.Signal())
			}
			return fmt.Errorf("%s ended with status %d", n.names[pid], status.ExitStatus())
		}
	}
}

func waitForServer(s *spec) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	c, err := newClient(s)
	if err != nil {
		return err
	}
	return c.waitReady(ctx)
}

// mountNode makes the node's view of the machine's file system: the machine's
// programs, and fresh directories where a node keeps or shares its state, so
// that nothing is written to the machine outside the state directory.
func mountNode(s *spec, i int) error {
	for _, d := range hidden {
		if strings.HasPrefix(s.Dir+"/", d+"/") {
			return fmt.Errorf("state directory %s: it must not be below %s, which nodes have their own of", s.Dir, d)
		}
	}
	m := &mounter{}
	m.mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	m.mount("proc", "/proc", "proc", 0, "")
	m.mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
	// A sysfs of this network namespace, with the machine's cgroups kept.
	m.mkdir("/run/cgroup")
	m.mount("/sys/fs/cgroup", "/run/cgroup", "", unix.MS_BIND|unix.MS_REC, "")
	m.mount("sysfs", "/sys", "sysfs", 0, "")
	m.mount("/run/cgroup", "/sys/fs/cgroup", "", unix.MS_BIND|unix.MS_REC, "")
	m.unmount("/run/cgroup")
	m.mount("tmpfs", "/var/lib", "tmpfs", 0, "mode=755")
	m.mount("tmpfs", "/var/log", "tmpfs", 0, "mode=755")
	m.mount("tmpfs", "/opt", "tmpfs", 0, "mode=755")
	m.mkdir("/run/lock", "/run/netns", "/run/etc/upper", "/run/etc/work", "/run/cni/upper", "/run/cni/work",
		"/var/lib/kubelet", "/var/lib/cni", "/var/log/pods", "/var/log/containers", "/opt/cni/bin")
	m.mount("overlay", "/etc", "overlay", 0, "lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work")
	m.mount("overlay", "/opt/cni/bin", "overlay", 0, "lowerdir=/usr/lib/cni,upperdir=/run/cni/upper,workdir=/run/cni/work")
	m.mkdir("/etc/cni/net.d")
	dir := s.nodeDir(i)
	m.mount(filepath.Join(dir, "kubelet"), "/var/lib/kubelet", "", unix.MS_BIND, "")
	m.mount(filepath.Join(dir, "podlogs", "pods"), "/var/log/pods", "", unix.MS_BIND, "")
	m.mount(filepath.Join(dir, "podlogs", "containers"), "/var/log/containers", "", unix.MS_BIND, "")
	// The kubelet wants these machine-wide settings. It is shown files that say so,
	// and the machine's own stay as they are.
	for path, value := range map[string]string{
		"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
	} {
		shown := "/run/sysctl-" + strings.ReplaceAll(path, "/", "-")
		m.write(shown, value+"\n")
		m.mount(shown, "/proc/sys/"+path, "", unix.MS_BIND, "")
	}
	// Only now: what propagates while mounts are moved takes away the originals.
	m.mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
	return m.err
}

// hidden are the directories that a node has its own of.
var hidden = []string{"/proc", "/sys", "/run", "/var/lib", "/var/log", "/opt", "/etc"}

// mounter does one thing after another until one fails.
type mounter struct{ err error }

func (m *mounter) mount(source, target, kind string, flags uintptr, data string) {
	if m.err != nil {
		return
	}
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		m.err = fmt.Errorf("mount %s at %s: %w", source, target, err)
	}
}

func (m *mounter) unmount(target string) {
	if m.err == nil {
		m.err = unix.Unmount(target, unix.MNT_DETACH)
	}
}

func (m *mounter) mkdir(dirs ...string) {
	for _, d := range dirs {
		if m.err == nil {
			m.err = os.MkdirAll(d, 0o755)
		}
	}
}

func (m *mounter) write(file, content string) {
	if m.err == nil {
		m.err = os.WriteFile(file, []byte(content), 0o644)
	}
}

// configureNode sets up the node's network and writes its components' files.
func configureNode(s *spec, i int) error {
	m := &mounter{}
	// The kernel allows a new namespace what the machine allows new interfaces; a
	// node forwards between its pods and its own interface.
	m.write("/proc/sys/net/ipv4/ip_forward", "1")
	if s.Dual {
		m.write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "0")
		m.write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "0")
		m.write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
	}
	m.write("/etc/resolv.conf", "options ndots:1\n")
	m.write("/etc/hosts", fmt.Sprintf("127.0.0.1 localhost\n%s %s\n", s.nodeAddr(i).Addr(), s.node(i)))
	m.write("/etc/cni/net.d/10-bridge.conflist", cniConfig(s, i))
	m.write("/run/containerd.toml", containerdConfig(s, i))
	m.write("/run/kubelet.yaml", kubeletConfig(s, i))
	m.write("/run/kube-proxy.yaml", proxyConfig(s, i))
	if m.err != nil {
		return m.err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	eth, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	errs := []error{netlink.LinkSetUp(lo), addAddr(eth, s.nodeAddr(i)), netlink.LinkSetUp(eth)}
	if s.Dual {
		errs = append(errs, addAddr(eth, s.nodeAddr6(i)))
	}
	errs = append(errs, addRoute(netip.MustParsePrefix("0.0.0.0/0"), s.hostAddr().Addr()))
	if s.Dual {
		errs = append(errs, addRoute(netip.MustParsePrefix("::/0"), s.hostAddr6().Addr()))
	}
	for j := 1; j <= s.Nodes; j++ {
		if j == i {
			continue
		}
		errs = append(errs, addRoute(s.pods(j), s.nodeAddr(j).Addr()))
		if s.Dual {
			errs = append(errs, addRoute(s.pods6(j), s.nodeAddr6(j).Addr()))
		}
	}
	return errors.Join(slices.DeleteFunc(errs, func(err error) bool { return err == nil })...)
}
