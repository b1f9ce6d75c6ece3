package ca

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/heddle-mesh/heddle/api/security"
	"github.com/heddle-mesh/heddle/internal/identity"
)

// Authenticator tells who is calling, from the call's metadata and connection.
// It is called once per call, may block while ctx lives, and fails if the caller
// proves nothing.
type Authenticator interface {
	Authenticate(ctx context.Context) (identity.ID, error)
}

// AuthenticatorFunc is an Authenticator.
type AuthenticatorFunc func(ctx context.Context) (identity.ID, error)

// Authenticate implements Authenticator.
func (f AuthenticatorFunc) Authenticate(ctx context.Context) (identity.ID, error) { return f(ctx) }

// ServiceConfig are a Service's collaborators.
type ServiceConfig struct {
	CA            *CA
	Authenticator Authenticator
	// OnResult, if set, hears of each call's outcome, for counters. id is zero
	// if the caller was not authenticated; err is a gRPC status error or nil.
	OnResult func(id identity.ID, err error)
}

// Service is Istio's certificate service. Register it with security.Register.
type Service struct{ cfg ServiceConfig }

// NewService checks cfg.
func NewService(cfg ServiceConfig) (*Service, error) {
	if cfg.CA == nil {
		return nil, errors.New("ca: ServiceConfig.CA is missing")
	}
	if cfg.Authenticator == nil {
		return nil, errors.New("ca: ServiceConfig.Authenticator is missing")
	}
	if cfg.OnResult == nil {
		cfg.OnResult = func(identity.ID, error) {}
	}
	return &Service{cfg: cfg}, nil
}

// CreateCertificate implements security.Server.
func (s *Service) CreateCertificate(ctx context.Context, req *security.CertificateRequest) (*security.CertificateResponse, error) {
	id, err := s.cfg.Authenticator.Authenticate(ctx)
	if err != nil {
		err = status.Error(codes.Unauthenticated, err.Error())
		s.cfg.OnResult(identity.ID{}, err)
		return nil, err
	}
	resp, err := s.sign(id, req)
	s.cfg.OnResult(id, err)
	return resp, err
}

func (s *Service) sign(id identity.ID, req *security.CertificateRequest) (*security.CertificateResponse, error) {
	// A node agent asks in the name of its pods. To ignore the wish would hand
	// the node's own identity to a pod.
	if req.Metadata.GetFields()["ImpersonatedIdentity"].GetStringValue() != "" {
		return nil, status.Errorf(codes.PermissionDenied, "%s may not ask for the certificate of another identity", id)
	}
	chain, err := s.cfg.CA.Sign([]byte(req.Csr), id, seconds(req.ValidityDuration))
	switch {
	case errors.Is(err, ErrIdentity):
		return nil, status.Error(codes.PermissionDenied, err.Error())
	case errors.Is(err, ErrRequest):
		return nil, status.Error(codes.InvalidArgument, err.Error())
	case err != nil:
		return nil, status.Error(codes.Internal, err.Error())
	}
	resp := &security.CertificateResponse{CertChain: make([]string, len(chain))}
	for i, c := range chain {
		resp.CertChain[i] = string(c)
	}
	return resp, nil
}

// seconds converts without overflow: a request may name any number.
func seconds(n int64) time.Duration {
	const most = int64(1<<63-1) / int64(time.Second)
	return time.Duration(min(max(n, 0), most)) * time.Second
}
