// Package network is the ground a local mesh stands on: one network namespace
// as the node, and one for each pod, joined by routed veth pairs, with the
// cluster IPs of Services translated on the node as kube-proxy does.
//
// The node is the namespace the program runs in, which must be its own. A pod
// sees one interface with its addresses and a default route to a link-local
// address that every node end holds, so pods need no subnet, bridge or ARP
// beyond their own wire. All of it goes when the namespaces go.
package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The addresses of a mesh. Every mesh has the same ones, as none sees another.
var (
	PodCIDR  = netip.MustParsePrefix("10.244.0.0/16")
	PodCIDR6 = netip.MustParsePrefix("fd00:10:244::/64")
	// NodeIP is where pods see connections from the node come from.
	NodeIP  = netip.MustParseAddr("10.244.0.1")
	NodeIP6 = netip.MustParseAddr("fd00:10:244::1")

	gateway  = netip.MustParseAddr("169.254.1.1")
	gateway6 = netip.MustParseAddr("fe80::1")
)

// Namespace is a network namespace, held open by a descriptor.
type Namespace struct {
	file  *os.File
	inode uint64
}

// Fd returns the descriptor; it is valid until Close.
func (ns *Namespace) Fd() int { return int(ns.file.Fd()) }

// Inode returns the number that tells namespaces apart in /proc.
func (ns *Namespace) Inode() uint64 { return ns.inode }

// Close lets go of the namespace; it ends when its last process and socket do.
func (ns *Namespace) Close() error { return ns.file.Close() }

// Do runs fn on a thread inside the namespace. Sockets opened by fn itself (not
// by goroutines it starts) belong to the namespace for good.
func (ns *Namespace) Do(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine instead of
		// serving others in the wrong namespace.
		runtime.LockOSThread()
		if err := unix.Setns(ns.Fd(), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- fn()
	}()
	return <-done
}

// newNamespace makes an empty namespace.
func newNamespace() (*Namespace, error) {
	type result struct {
		ns  *Namespace
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // as in Do
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- result{nil, fmt.Errorf("new network namespace: %w", err)}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- result{nil, err}
			return
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			f.Close()
			done <- result{nil, err}
			return
		}
		done <- result{&Namespace{file: f, inode: st.Ino}, nil}
	}()
	r := <-done
	return r.ns, r.err
}

// Node is the namespace of the program, as the node of all pods.
type Node struct {
	ipv6 bool

	mu sync.Mutex
	// mu guards the allocation of addresses and the rule tables.
	last   uint32 // host part of the newest address
	used   map[uint32]bool
	tables []*table
}

// Setup makes the node ready. The program must run in a network namespace of
// its own, in which it may do everything.
func Setup() (*Node, error) {
	n := &Node{last: 1, used: make(map[uint32]bool)}
	_, err := os.Stat("/proc/net/if_inet6")
	n.ipv6 = err == nil

	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("network: find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return nil, fmt.Errorf("network: set lo up: %w", err)
	}
	err = errors.Join(
		sysctl("ipv4/ip_forward", "1"),
		// A pod that reaches itself through the node needs no advice of a
		// shorter way.
		sysctl("ipv4/conf/all/send_redirects", "0"),
		sysctl("ipv4/conf/default/send_redirects", "0"),
		// Every connection to a Service without endpoints is refused at once,
		// not one in a second.
		sysctl("ipv4/icmp_ratelimit", "0"),
		addAddr(lo, NodeIP),
	)
	if err != nil {
		return nil, err
	}
	if n.ipv6 {
		err := errors.Join(
			sysctl("ipv6/conf/all/forwarding", "1"),
			sysctl("ipv6/conf/default/accept_dad", "0"),
			sysctl("ipv6/conf/lo/disable_ipv6", "0"),
			sysctl("ipv6/icmp/ratelimit", "0"),
			addAddr(lo, NodeIP6),
		)
		if err != nil {
			return nil, err
		}
	}
	if err := n.setupTables(); err != nil {
		return nil, err
	}
	return n, nil
}

// AddAddress gives the node one more address, for a service of its own.
func (n *Node) AddAddress(a netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return addAddr(lo, a)
}

// Pod is the network of one pod.
type Pod struct {
	Namespace *Namespace
	IPs       []netip.Addr // IPv4 first; IPv6 where the kernel has it

	host uint32
	link string // the node's end
}

