package client

import (
	"context"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
)

// stream is one ADS stream. Only the goroutine that reads it touches it.
type stream struct {
	client *Client
	rpc    discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	// subscribed holds the names asked for, for each type asked for by name.
	subscribed map[string][]string
	// greeted is set once the node was sent; the server needs it once.
	greeted bool
}

// follow opens one stream and follows it to its end. heard reports whether the
// server ever answered.
func (c *Client) follow(ctx context.Context) (heard bool, err error) {
	conn, err := c.cfg.Connect(ctx)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream
	rpc, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return false, err
	}
	s := &stream{client: c, rpc: rpc, subscribed: map[string][]string{}}
	if err := s.open(); err != nil {
		return false, s.cause(err)
	}
	for {
		answer, err := rpc.Recv()
		if err != nil {
			return heard, err
		}
		heard = true
		c.connected.Store(true)
		if err := s.take(answer); err != nil {
			return heard, s.cause(err)
		}
	}
}

// cause finds out why a Send failed: it only says that the stream has ended, and
// the reason is read.
func (s *stream) cause(err error) error {
	for err == io.EOF {
		if _, why := s.rpc.Recv(); why != nil {
			return why
		}
	}
	return err
}

// open asks for every type, naming the versions already here, so that only what
// changed is sent ("initial_resource_versions … continue the same logical xDS
// session even in the face of gRPC stream reconnection").
func (s *stream) open() error {
	for _, k := range kinds {
		versions := s.client.versions(k.url)
		if !k.byName {
			// No names at all in the first request is the form of "all of them"
			// that every server knows.
			if err := s.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: k.url, InitialResourceVersions: versions}); err != nil {
				return err
			}
			continue
		}
		wanted := s.client.cfg.Handler.Wanted(k.url)
		s.client.forget(k.url, setOf(wanted)) // the file may have had more
		versions = s.client.versions(k.url)
		if err := s.subscribe(k.url, wanted, versions); err != nil {
			return err
		}
	}
	return nil
}

// take hands one answer to the handler, and tells the server what came of it.
func (s *stream) take(answer *discoveryv3.DeltaDiscoveryResponse) error {
	c := s.client
	var added []Resource
	for _, r := range answer.GetResources() {
		if r.GetResource() == nil {
			continue // a sign of life for a resource with a TTL, which we do not use
		}
		added = append(added, Resource{Name: r.GetName(), Version: r.GetVersion(), Body: r.GetResource()})
	}
	reply := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: answer.GetTypeUrl(), ResponseNonce: answer.GetNonce()}
	if err := c.cfg.Handler.Apply(answer.GetTypeUrl(), added, answer.GetRemovedResources()); err != nil {
		c.cfg.Log.Error("configuration refused", "type", answer.GetTypeUrl(), "err", err)
		reply.ErrorDetail = &status.Status{Code: int32(codes.InvalidArgument), Message: shorten(err.Error())}
		return s.send(reply)
	}
	c.accept(answer.GetTypeUrl(), added, answer.GetRemovedResources(), time.Now())
	if err := s.send(reply); err != nil {
		return err
	}
	for _, k := range kinds {
		if !k.byName {
			continue
		}
		if err := s.subscribe(k.url, c.cfg.Handler.Wanted(k.url), nil); err != nil {
			return err
		}
	}
	return nil
}

// subscribe tells the server the difference between what is subscribed to and
// what is wanted. What is wanted no more is forgotten, since it grows stale now.
func (s *stream) subscribe(typeURL string, wanted []string, versions map[string]string) error {
	had := s.subscribed[typeURL]
	if slices.Equal(wanted, had) {
		return nil // the usual case
	}
	s.subscribed[typeURL] = slices.Clone(wanted)
	before, after := setOf(had), setOf(wanted)
	s.client.forget(typeURL, after)
	return s.send(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl:                  typeURL,
		ResourceNamesSubscribe:   missing(after, before),
		ResourceNamesUnsubscribe: missing(before, after),
		InitialResourceVersions:  versions,
	})
}

func (s *stream) send(req *discoveryv3.DeltaDiscoveryRequest) error {
	if !s.greeted {
		req.Node = s.client.cfg.Node
		s.greeted = true
	}
	return s.rpc.Send(req)
}

// forget drops accepted resources of a type that are not wanted any more.
func (c *Client) forget(typeURL string, wanted map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := len(c.accepted[typeURL])
	maps.DeleteFunc(c.accepted[typeURL], func(name string, _ Resource) bool { return !wanted[name] })
	if len(c.accepted[typeURL]) != before {
		c.touch()
	}
}

func setOf(names []string) map[string]bool {
	set := make(map[string]bool, len(names))
	for _, n := range names {
		set[n] = true
	}
	return set
}

// missing returns the names of a that b lacks, sorted.
func missing(a, b map[string]bool) []string {
	var out []string
	for n := range a {
		if !b[n] {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

// shorten keeps a message about thousands of faults readable at the other end.
func shorten(s string) string {
	const most = 4 << 10
	if len(s) > most {
		s = s[:most] + " …"
	}
	return strings.ToValidUTF8(s, "?") // or it could not be sent
}
