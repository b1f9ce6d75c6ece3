package filter

import (
	"bufio"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/heddle-mesh/heddle/internal/plan"
	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/mtls"
)

// mirror answers with the head it got.
func mirror(extra string) func(net.Conn) {
	return func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			var head strings.Builder
			for {
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				head.WriteString(strings.ToLower(line))
				if line == "\r\n" {
					break
				}
			}
			text := ok(head.String())
			io.WriteString(c, strings.Replace(text, "\r\n", "\r\n"+extra, 1))
		}
	}
}

// lines returns the upstream's view of a request: its header lines.
func lines(body string) map[string]string {
	m := map[string]string{}
	for _, l := range strings.Split(body, "\r\n")[1:] {
		if name, value, found := strings.Cut(l, ": "); found {
			if old, twice := m[name]; twice {
				value = old + " AND " + value
			}
			m[name] = value
		}
	}
	return m
}

func wantLines(t *testing.T, got map[string]string, want map[string]string) {
	t.Helper()
	for name, value := range want {
		v, there := got[name]
		switch {
		case value == "" && there:
			t.Errorf("%s is there: %q", name, v)
		case value != "" && !regexp.MustCompile("^(?:"+value+")$").MatchString(v):
			t.Errorf("%s is %q, want %q", name, v, value)
		}
	}
}

const uuid = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"

var clientMetadata = &mtls.Metadata{ID: "sidecar~10.0.0.9~a.ns~ns.svc.cluster.local", Name: "a", Namespace: "clients",
	WorkloadName: "caller", ClusterID: "Kubernetes", Labels: map[string]string{"app": "caller-app", "version": "v7"}}

func TestOutboundHeaders(t *testing.T) {
	inBubble(t, func(b *bed) {
		theirs, _ := (&mtls.Metadata{WorkloadName: "server", Namespace: "servers", Labels: map[string]string{"app": "server-app", "version": "v2"}}).Headers()
		b.config = func(c *Config) { c.OwnMetadata, c.OwnMetadataID = clientMetadata.Headers() }
		b.cluster("c", b.backend("10.0.1.1:80", mirror("X-Envoy-Peer-Metadata: "+theirs+"\r\nX-Envoy-Peer-Metadata-Id: x\r\nServer: app\r\n")))
		b.cluster("outside", b.backend("10.0.1.2:80", mirror("")))
		b.endpoints["outside"].Localities[0].Endpoints[0].Workload = plan.Workload{}
		outside := to("outside")
		outside.Match.Path.Value = "/outside"
		b.start(outside, to("c"))
		c := b.dial()
		c.get("/", "X-Forwarded-For: 1.2.3.4", "X-Envoy-Peer-Metadata: forged", "X-Envoy-Attempt-Count: 9",
			"X-Forwarded-Client-Cert: URI=spiffe://forged")
		a := c.read("GET")
		own, id := clientMetadata.Headers()
		wantLines(t, lines(a.body), map[string]string{
			"host": "a.example", "x-request-id": uuid, "x-forwarded-proto": "http", "x-forwarded-for": "1.2.3.4",
			"x-envoy-attempt-count": "1", "x-envoy-peer-metadata": regexp.QuoteMeta(strings.ToLower(own)),
			"x-envoy-peer-metadata-id": regexp.QuoteMeta(id), "x-forwarded-client-cert": "",
		})
		for name, want := range map[string]string{"X-Envoy-Peer-Metadata": "", "X-Envoy-Peer-Metadata-Id": "", "Server": "envoy", "X-Envoy-Upstream-Service-Time": "0"} {
			if got := strings.Join(a.Header.Values(name), " AND "); got != want {
				t.Errorf("response %s: %q, want %q", name, got, want)
			}
		}
		c.get("/outside")
		wantLines(t, lines(c.read("GET").body), map[string]string{"x-envoy-peer-metadata": "", "x-envoy-peer-metadata-id": ""})

		out := b.exposition()
		wantSeries(t, out, 1, `istio_requests_total`, `reporter="source"`, `source_workload="me"`, `destination_workload="server"`,
			`destination_workload_namespace="servers"`, `destination_app="server-app"`, `destination_version="v2"`,
			`destination_service="c.ns.svc.cluster.local"`, `destination_service_name="c"`, `destination_service_namespace="ns"`,
			`response_code="200"`, `response_flags="-"`, `connection_security_policy="unknown"`, `request_protocol="http"`)
	})
}

