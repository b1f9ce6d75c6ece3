//go:build linux && heddle_root

package redirect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// These tests build a pod and its surroundings from two network namespaces and
// look at where real connections arrive. They need root. TestUnprivileged runs
// them a second time as a user without any rights, inside a user namespace.

const stage = "HEDDLE_REDIRECT_TEST_STAGE"

func TestMain(m *testing.M) {
	if os.Getenv(stage) == "unprivileged" {
		os.Exit(runInUserNamespace())
	}
	goleak.VerifyTestMain(m)
}

// runInUserNamespace is what the unprivileged user starts.
func runInUserNamespace() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), stage+"=inside")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "in a user namespace:", err)
		return 1
	}
	return 0
}

// singleUID says that this process is in a user namespace with one uid, where
// nobody can become 1337.
func singleUID() bool { return os.Getenv(stage) == "inside" }

func TestUnprivileged(t *testing.T) {
	if singleUID() {
		return // this is what the test started
	}
	const nobody = 65534
	cmd := exec.Command("/proc/self/exe", "-test.run=^(TestCapture|TestOnlyIncluded|TestApplyReplaces)", "-test.v")
	cmd.Env = append(os.Environ(), stage+"=unprivileged", "TMPDIR=/tmp")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestCapture") {
		t.Errorf("as uid %d: %v\n%s", nobody, err, out)
	}
}

// space is a network namespace with a thread of its own in it.
type space struct {
	t    *testing.T
	work chan func()
	file *os.File // of the namespace
}

func newSpace(t *testing.T) *space {
	t.Helper()
	s := &space{t: t, work: make(chan func())}
	ready := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and the namespace
		// with the thread.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			s.file, err = os.Open("/proc/thread-self/ns/net")
		}
		ready <- err
		for f := range s.work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatal("new network namespace:", err)
	}
	t.Cleanup(func() { s.file.Close(); close(s.work) })
	s.do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return s
}

// do runs f on the namespace's thread. Sockets made there stay in it.
func (s *space) do(f func() error) {
	s.t.Helper()
	if err := s.try(f); err != nil {
		s.t.Fatal(err)
	}
}

func (s *space) try(f func() error) error {
	done := make(chan error)
	s.work <- func() { done <- f() }
	return <-done
}

func addAddresses(link netlink.Link, cidrs ...string) error {
	for _, c := range cidrs {
		a, err := netlink.ParseAddr(c)
		if err != nil {
			return err
		}
		a.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(link, a); err != nil {
			return fmt.Errorf("add %s: %w", c, err)
		}
	}
	return netlink.LinkSetUp(link)
}

// addNeighbour saves the kernel the search for an IPv6 neighbour, the first try
// of which is lost on a link that has just come up, and the next a second later.
func addNeighbour(link netlink.Link, mac net.HardwareAddr, addrs ...string) error {
	for _, a := range addrs {
		if err := netlink.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, State: unix.NUD_PERMANENT, IP: net.ParseIP(a), HardwareAddr: mac,
		}); err != nil {
			return fmt.Errorf("neighbour %s: %w", a, err)
		}
	}
	return nil
}

// mesh is a pod at 10.0.0.1 and 2001:db8::1 and the rest of the world at
// 10.0.0.2, 10.1.0.2 and 2001:db8::2, 2001:db8:1::2.
type mesh struct{ pod, world *space }

func newMesh(t *testing.T) *mesh {
	m := &mesh{newSpace(t), newSpace(t)}
	podMAC, worldMAC := net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
	m.pod.do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = "eth0", podMAC
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerHardwareAddr: worldMAC,
			PeerNamespace: netlink.NsFd(m.world.file.Fd())})
	})
	m.world.do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return errors.Join(
			addAddresses(link, "10.0.0.2/24", "10.1.0.2/24", "2001:db8::2/64", "2001:db8:1::2/64"),
			addNeighbour(link, podMAC, "2001:db8::1"))
	})
	m.pod.do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := addAddresses(link, "10.0.0.1/24", "2001:db8::1/64"); err != nil {
			return err
		}
		for _, gateway := range []string{"10.0.0.2", "2001:db8::2"} {
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gateway)}); err != nil {
				return fmt.Errorf("route by %s: %w", gateway, err)
			}
		}
		return addNeighbour(link, worldMAC, "2001:db8::2")
	})

	m.pod.serveTCP("pod", ":8080", ":9090", ":15001", ":15006", ":15008", ":15090", "127.0.0.1:15053", "[::1]:15053")
	m.pod.serveUDP("pod", "127.0.0.1:15053", "[::1]:15053")
	m.world.serveTCP("world", ":22", ":53", ":80", ":443")
	m.world.serveUDP("world", ":53")
	return m
}

