package syntax

import (
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

func TestAuthorities(t *testing.T) {
	for a, want := range map[string][2]bool{ // valid, with a port
		"a": {true, false}, "a.example:80": {true, true}, "10.0.0.1:65535": {true, true}, "[::1]": {true, false}, "[::1]:80": {true, true},
		"%41": {true, false}, "": {}, ":80": {}, "a:": {}, "a:65536": {}, "a:80:80": {}, "user@a": {}, "a/b": {}, "a b": {}, "[::1": {},
		"[]": {}, "[::1]x": {}, "[g::1]": {}, "a:-1": {}, "a,b": {true, false},
	} {
		if got := ValidAuthority([]byte(a)); got != want[0] {
			t.Errorf("ValidAuthority(%q) = %v", a, got)
		} else if got && HasPort([]byte(a)) != want[1] {
			t.Errorf("HasPort(%q) = %v", a, !want[1])
		}
	}
}

func TestLengths(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "00": 0, "17": 17, "999999999999999999": 999999999999999999} {
		if n, ok := ParseLength([]byte(s)); n != want || !ok {
			t.Errorf("%q is %d, %v", s, n, ok)
		}
	}
	for _, s := range []string{"", "+1", "-1", " 1", "1 ", "0x1", "1,1", "9999999999999999999"} {
		if n, ok := ParseLength([]byte(s)); ok {
			t.Errorf("%q is %d", s, n)
		}
	}
}

func TestTrailersThatWouldChangeTheMessage(t *testing.T) {
	for name, want := range map[string]bool{
		"grpc-status": true, "x-sum": true, "Content-MD5": false, "host": false, "Set-Cookie": false, "x-envoy-attempt-count": false,
		"x-forwarded-for": false, "Authorization": false, "transfer-encoding": false, "trailer": false,
	} {
		if got := TrailerAllowed(exchange.Identify([]byte(name)), []byte(name)); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

// The fast look at eight bytes must find what a look at each finds.
func FuzzValueEnd(f *testing.F) {
	f.Add("a value\twith blanks\r\n", 0)
	f.Add(strings.Repeat("\xff", 9)+"\x7f", 3)
	f.Fuzz(func(t *testing.T, s string, i int) {
		if i < 0 || i > len(s) {
			return
		}
		want := i
		for want < len(s) && (s[want] >= 0x20 || s[want] == '\t') && s[want] != 0x7f {
			want++
		}
		if got := ValueEnd([]byte(s), i); got != want {
			t.Fatalf("%q from %d ends at %d, want %d", s, i, got, want)
		}
	})
}
