// Package socket is the proxy's door to the network: listen, dial, and ask a
// captured connection where it was going. The real one marks its own sockets so
// that redirection lets them pass; tests put a simulated network in its place.
package socket

import (
	"context"
	"net"
	"net/netip"
)

// Network opens sockets. Implementations are safe for concurrent use.
type Network interface {
	// Listen accepts TCP connections at addr; port 0 picks one.
	Listen(ctx context.Context, addr netip.AddrPort) (net.Listener, error)
	// Dial opens a TCP connection. source is the local address to use, or the
	// zero Addr for any. It returns when ctx ends at the latest.
	Dial(ctx context.Context, source netip.Addr, addr netip.AddrPort) (net.Conn, error)
	// OriginalDst returns the address a captured connection was dialled to, and
	// false if the connection was not redirected: its local address then is
	// where it was going.
	OriginalDst(c net.Conn) (netip.AddrPort, bool)
}
