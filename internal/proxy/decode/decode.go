// Package decode turns Envoy's xDS v3 resources into the plan types that a proxy
// acts on: the way back of encode.
//
// It is strict. A field that Heddle has no word for, and that would change what
// happens to a connection or a request, is an error that names resource and
// field; the client then refuses the update and keeps the last good one. The
// fields that are read are listed where each message is read, and beside them
// the ones that may be ignored without harm, with the reason.
package decode

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// The resource types read.
const (
	ListenerType  = "type.googleapis.com/envoy.config.listener.v3.Listener"
	RouteType     = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	ClusterType   = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	EndpointType  = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	SecretType    = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	NameTableType = "type.googleapis.com/istio.networking.nds.v1.NameTable"
)

// reader reads one resource and gathers everything wrong with it.
type reader struct {
	faults []error
}

// fail notes a fault of the field at path.
func (r *reader) fail(path, format string, args ...any) {
	r.faults = append(r.faults, fmt.Errorf("%s: %s", path, fmt.Sprintf(format, args...)))
}

// done returns the faults, each behind what it is about, or nil.
func (r *reader) done(kind, name string) error {
	if len(r.faults) == 0 {
		return nil
	}
	return fmt.Errorf("%s %q: %w", kind, name, errors.Join(r.faults...))
}

// only fails every field of m that is set and not named: those are the fields
// that nobody would act on.
func (r *reader) only(path string, m proto.Message, names ...protoreflect.Name) {
	p := m.ProtoReflect()
	p.Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		if !slices.Contains(names, f.Name()) {
			r.fail(join(path, string(f.Name())), "is not supported")
		}
		return true
	})
	if len(p.GetUnknown()) > 0 {
		r.fail(path, "has fields that are not known")
	}
}

func join(path, field string) string {
	switch {
	case path == "":
		return field
	case field == "":
		return path
	default:
		return path + "." + field
	}
}

func index(path, field string, i int) string {
	n := strconv.Itoa(i)
	if path == "" {
		return field + "[" + n + "]"
	}
	if field == "" {
		return path + "[" + n + "]"
	}
	return path + "." + field + "[" + n + "]"
}

// unpack reads the message in a, which must be of m's type.
func (r *reader) unpack(path string, a *anypb.Any, m proto.Message) bool {
	want := "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName())
	if a.GetTypeUrl() != want {
		r.fail(path, "is a %q, want %q", a.GetTypeUrl(), want)
		return false
	}
	if err := proto.Unmarshal(a.GetValue(), m); err != nil {
		r.fail(path, "cannot be read: %v", err)
		return false
	}
	return true
}

// resource reads the outermost message of a resource.
func resource(a *anypb.Any, m proto.Message) error {
	r := &reader{}
	if !r.unpack("resource", a, m) {
		return r.faults[0]
	}
	return nil
}

// address reads an address of a socket.
func (r *reader) address(path, host string, port uint32) netip.AddrPort {
	ip, err := netip.ParseAddr(host)
	if err != nil {
		r.fail(path, "%q is not an IP address", host)
	}
	return netip.AddrPortFrom(ip, r.port(path, port))
}

func (r *reader) port(path string, port uint32) uint16 {
	if port > 65535 {
		r.fail(path, "%d is not a port", port)
	}
	return uint16(port)
}

// regex checks that a pattern can be compiled. Go's syntax is RE2's, as Envoy's is.
func (r *reader) regex(path, pattern string) string {
	if _, err := regexp.Compile(pattern); err != nil {
		r.fail(path, "%v", err)
	}
	return pattern
}
