// Package config holds user intent as typed objects: what an operator wrote,
// decoded and checked, whatever source it came from.
//
// Decode turns a YAML or JSON document into an [Object] or into [Fault]s that
// name file, line, object and field. An Object is never changed after it was
// made, so sources, the model and the compile step share it freely.
package config

import (
	"fmt"
	"strings"
	"time"
)

// Kind identifies a kind of object whatever version it was served in.
type Kind struct {
	Group string // "" for the core kinds
	Name  string // "VirtualService"
}

func (k Kind) String() string {
	if k.Group == "" {
		return k.Name
	}
	return k.Name + "." + k.Group
}

// The kinds that Heddle acts on. The table of all known kinds, with versions
// and Go types, is in package schema.
var (
	Namespace      = Kind{"", "Namespace"}
	Pod            = Kind{"", "Pod"}
	Service        = Kind{"", "Service"}
	ServiceAccount = Kind{"", "ServiceAccount"}
	Secret         = Kind{"", "Secret"}
	ConfigMap      = Kind{"", "ConfigMap"}
	Node           = Kind{"", "Node"}
	EndpointSlice  = Kind{"discovery.k8s.io", "EndpointSlice"}
	Deployment     = Kind{"apps", "Deployment"}

	VirtualService  = Kind{"networking.istio.io", "VirtualService"}
	DestinationRule = Kind{"networking.istio.io", "DestinationRule"}
	Gateway         = Kind{"networking.istio.io", "Gateway"}
	ServiceEntry    = Kind{"networking.istio.io", "ServiceEntry"}

	PeerAuthentication    = Kind{"security.istio.io", "PeerAuthentication"}
	RequestAuthentication = Kind{"security.istio.io", "RequestAuthentication"}
	AuthorizationPolicy   = Kind{"security.istio.io", "AuthorizationPolicy"}
)

// Key identifies an object in a mesh.
type Key struct {
	Kind      Kind
	Namespace string // "" for cluster-scoped kinds
	Name      string
}

func (k Key) String() string {
	if k.Name == "" { // in faults of objects that lack one
		return k.Kind.Name
	}
	if k.Namespace == "" {
		return k.Kind.Name + " " + k.Name
	}
	return k.Kind.Name + " " + k.Namespace + "/" + k.Name
}

// Object is one decoded object. Spec is a pointer to the message of
// istio.io/api for Istio's kinds (*networkingv1alpha3.VirtualService, …; the
// same Go type for every served version) and to the whole Kubernetes object for
// the others (*corev1.Service, …).
type Object struct {
	Key
	APIVersion  string // as written: "networking.istio.io/v1"
	Labels      map[string]string
	Annotations map[string]string
	// Created orders equals: the oldest wins, then the name, then the namespace.
	// Sources without clock order by time of first sight.
	Created time.Time
	Spec    any
	Pos     Position
	// Lines tells where a field stands, for messages that are found later than
	// decoding. It may be nil.
	Lines Lines
}

// Position is a place in a file; Line counts from 1, 0 is unknown. What comes
// from an API server has the name of its cluster for a file.
type Position struct {
	File string
	Line int
}

func (p Position) String() string {
	if p.File == "" {
		return "-"
	}
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// Lines maps a field path such as "spec.http[0].route[1].weight" to its line.
type Lines map[string]int

// At returns the position of a field path, or of its nearest ancestor that is
// known, or of the object.
func (o *Object) At(path string) Position {
	for p := path; p != ""; {
		if line, ok := o.Lines[p]; ok {
			return Position{o.Pos.File, line}
		}
		cut := strings.LastIndexAny(p, ".[")
		if cut < 0 {
			break
		}
		p = p[:cut]
	}
	return o.Pos
}

// Severity of a fault.
type Severity uint8

const (
	Error   Severity = iota // the object, and so its batch, is refused
	Warning                 // it is accepted, but not all of it acts
)

// Fault is one thing wrong with one object.
type Fault struct {
	Pos      Position
	Object   Key
	Field    string // "spec.http[0].route[1].weight"; "" for the whole object
	Problem  string // what is wrong
	Hint     string // what would be right; "" if the problem says it
	Severity Severity
	// Security is set on a Warning that leaves something less protected than its
	// author asked for. It is to be shown first and loudest.
	Security bool
	// Code is the message code that Istio's analysis gives the same finding,
	// "IST0101"; "" if it has none.
	Code string
}

// Error formats the fault as "file:line kind ns/name field: problem, hint".
func (f Fault) Error() string {
	var b strings.Builder
	b.WriteString(f.Pos.String())
	if f.Object.Kind.Name != "" {
		b.WriteString(" " + f.Object.String())
	}
	if f.Field != "" {
		b.WriteString(" " + f.Field)
	}
	b.WriteString(": " + f.Problem)
	if f.Hint != "" {
		b.WriteString(", " + f.Hint)
	}
	return b.String()
}

// Change is one step of a batch: the new object, or nil for a deletion.
type Change struct {
	Key    Key
	Object *Object
}

// Batch is a set of changes that is applied as a whole or not at all. A source
// sends its complete first view as one batch with Synced set.
type Batch struct {
	Source  string
	Changes []Change
	Synced  bool
}
