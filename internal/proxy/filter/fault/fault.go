// Package fault spoils requests on purpose, so that it can be seen what their
// callers make of it. It decides; the router, who knows the route, waits and
// answers. Source: Envoy's fault filter.
package fault

import (
	"strconv"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// Delays reports whether a request is one of those to be delayed. random is
// uniform over all its values.
func Delays(f *plan.Fault, random uint64) bool { return hits(f.DelayFraction, random) }

// Aborts reports whether a request is one of those to be answered with an error.
func Aborts(f *plan.Fault, random uint64) bool { return hits(f.AbortFraction, random) }

func hits(part plan.Fraction, random uint64) bool {
	return (random>>32)*plan.Million>>32 < uint64(part)
}

// Abort answers x. A status of gRPC is for a client of gRPC what it is, and for others
// the nearest of HTTP.
func Abort(x *exchange.Exchange, f *plan.Fault) {
	status := int(f.AbortStatus)
	if f.AbortGRPC {
		status = httpStatus(f.AbortStatus)
	}
	x.Fail(exchange.FaultInjected, status, "fault filter abort", "fault_filter_abort")
	if f.AbortGRPC && x.Request.IsGRPC() {
		code := strconv.AppendUint(x.Scratch(), uint64(f.AbortStatus), 10)
		r := &x.Response
		r.Header.Set(exchange.GRPCStatus, x.Keep(code))
		r.GRPCStatus = exchange.GRPCCode(r.Header.Get(exchange.GRPCStatus))
	}
}

// httpStatus maps a status of gRPC. Source: Google APIs, "Handling Errors".
func httpStatus(code uint32) int {
	switch code {
	case 0:
		return 200
	case 1:
		return 499
	case 3, 9, 11:
		return 400
	case 4:
		return 504
	case 5:
		return 404
	case 6, 10:
		return 409
	case 7:
		return 403
	case 8:
		return 429
	case 12:
		return 501
	case 14:
		return 503
	case 16:
		return 401
	}
	return 500
}
