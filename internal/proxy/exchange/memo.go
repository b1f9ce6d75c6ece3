package exchange

import (
	"strings"
	"sync/atomic"

	"github.com/heddle-mesh/heddle/internal/telemetry"
)

// HandleKey is what distinguishes the metric handles of one connection or
// endpoint from each other; all other labels are fixed by it.
type HandleKey struct {
	Cluster   string
	Principal string // of the other side, if it is not the connection's
	Peer      *telemetry.Workload
	Code      int
	Flags     Flags
	GRPC      string // status of a gRPC call, "" for plain HTTP
	IsGRPC    bool
	Reporter  uint8
	// Authority is set where it stands for a service that nobody knows.
	Authority string
	// Own tells servers apart that share endpoints.
	Own *telemetry.Workload
}

// maxHandles bounds a memo. Above it the memo starts anew: the registry has the
// handles anyway, only the shortcut is lost.
const maxHandles = 32

type handle struct {
	key  HandleKey
	http *telemetry.HTTP
}

// Handles remembers metric handles where they are used over and over. The zero
// value is empty. It is safe for concurrent use.
type Handles struct {
	list atomic.Pointer[[]handle]
}

// Get returns the handle kept for k, or nil.
func (h *Handles) Get(k *HandleKey) *telemetry.HTTP {
	l := h.list.Load()
	if l == nil {
		return nil
	}
	for i := range *l {
		if e := &(*l)[i]; e.key.Code == k.Code && e.key == *k {
			return e.http
		}
	}
	return nil
}

// Put keeps a handle. Of two that race one may be lost, which costs a lookup.
func (h *Handles) Put(k HandleKey, m *telemetry.HTTP) {
	var old []handle
	if l := h.list.Load(); l != nil && len(*l) < maxHandles {
		old = *l
	}
	next := make([]handle, 0, len(old)+1)
	k.Authority = strings.Clone(k.Authority) // it may be a view
	next = append(append(next, old...), handle{k, m})
	h.list.Store(&next)
}

// peer is a decoded description with the header it was read from.
type peer struct {
	header   string
	workload *telemetry.Workload
}

// PeerMemo remembers the last peer description of a connection or endpoint, so
// that the same header is decoded once. The zero value is empty. It is safe for
// concurrent use.
type PeerMemo struct {
	last atomic.Pointer[peer]
}

// Decode returns what decode makes of header, or what it made of it last time.
// An equal header gives the same pointer.
func (m *PeerMemo) Decode(header []byte, decode func(string) (telemetry.Workload, bool)) *telemetry.Workload {
	if p := m.last.Load(); p != nil && p.header == string(header) {
		return p.workload
	}
	p := &peer{header: string(header)}
	if w, ok := decode(p.header); ok {
		p.workload = &w
	}
	m.last.Store(p)
	return p.workload
}
