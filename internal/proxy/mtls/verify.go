package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/heddle-mesh/heddle/internal/identity"
)

// Error is why a handshake was refused. The texts are short and do not change,
// for they end up in access logs and metrics.
type Error string

// Error implements error.
func (e Error) Error() string { return string(e) }

const (
	ErrNoIdentity     Error = "no own certificate"
	ErrOwnExpired     Error = "own certificate expired"
	ErrUnknownSecret  Error = "unknown secret"
	ErrNoCertificate  Error = "no peer certificate"
	ErrLongChain      Error = "peer chain too long"
	ErrNotSPIFFE      Error = "peer certificate without a single SPIFFE id"
	ErrSigner         Error = "peer certificate may sign others"
	ErrUntrusted      Error = "peer certificate of unknown authority"
	ErrExpired        Error = "peer certificate expired or not yet valid"
	ErrUsage          Error = "peer certificate not for this usage"
	ErrBadCertificate Error = "bad peer certificate"
	ErrTrustDomain    Error = "peer trust domain not allowed"
	ErrRevoked        Error = "peer certificate is revoked"
	ErrServerName     Error = "peer identity not expected"
)

// refuse adds the identity that was refused, which is valid and so safe to print.
func refuse(reason Error, uri string) error { return fmt.Errorf("%w: %s", reason, uri) }

// maxChain is the most certificates that are looked at: a mesh has a root, an
// intermediate or two, and leaves.
const maxChain = 10

// peer is a verified name.
type peer struct {
	uri         string
	trustDomain string
}

// verifyPeer checks the chain that a peer presented, leaf first, against roots.
func verifyPeer(roots *x509.CertPool, chain []*x509.Certificate, usage x509.ExtKeyUsage) (peer, error) {
	if len(chain) == 0 {
		return peer{}, ErrNoCertificate
	}
	if len(chain) > maxChain {
		return peer{}, ErrLongChain
	}
	leaf := chain[0]
	// Source: X.509-SVID, sections 2 (one URI), 4.1 (no authority) and 4.3 (key usage).
	if len(leaf.URIs) != 1 {
		return peer{}, ErrNotSPIFFE
	}
	uri := leaf.URIs[0].String()
	trustDomain, _, err := identity.Split(uri)
	if err != nil {
		return peer{}, ErrNotSPIFFE
	}
	if leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return peer{}, ErrSigner
	}
	if leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return peer{}, ErrUsage
	}
	options := x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{usage}}
	if len(chain) > 1 {
		options.Intermediates = x509.NewCertPool()
		for _, c := range chain[1:] {
			options.Intermediates.AddCert(c)
		}
	}
	if _, err := leaf.Verify(options); err != nil {
		return peer{}, reasonOf(err)
	}
	return peer{uri: uri, trustDomain: trustDomain}, nil
}

// reasonOf maps what crypto/x509 says, which may quote the certificate, to an
// Error.
func reasonOf(err error) Error {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return ErrUntrusted
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		switch invalid.Reason {
		case x509.Expired:
			return ErrExpired
		case x509.IncompatibleUsage:
			return ErrUsage
		}
	}
	return ErrBadCertificate
}

// Reason returns the short and stable form of a handshake's error for
// UPSTREAM_TRANSPORT_FAILURE_REASON, such as "TLS_error:no_own_certificate", or ""
// if the error is not of TLS but of the connection below. In TLS 1.3 a client may
// learn only from its first Read that the server refused its certificate: that
// error has a reason, too.
func Reason(err error) string {
	var text string
	if own, ok := errors.AsType[Error](err); ok {
		text = string(own)
	} else if op, ok := errors.AsType[*net.OpError](err); ok {
		if op.Op != "remote error" { // crypto/tls: the other side's alert
			return ""
		}
		text = "remote " + strings.TrimPrefix(op.Err.Error(), "tls: ")
	} else if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		text = "peer does not speak TLS"
	} else if err != nil && strings.HasPrefix(err.Error(), "tls: ") {
		text = "handshake failed"
	} else {
		return ""
	}
	return "TLS_error:" + strings.ReplaceAll(text, " ", "_")
}