func TestInboundHeaders(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.direction = plan.Inbound
		own := &mtls.Metadata{WorkloadName: "me", Namespace: "ns"}
		b.config = func(c *Config) {
			c.Chain.ForwardClientCert = plan.AppendForwardClientCert
			c.OwnMetadata, c.OwnMetadataID = own.Headers()
			c.OwnMetadataID = "my-id"
		}
		b.info = func(i *exchange.Conn) {
			i.MTLS, i.TLS = true, true
			i.PeerID, i.OwnID = "spiffe://cluster.local/ns/clients/sa/caller", "spiffe://cluster.local/ns/ns/sa/me"
			i.PeerHash = "abc"
		}
		app := b.cluster("inbound|80||", b.backend("10.0.1.1:80", mirror("X-Envoy-Peer-Metadata: from-the-app\r\nServer: app\r\n")))
		app.Service = plan.ServiceRef{Host: "me.ns.svc.cluster.local", Name: "me", Namespace: "ns"}
		b.start(to("inbound|80||"))
		c := b.dial()
		theirs, id := clientMetadata.Headers()
		for range 3 {
			c.get("/", "X-Envoy-Peer-Metadata: "+theirs, "X-Envoy-Peer-Metadata-Id: "+id, "X-Request-Id: kept", "X-Forwarded-Proto: http",
				"X-Envoy-Attempt-Count: 2", "X-Forwarded-Client-Cert: By=x;URI=before")
			a := c.read("GET")
			wantLines(t, lines(a.body), map[string]string{
				"x-request-id": "kept", "x-forwarded-proto": "http", "x-forwarded-for": "", "x-envoy-attempt-count": "2",
				"x-envoy-peer-metadata": "", "x-envoy-peer-metadata-id": "",
				"x-forwarded-client-cert": `by=x;uri=before,by=spiffe://cluster.local/ns/ns/sa/me;hash=abc;subject="";uri=spiffe://cluster.local/ns/clients/sa/caller`,
			})
			mine, _ := own.Headers()
			for name, want := range map[string]string{"X-Envoy-Peer-Metadata": mine, "X-Envoy-Peer-Metadata-Id": "my-id", "Server": "istio-envoy"} {
				if got := strings.Join(a.Header.Values(name), " AND "); got != want {
					t.Errorf("response %s: %q, want %q", name, got, want)
				}
			}
		}
		c.get("/") // a client without metadata is told nothing
		if a := c.read("GET"); a.Header.Get("X-Envoy-Peer-Metadata") != "" {
			t.Errorf("told: %v", a.Header)
		} else if lines(a.body)["x-forwarded-proto"] != "https" {
			t.Errorf("upstream saw %q", a.body)
		}
		out := b.exposition()
		wantSeries(t, out, 3, `istio_requests_total`, `reporter="destination"`, `source_workload="caller"`, `source_app="caller-app"`,
			`source_version="v7"`, `source_workload_namespace="clients"`, `source_principal="spiffe://cluster.local/ns/clients/sa/caller"`,
			`destination_principal="spiffe://cluster.local/ns/ns/sa/me"`, `destination_workload="me"`, `connection_security_policy="mutual_tls"`,
			`destination_service="me.ns.svc.cluster.local"`)
		wantSeries(t, out, 1, `istio_requests_total`, `reporter="destination"`, `source_workload="unknown"`)
	})
}

