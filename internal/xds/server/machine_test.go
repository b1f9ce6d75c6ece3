package server

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/heddle-mesh/heddle/internal/encode"
)

const (
	cds = encode.ClusterType
	eds = encode.EndpointType
	lds = encode.ListenerType
	rds = encode.RouteType
	nds = encode.NameTableType
)

// stock is a have: type to "name@version" words.
type stock map[string]string

func (s stock) all(typeURL string) []*encode.Resource {
	if !wildcardType(typeURL) {
		return nil
	}
	return s.list(typeURL)
}

func (s stock) list(typeURL string) []*encode.Resource {
	var out []*encode.Resource
	for _, word := range strings.Fields(s[typeURL]) {
		name, version, _ := strings.Cut(word, "@")
		out = append(out, &encode.Resource{Name: name, Version: version, Body: &anypb.Any{TypeUrl: typeURL}})
	}
	return out
}

func (s stock) get(typeURL, name string) *encode.Resource {
	for _, r := range s.list(typeURL) {
		if r.Name == name {
			return r
		}
	}
	return nil
}

func (s stock) held(string, string) bool { return false }

// step is a request, or a change of the stock, and what must follow.
type step struct {
	req   *request
	stock stock    // if set, the world is like this from here on; respond is asked for typ
	typ   string   // with stock
	only  []string // with stock
	// want is what is sent: "name@version" for resources, "-name" for removals,
	// "empty" for a response without content, "" for no response.
	want    string
	verdict verdict
}

func play(t *testing.T, m machine, steps []step) {
	t.Helper()
	have := stock{}
	var last *response
	for i, s := range steps {
		var out *response
		if s.req == nil {
			have = s.stock
			if s.typ == "" {
				continue
			}
			out = m.respond(s.typ, have, s.only)
		} else {
			r := *s.req
			if r.nonce == "last" {
				r.nonce = last.nonce
			}
			if r.version == "last" {
				r.version = last.version
			}
			v, ask, err := m.take(&r)
			if err != nil {
				t.Fatalf("step %d: %v", i, err)
			}
			if v != s.verdict {
				t.Errorf("step %d: verdict %d, want %d", i, v, s.verdict)
			}
			if ask {
				out = m.respond(r.typeURL, have, nil)
			}
		}
		if got := told(out); got != s.want {
			t.Errorf("step %d: sent %q, want %q", i, got, s.want)
		}
		if out != nil {
			if out.nonce == "" || (last != nil && last.typeURL == out.typeURL && last.nonce == out.nonce) {
				t.Errorf("step %d: nonce %q is not fresh", i, out.nonce)
			}
			last = out
		}
	}
}

func told(r *response) string {
	if r == nil {
		return ""
	}
	var words []string
	for _, one := range r.resources {
		words = append(words, one.Name+"@"+one.Version)
	}
	for _, name := range r.removed {
		words = append(words, "-"+name)
	}
	if len(words) == 0 {
		return "empty"
	}
	return strings.Join(words, " ")
}

func sotwReq(typ, names string) *request {
	return &request{typeURL: typ, names: strings.Fields(names)}
}

func sotwAck(typ, names string) *request {
	return &request{typeURL: typ, names: strings.Fields(names), nonce: "last", version: "last"}
}

func sotwNack(typ, names string) *request {
	return &request{typeURL: typ, names: strings.Fields(names), nonce: "last", nack: true, refused: "no"}
}

