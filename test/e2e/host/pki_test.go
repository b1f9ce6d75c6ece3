package main

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"strings"
	"testing"
	"time"
)

// Every server proves its addresses to whoever trusts the cluster's authority.
func TestServersCertificatesNameTheirAddresses(t *testing.T) {
	s := &spec{Name: "x", Nodes: 2, Dual: true, Subnet: 7, Dir: t.TempDir()}
	if err := writePKI(s); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(s.pki("ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	for file, names := range map[string][]string{
		"apiserver":  {"10.200.7.2", "10.157.0.1", "fd48:ed00:7:1::2", "fd48:ed00:7:2::1", "kubernetes.default.svc", "127.0.0.1"},
		"x-2-server": {"10.200.7.3", "fd48:ed00:7:1::3", "x-2"},
	} {
		pair, err := tls.LoadX509KeyPair(s.pki(file+".crt"), s.pki(file+".key"))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: n, CurrentTime: time.Now()}); err != nil {
				t.Errorf("%s for %s: %v", file, n, err)
			}
		}
	}
	config, err := os.ReadFile(s.kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(config), `"https://10.200.7.2:6443"`) {
		t.Errorf("the kubeconfig does not name the API server:\n%s", config)
	}
	if st, err := os.Stat(s.pki("ca.key")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the authority's key: %v, %v", st.Mode(), err)
	}
}
