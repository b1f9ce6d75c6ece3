package cluster

import (
	"context"
	"fmt"
	"sync"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-mesh/heddle/internal/kubeapi"
)

const (
	// rememberAccess is how long an answer about access is good for. Source: Istio.
	rememberAccess = time.Minute
	accessTimeout  = 5 * time.Second
)

// Access asks whether service accounts may read Secrets. It is safe for
// concurrent use.
type Access struct {
	clients kubeapi.Clients
	now     func() time.Time

	mu sync.Mutex
	// mu guards what was answered, by account.
	known map[account]answer
}

type account struct{ namespace, name string }

type answer struct {
	allowed bool
	until   time.Time
}

// NewAccess returns an Access that was asked nothing yet.
func NewAccess(c kubeapi.Clients) *Access {
	return &Access{clients: c, now: time.Now, known: map[account]answer{}}
}

// MayReadSecrets reports whether a service account may read all Secrets of its
// own namespace: what its proxies are given comes from there. It asks the API
// server, and remembers the answer for a minute.
func (a *Access) MayReadSecrets(ctx context.Context, namespace, serviceAccount string) (bool, error) {
	who, now := account{namespace, serviceAccount}, a.now()
	a.mu.Lock()
	known, ok := a.known[who]
	a.mu.Unlock()
	if ok && now.Before(known.until) {
		return known.allowed, nil
	}
	ctx, cancel := context.WithTimeout(ctx, accessTimeout)
	defer cancel()
	r, err := a.clients.Core.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{
			ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "list", Resource: "secrets", Namespace: namespace},
			User:               accountPrefix + namespace + ":" + serviceAccount,
			// What every service account is a member of, which a rule may name.
			Groups: []string{accountsGroup, accountsGroup + ":" + namespace, "system:authenticated"},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return false, fmt.Errorf("access of %s/%s to secrets can not be checked: %w", namespace, serviceAccount, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.known) >= maxRemembered {
		clear(a.known) // they are asked about again
	}
	a.known[who] = answer{r.Status.Allowed, now.Add(rememberAccess)}
	return r.Status.Allowed, nil
}
