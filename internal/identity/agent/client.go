package agent

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/heddle-mesh/heddle/api/security"
)

// ClientConfig says how to ask Istio's certificate service.
type ClientConfig struct {
	// Conn leads to the authority. Who serves it is its TLS credentials' to check.
	Conn grpc.ClientConnInterface
	// Token returns the service account token; it is called for each request,
	// because the token file changes under us. Nil sends none.
	Token func() (string, error)
	// ClusterID is sent along, as Istio's agent does.
	ClusterID string
	// TTL that is asked for; 0 leaves it to the authority.
	TTL time.Duration
}

// Client returns a function for Config.CSR.
func Client(cfg ClientConfig) func(ctx context.Context, csrPEM []byte) ([]string, error) {
	return func(ctx context.Context, csrPEM []byte) ([]string, error) {
		if cfg.Token != nil {
			token, err := cfg.Token()
			if err != nil {
				return nil, fmt.Errorf("service account token: %w", err)
			}
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+strings.TrimSpace(token))
		}
		if cfg.ClusterID != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "clusterid", cfg.ClusterID)
		}
		resp, err := security.CreateCertificate(ctx, cfg.Conn, &security.CertificateRequest{
			Csr:              string(csrPEM),
			ValidityDuration: int64(cfg.TTL / time.Second),
		})
		if err != nil {
			return nil, err
		}
		return resp.CertChain, nil
	}
}