// Names of the cases follow the sections of "xDS REST and gRPC protocol".
func TestStateOfTheWorld(t *testing.T) {
	for name, steps := range map[string][]step{
		"ACK: is not answered": {
			{stock: stock{cds: "a@1 b@1"}},
			{req: sotwReq(cds, ""), want: "a@1 b@1"},
			{req: sotwAck(cds, ""), want: ""},
		},
		"NACK: nothing is sent until something changes": {
			{stock: stock{cds: "a@1"}},
			{req: sotwReq(cds, ""), want: "a@1"},
			{req: sotwNack(cds, ""), want: "", verdict: refused},
			{stock: stock{cds: "a@1"}, typ: cds, want: ""},
			{stock: stock{cds: "a@2"}, typ: cds, want: "a@2"},
			{req: sotwAck(cds, ""), want: ""},
		},
		"When to send an update: only if resources changed": {
			{stock: stock{cds: "a@1"}},
			{req: sotwReq(cds, ""), want: "a@1"},
			{stock: stock{cds: "a@1", lds: "x@1"}, typ: cds, want: ""},
		},
		"Grouping resources: listeners and clusters come as the whole state": {
			{stock: stock{cds: "a@1 b@1 c@1"}},
			{req: sotwReq(cds, ""), want: "a@1 b@1 c@1"},
			{stock: stock{cds: "a@1 b@2 c@1"}, typ: cds, want: "a@1 b@2 c@1"},
		},
		"Grouping resources: others come as what changed": {
			{stock: stock{eds: "a@1 b@1"}},
			{req: sotwReq(eds, "a b"), want: "a@1 b@1"},
			{req: sotwAck(eds, "a b")},
			{stock: stock{eds: "a@1 b@2"}, typ: eds, want: "b@2"},
		},
		"Deleting resources: absent from the whole state": {
			{stock: stock{lds: "a@1 b@1"}},
			{req: sotwReq(lds, ""), want: "a@1 b@1"},
			{stock: stock{lds: "b@1"}, typ: lds, want: "b@1"},
			{stock: stock{}, typ: lds, want: "empty"},
			{stock: stock{}, typ: lds, want: ""},
		},
		"Deleting resources: a route list that is gone is not mentioned": {
			{stock: stock{rds: "r@1"}},
			{req: sotwReq(rds, "r"), want: "r@1"},
			{stock: stock{}, typ: rds, want: ""},
			{stock: stock{rds: "r@1"}, typ: rds, want: "r@1"},
		},
		"Not existing: the first answer is empty, and creation is told": {
			{req: sotwReq(lds, "x"), want: "empty"},
			{req: sotwAck(lds, "x")},
			{stock: stock{lds: "x@1 y@1"}, typ: lds, want: "x@1"},
		},
		"Not existing: endpoints are not answered until they exist": {
			{req: sotwReq(eds, "x"), want: ""},
			{stock: stock{eds: "x@1"}, typ: eds, want: "x@1"},
		},
		"What to return: newly requested resources are sent": {
			{stock: stock{eds: "a@1 b@1"}},
			{req: sotwReq(eds, "a"), want: "a@1"},
			{req: sotwAck(eds, "a")},
			{req: sotwAck(eds, "a b"), want: "b@1"},
		},
		"What to return: resent when requested again after it was dropped": {
			{stock: stock{eds: "a@1 b@1"}},
			{req: sotwReq(eds, "a b"), want: "a@1 b@1"},
			{req: sotwAck(eds, "a"), want: ""},
			{req: sotwAck(eds, "a b"), want: "b@1"},
		},
		"What to return: a cluster subscribed to later brings the whole state": {
			{stock: stock{cds: "a@1 b@1"}},
			{req: sotwReq(cds, "a"), want: "a@1"},
			{req: sotwAck(cds, "a")},
			{req: sotwAck(cds, "a b"), want: "a@1 b@1"},
		},
		"What to return: an empty list that was not empty before unsubscribes": {
			{stock: stock{cds: "a@1"}},
			{req: sotwReq(cds, "a"), want: "a@1"},
			{req: sotwAck(cds, ""), want: ""},
			{stock: stock{cds: "a@2"}, typ: cds, want: ""},
		},
		// The four requests of the document's example.
		"What to return: legacy wildcard, then * and A, then A, then none": {
			{stock: stock{cds: "A@1 B@1"}},
			{req: sotwReq(cds, ""), want: "A@1 B@1"},
			{req: sotwAck(cds, "* A"), want: ""}, // both are there already
			{stock: stock{cds: "A@1 B@2"}, typ: cds, want: "A@1 B@2"},
			{req: sotwAck(cds, "A"), want: ""},
			{stock: stock{cds: "A@2 B@3"}, typ: cds, want: "A@2"},
			{req: sotwAck(cds, ""), want: ""},
			{stock: stock{cds: "A@3 B@3"}, typ: cds, want: ""},
		},
		"What to return: explicit wildcard": {
			{stock: stock{lds: "A@1 B@1"}},
			{req: sotwReq(lds, "*"), want: "A@1 B@1"},
			{req: sotwAck(lds, "*")},
			{stock: stock{lds: "A@1"}, typ: lds, want: "A@1"},
		},
		"What to return: endpoints have no wildcard": {
			{stock: stock{eds: "a@1"}},
			{req: sotwReq(eds, ""), want: ""},
			{stock: stock{eds: "a@2"}, typ: eds, want: ""},
		},
		"Resource updates: a stale nonce is not answered, the repetition is": {
			{stock: stock{eds: "a@1 b@1"}},
			{req: sotwReq(eds, "a"), want: "a@1"}, // nonce 1
			{stock: stock{eds: "a@2 b@1"}, typ: eds, want: "a@2"},
			{req: &request{typeURL: eds, names: []string{"a", "b"}, nonce: "1"}, want: "", verdict: superseded},
			{req: sotwAck(eds, "a b"), want: "b@1"},
		},
		"Resource updates: a stale NACK refuses nothing": {
			{stock: stock{cds: "a@1"}},
			{req: sotwReq(cds, ""), want: "a@1"},
			{stock: stock{cds: "a@2"}, typ: cds, want: "a@2"},
			{req: &request{typeURL: cds, nonce: "1", nack: true}, want: "", verdict: superseded},
		},
		"Nonces do not survive the stream: the first request is heard whatever it says": {
			{stock: stock{eds: "a@1"}},
			{req: &request{typeURL: eds, names: []string{"a"}, nonce: "77", version: "old"}, want: "a@1"},
		},
		"Reconnect: another version is answered": {
			{stock: stock{cds: "a@2"}},
			{req: &request{typeURL: cds, version: stateVersion(map[string]string{"a": "1"})}, want: "a@2"},
		},
		"Reconnect: the same wildcard state is not sent again": {
			{stock: stock{cds: "a@2"}},
			{req: &request{typeURL: cds, version: stateVersion(map[string]string{"a": "2"})}, want: ""},
			{stock: stock{cds: "a@3"}, typ: cds, want: "a@3"},
		},
		"Reconnect: named resources are sent again, since others may be wanted now": {
			{stock: stock{cds: "a@2"}},
			{req: &request{typeURL: cds, names: []string{"a"}, version: stateVersion(map[string]string{"a": "2"})}, want: "a@2"},
		},
		"Types are versioned and acknowledged each for itself": {
			{stock: stock{cds: "a@1", lds: "x@1"}},
			{req: sotwReq(cds, ""), want: "a@1"},
			{req: sotwReq(lds, ""), want: "x@1"},
			{req: &request{typeURL: cds, nonce: "1"}, want: ""},
		},
		"Name table: the one resource comes without being named": {
			{stock: stock{nds: "t@1"}},
			{req: sotwReq(nds, ""), want: "t@1"},
			{req: sotwAck(nds, "")},
			{stock: stock{nds: "t@2"}, typ: nds, want: "t@2"},
		},
		"Short road: only what is named is looked at": {
			{stock: stock{eds: "a@1 b@1"}},
			{req: sotwReq(eds, "a b"), want: "a@1 b@1"},
			{stock: stock{eds: "a@2 b@2"}, typ: eds, only: []string{"a", "z"}, want: "a@2"},
			{stock: stock{eds: "a@2 b@2"}, typ: eds, want: "b@2"},
		},
	} {
		t.Run(name, func(t *testing.T) { play(t, newSotw(), steps) })
	}
}

