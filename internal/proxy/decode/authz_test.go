package decode

import "testing"

// TestRegexesOfIstio holds the patterns that Istio writes for principals, and
// nothing beyond them.
func TestRegexesOfIstio(t *testing.T) {
	for pattern, want := range map[string]string{
		".+":              "*",
		".*/ns/foo/.*":    "*/ns/foo/*",
		".*/ns/prod.*/.*": "*/ns/prod*", ".*/ns/.*-x/.*": "*-x/sa/*",
		"spiffe://.*/sa/b":         "*/sa/b",
		`spiffe://.*/ns/a/sa/b\.c`: "*/ns/a/sa/b.c",
		"spiffe://td/.*":           "spiffe://td/*",
		"(a|b)":                    "",
		"":                         "",
		".*/ns/[a-z]/.*":           "",
	} {
		got, ok := fromRegex(pattern)
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("%q is read as %q (%v), want %q", pattern, got, ok, want)
		}
	}
}