// serveTCP tells every caller where it got to: "pod:15001 10.0.0.2:80", with the
// address it had dialled if it was redirected.
func (s *space) serveTCP(name string, addrs ...string) {
	for _, a := range addrs {
		s.do(func() error {
			l, err := net.Listen("tcp", a)
			if err != nil {
				return err
			}
			s.t.Cleanup(func() { l.Close() })
			_, port, _ := net.SplitHostPort(a)
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					fmt.Fprintf(c, "%s:%s %s", name, port, originalDst(c))
					c.Close()
				}
			}()
			return nil
		})
	}
}

func (s *space) serveUDP(name string, addrs ...string) {
	for _, a := range addrs {
		s.do(func() error {
			c, err := net.ListenPacket("udp", a)
			if err != nil {
				return err
			}
			s.t.Cleanup(func() { c.Close() })
			_, port, _ := net.SplitHostPort(a)
			go func() {
				b := make([]byte, 512)
				for {
					_, from, err := c.ReadFrom(b)
					if err != nil {
						return
					}
					c.WriteTo([]byte(name+":"+port+" -"), from)
				}
			}()
			return nil
		})
	}
}

// originalDst is the address that a redirected connection was dialled to, or "-".
func originalDst(c net.Conn) string {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err.Error()
	}
	var b [unix.SizeofSockaddrInet6]byte
	level, option := unix.SOL_IP, unix.SO_ORIGINAL_DST
	if c.LocalAddr().(*net.TCPAddr).IP.To4() == nil {
		level = unix.SOL_IPV6 // IP6T_SO_ORIGINAL_DST is 80 as well
	}
	var errno syscall.Errno
	raw.Control(func(fd uintptr) {
		size := uint32(len(b))
		_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, uintptr(level), uintptr(option),
			uintptr(unsafe.Pointer(&b)), uintptr(unsafe.Pointer(&size)), 0)
	})
	if errno != 0 {
		return "-"
	}
	port := uint16(b[2])<<8 | uint16(b[3])
	dst := netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), port)
	if level == unix.SOL_IPV6 {
		dst = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), port)
	}
	if dst.String() == c.LocalAddr().String() {
		return "-"
	}
	return dst.String()
}

// who opens a socket.
type who struct {
	uid, gid, mark int
	source         netip.AddrPort // zero for any
}

var (
	app      = who{}
	byUID    = who{uid: 1337}
	byGID    = who{gid: 1337}
	byMark   = who{mark: 1337}
	handOn4  = who{mark: 1337, source: netip.MustParseAddrPort("127.0.0.6:0")}
	handOn6  = who{mark: 1337, source: netip.MustParseAddrPort("[::6]:0")}
	otherUID = who{uid: 1338}
)

