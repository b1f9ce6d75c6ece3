package compile

import (
	"fmt"
	"testing"

	"github.com/heddle-mesh/heddle/internal/config"
	"github.com/heddle-mesh/heddle/internal/model"
)

func TestSecretsAreFoundByTheNamesProxiesHave(t *testing.T) {
	objects, faults := config.Decode("test.yaml", []byte(`
apiVersion: v1
kind: Secret
metadata: {name: tls, namespace: edge}
type: kubernetes.io/tls
stringData: {tls.crt: CERT, tls.key: KEY, ca.crt: CA}
---
apiVersion: v1
kind: Secret
metadata: {name: old, namespace: edge}
stringData: {cert: CERT2, key: KEY2}
---
apiVersion: v1
kind: Secret
metadata: {name: old-cacert, namespace: edge}
stringData: {cacert: CA2, crl: CRL2}
---
apiVersion: v1
kind: Secret
metadata: {name: password, namespace: edge}
stringData: {password: x}
---
apiVersion: v1
kind: Secret
metadata: {name: tls, namespace: other}
stringData: {tls.crt: CERT3, tls.key: KEY3}
`))
	for _, f := range faults {
		t.Fatal(f)
	}
	var batch config.Batch
	for _, o := range objects {
		batch.Changes = append(batch.Changes, config.Change{Key: o.Key, Object: o})
	}
	b := model.NewBuilder(model.Options{})
	w, d := b.Apply(batch)
	if !d.Secrets || d.Config {
		t.Errorf("delta %+v, want secrets alone", d)
	}
	if _, d := b.Apply(batch); !d.Empty() {
		t.Errorf("the same again: delta %+v", d)
	}
	for name, want := range map[string]string{
		"kubernetes://tls":              "CERT KEY  ",
		"kubernetes://tls-cacert":       "  CA ",
		"kubernetes://edge/tls":         "CERT KEY  ",
		"kubernetes-gateway://edge/tls": "CERT KEY  ",
		"kubernetes://old":              "CERT2 KEY2  ",
		"kubernetes://old-cacert":       "  CA2 CRL2",
		"kubernetes://other/tls":        "none", // of another namespace
		"kubernetes://password":         "none",
		"kubernetes://absent":           "none",
		"kubernetes://":                 "none",
		"tls":                           "none",
		"default":                       "none",
	} {
		got := "none"
		if s, ok := Secret(w, &Proxy{Namespace: "edge"}, name); ok {
			got = fmt.Sprintf("%s %s %s %s", s.Certificate, s.Key, s.Roots, s.CRL)
			if s.Name != name {
				t.Errorf("%s came as %s", name, s.Name)
			}
		}
		if got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	gone := config.Batch{Changes: []config.Change{{Key: objects[0].Key}}}
	w, _ = b.Apply(gone)
	if _, ok := Secret(w, &Proxy{Namespace: "edge"}, "kubernetes://tls"); ok {
		t.Error("a secret that is gone is given")
	}
}
