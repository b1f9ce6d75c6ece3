package server

import (
	"fmt"
	"maps"
	"slices"

	"github.com/heddle-mesh/heddle/internal/encode"
)

// delta is the incremental variant. Quotations are from the document "xDS REST
// and gRPC protocol", section "Incremental xDS".
type delta struct{ watches }

func newDelta() *delta { return &delta{watches{}} }

func (m *delta) take(r *request) (verdict, bool, error) {
	w, first, err := m.of(r, len(r.subscribe) > 0 || len(r.unsubscribe) > 0)
	if err != nil {
		return accepted, false, err
	}
	v := accepted
	if first {
		// "On reconnect the Incremental xDS client may tell the server of its
		// known resources to avoid resending them over the network".
		maps.Copy(w.sent, r.initial)
	} else {
		v = w.settle(r)
	}
	// "The server must honor changes to the subscription state even if the nonce
	// is stale."
	ask := w.subscribe(r.subscribe, first)
	ask = w.unsubscribe(r.unsubscribe) || ask
	if len(w.names) > maxNames || len(w.sent) > maxNames {
		return v, false, fmt.Errorf("more than %d names", maxNames)
	}
	return v, ask || first, nil
}

// subscribe adds names, and reports whether there are any.
func (w *watch) subscribe(names []string, first bool) bool {
	if len(names) == 0 {
		return false
	}
	// The wildcard of the legacy form stays: "continuing the existing
	// subscription to * and adding a new subscription to A".
	w.legacy = false
	for _, n := range names {
		if n == "*" {
			w.wildcard = true
			continue
		}
		w.names[n], w.order = true, nil
		// "The server must still provide those resources in the response; … the
		// client may have “forgotten” those resources despite apparently
		// remaining subscribed." Not so on the first request, where the client has
		// just said what it has.
		if !first || w.sent[n] == "" {
			w.force[n] = true
		}
	}
	return true
}

// unsubscribe drops names, and reports whether an answer is due.
func (w *watch) unsubscribe(names []string) (ask bool) {
	for _, n := range names {
		if n == "*" {
			w.wildcard, w.legacy = false, false
			maps.DeleteFunc(w.sent, func(n, _ string) bool { return !w.names[n] })
			maps.DeleteFunc(w.force, func(n string, _ bool) bool { return !w.names[n] })
			continue
		}
		if !w.names[n] {
			continue // "superfluous resource names": "it can simply ignore these"
		}
		delete(w.names, n)
		w.order = nil
		delete(w.force, n)
		if w.wildcard {
			// "The server must send a response that includes the specific resource
			// in either the removed_resources field … or in the resources field".
			w.force[n] = true
			ask = true
		} else {
			delete(w.sent, n)
		}
	}
	return ask
}

// respond sends what the client has not, and tells what is gone. "When a resource
// subscribed to by a client does not exist, the server will send a
// DeltaDiscoveryResponse message that contains that resource's name in the
// removed_resources field."
func (m *delta) respond(typeURL string, h have, only []string) *response {
	w := m.watches[typeURL]
	if w == nil || (!w.wildcard && len(w.names) == 0 && len(w.sent) == 0) {
		return nil
	}
	if only != nil && !w.wildcard {
		return w.deltaOnly(typeURL, h, only)
	}
	out := &response{typeURL: typeURL}
	target := w.target(typeURL, h)
	had, still := len(w.sent), 0
	for _, r := range target {
		if _, ok := w.sent[r.Name]; ok {
			still++
		}
		w.offer(out, r)
	}
	if still < had || len(w.force) > 0 {
		w.withdrawOthers(out, typeURL, h, target)
	}
	if len(out.resources) == 0 && len(out.removed) == 0 && !(w.owed && w.wildcard) {
		return nil
	}
	return w.stamp(out)
}

// withdrawOthers tells that what is not in the target is gone, or never was.
func (w *watch) withdrawOthers(out *response, typeURL string, h have, target []*encode.Resource) {
	there := make(map[string]bool, len(target))
	for _, r := range target {
		there[r.Name] = true
	}
	var gone []string
	for name := range w.sent {
		if !there[name] && !h.held(typeURL, name) {
			gone = append(gone, name)
		}
	}
	for name := range w.force {
		if _, had := w.sent[name]; !there[name] && !had {
			gone = append(gone, name)
		}
	}
	slices.Sort(gone)
	for _, name := range gone {
		w.withdraw(out, name)
	}
}

// deltaOnly answers for some names.
func (w *watch) deltaOnly(typeURL string, h have, only []string) *response {
	out := &response{typeURL: typeURL}
	for _, name := range only {
		if !w.names[name] {
			continue
		}
		if r := h.get(typeURL, name); r != nil {
			w.offer(out, r)
		} else if _, had := w.sent[name]; (had && !h.held(typeURL, name)) || w.force[name] {
			w.withdraw(out, name)
		}
	}
	if len(out.resources) == 0 && len(out.removed) == 0 {
		return nil
	}
	keep := maps.Clone(w.force)
	for _, name := range only {
		delete(keep, name)
	}
	w.stamp(out)
	w.force = keep
	return out
}

// offer adds a resource unless the client has it.
func (w *watch) offer(out *response, r *encode.Resource) {
	had, known := w.sent[r.Name]
	if known && had == r.Version && !w.force[r.Name] {
		return
	}
	if known && had != r.Version {
		out.changed = append(out.changed, r.Name)
	}
	w.sent[r.Name] = r.Version
	out.resources = append(out.resources, r)
}

// withdraw tells that a resource is gone, or never was.
func (w *watch) withdraw(out *response, name string) {
	delete(w.sent, name)
	out.removed = append(out.removed, name)
}

var _ machine = (*delta)(nil)