// ask dials and returns what the server said. The address is dialled as a
// connected socket, so that a UDP answer from elsewhere would not be received.
func (s *space) ask(w who, network, addr string) string {
	var answer string
	err := s.try(func() error {
		// The kernel keeps these per thread, and the socket those of its maker.
		unix.SetfsuidRetUid(w.uid)
		unix.SetfsgidRetGid(w.gid)
		defer unix.SetfsuidRetUid(0)
		defer unix.SetfsgidRetGid(0)
		d := net.Dialer{Timeout: 2 * time.Second, Control: func(_, _ string, c syscall.RawConn) (err error) {
			if w.mark == 0 {
				return nil
			}
			if cerr := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, w.mark)
			}); cerr != nil {
				return cerr
			}
			return err
		}}
		if w.source.IsValid() {
			d.LocalAddr = net.TCPAddrFromAddrPort(w.source)
			if network == "udp" {
				d.LocalAddr = net.UDPAddrFromAddrPort(w.source)
			}
		}
		c, err := d.DialContext(context.Background(), network, addr)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(2 * time.Second))
		if network == "udp" {
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
			b := make([]byte, 512)
			n, err := c.Read(b)
			answer = string(b[:n])
			return err
		}
		b, err := io.ReadAll(c)
		answer = string(b)
		return err
	})
	if err != nil {
		var errno syscall.Errno
		if errors.As(err, &errno) {
			return errno.Error()
		}
		return err.Error()
	}
	return answer
}

// attempt is one connection and where it has to arrive.
type attempt struct {
	name    string
	inbound bool // from the world to the pod
	who     who
	network string // "" is tcp
	addr    string
	want    string
}

func (m *mesh) check(t *testing.T, r Ruleset, attempts []attempt) {
	for _, a := range attempts {
		if singleUID() && (a.who.uid != 0 || a.who.gid != 0) {
			continue
		}
		t.Run(a.name, func(t *testing.T) {
			network := a.network
			if network == "" {
				network = "tcp"
			}
			from := m.pod
			if a.inbound {
				from = m.world
			}
			got := from.ask(a.who, network, a.addr)
			if got != a.want {
				t.Errorf("%s %s arrives at %q, want %q", network, a.addr, got, a.want)
			}
			// What Decide says about the same packet must be what the kernel did.
			port := r.Decide(a.packet(network))
			redirected := strings.HasPrefix(got, "pod:15053 ") || strings.HasPrefix(got, "pod:") && !strings.HasSuffix(got, " -")
			if redirected != (port != 0) || redirected && !strings.HasPrefix(got, fmt.Sprintf("pod:%d ", port)) {
				t.Errorf("Decide says %d, the kernel %q", port, got)
			}
		})
	}
}

func (a attempt) packet(network string) Packet {
	dst := netip.MustParseAddrPort(a.addr)
	p := Packet{UDP: network == "udp", Dst: dst, UID: uint32(a.who.uid), GID: uint32(a.who.gid), Mark: uint32(a.who.mark)}
	switch {
	case a.inbound:
		p.In = "eth0"
	case dst.Addr().IsLoopback() || dst.Addr() == netip.MustParseAddr("10.0.0.1") || dst.Addr() == netip.MustParseAddr("2001:db8::1"):
		p.Out = "lo"
	default:
		p.Out = "eth0"
	}
	p.Src = a.who.source
	if !p.Src.IsValid() {
		p.Src = netip.MustParseAddrPort("10.0.0.1:40000")
		if dst.Addr().Is6() {
			p.Src = netip.MustParseAddrPort("[2001:db8::1]:40000")
		}
	}
	return p
}

func (m *mesh) apply(t *testing.T, r Ruleset) {
	t.Helper()
	m.pod.do(func() error { return Apply(r) })
}

func captureAll() Config {
	c := Default()
	c.DNS = true
	c.ExcludeOutboundPorts = []uint16{22}
	c.ExcludeOutbound = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("2001:db8:1::/48")}
	return c
}

