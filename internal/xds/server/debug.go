package server

import (
	"context"
	"net"
	"strings"

	"google.golang.org/grpc/codes"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/heddle-mesh/heddle/internal/encode"
)

// debugPrefix begins the types that tools ask for, over the same service as
// proxies. Source: Istio, TypeDebugPrefix.
const debugPrefix = "istio.io/debug"

// Debugger answers tools. names are the resource names that were asked for; identifier
// says who answers, and may be empty. It is called from many goroutines.
type Debugger func(typeURL string, names []string) (resources []*anypb.Any, identifier string, err error)

// SetDebugger says who answers tools, and of which namespace they have to be; it is
// called before Register. Without it their types are unknown.
func (s *Server) SetDebugger(namespace string, d Debugger) { s.tools, s.debugger = namespace, d }

// debug answers a tool's questions until it has gone.
func (s *Server) debug(ctx context.Context, auth Authenticator, w wire, first *request) error {
	if err := s.mayLook(ctx, auth); err != nil {
		s.cfg.Log.Warn("tool turned away", "type", first.typeURL, "err", err)
		return err
	}
	for r := first; ; {
		// An answer is acknowledged with the same words as it was asked for.
		if r.nonce == "" {
			resources, identifier, err := s.debugger(r.typeURL, append(r.names, r.subscribe...))
			if err != nil {
				return status.Error(codes.NotFound, err.Error())
			}
			out := &response{typeURL: r.typeURL, nonce: "debug", identifier: identifier}
			for _, body := range resources {
				out.resources = append(out.resources, &encode.Resource{Body: body})
			}
			if err := w.send(out); err != nil {
				return err
			}
		}
		var err error
		if r, err = w.recv(); err != nil {
			return nil // it has gone
		}
		if !isDebug(r.typeURL) {
			return status.Errorf(codes.InvalidArgument, "type %q on a stream of a tool", r.typeURL)
		}
	}
}

func isDebug(typeURL string) bool { return strings.HasPrefix(typeURL, debugPrefix) }

// mayLook says whether a caller may see everybody's configuration: where callers
// prove nothing, only those of this machine, else those of the tools' namespace.
func (s *Server) mayLook(ctx context.Context, auth Authenticator) error {
	if s.debugger == nil {
		return status.Error(codes.Unimplemented, "tools are not answered here")
	}
	if auth == nil {
		if p, ok := grpcpeer.FromContext(ctx); ok {
			if a, ok := p.Addr.(*net.TCPAddr); ok && a.IP.IsLoopback() {
				return nil
			}
		}
		return status.Error(codes.PermissionDenied, "without TLS, tools are answered on this machine only")
	}
	id, err := auth.Authenticate(ctx)
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	if id.Namespace != s.tools {
		return status.Errorf(codes.PermissionDenied, "%s may not look at others: only tools of namespace %s may", id, s.tools)
	}
	return nil
}
