// Package security is the wire form of istio.v1.auth.IstioCertificateService, by
// which a workload has its certificate signed.
//
// The types are written by hand. Generated ones would register their names with
// the protobuf runtime, where they collide with those of istio.io/api in any
// program that links both; and the proxy is not to link istio.io/api for three
// fields. The struct tags make them messages for the protobuf runtime and so for
// gRPC's usual codec; a test holds their bytes to istio.io/api's.
//
// Source: istio.io/api, security/v1alpha1/ca.proto.
package security

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"
)

const (
	// ServiceName is the full name of the gRPC service.
	ServiceName = "istio.v1.auth.IstioCertificateService"
	// CreateCertificateMethod is the full name of its only method.
	CreateCertificateMethod = "/" + ServiceName + "/CreateCertificate"
)

// CertificateRequest is istio.v1.auth.IstioCertificateRequest.
type CertificateRequest struct {
	// Csr is a certificate request in PEM. The server takes the public key from
	// it, and the name from who is asking.
	Csr string `protobuf:"bytes,1,opt,name=csr,proto3"`
	// ValidityDuration is the wanted time to live, in seconds; 0 leaves it to the
	// server.
	ValidityDuration int64 `protobuf:"varint,3,opt,name=validity_duration,json=validityDuration,proto3"`
	// Metadata may have the texts CertSigner and ImpersonatedIdentity.
	Metadata *structpb.Struct `protobuf:"bytes,4,opt,name=metadata,proto3"`
}

// Reset, String, ProtoMessage and XXX_MessageName are what the protobuf runtime
// asks of a message that describes itself by struct tags.
func (m *CertificateRequest) Reset() { *m = CertificateRequest{} }

// String leaves the contents out: they have no place in logs.
func (m *CertificateRequest) String() string {
	return fmt.Sprintf("CertificateRequest(csr %d bytes, %d s)", len(m.Csr), m.ValidityDuration)
}
func (*CertificateRequest) ProtoMessage() {}
func (*CertificateRequest) XXX_MessageName() string {
	return "istio.v1.auth.IstioCertificateRequest"
}

// CertificateResponse is istio.v1.auth.IstioCertificateResponse.
type CertificateResponse struct {
	// CertChain are certificates in PEM, leaf first, root last, at least two.
	CertChain []string `protobuf:"bytes,1,rep,name=cert_chain,json=certChain,proto3"`
}

func (m *CertificateResponse) Reset() { *m = CertificateResponse{} }
func (m *CertificateResponse) String() string {
	return fmt.Sprintf("CertificateResponse(%d certificates)", len(m.CertChain))
}
func (*CertificateResponse) ProtoMessage() {}
func (*CertificateResponse) XXX_MessageName() string {
	return "istio.v1.auth.IstioCertificateResponse"
}

// Server answers certificate requests. Errors are gRPC status errors.
type Server interface {
	CreateCertificate(context.Context, *CertificateRequest) (*CertificateResponse, error)
}

// Register makes r serve s.
func Register(r grpc.ServiceRegistrar, s Server) {
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: ServiceName,
		HandlerType: (*Server)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "CreateCertificate", Handler: handle}},
		Metadata:    "security/v1alpha1/ca.proto",
	}, s)
}

func handle(server any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
	req := new(CertificateRequest)
	if err := decode(req); err != nil {
		return nil, err
	}
	call := func(ctx context.Context, req any) (any, error) {
		return server.(Server).CreateCertificate(ctx, req.(*CertificateRequest))
	}
	if intercept == nil {
		return call(ctx, req)
	}
	return intercept(ctx, req, &grpc.UnaryServerInfo{Server: server, FullMethod: CreateCertificateMethod}, call)
}

// CreateCertificate asks the server at the other end of cc.
func CreateCertificate(ctx context.Context, cc grpc.ClientConnInterface, req *CertificateRequest, opts ...grpc.CallOption) (*CertificateResponse, error) {
	resp := new(CertificateResponse)
	if err := cc.Invoke(ctx, CreateCertificateMethod, req, resp, opts...); err != nil {
		return nil, err
	}
	return resp, nil
}
