package security

import (
	"bytes"
	"context"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/structpb"
	istio "istio.io/api/security/v1alpha1"
)

func marshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRequestHasIstiosBytes(t *testing.T) {
	metadata, err := structpb.NewStruct(map[string]any{"CertSigner": "x", "ImpersonatedIdentity": "spiffe://td/ns/a/sa/b"})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]*istio.IstioCertificateRequest{
		"empty": {},
		"all":   {Csr: "-----BEGIN CERTIFICATE REQUEST-----\n", ValidityDuration: 86400, Metadata: metadata},
		"neg":   {ValidityDuration: -1},
	} {
		t.Run(name, func(t *testing.T) {
			own := &CertificateRequest{Csr: want.Csr, ValidityDuration: want.ValidityDuration, Metadata: want.Metadata}
			wire := marshal(t, want)
			if got := marshal(t, protoadapt.MessageV2Of(own)); !bytes.Equal(got, wire) {
				t.Errorf("bytes = %x, want %x", got, wire)
			}
			var back CertificateRequest
			if err := proto.Unmarshal(wire, protoadapt.MessageV2Of(&back)); err != nil {
				t.Fatal(err)
			}
			if back.Csr != want.Csr || back.ValidityDuration != want.ValidityDuration || !proto.Equal(back.Metadata, want.Metadata) {
				t.Errorf("decoded %+v, want %v", back, want)
			}
		})
	}
}

func TestResponseHasIstiosBytes(t *testing.T) {
	for name, chain := range map[string][]string{"empty": nil, "two": {"leaf", "root"}, "with empty": {"", "root"}} {
		t.Run(name, func(t *testing.T) {
			wire := marshal(t, &istio.IstioCertificateResponse{CertChain: chain})
			if got := marshal(t, protoadapt.MessageV2Of(&CertificateResponse{CertChain: chain})); !bytes.Equal(got, wire) {
				t.Errorf("bytes = %x, want %x", got, wire)
			}
			var back CertificateResponse
			if err := proto.Unmarshal(wire, protoadapt.MessageV2Of(&back)); err != nil {
				t.Fatal(err)
			}
			if strings.Join(back.CertChain, "|") != strings.Join(chain, "|") || len(back.CertChain) != len(chain) {
				t.Errorf("decoded %q, want %q", back.CertChain, chain)
			}
		})
	}
}

// ours answers with what it was asked.
type ours struct{ got *CertificateRequest }

func (s *ours) CreateCertificate(_ context.Context, r *CertificateRequest) (*CertificateResponse, error) {
	s.got = r
	if r.Csr == "" {
		return nil, status.Error(codes.InvalidArgument, "no csr")
	}
	return &CertificateResponse{CertChain: []string{r.Csr, "root"}}, nil
}

// theirs is Istio's generated server.
type theirs struct {
	istio.UnimplementedIstioCertificateServiceServer
}

func (theirs) CreateCertificate(_ context.Context, r *istio.IstioCertificateRequest) (*istio.IstioCertificateResponse, error) {
	return &istio.IstioCertificateResponse{CertChain: []string{r.Csr, "theirs"}}, nil
}

func connect(t *testing.T, register func(grpc.ServiceRegistrar), opts ...grpc.ServerOption) *grpc.ClientConn {
	t.Helper()
	l := bufconn.Listen(1 << 16)
	s := grpc.NewServer(opts...)
	register(s)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	cc, err := grpc.NewClient("passthrough:///mem", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cc.Close(); err != nil {
			t.Error(err)
		}
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return cc
}

func TestOwnServerWithIstiosClient(t *testing.T) {
	server := new(ours)
	var method string
	cc := connect(t, func(r grpc.ServiceRegistrar) { Register(r, server) },
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			method = info.FullMethod
			return h(ctx, req)
		}))
	client := istio.NewIstioCertificateServiceClient(cc)
	resp, err := client.CreateCertificate(t.Context(), &istio.IstioCertificateRequest{Csr: "csr", ValidityDuration: 7})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(resp.CertChain, ","); got != "csr,root" || server.got.ValidityDuration != 7 {
		t.Errorf("chain %s, asked %+v", got, server.got)
	}
	if method != istio.IstioCertificateService_CreateCertificate_FullMethodName {
		t.Errorf("method = %s", method)
	}
	if _, err := client.CreateCertificate(t.Context(), &istio.IstioCertificateRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("err = %v, want InvalidArgument", err)
	}
}

func TestOwnClientWithIstiosServer(t *testing.T) {
	cc := connect(t, func(r grpc.ServiceRegistrar) { istio.RegisterIstioCertificateServiceServer(r, theirs{}) })
	resp, err := CreateCertificate(t.Context(), cc, &CertificateRequest{Csr: "csr"})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(resp.CertChain, ","); got != "csr,theirs" {
		t.Errorf("chain = %s", got)
	}
}

func TestOwnClientWithOwnServer(t *testing.T) {
	server := new(ours)
	cc := connect(t, func(r grpc.ServiceRegistrar) { Register(r, server) })
	resp, err := CreateCertificate(t.Context(), cc, &CertificateRequest{Csr: "csr"})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(resp.CertChain, ","); got != "csr,root" {
		t.Errorf("chain = %s", got)
	}
	if _, err := CreateCertificate(t.Context(), cc, &CertificateRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("err = %v, want InvalidArgument", err)
	}
}

func TestContentsAreNotPrinted(t *testing.T) {
	for _, m := range []interface{ String() string }{
		&CertificateRequest{Csr: "SECRET"}, &CertificateResponse{CertChain: []string{"SECRET"}},
	} {
		if got := m.String(); strings.Contains(got, "SECRET") {
			t.Errorf("%T prints as %s", m, got)
		}
	}
}
