package proxy

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/heddle-mesh/heddle/internal/identity/agent"
	"github.com/heddle-mesh/heddle/internal/xds/client"
)

// Control says where the control plane is and how to talk to it.
type Control struct {
	// Address is "istiod.istio-system.svc:15012". CAAddress is that of the
	// certificate authority, if it is another one.
	Address, CAAddress string
	// ServerName is the name in the control plane's certificate; "" is
	// "istiod.istio-system.svc".
	ServerName string
	// Roots returns the certificates, in PEM, that the control plane's own must
	// lead to. Token returns the bearer token of the workload. Both are asked
	// again for each connection and request, because the files behind them change.
	Roots func() ([]byte, error)
	Token func() (string, error)

	// Connect and CSR take the place of all of the above, if set.
	Connect func(ctx context.Context) (*grpc.ClientConn, error)
	CSR     func(ctx context.Context, csrPEM []byte) (chainPEM []string, err error)
}

const (
	defaultServerName = "istiod.istio-system.svc"
	// dialTimeout bounds the attempt to reach one address of the control plane.
	dialTimeout = 10 * time.Second
)

// control opens connections to the control plane.
type control struct {
	cfg *Config
}

func newControl(cfg *Config) *control { return &control{cfg} }

func (c *control) roots() ([]byte, error) {
	if c.cfg.Control.Roots == nil {
		return nil, errors.New("proxy: Config.Control.Roots is missing")
	}
	b, err := c.cfg.Control.Roots()
	if err != nil {
		return nil, fmt.Errorf("roots of the control plane: %w", err)
	}
	return b, nil
}

// connect opens a connection for xDS.
func (c *control) connect(ctx context.Context) (*grpc.ClientConn, error) {
	if f := c.cfg.Control.Connect; f != nil {
		return f(ctx)
	}
	var opts []grpc.DialOption
	if c.cfg.Control.Token != nil {
		opts = append(opts, grpc.WithPerRPCCredentials(bearer{c.cfg.Control.Token, c.cfg.Workload.ClusterID}))
	}
	return c.dial(c.cfg.Control.Address, opts...)
}

// csr returns what has certificates signed, and what ends it.
func (c *control) csr() (func(ctx context.Context, csrPEM []byte) ([]string, error), func() error, error) {
	if f := c.cfg.Control.CSR; f != nil {
		return f, func() error { return nil }, nil
	}
	conn, err := c.dial(cmp.Or(c.cfg.Control.CAAddress, c.cfg.Control.Address))
	if err != nil {
		return nil, nil, err
	}
	return agent.Client(agent.ClientConfig{Conn: conn, Token: c.cfg.Control.Token, ClusterID: c.cfg.Workload.ClusterID, TTL: c.cfg.Workload.CertTTL}), conn.Close, nil
}

// dial prepares a connection over the proxy's own network, so that it is neither
// captured nor, in tests, real.
func (c *control) dial(address string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	name := cmp.Or(c.cfg.Control.ServerName, defaultServerName)
	creds := credentials.NewTLS(&tls.Config{
		ServerName: name,
		MinVersion: tls.VersionTLS12,
		// The roots are read for each handshake; crypto/tls would keep those of
		// the first. VerifyConnection does what it would have done.
		InsecureSkipVerify: true,
		VerifyConnection:   func(cs tls.ConnectionState) error { return c.verify(cs, name) },
	})
	opts = append(opts, grpc.WithContextDialer(c.open), grpc.WithNoProxy(), grpc.WithIdleTimeout(0))
	return client.Dial("passthrough:///"+address, creds, opts...)
}

func (c *control) verify(cs tls.ConnectionState, name string) error {
	pem, err := c.roots()
	if err != nil {
		return err
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return errors.New("no certificate among the roots of the control plane")
	}
	if len(cs.PeerCertificates) == 0 {
		return errors.New("the control plane shows no certificate")
	}
	for _, cert := range cs.PeerCertificates[1:] {
		between.AddCert(cert)
	}
	_, err = cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: name})
	return err
}

// open connects to a host and port; of a host with several addresses, to the
// first that answers.
func (c *control) open(ctx context.Context, address string) (net.Conn, error) {
	if addr, err := netip.ParseAddrPort(address); err == nil {
		return c.cfg.Network.Dial(ctx, netip.Addr{}, addr)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	addrs, err := c.cfg.Resolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, a := range addrs {
		to, err := netip.ParseAddrPort(net.JoinHostPort(a.Unmap().String(), port))
		if err != nil {
			return nil, err
		}
		one, cancel := context.WithTimeout(ctx, dialTimeout)
		conn, err := c.cfg.Network.Dial(one, netip.Addr{}, to)
		cancel()
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("%s: %w", address, errors.Join(errs...))
}

// bearer sends the workload's token along with each request.
type bearer struct {
	token     func() (string, error)
	clusterID string
}

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := b.token()
	if err != nil {
		return nil, fmt.Errorf("service account token: %w", err)
	}
	m := map[string]string{"authorization": "Bearer " + strings.TrimSpace(token)}
	if b.clusterID != "" {
		m["clusterid"] = b.clusterID
	}
	return m, nil
}

func (bearer) RequireTransportSecurity() bool { return true }
