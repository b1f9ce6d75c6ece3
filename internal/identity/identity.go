// Package identity names workloads by SPIFFE id and holds what proves the name:
// the key pair with its certificate chain, and the bundle of roots a peer is
// checked against.
//
// Source: SPIFFE-ID and X.509-SVID specifications; Istio's path form
// /ns/<namespace>/sa/<service account>.
package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
)

const (
	// maxIDLength is the longest SPIFFE id. Source: SPIFFE-ID, section 2.3.
	maxIDLength = 2048
	// maxTrustDomainLength is the longest trust domain name, as of a DNS name.
	// Source: SPIFFE-ID, section 2.3.
	maxTrustDomainLength = 255
)

// ID is a workload's name in a trust domain.
type ID struct {
	TrustDomain    string
	Namespace      string
	ServiceAccount string
}

// String returns the SPIFFE id, "spiffe://cluster.local/ns/default/sa/reviews".
func (id ID) String() string {
	return "spiffe://" + id.TrustDomain + "/ns/" + id.Namespace + "/sa/" + id.ServiceAccount
}

// Validate fails unless all parts are there and hold only characters that a
// SPIFFE id may hold. Whoever makes an ID from parts of foreign origin calls it
// before the ID names anything: a service account called "a/sa/b" must not get
// far.
func (id ID) Validate() error {
	if err := checkTrustDomain(id.TrustDomain); err != nil {
		return err
	}
	if err := checkSegment(id.Namespace); err != nil {
		return fmt.Errorf("identity: namespace %q: %w", clip(id.Namespace), err)
	}
	if err := checkSegment(id.ServiceAccount); err != nil {
		return fmt.Errorf("identity: service account %q: %w", clip(id.ServiceAccount), err)
	}
	if len(id.String()) > maxIDLength {
		return fmt.Errorf("identity: id of %d bytes is longer than %d", len(id.String()), maxIDLength)
	}
	return nil
}

// Parse reads a SPIFFE id of Istio's form. It fails on any other path, on empty
// parts, and on characters that a SPIFFE id may not hold. What it accepts is
// equal to the ID's String, byte for byte: two spellings never name one
// workload.
func Parse(s string) (ID, error) {
	domain, path, err := Split(s)
	if err != nil {
		return ID{}, err
	}
	p := strings.Split(path, "/")
	if len(p) != 5 || p[1] != "ns" || p[3] != "sa" {
		return ID{}, fmt.Errorf("identity: %q is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>", clip(s))
	}
	return ID{TrustDomain: domain, Namespace: p[2], ServiceAccount: p[4]}, nil
}

// Split reads a SPIFFE id of any path form, such as another issuer may use, and
// returns its trust domain and its path, which begins with a slash and has at
// least one segment: a workload, not a trust domain, is named.
func Split(s string) (trustDomain, path string, err error) {
	if len(s) > maxIDLength {
		return "", "", fmt.Errorf("identity: id of %d bytes is longer than %d", len(s), maxIDLength)
	}
	rest, ok := strings.CutPrefix(s, "spiffe://")
	if !ok {
		return "", "", fmt.Errorf("identity: %q does not begin with spiffe://", clip(s))
	}
	slash := strings.IndexByte(rest, '/')
	if slash < 0 {
		return "", "", fmt.Errorf("identity: %q names no workload", clip(s))
	}
	trustDomain, path = rest[:slash], rest[slash:]
	if err := checkTrustDomain(trustDomain); err != nil {
		return "", "", err
	}
	for segment := range strings.SplitSeq(path[1:], "/") {
		if err := checkSegment(segment); err != nil {
			return "", "", fmt.Errorf("identity: %q: %w", clip(s), err)
		}
	}
	return trustDomain, path, nil
}

// checkTrustDomain: lower-case letters, digits, dots, dashes and underscores.
// Source: SPIFFE-ID, section 2.1.
func checkTrustDomain(s string) error {
	if s == "" {
		return errors.New("identity: trust domain is empty")
	}
	if len(s) > maxTrustDomainLength {
		return fmt.Errorf("identity: trust domain of %d bytes is longer than %d", len(s), maxTrustDomainLength)
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '.', c == '-', c == '_':
		default:
			return fmt.Errorf("identity: trust domain %q has the character %q", clip(s), c)
		}
	}
	return nil
}

// checkSegment: letters, digits, dots, dashes and underscores, and neither "."
// nor "..". Source: SPIFFE-ID, section 2.2.
func checkSegment(s string) error {
	if s == "" {
		return errors.New("empty path segment")
	}
	if s == "." || s == ".." {
		return errors.New("relative path segment")
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '-', c == '_':
		default:
			return fmt.Errorf("character %q is not allowed", c)
		}
	}
	return nil
}

// clip keeps foreign text in messages short.
func clip(s string) string {
	const most = 120
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// Material is what one workload proves itself with, and judges peers by. It is
// immutable; renewal makes a new one.
type Material struct {
	ID          ID
	Certificate *tls.Certificate // chain, leaf first, with Leaf parsed; key in memory only
	Roots       *x509.CertPool
	RootPEM     []byte
}

// Source hands out the current Material.
type Source interface {
	// Current returns the newest material, or nil while there is none. It does
	// not block; TLS code calls it for each handshake, so that a renewal takes
	// effect without touching open connections.
	Current() *Material
}