func deltaReq(typ, subscribe, unsubscribe string) *request {
	return &request{typeURL: typ, subscribe: strings.Fields(subscribe), unsubscribe: strings.Fields(unsubscribe)}
}

func deltaAck(typ string) *request { return &request{typeURL: typ, nonce: "last"} }

func TestIncremental(t *testing.T) {
	for name, steps := range map[string][]step{
		"Only what changed is sent": {
			{stock: stock{cds: "a@1 b@1"}},
			{req: deltaReq(cds, "", ""), want: "a@1 b@1"},
			{req: deltaAck(cds)},
			{stock: stock{cds: "a@1 b@2"}, typ: cds, want: "b@2"},
			{stock: stock{cds: "a@1 b@2"}, typ: cds, want: ""},
		},
		"Deleting resources: in removed_resources": {
			{stock: stock{cds: "a@1 b@1"}},
			{req: deltaReq(cds, "", ""), want: "a@1 b@1"},
			{stock: stock{cds: "b@1"}, typ: cds, want: "-a"},
			{stock: stock{cds: "b@1"}, typ: cds, want: ""},
			{stock: stock{cds: "a@1 b@1"}, typ: cds, want: "a@1"},
		},
		"Not existing: in removed_resources at once, and creation is told": {
			{req: deltaReq(eds, "x", ""), want: "-x"},
			{req: deltaAck(eds)},
			{stock: stock{eds: "x@1"}, typ: eds, want: "x@1"},
		},
		"An empty world is told for a wildcard": {
			{req: deltaReq(lds, "", ""), want: "empty"},
			{req: deltaAck(lds)},
			{stock: stock{lds: "x@1"}, typ: lds, want: "x@1"},
		},
		"NACK: nothing is sent until something changes": {
			{stock: stock{cds: "a@1 b@1"}},
			{req: deltaReq(cds, "", ""), want: "a@1 b@1"},
			{req: &request{typeURL: cds, nonce: "last", nack: true, refused: "no"}, want: "", verdict: refused},
			{stock: stock{cds: "a@1 b@1"}, typ: cds, want: ""},
			{stock: stock{cds: "a@2 b@1"}, typ: cds, want: "a@2"},
		},
		"Subscribing: sent even if it was sent before": {
			{stock: stock{eds: "a@1"}},
			{req: deltaReq(eds, "a", ""), want: "a@1"},
			{req: deltaAck(eds)},
			{req: deltaReq(eds, "a", ""), want: "a@1"},
		},
		"Subscribing: a stale nonce does not void it": {
			{stock: stock{eds: "a@1 b@1"}},
			{req: deltaReq(eds, "a", ""), want: "a@1"},
			{stock: stock{eds: "a@2 b@1"}, typ: eds, want: "a@2"},
			{req: &request{typeURL: eds, nonce: "1", subscribe: []string{"b"}}, want: "b@1"},
		},
		"Unsubscribing: is not answered, and ends the updates": {
			{stock: stock{eds: "a@1 b@1"}},
			{req: deltaReq(eds, "a b", ""), want: "a@1 b@1"},
			{req: deltaReq(eds, "", "a"), want: ""},
			{stock: stock{eds: "a@2 b@2"}, typ: eds, want: "b@2"},
		},
		"Unsubscribing: what was never subscribed to is ignored": {
			{stock: stock{eds: "a@1"}},
			{req: deltaReq(eds, "a", ""), want: "a@1"},
			{req: deltaReq(eds, "", "phantom"), want: ""},
		},
		"Unsubscribing: under a wildcard the resource is sent once more": {
			{stock: stock{cds: "a@1 b@1"}},
			{req: deltaReq(cds, "*", ""), want: "a@1 b@1"},
			{req: deltaReq(cds, "a", ""), want: "a@1"},
			{req: deltaReq(cds, "", "a"), want: "a@1"},
			{stock: stock{cds: "a@2 b@1"}, typ: cds, want: "a@2"},
		},
		"Unsubscribing: under a wildcard a resource outside of it is removed": {
			{stock: stock{cds: "b@1"}},
			{req: deltaReq(cds, "* a", ""), want: "b@1 -a"},
			{req: deltaReq(cds, "", "a"), want: "-a"},
		},
		// The four requests of the document's example.
		"What to return: legacy wildcard, and A, then without *, then without A": {
			{stock: stock{cds: "A@1 B@1"}},
			{req: deltaReq(cds, "", ""), want: "A@1 B@1"},
			{req: deltaReq(cds, "A", ""), want: "A@1"},
			{stock: stock{cds: "A@1 B@2"}, typ: cds, want: "B@2"},
			{req: deltaReq(cds, "", "*"), want: ""},
			{stock: stock{cds: "A@2 B@3"}, typ: cds, want: "A@2"},
			{req: deltaReq(cds, "", "A"), want: ""},
			{stock: stock{cds: "A@3 B@3"}, typ: cds, want: ""},
		},
		"What to return: a first request with names is no wildcard": {
			{stock: stock{cds: "A@1 B@1"}},
			{req: deltaReq(cds, "A", ""), want: "A@1"},
			{stock: stock{cds: "A@1 B@2"}, typ: cds, want: ""},
		},
		"What to return: a first request that turns the wildcard off": {
			{stock: stock{cds: "A@1"}},
			{req: deltaReq(cds, "A", "*"), want: "A@1"},
			{stock: stock{cds: "A@1 B@1"}, typ: cds, want: ""},
		},
		"Reconnect: unchanged resources are not sent again, removed ones are told": {
			{stock: stock{cds: "a@1 b@2 d@1"}},
			{req: &request{typeURL: cds, initial: map[string]string{"a": "1", "b": "1", "c": "1"}}, want: "b@2 d@1 -c"},
		},
		"Reconnect: with nothing changed the answer is empty": {
			{stock: stock{cds: "a@1"}},
			{req: &request{typeURL: cds, initial: map[string]string{"a": "1"}}, want: "empty"},
		},
		"Reconnect: names with known versions are not sent again": {
			{stock: stock{eds: "a@1 b@2"}},
			{req: &request{typeURL: eds, subscribe: []string{"a", "b", "c"}, initial: map[string]string{"a": "1", "b": "1"}}, want: "b@2 -c"},
			{req: deltaReq(eds, "a", ""), want: "a@1"}, // the second request does force it
		},
		"Short road: only what is named is looked at": {
			{stock: stock{eds: "a@1 b@1"}},
			{req: deltaReq(eds, "a b", ""), want: "a@1 b@1"},
			{stock: stock{eds: "a@2 b@2"}, typ: eds, only: []string{"a", "z"}, want: "a@2"},
			{stock: stock{eds: "b@2"}, typ: eds, only: []string{"a"}, want: "-a"},
			{stock: stock{eds: "b@2"}, typ: eds, want: "b@2"},
		},
	} {
		t.Run(name, func(t *testing.T) { play(t, newDelta(), steps) })
	}
}