var captureAttempts = []attempt{
	{"outbound", false, app, "", "10.0.0.2:80", "pod:15001 10.0.0.2:80"},
	{"outbound IPv6", false, app, "", "[2001:db8::2]:80", "pod:15001 [2001:db8::2]:80"},
	{"outbound to an address nobody has", false, app, "", "10.96.7.7:9080", "pod:15001 10.96.7.7:9080"},
	{"another uid", false, otherUID, "", "10.0.0.2:80", "pod:15001 10.0.0.2:80"},
	{"proxy by uid", false, byUID, "", "10.0.0.2:80", "world:80 -"},
	{"proxy by gid", false, byGID, "", "10.0.0.2:80", "world:80 -"},
	{"proxy by mark", false, byMark, "", "10.0.0.2:80", "world:80 -"},
	{"proxy by mark IPv6", false, byMark, "", "[2001:db8::2]:80", "world:80 -"},
	{"excluded port", false, app, "", "10.0.0.2:22", "world:22 -"},
	{"excluded port IPv6", false, app, "", "[2001:db8::2]:22", "world:22 -"},
	{"excluded range", false, app, "", "10.1.0.2:80", "world:80 -"},
	{"excluded range IPv6", false, app, "", "[2001:db8:1::2]:80", "world:80 -"},

	{"app to localhost", false, app, "", "127.0.0.1:8080", "pod:8080 -"},
	{"app to localhost IPv6", false, app, "", "[::1]:8080", "pod:8080 -"},
	{"app to its own pod address", false, app, "", "10.0.0.1:8080", "pod:8080 -"},
	{"proxy to its own pod address", false, byMark, "", "10.0.0.1:8080", "pod:15006 10.0.0.1:8080"},
	{"proxy by uid to its own pod address", false, byUID, "", "10.0.0.1:8080", "pod:15006 10.0.0.1:8080"},
	{"proxy to its own pod address IPv6", false, byMark, "", "[2001:db8::1]:8080", "pod:15006 [2001:db8::1]:8080"},
	{"proxy to its own tunnel port", false, byMark, "", "10.0.0.1:15008", "pod:15008 -"},
	{"proxy to localhost", false, byMark, "", "127.0.0.1:8080", "pod:8080 -"},
	{"proxy hands on to the app", false, handOn4, "", "10.0.0.1:8080", "pod:8080 -"},
	{"proxy hands on to the app IPv6", false, handOn6, "", "[2001:db8::1]:8080", "pod:8080 -"},

	{"inbound", true, app, "", "10.0.0.1:8080", "pod:15006 10.0.0.1:8080"},
	{"inbound IPv6", true, app, "", "[2001:db8::1]:8080", "pod:15006 [2001:db8::1]:8080"},
	{"inbound where nobody listens", true, app, "", "10.0.0.1:7777", "pod:15006 10.0.0.1:7777"},
	{"inbound from a peer's proxy", true, byMark, "", "10.0.0.1:8080", "pod:15006 10.0.0.1:8080"},
	{"inbound to an excluded port", true, app, "", "10.0.0.1:15090", "pod:15090 -"},
	{"inbound to the tunnel port", true, app, "", "10.0.0.1:15008", "pod:15008 -"},

	{"DNS", false, app, "udp", "10.0.0.2:53", "pod:15053 -"},
	{"DNS IPv6", false, app, "udp", "[2001:db8::2]:53", "pod:15053 -"},
	{"DNS server on localhost", false, app, "udp", "127.0.0.1:53", "pod:15053 -"},
	{"DNS over TCP", false, app, "", "10.0.0.2:53", "pod:15053 10.0.0.2:53"},
	{"DNS over TCP to localhost", false, app, "", "127.0.0.1:53", "pod:15053 127.0.0.1:53"},
	{"proxy's DNS", false, byMark, "udp", "10.0.0.2:53", "world:53 -"},
	{"proxy's DNS by uid", false, byUID, "udp", "10.0.0.2:53", "world:53 -"},
	{"proxy's DNS IPv6", false, byMark, "udp", "[2001:db8::2]:53", "world:53 -"},
	{"proxy's DNS over TCP", false, byMark, "", "10.0.0.2:53", "world:53 -"},
}

func TestCapture(t *testing.T) {
	m := newMesh(t)
	r := Rules(captureAll())
	m.apply(t, r)
	m.check(t, r, captureAttempts)
}

// The tables that kernels without NAT in family inet get do the same.
func TestCaptureWithTablesPerFamily(t *testing.T) {
	m := newMesh(t)
	r := Rules(captureAll())
	m.pod.do(func() error {
		if err := write(r, r.singleFamilies()...); err != nil {
			return err
		}
		return setPassthroughAddress(unix.RTM_NEWADDR)
	})
	m.check(t, r, captureAttempts)
	m.pod.do(Remove)
	m.checkNothingLeft(t)
}

