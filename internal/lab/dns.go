package lab

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/heddle-mesh/heddle/internal/dnsproxy"
)

// upstreamTimeout is short: behind the machine's resolver stands a user who
// waits, and behind a broken one a program that does.
const upstreamTimeout = 3 * time.Second

// dns makes the cluster's DNS server, at the node. It answers for Services and
// asks the machine's resolvers for the rest, over sockets that the front opens
// in the machine's own network.
func (n *node) dns() (*dnsproxy.Server, error) {
	at := netip.AddrPortFrom(dnsAddress, 53).String()
	packet, err := net.ListenPacket("udp", at)
	if err != nil {
		return nil, err
	}
	stream, err := net.Listen("tcp", at)
	if err != nil {
		packet.Close()
		return nil, err
	}
	var upstreams []netip.AddrPort
	for _, r := range n.cfg.Resolvers {
		if a, err := netip.ParseAddr(r); err == nil {
			upstreams = append(upstreams, netip.AddrPortFrom(a, 53))
		}
	}
	return dnsproxy.New(dnsproxy.Config{
		Packet: packet, Stream: stream,
		Upstreams: upstreams, Zones: []string{clusterDomain}, Timeout: upstreamTimeout,
		Dial: func(ctx context.Context, network string, addr netip.AddrPort) (net.Conn, error) {
			return n.link.dial(ctx, network, addr.String())
		},
	})
}
