package control

import (
	"bufio"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"time"

	"github.com/heddle-mesh/heddle/internal/encode"
	"github.com/heddle-mesh/heddle/internal/xds/server"
)

// shortTypes are the names that people and metrics use.
var shortTypes = []struct{ url, short string }{
	{encode.ClusterType, "cds"},
	{encode.EndpointType, "eds"},
	{encode.ListenerType, "lds"},
	{encode.NameTableType, "nds"},
	{encode.RouteType, "rds"},
}

// writeMetrics writes the metrics in Prometheus' text format, under Istio's
// names.
func writeMetrics(to io.Writer, version string, r *register, xds *server.Server) error {
	w := bufio.NewWriter(to)
	head := func(name, kind, help string) { fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) }
	one := func(name, kind, help string, value float64) {
		head(name, kind, help)
		fmt.Fprintf(w, "%s %s\n", name, number(value))
	}

	c := xds.Counts()
	services, virtuals := 0, 0
	world, _ := r.inForce()
	if world != nil {
		services, virtuals = len(world.Services()), len(world.VirtualServices())
	}
	r.mu.Lock()
	errors, warnings, refused := len(r.errors), 0, r.refused
	for _, list := range r.warnings {
		warnings += len(list)
	}
	csrs, issued, unproven := r.csrs, r.issued, r.unproven
	r.mu.Unlock()

	one("citadel_server_authentication_failure_count", "counter", "Requests for certificates whose sender could not be authenticated.", float64(unproven))
	one("citadel_server_csr_count", "counter", "Requests for certificates.", float64(csrs))
	one("citadel_server_success_cert_issuance_count", "counter", "Certificates issued.", float64(issued))
	one("go_goroutines", "gauge", "Number of goroutines.", float64(runtime.NumGoroutine()))
	head("heddle_config_faults", "gauge", "Faults of the configuration that stand.")
	fmt.Fprintf(w, "heddle_config_faults{severity=\"error\"} %d\nheddle_config_faults{severity=\"warning\"} %d\n", errors, warnings)
	one("istiod_uptime_seconds", "gauge", "Seconds since the start.", time.Since(r.began).Seconds())
	head("pilot_info", "gauge", "Version of the control plane.")
	fmt.Fprintf(w, "pilot_info{version=%q} 1\n", version)

	head("pilot_proxy_convergence_time", "histogram", "Seconds from a change of configuration to its acceptance by a proxy.")
	for i, bound := range server.ConvergenceBounds {
		fmt.Fprintf(w, "pilot_proxy_convergence_time_bucket{le=\"%s\"} %d\n", number(bound.Seconds()), c.Convergence.Buckets[i])
	}
	fmt.Fprintf(w, "pilot_proxy_convergence_time_bucket{le=\"+Inf\"} %d\n", c.Convergence.Count)
	fmt.Fprintf(w, "pilot_proxy_convergence_time_sum %s\n", number(c.Convergence.Sum.Seconds()))
	fmt.Fprintf(w, "pilot_proxy_convergence_time_count %d\n", c.Convergence.Count)

	one("pilot_services", "gauge", "Services known.", float64(services))
	one("pilot_total_rejected_configs", "counter", "Views of the configuration that were refused as a whole.", float64(refused))
	total := uint64(0)
	for _, n := range c.Rejects {
		total += n
	}
	one("pilot_total_xds_rejects", "counter", "Responses that proxies refused.", float64(total))
	one("pilot_virt_services", "gauge", "VirtualServices known.", float64(virtuals))
	one("pilot_xds", "gauge", "Proxies connected.", float64(c.Streams))
	one("pilot_xds_expired_nonce", "counter", "Requests about a response that was superseded.", float64(c.Stale))
	head("pilot_xds_pushes", "counter", "Responses sent.")
	for _, t := range shortTypes {
		fmt.Fprintf(w, "pilot_xds_pushes{type=%q} %d\n", t.short, c.Pushes[t.url])
	}
	for _, t := range shortTypes {
		one("pilot_xds_"+t.short+"_reject", "counter", "Responses of this type that proxies refused.", float64(c.Rejects[t.url]))
	}
	return w.Flush()
}

func number(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }
