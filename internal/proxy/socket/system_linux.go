package socket

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// keepAlive finds peers that vanished without a word. It is Linux's mechanism
// with times that suit connections which idle for hours: the default of two
// hours before the first probe outlives most middle boxes' memory.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Minute, Interval: 30 * time.Second, Count: 5}

// Linux's netfilter adds these socket options; x/sys/unix names only the first.
// Source: linux/netfilter_ipv4.h, linux/netfilter_ipv6/ip6_tables.h.
const (
	soOriginalDst     = unix.SO_ORIGINAL_DST
	ip6tSoOriginalDst = 80
)

// System is the network of the operating system.
type System struct {
	// Mark is set on every socket, if not 0, so that redirection rules can tell
	// the proxy's own connections. Setting it needs CAP_NET_ADMIN.
	Mark uint32
	// ReusePort lets another process listen on the same addresses, so that a
	// new proxy can take over from an old one without refusing a connection.
	ReusePort bool
}

// Listen implements Network.
func (s System) Listen(ctx context.Context, addr netip.AddrPort) (net.Listener, error) {
	lc := net.ListenConfig{Control: s.control(true), KeepAliveConfig: keepAlive}
	// The original destination and splicing are known of plain TCP only.
	lc.SetMultipathTCP(false)
	// "tcp" with :: takes IPv4 too; an IPv4 address must not take IPv6.
	network := "tcp"
	if addr.Addr().Is4() {
		network = "tcp4"
	}
	l, err := lc.Listen(ctx, network, addr.String())
	if err != nil && addr.Addr() == netip.IPv6Unspecified() {
		// A kernel without IPv6 still has the other half of the wildcard.
		if l4, err4 := lc.Listen(ctx, "tcp4", fmt.Sprintf("0.0.0.0:%d", addr.Port())); err4 == nil {
			l, err = l4, nil
		}
	}
	if err != nil {
		return nil, err
	}
	return wrapping{l}, nil
}

// wrapping is a listener whose connections are Conns.
type wrapping struct{ net.Listener }

// Accept implements net.Listener.
func (l wrapping) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return Wrap(c), nil
}

// ListenPacket receives UDP datagrams at addr.
func (s System) ListenPacket(ctx context.Context, addr netip.AddrPort) (net.PacketConn, error) {
	lc := net.ListenConfig{Control: s.control(true)}
	return lc.ListenPacket(ctx, "udp", addr.String())
}

// Dial implements Network.
func (s System) Dial(ctx context.Context, source netip.Addr, addr netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{Control: s.control(false), KeepAliveConfig: keepAlive}
	d.SetMultipathTCP(false)
	if source.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
		d.Control = s.controlBind
	}
	c, err := d.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	return Wrap(c), nil
}

func (s System) control(listen bool) func(network, address string, c syscall.RawConn) error {
	if s.Mark == 0 && !(listen && s.ReusePort) {
		return nil
	}
	return func(_, _ string, c syscall.RawConn) error {
		return setOptions(c, func(fd int) error {
			if listen && s.ReusePort {
				if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
					return fmt.Errorf("set SO_REUSEPORT: %w", err)
				}
			}
			return s.mark(fd)
		})
	}
}

// controlBind is for sockets bound to a source address: the kernel chooses the
// port at connect, when it knows the destination, so that the source's ports do
// not run out after 28,000 connections to all destinations together.
func (s System) controlBind(_, _ string, c syscall.RawConn) error {
	return setOptions(c, func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			return fmt.Errorf("set IP_BIND_ADDRESS_NO_PORT: %w", err)
		}
		return s.mark(fd)
	})
}

func (s System) mark(fd int) error {
	if s.Mark == 0 {
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(s.Mark)); err != nil {
		return fmt.Errorf("set SO_MARK %d: %w", s.Mark, err)
	}
	return nil
}

func setOptions(c syscall.RawConn, set func(fd int) error) error {
	var err error
	if cerr := c.Control(func(fd uintptr) { err = set(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// OriginalDst implements Network.
func (s System) OriginalDst(c net.Conn) (netip.AddrPort, bool) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return netip.AddrPort{}, false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, false
	}
	local := localAddr(c)
	var dst netip.AddrPort
	cerr := raw.Control(func(fd uintptr) {
		if local.Addr().Is4() {
			dst, err = originalDst4(int(fd))
		} else {
			dst, err = originalDst6(int(fd))
		}
	})
	// Without redirection there is no entry, or it is the local address.
	if cerr != nil || err != nil || !dst.IsValid() || dst == local {
		return netip.AddrPort{}, false
	}
	return dst, true
}

// localAddr returns the local address of c; IPv4 in IPv6 form becomes IPv4, as
// the kernel's table keeps it.
func localAddr(c net.Conn) netip.AddrPort {
	a, ok := c.LocalAddr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	p := a.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// originalDst4 asks for a sockaddr_in. The package has no call that returns one;
// that for ipv6_mreq returns 20 bytes as they come, of which a sockaddr_in is the
// first 16: family, port and address.
func originalDst4(fd int) (netip.AddrPort, error) {
	m, err := unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, soOriginalDst)
	if err != nil {
		return netip.AddrPort{}, err
	}
	b := m.Multiaddr
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:4])), nil
}

// originalDst6 asks for a sockaddr_in6, with which the result of this call
// begins.
func originalDst6(fd int) (netip.AddrPort, error) {
	m, err := unix.GetsockoptIPv6MTUInfo(fd, unix.SOL_IPV6, ip6tSoOriginalDst)
	if err != nil {
		return netip.AddrPort{}, err
	}
	var port [2]byte
	binary.NativeEndian.PutUint16(port[:], m.Addr.Port)
	return netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr).Unmap(), binary.BigEndian.Uint16(port[:])), nil
}

// DialContext is net.Dialer's, for sockets of other kinds than Dial's: queries to
// name servers, and connections to hosts that are known by name. They are marked
// as all others.
func (s System) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Control: s.control(false), KeepAliveConfig: keepAlive}
	d.SetMultipathTCP(false)
	return d.DialContext(ctx, network, address)
}

// MayMark reports whether this process may mark its sockets.
func MayMark() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 1) == nil
}
