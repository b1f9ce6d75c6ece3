package flags

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/heddle-mesh/heddle/internal/proxy"
)

// workload reads whose proxy this is from Istio's variables. Of ISTIO_META_X the
// value is node metadata X as text; of ISTIO_METAJSON_X it is JSON.
func workload(root string, env environment, gateway bool, domain string) (proxy.Workload, error) {
	var bad faults
	meta := make(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(env)) {
		if key, ok := strings.CutPrefix(name, "ISTIO_METAJSON_"); ok {
			var v any
			if err := json.Unmarshal([]byte(env[name]), &v); err != nil {
				bad.add(fmt.Errorf("%s: %w", name, err))
				continue
			}
			// A whole object of metadata, or one value under the variable's name.
			if fields, isObject := v.(map[string]any); isObject && key == "ALL" {
				maps.Copy(meta, fields)
				continue
			}
			meta[key] = v
		} else if key, ok := strings.CutPrefix(name, "ISTIO_META_"); ok {
			meta[key] = env[name]
		}
	}
	if _, given := meta["PROXY_CONFIG"]; !given && env["PROXY_CONFIG"] != "" {
		var config map[string]any
		if json.Unmarshal([]byte(env["PROXY_CONFIG"]), &config) == nil { // who reads it for the proxy complains
			meta["PROXY_CONFIG"] = config
		}
	}
	text := func(key string) string {
		s, _ := meta[key].(string)
		return s
	}
	w := proxy.Workload{
		Gateway:        gateway,
		PodName:        env["POD_NAME"],
		Namespace:      cmp.Or(env["POD_NAMESPACE"], "default"),
		ServiceAccount: cmp.Or(env["SERVICE_ACCOUNT"], "default"),
		ClusterID:      cmp.Or(text("CLUSTER_ID"), "Kubernetes"),
		TrustDomain:    cmp.Or(env["TRUST_DOMAIN"], "cluster.local"),
		WorkloadName:   text("WORKLOAD_NAME"),
		Owner:          text("OWNER"),
		MeshID:         text("MESH_ID"),
		Network:        text("NETWORK"),
		NodeName:       text("NODE_NAME"),
		Metadata:       meta,
	}
	w.DNSDomain = cmp.Or(domain, w.Namespace+".svc.cluster.local")
	if w.PodName == "" {
		bad.add(errors.New("POD_NAME is not set"))
	}
	for _, s := range strings.Split(cmp.Or(env["INSTANCE_IPS"], env["INSTANCE_IP"]), ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		ip, err := netip.ParseAddr(s)
		if err != nil {
			bad.add(fmt.Errorf("INSTANCE_IP: %w", err))
			continue
		}
		w.IPs = append(w.IPs, ip)
	}
	// The pod's own address comes first: it is the node's in the node id.
	if own, err := netip.ParseAddr(env["INSTANCE_IP"]); err == nil {
		w.IPs = slices.Insert(slices.DeleteFunc(w.IPs, func(ip netip.Addr) bool { return ip == own }), 0, own)
	}
	if len(w.IPs) == 0 {
		bad.add(errors.New("INSTANCE_IP is not set"))
	}
	w.Labels = texts(meta["LABELS"])
	w.Annotations = texts(meta["ANNOTATIONS"])
	for _, dir := range []string{podInfo, podInfoLocal} {
		labels, err := readPairs(filepath.Join(root, dir, "labels"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		bad.add(err)
		if len(labels) > 0 {
			w.Labels = labels // newer than what the environment was made of
		}
		break
	}
	return w, errors.Join(bad...)
}

// texts reads a JSON object of strings.
func texts(v any) map[string]string {
	m, _ := v.(map[string]any)
	out := make(map[string]string, len(m))
	for k, v := range m {
		if s, ok := v.(string); ok {
			out[k] = s
		}
	}
	return out
}

// readPairs reads a file of the downward API: lines of key="value", quoted as
// in Go.
func readPairs(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := make(map[string]string)
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20) // an annotation may be large
	for lines.Scan() {
		key, quoted, ok := strings.Cut(lines.Text(), "=")
		if !ok {
			continue
		}
		value, err := strconv.Unquote(quoted)
		if err != nil {
			return nil, fmt.Errorf("%s: value of %q: %w", path, key, err)
		}
		out[key] = value
	}
	return out, lines.Err()
}

// setLevel reads Istio's "default:info,dns:debug" or one level. There is one
// level for everything: that of "default".
func setLevel(v *slog.LevelVar, text string) error {
	for part := range strings.SplitSeq(text, ",") {
		scope, level, ok := strings.Cut(part, ":")
		if !ok {
			scope, level = "default", part
		}
		if scope != "default" && scope != "all" {
			continue
		}
		switch strings.ToLower(level) {
		case "debug":
			v.Set(slog.LevelDebug)
		case "info", "":
			v.Set(slog.LevelInfo)
		case "warn", "warning":
			v.Set(slog.LevelWarn)
		case "error":
			v.Set(slog.LevelError)
		case "fatal", "none":
			v.Set(slog.LevelError + 8)
		default:
			return fmt.Errorf("log_output_level: unknown level %q", level)
		}
	}
	return nil
}
