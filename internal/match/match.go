// Package match holds the matchers that the control plane shares: those that
// choose objects, not those that choose routes for a request.
package match

// Labels reports whether labels carry every pair of the selector. The empty
// selector matches anything; a caller for whom it must match nothing has to ask
// first.
func Labels(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}
