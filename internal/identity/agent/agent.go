// Package agent keeps a workload's identity alive: it makes a key, has it signed,
// checks the answer, hands it out as an identity.Source, and does all of it again
// with a new key at about half of the certificate's life.
//
// The key never leaves memory. With a Keeper it stays there when the process ends,
// and the next one takes it over. While the authority is away, the old material
// stays in use; when it expires, Current returns nil and whoever needs an
// identity must refuse its work. Connections made before are not touched.
package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/heddle-mesh/heddle/internal/identity"
)

const (
	// renewalJitter spreads renewals by this part of half a life to either side,
	// so that workloads that started together do not ask together for ever.
	renewalJitter = 0.1
	// The waits between failed attempts double from first to last, each drawn
	// from its upper half.
	firstRetry = 100 * time.Millisecond
	lastRetry  = 30 * time.Second
	// attemptTimeout bounds one request: an authority that accepts and never
	// answers is as good as away.
	attemptTimeout = 10 * time.Second
	// shortestWait keeps an authority that signs for no time at all from being
	// asked without a pause.
	shortestWait = 500 * time.Millisecond
	// lookAtClock is the longest sleep. Timers follow the monotonic clock, and
	// certificates the calendar, which may be set or, after a suspend, have run
	// ahead.
	lookAtClock = time.Minute

	maxAnswer       = 256 << 10
	maxCertificates = 10
)

// Config says whose identity to keep and whom to ask.
type Config struct {
	ID identity.ID
	// CSR has a certificate request in PEM signed and returns the chain in PEM,
	// leaf first, root last. It is called by one goroutine at a time and returns
	// soon after ctx ends. See Client.
	CSR func(ctx context.Context, csrPEM []byte) (chainPEM []string, err error)
	// RootPEM are the pinned roots, one or more: what the authority answers must
	// lead to one of them, and peers under any of them are accepted.
	RootPEM []byte
	// OnAttempt, if set, hears of each attempt's outcome, for counters.
	OnAttempt func(err error)
	// Keep, if set, holds the identity for the next process.
	Keep Keeper
	Log  *slog.Logger
}

// Keeper is memory that outlives the process and that no other workload can read:
// an anonymous file that whoever restarts the process holds open, or a volume in
// memory. It is used by one goroutine.
type Keeper interface {
	// Load returns what was saved last, nothing if nothing was.
	Load() ([]byte, error)
	Save([]byte) error
}

// Agent is an identity.Source.
type Agent struct {
	cfg   Config
	roots []*x509.Certificate
	pool  *x509.CertPool // of roots

	current   atomic.Pointer[identity.Material]
	ready     chan struct{}
	readyOnce sync.Once
}

// New checks cfg.
func New(cfg Config) (*Agent, error) {
	if err := cfg.ID.Validate(); err != nil {
		return nil, fmt.Errorf("agent: Config.ID: %w", err)
	}
	if cfg.CSR == nil {
		return nil, errors.New("agent: Config.CSR is missing")
	}
	if cfg.Log == nil {
		return nil, errors.New("agent: Config.Log is missing")
	}
	if cfg.OnAttempt == nil {
		cfg.OnAttempt = func(error) {}
	}
	roots, err := parseChain([]string{string(cfg.RootPEM)})
	if err != nil {
		return nil, fmt.Errorf("agent: Config.RootPEM: %w", err)
	}
	a := &Agent{cfg: cfg, roots: roots, pool: x509.NewCertPool(), ready: make(chan struct{})}
	for _, r := range roots {
		if !r.IsCA {
			return nil, fmt.Errorf("agent: Config.RootPEM: %q is not an authority's certificate", r.Subject)
		}
		a.pool.AddCert(r)
	}
	return a, nil
}

// Current implements identity.Source. It returns nil before the first
// certificate and after the last one's expiry.
func (a *Agent) Current() *identity.Material {
	m := a.current.Load()
	if m == nil || time.Now().After(m.Certificate.Leaf.NotAfter) {
		return nil
	}
	return m
}

// Ready is closed when there is a first certificate.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// Run keeps the identity alive until ctx ends.
func (a *Agent) Run(ctx context.Context) error {
	retry := firstRetry
	m, how := a.takeOver(), "certificate taken over"
	for {
		if m == nil {
			var err error
			m, err = a.attempt(ctx)
			if ctx.Err() != nil {
				return nil
			}
			a.cfg.OnAttempt(err)
			if err != nil {
				wait := retry/2 + mathrand.N(retry/2)
				retry = min(2*retry, lastRetry)
				a.logFailure(err, wait)
				if !sleepUntil(ctx, calendar().Add(wait)) {
					return nil
				}
				continue
			}
			a.save(m)
			how = "certificate renewed"
		}
		retry = firstRetry
		a.current.Store(m)
		a.readyOnce.Do(func() { close(a.ready) })
		at := renewalTime(calendar(), m.Certificate.Leaf.NotAfter, mathrand.Float64())
		a.cfg.Log.Info(how, "id", a.cfg.ID.String(),
			"expires", m.Certificate.Leaf.NotAfter, "next", at)
		if !sleepUntil(ctx, at) {
			return nil
		}
		m = nil
	}
}

