package identity

// The labels by which a workload says what service it is part of.
const (
	CanonicalNameLabel     = "service.istio.io/canonical-name"
	CanonicalRevisionLabel = "service.istio.io/canonical-revision"
)

// Canonical returns the name and revision of the service that a workload belongs
// to, as metrics show it, from its labels and its own name.
// Source: Istio, canonical service labels and their order of precedence.
func Canonical(labels map[string]string, workload string) (name, revision string) {
	first := func(fallback string, keys ...string) string {
		for _, k := range keys {
			if v := labels[k]; v != "" {
				return v
			}
		}
		return fallback
	}
	return first(workload, CanonicalNameLabel, "app.kubernetes.io/name", "app"),
		first("latest", CanonicalRevisionLabel, "app.kubernetes.io/version", "version")
}
