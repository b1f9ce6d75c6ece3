package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/filter"
	"github.com/heddle-mesh/heddle/internal/proxy/http1"
	"github.com/heddle-mesh/heddle/internal/proxy/tcp"
)

// httpOrBytes serves HTTP, and what turns out to be something else as bytes: it gets
// where it would have gone without a proxy.
type httpOrBytes struct {
	http  *filter.Server
	bytes *tcp.Proxy
}

// Serve implements snapshot.Handler.
func (h *httpOrBytes) Serve(ctx context.Context, c net.Conn, info *exchange.Conn) error {
	err := h.http.Serve(ctx, c, info)
	other, ok := errors.AsType[*http1.NotHTTPError](err)
	if !ok {
		return err
	}
	return h.bytes.Serve(ctx, &again{Conn: c, first: other.Read}, info)
}

// Police implements snapshot.Policed.
func (h *httpOrBytes) Police(c *plan.HTTPChain) {
	h.http.Police(c)
	h.bytes.Police(plan.ForBytes(c.RBAC))
}

// again is a connection whose first bytes were read already.
type again struct {
	net.Conn
	first []byte
}

// Detach implements what package tcp looks for.
func (a *again) Detach() (net.Conn, []byte) { return a.Conn, a.first }

// Read implements net.Conn for whoever does not detach.
func (a *again) Read(b []byte) (int, error) {
	if len(a.first) > 0 {
		n := copy(b, a.first)
		a.first = a.first[n:]
		return n, nil
	}
	return a.Conn.Read(b)
}

// WriteTo implements io.WriterTo in the order of Read.
func (a *again) WriteTo(w io.Writer) (int64, error) {
	n, err := io.Copy(w, bytes.NewReader(a.first))
	a.first = nil
	if err != nil {
		return n, err
	}
	m, err := io.Copy(w, a.Conn)
	return n + m, err
}

// passThrough is the chain for bytes in the place of an HTTP chain. One that has
// its routes with it, and they all lead to one cluster, as those of a sidecar's
// inbound side do, leads there; another one to where the client wanted to go.
func passThrough(c *plan.HTTPChain, d plan.Direction) *plan.TCPChain {
	out := &plan.TCPChain{StatPrefix: c.StatPrefix, AccessLog: c.AccessLog, Metrics: c.Metrics,
		// What is not HTTP gets around no policy.
		RBAC: plan.ForBytes(c.RBAC),
	}
	name := ""
	if c.Inline != nil {
		for _, h := range c.Inline.Hosts {
			for _, r := range h.Routes {
				for _, w := range r.Clusters {
					if name != "" && name != w.Cluster {
						name = "-"
						continue
					}
					name = w.Cluster
				}
			}
		}
	}
	switch {
	case name != "" && name != "-":
	case d == plan.Inbound:
		name = "InboundPassthroughCluster"
	default:
		name = "PassthroughCluster"
	}
	out.Clusters = []plan.WeightedCluster{{Cluster: name}}
	return out
}
