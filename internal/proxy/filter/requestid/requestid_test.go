package requestid

import (
	"testing"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

func TestIDs(t *testing.T) {
	n := uint64(0)
	random := func() uint64 { n++; return n * 0x0123456789abcdef }
	const fresh = "01234567-89ab-4def-8246-8acf13579bde"
	for _, c := range []struct {
		name    string
		sent    []string
		replace bool
		want    string
	}{
		{"none", nil, false, fresh},
		{"one", []string{"mine"}, false, "mine"},
		{"empty", []string{""}, false, fresh},
		{"a stranger's", []string{"mine", "other"}, true, fresh},
	} {
		n = 0
		x := exchange.Get()
		for _, v := range c.sent {
			x.Request.Header.AddString(exchange.RequestID, "x-request-id", v)
		}
		New(Config{Replace: c.replace, Random: random}).Request(x)
		got := string(x.Request.Header.Get(exchange.RequestID))
		if k := x.Request.Header.Count(exchange.RequestID); k != 1 {
			t.Errorf("%s: %d ids", c.name, k)
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		exchange.Put(x)
	}
}
