package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/internal/identity"
	"github.com/heddle-mesh/heddle/internal/kubeapi"
)

const (
	// maxToken bounds what is sent on; a token of Kubernetes has about 1 KiB.
	maxToken = 16 << 10
	// rememberToken is how long an answer is good for: a token that was revoked, by
	// deleting its pod, is refused after so long. A proxy that renews its
	// certificate and its stream at once is asked about once.
	rememberToken = 20 * time.Second
	maxRemembered = 10_000
	reviewTimeout = 5 * time.Second

	accountPrefix = "system:serviceaccount:"
	accountsGroup = "system:serviceaccounts"
	podNameKey    = "authentication.kubernetes.io/pod-name"
	podUIDKey     = "authentication.kubernetes.io/pod-uid"
)

// Tokens checks service account tokens by TokenReview. It is safe for concurrent
// use.
type Tokens struct {
	clients  kubeapi.Clients
	audience string
	now      func() time.Time

	mu sync.Mutex
	// mu guards what good tokens said, by their hash.
	known map[[sha256.Size]byte]verdict
}

type verdict struct {
	namespace, account string
	until              time.Time
}

// NewTokens checks tokens that are for an audience.
func NewTokens(c kubeapi.Clients, audience string) *Tokens {
	return &Tokens{clients: c, audience: audience, now: time.Now, known: map[[sha256.Size]byte]verdict{}}
}

// Verify returns whom the token names. The API server says whether it is good:
// for a token that is bound to a pod that is so while this very pod exists.
func (t *Tokens) Verify(token string) (namespace, serviceAccount string, err error) {
	expiry, err := t.plausible(token)
	if err != nil {
		return "", "", fmt.Errorf("token: %w", err)
	}
	hash := sha256.Sum256([]byte(token))
	now := t.now()
	t.mu.Lock()
	v, ok := t.known[hash]
	t.mu.Unlock()
	if ok && now.Before(v.until) {
		return v.namespace, v.account, nil
	}
	v, err = t.review(token)
	if err != nil {
		return "", "", fmt.Errorf("token: %w", err)
	}
	v.until = now.Add(rememberToken)
	if expiry.Before(v.until) {
		v.until = expiry
	}
	t.remember(hash, v, now)
	return v.namespace, v.account, nil
}

// plausible refuses what the API server need not be asked about. It proves
// nothing.
func (t *Tokens) plausible(token string) (expiry time.Time, err error) {
	if len(token) > maxToken {
		return time.Time{}, fmt.Errorf("%d bytes are too long", len(token))
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}, errors.New("not of three parts")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}, errors.New("its claims can not be read")
	}
	var claims struct {
		Audience audiences `json:"aud"`
		Expiry   int64     `json:"exp"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return time.Time{}, errors.New("its claims can not be read")
	}
	expiry = time.Unix(claims.Expiry, 0)
	switch {
	case claims.Expiry == 0:
		return time.Time{}, errors.New("without expiry")
	case !t.now().Before(expiry):
		return time.Time{}, errors.New("expired")
	case !slices.Contains(claims.Audience, t.audience):
		return time.Time{}, fmt.Errorf("not for audience %q", t.audience)
	}
	return expiry, nil
}

// audiences are a list, or a single text.
type audiences []string

func (a *audiences) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*a = audiences{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(a))
}

func (t *Tokens) review(token string) (verdict, error) {
	ctx, cancel := context.WithTimeout(context.Background(), reviewTimeout)
	defer cancel()
	r, err := t.clients.Core.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{t.audience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return verdict{}, fmt.Errorf("it can not be checked: %w", err)
	}
	s := r.Status
	switch {
	case s.Error != "":
		return verdict{}, fmt.Errorf("the API server refuses it: %s", s.Error)
	case !s.Authenticated:
		return verdict{}, errors.New("the API server refuses it")
	case !slices.Contains(s.Audiences, t.audience):
		// An API server that knows no audiences takes any token of its own.
		return verdict{}, fmt.Errorf("not for audience %q", t.audience)
	case !slices.Contains(s.User.Groups, accountsGroup):
		return verdict{}, errors.New("not of a service account")
	}
	name, ok := strings.CutPrefix(s.User.Username, accountPrefix)
	namespace, account, found := strings.Cut(name, ":")
	if !ok || !found {
		return verdict{}, errors.New("not of a service account")
	}
	if err := (identity.ID{TrustDomain: "td", Namespace: namespace, ServiceAccount: account}).Validate(); err != nil {
		return verdict{}, err
	}
	// Bound to a pod means bound to one pod, not to whoever has its name next.
	if (len(s.User.Extra[podNameKey]) == 0) != (len(s.User.Extra[podUIDKey]) == 0) {
		return verdict{}, errors.New("bound to a pod by half")
	}
	return verdict{namespace: namespace, account: account}, nil
}

func (t *Tokens) remember(hash [sha256.Size]byte, v verdict, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.known) >= maxRemembered {
		for h, v := range t.known {
			if !now.Before(v.until) {
				delete(t.known, h)
			}
		}
	}
	if len(t.known) >= maxRemembered {
		clear(t.known) // they are asked about again
	}
	t.known[hash] = v
}
