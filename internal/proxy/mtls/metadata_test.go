package mtls

import (
	"bytes"
	"encoding/base64"
	"maps"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"pgregory.net/rapid"

	"github.com/heddle-mesh/heddle/internal/telemetry"
)

func reviews() Metadata {
	return Metadata{
		ID:           "sidecar~10.0.0.7~reviews-v1-5f.default~default.svc.cluster.local",
		Name:         "reviews-v1-5f",
		Namespace:    "default",
		Owner:        "kubernetes://apis/apps/v1/namespaces/default/deployments/reviews-v1",
		WorkloadName: "reviews-v1",
		ClusterID:    "Kubernetes",
		Labels:       map[string]string{"app": "reviews", "version": "v1", "empty": ""},
		Platform:     map[string]string{"gcp_project": "p"},
	}
}

// library makes the same messages with the protobuf library, as Istio does.
func library(t testing.TB, m Metadata) (frame, header []byte) {
	t.Helper()
	texts := func(values map[string]string) map[string]any {
		out := make(map[string]any)
		for k, v := range values {
			out[k] = v
		}
		return out
	}
	fields := make(map[string]any)
	for k, v := range map[string]string{"NAME": m.Name, "NAMESPACE": m.Namespace, "OWNER": m.Owner, "WORKLOAD_NAME": m.WorkloadName, "CLUSTER_ID": m.ClusterID} {
		if v != "" {
			fields[k] = v
		}
	}
	if len(m.Labels) > 0 {
		fields["LABELS"] = texts(m.Labels)
	}
	if len(m.Platform) > 0 {
		fields["PLATFORM_METADATA"] = texts(m.Platform)
	}
	outer := map[string]any{HeaderMetadata: fields}
	if m.ID != "" {
		outer[HeaderMetadataID] = m.ID
	}
	marshal := func(p proto.Message) []byte {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	newStruct := func(v map[string]any) *structpb.Struct {
		s, err := structpb.NewStruct(v)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	header = marshal(newStruct(fields))
	return marshal(&anypb.Any{TypeUrl: structType, Value: marshal(newStruct(outer))}), header
}

func TestMetadataHasTheLibrarysBytes(t *testing.T) {
	for name, m := range map[string]Metadata{
		"whole":  reviews(),
		"empty":  {},
		"no id":  {Name: "a", Labels: map[string]string{}},
		"labels": {Labels: map[string]string{"b": "2", "a": "1", "": "no key", "ü": "ß"}},
	} {
		t.Run(name, func(t *testing.T) {
			frame, header := library(t, m)
			if got := m.Encode(); !bytes.Equal(got, frame) {
				t.Errorf("frame\n%q, want\n%q", got, frame)
			}
			value, id := m.Headers()
			if want := base64.StdEncoding.EncodeToString(header); value != want || id != m.ID {
				t.Errorf("headers %q, %q; want %q, %q", value, id, want, m.ID)
			}
		})
	}
}

// equal compares, an empty map being none.
func equal(a, b Metadata) bool {
	sameMaps := maps.Equal(a.Labels, b.Labels) && maps.Equal(a.Platform, b.Platform)
	a.Labels, b.Labels, a.Platform, b.Platform = nil, nil, nil, nil
	return sameMaps && reflect.DeepEqual(a, b)
}

func TestMetadataSurvivesTheWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringOfN(rapid.Rune(), 0, 12, -1)
		texts := rapid.MapOfN(text, text, 0, 5)
		m := Metadata{
			ID: text.Draw(t, "id"), Name: text.Draw(t, "name"), Namespace: text.Draw(t, "namespace"), Owner: text.Draw(t, "owner"),
			WorkloadName: text.Draw(t, "workload"), ClusterID: text.Draw(t, "cluster"), Labels: texts.Draw(t, "labels"), Platform: texts.Draw(t, "platform"),
		}
		back, err := Decode(m.Encode())
		if err != nil || !equal(back, m) {
			t.Errorf("%+v, %v; want %+v", back, err, m)
		}
		back, err = DecodeHeaders(m.Headers())
		if err != nil || !equal(back, m) {
			t.Errorf("headers: %+v, %v; want %+v", back, err, m)
		}
	})
}

