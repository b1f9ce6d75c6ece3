package webhook

import (
	"fmt"
	"io"
	"sync/atomic"
)

// WriteMetrics writes the counts in Prometheus' text format, under Istio's names.
func (s *Server) WriteMetrics(w io.Writer) {
	c := &s.Counts
	for _, m := range []struct {
		name, help string
		value      *atomic.Int64
	}{
		{"galley_validation_failed", "Objects that validation refused.", &c.ValidationFailed},
		{"galley_validation_http_error", "Requests of webhooks that were no reviews.", &c.HTTPErrors},
		{"galley_validation_passed", "Objects that validation let pass.", &c.ValidationPassed},
		{"sidecar_injection_failure_total", "Pods whose injection failed.", &c.InjectionFailure},
		{"sidecar_injection_requests_total", "Pods that injection was asked for.", &c.InjectionRequests},
		{"sidecar_injection_skip_total", "Pods that were not to be injected.", &c.InjectionSkip},
		{"sidecar_injection_success_total", "Pods that were injected.", &c.InjectionSuccess},
	} {
		// Nothing is to be done if the caller is gone.
		_, _ = fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s counter\n%s %d\n", m.name, m.help, m.name, m.name, m.value.Load())
	}
}
