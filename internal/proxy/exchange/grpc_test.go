package exchange

import (
	"math/rand/v2"
	"testing"
)

func TestGRPCCodesAreConstantStrings(t *testing.T) {
	for _, s := range []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16"} {
		v := []byte(s)
		got := GRPCCode(v)
		if v[0] = 'x'; got != s {
			t.Errorf("%q became %q", s, got)
		}
	}
	for _, s := range []string{"", "x", "17", "-1", "01", "100", " 1"} {
		if got := GRPCCode([]byte(s)); got != "" {
			t.Errorf("%q became %q", s, got)
		}
	}
}

func TestMessagesAreCountedHoweverTheyAreCut(t *testing.T) {
	var wire []byte
	const messages = 50
	for i := range messages {
		n := []int{0, 1, 5, 300, 70000}[i%5]
		wire = append(wire, byte(i%2), byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
		wire = append(wire, make([]byte, n)...)
	}
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 0))
		var m Messages
		for p := wire; len(p) > 0; {
			n := min(1+r.IntN(1<<r.IntN(17)), len(p))
			m.Count(p[:n])
			p = p[n:]
		}
		if m.N != messages {
			t.Fatalf("seed %d: %d messages", seed, m.N)
		}
	}
}

func TestGRPCTimeouts(t *testing.T) {
	for v, want := range map[string]int64{"1S": 1000, "250m": 250, "2M": 120000, "1H": 3600000, "1500u": 1, "1n": 1, "99999999m": 99999999,
		"": -1, "S": -1, "1": -1, "1x": -1, "-1S": -1, "123456789S": -1, "1.5S": -1} {
		var r Request
		r.Header.AddString(GRPCTimeout, "grpc-timeout", v)
		ms, ok := r.GRPCTimeout()
		if !ok {
			ms = -1
		}
		if ms != want {
			t.Errorf("%q is %d, want %d", v, ms, want)
		}
	}
}

func TestOwnAnswersToGRPC(t *testing.T) {
	x := Get()
	defer Put(x)
	x.Request.Header.AddString(ContentType, "content-type", "application/grpc+proto")
	x.Fail(NoRoute, 503, "no 100%\n", "details")
	r := &x.Response
	if got := string(r.Header.AppendTo(nil)); r.Status != 200 || r.Text != "" || r.GRPCStatus != "14" ||
		got != "content-type: application/grpc\r\ngrpc-status: 14\r\ngrpc-message: no 100%25%0A\r\n" {
		t.Errorf("%d %q %q", r.Status, r.Text, got)
	}
}

func TestGRPCIsToldByItsContentType(t *testing.T) {
	for kind, want := range map[string]bool{"application/grpc": true, "application/grpc+proto": true, "application/grpc; a=b": true,
		"Application/gRPC": true, "application/grpc-web": false, "application/json": false, "": false} {
		var r Request
		r.Header.AddString(ContentType, "content-type", kind)
		if got := r.IsGRPC(); got != want {
			t.Errorf("%q: %v", kind, got)
		}
	}
}
