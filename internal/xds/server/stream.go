package server

import (
	"context"
	"errors"
	"io"
	"maps"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/internal/compile"
	"github.com/heddle-mesh/heddle/internal/encode"
)

// stream is one proxy's connection. Its loop sends and is the only one to do so;
// marks from outside only leave notes and wake it.
type stream struct {
	server  *Server
	wire    wire
	node    string // the whole node id
	version string // of the proxy
	began   time.Time
	wake    chan struct{} // holds one token while there are notes

	notes sync.Mutex
	// notes guards what others leave for the loop. It is held for moments only, so
	// that a stream that compiles holds up nobody.
	publication *publication        // to be taken from
	unpushed    bool                // it is newer than what was pushed
	dirty       map[string]struct{} // EDS names whose endpoints differ
	secrets     bool                // secrets differ, and are watched
	watching    map[string][]string // EDS names by service port
	asksSecrets bool

	proven bool // the caller authenticated itself; set once

	mu sync.Mutex
	// mu guards the machine with what belongs to it, which others read for status.
	// It is never held while sending.
	proxy      *compile.Proxy // Asked changes
	machine    machine
	have       *resources   // nil until the first world
	taken      *publication // that have was made from
	maySecrets bool         // as it was last answered
	sweep      *time.Timer  // runs while clusters are leaving
	sentAt     map[string]time.Time
	ackedAt    map[string]time.Time
	converging time.Time // when the change came that is sent but not acknowledged; else zero
}

// serve runs one stream to its end.
func (s *Server) serve(ctx context.Context, auth Authenticator, w wire, m machine) error {
	first, err := w.recv()
	if err != nil {
		return err
	}
	if isDebug(first.typeURL) {
		return s.debug(ctx, auth, w, first)
	}
	proxy, err := proxyOf(first.node)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if err := s.who(ctx, auth, proxy); err != nil {
		s.cfg.Log.Warn("proxy turned away", "node", first.node.GetId(), "err", err)
		return err
	}
	st := &stream{
		server: s, wire: w, machine: m, proxy: proxy,
		node:    first.node.GetId(),
		version: first.node.GetMetadata().GetFields()["ISTIO_VERSION"].GetStringValue(),
		began:   time.Now(), proven: auth != nil,
		wake:  make(chan struct{}, 1),
		dirty: map[string]struct{}{}, watching: map[string][]string{},
		sentAt: map[string]time.Time{}, ackedAt: map[string]time.Time{},
	}
	if err := s.add(st); err != nil {
		return err
	}
	defer s.remove(st)
	s.cfg.Log.Info("proxy connected", "node", st.node)
	err = st.guarded(ctx, first)
	s.cfg.Log.Info("proxy gone", "node", st.node, "err", err)
	return err
}

// guarded runs the loop so that a mistake which one proxy brings to light ends
// its own stream and nobody else's.
func (st *stream) guarded(ctx context.Context, first *request) (err error) {
	defer func() {
		if r := recover(); r != nil {
			st.server.fault("stream of %s: %v\n%s", st.node, r, debug.Stack())
			err = status.Error(codes.Internal, "the control plane made a mistake; see its log")
		}
	}()
	return st.loop(ctx, first)
}

