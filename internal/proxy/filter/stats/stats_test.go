package stats

import (
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/telemetry"
)

func TestBlackHoleIsNamed(t *testing.T) {
	r := telemetry.NewRegistry()
	o := New(Config{Registry: r, Direction: plan.Outbound})
	x := exchange.Get()
	defer exchange.Put(x)
	x.Conn = &exchange.Conn{}
	x.Host = &plan.VirtualHost{Name: "block_all"}
	x.Request.Authority = []byte("www.example.com")
	x.Reply(502, "", "direct_response")
	o(x)
	o(x)
	var out strings.Builder
	r.WritePrometheus(&out)
	found := false
	for _, l := range strings.Split(out.String(), "\n") {
		if strings.HasPrefix(l, "istio_requests_total{") {
			found = strings.Contains(l, `destination_service_name="BlackHoleCluster"`) && strings.Contains(l, `response_code="502"`) && strings.HasSuffix(l, " 2")
		}
	}
	if !found {
		t.Errorf("got\n%s", out.String())
	}
}
