package server

import (
	"fmt"
	"maps"
)

// sotw is the state-of-the-world variant. Quotations are from the document "xDS
// REST and gRPC protocol".
type sotw struct{ watches }

func newSotw() *sotw { return &sotw{watches{}} }

func (m *sotw) take(r *request) (verdict, bool, error) {
	w, first, err := m.of(r, len(r.names) > 0)
	if err != nil {
		return accepted, false, err
	}
	if len(r.names) > maxNames {
		return accepted, false, fmt.Errorf("more than %d names", maxNames)
	}
	// "The management server should not send a DiscoveryResponse for any
	// DiscoveryRequest that has a stale nonce." The client will ask again when it
	// reads the newer response. A request without nonce was sent before any
	// response came, and is heard.
	if !first && r.nonce != "" && r.nonce != w.nonce {
		return superseded, false, nil
	}
	v := accepted
	if !first { // a nonce on the first request is of an earlier stream
		v = w.settle(r)
	}
	added := w.subscribeTo(r.names)
	if first && w.wildcard && len(w.names) == 0 {
		// "Servers may decide to optimize by not resending resources that the
		// client had already seen on the previous stream … it is generally safe
		// for servers to do this optimization for LDS and CDS when the only
		// subscription is a wildcard subscription." respond compares.
		w.version = r.version
	}
	return v, first || added, nil
}

// subscribeTo makes names the whole subscription, and reports whether anything
// came to it. What is dropped is forgotten: "the server must resend any newly
// requested resources, even if it previously sent those resources".
func (w *watch) subscribeTo(names []string) (added bool) {
	if w.legacy && len(names) == 0 {
		return false // "all requests … have had an empty resource_names": still all
	}
	// "Once the client does explicitly subscribe to a resource name … this legacy
	// semantic is no longer available".
	w.legacy = false
	had := w.names
	w.names, w.order = make(map[string]bool, len(names)), nil
	all := false
	for _, n := range names {
		if n == "*" {
			all = true
			continue
		}
		w.names[n] = true
		if !had[n] {
			added = true
			// Under a wildcard the client has it already, if it was sent.
			if !w.wildcard || w.sent[n] == "" {
				w.force[n] = true
			}
		}
	}
	added = added || (all && !w.wildcard)
	w.wildcard = all
	if !all {
		maps.DeleteFunc(w.sent, func(n, _ string) bool { return !w.names[n] })
		maps.DeleteFunc(w.force, func(n string, _ bool) bool { return !w.names[n] })
	}
	return added
}

// respond. "Listener and Cluster resource types are handled differently: the
// server must include the complete state of the world"; of the others only what
// changed is sent, and a removal shows in the resource that referred to it.
func (m *sotw) respond(typeURL string, h have, only []string) *response {
	w := m.watches[typeURL]
	if w == nil || (!w.wildcard && len(w.names) == 0) {
		return nil
	}
	if only != nil && !wildcardType(typeURL) {
		return w.respondOnly(typeURL, h, only)
	}
	target := w.target(typeURL, h)
	next := make(map[string]string, len(target))
	out := &response{typeURL: typeURL}
	different := len(target) != len(w.sent) || len(w.force) > 0
	for _, r := range target {
		name := r.Name
		next[name] = r.Version
		had, known := w.sent[name]
		if had != r.Version || w.force[name] {
			different = true
			if known && had != r.Version {
				out.changed = append(out.changed, name)
			}
		} else if !wildcardType(typeURL) {
			continue
		}
		out.resources = append(out.resources, r)
	}
	out.version = stateVersion(next)
	if w.owed && w.nonce == "" && w.version == out.version {
		// The client brought this very state from an earlier stream.
		w.sent, w.owed = next, false
		clear(w.force)
		return nil
	}
	w.sent = next
	due := len(out.resources) > 0
	if wildcardType(typeURL) {
		due = different || w.owed
	}
	if !due {
		return nil
	}
	return w.stamp(out)
}

// respondOnly answers for some resources of a type that is not sent as a whole.
func (w *watch) respondOnly(typeURL string, h have, only []string) *response {
	out := &response{typeURL: typeURL}
	for _, name := range only {
		if !w.names[name] {
			continue
		}
		r := h.get(typeURL, name)
		if r == nil {
			delete(w.sent, name)
			continue
		}
		if w.sent[name] != r.Version {
			w.sent[name] = r.Version
			out.resources = append(out.resources, r)
		}
	}
	if len(out.resources) == 0 {
		return nil
	}
	out.version = stateVersion(w.sent)
	keep := maps.Clone(w.force) // what else was asked for is still owed
	for _, r := range out.resources {
		delete(keep, r.Name)
	}
	w.stamp(out)
	w.force = keep
	return out
}

var _ machine = (*sotw)(nil)