func TestCaptureOfOneDNSServer(t *testing.T) {
	m := newMesh(t)
	c := Default()
	c.DNS = true
	c.DNSServers = []netip.Addr{netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("2001:db8:1::2")}
	r := Rules(c)
	m.apply(t, r)
	m.check(t, r, []attempt{
		{"the server", false, app, "udp", "10.1.0.2:53", "pod:15053 -"},
		{"the server IPv6", false, app, "udp", "[2001:db8:1::2]:53", "pod:15053 -"},
		{"the server over TCP", false, app, "", "10.1.0.2:53", "pod:15053 10.1.0.2:53"},
		{"another", false, app, "udp", "10.0.0.2:53", "world:53 -"},
		{"another over TCP", false, app, "", "10.0.0.2:53", "pod:15001 10.0.0.2:53"},
	})
}

func TestOnlyIncluded(t *testing.T) {
	m := newMesh(t)
	c := Default()
	c.AllInbound, c.AllOutbound = false, false
	c.IncludeInboundPorts = []uint16{8080, 8081}
	c.IncludeOutbound = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.2.0.0/16"), netip.MustParsePrefix("2001:db8:1::/48")}
	c.IncludeOutboundPorts = []uint16{443}
	r := Rules(c)
	m.apply(t, r)
	m.check(t, r, []attempt{
		{"included range", false, app, "", "10.1.0.2:80", "pod:15001 10.1.0.2:80"},
		{"end of an included range", false, app, "", "10.2.255.255:80", "pod:15001 10.2.255.255:80"},
		{"included range IPv6", false, app, "", "[2001:db8:1::2]:80", "pod:15001 [2001:db8:1::2]:80"},
		{"included port", false, app, "", "10.0.0.2:443", "pod:15001 10.0.0.2:443"},
		{"neither", false, app, "", "10.0.0.2:80", "world:80 -"},
		{"neither IPv6", false, app, "", "[2001:db8::2]:80", "world:80 -"},
		{"no DNS", false, app, "udp", "10.0.0.2:53", "world:53 -"},
		{"included inbound port", true, app, "", "10.0.0.1:8080", "pod:15006 10.0.0.1:8080"},
		{"other inbound port", true, app, "", "10.0.0.1:9090", "pod:9090 -"},
	})
}

func TestCaptureWithoutIPv6(t *testing.T) {
	m := newMesh(t)
	c := captureAll()
	c.IPv6 = false
	r := Rules(c)
	m.apply(t, r)
	m.check(t, r, []attempt{
		{"outbound", false, app, "", "10.0.0.2:80", "pod:15001 10.0.0.2:80"},
		{"outbound IPv6", false, app, "", "[2001:db8::2]:80", "world:80 -"},
		{"inbound IPv6", true, app, "", "[2001:db8::1]:8080", "pod:8080 -"},
		{"DNS IPv6", false, app, "udp", "[2001:db8::2]:53", "world:53 -"},
	})
}

func TestCaptureExcludedInterface(t *testing.T) {
	m := newMesh(t)
	c := Default()
	c.ExcludeInterfaces = []string{"eth0", "net1"}
	r := Rules(c)
	m.apply(t, r)
	m.check(t, r, []attempt{
		{"outbound", false, app, "", "10.0.0.2:80", "world:80 -"},
		{"inbound", true, app, "", "10.0.0.1:8080", "pod:8080 -"},
	})
}

// A port that an application asked DNS from may be the proxy's next one, while
// the kernel still remembers that what comes from it is redirected.
func TestCaptureLetsProxyReuseAnApplicationsDNSPort(t *testing.T) {
	m := newMesh(t)
	m.apply(t, Rules(captureAll()))
	for _, addr := range []struct{ source, server string }{
		{"10.0.0.1:5353", "10.0.0.2:53"},
		{"[2001:db8::1]:5353", "[2001:db8::2]:53"},
	} {
		source := netip.MustParseAddrPort(addr.source)
		if got := m.pod.ask(who{source: source}, "udp", addr.server); got != "pod:15053 -" {
			t.Fatalf("application: %q", got)
		}
		if got := m.pod.ask(who{source: source, mark: 1337}, "udp", addr.server); got != "world:53 -" {
			t.Errorf("proxy, from the same port: %q, want the server's answer", got)
		}
	}
}

