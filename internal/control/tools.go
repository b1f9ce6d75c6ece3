package control

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/heddle-mesh/heddle/internal/xds/server"
)

// toolsNamespace is where tools' service accounts live.
const toolsNamespace = "istio-system"

// The types that istioctl asks for. Source: Istio, pilot/pkg/xds/v3/model.go.
const (
	statusType = "istio.io/debug/syncz"
	dumpType   = "istio.io/debug/config_dump"
	pageType   = "istio.io/debug"
)

// answer answers istioctl, whose commands proxy-status, x internal-debug and
// proxy-status POD come over the xDS port.
func (p *pages) answer(typeURL string, names []string) ([]*anypb.Any, string, error) {
	switch typeURL {
	case statusType:
		out, err := p.statuses()
		return out, p.identifier(), err
	case dumpType:
		if len(names) != 1 {
			return nil, "", fmt.Errorf("name one proxy, as pod.namespace")
		}
		out, err := p.dumpOf(names[0])
		return out, "", err
	case pageType:
		if len(names) != 1 {
			return nil, "", fmt.Errorf("name one page")
		}
		body, err := p.page(names[0])
		return []*anypb.Any{{TypeUrl: pageType, Value: body}}, p.identifier(), err
	}
	return nil, "", fmt.Errorf("there is no type %q", typeURL)
}

// identifier says which instance answers, and of which version it is.
func (p *pages) identifier() string {
	host, err := os.Hostname()
	if err != nil {
		host = "istiod"
	}
	b, err := json.Marshal(map[string]any{"Component": "istiod", "ID": host, "Info": map[string]string{"version": p.cfg.Version}})
	if err != nil {
		return ""
	}
	return string(b)
}

// statuses tells of each proxy how far it is with each type.
func (p *pages) statuses() ([]*anypb.Any, error) {
	var out []*anypb.Any
	for _, one := range p.xds.Proxies() {
		meta, err := structpb.NewStruct(map[string]any{
			"CLUSTER_ID": one.Proxy.ClusterID, "NAMESPACE": one.Proxy.Namespace, "ISTIO_VERSION": one.Version,
		})
		if err != nil {
			return nil, err
		}
		c := &statusv3.ClientConfig{Node: &corev3.Node{Id: one.Proxy.ID, Metadata: meta}}
		for _, t := range shortTypes {
			s, ok := one.Types[t.url]
			if !ok {
				continue
			}
			c.GenericXdsConfigs = append(c.GenericXdsConfigs, genericConfig(t.url, s))
		}
		a, err := anypb.New(c)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

func genericConfig(typeURL string, s server.ProxyType) *statusv3.ClientConfig_GenericXdsConfig {
	c := &statusv3.ClientConfig_GenericXdsConfig{TypeUrl: typeURL}
	switch {
	case s.Sent == "":
		c.ConfigStatus = statusv3.ConfigStatus_NOT_SENT
	case s.Refused != "":
		c.ConfigStatus = statusv3.ConfigStatus_ERROR
		c.ErrorState = &adminv3.UpdateFailureState{Details: s.Refused, LastUpdateAttempt: timestamppb.New(s.SentAt)}
	case s.Synced():
		c.ConfigStatus = statusv3.ConfigStatus_SYNCED
	default:
		c.ConfigStatus = statusv3.ConfigStatus_STALE
	}
	if !s.AckedAt.IsZero() {
		c.LastUpdated = timestamppb.New(s.AckedAt)
	}
	return c
}

// dumpOf returns the parts of what a proxy is to know.
func (p *pages) dumpOf(proxy string) ([]*anypb.Any, error) {
	set, ok := p.xds.Resources(proxy)
	if !ok {
		return nil, fmt.Errorf("no proxy %q is connected", proxy)
	}
	b, err := dumpOf(set)
	if err != nil {
		return nil, err
	}
	var dump adminv3.ConfigDump
	if err := protojson.Unmarshal(b, &dump); err != nil {
		return nil, err
	}
	return dump.Configs, nil
}

// page returns a debug page, as the HTTP port shows it.
func (p *pages) page(name string) ([]byte, error) {
	u, err := url.Parse("/debug/" + strings.TrimPrefix(name, "/"))
	if err != nil {
		return nil, err
	}
	page := p.debugPages()[strings.TrimPrefix(u.Path, "/debug/")]
	if page == nil {
		return nil, fmt.Errorf("there is no page %q", name)
	}
	w := &written{header: http.Header{}, status: http.StatusOK}
	page(w, &http.Request{Method: http.MethodGet, URL: u, Header: http.Header{}})
	if w.status != http.StatusOK {
		return nil, fmt.Errorf("%s", strings.TrimSpace(w.body.String()))
	}
	return w.body.Bytes(), nil
}

// written keeps what a page writes.
type written struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (w *written) Header() http.Header         { return w.header }
func (w *written) WriteHeader(status int)      { w.status = status }
func (w *written) Write(b []byte) (int, error) { return w.body.Write(b) }
