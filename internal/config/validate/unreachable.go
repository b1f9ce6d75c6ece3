package validate

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"

	"github.com/heddle-mesh/heddle/internal/config"
)

// Istio's analysis codes for routes that never act.
const (
	codeUnreachable = "IST0130"
	codeIneffective = "IST0131"
)

// unreachable warns of rules that an earlier rule of the same object leaves
// nothing to.
func (c *checker) unreachable(vs *networkingv1alpha3.VirtualService) {
	rules := func(list string, n int, name func(int) string, matches func(int) []proto.Message) {
		first := map[string]int{} // match → rule
		catchAll := -1
		for i := range n {
			path := at("spec."+list, i)
			ms := matches(i)
			if len(ms) == 0 {
				if catchAll >= 0 {
					c.coded(codeUnreachable, path, "the rule is never reached", fmt.Sprintf("rule %s before it matches everything", name(catchAll)))
				}
				catchAll = i
				continue
			}
			duplicates := 0
			for j, m := range ms {
				id := identity(m)
				if earlier, dup := first[id]; dup {
					duplicates++
					c.coded(codeIneffective, at(path+".match", j), "the match never acts", fmt.Sprintf("rule %s has the same", name(earlier)))
					continue
				}
				first[id] = i
			}
			if duplicates == len(ms) {
				c.coded(codeUnreachable, path, "the rule is never reached", "earlier rules have all of its matches")
			}
		}
	}
	number := func(i int) string { return fmt.Sprintf("#%d", i) }
	rules("http", len(vs.Http), func(i int) string { return ruleName(vs.Http[i], i) },
		func(i int) []proto.Message { return messages(vs.Http[i].Match) })
	rules("tls", len(vs.Tls), number, func(i int) []proto.Message { return messages(vs.Tls[i].Match) })
	rules("tcp", len(vs.Tcp), number, func(i int) []proto.Message { return messages(vs.Tcp[i].Match) })
	c.coveredPrefixes(vs.Http)
}

func (c *checker) coded(code, path, problem, hint string) {
	c.faults = append(c.faults, config.Fault{Pos: c.o.At(path), Object: c.o.Key, Field: path, Problem: problem, Hint: hint,
		Severity: config.Warning, Code: code})
}

func messages[M proto.Message](list []M) []proto.Message {
	out := make([]proto.Message, len(list))
	for i, m := range list {
		out[i] = m
	}
	return out
}

// identity is equal for matches that match the same.
func identity(m proto.Message) string {
	if h, ok := m.(*networkingv1alpha3.HTTPMatchRequest); ok && h.Name != "" {
		h = proto.Clone(h).(*networkingv1alpha3.HTTPMatchRequest)
		h.Name = ""
		m = h
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func ruleName(r *networkingv1alpha3.HTTPRoute, i int) string {
	if r.Name != "" {
		return fmt.Sprintf("%q", r.Name)
	}
	return fmt.Sprintf("#%d", i)
}

// maxPrefixes bounds the comparison of each prefix with each later one.
const maxPrefixes = 1000

// coveredPrefixes warns of a prefix match behind a shorter prefix with the same
// other conditions.
func (c *checker) coveredPrefixes(routes []*networkingv1alpha3.HTTPRoute) {
	type prefixMatch struct {
		path, rule, prefix string
		m                  *networkingv1alpha3.HTTPMatchRequest
	}
	var all []prefixMatch
	for i, r := range routes {
		for j, m := range r.Match {
			if p := m.Uri.GetPrefix(); p != "" {
				all = append(all, prefixMatch{at(at("spec.http", i)+".match", j), ruleName(r, i), p, m})
			}
		}
	}
	if len(all) > maxPrefixes {
		all = all[:maxPrefixes]
	}
	for i, a := range all {
		for _, b := range all[i+1:] {
			if a.prefix != b.prefix && strings.HasPrefix(b.prefix, a.prefix) && covers(a.m, b.m) {
				c.coded(codeIneffective, b.path, fmt.Sprintf("prefix %s never acts", b.prefix),
					fmt.Sprintf("rule %s takes prefix %s before it", a.rule, a.prefix))
			}
		}
	}
}

// covers reports whether a's conditions other than the path hold wherever b's
// do, as far as Istio's analysis looks.
func covers(a, b *networkingv1alpha3.HTTPMatchRequest) bool {
	method := func(m *networkingv1alpha3.StringMatch) string {
		if t := matchText(m); t != "" {
			return t
		}
		return "exact:GET"
	}
	return a.Port == b.Port &&
		strings.HasPrefix(method(a.Method), method(b.Method)) &&
		strings.HasPrefix(matchText(a.Authority), matchText(b.Authority)) &&
		coversAll(a.Headers, b.Headers) && coversAll(a.QueryParams, b.QueryParams) && coversAll(a.WithoutHeaders, b.WithoutHeaders)
}

func coversAll(a, b map[string]*networkingv1alpha3.StringMatch) bool {
	if len(a) != len(b) {
		return false
	}
	for _, k := range slices.Sorted(maps.Keys(a)) {
		other, ok := b[k]
		if !ok || !strings.HasPrefix(matchText(a[k]), matchText(other)) {
			return false
		}
	}
	return true
}

func matchText(m *networkingv1alpha3.StringMatch) string {
	switch {
	case m.GetExact() != "":
		return "exact:" + m.GetExact()
	case m.GetPrefix() != "":
		return "prefix:" + m.GetPrefix()
	}
	return ""
}
