package http1

import (
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/syntax"
)

// parseFields reads header lines, each with its CRLF, into h.
func parseFields(h *exchange.Header, block []byte) error {
	h.SetRaw(block)
	for at, n := 0, 0; at < len(block); n++ {
		if n == MaxFields {
			return errTooMany
		}
		i := at
		for i < len(block) && syntax.Token[block[i]] {
			i++
		}
		// The colon follows the name at once, which also rules out folded lines.
		if i == at || i == len(block) || block[i] != ':' {
			return errField
		}
		end := syntax.ValueEnd(block, i+1)
		if end+1 >= len(block) || block[end] != '\r' || block[end+1] != '\n' {
			return errField
		}
		h.AddRaw(block[at:i], syntax.Trim(block[i+1:end]), at, end+2)
		at = end + 2
	}
	return nil
}

// eachToken calls f for the elements of a header that is a list of tokens.
func eachToken(h *exchange.Header, id exchange.ID, f func(token []byte)) {
	if !h.Has(id) {
		return
	}
	for i := range h.Len() {
		if field := h.At(i); field != nil && field.ID == id {
			for rest := field.Value; len(rest) > 0; {
				var t []byte
				t, rest = cutComma(rest)
				if t = syntax.Trim(t); len(t) > 0 {
					f(t)
				}
			}
		}
	}
}

func cutComma(b []byte) (before, after []byte) {
	for i, c := range b {
		if c == ',' {
			return b[:i], b[i+1:]
		}
	}
	return b, nil
}