// logFailure is louder once the workload has no identity left.
func (a *Agent) logFailure(err error, wait time.Duration) {
	m := a.current.Load()
	switch {
	case m == nil:
		a.cfg.Log.Warn("no certificate yet", "id", a.cfg.ID.String(), "err", err, "retry", wait)
	case a.Current() == nil:
		a.cfg.Log.Error("certificate expired and not renewed; mutual TLS is refused", "id", a.cfg.ID.String(), "err", err, "retry", wait)
	default:
		a.cfg.Log.Warn("certificate not renewed", "id", a.cfg.ID.String(), "err", err, "retry", wait, "expires", m.Certificate.Leaf.NotAfter)
	}
}

// renewalTime is half of the remaining life from now, give or take the jitter;
// random is within [0, 1).
func renewalTime(now, notAfter time.Time, random float64) time.Time {
	half := float64(notAfter.Sub(now) / 2)
	return now.Add(max(time.Duration(half*(1+renewalJitter*(2*random-1))), shortestWait))
}

// calendar is the time of day without the monotonic reading, which comparisons
// would prefer.
func calendar() time.Time { return time.Now().Round(0) }

// sleepUntil returns false if ctx ended first.
func sleepUntil(ctx context.Context, at time.Time) bool {
	for {
		wait := min(at.Sub(calendar()), lookAtClock)
		if wait <= 0 {
			return ctx.Err() == nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
		}
	}
}

// attempt makes a key and has it signed.
func (a *Agent) attempt(ctx context.Context) (*identity.Material, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	request, err := a.request(key)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	answer, err := a.cfg.CSR(ctx, request)
	if err != nil {
		return nil, err
	}
	m, err := a.accept(key, answer)
	if err != nil {
		return nil, fmt.Errorf("answer of the certificate authority: %w", err)
	}
	return m, nil
}

func (a *Agent) request(key *ecdsa.PrivateKey) ([]byte, error) {
	id, err := url.Parse(a.cfg.ID.String())
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{id}}, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// accept checks that the answer is for our key and name, is valid now for both
// ends of a connection, and leads to a pinned root.
func (a *Agent) accept(key *ecdsa.PrivateKey, answer []string) (*identity.Material, error) {
	chain, err := parseChain(answer)
	if err != nil {
		return nil, err
	}
	if len(chain) < 2 {
		return nil, errors.New("it has no root after the certificate")
	}
	leaf, last := chain[0], chain[len(chain)-1]
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, errors.New("the certificate is for another key")
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != a.cfg.ID.String() {
		return nil, fmt.Errorf("the certificate names %.200q, not %q", leaf.URIs, a.cfg.ID.String())
	}
	if leaf.IsCA {
		return nil, errors.New("the certificate may sign others")
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	// One of several usages would be enough for Verify; we need both.
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := leaf.Verify(x509.VerifyOptions{
			Roots: a.pool, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{usage},
		}); err != nil {
			return nil, err
		}
	}

	// The answer's root becomes one of ours if a pinned one vouches for it: that
	// is how a new root arrives, signed by the old.
	roots := a.roots
	if !a.pinned(last) {
		if !last.IsCA {
			return nil, errors.New("it does not end with a root")
		}
		if _, err := last.Verify(x509.VerifyOptions{
			Roots: a.pool, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		}); err != nil {
			return nil, fmt.Errorf("its root is not pinned: %w", err)
		}
		roots = append(roots[:len(roots):len(roots)], last)
	}
	m := &identity.Material{
		ID:          a.cfg.ID,
		Certificate: &tls.Certificate{PrivateKey: key, Leaf: leaf},
		Roots:       x509.NewCertPool(),
	}
	for _, c := range chain {
		if !a.pinned(c) { // peers have the roots
			m.Certificate.Certificate = append(m.Certificate.Certificate, c.Raw)
		}
	}
	for _, r := range roots {
		m.Roots.AddCert(r)
		m.RootPEM = append(m.RootPEM, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Raw})...)
	}
	return m, nil
}

func (a *Agent) pinned(c *x509.Certificate) bool {
	for _, r := range a.roots {
		if r.Equal(c) {
			return true
		}
	}
	return false
}

// parseChain reads certificates; an element may hold several.
func parseChain(texts []string) ([]*x509.Certificate, error) {
	size := 0
	var chain []*x509.Certificate
	for _, text := range texts {
		if size += len(text); size > maxAnswer {
			return nil, fmt.Errorf("more than %d bytes of certificates", maxAnswer)
		}
		rest := []byte(text)
		for {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			if block.Type != "CERTIFICATE" {
				return nil, fmt.Errorf("a %q block among certificates", block.Type)
			}
			if len(chain) == maxCertificates {
				return nil, fmt.Errorf("more than %d certificates", maxCertificates)
			}
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, err
			}
			chain = append(chain, cert)
		}
		if strings.TrimSpace(string(rest)) != "" {
			return nil, errors.New("text that is no certificate in PEM form")
		}
	}
	if len(chain) == 0 {
		return nil, errors.New("no certificate")
	}
	return chain, nil
}
