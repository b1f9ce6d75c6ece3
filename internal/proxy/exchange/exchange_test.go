package exchange

import (
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/telemetry"
)

// received makes a header as a codec would.
func received(lines ...string) *Header {
	raw := []byte(strings.Join(lines, "\r\n") + "\r\n")
	h := &Header{}
	h.SetRaw(raw)
	at := 0
	for _, l := range lines {
		colon := strings.IndexByte(l, ':')
		value := strings.TrimSpace(l[colon+1:])
		from := at + strings.Index(l, value)
		h.AddRaw(raw[at:at+colon], raw[from:from+len(value)], at, at+len(l)+2)
		at += len(l) + 2
	}
	return h
}

func TestUnchangedFieldsKeepTheirBytes(t *testing.T) {
	h := received("Host:  A.example", "X-MiXed: v", "x-request-id: 1", "Cookie: c")
	h.SetString(RequestID, "2")
	h.DelName([]byte("COOKIE"))
	h.AddString(Other, "x-new", "n")
	want := "Host:  A.example\r\nX-MiXed: v\r\nx-request-id: 2\r\nx-new: n\r\n"
	if got := string(h.AppendTo(nil)); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestHeaderLookups(t *testing.T) {
	h := received("x-forwarded-for: a", "Other: o", "X-Forwarded-For: b", "x-forwarded-for: c")
	if got := string(h.Get(ForwardedFor)); got != "a" {
		t.Errorf("first is %q", got)
	}
	if n := h.Count(ForwardedFor); n != 3 {
		t.Errorf("count is %d", n)
	}
	h.DelAt(0)
	if got := string(h.Get(ForwardedFor)); got != "b" || h.Count(ForwardedFor) != 2 {
		t.Errorf("after removing the first: %q, count %d", got, h.Count(ForwardedFor))
	}
	if v, i := h.Find("other", 0); string(v) != "o" || i != 1 {
		t.Errorf("Find: %q at %d", v, i)
	}
	h.Del(ForwardedFor)
	if h.Has(ForwardedFor) || h.Get(ForwardedFor) != nil || h.Count(ForwardedFor) != 0 {
		t.Error("still there after Del")
	}
	if got := string(h.AppendTo(nil)); got != "Other: o\r\n" {
		t.Errorf("left: %q", got)
	}
}

func TestKnownNamesAreFoundInAnyCase(t *testing.T) {
	for id := Other + 1; id < idEnd; id++ {
		if id.Name() == "" {
			t.Fatalf("id %d has no name", id)
		}
		for _, name := range []string{id.Name(), strings.ToUpper(id.Name())} {
			if got := Identify([]byte(name)); got != id {
				t.Errorf("Identify(%q) = %d, want %d", name, got, id)
			}
		}
	}
	if got := Identify([]byte("x-requesT-ix")); got != Other {
		t.Errorf("a stranger is %q", got.Name())
	}
}

func TestFlagsPrintAsEnvoyDoes(t *testing.T) {
	for f, want := range map[Flags]string{
		0:                                  "-",
		NoRoute:                            "NR",
		NoCluster:                          "NC",
		ClientLeft:                         "DC",
		UpstreamFailure | RetriesExhausted: "UF,URX",
		UpstreamTimeout | UpstreamOverflow | RetriesExhausted: "UT,UO,URX",
		DNSFailure: "DF",
	} {
		if got := f.String(); got != want {
			t.Errorf("%d prints as %q, want %q", f, got, want)
		}
	}
}

func TestCanonicalPath(t *testing.T) {
	for in, want := range map[string]string{
		"/":                 "/",
		"/a/b":              "/a/b",
		"/a/./b":            "/a/b",
		"/a/../b":           "/b",
		"/a/..":             "/",
		"/a/.":              "/a/",
		"/a/b/..":           "/a/",
		"/..":               "/",
		"/../../a":          "/a",
		"/.":                "/",
		"/a/%2e%2E/b":       "/b",
		"/a/%2e":            "/a/",
		"/%61dmin":          "/admin",
		"/a%2fb":            "/a%2fb",
		"/a%2Fb/%2e%2e/c":   "/c",
		"//a":               "//a",
		"/a//b":             "/a//b",
		`/a\..\b`:           "/b",
		"/a/...":            "/a/...",
		"/a/.b":             "/a/.b",
		"/a;/../b":          "/b",
		"/a/..;/b":          "/a/..;/b",
		"/100%":             "/100%",
		"/%zz":              "/%zz",
		"/%2%65":            "/%2%65",
		"/%%32e":            "/%%32e",
		"/%252e%252e/admin": "/%252e%252e/admin",
		"/%7Euser":          "/~user",
	} {
		got, _, ok := Canonical(nil, []byte(in))
		if !ok || string(got) != want {
			t.Errorf("Canonical(%q) = %q, %v, want %q", in, got, ok, want)
		}
	}
	if got, _, ok := Canonical(nil, []byte("/a%00b")); ok {
		t.Errorf("an escaped NUL gives %q", got)
	}
}

func FuzzCanonicalIsStable(f *testing.F) {
	for _, s := range []string{"/a/../b", "/%2%65", "/%2e/%2E%2e/x", `/a\..\`, "/.%2e/", "/%%3%32%65"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !strings.HasPrefix(s, "/") {
			return
		}
		once, _, ok := Canonical(nil, []byte(s))
		if !ok {
			return
		}
		if len(once) == 0 || once[0] != '/' {
			t.Fatalf("%q became %q", s, once)
		}
		twice, _, ok := Canonical(nil, once)
		if !ok || string(twice) != string(once) {
			t.Fatalf("%q became %q and then %q, %v", s, once, twice, ok)
		}
		for _, segment := range strings.Split(string(once), "/") {
			if segment == "." || segment == ".." {
				t.Fatalf("%q became %q", s, once)
			}
		}
	})
}

func TestCanonicalAppendsToItsBuffer(t *testing.T) {
	x := Get()
	defer Put(x)
	kept := x.Keep(append(x.Scratch(), "kept"...))
	got, grown, ok := Canonical(x.Scratch(), []byte("/a/../b"))
	x.Keep(grown)
	if !ok || string(got) != "/b" || string(kept) != "kept" {
		t.Errorf("got %q, %v; kept %q", got, ok, kept)
	}
}

func TestPeerMemoDecodesAHeaderOnce(t *testing.T) {
	var m PeerMemo
	calls := 0
	decode := func(s string) (telemetry.Workload, bool) {
		calls++
		return telemetry.Workload{Name: s}, s != "bad"
	}
	a := m.Decode([]byte("a"), decode)
	if b := m.Decode([]byte("a"), decode); a == nil || a != b || calls != 1 {
		t.Errorf("%p and %p after %d calls", a, b, calls)
	}
	if w := m.Decode([]byte("bad"), decode); w != nil {
		t.Errorf("a bad header gives %v", w)
	}
	if w := m.Decode([]byte("bad"), decode); w != nil || calls != 2 {
		t.Errorf("a bad header again: %v after %d calls", w, calls)
	}
}

func TestHandlesStayBounded(t *testing.T) {
	var h Handles
	for i := range 10 * maxHandles {
		k := HandleKey{Code: i}
		m := &telemetry.HTTP{}
		h.Put(k, m)
		if h.Get(&k) != m {
			t.Fatalf("handle %d is not there", i)
		}
	}
	if n := len(*h.list.Load()); n > maxHandles {
		t.Errorf("%d handles are kept", n)
	}
}