func TestCaptureWithLongLists(t *testing.T) {
	m := newMesh(t)
	c := Default()
	c.ExcludeOutboundPorts = nil
	for p := range uint16(3000) {
		c.ExcludeOutboundPorts = append(c.ExcludeOutboundPorts, 1000+2*p)
	}
	for i := range 2000 {
		c.ExcludeOutbound = append(c.ExcludeOutbound,
			netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i / 128), byte(i * 2), 0}), 24),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 2, byte(i / 128), byte(i * 2), 15: 0}), 32))
	}
	// Up to the last address there is.
	c.ExcludeOutbound = append(c.ExcludeOutbound, netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("255.0.0.0/8"), netip.MustParsePrefix("ff00::/8"))
	r := Rules(c)
	m.apply(t, r)
	m.check(t, r, []attempt{
		{"outbound", false, app, "", "10.0.0.2:80", "pod:15001 10.0.0.2:80"},
		{"outbound IPv6", false, app, "", "[2001:db8::2]:80", "pod:15001 [2001:db8::2]:80"},
		{"excluded range", false, app, "", "10.1.0.2:80", "world:80 -"},
		{"between excluded ranges", false, app, "", "20.3.1.7:80", "pod:15001 20.3.1.7:80"},
		{"captured port", false, app, "", "10.0.0.2:3001", "pod:15001 10.0.0.2:3001"},
		{"excluded port", false, app, "", "10.0.0.2:3002", "connection refused"},
	})
}

func TestApplyReplacesWhatWasThere(t *testing.T) {
	m := newMesh(t)
	m.apply(t, Rules(captureAll()))
	m.apply(t, Rules(captureAll()))
	once := m.tables(t)
	if once != 1 {
		t.Errorf("%d tables after two times, want 1", once)
	}
	m.apply(t, Rules(Config{AllInbound: true}))
	if got := m.pod.ask(app, "tcp", "10.0.0.2:80"); got != "world:80 -" {
		t.Errorf("outbound arrives at %q after it was switched off", got)
	}
	m.pod.do(Remove)
	m.checkNothingLeft(t)
	m.pod.do(Remove)
}

func (m *mesh) tables(t *testing.T) (n int) {
	m.pod.do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		tables, err := c.ListTables()
		n = len(tables)
		return err
	})
	return n
}

func (m *mesh) checkNothingLeft(t *testing.T) {
	t.Helper()
	if n := m.tables(t); n != 0 {
		t.Errorf("%d tables left", n)
	}
	m.pod.do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(lo, netlink.FAMILY_ALL)
		if len(addrs) != 2 {
			t.Errorf("addresses of lo are %v, want 127.0.0.1 and ::1", addrs)
		}
		return err
	})
	for addr, want := range map[string]string{"10.0.0.2:80": "world:80 -", "[2001:db8::2]:80": "world:80 -"} {
		if got := m.pod.ask(app, "tcp", addr); got != want {
			t.Errorf("%s arrives at %q, want %q", addr, got, want)
		}
	}
	if got := m.pod.ask(app, "udp", "10.0.0.2:53"); got != "world:53 -" {
		t.Errorf("DNS arrives at %q", got)
	}
	if got := m.world.ask(app, "tcp", "10.0.0.1:8080"); got != "pod:8080 -" {
		t.Errorf("inbound arrives at %q", got)
	}
}

// A user that may not change the network is told so, and not that the kernel
// is too old.
func TestApplyNeedsPermission(t *testing.T) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends without its capabilities
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			done <- err
			return
		}
		done <- Apply(Rules(Default()))
	}()
	if err := <-done; !errors.Is(err, os.ErrPermission) || strings.Contains(err.Error(), "\n") {
		t.Errorf("error is %v, want one that says permission denied", err)
	}
}