// loop answers requests and sends changes until the stream ends.
func (st *stream) loop(ctx context.Context, first *request) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer st.stopSweeping()
	requests, lost := make(chan *request), make(chan error, 1)
	// gRPC ends a recv when the handler returns, not before, so this goroutine
	// cannot be waited for here; it ends right after.
	go func() {
		for r, err := first, error(nil); ; r, err = st.wire.recv() {
			if err != nil {
				lost <- err
				return
			}
			select {
			case requests <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	// Without a world there is nothing to answer with; requests are kept in the
	// machine until there is.
	for {
		var err error
		select {
		case r := <-requests:
			err = st.take(ctx, r)
		case <-st.wake:
			err = st.push(ctx)
		case <-st.sweeping():
			err = st.clean()
		case err := <-lost:
			if errors.Is(err, io.EOF) || status.Code(err) == codes.Canceled {
				return nil
			}
			return err
		case <-ctx.Done():
			return nil
		case <-st.server.stop:
			return errStopping
		}
		if err != nil {
			return err
		}
	}
}

// take handles one request.
func (st *stream) take(ctx context.Context, r *request) error {
	if r.typeURL == encode.SecretType {
		st.askAccess(ctx)
	}
	out, err := st.answer(r)
	if err != nil {
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	return st.send(out)
}

// answer returns what a request is answered with, nil for nothing.
func (st *stream) answer(r *request) (*response, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	verdict, ask, err := st.machine.take(r)
	if err != nil {
		return nil, err
	}
	switch verdict {
	case refused:
		st.server.counts.reject(r.typeURL)
		st.server.cfg.Log.Warn("proxy refused its configuration", "node", st.node, "type", r.typeURL, "err", r.refused)
	case accepted:
		st.acknowledged(r)
	case superseded:
		st.server.counts.stale.Add(1)
	}
	if r.typeURL == encode.EndpointType && ask {
		st.indexEndpoints()
	}
	if r.typeURL == encode.ListenerType && ask && st.proxy.Class == compile.GRPC {
		// What a gRPC client gets depends on what it asks for.
		p := *st.proxy
		p.Asked = slices.Sorted(maps.Keys(st.machine.watched(encode.ListenerType)))
		st.proxy = &p
		st.taken = nil
	}
	if !ask || !st.refresh() {
		return nil, nil
	}
	return st.respond(r.typeURL, nil), nil
}

// acknowledged notes an ACK.
func (st *stream) acknowledged(r *request) {
	t := st.machine.status()[r.typeURL]
	if r.nonce == "" || r.nonce != t.Acked {
		return
	}
	now := time.Now()
	st.ackedAt[r.typeURL] = now
	if st.converging.IsZero() {
		return
	}
	for _, t := range st.machine.status() {
		if !t.Synced() {
			return
		}
	}
	st.server.counts.converged(now.Sub(st.converging))
	st.converging = time.Time{}
}

// askAccess notes whether the proxy may be given secrets. While that can not be
// told, it keeps those that it has and is given no others.
func (st *stream) askAccess(ctx context.Context) {
	st.notes.Lock()
	st.asksSecrets = true
	st.notes.Unlock()
	if st.server.cfg.MaySecrets == nil || !st.proven {
		return
	}
	may, err := st.server.cfg.MaySecrets(ctx, st.proxy.Namespace, st.proxy.ServiceAccount)
	if err != nil {
		st.server.cfg.Log.Warn("access to secrets can not be checked", "node", st.node, "err", err)
		return
	}
	if !may {
		st.server.cfg.Log.Warn("proxy asks for secrets that its service account may not read", "node", st.node, "account", st.proxy.ServiceAccount)
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.maySecrets = may
	if st.have != nil {
		next := *st.have
		next.secret = st.secret()
		st.have = &next
	}
}

// secret returns where the proxy gets its secrets from, or nil.
func (st *stream) secret() func(name string) *encode.Resource {
	if !st.maySecrets {
		return nil
	}
	proxy := st.proxy
	return func(name string) *encode.Resource {
		s, ok := st.server.eds.newest().Secret(proxy, name)
		if !ok {
			return nil
		}
		return encode.Secret(s)
	}
}

// push sends what the notes are about.
func (st *stream) push(ctx context.Context) error {
	st.notes.Lock()
	config, names := st.unpushed, slices.Sorted(maps.Keys(st.dirty))
	secrets := st.secrets
	st.secrets = false
	st.unpushed = false
	clear(st.dirty)
	st.notes.Unlock()
	switch {
	case !st.prepare(config):
		return nil
	case secrets:
		st.askAccess(ctx)
		if _, err := st.say(encode.SecretType, nil); err != nil {
			return err
		}
	}
	if !config && len(names) == 0 {
		return nil
	}
	if !config {
		_, err := st.say(encode.EndpointType, names)
		return err
	}
	said := false
	for _, typ := range pushOrder {
		something, err := st.say(typ, nil)
		if err != nil {
			return err
		}
		said = said || something
	}
	if !said {
		st.mu.Lock()
		st.converging = time.Time{} // there is nothing to be acknowledged
		st.mu.Unlock()
	}
	return nil
}

// prepare makes the configuration that is to be sent, and reports whether there
// is one.
func (st *stream) prepare(config bool) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if !st.refresh() {
		return false
	}
	if config && st.converging.IsZero() {
		st.converging = st.taken.changed
	}
	return true
}

// say sends what is due of one type.
func (st *stream) say(typeURL string, only []string) (something bool, err error) {
	out := st.due(typeURL, only)
	return out != nil, st.send(out)
}

func (st *stream) due(typeURL string, only []string) *response {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.respond(typeURL, only)
}

// respond makes the response of a type, if one is due.
func (st *stream) respond(typeURL string, only []string) *response {
	out := st.machine.respond(typeURL, st.have, only)
	if out == nil {
		return nil
	}
	if typeURL == encode.ClusterType {
		// "Warming of Cluster is completed only when a new ClusterLoadAssignment
		// response is supplied by management server even if there is no change in
		// endpoints."
		st.machine.forget(encode.EndpointType, out.changed)
	}
	st.sentAt[typeURL] = time.Now()
	st.server.counts.push(typeURL)
	return out
}

func (st *stream) send(out *response) error {
	if out == nil {
		return nil
	}
	return st.wire.send(out)
}

// refresh takes the configuration from the noted publication, if it is newer, and
// reports whether there is one. If it cannot be made, the proxy keeps what it has.
func (st *stream) refresh() bool {
	st.notes.Lock()
	publication := st.publication
	st.notes.Unlock()
	if publication == nil || st.taken == publication {
		return st.have != nil
	}
	p, err := st.server.plans.of(publication.world, st.proxy)
	st.taken = publication
	if err != nil {
		st.server.fault("%w", err)
		return st.have != nil
	}
	next := &resources{planned: p, endpoints: st.server.eds, named: st.proxy.Class == compile.GRPC, secret: st.secret()}
	if st.have != nil {
		next.leaving = st.have.gone(p)
		if len(next.leaving) > 0 && st.sweep == nil {
			st.sweep = time.NewTimer(linger)
		}
	}
	st.have = next
	return true
}

// linger is how long a cluster that is gone stays, so that the new routes reach
// the proxy first, and requests that were sent there by the old ones end. "Stale
// CDS clusters and related EDS endpoints (ones no longer being referenced) can
// then be removed."
const linger = time.Second

// sweeping returns a channel that delivers when clusters have lingered.
func (st *stream) sweeping() <-chan time.Time {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.sweep == nil {
		return nil
	}
	return st.sweep.C
}

func (st *stream) stopSweeping() {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.sweep != nil {
		st.sweep.Stop()
	}
}

// clean removes the clusters that have lingered, and their endpoints.
func (st *stream) clean() error {
	st.mu.Lock()
	st.sweep = nil
	swept := *st.have
	swept.leaving = nil
	st.have = &swept
	st.mu.Unlock()
	if _, err := st.say(encode.ClusterType, nil); err != nil {
		return err
	}
	_, err := st.say(encode.EndpointType, nil)
	return err
}

// indexEndpoints notes which service ports the stream watches.
func (st *stream) indexEndpoints() {
	watching := map[string][]string{}
	for name := range st.machine.watched(encode.EndpointType) {
		k := endpointKey(name)
		watching[k] = append(watching[k], name)
	}
	st.notes.Lock()
	st.watching = watching
	st.notes.Unlock()
}

// markConfig notes that there is a newer configuration.
func (st *stream) markConfig(p *publication) {
	st.notes.Lock()
	st.publication, st.unpushed = p, true
	st.notes.Unlock()
	st.awake()
}

// markEndpoints notes that the endpoints of some service ports differ.
func (st *stream) markEndpoints(keys []string) {
	st.notes.Lock()
	for _, k := range keys {
		for _, name := range st.watching[k] {
			st.dirty[name] = struct{}{}
		}
	}
	found := len(st.dirty) > 0
	st.notes.Unlock()
	if found {
		st.awake()
	}
}

// markSecrets notes that some secret differs, if any are watched.
func (st *stream) markSecrets() {
	st.notes.Lock()
	st.secrets = st.asksSecrets
	found := st.secrets
	st.notes.Unlock()
	if found {
		st.awake()
	}
}

func (st *stream) awake() {
	select {
	case st.wake <- struct{}{}:
	default:
	}
}
