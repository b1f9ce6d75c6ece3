// Package jwks fetches the key sets by which tokens are checked.
//
// Each source is fetched when it is first wanted, and again every twenty minutes. A
// set that was fetched once stays while fetching fails: an issuer that is away for a
// while takes nobody's requests down. What is fetched is told only if it differs from
// what was told before.
//
// Addresses come from whoever may write policies, so that a fetch must not become a
// way into networks that they can not reach themselves: blocked ranges are compared
// with the address that is dialled, after names were resolved; redirects are few, and
// time and size are bounded.
package jwks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// refresh is how often keys are fetched again. Source: Istio, jwks_resolver.
	refresh = 20 * time.Minute
	// soon and late bound the wait after a failure, which doubles each time.
	soon, late = time.Second, refresh
	// timeout bounds one fetch with its redirects.
	timeout = 5 * time.Second
	// maxBody bounds a key set; the largest known ones have some 20 KiB.
	maxBody = 1 << 20
	// maxRedirects is how often a source may point elsewhere.
	maxRedirects = 3
	// parallel is how many sources are fetched at a time.
	parallel = 8
)

// OpenID begins a source that is an issuer's name, whose configuration tells the
// address of its keys.
const OpenID = "openid:"

// Config is what a Fetcher needs. OnKeys and Log are required.
type Config struct {
	// OnKeys hears of a source's keys when they are new. It is called from one
	// goroutine at a time for each source, and may block.
	OnKeys func(ctx context.Context, source, keys string)
	// Blocked are addresses that are not dialled.
	Blocked []netip.Prefix
	// Dial connects; nil means the machine's network, with Blocked.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	Log  *slog.Logger
}

// Fetcher fetches. Want may be called from any goroutine.
type Fetcher struct {
	cfg    Config
	client *http.Client
	slots  chan struct{}
	wake   chan struct{} // cap 1: the wanted sources changed

	mu sync.Mutex
	// mu guards
	wanted map[string]bool
}

// New returns a Fetcher that wants nothing yet.
func New(cfg Config) (*Fetcher, error) {
	if cfg.OnKeys == nil || cfg.Log == nil {
		return nil, errors.New("jwks: Config.OnKeys or Config.Log is missing")
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{Timeout: timeout, Control: func(_, address string, _ syscall.RawConn) error {
			return allowed(address, cfg.Blocked)
		}}).DialContext
	}
	return &Fetcher{
		cfg: cfg, slots: make(chan struct{}, parallel), wake: make(chan struct{}, 1),
		client: &http.Client{
			Transport: &http.Transport{DialContext: cfg.Dial, TLSHandshakeTimeout: timeout, MaxResponseHeaderBytes: 64 << 10, DisableKeepAlives: true},
			CheckRedirect: func(_ *http.Request, via []*http.Request) error {
				if len(via) > maxRedirects {
					return errors.New("too many redirects")
				}
				return nil
			},
		},
	}, nil
}

// allowed compares an address that a name was resolved to with the blocked ones.
func allowed(address string, blocked []netip.Prefix) error {
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	for _, b := range blocked {
		if b.Contains(a.Addr().Unmap()) {
			return fmt.Errorf("address %s is blocked", a.Addr())
		}
	}
	return nil
}

// Want replaces the sources that are kept fresh.
func (f *Fetcher) Want(sources []string) {
	f.mu.Lock()
	f.wanted = map[string]bool{}
	for _, s := range sources {
		f.wanted[s] = true
	}
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Run keeps each wanted source fresh, in a goroutine of its own, until ctx ends.
func (f *Fetcher) Run(ctx context.Context) error {
	running := map[string]context.CancelFunc{}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	for {
		f.mu.Lock()
		for s, cancel := range running {
			if !f.wanted[s] {
				cancel()
				delete(running, s)
			}
		}
		for s := range f.wanted {
			if running[s] == nil {
				own, cancel := context.WithCancel(ctx)
				running[s] = cancel
				wg.Go(func() { f.keep(own, s) })
			}
		}
		f.mu.Unlock()
		select {
		case <-f.wake:
		case <-ctx.Done():
			for _, cancel := range running {
				cancel()
			}
			return nil
		}
	}
}

// keep fetches one source over and over.
func (f *Fetcher) keep(ctx context.Context, source string) {
	last, wait := "", soon
	for {
		keys, err := f.fetch(ctx, source)
		next := refresh
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			next, wait = wait, min(2*wait, late)
			f.cfg.Log.Warn("the keys of tokens can not be fetched", "source", source, "error", err, "again", next, "stale", last != "")
		default:
			wait = soon
			if keys != last {
				last = keys
				f.cfg.OnKeys(ctx, source, keys)
			}
		}
		t := time.NewTimer(next)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// fetch returns the key set of a source.
func (f *Fetcher) fetch(ctx context.Context, source string) (string, error) {
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if issuer, ok := strings.CutPrefix(source, OpenID); ok {
		text, err := f.get(ctx, strings.TrimSuffix(issuer, "/")+"/.well-known/openid-configuration")
		if err != nil {
			return "", err
		}
		var c struct {
			Keys string `json:"jwks_uri"`
		}
		if err := json.Unmarshal([]byte(text), &c); err != nil || c.Keys == "" {
			return "", fmt.Errorf("the issuer's configuration names no jwks_uri")
		}
		source = c.Keys
	}
	text, err := f.get(ctx, source)
	if err != nil {
		return "", err
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal([]byte(text), &set); err != nil {
		return "", fmt.Errorf("it is no key set: %w", err)
	}
	if len(set.Keys) == 0 {
		return "", errors.New("it is a key set without keys")
	}
	return text, nil
}

func (f *Fetcher) get(ctx context.Context, url string) (string, error) {
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	if q.URL.Scheme != "http" && q.URL.Scheme != "https" {
		return "", fmt.Errorf("%q is no address of the web", url)
	}
	r, err := f.client.Do(q)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s answers %s", url, r.Status)
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxBody {
		return "", fmt.Errorf("%s has more than %d bytes", url, maxBody)
	}
	return string(b), nil
}
