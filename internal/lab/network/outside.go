package network

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// meshRanges are the ranges that a mesh keeps for itself: connections to them never
// leave it. The last ones are the addresses that ServiceEntries get, and those
// that are no single host.
var meshRanges = []netip.Prefix{
	PodCIDR,
	netip.MustParsePrefix("10.96.0.0/16"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/3"),
}

// CatchOutside sends TCP connections of pods to addresses outside of the mesh to
// a port of the node, where [OriginalDst] tells what was meant. IPv4 only.
func (n *Node) CatchOutside(port uint16) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	c, err := nftables.New()
	if err != nil {
		return err
	}
	t := n.tables[0]
	// After the chain with the cluster IPs: a connection that it translated
	// is not seen here.
	after := nftables.ChainPriority(*nftables.ChainPriorityNATDest + 10)
	chain := c.AddChain(&nftables.Chain{
		Name: "outside", Table: t.table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: &after,
	})
	offset, size := t.daddr()
	var exprs []expr.Any
	for _, p := range meshRanges {
		mask := net.CIDRMask(p.Bits(), 32)
		exprs = append(exprs,
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask, Xor: make([]byte, size)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: p.Masked().Addr().AsSlice()},
		)
	}
	exprs = append(exprs,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(TCP)}},
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Redir{RegisterProtoMin: 1},
	)
	c.AddRule(&nftables.Rule{Table: t.table, Chain: chain, Exprs: exprs})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("network: rules for the outside: %w", err)
	}
	return nil
}

// OriginalDst returns where a connection caught by [Node.CatchOutside] was going.
func OriginalDst(c *net.TCPConn) (netip.AddrPort, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	var addr *unix.IPv6Mreq // large enough for a sockaddr_in, which the kernel writes
	var getErr error
	err = raw.Control(func(fd uintptr) {
		addr, getErr = unix.GetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IP, unix.SO_ORIGINAL_DST)
	})
	if err != nil || getErr != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", firstOf(err, getErr))
	}
	b := addr.Multiaddr
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:4])), nil
}

func firstOf(a, b error) error {
	if a != nil {
		return a
	}
	return b
}
