package server

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/heddle-mesh/heddle/internal/encode"
)

// pushOrder is the order in which changes of several types are sent.
//
// xDS protocol, "Eventual consistency considerations": "CDS updates (if any) must
// always be pushed first. EDS updates (if any) must arrive after CDS updates for
// the respective clusters. LDS updates must arrive after corresponding CDS/EDS
// updates. RDS updates related to the newly added listeners must arrive after
// CDS/EDS/LDS updates."
var pushOrder = []string{
	encode.ClusterType,
	encode.EndpointType,
	encode.ListenerType,
	encode.RouteType,
	encode.NameTableType,
}

// wildcardType reports whether a first request without names asks for all there
// is: so for listeners and clusters by the protocol, and for Istio's name table.
func wildcardType(typeURL string) bool {
	return typeURL == encode.ListenerType || typeURL == encode.ClusterType || typeURL == encode.NameTableType
}

// Limits on what one stream can make the server remember.
const (
	maxTypes = 32
	maxNames = 200_000
)

// have is what a stream's proxy should have, at one moment.
type have interface {
	// all returns what the proxy gets without naming it, sorted by name; nothing
	// for types that are only asked for by name. It must not be changed.
	all(typeURL string) []*encode.Resource
	// get returns one resource, or nil if there is none.
	get(typeURL, name string) *encode.Resource
	// held reports whether it must not be told yet that a resource is gone.
	held(typeURL, name string) bool
}

// request is a request of either variant.
type request struct {
	typeURL string
	node    *corev3.Node
	nonce   string // of the response that is acknowledged or refused
	refused string // the client's reason, if the request is a NACK
	nack    bool

	names   []string // state-of-the-world: all that is subscribed to
	version string   // state-of-the-world: the last version accepted

	subscribe, unsubscribe []string          // incremental
	initial                map[string]string // incremental: versions known before
}

// response is a response of either variant.
type response struct {
	typeURL   string
	nonce     string
	version   string
	resources []*encode.Resource
	removed   []string // incremental only
	// identifier says who answers; for tools only.
	identifier string
	// changed are the names of resources that the client had in another version.
	changed []string
}

// verdict says what a request was.
type verdict uint8

const (
	accepted   verdict = iota // an ACK, or news about the subscription
	refused                   // a NACK
	superseded                // state-of-the-world: about an earlier response
)

// machine is what the protocol demands of one stream. It is pure: no goroutine,
// clock or socket.
type machine interface {
	// take reads a request. ask reports whether the client must now be answered,
	// by respond; otherwise there is nothing to say until the world changes.
	take(r *request) (v verdict, ask bool, err error)
	// respond returns what to send of a type, given what the proxy should have, or
	// nil if the client has it all. only, if not nil, limits it to some names.
	respond(typeURL string, h have, only []string) *response
	// forget makes respond send resources again that the client has.
	forget(typeURL string, names []string)
	// watched returns the names subscribed to.
	watched(typeURL string) map[string]bool
	// status tells how far the client is with each type it asked for.
	status() map[string]TypeStatus
}

// TypeStatus tells how far a client is with the resources of one type.
type TypeStatus struct {
	Sent     string // nonce of the last response; "" before the first
	Acked    string // nonce of the last response that was accepted
	Version  string // of the last response
	Refused  string // the client's reason for refusing the last response; else ""
	Wildcard bool
	Names    int // how many resources are subscribed to by name
	Has      int // how many the client was sent
}

// Synced reports whether the client accepted all that it was sent.
func (t TypeStatus) Synced() bool { return t.Sent == t.Acked && t.Refused == "" }

// watch is what both variants remember of one type.
type watch struct {
	wildcard bool
	// legacy is set as long as no name was ever subscribed to: only then does the
	// absence of names mean all.
	legacy bool
	names  map[string]bool
	order  []string // names, sorted; nil after a change
	// sent holds the versions that the client has, or refused: both are not sent
	// again until they change. A NACK so never starts a loop.
	sent map[string]string
	// force are names to be sent whatever version the client has.
	force map[string]bool
	// owed is set while the first request was not answered. It is answered even
	// if there is nothing, so that the client knows that this is all.
	owed bool

	count                  int // of responses; makes nonces
	nonce, acked, rejected string
	version                string
}

func newWatch(typeURL string, names bool) *watch {
	legacy := wildcardType(typeURL) && !names
	return &watch{
		wildcard: legacy, legacy: legacy, owed: true,
		names: map[string]bool{}, sent: map[string]string{}, force: map[string]bool{},
	}
}

// settle notes an ACK or NACK.
func (w *watch) settle(r *request) verdict {
	if r.nack {
		w.rejected = r.refused
		if w.rejected == "" {
			w.rejected = "no reason given"
		}
		return refused
	}
	if r.nonce != "" && r.nonce == w.nonce {
		w.acked, w.rejected = w.nonce, ""
	}
	return accepted
}

// stamp gives a response its nonce, and forgets what it was asked for.
func (w *watch) stamp(r *response) *response {
	w.count++
	w.nonce = strconv.Itoa(w.count)
	w.version = r.version
	r.nonce = w.nonce
	w.rejected = ""
	w.owed = false
	clear(w.force)
	return r
}

// target returns what the client should have of a type, sorted by name.
func (w *watch) target(typeURL string, h have) []*encode.Resource {
	var all []*encode.Resource
	if w.wildcard {
		all = h.all(typeURL)
	}
	if len(w.names) == 0 {
		return all
	}
	if w.order == nil {
		w.order = slices.Sorted(maps.Keys(w.names))
	}
	named := make([]*encode.Resource, 0, len(w.order))
	for _, name := range w.order {
		if r := h.get(typeURL, name); r != nil {
			named = append(named, r)
		}
	}
	if len(all) == 0 {
		return named
	}
	named = append(named, all...)
	slices.SortFunc(named, byName)
	return slices.CompactFunc(named, func(a, b *encode.Resource) bool { return a.Name == b.Name })
}

func byName(a, b *encode.Resource) int { return strings.Compare(a.Name, b.Name) }

func (w *watch) status() TypeStatus {
	return TypeStatus{
		Sent: w.nonce, Acked: w.acked, Version: w.version, Refused: w.rejected,
		Wildcard: w.wildcard, Names: len(w.names), Has: len(w.sent),
	}
}

// watches are a stream's watches by type.
type watches map[string]*watch

// of returns the watch for a request, and whether it is new.
func (ws watches) of(r *request, names bool) (w *watch, first bool, err error) {
	if w := ws[r.typeURL]; w != nil {
		return w, false, nil
	}
	if r.typeURL == "" {
		return nil, false, fmt.Errorf("a request names no type")
	}
	if len(ws) >= maxTypes {
		return nil, false, fmt.Errorf("more than %d types on one stream", maxTypes)
	}
	w = newWatch(r.typeURL, names)
	ws[r.typeURL] = w
	return w, true, nil
}

func (ws watches) forget(typeURL string, names []string) {
	if w := ws[typeURL]; w != nil {
		for _, n := range names {
			delete(w.sent, n)
		}
	}
}

func (ws watches) watched(typeURL string) map[string]bool {
	if w := ws[typeURL]; w != nil {
		return w.names
	}
	return nil
}

func (ws watches) status() map[string]TypeStatus {
	out := make(map[string]TypeStatus, len(ws))
	for t, w := range ws {
		out[t] = w.status()
	}
	return out
}

// stateVersion identifies what a client has of a type: the same resources in the
// same versions have the same.
func stateVersion(has map[string]string) string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(has)) {
		fmt.Fprintf(h, "%d %s %s\n", len(name), name, has[name])
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}
