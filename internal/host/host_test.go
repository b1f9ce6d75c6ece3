package host

import (
	"slices"
	"testing"
)

func TestWildcardsCoverAnyDepthButNotTheirApex(t *testing.T) {
	for _, c := range []struct {
		pattern, name Name
		want          bool
	}{
		{"*", "a", true},
		{"*", "*", true},
		{"*", "*.com", true},
		{"*.com", "*", false},
		{"*.example.com", "a.example.com", true},
		{"*.example.com", "a.b.example.com", true},
		{"*.example.com", "example.com", false},
		{"*.example.com", ".example.com", false},
		{"*.example.com", "*.example.com", true},
		{"*.example.com", "*.a.example.com", true},
		{"*.a.example.com", "*.example.com", false},
		{"*.example.com", "badexample.com", false},
		{"a.example.com", "a.example.com", true},
		{"a.example.com", "b.example.com", false},
		{"a.example.com", "*.example.com", false},
	} {
		if got := Matches(c.pattern, c.name); got != c.want {
			t.Errorf("Matches(%q, %q) = %v", c.pattern, c.name, got)
		}
	}
}

func TestIntersectGivesTheNarrowerName(t *testing.T) {
	for _, c := range []struct {
		a, b, want Name
		ok         bool
	}{
		{"*.example.com", "a.example.com", "a.example.com", true},
		{"a.example.com", "*.example.com", "a.example.com", true},
		{"*", "*.example.com", "*.example.com", true},
		{"*.a.com", "*.b.com", "", false},
		{"a.com", "b.com", "", false},
	} {
		got, ok := Intersect(c.a, c.b)
		if got != c.want || ok != c.ok {
			t.Errorf("Intersect(%q, %q) = %q, %v", c.a, c.b, got, ok)
		}
	}
}

func TestCompareSortsTheMostSpecificFirst(t *testing.T) {
	got := []Name{"*", "b.com", "*.com", "*.a.com", "a.com"}
	slices.SortFunc(got, Compare)
	want := []Name{"a.com", "b.com", "*.a.com", "*.com", "*"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestShortNamesBelongToTheNamespaceOfTheirRule(t *testing.T) {
	for short, want := range map[string]Name{
		"reviews":         "reviews.ns.svc.cluster.local",
		"Reviews":         "reviews.ns.svc.cluster.local",
		"reviews.other":   "reviews.other",
		"*":               "*",
		"*.example.com":   "*.example.com",
		"www.example.com": "www.example.com",
		"a.com.":          "a.com",
		"":                "",
	} {
		if got := FQDN(short, "ns", "cluster.local"); got != want {
			t.Errorf("FQDN(%q) = %q, want %q", short, got, want)
		}
	}
}
