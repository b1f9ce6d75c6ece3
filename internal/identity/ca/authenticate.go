package ca

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/heddle-mesh/heddle/internal/identity"
)

// ErrNoCredential is wrapped when a call carries nothing that the authenticator
// could judge, so that another one may be asked.
var ErrNoCredential = errors.New("no credential")

// TokenVerifier is the part of Verifier that Bearer needs.
type TokenVerifier interface {
	Verify(token string) (namespace, serviceAccount string, err error)
}

// Bearer authenticates by the token in the metadata "authorization: Bearer …".
func Bearer(tokens TokenVerifier, trustDomain string) Authenticator {
	return AuthenticatorFunc(func(ctx context.Context) (identity.ID, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		values := md.Get("authorization")
		if len(values) == 0 {
			return identity.ID{}, fmt.Errorf("%w: no authorization metadata", ErrNoCredential)
		}
		// Of several, one could be judged and another used further on.
		if len(values) > 1 {
			return identity.ID{}, errors.New("more than one authorization metadata")
		}
		scheme, token, _ := strings.Cut(values[0], " ")
		if !strings.EqualFold(scheme, "Bearer") || token == "" {
			return identity.ID{}, errors.New("authorization metadata is not a bearer token")
		}
		namespace, serviceAccount, err := tokens.Verify(token)
		if err != nil {
			return identity.ID{}, err
		}
		id := identity.ID{TrustDomain: trustDomain, Namespace: namespace, ServiceAccount: serviceAccount}
		return id, id.Validate()
	})
}

// PeerCertificate authenticates by the connection's client certificate, which
// the TLS layer has verified against this mesh's roots (see CA.ServerTLS).
func PeerCertificate(trustDomain string) Authenticator {
	return AuthenticatorFunc(func(ctx context.Context) (identity.ID, error) {
		p, ok := peer.FromContext(ctx)
		if !ok {
			return identity.ID{}, fmt.Errorf("%w: no peer", ErrNoCredential)
		}
		info, ok := p.AuthInfo.(credentials.TLSInfo)
		if !ok || len(info.State.PeerCertificates) == 0 {
			return identity.ID{}, fmt.Errorf("%w: no client certificate", ErrNoCredential)
		}
		// Presented is not verified.
		if len(info.State.VerifiedChains) == 0 {
			return identity.ID{}, errors.New("client certificate was not verified")
		}
		leaf := info.State.PeerCertificates[0]
		if len(leaf.URIs) != 1 {
			return identity.ID{}, errors.New("client certificate without a single SPIFFE id")
		}
		id, err := identity.Parse(leaf.URIs[0].String())
		if err != nil {
			return identity.ID{}, err
		}
		if id.TrustDomain != trustDomain {
			return identity.ID{}, fmt.Errorf("client certificate of trust domain %q, not %q", id.TrustDomain, trustDomain)
		}
		return id, nil
	})
}

// FirstOf asks one authenticator after the other and goes on only while there is
// no credential for it: one that is there and bad is not passed over.
func FirstOf(authenticators ...Authenticator) Authenticator {
	return AuthenticatorFunc(func(ctx context.Context) (identity.ID, error) {
		err := fmt.Errorf("%w: nobody to judge", ErrNoCredential)
		for _, a := range authenticators {
			var id identity.ID
			if id, err = a.Authenticate(ctx); !errors.Is(err, ErrNoCredential) {
				return id, err
			}
		}
		return identity.ID{}, err
	})
}