func TestPlainTextClientsCanNotClaimACertificate(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.direction = plan.Inbound
		b.config = func(c *Config) { c.Chain.ForwardClientCert = plan.AppendForwardClientCert }
		b.cluster("c", b.backend("10.0.1.1:80", mirror("")))
		b.start(to("c"))
		c := b.dial()
		c.get("/", "X-Forwarded-Client-Cert: URI=spiffe://forged")
		wantLines(t, lines(c.read("GET").body), map[string]string{"x-forwarded-client-cert": ""})
		wantSeries(t, b.exposition(), 1, `istio_requests_total`, `reporter="destination"`, `connection_security_policy="none"`, `source_principal="unknown"`)
	})
}

func TestEdgeBelievesNobody(t *testing.T) {
	inBubble(t, func(b *bed) {
		b.direction = plan.Edge
		b.config = func(c *Config) {
			c.Chain.UseRemoteAddress = true
			c.Chain.ForwardClientCert = plan.SanitizeSetClientCert
		}
		b.cluster("c", b.backend("10.0.1.1:80", mirror("")))
		b.start(to("c"))
		c := b.dial()
		c.get("/", "X-Forwarded-For: 1.2.3.4", "X-Forwarded-For: 5.6.7.8", "X-Forwarded-Proto: https", "X-Request-Id: forged",
			"X-Envoy-Retry-On: 5xx", "X-Envoy-Peer-Metadata: forged", "X-Istio-Source: forged", "X-Forwarded-Client-Cert: URI=spiffe://forged")
		a := c.read("GET")
		wantLines(t, lines(a.body), map[string]string{
			"x-forwarded-for": "1.2.3.4, 5.6.7.8, 10.0.0.9", "x-forwarded-proto": "http", "x-request-id": uuid, "x-envoy-retry-on": "",
			"x-envoy-peer-metadata": "", "x-istio-source": "", "x-forwarded-client-cert": "", "x-envoy-external-address": "10.0.0.9",
		})
		if got := a.Header.Get("Server"); got != "istio-envoy" {
			t.Errorf("server: %q", got)
		}
	})
}

func TestUnmatchedTrafficIsNamedByItsCluster(t *testing.T) {
	inBubble(t, func(b *bed) {
		p := b.cluster("PassthroughCluster", netip.AddrPort{})
		p.Discovery, p.Service = plan.OriginalDst, plan.ServiceRef{}
		addr := b.backend("10.0.1.1:80", reply(ok("x")))
		b.info = func(i *exchange.Conn) { i.Local = addr }
		b.start(to("PassthroughCluster"))
		c := b.dial()
		for _, host := range []string{"one.example", "two.example", "one.example"} {
			c.send("GET / HTTP/1.1", "Host: "+host, "", "")
			c.read("GET").want(t, 200, "x")
		}
		out := b.exposition()
		wantSeries(t, out, 2, `istio_requests_total`, `destination_service_name="PassthroughCluster"`, `destination_service="one.example"`)
		wantSeries(t, out, 1, `istio_requests_total`, `destination_service_name="PassthroughCluster"`, `destination_service="two.example"`)
	})
}

// exposition returns the metrics.
func (b *bed) exposition() string {
	b.logged() // waits for the last observers
	var out strings.Builder
	b.metrics.WritePrometheus(&out)
	return out.String()
}

// wantSeries checks the value of the one series that has all these parts.
func wantSeries(t *testing.T, out string, value int, name string, parts ...string) {
	t.Helper()
	found := 0
	var all []string
next:
	for _, line := range strings.Split(out, "\n") {
		if !strings.HasPrefix(line, name+"{") {
			continue
		}
		all = append(all, line)
		for _, p := range parts {
			if !strings.Contains(line, p) {
				continue next
			}
		}
		found++
		if !strings.HasSuffix(line, " "+itoa(value)) {
			t.Errorf("want %d: %s", value, line)
		}
	}
	if found != 1 {
		t.Errorf("%d series have %v in\n%s", found, parts, strings.Join(all, "\n"))
	}
}

func itoa(n int) string { return string(rune('0' + n)) }
