package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
)

// makeBridge makes the cluster's bridge, with the machine's address on it, and the
// machine's routes to services and pods. The machine forwards nothing.
func makeBridge(s *spec) error {
	br := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	br.Name = s.bridge()
	if err := netlink.LinkAdd(br); err != nil {
		return fmt.Errorf("bridge %s: %w", br.Name, err)
	}
	errs := []error{addAddr(br, s.hostAddr()), netlink.LinkSetUp(br)}
	if s.Dual {
		errs = append(errs, addAddr(br, s.hostAddr6()))
	}
	errs = append(errs, addRoute(s.services(), s.nodeAddr(1).Addr()))
	if s.Dual {
		errs = append(errs, addRoute(s.services6(), s.nodeAddr6(1).Addr()))
	}
	for i := 1; i <= s.Nodes; i++ {
		errs = append(errs, addRoute(s.pods(i), s.nodeAddr(i).Addr()))
		if s.Dual {
			errs = append(errs, addRoute(s.pods6(i), s.nodeAddr6(i).Addr()))
		}
	}
	return errors.Join(errs...)
}

// removeBridge takes away what makeBridge and joinBridge made; routes go with it.
func removeBridge(s *spec) error {
	var errs []error
	for i := 1; i <= s.Nodes; i++ {
		errs = append(errs, removeLink(s.veth(i)))
	}
	return errors.Join(append(errs, removeLink(s.bridge()))...)
}

func removeLink(name string) error {
	l, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return err
	}
	// The kernel may have been quicker, as it removes a namespace's devices.
	if err := netlink.LinkDel(l); err != nil && !errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	return nil
}

// joinBridge gives the network namespace of a process an eth0 on the bridge.
func joinBridge(s *spec, i, pid int) error {
	br, err := netlink.LinkByName(s.bridge())
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = s.veth(i), br.Attrs().Index
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsPid(pid)}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("interface %s: %w", attrs.Name, err)
	}
	return netlink.LinkSetUp(veth)
}

func addAddr(l netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = syscall.IFA_F_NODAD // else it is of no use for a second
	}
	if err := netlink.AddrReplace(l, a); err != nil {
		return fmt.Errorf("address %s on %s: %w", p, l.Attrs().Name, err)
	}
	return nil
}

func addRoute(dst netip.Prefix, via netip.Addr) error {
	if err := netlink.RouteReplace(&netlink.Route{Dst: ipNet(dst), Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("route to %s by %s: %w", dst, via, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// freeSubnet returns the first subnet number none of whose ranges the machine uses.
func freeSubnet() (int, error) {
	used, err := usedRanges()
	if err != nil {
		return 0, err
	}
	for n := range maxSubnet + 1 {
		if inUse(&spec{Subnet: n}, used) == nil {
			return n, nil
		}
	}
	return 0, fmt.Errorf("all of the subnets 0 to %d overlap with networks of this machine", maxSubnet)
}

func usedRanges() ([]netip.Prefix, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	var used []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		addr, ok := netip.AddrFromSlice(r.Dst.IP)
		bits, _ := r.Dst.Mask.Size()
		if ok && bits > 0 {
			used = append(used, netip.PrefixFrom(addr.Unmap(), bits))
		}
	}
	return used, nil
}

// inUse returns an error that names a range of the subnet which overlaps with one in use.
func inUse(s *spec, used []netip.Prefix) error {
	for _, want := range []netip.Prefix{s.hostAddr().Masked(), s.services(), s.allPods(), s.hostAddr6().Masked(), s.services6(), s.allPods6()} {
		for _, u := range used {
			if want.Overlaps(u) {
				return fmt.Errorf("subnet %d: %s overlaps with %s, to which this machine has a route", s.Subnet, want, u)
			}
		}
	}
	return nil
}

// cgroupHierarchies returns the mount points of the machine's cgroup hierarchies.
// The kubelet wants its root in each of version 1.
func cgroupHierarchies() (v1, v2 []string, err error) {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, nil, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		switch {
		case len(f) < 3 || !strings.HasPrefix(f[1], "/sys/fs/cgroup/"):
		case f[2] == "cgroup":
			v1 = append(v1, f[1])
		case f[2] == "cgroup2":
			v2 = append(v2, f[1])
		}
	}
	if len(v1) == 0 {
		return nil, nil, errors.New("this machine has no cgroups of version 1 below /sys/fs/cgroup; nodes are not made for version 2 alone")
	}
	return v1, v2, nil
}

func makeCgroups(name string) error {
	v1, _, err := cgroupHierarchies()
	if err != nil {
		return err
	}
	for _, h := range v1 {
		dir := h
		for _, part := range strings.Split(name, "/") {
			parent := dir
			dir = filepath.Join(dir, part)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			// A cpuset must be filled before it can hold a process.
			for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
				b, err := os.ReadFile(filepath.Join(parent, f))
				if errors.Is(err, fs.ErrNotExist) {
					continue
				}
				if err == nil {
					err = os.WriteFile(filepath.Join(dir, f), b, 0)
				}
				if err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// removeCgroups removes a cgroup with all below it from every hierarchy, and its
// parent if that is empty then. Processes that were killed may need a moment.
func removeCgroups(name string) error {
	v1, v2, err := cgroupHierarchies()
	if err != nil {
		return err
	}
	for _, h := range append(v1, v2...) {
		top := filepath.Join(h, name)
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			err := removeTree(top)
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("cgroup %s: %w", top, err)
			}
		}
		for parent := filepath.Dir(top); parent != h; parent = filepath.Dir(parent) {
			if err := os.Remove(parent); err != nil {
				break // other clusters are in it, or it was never made
			}
		}
	}
	return nil
}

// removeTree removes directories alone: a cgroup's files go with it.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return syscall.Rmdir(dir)
}
