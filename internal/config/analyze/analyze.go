// Package analyze checks objects against each other: references that lead
// nowhere, and objects that are in each other's way. Nothing it finds keeps an
// object from being applied, for what is missing may come later.
//
// Where Istio's analysis makes the same finding, the fault bears its code.
package analyze

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/heddle-mesh/heddle/internal/config"
)

// Codes of Istio's analysis messages.
const (
	codeMissing   = "IST0101" // a reference leads nowhere
	codeConflict  = "IST0109" // two VirtualServices for one host of the mesh
	codeNoPort    = "IST0112" // a destination without port on a service with several
	codeNoHost    = "IST0132" // a VirtualService's hosts are not among its gateway's
	codeNoSubject = "IST0173" // a subset selects no pods
)

// Check returns warnings about the objects as a whole, sorted by position. The
// objects are taken for the whole mesh: what they refer to should be among them.
func Check(objects []*config.Object) []config.Fault {
	a := newAnalysis(objects)
	a.destinations()
	a.subsets()
	a.gatewayReferences()
	a.sameHosts()
	a.destinationRules()
	a.selectors()
	a.peerAuthentications()
	return a.sorted()
}

func (a *analysis) sorted() []config.Fault {
	slices.SortStableFunc(a.faults, func(x, y config.Fault) int {
		return cmp.Or(strings.Compare(x.Pos.File, y.Pos.File), x.Pos.Line-y.Pos.Line,
			strings.Compare(x.Field, y.Field), strings.Compare(x.Problem, y.Problem))
	})
	return a.faults
}

func (a *analysis) warn(o *config.Object, code, field, problem, hint string) {
	a.faults = append(a.faults, config.Fault{Pos: o.At(field), Object: o.Key, Field: field, Problem: problem, Hint: hint,
		Severity: config.Warning, Code: code})
}

// names lists what exists, for a hint.
func names(what string, list []string) string {
	const most = 8
	list = slices.Compact(slices.Sorted(slices.Values(list)))
	switch {
	case len(list) == 0:
		return "there are no " + what
	case len(list) > most:
		return fmt.Sprintf("%s are %s and %d more", what, strings.Join(list[:most], ", "), len(list)-most)
	}
	return what + " are " + strings.Join(list, ", ")
}