func TestDecodePassesOverWhatItDoesNotKnow(t *testing.T) {
	s, err := structpb.NewStruct(map[string]any{
		"NAME": "a", "NAMESPACE": 7.0, "WORKLOAD_NAME": []any{"x"}, "OWNER": nil, "INSTANCE_IPS": "10.0.0.7",
		"LABELS":            map[string]any{"app": "a", "n": 1.0, "deep": map[string]any{"deeper": map[string]any{}}, "no": false},
		"PLATFORM_METADATA": "text",
		"PROXY_CONFIG":      map[string]any{"binaryPath": map[string]any{"x": []any{1.0, true}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := proto.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"padded": base64.StdEncoding.EncodeToString(b), "not": base64.RawStdEncoding.EncodeToString(b)} {
		m, err := DecodeHeaders(value, "id")
		want := Metadata{ID: "id", Name: "a", Labels: map[string]string{"app": "a"}}
		if err != nil || !equal(m, want) {
			t.Errorf("%s: %+v, %v; want %+v", name, m, err, want)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	big := Metadata{Labels: map[string]string{"a": strings.Repeat("x", MaxFrame)}}
	whole := reviews()
	_, header := library(t, whole)
	for name, frame := range map[string][]byte{
		"garbage":        []byte("GET / HTTP/1.1"),
		"not an Any":     header,
		"other type":     appendBytes(appendBytes(nil, anyTypeURL, []byte("type.googleapis.com/google.protobuf.Value")), anyValue, nil),
		"cut":            whole.Encode()[:40],
		"group":          {0x0b, 0x0b, 0x0b},
		"not UTF-8":      appendBytes(appendBytes(nil, anyTypeURL, []byte(structType)), anyValue, appendEntry(nil, HeaderMetadataID, appendBytes(nil, valueString, []byte{0xff}))),
		"too big":        big.Encode(),
		"endless varint": bytes.Repeat([]byte{0xff}, 64),
	} {
		t.Run(name, func(t *testing.T) {
			if m, err := Decode(frame); err == nil || !equal(m, Metadata{}) {
				t.Errorf("%+v, %v", m, err)
			}
		})
	}
	for name, value := range map[string]string{
		"not base64": "%%%", "garbage": base64.StdEncoding.EncodeToString([]byte("GET /")), "too big": strings.Repeat("A", 2*MaxFrame),
	} {
		t.Run("header "+name, func(t *testing.T) {
			if m, err := DecodeHeaders(value, ""); err == nil || !equal(m, Metadata{}) {
				t.Errorf("%+v, %v", m, err)
			}
		})
	}
}

func TestTooManyFieldsAreRefused(t *testing.T) {
	labels := func(n int) *Metadata {
		m := &Metadata{Labels: make(map[string]string)}
		for i := range n {
			m.Labels[string([]byte{'a' + byte(i/26/26%26), 'a' + byte(i/26%26), 'a' + byte(i%26)})] = "v"
		}
		return m
	}
	if m, err := Decode(labels(maxEntries).Encode()); err != nil || len(m.Labels) != maxEntries {
		t.Errorf("%d labels, %v", len(m.Labels), err)
	}
	if _, err := Decode(labels(maxEntries + 1).Encode()); err == nil {
		t.Error("one more than the limit was accepted")
	}
}

func TestWorkloadOfMetadata(t *testing.T) {
	for _, tt := range []struct {
		labels         map[string]string
		name, revision string
	}{
		{nil, "reviews-v1", "latest"},
		{map[string]string{"app": "reviews", "version": "v1"}, "reviews", "v1"},
		{map[string]string{"app": "a", "app.kubernetes.io/name": "b", "version": "1", "app.kubernetes.io/version": "2"}, "b", "2"},
		{map[string]string{
			"app": "a", "app.kubernetes.io/name": "b", "service.istio.io/canonical-name": "c",
			"version": "1", "app.kubernetes.io/version": "2", "service.istio.io/canonical-revision": "3",
		}, "c", "3"},
		{map[string]string{"app": "", "version": ""}, "reviews-v1", "latest"},
	} {
		m := reviews()
		m.Labels = tt.labels
		want := telemetry.Workload{
			Name: "reviews-v1", Namespace: "default", App: tt.labels["app"], Version: tt.labels["version"],
			CanonicalName: tt.name, CanonicalRevision: tt.revision, Cluster: "Kubernetes",
		}
		if got := m.Workload(); got != want {
			t.Errorf("%v: %+v, want %+v", tt.labels, got, want)
		}
	}
}

func TestWorkloadNamesAreCut(t *testing.T) {
	m := Metadata{WorkloadName: strings.Repeat("x", 5000), Namespace: strings.Repeat("ß", 5000)}
	w := m.Workload()
	if len(w.Name) != maxName || w.CanonicalName != w.Name {
		t.Errorf("name of %d bytes", len(w.Name))
	}
	if w.Namespace != strings.Repeat("ß", maxName/2) {
		t.Errorf("namespace of %d bytes: cut within a character", len(w.Namespace))
	}
}

// FuzzDecode: no input panics, and what is accepted means the same to the
// protobuf library.
func FuzzDecode(f *testing.F) {
	m := reviews()
	f.Add(m.Encode())
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0x0a, 0x7f}, 60))
	f.Fuzz(func(t *testing.T, frame []byte) {
		got, err := Decode(frame)
		if err != nil {
			return
		}
		again, err := Decode(got.Encode())
		if err != nil || !equal(again, got) {
			t.Errorf("%+v, %v; want %+v", again, err, got)
		}
		var any anypb.Any
		if proto.Unmarshal(frame, &any) != nil {
			return // a malformed field that we skip
		}
		var s structpb.Struct
		if proto.Unmarshal(any.Value, &s) != nil {
			return
		}
		if id := s.Fields[HeaderMetadataID].GetStringValue(); id != got.ID {
			t.Errorf("id = %q, library says %q", got.ID, id)
		}
	})
}

func FuzzDecodeHeaders(f *testing.F) {
	m := reviews()
	value, id := m.Headers()
	f.Add(value, id)
	f.Add("====", "\xff")
	f.Fuzz(func(t *testing.T, value, id string) {
		got, err := DecodeHeaders(value, id)
		if err != nil {
			return
		}
		if again, err := DecodeHeaders(got.Headers()); err != nil || !equal(again, got) {
			t.Errorf("%+v, %v; want %+v", again, err, got)
		}
	})
}
