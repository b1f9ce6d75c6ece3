// Package host compares the host names that services, routes and gateways are
// known by. A name may be a pattern: its leftmost label is then "*", which
// stands for one label or more, or it is "*" alone.
package host

import "strings"

// Name is a fully qualified host name or a pattern, in lower case and without
// the final dot.
type Name string

// IsWildcard reports whether the name is a pattern.
func (n Name) IsWildcard() bool { return strings.HasPrefix(string(n), "*") }

// Matches reports whether every host that name stands for is one that pattern
// stands for. "*.example.com" matches "a.b.example.com" and "*.b.example.com",
// and it does not match "example.com".
func Matches(pattern, name Name) bool {
	if pattern == name {
		return true
	}
	suffix, ok := strings.CutPrefix(string(pattern), "*")
	if !ok {
		return false
	}
	rest := string(name)
	if name.IsWildcard() {
		rest = rest[1:]
		return strings.HasSuffix(rest, suffix)
	}
	return len(rest) > len(suffix) && strings.HasSuffix(rest, suffix)
}

// Intersect returns the hosts that both names stand for, and false if there are
// none.
func Intersect(a, b Name) (Name, bool) {
	switch {
	case Matches(a, b):
		return b, true
	case Matches(b, a):
		return a, true
	}
	return "", false
}

// Compare orders names by precedence: exact names first, then patterns, the
// longest first. Names of equal rank go by their text.
func Compare(a, b Name) int {
	if aw, bw := a.IsWildcard(), b.IsWildcard(); aw != bw {
		if aw {
			return 1
		}
		return -1
	} else if aw && len(a) != len(b) {
		return len(b) - len(a)
	}
	return strings.Compare(string(a), string(b))
}

// FQDN completes a name as a rule in namespace writes it. A name with a dot, a
// pattern and the empty name are complete already.
func FQDN(short, namespace, domain string) Name {
	short = strings.ToLower(strings.TrimSuffix(short, "."))
	if short == "" || strings.Contains(short, ".") || strings.HasPrefix(short, "*") {
		return Name(short)
	}
	return Service(short, namespace, domain)
}

// Service returns the name of a Kubernetes Service.
func Service(name, namespace, domain string) Name {
	return Name(name + "." + namespace + ".svc." + domain)
}
