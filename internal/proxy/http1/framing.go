package http1

import (
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/syntax"
)

// framing reads how long the body is from the header. It finds what RFC 9112
// section 6 allows and nothing that two readers could disagree on.
func framing(h *exchange.Header, minor int) (exchange.Framing, int64, error) {
	if h.Has(exchange.TransferEncoding) {
		if h.Has(exchange.ContentLength) {
			return 0, 0, errBoth
		}
		if minor == 0 {
			return 0, 0, errCodingIn10
		}
		if h.Count(exchange.TransferEncoding) != 1 || !exchange.EqualFold(h.Get(exchange.TransferEncoding), "chunked") {
			return 0, 0, errCoding
		}
		return exchange.Chunked, 0, nil
	}
	if !h.Has(exchange.ContentLength) {
		return exchange.UntilClose, 0, nil
	}
	if h.Count(exchange.ContentLength) != 1 {
		return 0, 0, errLength
	}
	n, ok := syntax.ParseLength(h.Get(exchange.ContentLength))
	if !ok {
		return 0, 0, errLength
	}
	return exchange.Length, n, nil
}
