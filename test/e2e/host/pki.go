package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"
)

// authority is a certificate authority of the cluster; it writes what it signs.
type authority struct {
	s    *spec
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte
}

// writePKI writes the certificates, keys and kubeconfigs of all components. There
// is no bootstrapping: each one is handed what it needs.
func writePKI(s *spec) error {
	if err := os.MkdirAll(s.pki(""), 0o700); err != nil {
		return err
	}
	root, err := newAuthority(s, "ca")
	if err != nil {
		return err
	}
	front, err := newAuthority(s, "front-proxy-ca")
	if err != nil {
		return err
	}
	names := []string{"127.0.0.1", "localhost", s.nodeAddr(1).Addr().String(), nth(s.services(), 1).String(), s.node(1),
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}
	if s.Dual {
		names = append(names, "::1", s.nodeAddr6(1).Addr().String(), nth(s.services6(), 1).String())
	}
	errs := []error{
		root.leaf("apiserver", "kube-apiserver", "", names...),
		root.leaf("apiserver-kubelet-client", "kube-apiserver-kubelet-client", "system:masters"),
		front.leaf("front-proxy-client", "front-proxy-client", ""),
		writeServiceAccountKey(s),
		root.kubeconfig("admin", "kubernetes-admin", "system:masters"),
		root.kubeconfig("kube-controller-manager", "system:kube-controller-manager", ""),
		root.kubeconfig("kube-scheduler", "system:kube-scheduler", ""),
		root.kubeconfig("kube-proxy", "system:kube-proxy", ""),
	}
	for i := 1; i <= s.Nodes; i++ {
		addrs := []string{s.node(i), s.nodeAddr(i).Addr().String(), "127.0.0.1"}
		if s.Dual {
			addrs = append(addrs, s.nodeAddr6(i).Addr().String())
		}
		errs = append(errs,
			root.kubeconfig(s.node(i), "system:node:"+s.node(i), "system:nodes"),
			root.leaf(s.node(i)+"-server", s.node(i), "", addrs...))
	}
	return errors.Join(errs...)
}

func newAuthority(s *spec, name string) (*authority, error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, err
	}
	t := template(name, "")
	t.IsCA, t.BasicConstraintsValid = true, true
	t.KeyUsage |= x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	a := &authority{s: s, cert: cert, key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
	return a, errors.Join(a.write(name+".crt", a.pem), a.write(name+".key", keyPEM))
}

func (a *authority) write(file string, b []byte) error { return os.WriteFile(a.s.pki(file), b, 0o600) }

func (a *authority) sign(cn, org string, names []string) (crt, key []byte, err error) {
	k, keyPEM, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	t := template(cn, org)
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, k.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM, nil
}

// leaf writes a certificate and its key.
func (a *authority) leaf(file, cn, org string, names ...string) error {
	crt, key, err := a.sign(cn, org, names)
	if err != nil {
		return err
	}
	return errors.Join(a.write(file+".crt", crt), a.write(file+".key", key))
}

// kubeconfig writes one with a certificate of its own. Cluster, user and context
// bear the cluster's name, so that the files of two clusters can be merged.
func (a *authority) kubeconfig(file, cn, org string) error {
	crt, key, err := a.sign(cn, org, nil)
	if err != nil {
		return err
	}
	b64 := base64.StdEncoding.EncodeToString
	return a.write(file+".kubeconfig", fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: %[1]s, cluster: {server: %[2]q, certificate-authority-data: %[3]s}}]
users: [{name: %[1]s, user: {client-certificate-data: %[4]s, client-key-data: %[5]s}}]
contexts: [{name: %[1]s, context: {cluster: %[1]s, user: %[1]s}}]
current-context: %[1]s
`, a.s.Name, a.s.server(), b64(a.pem), b64(crt), b64(key)))
}

// writeServiceAccountKey writes the key that tokens are signed with; clusters use RS256.
func writeServiceAccountKey(s *spec) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	pub, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(s.pki("sa.key"), pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}), 0o600),
		os.WriteFile(s.pki("sa.pub"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub}), 0o644))
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	b, err := x509.MarshalECPrivateKey(k)
	return k, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: b}), err
}

func template(cn, org string) *x509.Certificate {
	t := &x509.Certificate{
		SerialNumber: new(big.Int).SetInt64(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: cn},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(1, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
	if org != "" {
		t.Subject.Organization = []string{org}
	}
	return t
}
