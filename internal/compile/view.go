package compile

import (
	"encoding/base64"
	"net/netip"
	"slices"

	"github.com/heddle-mesh/heddle/internal/model"
)

// View is what one proxy may see. It holds values of the World that do not
// change, so it is cheap to make and safe to keep.
type View struct {
	class   Class
	scope   *scope
	inbound *inbound // of a Sidecar
	edge    *edge    // of a Gateway
	asked   []string // by a GRPC client, sorted
	key     string
}

// ViewOf returns the view of a proxy. Views of proxies that may call the same
// are made in part only once for a World.
func ViewOf(w *model.World, p *Proxy) *View {
	v := &View{class: p.Class, scope: scopeFor(w, p)}
	print := model.NewPrinter()
	print.Print(v.scope.print)
	switch p.Class {
	case Sidecar:
		v.inbound = inboundOf(w, p, v.scope)
		print.Print(v.inbound.print)
	case Gateway:
		v.edge = edgeOf(w, p)
		print.Print(v.edge.print)
	case GRPC:
		v.asked = slices.Clone(p.Asked)
		slices.Sort(v.asked)
		v.asked = slices.Compact(v.asked)
		print.Text(v.asked...)
	}
	sum := print.Sum()
	v.key = base64.RawURLEncoding.EncodeToString(sum[:])
	return v
}

// Key is the fingerprint of all that Plan reads of the view.
func (v *View) Key() string { return v.key }

// self returns the workload that a proxy stands before. Until the World knows
// it, the proxy's own word is taken: its namespace and account were checked when
// it connected.
func self(w *model.World, p *Proxy) *model.Workload {
	for _, ip := range p.IPs {
		if wl := w.Workload(ip); wl != nil && wl.Namespace == p.Namespace {
			return wl
		}
	}
	return &model.Workload{
		Namespace:      p.Namespace,
		IPs:            slices.Clone(p.IPs),
		Labels:         p.Labels,
		ServiceAccount: p.ServiceAccount,
	}
}

// loopback returns the source address of connections to the workload itself, by
// which redirection tells them from a caller's.
func loopback(ips []netip.Addr) netip.Addr {
	if len(ips) > 0 && ips[0].Is6() && !ips[0].Is4In6() {
		return netip.MustParseAddr("::6")
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 6})
}
