// Package client follows a control plane over Envoy's incremental xDS protocol:
// one ADS stream, opened again for ever with growing pauses, whose answers are
// handed to a [Handler] that accepts or refuses each as a whole.
//
// What the handler accepted is kept in memory, named to the server on the next
// connection so that nothing unchanged travels twice, and written to one file,
// so that a proxy that starts while the control plane is away still knows its
// last configuration. A refused answer leaves no trace but the NACK.
package client

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/types/known/anypb"
)

// Resource is one resource as it came over the wire.
type Resource struct {
	Name    string
	Version string
	Body    *anypb.Any
	Updated time.Time // when it was accepted; zero in Apply
}

// Handler is who the resources are for. The client calls it from one goroutine
// at a time; it must not keep the slices.
type Handler interface {
	// Apply takes a change of one type in: resources added or changed, and names
	// that exist no more, or never did. An error refuses the whole change (NACK)
	// and must leave the state as it was.
	Apply(typeURL string, added []Resource, removed []string) error
	// Wanted returns the names to be subscribed to for a type that is asked for
	// by name: the routes that listeners, and the endpoints that clusters, refer
	// to, each once and sorted. It is asked after each Apply.
	Wanted(typeURL string) []string
}

// Config is what a client needs to know.
type Config struct {
	// Node describes the proxy to the control plane.
	Node *corev3.Node
	// Connect opens a connection; it need not be up when it is returned. The
	// client closes it. See [Dial].
	Connect func(ctx context.Context) (*grpc.ClientConn, error)
	Handler Handler
	// CachePath is the file with the last good configuration; "" keeps none.
	CachePath string
	Log       *slog.Logger
}

// kind is a type of resource that is followed.
type kind struct {
	url string
	// byName is set if only wanted resources are asked for, else all there are.
	byName bool
}

// secretType is the one whose resources are never written to disk.
const secretType = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

// kinds are in the order in which they are asked for and read from the file:
// what refers comes before what it refers to, clusters before routes.
var kinds = []kind{
	{"type.googleapis.com/envoy.config.cluster.v3.Cluster", false},
	{"type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment", true},
	{"type.googleapis.com/envoy.config.listener.v3.Listener", false},
	{"type.googleapis.com/envoy.config.route.v3.RouteConfiguration", true},
	{secretType, true},
	{"type.googleapis.com/istio.networking.nds.v1.NameTable", false},
}

// Pauses between attempts. They are drawn at random from the upper half, so that
// proxies which lost one server do not come back as one.
const (
	firstPause = 250 * time.Millisecond
	lastPause  = 15 * time.Second
)

// Client follows one control plane. Run it once.
type Client struct {
	cfg       Config
	connected atomic.Bool
	changed   chan struct{} // holds one token while the file is out of date

	mu sync.Mutex
	// mu guards the accepted resources, by type and name. A type that never came
	// has no entry.
	accepted map[string]map[string]Resource
}

// New checks the configuration and returns a client that has not started.
func New(cfg Config) (*Client, error) {
	switch {
	case cfg.Node.GetId() == "":
		return nil, errors.New("xds client: Config.Node has no id")
	case cfg.Connect == nil:
		return nil, errors.New("xds client: Config.Connect is missing")
	case cfg.Handler == nil:
		return nil, errors.New("xds client: Config.Handler is missing")
	case cfg.Log == nil:
		return nil, errors.New("xds client: Config.Log is missing")
	}
	return &Client{
		cfg:      cfg,
		changed:  make(chan struct{}, 1),
		accepted: map[string]map[string]Resource{},
	}, nil
}

// Dial prepares a connection to a control plane as a client needs it: a peer that
// is gone without a word is noticed within half a minute, and a large mesh fits
// into one message.
func Dial(target string, creds credentials.TransportCredentials, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient(target, append([]grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithInitialWindowSize(1 << 20),
		grpc.WithInitialConnWindowSize(1 << 20),
	}, opts...)...)
}

// maxMessage bounds what one answer may make a proxy allocate.
const maxMessage = 256 << 20

// Run loads the file, then connects and follows until ctx ends.
func (c *Client) Run(ctx context.Context) error {
	c.load()
	var saving sync.WaitGroup
	if c.cfg.CachePath != "" {
		saving.Go(func() { c.keepSaved(ctx) })
	}
	defer saving.Wait()

	pause := firstPause
	for ctx.Err() == nil {
		heard, err := c.follow(ctx)
		c.connected.Store(false)
		if ctx.Err() != nil {
			break
		}
		if heard {
			pause = firstPause
		}
		wait := pause/2 + rand.N(pause/2)
		pause = min(pause*2, lastPause)
		c.cfg.Log.Warn("control plane lost", "err", err, "retry", wait.Round(time.Millisecond))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
	return nil
}

// Connected reports whether a stream is open and has answered.
func (c *Client) Connected() bool { return c.connected.Load() }

// Resources returns what was accepted of one type, sorted by name.
func (c *Client) Resources(typeURL string) []Resource {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.SortedFunc(maps.Values(c.accepted[typeURL]), func(a, b Resource) int {
		switch {
		case a.Name < b.Name:
			return -1
		case a.Name > b.Name:
			return 1
		default:
			return 0
		}
	})
}

// versions returns the versions of what was accepted of one type.
func (c *Client) versions(typeURL string) map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[string]string, len(c.accepted[typeURL]))
	for name, r := range c.accepted[typeURL] {
		out[name] = r.Version
	}
	return out
}

// accept remembers a change that the handler took.
func (c *Client) accept(typeURL string, added []Resource, removed []string, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.accepted[typeURL]
	if all == nil {
		all = map[string]Resource{}
		c.accepted[typeURL] = all
	}
	for _, name := range removed {
		delete(all, name)
	}
	for _, r := range added {
		r.Updated = now
		all[r.Name] = r
	}
	c.touch()
}

// touch asks for the file to be written again.
func (c *Client) touch() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}
