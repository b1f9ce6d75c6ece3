// Package simnet is a network in memory, for tests of the whole product inside
// a testing/synctest bubble: hosts with addresses, TCP connections that close,
// half-close and break as the kernel's do, UDP, latency, partitions, crashes,
// and the capture of traffic by sidecars.
//
// Whoever waits on this network waits on channels only, so a bubble's clock
// advances past latencies and deadlines at once, and exactly. Make the network
// and use it within one bubble; without a bubble it works in real time. A
// bubble's clock stops when its test function returns: where there is latency,
// sleep before that, so that the last FIN arrives and readers end.
//
// A host has two views, because redirection tells two users apart: [Host.App]
// is the application's, whose connections are captured as the rules given to
// [Host.Redirect] say, and [Host.Proxy] the sidecar's, whose are not. Both are
// a socket.Network of package proxy/socket.
//
// Left out are things that take the kernel minutes: retransmission that gives
// up, and keep-alive. Bytes held back by a partition arrive when it heals.
package simnet

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/heddle-mesh/heddle/internal/redirect"
)

// Config describes a network.
type Config struct {
	// Latency is how long anything takes from one host to another, one way.
	// Within a host it takes no time.
	Latency time.Duration
	// Buffer is how many bytes a connection holds in each direction before
	// writing blocks; 0 is 4 MiB. A small one shows back pressure, but not with
	// net/http's HTTP/2: that writes with a mutex held for which others wait, and
	// such waits keep a bubble's clock from advancing.
	Buffer int
}

// Net is the network between hosts.
type Net struct {
	config Config

	// mu guards everything below and the hosts' tables. Nobody waits while holding
	// it, or takes a connection's lock.
	mu    sync.Mutex
	hosts map[netip.Addr]*Host
	links map[[2]*Host]*link
	taps  []*Tap
}

// New makes a network without hosts.
func New(c Config) *Net {
	if c.Buffer == 0 {
		c.Buffer = 4 << 20
	}
	return &Net{config: c, hosts: map[netip.Addr]*Host{}, links: map[[2]*Host]*link{}}
}

// Host is a machine, or a pod.
type Host struct {
	Name string

	net        *Net
	addrs      []netip.Addr
	app, proxy *View

	// Guarded by net.mu.
	rules     *redirect.Ruleset
	crashed   bool
	listeners []*Listener
	packets   []*PacketConn
	conns     map[*Conn]struct{}
	lastPort  uint16
	nat       map[natKey]natEntry
}

// Host adds a host with the given addresses. It panics if an address is not one
// or is taken: the test is wrong then.
func (n *Net) Host(name string, addrs ...string) *Host {
	h := &Host{Name: name, net: n, conns: map[*Conn]struct{}{}, nat: map[natKey]natEntry{}, lastPort: firstEphemeral - 1}
	h.app = &View{host: h, uid: appUID}
	h.proxy = &View{host: h, uid: proxyOwner, gid: proxyOwner, mark: proxyOwner}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range addrs {
		a := netip.MustParseAddr(s)
		if other := n.hosts[a]; other != nil {
			panic(fmt.Sprintf("simnet: %s has the address %v already", other.Name, a))
		}
		n.hosts[a] = h
		h.addrs = append(h.addrs, a)
	}
	return h
}

// The owners of sockets, as rules see them: an ordinary user, and the sidecar
// as Istio runs it.
const (
	appUID     = 1000
	proxyOwner = 1337
)

// App is the network as the host's application sees it.
func (h *Host) App() *View { return h.app }

// Proxy is the network as the host's sidecar sees it.
func (h *Host) Proxy() *View { return h.proxy }

// Addrs are the host's addresses.
func (h *Host) Addrs() []netip.Addr { return slices.Clone(h.addrs) }

// Addr is the host's first address.
func (h *Host) Addr() netip.Addr { return h.addrs[0] }

// Redirect captures the host's traffic as r says from now on; connections that
// exist stay as they are. The zero Ruleset ends it.
func (h *Host) Redirect(r redirect.Ruleset) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.rules = &r
}

// Kill ends all processes of the host, as the kernel does: listeners refuse,
// and connections end with FIN, or with RST if something was left unread. The
// host stays and can listen again.
func (h *Host) Kill() {
	h.app.Kill()
	h.proxy.Kill()
}

// Crash cuts the host's power: its sockets are closed, but nobody is told, and
// connections to it wait until their caller gives up. Its addresses stay taken.
func (h *Host) Crash() {
	h.net.mu.Lock()
	h.crashed = true
	for pair, l := range h.net.links {
		if pair[0] == h || pair[1] == h {
			l.set(true)
		}
	}
	h.net.mu.Unlock()
	h.Kill()
}

// Remove kills the host's processes and takes its addresses from the network,
// for others to have: what a cluster does with a deleted pod. Connecting to
// them is EHOSTUNREACH then.
func (n *Net) Remove(h *Host) {
	h.Kill()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range h.addrs {
		delete(n.hosts, a)
	}
}

// link is what is between two hosts.
type link struct {
	net     *Net
	latency time.Duration

	// Guarded by net.mu.
	down    bool
	since   time.Time     // of down
	epoch   int           // how often down changed
	changed chan struct{} // closed when down changes
}

// between returns the link of two hosts, nil within one. The caller holds mu.
func (n *Net) between(a, b *Host) *link {
	if a == b {
		return nil
	}
	if l := n.links[[2]*Host{a, b}]; l != nil {
		return l
	}
	l := &link{net: n, latency: n.config.Latency, changed: make(chan struct{})}
	n.links[[2]*Host{a, b}], n.links[[2]*Host{b, a}] = l, l
	if a.crashed || b.crashed {
		l.set(true)
	}
	return l
}

// set takes the link down or up. The caller holds net.mu.
func (l *link) set(down bool) {
	if l.down == down {
		return
	}
	l.down, l.since = down, time.Now()
	l.epoch++
	close(l.changed)
	l.changed = make(chan struct{})
}

// linkState is a link at one moment. A nil link, within a host, is always up.
type linkState struct {
	latency time.Duration
	arrived time.Time // what was to arrive until then has, if it got through
	down    bool
	epoch   int
	changed <-chan struct{} // closed when this state ends; nil if it does not
}

func (l *link) state() linkState {
	if l == nil {
		return linkState{arrived: time.Now()}
	}
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	s := linkState{latency: l.latency, arrived: time.Now(), down: l.down, epoch: l.epoch, changed: l.changed}
	if l.down {
		s.arrived = l.since
	}
	return s
}

// through says whether a segment has arrived. What is sent while the link is
// down does when it is up again.
func (s linkState) through(seg segment) bool {
	return !seg.at.After(s.arrived) && (!s.down || seg.epoch < s.epoch)
}

// next is when a segment that is not through will be, or zero if that depends on
// the link.
func (s linkState) next(seg segment) time.Time {
	if s.down {
		return time.Time{}
	}
	return seg.at
}

// SetLatency changes the way from a to b, and back, for what is sent from now on.
func (n *Net) SetLatency(a, b *Host, d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if l := n.between(a, b); l != nil {
		l.latency = d
	}
}

// Partition cuts a off from the others: datagrams are lost, and bytes and
// connections wait for [Net.Heal].
func (n *Net) Partition(a *Host, others ...*Host) { n.cut(true, a, others) }

// Heal ends a partition.
func (n *Net) Heal(a *Host, others ...*Host) { n.cut(false, a, others) }

func (n *Net) cut(down bool, a *Host, others []*Host) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, b := range others {
		if l := n.between(a, b); l != nil && !a.crashed && !b.crashed {
			l.set(down)
		}
	}
}