func TestForgottenResourcesAreSentAgain(t *testing.T) {
	for _, m := range []machine{newSotw(), newDelta()} {
		r := &request{typeURL: eds, names: []string{"a", "b"}, subscribe: []string{"a", "b"}}
		if _, _, err := m.take(r); err != nil {
			t.Fatal(err)
		}
		have := stock{eds: "a@1 b@1"}
		m.respond(eds, have, nil)
		m.forget(eds, []string{"b", "never"})
		if got := told(m.respond(eds, have, nil)); got != "b@1" {
			t.Errorf("%T: sent %q, want b alone", m, got)
		}
	}
}

func TestStatusFollowsAcknowledgements(t *testing.T) {
	m := newDelta()
	have := stock{cds: "a@1"}
	take := func(r *request) {
		t.Helper()
		if _, _, err := m.take(r); err != nil {
			t.Fatal(err)
		}
	}
	take(deltaReq(cds, "", ""))
	r := m.respond(cds, have, nil)
	if m.status()[cds].Synced() {
		t.Error("synced before the ACK")
	}
	take(&request{typeURL: cds, nonce: r.nonce})
	if !m.status()[cds].Synced() {
		t.Error("not synced after the ACK")
	}
	r = m.respond(cds, stock{cds: "a@2"}, nil)
	take(&request{typeURL: cds, nonce: r.nonce, nack: true, refused: "bad"})
	if s := m.status()[cds]; s.Synced() || s.Refused != "bad" {
		t.Errorf("after a NACK: %+v", s)
	}
}

func TestStreamsAreBounded(t *testing.T) {
	for _, m := range []machine{newSotw(), newDelta()} {
		for i := range maxTypes {
			if _, _, err := m.take(&request{typeURL: fmt.Sprint(i)}); err != nil {
				t.Fatalf("%T type %d: %v", m, i, err)
			}
		}
		if _, _, err := m.take(&request{typeURL: "one more"}); err == nil {
			t.Errorf("%T remembers types without end", m)
		}
	}
	many := slices.Repeat([]string{""}, maxNames+1)
	for i := range many {
		many[i] = fmt.Sprint(i)
	}
	for _, m := range []machine{newSotw(), newDelta()} {
		if _, _, err := m.take(&request{typeURL: eds, names: many, subscribe: many}); err == nil {
			t.Errorf("%T remembers names without end", m)
		}
	}
}
