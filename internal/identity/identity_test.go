package identity

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for s, want := range map[string]ID{
		"spiffe://cluster.local/ns/default/sa/reviews":        {"cluster.local", "default", "reviews"},
		"spiffe://td/ns/a/sa/build.robot":                     {"td", "a", "build.robot"},
		"spiffe://my_td-1/ns/N/sa/S_a-1":                      {"my_td-1", "N", "S_a-1"},
		"spiffe://" + strings.Repeat("d", 255) + "/ns/a/sa/b": {strings.Repeat("d", 255), "a", "b"},
	} {
		got, err := Parse(s)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", s, got, err, want)
		}
		if got.String() != s {
			t.Errorf("%q prints as %q", s, got)
		}
		if err := got.Validate(); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for name, s := range map[string]string{
		"nothing":               "",
		"no scheme":             "cluster.local/ns/default/sa/reviews",
		"other scheme":          "https://cluster.local/ns/default/sa/reviews",
		"scheme in capitals":    "SPIFFE://cluster.local/ns/default/sa/reviews",
		"space before":          " spiffe://cluster.local/ns/default/sa/reviews",
		"only trust domain":     "spiffe://cluster.local",
		"trust domain, slash":   "spiffe://cluster.local/",
		"no trust domain":       "spiffe:///ns/default/sa/reviews",
		"capital trust domain":  "spiffe://Cluster.local/ns/default/sa/reviews",
		"trust domain, port":    "spiffe://cluster.local:80/ns/default/sa/reviews",
		"trust domain, user":    "spiffe://user@cluster.local/ns/default/sa/reviews",
		"trust domain, escape":  "spiffe://cluster%2elocal/ns/default/sa/reviews",
		"trust domain, IPv6":    "spiffe://[::1]/ns/default/sa/reviews",
		"trust domain too long": "spiffe://" + strings.Repeat("d", 256) + "/ns/a/sa/b",
		"no namespace":          "spiffe://cluster.local/ns//sa/reviews",
		"no account":            "spiffe://cluster.local/ns/default/sa/",
		"too short":             "spiffe://cluster.local/ns/default/sa",
		"too long":              "spiffe://cluster.local/ns/default/sa/reviews/x",
		"slash after":           "spiffe://cluster.local/ns/default/sa/reviews/",
		"slash twice":           "spiffe://cluster.local//ns/default/sa/reviews",
		"other words":           "spiffe://cluster.local/NS/default/SA/reviews",
		"words swapped":         "spiffe://cluster.local/sa/default/ns/reviews",
		"query":                 "spiffe://cluster.local/ns/default/sa/reviews?x",
		"fragment":              "spiffe://cluster.local/ns/default/sa/reviews#x",
		"escape":                "spiffe://cluster.local/ns/default/sa/%72eviews",
		"wildcard":              "spiffe://cluster.local/ns/default/sa/*",
		"NUL":                   "spiffe://cluster.local/ns/default/sa/reviews\x00.evil",
		"line break":            "spiffe://cluster.local/ns/default/sa/reviews\n",
		"not ASCII":             "spiffe://cluster.local/ns/default/sa/revïews",
		"up":                    "spiffe://cluster.local/ns/../sa/reviews",
		"here":                  "spiffe://cluster.local/ns/default/sa/.",
		"too many bytes":        "spiffe://td/ns/a/sa/" + strings.Repeat("x", 2048),
	} {
		t.Run(name, func(t *testing.T) {
			if id, err := Parse(s); err == nil {
				t.Errorf("%q is accepted as %+v", s, id)
			} else if len(err.Error()) > 400 {
				t.Errorf("the error repeats %d bytes", len(err.Error()))
			}
		})
	}
}

func TestValidate(t *testing.T) {
	good := ID{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: "reviews"}
	for name, edit := range map[string]func(*ID){
		"slash in account":   func(id *ID) { id.ServiceAccount = "a/sa/b" },
		"slash in namespace": func(id *ID) { id.Namespace = "a/sa/b" },
		"slash in domain":    func(id *ID) { id.TrustDomain = "td/ns" },
		"empty account":      func(id *ID) { id.ServiceAccount = "" },
		"empty namespace":    func(id *ID) { id.Namespace = "" },
		"empty domain":       func(id *ID) { id.TrustDomain = "" },
		"colon":              func(id *ID) { id.Namespace = "a:b" },
		"long":               func(id *ID) { id.ServiceAccount = strings.Repeat("x", 3000) },
	} {
		id := good
		edit(&id)
		if id.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
}

func TestSplitTakesOtherPathForms(t *testing.T) {
	td, path, err := Split("spiffe://example.org/host/web-1/Service")
	if err != nil || td != "example.org" || path != "/host/web-1/Service" {
		t.Errorf("%q, %q, %v", td, path, err)
	}
	for _, s := range []string{"spiffe://example.org", "spiffe://example.org/", "spiffe://example.org/a//b", "spiffe://example.org/a/", "spiffe:/example.org/a"} {
		if _, _, err := Split(s); err == nil {
			t.Errorf("%q is accepted", s)
		}
	}
}

// FuzzParse: what is accepted prints as it was written, so that no two spellings
// name one workload, and what is printed from parts is read as the same parts.
func FuzzParse(f *testing.F) {
	f.Add("spiffe://cluster.local/ns/default/sa/reviews", "cluster.local", "default", "reviews")
	f.Add("spiffe://a/ns/b/sa/c/d", "a", "b/sa/c", "d")
	f.Add("spiffe://", "", ".", "..")
	f.Fuzz(func(t *testing.T, s, domain, namespace, account string) {
		if id, err := Parse(s); err == nil && (id.String() != s || id.Validate() != nil) {
			t.Errorf("%q is read as %+v", s, id)
		}
		id := ID{TrustDomain: domain, Namespace: namespace, ServiceAccount: account}
		back, err := Parse(id.String())
		if valid := id.Validate() == nil; valid != (err == nil && back == id) {
			t.Errorf("%+v: valid %v, read back as %+v, %v", id, valid, back, err)
		}
	})
}
