package decode

import (
	"strings"

	"github.com/heddle-mesh/heddle/internal/plan"
)

// workload reads "name;namespace;canonical name;revision;cluster", Istio's short
// form. It only labels metrics, so parts that are missing stay empty.
func workload(s string) plan.Workload {
	if s == "" {
		return plan.Workload{}
	}
	p := append(strings.Split(s, ";"), "", "", "", "")
	return plan.Workload{Name: p[0], Namespace: p[1], CanonicalName: p[2], CanonicalRevision: p[3], ClusterID: p[4]}
}
