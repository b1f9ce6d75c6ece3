package stats

import (
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/telemetry"
)

func TestGRPCCallsHaveAStatus(t *testing.T) {
	for status, want := range map[string]string{"0": "0", "9": "9", "14": "14", "16": "16", "17": "", "99": "", "x": "", "": "", "100": ""} {
		x := exchange.Get()
		x.Response.Header.AddString(exchange.GRPCStatus, "grpc-status", status)
		if got := grpcStatus(x); got != want {
			t.Errorf("%q gives %q", status, got)
		}
		exchange.Put(x)
	}
	for kind, want := range map[string]bool{"application/grpc": true, "application/grpc+proto": true, "application/grpc; a=b": true,
		"application/grpc-web": false, "application/json": false, "": false} {
		x := exchange.Get()
		x.Request.Header.AddString(exchange.ContentType, "content-type", kind)
		if got := isGRPC(x); got != want {
			t.Errorf("%q: %v", kind, got)
		}
		exchange.Put(x)
	}
}

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