// AddPod makes a namespace and connects it.
func (n *Node) AddPod() (*Pod, error) {
	host, err := n.allocate()
	if err != nil {
		return nil, err
	}
	p := &Pod{
		IPs:  []netip.Addr{nth(PodCIDR, host)},
		host: host,
		link: fmt.Sprintf("pod%d", host),
	}
	if n.ipv6 {
		p.IPs = append(p.IPs, nth(PodCIDR6, host))
	}
	if p.Namespace, err = newNamespace(); err != nil {
		n.free(host)
		return nil, err
	}
	if err := n.connect(p); err != nil {
		n.RemovePod(p)
		return nil, fmt.Errorf("network of pod %s: %w", p.IPs[0], err)
	}
	return p, nil
}

// RemovePod undoes AddPod.
func (n *Node) RemovePod(p *Pod) error {
	var errs []error
	if link, err := netlink.LinkByName(p.link); err == nil {
		errs = append(errs, netlink.LinkDel(link))
	}
	errs = append(errs, n.hairpin(p, false), p.Namespace.Close())
	n.free(p.host)
	return errors.Join(errs...)
}

// allocate takes the next address after the newest, so that one is not soon
// used again.
func (n *Node) allocate() (uint32, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	const size = 1<<16 - 2 // hosts of PodCIDR without its last, the broadcast form
	for range uint32(size) {
		n.last++
		if n.last > size {
			n.last = 2
		}
		if !n.used[n.last] {
			n.used[n.last] = true
			return n.last, nil
		}
	}
	return 0, fmt.Errorf("network: all addresses of %s are in use", PodCIDR)
}

func (n *Node) free(host uint32) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.used, host)
}

// nth returns an address by its number in a prefix of at most 112 network bits.
func nth(p netip.Prefix, host uint32) netip.Addr {
	b := p.Addr().AsSlice()
	b[len(b)-2] |= byte(host >> 8)
	b[len(b)-1] |= byte(host)
	a, _ := netip.AddrFromSlice(b)
	return a
}

func (n *Node) connect(p *Pod) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = p.link
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(p.Namespace.Fd())}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth %s: %w", p.link, err)
	}
	link, err := netlink.LinkByName(p.link)
	if err != nil {
		return err
	}
	if n.ipv6 {
		// No duplicate can be on this wire, and looking for one takes a second.
		if err := sysctl("ipv6/conf/"+p.link+"/accept_dad", "0"); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	if err := addLinkAddr(link, gateway); err != nil {
		return err
	}
	if n.ipv6 {
		if err := addLinkAddr(link, gateway6); err != nil {
			return err
		}
	}
	if err := p.Namespace.Do(func() error { return n.inside(p) }); err != nil {
		return err
	}
	for _, ip := range p.IPs {
		src := NodeIP
		if ip.Is6() {
			src = NodeIP6
		}
		err := netlink.RouteAdd(&netlink.Route{
			LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK,
			Dst: ipNet(ip), Src: src.AsSlice(),
		})
		if err != nil {
			return fmt.Errorf("route to %s: %w", ip, err)
		}
	}
	return n.hairpin(p, true)
}

// inside runs in the pod's namespace.
func (n *Node) inside(p *Pod) error {
	// Ports below 1024 need no privilege in a pod, as in a cluster.
	if err := sysctl("ipv4/ip_unprivileged_port_start", "0"); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	eth, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	if n.ipv6 {
		err := errors.Join(
			sysctl("ipv6/conf/lo/disable_ipv6", "0"),
			sysctl("ipv6/conf/eth0/disable_ipv6", "0"),
			sysctl("ipv6/conf/eth0/accept_dad", "0"),
		)
		if err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(eth); err != nil {
		return err
	}
	for _, ip := range p.IPs {
		if err := addAddr(eth, ip); err != nil {
			return err
		}
		gw := gateway
		if ip.Is6() {
			gw = gateway6
		}
		err := netlink.RouteAdd(&netlink.Route{
			LinkIndex: eth.Attrs().Index, Gw: gw.AsSlice(), Flags: int(netlink.FLAG_ONLINK), Src: ip.AsSlice(),
		})
		if err != nil {
			return fmt.Errorf("default route: %w", err)
		}
	}
	return nil
}

func ipNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

func addAddr(link netlink.Link, a netip.Addr) error {
	return addScoped(link, a, unix.RT_SCOPE_UNIVERSE)
}

// addLinkAddr adds an address that is never chosen as a source towards others.
func addLinkAddr(link netlink.Link, a netip.Addr) error {
	return addScoped(link, a, unix.RT_SCOPE_LINK)
}

func addScoped(link netlink.Link, a netip.Addr, scope int) error {
	addr := &netlink.Addr{IPNet: ipNet(a), Scope: scope}
	if a.Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	err := netlink.AddrAdd(link, addr)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add address %s to %s: %w", a, link.Attrs().Name, err)
	}
	return nil
}

func sysctl(name, value string) error {
	if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
		return fmt.Errorf("network: set net.%s: %w", name, err)
	}
	return nil
}
